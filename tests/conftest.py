"""What all tests share."""

from __future__ import annotations

import os
import signal
from types import FrameType

from tests.needs import need_root, needs

__all__ = ["need_root", "needs"]


def pytest_configure() -> None:
    """Let SIGTERM (of ``timeout``, of CI) end the run as an interrupt does: mounts and swap are put back."""
    runner = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != runner:
            os._exit(128 + number)  # a forked child has nothing to put back
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGTERM, end)
