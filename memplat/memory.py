"""The protocols: what every memory does, and what a memory asks of an address space.

The docstrings here are the contract. They hold for every backend; where a sentence names an error, the call that
raised it changed nothing unless the sentence says otherwise. On every method: :class:`ClosedError` after ``close``,
:class:`ForkedError` in a forked child (``view(pin=False)`` and ``close`` excepted), :class:`ReentrantCallError` in a
finalizer, callback or signal handler that interrupted a call of its own thread on the same memory (but for ``decref``),
:class:`InterruptedMemoryError` once an exception from outside has cut a change off halfway (but for ``close``).
"""

from __future__ import annotations

from types import EllipsisType, TracebackType
from typing import IO, TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from memplat.ranges import Address, FileRange
from memplat.types import Access, AllocationMode, Direction, MemoryKind, PageInfo, SelectedBackend, Usage

if TYPE_CHECKING:
    from memplat.sharing import Handle

#: Anything that exports a contiguous buffer of bytes.
Buffer: TypeAlias = bytes | bytearray | memoryview
#: A source for ``fill``: a buffer, or a binary reader.
Fill: TypeAlias = Buffer | IO[bytes]


class MappableFile(Protocol):
    """What an address space gets to map from; every memory is one."""

    @property
    def page_size(self) -> int:
        """The unit of mapping and of references, in bytes."""

    def fileno(self) -> int:
        """The descriptor of the backing file."""

    def address(self, pages: FileRange) -> int:
        """The address of *pages* in this process; spaces inside this process use it instead of a second mapping.

        :raises InvalidRangeError: pages that the file does not have
        """

    def view(self, range: FileRange, *, writable: bool = True, pin: bool = True) -> memoryview:
        """A view; an unpinned one keeps :meth:`address` valid, also when the file is closed."""

    def incref(self, pages: FileRange) -> None:
        """Take another reference, for a further mapping of the same pages."""

    def decref(self, pages: FileRange) -> None:
        """Drop a reference: to be called when the pages are unmapped."""


@runtime_checkable
class AddressSpace(Protocol):
    """Somewhere that pages can be mapped: a guest, another process, a region of this one."""

    def map_file(self, addr: Address, file: MappableFile, pages: FileRange, access: Access, precommit: bool) -> None:
        """Map *pages* of *file* at *addr*. The space owns one reference from now on, and drops it with ``file.decref``
        when the pages are unmapped. If it raises, nothing was mapped and the caller keeps the reference.
        """

    def unmap(self, addr: Address, length: int) -> None:
        """Unmap whatever is mapped at ``[addr, addr + length)``, and drop the references."""

    def release(self) -> None:
        """Unmap everything, drop all references, and take the space down; idempotent."""


class Block(Protocol):
    """One reference to a range, owned by an object that is bound to its memory. A context manager."""

    @property
    def pages(self) -> FileRange:
        """The range."""

    @property
    def memory(self) -> Memory:
        """The memory that the range belongs to."""

    @property
    def view(self) -> memoryview:
        """A writable, pinned view of the whole range; a new one each time."""

    @property
    def address(self) -> int:
        """The host address of the range."""

    def close(self) -> None:
        """Drop the reference; idempotent."""

    def __enter__(self) -> Block: ...

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


@runtime_checkable
class Memory(Protocol):
    """Pages of one host file that can be allocated, counted, mapped, measured and given back. Thread-safe."""

    @property
    def backend(self) -> SelectedBackend:
        """The backend that was selected, its options, and why it was selected."""

    @property
    def page_size(self) -> int:
        """The unit of allocation and commitment, in bytes."""

    def round_up(self, length: int) -> int:
        """The least multiple of the page size that is not below *length*.

        :raises InvalidLengthError: if *length* is not positive or absurdly large
        """

    def raise_max_size(self, max_size: int) -> None:
        """Let the file grow to *max_size* bytes: at once, nothing is spent.

        Address space was reserved when the memory was opened: for sixteen times its ``max_size``, but no more than for
        a memory that names none; where RLIMIT_AS is set, for its ``max_size`` alone.

        :raises InvalidArgumentError: no multiple of the page size, less than before, or more than was reserved
        """

    def allocate(
        self,
        length: int,
        *,
        kind: MemoryKind | str = "anonymous",
        owner: int = 0,
        mode: AllocationMode | str | None = None,
        direction: Direction | str = Direction.UP,
        huge: bool = False,
        fill: Fill | None = None,
    ) -> FileRange:
        """Allocate *length* bytes of zeroed pages with one reference.

        First fit by address in *direction*; aligned to 2 MiB where *length* is at least that. *fill* fills the front of
        the range; a source that ends early leaves zeros behind, an error from it frees the range and propagates.

        :param length: bytes, a multiple of :attr:`page_size`
        :param kind: what the memory is for
        :param owner: who pays, 0 to 2**32 - 1
        :param mode: what is promised about touching the pages; the default comes from the configuration
        :param huge: take it from the pool of transparent huge pages, which are given back only as a whole
        :raises InvalidLengthError: not positive, absurd, or no multiple of the page; names ``round_up(length)``
        :raises InvalidKindError: unknown, or ``mapped``
        :raises InvalidOwnerError: not an integer in range
        :raises InvalidArgumentError: an unknown mode or direction, a *fill* that is longer than the range or no source
        :raises OutOfMemory: by ``max_size`` or by the host, after reclaiming and the out-of-memory hook; by a limit of
            *owner*, after the hook
        """

    def block(
        self,
        length: int,
        *,
        kind: MemoryKind | str = "anonymous",
        owner: int = 0,
        mode: AllocationMode | str | None = None,
        direction: Direction | str = Direction.UP,
        huge: bool = False,
        fill: Fill | None = None,
    ) -> Block:
        """As :meth:`allocate`, owned by a context manager."""

    def incref(self, pages: FileRange | Block) -> None:
        """Take one more reference to each page, across allocations if need be: to all of them or none.

        :raises MisalignedRangeError, InvalidRangeError: as the range is
        :raises NotAllocatedError: if any of the pages has no reference
        :raises ForeignBlockError: if it is a block of another memory
        """

    def decref(self, pages: FileRange | Block) -> None:
        """Drop one reference to each page, of all of them or none. The last one makes a page waste.

        In a finalizer it may have to wait for the call that was interrupted; an error is logged then.

        :raises MisalignedRangeError, InvalidRangeError: as the range is
        :raises DoubleFreeError: if any of the pages has no reference (those of views do not count)
        """

    def has_unique_ref(self, pages: FileRange | Block) -> bool:
        """Whether each page has exactly one reference, live views included: whether it may be written in place."""

    def first_shared_range(self, pages: FileRange | Block) -> FileRange | None:
        """The first run of *pages* with more than one reference, or ``None``."""

    def inspect(self, offset: int) -> PageInfo:
        """State, kind, owner and references of the page at *offset*.

        :raises InvalidRangeError: if *offset* is outside of the file
        """

    def transfer(self, pages: FileRange | Block, owner: int) -> None:
        """Let *owner* pay for *pages* from now on.

        :raises NotAllocatedError: if any of the pages is not in use
        :raises OutOfMemory: if a limit of *owner* forbids it
        """

    def decommit(self, pages: FileRange | Block, *, release: bool = False) -> int:
        """Make used pages read as zero and cost nothing. Returns the bytes that were given back.

        Where the host refuses, committed pages are zeroed by hand and go on being counted. ``RESERVED`` pages become
        ``UNCOMMITTED``. On hugetlb the pages are zeroed and kept, unless *release* gives them back and with them the
        guarantee that touching them cannot fail.

        :raises NotAllocatedError: if any of the pages is not in use
        """

    def view(self, range: FileRange | Block, *, writable: bool = True, pin: bool = True) -> memoryview:
        """One contiguous view of any byte range of used pages, valid for as long as it lives, even after ``close``.

        A pinned view is a reference: its pages are neither reclaimed nor recycled. An unpinned one sees whatever
        becomes of its pages. Touching an ``UNCOMMITTED`` page commits it, also by reading.

        :raises InvalidRangeError: empty, reversed or outside of the file
        :raises NotAllocatedError: if any of the pages is not in use
        """

    def read(self, range: FileRange | Block) -> bytes:
        """The bytes of *range*, by system call: commits nothing, and raises where touching would signal.

        :raises HostError: if the host cannot supply a page
        """

    def write(self, range: FileRange | Block, data: Buffer) -> None:
        """Write *data* to the front of *range*, by system call where the file has one.

        :raises InvalidArgumentError: if *data* is longer than *range*
        :raises HostError: if the host cannot supply a page; a part may have been written
        """

    def address(self, pages: FileRange | Block) -> int:
        """The host address of *pages* in the memory's own mapping, for emulators, KVM and C. Not a reference."""

    def map_into(
        self, space: AddressSpace, addr: int, pages: FileRange | Block, access: Access | str, *, precommit: bool = False
    ) -> None:
        """Take a reference and map *pages* into *space* at *addr*; unmapping them there drops the reference.

        :raises InvalidArgumentError: an unknown access or an *addr* that is no page-aligned address
        :raises HostError: *precommit*, and the host cannot supply the pages
        """

    def share(
        self, pages: FileRange | Block, *, writable: bool = False, trusted: bool = False, expires: float = 60.0
    ) -> Handle:
        """Take a reference for another process, which gets the pages with ``memplat.attach(handle)``. The reference is
        dropped when the peer has let go of its view, or has died; or after *expires* seconds, if nobody attached it.

        What the peer gets is a descriptor of the whole file, open for reading only unless *writable*: docs/sharing.md
        says what is protected from whom.

        :param trusted: let the peer write to a file that is not sealed against truncation
        :raises NotAllocatedError: if any of the pages has no reference
        :raises UnsealedFileError: *writable*, not *trusted*, and the file cannot be or is not sealed
        :raises InvalidArgumentError: if the backend cannot share, or *expires* is no time
        :raises HostError: if the host refuses
        """

    def update_usage(self, *, owner: int | None = None, max_age: float = 0) -> Usage:
        """Probe the host, and say exactly what is committed, for what and for whom.

        Calls of several threads share scans, each one that starts after the call; between such scans the processor is
        left to others for four times as long as a scan keeps it busy, a tenth of a second at most. A thread that asks
        alone does not wait.

        :param owner: the figures of this owner alone, at no more than the cost of probing his pages or of all,
            whichever is less
        :param max_age: figures of at most so many seconds ago will do
        :raises InvalidOwnerError: not an integer in range
        """

    def usage(self, *, owner: int | None = None) -> Usage:
        """The figures as last known, of all or of one owner; no system call."""

    def reset_peaks(self) -> None:
        """Let the peaks in ``Usage`` begin again, with what is known now."""

    def set_limit(
        self, owner: int, *, allocated: int | EllipsisType | None = ..., committed: int | EllipsisType | None = ...
    ) -> None:
        """Limit what *owner* may have, in bytes. A limit that is not named stays as it is; ``None`` takes it away.

        Either one only keeps *owner* from being charged with more pages (``allocate``, ``transfer`` and all that use
        them), which raises :class:`OutOfMemory` then; what he has stays his, also if the limit is below it. Waste and
        what else nobody uses is charged to no limit.

        :param allocated: the most that he may have in use, whether committed or not; enforced at once
        :param committed: the most that he may have committed, memory outside of the file (``mapped``) included; judged
            by the last scan: one that finds him above it blocks him, until another one finds him at or below it
        :raises InvalidOwnerError: not an integer in range
        :raises InvalidArgumentError: a limit that is no number of bytes, or none named
        """

    def account_external(self, nbytes: int, *, owner: int = 0) -> None:
        """Report *nbytes* (negative: less) of memory outside of the backing file, as kind ``mapped`` of *owner*.

        :raises InvalidArgumentError: if the owner's sum would fall below zero
        """

    def total_usage(self) -> int:
        """The bytes that the host spends on the backing file: one fstat."""

    def total_size(self) -> int:
        """The size of the backing file in bytes, as far as the memory has grown it."""

    def reclaim(self, max_bytes: int | None = None) -> int:
        """Give waste back now, at most about *max_bytes* of it. Returns the bytes that went back to free.

        Without *max_bytes* also what the host has put into free pages, if it spends more than all others could cost.
        """

    def wait_reclaimed(self, timeout: float | None = None) -> bool:
        """Wait until no waste is left. False on time-out, and at once if nobody is there to reclaim it."""

    def fileno(self) -> int:
        """The descriptor of the backing file. It stays the memory's: do not close it."""

    def flush(self) -> None:
        """Write the pages to the disk below the backing file, if it has one."""

    def dump(self) -> str:
        """All segments, readable."""

    def close(self) -> None:
        """Refuse new calls, wait for those in flight, give everything back. Live views stay valid. Idempotent."""

    def __enter__(self) -> Memory: ...

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


__all__ = ["AddressSpace", "Block", "Buffer", "Fill", "MappableFile", "Memory"]
