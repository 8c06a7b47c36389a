"""Which threads are inside of a call of the engine, by their stacks. For what exceptions from outside left undone."""

from __future__ import annotations

import gc
import os
import sys
import threading
from types import FrameType
from typing import Final

_OURS: Final = os.path.dirname(__file__) + os.sep


def threads_inside() -> set[int]:
    """The threads that have a frame of the engine on their stack; of this one, the call that asks does not count."""
    inside = set()
    for thread, top in _all_stacks().items():
        frame: FrameType | None = top
        while thread == threading.get_ident() and frame is not None and _is_ours(frame):
            frame = frame.f_back
        while frame is not None and not _is_ours(frame):
            frame = frame.f_back
        if frame is not None:
            inside.add(thread)
    return inside


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_OURS)


def _all_stacks() -> dict[int, FrameType]:
    """The topmost frame of each thread. A garbage collection in the middle of that deadlocks CPython 3.11: it holds a
    lock of the interpreter that a starting thread wants.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames()  # noqa: SLF001 -- documented, for debuggers
    finally:
        if collects:
            gc.enable()
