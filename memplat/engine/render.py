"""The state of a memory as text, for people who debug."""

from __future__ import annotations

from memplat.engine import pages
from memplat.engine.state import EngineState
from memplat.linux import extents as flat
from memplat.ranges import FileRange, format_size


def dump(state: EngineState) -> str:
    """All segments with their flags. To be called with the lock held."""
    table = state.table
    head = (
        f"memory {state.file.backend}: {format_size(table.size)} of at most {format_size(state.max_size)}",
        f"{len(table.segments)} segments",
        f"waste {table.waste}",
        f"releasing {table.releasing}",
        f"views {len(state.mapping.leases)}",
    )
    lines = [", ".join(head)]
    for start, end, (what, refs, pins, kind, owner, pool) in table.runs():
        line = f"{FileRange(start, end)} {format_size(end - start):>10} {pages.STATES[what]}"
        if what == pages.USED:
            line += f" {kind} owner={owner} refs={refs}" + (f" views={pins}" if pins else "")
        lines.append(line + (" huge" if pool == pages.HUGE else ""))
    for flag in (pages.RETAINED, pages.KEPT, pages.RESERVED):
        lines.extend(f"{part} {pages.FLAGS[flag]}" for part in flat.ranges(table.flagged(flag)))
    return "\n".join(lines)
