"""What a check has at hand: memories of the backend, a second look at their files, another process."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import warnings
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from memplat.conformance.observer import BASE_PAGE, HUGETLB, Observer, descriptors
from memplat.conformance.others import Peer, PeerFile
from memplat.conformance.subject import Subject
from memplat.conformance.verdict import CheckFailedError, NotApplicableError
from memplat.memory import Memory
from memplat.ranges import MIB, FileRange, align_up, format_size
from memplat.types import AllocationMode, BackendInfo, Capability, MemoryKind, Usage

#: How much of the host a single check may use, so that the suite runs on small machines, too.
_MOST_BYTES: Final = 64 * MIB
_LEAST_MAX_SIZE: Final = 64 * MIB
_KINDS: Final = tuple(kind for kind in MemoryKind if kind is not MemoryKind.MAPPED)
#: What a failure shows of each memory's dump.
_DUMP_LINES: Final = 12


class Case:
    """One run of one check.

    :ivar subject: what is tested
    :ivar peer: another process
    :ivar page_size: the backend's page size, ``None`` if it could not be found out
    """

    def __init__(self, subject: Subject, peer: Peer, page_size: int | None = None) -> None:
        self.subject = subject
        self.peer = peer
        self.page_size = page_size
        self._memories: list[Memory] = []
        self._observers: dict[int, Observer] = {}

    @property
    def info(self) -> BackendInfo:
        """What the backend says about itself."""
        return self.subject.info

    def declares(self, capability: Capability) -> bool:
        """Whether the backend says that it has the capability."""
        return capability in self.subject.declared

    # -- memories -----------------------------------------------------------------------------------------------------

    def open(self, **options: Any) -> Memory:
        """A memory that is reclaimed by hand, and closed at the end of the check.

        Its descriptor is found among those of this process: asking the memory for it would tell the engine that there
        are peers, and it would be more careful from then on.
        """
        before = descriptors()
        memory = self.subject.open(**{"max_size": self.max_size(), "reclaim": "manual", **options})
        return self._watched(memory, before)

    def adopt(self, fd: int) -> Memory:
        """A memory on a file that exists already."""
        memory = self.subject.adopt(fd, reclaim="manual", max_size=self.max_size())
        return self._watched(memory, {}, fd)

    def _watched(self, memory: Memory, before: Mapping[int, str], fd: int | None = None) -> Memory:
        self._memories.append(memory)
        found = new_files(before) if fd is None else [fd]
        files = {(status.st_dev, status.st_ino) for status in map(os.fstat, found)}
        self._observers[id(memory)] = Observer(found[0] if len(files) == 1 else memory.fileno())
        return memory

    def observer(self, memory: Memory) -> Observer:
        """The second look at the file of a memory that :meth:`open` returned."""
        return self._observers[id(memory)]

    def max_size(self, pages: int = 128) -> int:
        """How large memories are at most, unless a check says otherwise: room for so many pages, and not too small."""
        size = self.page_size or BASE_PAGE
        return align_up(max(_LEAST_MAX_SIZE, pages * size), size)

    def close_all(self) -> None:
        """Close what the check left open, here and in the other process."""
        self.peer.forget()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            while self._memories:
                self._memories.pop().close()

    def share(self, memory: Memory) -> PeerFile:
        """Hand the descriptor to the other process, in the way that users do."""
        return self.peer.share(memory.fileno())

    # -- pages --------------------------------------------------------------------------------------------------------

    def pages(self, memory: Memory, wanted: int, least: int = 0) -> int:
        """How many pages the check may use: *wanted*, or what the host has, but *least*.

        :raises NotApplicableError: if the host has fewer
        """
        capacity = self.observer(memory).capacity()
        room = max(_MOST_BYTES, 4 * memory.page_size) if capacity is None else min(capacity // 2, _MOST_BYTES)
        if self.observer(memory).kind == HUGETLB:
            room = 0 if capacity is None else capacity
        found = min(wanted, room // memory.page_size)
        if found < (least or wanted):
            self.skip(
                f"needs {least or wanted} pages of {format_size(memory.page_size)}, and the host has room for {found}"
            )
        return found

    def allocate(self, memory: Memory, pages: int, **options: Any) -> FileRange:
        """So many pages, uncommitted unless said otherwise.

        :raises NotApplicableError: if the pool of huge pages has fewer
        """
        observer = self.observer(memory)
        if observer.kind == HUGETLB and (free := (observer.capacity() or 0) // memory.page_size) < pages:
            self.skip(f"needs {pages} huge pages of {format_size(memory.page_size)}, and {free} are free")
        return memory.allocate(pages * memory.page_size, **{"mode": AllocationMode.UNCOMMITTED, **options})

    def spread(self, memory: Memory, pages: int, **options: Any) -> list[FileRange]:
        """So many allocations of one page each; the one at index *n* belongs to owner *n* + 1, the kinds take turns.

        What is committed of each page is then told by the usage of its owner.
        """
        return [
            self.allocate(memory, 1, owner=index + 1, kind=_KINDS[index % len(_KINDS)], **options)
            for index in range(pages)
        ]

    def fill(self, memory: Memory, pages: FileRange, salt: int = 0) -> None:
        """Write to every byte of *pages*, through a view; :meth:`filled` says whether it is still there."""
        view = memory.view(pages)
        step = memory.page_size
        for start in range(0, pages.length, step):
            view[start : start + step] = stamp(pages.start + start, salt, step)
        view.release()

    def filled(self, memory: Memory, pages: FileRange, salt: int = 0) -> bool:
        """Whether *pages* hold what :meth:`fill` wrote, in the file."""
        step = memory.page_size
        look = self.observer(memory).read
        return all(look(start, step) == stamp(start, salt, step) for start in range(*pages, step))

    def give_back(self, memory: Memory) -> None:
        """Reclaim all that nobody holds. A scan finds the free pages that a huge page committed beside a used one."""
        self.reclaim(memory)
        memory.update_usage()
        self.reclaim(memory)

    @staticmethod
    def reclaim(memory: Memory) -> int:
        """Give back waste alone: without a limit the engine also looks for what a decommit has left behind."""
        return memory.reclaim(sys.maxsize)

    def spent(self, memory: Memory, pages: FileRange) -> int:
        """What *pages* cost, or, where the host does not say, all of the file."""
        observer = self.observer(memory)
        cost = observer.cost(*pages)
        return observer.data_bytes() if cost is None else cost

    # -- ending a check -----------------------------------------------------------------------------------------------

    def skip(self, reason: str) -> NoReturn:
        """Say that the check has nothing to say here.

        :raises NotApplicableError: always
        """
        raise NotApplicableError(reason)

    def fail(self, message: str) -> NoReturn:
        """Fail the check.

        :raises CheckFailedError: always
        """
        raise CheckFailedError(message)

    def describe(self) -> str:
        """The state of all memories, for messages."""
        parts = []
        for memory in self._memories:
            with contextlib.suppress(Exception):
                lines = memory.dump().splitlines()
                cut = [f"… {len(lines) - _DUMP_LINES} more lines"] if len(lines) > _DUMP_LINES else []
                parts.append("\n".join(lines[:_DUMP_LINES] + cut))
        return "\n".join(parts)


def stamp(offset: int, salt: int, length: int) -> bytes:
    """*length* bytes that no other page, and no other *salt*, has."""
    word = (offset * 2_654_435_761 + salt * 40_503 + 1).to_bytes(16, "little")
    return (word * -(-length // 16))[:length]


def new_files(before: Mapping[int, str]) -> list[int]:
    """The descriptors of regular files, open for reading and writing, that are not among *before*."""
    found = []
    for fd, target in descriptors().items():
        if before.get(fd) != target:
            with contextlib.suppress(OSError):
                if stat.S_ISREG(os.fstat(fd).st_mode):
                    found.append(fd)
    return found


def by_owner(usage: Usage) -> dict[int, int]:
    """The committed bytes of each owner, zeros left out."""
    sums = {owner: sum(kinds.values()) for owner, kinds in usage.committed_by_owner.items()}
    return {owner: nbytes for owner, nbytes in sums.items() if nbytes}


__all__ = ["Case", "by_owner", "new_files", "stamp"]
