"""The backend ``tmpfile``: a file without a name in a directory, on ext4, xfs, btrfs, tmpfs or what can do the same.

The pages cost disk blocks (on tmpfs: memory), and the page cache comes and goes. Touching a page of a full disk is
SIGBUS; so pages are reserved by default. What differs between file systems:

- tmpfs: in memory, and swapped out by the kernel; probed as a memfd is.
- ext4, xfs: probed by FIEMAP; ``st_blocks`` includes the blocks of the extent tree, which is ``Storage.overhead``.
- btrfs: probed by FIEMAP; no copy-on-write (FS_NOCOW_FL), or a second write to a reserved page could fail.
- Others: FIEMAP or SEEK_DATA, if a trial in the directory shows that single pages are allocated and given back.

Everything that is not said here is :mod:`memplat.backends.default`'s.
"""

from __future__ import annotations

import enum
import errno
import os
import tempfile
from typing import Final

import attrs

from memplat.backends.tmpfile import unnamed
from memplat.backends.tmpfile.overhead import ExtentTree, tree_of
from memplat.backends.tmpfile.trial import why_not
from memplat.hookspecs import hookimpl
from memplat.linux import fiemap, files, filesystems, memory, shmem, system
from memplat.ranges import format_size
from memplat.types import AllocationMode, Availability, BackendInfo, BackingFile, Capability, Extents, Storage

NAME: Final = "tmpfile"
_BLOCK: Final = 512


class Probe(enum.StrEnum):
    """Which interface is asked first. One that the kernel or the file system lacks, or that cannot prove its answer,
    falls to the next, in this order.
    """

    AUTO = "auto"
    """The cheapest one that proves its answer."""
    PAGEMAP_SCAN = "pagemap_scan"
    """On tmpfs only, as the next one."""
    CACHESTAT = "cachestat"
    FIEMAP = "fiemap"
    """Not on tmpfs."""
    SEEK_DATA = "seek_data"


def _check_directory(_: object, attribute: attrs.Attribute[str | None], value: object) -> None:
    if value is not None and (not isinstance(value, str) or not value or "\0" in value):
        raise ValueError(f"{attribute.name} is {value!r}: allowed is the path of a directory")


def _path(value: str | os.PathLike[str] | None) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


@attrs.frozen
class TmpfileOptions:
    """The options of the backend."""

    directory: str | None = attrs.field(default=None, converter=_path, validator=_check_directory)
    """Where the file is made; ``None``: where Python makes temporary files (TMPDIR, TEMP, TMP, /tmp, /var/tmp …)."""

    probe: Probe = attrs.field(default=Probe.AUTO, converter=Probe)
    """Which interface of the kernel is asked first what is committed: ``pagemap_scan``, ``cachestat``, ``fiemap``,
    ``seek_data``.
    """

    def place(self) -> str:
        """The directory, for certain."""
        return tempfile.gettempdir() if self.directory is None else self.directory


@attrs.define
class _State:
    """What the backend keeps with a file. Threads that probe at once each store what they found: either is right."""

    on_disk: bool
    """Has FIEMAP; else it is shmem, or only SEEK_DATA tells."""
    is_shmem: bool
    probe: Probe
    tree: ExtentTree | None
    """What the file system spends on the list of extents beyond the data, where that is part of ``st_blocks``."""


@hookimpl
def memplat_backend_info() -> BackendInfo:
    """A file without a name."""
    return BackendInfo(
        name=NAME,
        version="1.0",
        contract_level=1,
        summary="a file without a name in a directory of a disk or of tmpfs",
        capabilities=frozenset({Capability.RESERVE, Capability.SHARE, Capability.SWAP_EXACT, Capability.FLUSH}),
        options=TmpfileOptions,
        default_mode=AllocationMode.RESERVED,
    )


@hookimpl
def memplat_check(options: TmpfileOptions | None) -> Availability:
    """Available if files can be made in the directory, and its file system allocates and gives back single pages."""
    try:
        place = (options if options is not None else TmpfileOptions()).place()
    except FileNotFoundError as reason:  # of tempfile
        return Availability(False, reason.strerror or str(reason), "directory = a writable one, or TMPDIR")
    try:
        fd = unnamed.create(place)
    except OSError as reason:
        return _no_file(place, reason)
    try:
        refusal = why_not(fd, place)
        if refusal is not None:
            return refusal
        found = filesystems.file_system(fd)
        where = f"{place} is on {filesystems.name_of(found.magic)}"
        return Availability(True, f"{where}, {format_size(found.available)} free, probed by {_method(_state_of(fd))}")
    finally:
        os.close(fd)


def _no_file(place: str, reason: OSError) -> Availability:
    """Why no file can be made there, and what would help."""
    if not os.path.exists(place):
        return Availability(False, f"{place} does not exist", f"mkdir -p {place}")
    if not os.path.isdir(place):
        return Availability(False, f"{place} is no directory", "directory = a directory")
    if reason.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Availability(False, f"{place} is not writable: {reason.strerror}", "directory = a writable one")
    return Availability(False, f"no file can be made in {place}: {reason.strerror}", "directory = another one")


@hookimpl
def memplat_create_file(options: TmpfileOptions | None) -> BackingFile:
    """An empty file: no name, mode 0600, close-on-exec; it cannot be given a name later, either.

    :raises OSError: as open(2)
    """
    chosen = options if options is not None else TmpfileOptions()
    fd = unnamed.create(chosen.place())
    try:
        return BackingFile(fd=fd, page_size=system.PAGE_SIZE, backend=NAME, state=_state_of(fd, chosen.probe))
    except BaseException:
        os.close(fd)
        raise


def _state_of(fd: int, probe: Probe = Probe.AUTO) -> _State:
    magic = filesystems.filesystem_magic(fd)
    if magic == filesystems.BTRFS_MAGIC and not os.fstat(fd).st_size:
        filesystems.set_flags(fd, filesystems.get_flags(fd) | filesystems.FS_NOCOW_FL)
    is_shmem = shmem.is_shmem(fd)
    return _State(not is_shmem and _has_fiemap(fd), is_shmem, probe, tree_of(magic))


def _has_fiemap(fd: int) -> bool:
    try:
        fiemap.file_map(fd, 0, system.PAGE_SIZE)
    except OSError:
        return False
    return True


def _method(state: _State) -> str:
    return "FIEMAP" if state.on_disk else "SEEK_DATA"


@hookimpl
def memplat_mapped(file: BackingFile, start: int, end: int) -> bool:
    """Have a touch commit one page, and not whatever the page cache likes to read around it.

    madvise(2): MADV_RANDOM "Expect page references in random order. (Hence, read ahead may be less useful than
    normally.)" Without it a first write allocates blocks for a whole large folio.
    """
    if file.address is not None:
        memory.madvise(file.address + start, end - start, memory.MADV_RANDOM)
    return True


@hookimpl
def memplat_probe_committed(file: BackingFile, start: int, end: int) -> Extents:
    """Which pages have blocks: by FIEMAP, which knows reserved pages, too. On tmpfs and without FIEMAP as the default
    does.

    :raises OSError: EIO
    """
    state = _state(file)
    if state.is_shmem:
        probe = shmem.Probe.SEEK_DATA if state.probe is Probe.FIEMAP else shmem.Probe(state.probe)
        extents, file.probe_method = shmem.committed_extents(file.fd, start, end, file.address, file.size, probe)
        return extents
    if not state.on_disk or state.probe is Probe.SEEK_DATA:
        file.probe_method = "seek_data"
        return files.seek_extents(file.fd, start, end)
    found = fiemap.file_map(file.fd, start, end)
    if state.tree is not None and start == 0 and end + file.page_size > os.fstat(file.fd).st_size:
        state.tree.seen(found.mapped, found.delayed)
    file.probe_method = "fiemap"
    return found.extents


@hookimpl
def memplat_storage(file: BackingFile) -> Storage:
    """``st_blocks``; and of it, the blocks of the extent tree, by the number of extents that the last probe found."""
    tree = _state(file).tree
    total = os.fstat(file.fd).st_blocks * _BLOCK
    if tree is None:
        return Storage(total=total)
    return Storage(total=total, overhead=min(total, tree.overhead()), overhead_slack=tree.slack())


def _state(file: BackingFile) -> _State:
    """The state of a file; one that was adopted gets it when it is first asked for."""
    if not isinstance(file.state, _State):
        file.state = _state_of(file.fd)
    return file.state
