"""The directories in which temporary files are made: whether the backend tmpfile can use them."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from memplat.backends.tmpfile import TmpfileOptions, memplat_check, unnamed
from memplat.doctor.findings import Finding, State
from memplat.linux import filesystems, trials
from memplat.ranges import format_size

_AREA: Final = "directories"
_USUAL: Final = ("/dev/shm", "/var/tmp", "/tmp")  # noqa: S108 -- looked at because people use them


def examine_places(configured: Iterable[str] = ()) -> Iterator[Finding]:
    """Those that are configured, then where Python makes temporary files, then the usual ones that exist."""
    usual = [place for place in _USUAL if os.path.isdir(place)]
    with contextlib.suppress(FileNotFoundError):  # where none is writable
        usual.insert(0, tempfile.gettempdir())
    for place in dict.fromkeys([*configured, *usual]):
        yield _examine(place)


def _examine(place: str) -> Finding:
    """What the backend says, and the figures behind that."""
    found = memplat_check(TmpfileOptions(directory=place))
    state = State.GOOD if found.available else State.MISSING
    data = {"usable": found.available, **_figures(place)}
    return Finding(_AREA, place, state, found.reason + _told(data), found.remedy, data)


def _told(data: Mapping[str, Any]) -> str:
    """What a file system needs: blocks that are no larger than a page, and holes."""
    if "block_size" not in data:
        return ""
    can = "can" if data["punches_holes"] else "cannot"
    return f"; blocks of {format_size(data['block_size'])}, holes {can} be punched"


def _figures(place: str) -> dict[str, Any]:
    try:
        fd = unnamed.create(place)
    except OSError as reason:
        return {"error": reason.strerror}
    try:
        where = filesystems.file_system(fd)
        return {
            "file_system": filesystems.name_of(where.magic),
            "block_size": where.block_size,
            "size": where.size,
            "available": where.available,
            "punches_holes": trials.punches_holes(fd).works,
            "reserves_blocks": trials.reserves_blocks(fd).works,
        }
    finally:
        os.close(fd)


__all__ = ["examine_places"]
