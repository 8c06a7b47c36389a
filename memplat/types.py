"""The frozen records and enumerations that memories, backends and users exchange.

Every enumeration is a :class:`enum.StrEnum`: wherever a member is expected, its name in lower case is accepted, too.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import attrs

from memplat.errors import InvalidArgumentError
from memplat.ranges import FileRange
from memplat.wording import shown

#: The contract level that this version of memplat implements; a backend states the level that it was built for.
CONTRACT_LEVEL: Final = 1

#: The greatest owner number.
MAX_OWNER: Final = (1 << 32) - 1

#: The greatest number of references to one page.
MAX_REFS: Final = (1 << 31) - 1


class MemoryKind(enum.StrEnum):
    """What memory is for. ``mapped`` is memory outside of the backing file: reported, never allocated."""

    SYSTEM = "system"
    ANONYMOUS = "anonymous"
    PAGE_CACHE = "page_cache"
    TMPFS = "tmpfs"
    RAMDISKFS = "ramdiskfs"
    MAPPED = "mapped"


class AllocationMode(enum.StrEnum):
    """What is promised about touching newly allocated pages."""

    UNCOMMITTED = "uncommitted"
    """Costs nothing until touched; touching may fail. On huge pages of hugetlb the same as ``RESERVED``."""
    WILL_COMMIT = "will_commit"
    """The caller is about to write all of it: may be recycled waste, zeroed, else uncommitted."""
    RESERVED = "reserved"
    """Touching cannot fail; may already cost storage."""
    COMMITTED = "committed"
    """Present and populated; may be recycled waste, zeroed."""


class Direction(enum.StrEnum):
    """Whether the lowest or the highest address that fits is taken."""

    UP = "up"
    DOWN = "down"


class Access(enum.StrEnum):
    """What a mapping allows."""

    READ = "read"
    READ_WRITE = "read_write"
    READ_EXECUTE = "read_execute"
    READ_WRITE_EXECUTE = "read_write_execute"

    @property
    def writable(self) -> bool:
        """Whether stores are allowed."""
        return "write" in self.value

    @property
    def executable(self) -> bool:
        """Whether instructions may be fetched."""
        return "execute" in self.value


class PageState(enum.StrEnum):
    """The state of a page of the backing file; the state machine is written down in ``memplat/engine/pages.py``."""

    FREE = "free"
    USED = "used"
    WASTE = "waste"
    RELEASING = "releasing"


class ReclaimMode(enum.StrEnum):
    """Who gives waste back to the host: a background thread, or only :meth:`Memory.reclaim`."""

    BACKGROUND = "background"
    MANUAL = "manual"


class NumaPolicy(enum.StrEnum):
    """How the nodes of :class:`Numa` are used; the words of mbind(2)."""

    BIND = "bind"
    """From these nodes only; where they have no more, the host is out of memory."""
    PREFERRED = "preferred"
    """From these nodes while they have some, then from others."""
    INTERLEAVE = "interleave"
    """Page by page from each of these nodes in turn."""
    LOCAL = "local"
    """From the node of the processor that touches the page first; names no nodes."""


class Capability(enum.StrEnum):
    """What a backend declares that it can do, beyond what every backend has to do."""

    RESERVE = "reserve"
    """``RESERVED`` pages can be touched without failing, whatever happens on the host later."""
    HUGE_PAGES = "huge_pages"
    """Pages larger than the base page of the processor."""
    SHARE = "share"
    """The descriptor can be mapped by another process."""
    SEAL = "seal"
    """No holder of the descriptor can truncate the file."""
    SWAP_EXACT = "swap_exact"
    """Pages that were swapped out are reported as committed, or are never swapped out."""
    SUB_PAGE_DECOMMIT = "sub_page_decommit"
    """A base page inside a huge page can be decommitted alone."""
    EXECUTE = "execute"
    """The file can be mapped executable."""
    FLUSH = "flush"
    """The file has a disk below it: :meth:`Memory.flush` writes to it."""


def _capabilities(names: Iterable[str]) -> frozenset[Capability]:
    return frozenset(Capability(name) for name in names)


@attrs.frozen
class BackendInfo:
    """What a backend says about itself; returned by ``memplat_backend_info``."""

    name: str = attrs.field(validator=attrs.validators.matches_re(r"[a-z][a-z0-9_-]*"))
    version: str = attrs.field(validator=attrs.validators.instance_of(str))
    summary: str = ""
    contract_level: int = 1  # not CONTRACT_LEVEL: who states none keeps no rules that its author has never seen
    capabilities: frozenset[Capability] = attrs.field(default=frozenset(), converter=_capabilities)
    options: type[Any] | None = None
    """An attrs class whose fields are the backend's own options, or ``None`` if it has none."""
    default_mode: AllocationMode = attrs.field(default=AllocationMode.UNCOMMITTED, converter=AllocationMode)
    decommit_releases: bool = True
    """False where giving a page back would break the promise that touching it cannot fail (hugetlb)."""


@attrs.frozen
class Availability:
    """Whether a backend can be used as configured, here; returned by ``memplat_check``."""

    available: bool
    reason: str = ""
    """Why not; or, if available, what is worth knowing (``"huge pages: advise, 512 free"``)."""
    remedy: str = ""
    """What would make it available: a command, an option."""


@attrs.frozen
class Storage:
    """What the host spends on a backing file, in bytes; returned by ``memplat_storage``."""

    total: int
    """Everything, *overhead* included, *reserved* not."""
    overhead: int = 0
    """File-system metadata in *total*, worked out and not measured as what the sum leaves over."""
    overhead_slack: int = 0
    """By how much *overhead* may be too little: some trees cannot be known from outside to the block."""
    reserved: int = 0
    """Held back for the file, but not yet part of *total* (a hugetlb reservation)."""


@attrs.define(eq=False)
class BackingFile:
    """The host file behind a memory. A backend creates it; from then on the engine owns it.

    :ivar fd: an open, close-on-exec descriptor, readable and writable
    :ivar page_size: the unit of commit and decommit, in bytes; *backend*: the name of the backend
    :ivar size: the size in bytes as far as the engine has grown it; kept by the engine
    :ivar address: of offset 0 in the engine's mapping or ``None``; *is_private*: nobody else has it, nor the descriptor
    :ivar probe_method: how the last probe found out, in a word, set by the backend; *state*: whatever it wants to keep
    :ivar is_shmem: it is shmem, and the probe that of the defaults: the engine may do by itself what that would do
    """

    fd: int
    page_size: int
    backend: str
    size: int = 0
    address: int | None = None
    probe_method: str = ""
    state: Any = None
    is_shmem: bool = False
    is_private: bool = False


@attrs.frozen
class AllocationRequest:
    """An allocation that could not be met, as the out-of-memory hook sees it."""

    length: int
    kind: MemoryKind
    owner: int
    mode: AllocationMode
    direction: Direction
    huge: bool


@attrs.frozen
class PageInfo:
    """What is known about the page at an offset; returned by :meth:`Memory.inspect`."""

    state: PageState
    kind: MemoryKind | None
    """``None`` unless the page is used."""
    owner: int
    refs: int
    """References that were taken by allocate, incref, map_into and blocks."""
    views: int
    """Live pinned views, each of them a reference of its own."""
    pages: FileRange
    """The longest range around the offset whose pages are all alike."""


@attrs.frozen
class Candidate:
    """One backend of the preference list: whether it was taken, and why not."""

    name: str
    taken: bool
    reason: str = ""
    remedy: str = ""
    source: str = ""
    """Where the backend comes from: ``built-in``, or the distribution and its version."""


@attrs.frozen
class SelectedBackend:
    """Which backend a memory uses, and how it came to it."""

    info: BackendInfo
    options: Any
    """The backend's own options as used, or ``None``."""
    selection: tuple[Candidate, ...]
    """Every candidate that was looked at, in order."""
    notes: tuple[str, ...] = ()
    """What turned out otherwise than asked (a smaller address-space reservation, say)."""

    @property
    def name(self) -> str:
        """The backend's name."""
        return self.info.name


#: The greatest number of a node: what the kernel can be built for, less one.
_MAX_NODE: Final = 1023
_NODES: Final = "/sys/devices/system/node/has_memory"


def _nodes(nodes: Sequence[int]) -> tuple[int, ...]:
    allowed = f"allowed are integers from 0 to {_MAX_NODE}"
    try:
        given = tuple(nodes)
    except TypeError:
        raise InvalidArgumentError(f"nodes {shown(nodes)} is no sequence; {allowed}, one node is (0,)") from None
    if wrong := [node for node in given if type(node) is not int or not 0 <= node <= _MAX_NODE]:
        raise InvalidArgumentError(f"{shown(wrong[0])} is no node: {allowed}; the host's are in {_NODES}")
    return tuple(sorted(set(given)))


@attrs.frozen
class Numa:
    """From which nodes of the host pages are allocated.

    Effective for files in shared memory and of huge pages, and then for every process that shares the file. The kernel
    ignores it for files on disks: that is said in :attr:`SelectedBackend.notes`.
    """

    policy: NumaPolicy = attrs.field(converter=NumaPolicy)
    """bind, preferred, interleave or local."""
    nodes: tuple[int, ...] = attrs.field(default=(), converter=_nodes)
    """The numbers of the nodes; ``()``: all that have memory. None for ``local``."""

    @nodes.validator
    def _check_nodes(self, _: object, nodes: tuple[int, ...]) -> None:
        if self.policy is NumaPolicy.LOCAL and nodes:
            raise InvalidArgumentError(
                f"local names no nodes, not {nodes}: it is the node of whoever touches the page first"
            )


@attrs.frozen
class EngineOptions:
    """The options that every backend has, because the engine implements them. Sizes in bytes, times in seconds."""

    max_size: int | None = None
    """The most that the file may grow to; ``None``: four times RAM and swap, at least 64 GiB. To be raised later with
    :meth:`Memory.raise_max_size`."""
    default_mode: AllocationMode | None = None
    """The mode of allocations that name none; ``None``: the backend's own."""
    reclaim: ReclaimMode = ReclaimMode.BACKGROUND
    """Who gives waste back to the host: a thread in the background, or only calls of ``reclaim`` (manual)."""
    reclaim_delay: float = 0.05
    """How long the reclaimer lets waste rest, so that recycling can win; at 64 MiB of waste it starts at once."""
    keep: int = 0
    """Keep up to so many freed bytes committed and zeroed, for the next allocations."""
    prealloc: int = 0
    """Commit so many bytes when the memory is opened."""
    prealloc_threads: int = 1
    """How many threads do that."""
    numa: Numa | None = None
    """From which nodes of the host pages are allocated."""
    lock: bool = False
    """Keep pages in RAM from the first touch on, never in swap. What is mapped counts against RLIMIT_MEMLOCK."""
    core_dump: bool = False
    """Whether the memory is part of this process's core dumps."""


@attrs.frozen(slots=False)  # with a dictionary, figures that are polled are renewed in a fifth of the time
class Usage:
    """What a memory costs the host and what for, in bytes, at one moment.

    Always ``sum(committed.values()) + overhead + foreign == total``. Of one owner (``update_usage(owner=7)``):
    *committed*, *committed_by_owner*, *allocated*, *total* and the peaks are that owner's alone; what nobody pays for
    (*waste*, *retained*, *free_committed*, *reserved*, *overhead*, *foreign*) is 0; the rest is the memory's.
    """

    as_of: float
    """When the host was probed, on the clock of :func:`time.monotonic`."""
    method: str
    """Which probe answered: ``unchanged``, ``known``, or the backend's word for its own; ``none`` before the first."""
    exact: bool
    """False if the figures could not be proven against the host's own total."""
    committed: Mapping[str, int]
    """Committed bytes by kind; ``system`` includes *waste*, *retained* and *free_committed*."""
    committed_by_owner: Mapping[int, Mapping[str, int]]
    """The same by owner, then kind."""
    allocated: Mapping[str, int]
    """Allocated bytes by kind, committed or not."""
    waste: int
    """Committed bytes of pages without references that are still to be given back (of ``committed["system"]``)."""
    retained: int
    """Committed bytes of free pages that the host refused to take back (of ``committed["system"]``)."""
    free_committed: int
    """Committed bytes of free pages, kept on purpose or committed behind our back (of ``committed["system"]``)."""
    reserved: int
    """Bytes that the host holds back for the file beyond *total*."""
    overhead: int
    """File-system metadata, worked out independently of the sum."""
    foreign: int
    """Committed bytes beyond our size, in a file that a peer has grown."""
    total: int
    """What the host spends altogether; includes ``committed["mapped"]``, which is not in the file."""
    file_size: int
    """The size of the backing file as far as the memory has grown it."""
    free: int
    """Bytes of free pages."""
    largest_free: int
    """The longest run of free pages."""
    fragmentation: float
    """The share of the free bytes that lies outside of the longest run: ``1 - largest_free / free``; 0.0 if none is
    free. 0.0 is one run; near 1.0 are many small ones.
    """
    peak_committed: int
    """The greatest *total* that any probe has seen since the memory was opened or its peaks were reset."""
    peak_allocated: int
    """The greatest sum of *allocated* that any probe, or call of ``usage``, has seen since then."""
    counters: Mapping[str, int]
    """Events since the memory was opened: allocations, frees, recycled_bytes, reclaimed_bytes, decommit_calls, scans,
    and nanoseconds spent in scans (scan_ns); scans and time of each method (scans_pagemap_scan, scan_ns_pagemap_scan).
    """


#: Committed extents as a probe returns them: ``start0, end0, start1, end1, …``, sorted and disjoint.
Extents = Sequence[int]

__all__ = [
    "CONTRACT_LEVEL",
    "MAX_OWNER",
    "MAX_REFS",
    "Access",
    "AllocationMode",
    "AllocationRequest",
    "Availability",
    "BackendInfo",
    "BackingFile",
    "Candidate",
    "Capability",
    "Direction",
    "EngineOptions",
    "Extents",
    "MemoryKind",
    "Numa",
    "NumaPolicy",
    "PageInfo",
    "PageState",
    "ReclaimMode",
    "SelectedBackend",
    "Storage",
    "Usage",
]
