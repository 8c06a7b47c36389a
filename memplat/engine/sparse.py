"""Pages that nobody has touched, or hardly any, are free with their last reference: there is nothing to give back.

Of long ranges of shmem the file itself tells in microseconds what of them was touched. Nothing: they are free at once,
and neither rest nor wake the reclaimer. A few pages: those are zeroed and stay committed, if ``keep`` has room for
them, so that who allocates them next finds them mapped already.

Not with pages that are *reserved*, which may cost storage without having data, nor while others may write to the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from memplat.engine import pages
from memplat.linux import extents as flat
from memplat.linux.touched import few_touched
from memplat.ranges import MIB

if TYPE_CHECKING:
    from memplat.engine.state import EngineState

#: Shorter ranges are not worth the question.
SPARSE_BYTES: Final = MIB
#: So many pages are zeroed in the way.
_MOST_TOUCHED: Final = 16
_FEW_KEPT: Final = 32


def free_sparse_locked(state: EngineState, start: int, end: int) -> None:
    """Turn pages that have just become waste into free ones, if hardly any was touched."""
    table = state.table
    if not state.may_prove or state.peers:
        return
    runs = [value[0] for _, _, value in table.runs(start, end)]
    if runs != [pages.WASTE] or (table.has_flags and table.flagged(pages.RESERVED)):
        return
    if not state.gate.acquire(blocking=False):  # whoever decommits keeps the kernel's lock of the file
        return
    try:
        touched = few_touched(state.file.fd, start, end, _MOST_TOUCHED)
    finally:
        state.gate.release()
    if touched is None:
        return
    if touched:
        kept = table.flagged(pages.KEPT)
        if len(kept) > 2 * _FEW_KEPT or flat.total(kept) + flat.total(touched) > state.keep:
            return
        try:
            state.mapping.zero_all(touched)
        except OSError:  # swapped out, and the host is short of memory
            return
    table.free_waste(start, end)
    for part in flat.ranges(touched):
        table.flag(*part, pages.KEPT)
