"""The columns of the exactness matrix: how pages come to be committed, and how they go."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import memplat
from memplat.hookspecs import hookimpl
from memplat.memory import Memory
from memplat.ranges import FileRange
from tests.exactness.hosts import Host, backing_descriptor
from tests.hostparts import touch_elsewhere
from tests.oracle import Observer, descriptors, forget, positive

KINDS: Final = ("anonymous", "page_cache", "tmpfs")
OWNERS: Final = (1, 7, 2**32 - 1)


class Interloper:
    """An extension that does something in the middle of a scan, when the backend has just looked."""

    def __init__(self) -> None:
        self.action: Callable[[], object] | None = None

    def is_done(self) -> bool:
        """Whether it has happened."""
        return self.action is None

    @hookimpl(wrapper=True)
    def memplat_probe_committed(self) -> Any:
        result = yield
        if self.action is not None:
            action, self.action = self.action, None
            action()
        return result


class Scene:
    """A memory whose pages change kind and owner one by one, and what the scene itself did to them."""

    def __init__(self, host: Host, *, shared: bool) -> None:
        self.host = host
        self.page = host.page
        self.interloper = Interloper()
        before = descriptors()
        self.memory: Memory = memplat.open(
            host.backend,
            reclaim="manual",
            default_mode="uncommitted",
            max_size=max(64 << 20, 40 * host.page),
            extensions=[self.interloper],
            **host.options,
        )
        fd = self.memory.fileno() if shared else backing_descriptor(before)
        self.peer = Observer(fd)
        self.chance = random.Random(4)
        self.pages: dict[int, tuple[str, int]] = {}
        self.touched: set[int] = set()
        for number in range(host.count):
            self.allocate(KINDS[number % 3], OWNERS[number // 3 % 3])

    def close(self) -> None:
        """Free everything and close."""
        for number in self.pages:
            self.memory.decref(self.range(number))
        self.memory.close()
        self.peer.close()

    def range(self, number: int, count: int = 1) -> FileRange:
        """The range of pages."""
        return FileRange(number * self.page, (number + count) * self.page)

    def allocate(self, kind: str, owner: int, mode: str | None = None) -> int:
        """One more page."""
        pages = self.memory.allocate(self.page, kind=kind, owner=owner, mode=mode)
        number = pages.start // self.page
        assert number not in self.pages
        self.pages[number] = kind, owner
        return number

    def some(self, share: float) -> list[int]:
        """A share of the pages, at random."""
        return self.chance.sample(sorted(self.pages), int(share * len(self.pages)))

    def write(self, numbers: list[int]) -> None:
        """Store through views and through calls, in turn."""
        for turn, number in enumerate(numbers):
            if turn % 2:
                self.memory.write(self.range(number), b"w")
            else:
                with self.memory.view(self.range(number)) as view:
                    view[17] = 1
        self.touched |= set(numbers)

    def free(self, numbers: list[int]) -> None:
        """Drop the only reference, and have the pages reclaimed."""
        for number in numbers:
            self.memory.decref(self.range(number))
            del self.pages[number]
        self.memory.reclaim()
        self.touched -= set(numbers)

    def verify(self, usage: memplat.Usage | None = None) -> None:
        """Compare every figure with a count, page by page."""
        usage = self.scan() if usage is None else usage
        committed = self.host.oracle(self.peer, self.touched)
        by_owner: dict[int, dict[str, int]] = {}
        idle = 0
        for number in committed:
            kind, owner = self.pages.get(number, ("system", 0))
            idle += self.page * (number not in self.pages)
            kinds = by_owner.setdefault(owner, {})
            kinds[kind] = kinds.get(kind, 0) + self.page
        by_kind: dict[str, int] = {}
        for kinds in by_owner.values():
            for kind, nbytes in kinds.items():
                by_kind[kind] = by_kind.get(kind, 0) + nbytes
        allocated: dict[str, int] = {}
        for kind, _ in self.pages.values():
            allocated[kind] = allocated.get(kind, 0) + self.page
        blocks = self.peer.blocks
        assert {owner: positive(kinds) for owner, kinds in usage.committed_by_owner.items()} == by_owner
        assert positive(usage.committed) == by_kind
        assert usage.waste + usage.retained + usage.free_committed == idle
        assert positive(usage.allocated) == allocated
        assert usage.total == blocks == self.memory.total_usage()
        assert usage.overhead == blocks - len(committed) * self.page
        assert usage.foreign == 0
        assert usage.exact, usage
        for owner in OWNERS:
            assert positive(self.memory.update_usage(owner=owner).committed) == by_owner.get(owner, {})

    def scan(self) -> memplat.Usage:
        """Figures of now."""
        return self.memory.update_usage()

    def swap_out(self, end: int) -> None:
        """Have what is committed below the page *end* swapped out."""
        mapping = self.peer.map(0, end * self.page)
        base = self.memory.address(self.range(min(self.pages))) - min(self.pages) * self.page
        wanted = {number for number in self.peer.committed_pages() if number < end}
        for _ in range(8):
            forget(base, self.memory.total_size())
            left = wanted - self.peer.swapped_pages()
            if not left:
                break
            mapping.page_out(left)
        swapped = self.peer.swapped_pages()
        mapping.close()
        assert len(swapped) >= 0.9 * len(wanted) > 0, f"only {len(swapped)} of {len(wanted)} pages are in swap"


def written_here(scene: Scene) -> None:
    for _ in range(3):
        scene.write(scene.some(0.3))
        scene.verify()


def written_elsewhere(scene: Scene) -> None:
    scene.write(scene.some(0.3))
    for _ in range(2):
        pages = scene.some(0.3)
        touch_elsewhere(scene.peer.fd, [number * scene.page for number in pages], scene.peer.size)
        scene.touched |= set(pages)
        scene.verify()


def pwritten(scene: Scene) -> None:
    for _ in range(3):
        pages = scene.some(0.3)
        for number in pages:
            os.pwrite(scene.peer.fd, b"w", number * scene.page + 100)
        scene.touched |= set(pages)
        scene.verify()


def read_touched(scene: Scene) -> None:
    for number in scene.some(0.3):
        assert scene.memory.read(scene.range(number)) == bytes(scene.page)
    scene.verify()
    pages = scene.some(0.3)
    for number in pages:
        with scene.memory.view(scene.range(number), writable=False) as view:
            assert view[5] == 0
    if scene.host.family != "disk":  # a disk gives no blocks for zeros that are only read
        scene.touched |= set(pages)
    scene.verify()


def reserved(scene: Scene) -> None:
    scene.write(scene.some(0.2))
    for number in range(scene.host.count // 3):
        page = scene.allocate(KINDS[number % 3], OWNERS[number // 3 % 3], "reserved")
        if scene.host.family != "hugetlb":  # there it costs the pool, and nothing of the file's own yet
            scene.touched.add(page)
    scene.verify()
    scene.write(scene.some(0.3))
    scene.verify()


def swapped_out(scene: Scene) -> None:
    scene.write(scene.some(0.6))
    scene.swap_out(max(scene.pages) + 1)
    scene.verify()
    scene.swap_out(max(scene.pages) + 1)
    scene.free(scene.some(0.3))
    scene.verify()


def partly_swapped(scene: Scene) -> None:
    scene.write(scene.some(0.6))
    scene.swap_out(scene.host.count // 2)
    scene.write(scene.some(0.2))
    scene.verify()


def punched_by_us(scene: Scene) -> None:
    scene.write(scene.some(0.7))
    scene.verify()
    for _ in range(2):
        pages = scene.some(0.3)
        for number in pages:
            scene.memory.decommit(scene.range(number), release=True)
        scene.touched -= set(pages)
        scene.verify()


def punched_by_a_peer(scene: Scene) -> None:
    scene.write(scene.some(0.7))
    scene.verify()
    gone, come = scene.some(0.3), scene.some(0.3)
    for number in gone:
        scene.peer.punch(number * scene.page, scene.page)
    scene.touched -= set(gone)
    scene.verify()
    for one, other in zip(gone, come, strict=True):  # one goes and another comes: the sum does not tell
        scene.peer.punch(other * scene.page, scene.page)
        touch_or_write(scene, one)
        scene.touched -= {other}
        scene.touched |= {one}
    scene.verify()


def touch_or_write(scene: Scene, number: int) -> None:
    """Commit a page through a mapping of a peer's own."""
    mapping = scene.peer.map(number * scene.page, scene.page)
    mapping.touch_write(0, b"w")
    mapping.close()


def partly_punched(scene: Scene) -> None:
    first = min(scene.pages)
    scene.write([first])
    assert len(scene.peer.committed_pages()) >= 512, "there is no huge page to punch"
    scene.verify()
    for number in range(first + 10, first + 200, 3):
        scene.memory.decommit(scene.range(number))
    scene.verify()
    for number in range(first + 300, first + 400, 7):
        scene.peer.punch(number * scene.page, scene.page)
    scene.verify()


def freed_while_scanning(scene: Scene) -> None:
    scene.write(scene.some(0.7))
    for _ in range(2):
        pages = scene.some(0.2)
        scene.interloper.action = partial(scene.free, pages)
        scene.write(scene.some(0.1))
        usage = scene.scan()
        assert scene.interloper.is_done(), "nothing was probed"
        scene.verify(usage)
        scene.verify()


def allocated_while_scanning(scene: Scene) -> None:
    scene.write(scene.some(0.4))

    def allocate() -> None:
        scene.write([scene.allocate(KINDS[turn % 3], OWNERS[turn % 2]) for turn in range(9)])

    scene.interloper.action = allocate
    usage = scene.scan()
    assert scene.interloper.is_done(), "nothing was probed"
    scene.verify(usage)
    scene.verify()


#: How pages come and go, by the name in the table; what it does, and whether the descriptor is with somebody else.
WAYS: Final[Mapping[str, tuple[Callable[[Scene], None], bool]]] = {
    "written here": (written_here, False),
    "by another process": (written_elsewhere, True),
    "pwrite": (pwritten, True),
    "read-touched": (read_touched, False),
    "reserved": (reserved, False),
    "swapped out": (swapped_out, False),
    "partly swapped": (partly_swapped, False),
    "punched by us": (punched_by_us, False),
    "punched by a peer": (punched_by_a_peer, True),
    "partly punched huge page": (partly_punched, True),
    "freed while scanning": (freed_while_scanning, False),
    "allocated while scanning": (allocated_while_scanning, False),
}
