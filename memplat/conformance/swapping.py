"""Getting pages swapped out, for real."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Final

from memplat.conformance.case import Case, stamp
from memplat.conformance.observer import SHMEM, Observer, smaps
from memplat.memory import Memory
from memplat.ranges import FileRange

_MADV_PAGEOUT: Final = 21
#: The least share of the pages that has to be in swap for a check to prove anything.
_LEAST_SHARE: Final = 0.9
_ATTEMPTS: Final = 20


def write_and_swap_out(case: Case, memory: Memory, pages: FileRange) -> None:
    """Write to all of *pages*, have the kernel swap them out, and make sure that they are in swap.

    They are written by system call: a page that the memory's own mapping has touched, too, is not paged out. What is
    not shmem is never swapped, so there is nothing more to do.

    :raises NotApplicableError: there is no swap, or the kernel does not use it
    """
    for start in range(*pages, memory.page_size):
        memory.write(FileRange(start, start + memory.page_size), stamp(start, 0, memory.page_size))
    observer = case.observer(memory)
    if observer.kind != SHMEM:
        return
    if len(Path("/proc/swaps").read_text(encoding="utf-8").splitlines()) < 2:
        case.skip("needs swap: the host has none (swapon a file of 64 MiB to have this checked)")
    swapped = 0
    for _ in range(_ATTEMPTS):
        swapped = max(swapped, _page_out(observer, pages))
        if swapped >= _LEAST_SHARE * pages.length:
            return
    case.skip(f"the kernel has swapped out only {swapped} of {pages.length} bytes")


def _page_out(observer: Observer, pages: FileRange) -> int:
    """Map the pages, ask the kernel to swap them out, and return how many bytes of them are in swap."""
    with observer.opened() as own, mmap.mmap(own, pages.length, offset=pages.start) as window:
        sum(window[start] for start in range(0, pages.length, mmap.PAGESIZE))
        window.madvise(_MADV_PAGEOUT)
        for line in observer.mappings():
            if line.offset == pages.start and line.end - line.start == pages.length:
                return int(smaps(line.start).get("Swap", "0 kB").split()[0]) * 1024
    return 0


__all__ = ["write_and_swap_out"]
