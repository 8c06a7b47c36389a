"""The backend ``hugetlb``: pages of 2 MiB or 1 GiB from the host's pool, in a memfd or in a file of a hugetlbfs mount.

Documentation/admin-guide/mm/hugetlbpage.rst, memfd_create(2). Touching a page that the pool cannot supply is SIGBUS, so
pages are *reserved* when they are allocated: the kernel then keeps a page of the pool for that offset of the file, or
refuses at once. What that means for the hooks:

- ``reserve`` maps the pages PROT_NONE and without MAP_NORESERVE, and unmaps them: the reservation stays with the file.
- A decommit drops the reservation of pages that were touched. One that was never used is dropped by using it first. So
  that touching stays safe, the engine zeroes and keeps pages unless told otherwise (``decommit_releases`` is False).
- The probe asks the blocks, then this process's page tables if they are proven to be complete, then userfaultfd(2).
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import threading
from array import array
from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from memplat.backends.hugetlb.pool import Pool, find_pool
from memplat.hookspecs import hookimpl
from memplat.linux import extents as flat
from memplat.linux import files, memory, names, punching, userfaultfd
from memplat.linux.pagemap import pagemap_sum
from memplat.ranges import FileRange, format_size, parse_size
from memplat.types import AllocationMode, Availability, BackendInfo, BackingFile, Capability, Extents, Storage

NAME: Final = "hugetlb"
_BLOCK: Final = 512
_SEALS: Final = files.F_SEAL_SHRINK | files.F_SEAL_SEAL


class Probe(enum.StrEnum):
    """Which interface is asked first. One that the kernel lacks, or that cannot prove its answer, falls to the next."""

    AUTO = "auto"
    """The cheapest one that proves its answer."""
    PAGEMAP_SCAN = "pagemap_scan"
    USERFAULTFD = "userfaultfd"


def _page_size(value: int | str | None) -> int | None:
    return None if value is None else parse_size(value)


def _check_page_size(_: object, attribute: attrs.Attribute[int | None], value: int | None) -> None:
    if value is not None and (value <= 0 or value & (value - 1)):
        raise ValueError(f"{attribute.name} is {value}: allowed are powers of two, in bytes")


@attrs.frozen
class HugetlbOptions:
    """The options of the backend."""

    page_size: int | None = attrs.field(default=None, converter=_page_size, validator=_check_page_size)
    """The size of the huge pages in bytes; ``None``: the mount's, or the host's default."""
    mount: str | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.instance_of(str))
    )
    """A directory on a hugetlbfs mount to take the pages from; ``None``: a memfd."""
    name: str = attrs.field(
        default="memplat", validator=names.check_name, metadata={"schema": {"maxLength": names.MAX_NAME_BYTES}}
    )
    """Shown in /proc/PID/maps for a memfd."""
    seal: bool = attrs.field(default=True, validator=attrs.validators.instance_of(bool))
    """Forbid everybody to make a memfd smaller."""
    probe: Probe = attrs.field(default=Probe.AUTO, converter=Probe)
    """Which interface of the kernel is asked first what is committed: ``pagemap_scan``, ``userfaultfd``."""


@attrs.define
class _State:
    """What the backend keeps with a file. The lock is held over the system calls that change reservations, so that two
    calls for overlapping ranges cannot undo each other's.
    """

    pool: Pool
    probe: Probe = Probe.AUTO
    lock: threading.Lock = attrs.field(factory=threading.Lock)
    reserved: array[int] = attrs.field(factory=flat.empty)
    """Pages that were reserved and not given back since, touched or not."""
    changes: int = 0
    held_back: tuple[tuple[int, int], int] = ((-1, -1), 0)
    """Blocks of the file and ``changes`` when the reserved pages that do not exist were last counted, and their bytes.
    """


@hookimpl
def memplat_backend_info() -> BackendInfo:
    """Huge pages of the host's pool."""
    return BackendInfo(
        name=NAME,
        version="1.0",
        contract_level=1,
        summary="huge pages of the host's pool, reserved when they are allocated",
        capabilities=frozenset(
            {
                Capability.RESERVE,
                Capability.HUGE_PAGES,
                Capability.SHARE,
                Capability.SEAL,
                Capability.SWAP_EXACT,
                Capability.EXECUTE,
            }
        ),
        options=HugetlbOptions,
        default_mode=AllocationMode.RESERVED,
        decommit_releases=False,
    )


@hookimpl
def memplat_check(options: HugetlbOptions | None) -> Availability:
    """Available if the pool has a page to give, and the kernel tells which pages exist."""
    pool = find_pool(*_wanted(options))
    if isinstance(pool, Availability):
        return pool
    free, figures = pool.available(), pool.figures()
    if free < pool.page_size:
        return Availability(False, f"no huge page is left: {figures}", pool.remedy(1))
    if not userfaultfd.is_available():
        return Availability(
            False,
            "userfaultfd(2) for minor faults of hugetlb is refused: nothing else tells which huge pages exist",
            "Linux 5.13 or later, and a sandbox that allows userfaultfd with UFFD_USER_MODE_ONLY",
        )
    return Availability(True, figures)


def _wanted(options: HugetlbOptions | None) -> tuple[int | None, str | None]:
    return (None, None) if options is None else (options.page_size, options.mount)


@hookimpl
def memplat_create_file(options: HugetlbOptions | None) -> BackingFile:
    """An empty file of huge pages, without a name in any directory.

    :raises OSError: ENODEV where the host has no such pages or no such mount; EMFILE, ENFILE
    """
    chosen = options if options is not None else HugetlbOptions()
    pool = find_pool(chosen.page_size, chosen.mount)
    if isinstance(pool, Availability):
        raise OSError(errno.ENODEV, f"{pool.reason}; remedy: {pool.remedy}")
    if chosen.mount is not None:
        fd = os.open(chosen.mount, os.O_TMPFILE | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    else:
        fd = files.memfd(chosen.name, files.MFD_HUGETLB | (pool.page_size.bit_length() - 1) << files.MFD_HUGE_SHIFT)
    try:
        if chosen.seal and chosen.mount is None:
            files.add_seals(fd, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return BackingFile(fd=fd, page_size=pool.page_size, backend=NAME, state=_State(pool, chosen.probe))


@hookimpl
def memplat_reserve(file: BackingFile, ranges: Sequence[FileRange]) -> bool:
    """Have the kernel keep a page of the pool for each page of *ranges*.

    mmap(2): without MAP_NORESERVE "one has the guarantee that it is possible to modify the mapping"; for shared
    mappings of hugetlb the reservation belongs to the file and outlives the mapping.

    :raises OSError: ENOMEM with the figures of the pool; what was reserved before stays, nothing else does
    """
    state = _state(file)
    with state.lock:
        taken: list[FileRange] = []
        try:
            for pages in ranges:
                _reserve(file.fd, pages)
                taken.append(pages)
        except BaseException as reason:
            wanted = sum(pages.length for pages in ranges)
            _drop(file, flat.subtract(_union(taken), state.reserved))
            if isinstance(reason, OSError) and reason.errno == errno.ENOMEM:
                raise OSError(errno.ENOMEM, state.pool.shortage(wanted)) from reason
            raise
        state.reserved = flat.union(state.reserved, _union(ranges))
        state.changes += 1
    return True


def _reserve(fd: int, pages: FileRange) -> None:
    window = memory.map_anywhere(pages.length, fd, pages.start, memory.PROT_NONE, memory.MAP_SHARED)
    memory.unmap(window, pages.length)


@hookimpl
def memplat_decommit(file: BackingFile, ranges: Sequence[FileRange]) -> bool:
    """Give pages back to the pool, and with them the promise that they can be touched.

    :raises OSError: EINVAL for a range that is not of whole huge pages: the kernel would zero the parts and free
        nothing
    """
    for pages in ranges:
        if (pages.start | pages.end) % file.page_size:
            raise OSError(errno.EINVAL, f"{pages} is not of whole pages of {format_size(file.page_size)}")
    state = _state(file)
    with state.lock:
        given_back = _union(ranges)
        _use(file, flat.intersection(given_back, state.reserved))
        try:
            punching.punch_batch(file.fd, file.address, ranges)
        finally:
            state.changes += 1
        state.reserved = flat.subtract(state.reserved, given_back)
    return True


def _use(file: BackingFile, reserved: array[int]) -> None:
    """Let reserved pages exist. A punch gives back a reservation only together with the page that used it."""
    for pages in _ranges(reserved):
        with contextlib.suppress(OSError):  # the punch decides
            files.fallocate(file.fd, 0, pages.start, pages.length)


def _drop(file: BackingFile, reserved: array[int]) -> None:
    """Give back reservations that a failed call has taken, but no page that somebody has touched meanwhile."""
    existing = _existing(file, 0, os.fstat(file.fd).st_size)[0]
    for pages in _ranges(flat.subtract(reserved, existing)):
        with contextlib.suppress(OSError):
            files.fallocate(file.fd, 0, pages.start, pages.length)
            files.punch_hole(file.fd, pages.start, pages.length)


@hookimpl
def memplat_probe_committed(file: BackingFile, start: int, end: int) -> Extents:
    """Which huge pages exist, whoever touched them.

    :raises OSError: EOPNOTSUPP where neither the page tables are complete nor userfaultfd(2) is allowed
    """
    extents, file.probe_method = _existing(file, start, end)
    return extents


def _existing(file: BackingFile, start: int, end: int) -> tuple[array[int], str]:
    status = os.fstat(file.fd)
    storage = status.st_blocks * _BLOCK
    end = min(end, status.st_size)
    probe = _state(file).probe
    if not storage or start >= end:
        return flat.empty(), "st_blocks"
    if storage == status.st_size and probe is Probe.AUTO:
        return array("q", (start, end)), "st_blocks"
    if file.address is not None and probe is not Probe.USERFAULTFD:
        ours = pagemap_sum(file.address, 0, min(file.size, status.st_size))
        if ours is not None and ours[1] == storage == os.fstat(file.fd).st_blocks * _BLOCK:
            return flat.intersect(ours[0], start, end), "pagemap_scan"
    found = userfaultfd.existing_huge_pages(file.fd, start, end, file.page_size, storage)
    if found is None:
        raise OSError(errno.EOPNOTSUPP, "which huge pages exist cannot be told: userfaultfd(2) is refused here")
    return found, "userfaultfd"


@hookimpl
def memplat_probe_reserved() -> Extents:
    """None: a reserved page costs nothing of the file's own until it is touched, and then the probe reports it."""
    return flat.empty()


@hookimpl
def memplat_storage(file: BackingFile) -> Storage:
    """``st_blocks``, which is exact; and the pages of the pool that are kept for the file and do not exist yet."""
    blocks = os.fstat(file.fd).st_blocks
    state = _state(file)
    with state.lock:
        key, reserved = (blocks, state.changes), state.reserved
        if state.held_back[0] == key:
            return Storage(total=blocks * _BLOCK, reserved=state.held_back[1])
    existing = _existing(file, 0, os.fstat(file.fd).st_size)[0] if blocks and reserved else flat.empty()
    held_back = flat.total(flat.subtract(reserved, existing))
    with state.lock:
        state.held_back = (key, held_back)
    return Storage(total=blocks * _BLOCK, reserved=held_back)


_adopting = threading.Lock()


def _state(file: BackingFile) -> _State:
    """The state of a file; a file that was adopted gets one when it is first asked for."""
    with _adopting:
        if not isinstance(file.state, _State):
            file.state = _State(Pool(file.page_size))
        return file.state


def _union(ranges: Sequence[FileRange]) -> array[int]:
    return flat.union(array("q", [bound for pages in ranges for bound in pages]), flat.empty())


def _ranges(extents: array[int]) -> Iterator[FileRange]:
    return map(FileRange, extents[0::2], extents[1::2])
