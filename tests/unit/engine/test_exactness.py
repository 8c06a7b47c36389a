"""Every figure of ``Usage`` equals a count, page by page, of what the test itself touched.

Three kinds and three owners are interleaved page by page at random, so that no sum over ranges can be right by
accident; the pages are committed in every way there is. The oracle is ``tests/oracle.py``.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import memplat
from memplat import FileRange
from memplat.memory import Memory
from tests.hostparts import swap_file
from tests.oracle import (
    PAGE,
    NaiveModel,
    Observer,
    RawMapping,
    backing_descriptor,
    descriptors,
    forget,
    has_cachestat,
    runs,
    touched_pages,
    usage_errors,
)
from tests.unit.engine.helpers import MIB, pages_at, part, write_all

Opener = Callable[..., Memory]

KINDS = ("anonymous", "page_cache", "tmpfs")
OWNERS = (0, 7, 2**32 - 1)

pytestmark = pytest.mark.skipif(not has_cachestat(), reason="the oracle needs cachestat(2), Linux 6.5")


class Scene:
    """A memory whose pages change kind and owner at random, one by one, and the model of it."""

    def __init__(
        self, memory: Memory, fd: int, count: int, seed: int, modes: tuple[str, ...] = ("uncommitted",)
    ) -> None:
        self.memory = memory
        self.observer = Observer(fd)
        self.model = NaiveModel()
        self.chance = random.Random(seed)
        self.pages: list[int] = []
        for _ in range(count):
            kind, owner, mode = self.chance.choice(KINDS), self.chance.choice(OWNERS), self.chance.choice(modes)
            pages = memory.allocate(PAGE, kind=kind, owner=owner, mode=mode)
            committed = mode in ("reserved", "committed")
            self.model.allocate(pages.start, pages.end, kind, owner, committed=committed)
            self.pages.append(pages.start // PAGE)

    def some(self, count: int) -> list[int]:
        """So many of the pages, at random."""
        return self.chance.sample(self.pages, count)

    def wrote(self, pages: list[int]) -> None:
        """Tell the model that *pages* were written."""
        for page in pages:
            self.model.write(page * PAGE, b"w")

    def swap_out(self, mapping: RawMapping) -> set[int]:
        """Have everything swapped out that is committed, as far as the kernel agrees; the pages that are in swap."""
        memory, swapped = self.memory, set[int]()
        base = memory.address(pages_at(self.pages[0])) - self.pages[0] * PAGE
        for _ in range(5):
            forget(base, memory.total_size())
            mapping.page_out(self.observer.committed_pages() - swapped)
            swapped = self.observer.swapped_pages()
        return swapped

    def verify(self, *, exact: bool = True) -> memplat.Usage:
        """Compare every figure with the count, and the count with what the test did."""
        usage = self.memory.update_usage()
        committed = self.observer.committed_pages()
        assert self.model.prediction_errors(committed) == []
        assert usage_errors(usage, self.model.expected(committed, self.memory.total_size())) == []
        assert usage.exact is exact, usage
        assert usage.overhead == 0
        assert self.memory.total_usage() == self.observer.blocks
        assert self.memory.usage().committed == usage.committed
        self.memory._check()  # type: ignore[attr-defined]
        return usage


@pytest.fixture
def build(open_memory: Opener) -> Iterator[Callable[..., Scene]]:
    """Makes scenes. A scene that is not *shared* never asks the memory for its descriptor, so that the memory may
    take the short cut of a file that nobody else has."""
    scenes: list[Scene] = []

    def make(count: int = 600, *, seed: int = 1, shared: bool = True, **options: Any) -> Scene:
        before = descriptors()
        modes = options.pop("modes", ("uncommitted",))
        memory = open_memory(**options)
        fd = memory.fileno() if shared else backing_descriptor(before)
        scenes.append(Scene(memory, fd, count, seed, modes))
        return scenes[-1]

    yield make
    for scene in scenes:
        scene.observer.close()


def elsewhere(code: str, fd: int, argument: str) -> None:
    """Run *code* in another process, which has the file as ``fd`` and page numbers as ``pages``."""
    script = (
        "import mmap, os, sys\n"
        "fd, pages = int(sys.argv[1]), [int(n) for n in sys.argv[2].split(',')]\n"
        "size = os.fstat(fd).st_size\n" + code
    )
    subprocess.run([sys.executable, "-c", script, str(fd), argument], pass_fds=[fd], check=True, timeout=60)


def numbers(pages: list[int]) -> str:
    return ",".join(map(str, pages))


def test_an_oracle_that_is_asked_about_something_simple_answers_rightly() -> None:
    """The oracle itself, on a file that no memory owns: it must see each way of committing, and nothing else."""
    fd = os.memfd_create("oracle", os.MFD_CLOEXEC)
    os.ftruncate(fd, MIB)
    with Observer(fd) as observer:
        observer.write(3 * PAGE + 5, b"hi")
        observer.reserve(100 * PAGE, 2 * PAGE)
        mapping = observer.map(0, MIB)
        mapping.touch_read(9 * PAGE)
        mapping.touch_write(20 * PAGE, b"q")
        assert observer.committed_pages() == {3, 9, 20, 100, 101}
        assert observer.data_pages() == {3, 9, 20}
        assert mapping.touched() >= {9, 20}, "and resident neighbours, which the kernel maps along with a fault"
        assert mapping.touched() <= {3, 9, 20}
        assert observer.read(50 * PAGE, PAGE) == bytes(PAGE)
        observer.punch(9 * PAGE, PAGE)
        assert observer.committed_pages() == {3, 20, 100, 101}
        mapping.close()
    os.close(fd)


def test_a_usage_that_only_knows_the_total_fails_the_oracle(build: Callable[..., Scene]) -> None:
    """A test of the tests: the cheapest wrong answer, and others nearly as cheap, must not pass."""
    scene = build(200)
    written = scene.some(80)
    for page in written:
        write_all(scene.memory, pages_at(page))
    scene.wrote(written)
    usage = scene.verify()
    committed = scene.observer.committed_pages()
    expected = scene.model.expected(committed, scene.memory.total_size())
    right = {name: getattr(usage, name) for name in usage.__class__.__annotations__}

    def errors(**changes: Any) -> list[str]:
        return usage_errors(SimpleNamespace(**{**right, **changes}), expected)

    blocks = scene.observer.blocks
    assert errors() == []
    assert errors(committed={"system": blocks}, committed_by_owner={0: {"system": blocks}})
    assert errors(committed={"system": blocks})
    assert errors(committed={**right["committed"], "anonymous": right["committed"]["anonymous"] + PAGE})
    assert errors(committed_by_owner={0: dict(right["committed"])})
    assert errors(total=blocks + PAGE)
    assert errors(waste=PAGE)
    assert errors(foreign=PAGE)
    assert errors(allocated={"anonymous": 200 * PAGE})
    one, other = list(KINDS)[:2]
    swapped = {**right["committed"], one: right["committed"][other], other: right["committed"][one]}
    assert swapped == right["committed"] or errors(committed=swapped)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shared", [True, False])
def test_pages_written_here_by_view_and_by_write(build: Callable[..., Scene], shared: bool, seed: int) -> None:
    scene = build(seed=seed, shared=shared)
    scene.verify()
    for _ in range(4):
        by_view, by_call = scene.some(60), scene.some(60)
        for page in by_view:
            with scene.memory.view(pages_at(page)) as view:
                view[scene.chance.randrange(PAGE)] = 1
        for page in by_call:
            scene.memory.write(pages_at(page), b"w")
        scene.wrote(by_view + by_call)
        scene.verify()
    address = scene.memory.address(pages_at(scene.pages[0]))
    seen = touched_pages(address, (max(scene.pages) + 1) * PAGE)
    assert {page - scene.pages[0] for page in by_view} <= seen, "pagemap agrees on what was touched by our mapping"


@pytest.mark.parametrize("how", ["map", "pwrite", "read"])
def test_pages_written_by_another_process(build: Callable[..., Scene], how: str) -> None:
    code = {
        "map": "m = mmap.mmap(fd, size)\nfor n in pages: m[n * 4096] = 1\n",
        "pwrite": "for n in pages: os.pwrite(fd, b'w', n * 4096 + 17)\n",
        "read": "m = mmap.mmap(fd, size, prot=mmap.PROT_READ)\nx = [m[n * 4096] for n in pages]\n",
    }
    scene = build()
    scene.verify()
    for _ in range(3):
        pages = scene.some(100)
        elsewhere(code[how], scene.observer.fd, numbers(pages))
        for page in pages:
            scene.model.touch(page * PAGE, (page + 1) * PAGE)
        scene.verify()


def _child_writes(view: memoryview, pages: list[int], first: int) -> None:
    for page in pages:
        view[(page - first) * PAGE] = 1


def test_pages_written_by_a_forked_child_through_the_inherited_mapping(build: Callable[..., Scene]) -> None:
    scene = build(shared=False)
    scene.verify()
    pages = scene.some(100)
    first = min(scene.pages)
    view = scene.memory.view(FileRange(first * PAGE, (max(scene.pages) + 1) * PAGE))
    child = multiprocessing.get_context("fork").Process(target=_child_writes, args=(view, pages, first))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    view.release()
    scene.wrote(pages)
    scene.verify()


def test_pages_written_by_pwrite(build: Callable[..., Scene]) -> None:
    scene = build()
    for _ in range(3):
        pages = scene.some(100)
        for page in pages:
            os.pwrite(scene.memory.fileno(), b"w", page * PAGE + 100)
        scene.wrote(pages)
        scene.verify()


@pytest.mark.parametrize("shared_map", [True, False], ids=["shared", "private"])
def test_pages_touched_through_a_second_mapping_of_this_process(build: Callable[..., Scene], shared_map: bool) -> None:
    """Reading through a private mapping commits the page, too; writing there makes a copy that is not the file's."""
    scene = build()
    scene.verify()
    mapping = scene.observer.map(0, scene.observer.size, shared=shared_map)
    pages = scene.some(120)
    for page in pages:
        if shared_map:
            mapping.touch_write(page * PAGE, b"w")
        else:
            mapping.touch_read(page * PAGE)
        scene.model.touch(page * PAGE, (page + 1) * PAGE)
    assert mapping.touched() >= set(pages)
    scene.verify()
    mapping.close()
    scene.verify()


def test_pages_that_were_only_read(build: Callable[..., Scene]) -> None:
    scene = build(shared=False)
    by_view, by_call = scene.some(100), scene.some(100)
    for page in by_call:
        assert scene.memory.read(pages_at(page)) == bytes(PAGE)
    scene.verify()
    for page in by_view:
        with scene.memory.view(pages_at(page), writable=False) as view:
            assert view[7] == 0
        scene.model.touch(page * PAGE, (page + 1) * PAGE)
    scene.verify()


def fill(scene: Scene, count: int) -> list[int]:
    """Write *count* random pages."""
    pages = scene.some(count)
    for page in pages:
        scene.memory.write(pages_at(page), b"w")
    scene.wrote(pages)
    return pages


def test_pages_that_the_memory_decommitted(build: Callable[..., Scene]) -> None:
    scene = build(shared=False, modes=("uncommitted", "reserved", "committed"))
    fill(scene, 400)
    scene.verify()
    for _ in range(100):
        first = scene.chance.randrange(len(scene.pages) - 8)
        pages = part(pages_at(scene.pages[0]), first, scene.chance.randint(1, 8))
        scene.memory.decommit(pages)
        scene.model.clear(*pages)
    scene.verify()
    fill(scene, 50)
    scene.verify()


@pytest.mark.parametrize("where", ["here", "another process"])
def test_pages_punched_by_a_peer(build: Callable[..., Scene], where: str) -> None:
    scene = build()
    fill(scene, 400)
    scene.verify()
    code = (
        "import ctypes\nlibc = ctypes.CDLL(None)\n"
        "for n in pages: assert libc.fallocate(fd, 3, ctypes.c_long(n * 4096), ctypes.c_long(4096)) == 0\n"
    )
    for _ in range(3):
        pages = scene.some(100)
        if where == "here":
            for page in pages:
                scene.observer.punch(page * PAGE, PAGE)
        else:
            elsewhere(code, scene.observer.fd, numbers(pages))
        for page in pages:
            scene.model.clear(page * PAGE, (page + 1) * PAGE)
        scene.verify()


def test_a_peer_that_punches_one_page_and_touches_another_is_seen_although_the_sum_stays(
    build: Callable[..., Scene],
) -> None:
    scene = build()
    fill(scene, 300)
    scene.verify()
    for _ in range(20):
        committed = scene.observer.committed_pages()
        gone = scene.chance.choice([page for page in scene.pages if page in committed])
        come = scene.chance.choice([page for page in scene.pages if page not in committed])
        before = scene.observer.blocks
        scene.observer.punch(gone * PAGE, PAGE)
        scene.observer.write(come * PAGE, b"w")
        assert scene.observer.blocks == before
        scene.model.clear(gone * PAGE, (gone + 1) * PAGE)
        scene.wrote([come])
        scene.verify()


def test_a_peer_that_got_the_descriptor_late_is_reckoned_with_from_then_on(build: Callable[..., Scene]) -> None:
    scene = build(shared=False)
    pages = fill(scene, 300)
    scene.verify()
    unwritten = next(page for page in scene.pages if page not in pages)
    with Observer(scene.memory.fileno()) as peer:
        peer.punch(pages[0] * PAGE, PAGE)
        peer.write(unwritten * PAGE, b"w")
    scene.model.clear(pages[0] * PAGE, (pages[0] + 1) * PAGE)
    scene.wrote([unwritten])
    scene.verify()


def test_a_space_that_pages_were_mapped_into_is_a_peer(build: Callable[..., Scene]) -> None:
    scene = build(shared=False)
    fill(scene, 300)
    scene.verify()
    files: list[Any] = []
    space = SimpleNamespace(map_file=lambda addr, file, pages, access, precommit: files.append(file))
    scene.memory.map_into(space, 0x1000, pages_at(scene.pages[0]), "read_write")
    committed = scene.observer.committed_pages()
    gone = next(page for page in scene.pages if page in committed)
    come = next(page for page in scene.pages if page not in committed)
    with Observer(files[0].fileno()) as peer:
        peer.punch(gone * PAGE, PAGE)
        peer.write(come * PAGE, b"w")
    scene.model.incref(scene.pages[0] * PAGE, (scene.pages[0] + 1) * PAGE)
    scene.model.clear(gone * PAGE, (gone + 1) * PAGE)
    scene.wrote([come])
    scene.verify()


@pytest.mark.parametrize("shared", [True, False])
def test_reserved_committed_and_uncommitted_pages_side_by_side(build: Callable[..., Scene], shared: bool) -> None:
    scene = build(shared=shared, modes=("uncommitted", "reserved", "committed"))
    scene.verify()
    fill(scene, 200)
    scene.verify()
    scene.memory.update_usage()
    if shared:
        pages = scene.some(100)
        for page in pages:  # a peer takes what was reserved
            scene.observer.punch(page * PAGE, PAGE)
            scene.model.clear(page * PAGE, (page + 1) * PAGE)
        scene.verify()


def test_pages_that_a_peer_reserved_are_placed_rightly_or_the_doubt_is_told(build: Callable[..., Scene]) -> None:
    """No probe by page sees them, and the memory does not know of them; only a count of a range tells."""
    scene = build()
    fill(scene, 200)
    scene.verify()
    committed = scene.observer.committed_pages()
    for page in [page for page in scene.pages if page not in committed][:50]:
        scene.observer.reserve(page * PAGE, PAGE)
        scene.model.pages[page].committed = True
    usage = scene.memory.update_usage()
    committed = scene.observer.committed_pages()
    assert usage.total == scene.observer.blocks
    assert sum(usage.committed.values()) + usage.overhead + usage.foreign == usage.total
    assert not usage.exact or usage_errors(usage, scene.model.expected(committed, scene.memory.total_size())) == []
    scene.memory.decommit(FileRange(scene.pages[0] * PAGE, (scene.pages[-1] + 1) * PAGE))
    scene.model.clear(scene.pages[0] * PAGE, (scene.pages[-1] + 1) * PAGE)
    scene.verify()


def test_waste_and_recycled_pages(build: Callable[..., Scene]) -> None:
    scene = build(shared=False)
    fill(scene, 500)
    scene.verify()
    for _ in range(10):
        for first, last in runs(scene.some(60)):
            scene.memory.decref(FileRange(first * PAGE, last * PAGE))
            scene.model.decref(first * PAGE, last * PAGE)
            scene.pages = [page for page in scene.pages if not first <= page < last]
        scene.verify()
        for _ in range(40):
            kind, owner = scene.chance.choice(KINDS), scene.chance.choice(OWNERS)
            mode = scene.chance.choice(("will_commit", "committed", "uncommitted", "reserved"))
            pages = scene.memory.allocate(PAGE, kind=kind, owner=owner, mode=mode)
            assert scene.observer.is_zero(pages.start, PAGE)
            known = {"committed": True, "reserved": True, "uncommitted": False, "will_commit": None}
            scene.model.allocate(pages.start, pages.end, kind, owner, committed=known[mode])
            scene.pages.append(pages.start // PAGE)
        scene.verify()
        scene.memory.reclaim(16 * PAGE)
        scene.verify()
    assert scene.memory.usage().counters["recycled_bytes"] > 0
    scene.memory.reclaim()
    usage = scene.verify()
    assert usage.waste == usage.free_committed == usage.retained == 0


def test_kinds_and_owners_that_change_hands(build: Callable[..., Scene]) -> None:
    scene = build()
    fill(scene, 300)
    scene.verify()
    for page in scene.some(200):
        owner = scene.chance.choice(OWNERS)
        scene.memory.transfer(pages_at(page), owner)
        scene.model.transfer(page * PAGE, (page + 1) * PAGE, owner)
    scene.verify()
    scene.memory.account_external(12_345, owner=7)
    scene.model.external[7] = 12_345
    scene.verify()


@pytest.mark.parametrize("shared", [True, False])
def test_free_pages_that_are_touched_behind_our_back(build: Callable[..., Scene], shared: bool) -> None:
    scene = build(shared=shared)
    fill(scene, 300)
    stale = scene.memory.view(FileRange(0, (max(scene.pages) + 1) * PAGE), pin=False)
    freed = scene.some(200)
    for first, last in runs(freed):
        scene.memory.decref(FileRange(first * PAGE, last * PAGE))
        scene.model.decref(first * PAGE, last * PAGE)
    scene.memory.reclaim()
    scene.verify()
    for page in freed[:50]:
        stale[page * PAGE] = 9
    for page in freed[50:80]:
        assert stale[page * PAGE] == 0
    usage = scene.verify()
    assert usage.free_committed == 80 * PAGE
    for _ in range(200):
        pages = scene.memory.allocate(PAGE, kind="tmpfs", mode=scene.chance.choice(("uncommitted", "committed")))
        assert scene.observer.is_zero(pages.start, PAGE)
        scene.model.allocate(pages.start, pages.end, "tmpfs", 0, committed=None)
    scene.verify()
    scene.memory.reclaim()
    scene.verify()


def test_a_peer_that_touches_and_reserves_beyond_the_end(build: Callable[..., Scene]) -> None:
    scene = build()
    fill(scene, 100)
    size = scene.memory.total_size()
    for page in (0, 3, 4, 700):
        scene.observer.write(size + page * PAGE, b"w")
    usage = scene.verify()
    assert usage.foreign == 4 * PAGE


@pytest.mark.parametrize("shared", [True, False])
def test_growth_between_scans(build: Callable[..., Scene], shared: bool) -> None:
    scene = build(200, shared=shared)
    for _ in range(3):
        fill(scene, 50)
        pages = scene.memory.allocate(18 * MIB, kind="tmpfs", owner=7)
        scene.model.allocate(pages.start, pages.end, "tmpfs", 7, committed=False)
        with scene.memory.view(pages) as view:
            view[-1] = 1
        scene.model.write(pages.end - 1, b"\1")
        scene.verify()


# -- swap ----------------------------------------------------------------------------------------------------------


def swapped_bytes(mapping: RawMapping) -> int:
    """How much of a mapping of shared memory is in swap, in bytes: ``Swap`` in /proc/self/smaps (proc_pid_smaps(5))."""
    mine = False
    for line in Path("/proc/self/smaps").read_text(errors="replace").splitlines():
        if not line.split()[0].endswith(":"):
            mine = line.startswith(f"{mapping.address:x}-")
        elif mine and line.startswith("Swap:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the mapping is not listed")


@pytest.mark.parametrize("shared", [True, False])
def test_pages_that_were_swapped_out(build: Callable[..., Scene], shared: bool) -> None:
    with swap_file(64 * MIB):
        scene = build(2_000, shared=shared, modes=("uncommitted", "committed"))
        written = scene.some(1_200)
        for page in written:
            scene.memory.write(pages_at(page), os.urandom(PAGE))
        contents = {page: scene.observer.read(page * PAGE, PAGE) for page in written}
        scene.wrote(written)
        committed = scene.observer.committed_pages()
        mapping = scene.observer.map(0, scene.observer.size)
        swapped = scene.swap_out(mapping)
        assert len(swapped) >= 0.9 * len(committed), f"only {len(swapped)} of {len(committed)} pages are in swap"
        assert swapped_bytes(mapping) >= 0.9 * len(committed) * PAGE, "and /proc/self/smaps agrees"
        assert scene.observer.committed_pages() == committed, "swapped out is committed all the same"
        scene.verify()
        assert len(scene.observer.swapped_pages()) >= 0.9 * len(committed), "measuring brings nothing back"

        fill(scene, 200)  # some come back, some are new
        scene.verify()
        gone = scene.some(300)
        for page in gone:
            scene.memory.decommit(pages_at(page))
            scene.model.clear(page * PAGE, (page + 1) * PAGE)
        scene.verify()
        scene.swap_out(mapping)
        dropped = scene.some(300)
        for first, last in runs(dropped):
            scene.memory.decref(FileRange(first * PAGE, last * PAGE))
            scene.model.decref(first * PAGE, last * PAGE)
        scene.verify()
        for _ in range(100):  # waste that lies in swap is recycled, zero
            pages = scene.memory.allocate(PAGE, kind="tmpfs", mode="committed")
            assert scene.observer.is_zero(pages.start, PAGE)
            scene.model.allocate(pages.start, pages.end, "tmpfs", 0, committed=True)
        scene.verify()
        scene.memory.reclaim()
        scene.verify()
        intact = set(written) - set(gone) - set(dropped)
        assert all(scene.memory.read(pages_at(page))[1:] == contents[page][1:] for page in intact)
        mapping.close()


def test_everything_at_once(build: Callable[..., Scene]) -> None:
    """All the ways of committing in one memory, in random order, compared after each."""
    scene = build(900, seed=5, modes=("uncommitted", "reserved", "committed"))
    mapping = scene.observer.map(0, scene.observer.size)
    writer = mmap.mmap(scene.memory.fileno(), scene.observer.size)

    def by_peer(pages: list[int]) -> None:
        elsewhere("for n in pages: os.pwrite(fd, b'w', n * 4096)\n", scene.observer.fd, numbers(pages))
        scene.wrote(pages)

    def by_second_map(pages: list[int]) -> None:
        for page in pages:
            mapping.touch_write(page * PAGE, b"w")
        scene.wrote(pages)

    def by_read(pages: list[int]) -> None:
        for page in pages:
            _ = writer[page * PAGE]
            scene.model.touch(page * PAGE, (page + 1) * PAGE)

    def by_punch(pages: list[int]) -> None:
        for page in pages:
            scene.observer.punch(page * PAGE, PAGE)
            scene.model.clear(page * PAGE, (page + 1) * PAGE)

    def by_decommit(pages: list[int]) -> None:
        for page in pages:
            scene.memory.decommit(pages_at(page))
            scene.model.clear(page * PAGE, (page + 1) * PAGE)

    def by_view(pages: list[int]) -> None:
        for page in pages:
            with scene.memory.view(pages_at(page)) as view:
                view[5] = 1
        scene.wrote(pages)

    def by_replacement(pages: list[int]) -> None:
        for page in pages:
            scene.memory.decref(pages_at(page))
            scene.model.decref(page * PAGE, (page + 1) * PAGE)
            scene.pages.remove(page)
        for _ in pages:
            kind, owner = scene.chance.choice(KINDS), scene.chance.choice(OWNERS)
            new = scene.memory.allocate(
                PAGE, kind=kind, owner=owner, mode=scene.chance.choice(("will_commit", "reserved"))
            )
            assert scene.observer.is_zero(new.start, PAGE)
            scene.model.allocate(new.start, new.end, kind, owner, committed=None)
            scene.pages.append(new.start // PAGE)

    actions = [by_peer, by_second_map, by_read, by_punch, by_decommit, by_view, by_replacement]
    for _ in range(4):
        scene.chance.shuffle(actions)
        for action in actions:
            action(scene.some(scene.chance.randint(1, 120)))
            scene.verify()
    writer.close()
    mapping.close()
