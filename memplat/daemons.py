"""Threads of our own that go on in the background, and the interpreter's end, which they do not live to see."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any


def start(what: Callable[..., object], name: str, *arguments: Any) -> threading.Thread:
    """A daemon thread that has begun.

    :raises RuntimeError: there can be no more threads. An interpreter that ends has none any more: before Python 3.12
        whoever starts one there waits for ever
    """
    if sys.is_finalizing():
        raise RuntimeError("the interpreter ends")
    thread = threading.Thread(target=what, args=arguments, name=name, daemon=True)
    thread.start()
    return thread


__all__ = ["start"]
