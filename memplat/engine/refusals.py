"""The errors of a memory that refuses every call."""

from __future__ import annotations

from memplat.errors import ClosedError, ForkedError, InterruptedMemoryError, MemplatError, ReentrantCallError


def closed() -> MemplatError:
    """The error of a memory that was closed."""
    return ClosedError("the memory is closed; open another one")


def reentrant() -> MemplatError:
    """The error of a call that interrupted another one of its own thread."""
    return ReentrantCallError(
        "a finalizer, callback or signal handler has interrupted a call of this thread on the same memory; there, only "
        "decref and dropping views and blocks are possible: leave the rest to the interrupted code"
    )


def interrupted() -> MemplatError:
    """The error of a memory whose page table was left torn."""
    return InterruptedMemoryError(
        "an exception from outside (KeyboardInterrupt, a signal handler, MemoryError) has cut a change of this memory "
        "off halfway, so it cannot know any more which pages are free; views go on: save what you need, then close it"
    )


def forked() -> MemplatError:
    """The error of a memory in a forked child."""
    return ForkedError(
        "this memory belongs to the parent process; a forked child may only use view(pin=False) and close: "
        "open a memory of its own, or share pages"
    )
