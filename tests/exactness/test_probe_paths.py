"""Each interface of the kernel that tells what is committed: forced by configuration, or missing; exact each time."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterator

import pytest

import memplat
from memplat.linux import files, system
from memplat.ranges import FileRange
from tests.exactness.hosts import HOSTS, Host
from tests.exactness.ways import WAYS, Scene
from tests.needs import needs
from tests.oldkernel import without
from tests.oracle import has_cachestat

COMMON = ("written here", "by another process", "read-touched", "reserved", "punched by us", "punched by a peer")
TRIED = (*COMMON, "freed while scanning", "allocated while scanning")


class Told(Scene):
    """A scene that is scanned where some interfaces are missing, and keeps the methods that answered."""

    missing: Collection[str] = ()

    def __init__(self, host: Host, *, shared: bool) -> None:
        super().__init__(host, shared=shared)
        self.told: set[str] = set()

    def scan(self) -> memplat.Usage:
        usage = without(self.missing, self.memory.update_usage)
        self.told.add(usage.method)
        return usage


@pytest.fixture(scope="module", autouse=True)
def _kernel() -> None:
    if not has_cachestat():
        needs("cachestat", "the oracle asks it")
    if not system.kernel_features()["pagemap_scan"]:
        needs("pagemap_scan", "it is one of the paths")


def _host(name: str) -> Iterator[Host]:
    with HOSTS[name]() as found:
        yield found


@pytest.fixture(scope="module")
def memfd() -> Iterator[Host]:
    yield from _host("memfd")


@pytest.fixture(scope="module")
def tmpfs() -> Iterator[Host]:
    yield from _host("tmpfile on tmpfs")


@pytest.fixture(scope="module")
def xfs() -> Iterator[Host]:
    yield from _host("tmpfile on xfs")


@pytest.fixture(scope="module")
def hugetlb() -> Iterator[Host]:
    yield from _host("hugetlb")


def methods(host: Host, way: str, probe: str, missing: Collection[str] = ()) -> set[str]:
    """Which methods answered, with the option *probe*; every figure was compared with the oracle."""
    options = host.options
    host.options = {host.backend: {**options.get(host.backend, {}), "probe": probe}}
    act, shared = WAYS[way]
    try:
        scene = Told(host, shared=shared)
        scene.missing = missing
        try:
            act(scene)
            return scene.told - {"unchanged", "known"}
        finally:
            scene.close()
    finally:
        host.options = options


@pytest.mark.parametrize("way", [*TRIED, "pwrite"])
@pytest.mark.parametrize("backend", ["memfd", "tmpfs"])
@pytest.mark.parametrize(
    ("probe", "allowed"),
    [
        ("auto", {"st_blocks", "pagemap_scan", "cachestat", "seek_data"}),
        ("pagemap_scan", {"pagemap_scan", "cachestat"}),
        ("cachestat", {"cachestat"}),
        ("seek_data", {"seek_data"}),
    ],
)
def test_files_in_memory_are_exact_by_each_interface(
    request: pytest.FixtureRequest, backend: str, probe: str, allowed: set[str], way: str
) -> None:
    told = methods(request.getfixturevalue(backend), way, probe)
    assert told
    assert told <= allowed


def test_what_was_touched_by_the_memorys_own_mapping_alone_is_told_by_it(memfd: Host) -> None:
    scene = Told(memfd, shared=False)
    try:
        for number in scene.some(0.4):
            with scene.memory.view(scene.range(number)) as view:
                view[17] = 1
            scene.touched.add(number)
        scene.verify()
        assert scene.told == {"pagemap_scan"}
    finally:
        scene.close()


@pytest.mark.parametrize("way", TRIED)
@pytest.mark.parametrize(
    ("probe", "missing", "allowed"),
    [
        ("auto", {"pagemap_scan"}, {"cachestat", "seek_data", "st_blocks"}),
        ("auto", {"cachestat"}, {"pagemap_scan", "seek_data", "st_blocks"}),
        ("auto", {"pagemap_scan", "cachestat"}, {"seek_data", "st_blocks"}),
        ("pagemap_scan", {"pagemap_scan"}, {"cachestat"}),
        ("pagemap_scan", {"pagemap_scan", "cachestat"}, {"seek_data"}),
        ("cachestat", {"cachestat"}, {"seek_data"}),
    ],
)
def test_what_the_kernel_lacks_falls_to_the_next_interface(
    memfd: Host, probe: str, missing: set[str], allowed: set[str], way: str
) -> None:
    assert methods(memfd, way, probe, missing) <= allowed


def test_what_cannot_be_proven_is_said_and_the_total_is_right_all_the_same() -> None:
    """Without cachestat nothing sees which of the reserved pages cost storage, once some of them were punched."""
    with memplat.open("memfd", reclaim="manual") as memory:
        pages = memory.allocate(8 * 4096, owner=7, mode="reserved")
        fd = memory.fileno()
        files.punch_hole(fd, pages.start, pages.start + 3 * 4096)
        usage = without({"cachestat"}, memory.update_usage)
        assert not usage.exact
        assert usage.total == os.fstat(fd).st_blocks * 512 == 5 * 4096
        assert memory.update_usage().exact
        memory.decref(pages)


@pytest.mark.parametrize("way", TRIED)
@pytest.mark.parametrize("probe", ["auto", "fiemap", "pagemap_scan", "cachestat"])
def test_files_on_a_disk_fall_to_fiemap(xfs: Host, probe: str, way: str) -> None:
    assert methods(xfs, way, probe) == {"fiemap"}


def test_fiemap_falls_to_seek_data_on_tmpfs(tmpfs: Host) -> None:
    for way in COMMON:
        assert methods(tmpfs, way, "fiemap") == {"seek_data"}


@pytest.mark.parametrize("missing", [(), ("fiemap",)])
def test_files_on_a_disk_are_exact_by_seek_data_but_for_reserved_pages(xfs: Host, missing: Collection[str]) -> None:
    """With few enough extents for the inode: their number, and so the file system's own part, only FIEMAP tells."""
    directory = xfs.options["tmpfile"]["directory"]

    def opened() -> memplat.Memory:
        probe = "auto" if missing else "seek_data"
        return memplat.open("tmpfile", directory=directory, probe=probe, default_mode="uncommitted", reclaim="manual")

    with without(missing, opened) as memory:
        wanted = dict.fromkeys((1, 7, 9), 0)
        taken = []
        for number, owner in zip(range(30), itertools.cycle(wanted), strict=False):
            pages = memory.allocate(4096, owner=owner)
            taken.append(pages)
            if number % 10 < 4:
                memory.write(pages, b"x" * 4096)
                wanted[owner] += 4096
        usage = without(missing, memory.update_usage)
        assert usage.method == "seek_data"
        assert {owner: kinds["anonymous"] for owner, kinds in usage.committed_by_owner.items()} == wanted
        assert usage.exact
        memory.decref(FileRange(taken[0].start, taken[-1].end))


@pytest.mark.parametrize("way", TRIED)
@pytest.mark.parametrize(
    ("probe", "missing", "allowed"),
    [
        ("auto", (), {"st_blocks", "pagemap_scan", "userfaultfd"}),
        ("pagemap_scan", (), {"st_blocks", "pagemap_scan", "userfaultfd"}),
        ("userfaultfd", (), {"st_blocks", "userfaultfd"}),
        ("auto", ("pagemap_scan",), {"st_blocks", "userfaultfd"}),
    ],
)
def test_huge_pages_are_exact_by_each_interface(
    hugetlb: Host, probe: str, missing: Collection[str], allowed: set[str], way: str
) -> None:
    told = methods(hugetlb, way, probe, missing)
    assert told <= allowed


def test_huge_pages_that_only_others_touched_cannot_be_told_without_userfaultfd(hugetlb: Host) -> None:
    scene = Told(hugetlb, shared=True)
    try:
        scene.write(scene.some(0.3))
        scene.missing = ("userfaultfd",)
        scene.verify()
        assert scene.told == {"pagemap_scan"}
        mapping = scene.peer.map(0, scene.peer.size)
        mapping.touch_write(min(set(scene.pages) - scene.touched) * scene.page, b"w")
        mapping.close()
        with pytest.raises(memplat.HostError, match="userfaultfd"):
            scene.verify()
    finally:
        scene.close()


@pytest.mark.parametrize("backend", ["memfd", "tmpfile", "hugetlb"])
def test_a_probe_that_does_not_exist_is_an_error_of_the_configuration(backend: str) -> None:
    with pytest.raises(memplat.ConfigError, match="probe"):
        memplat.open(backend, probe="mincore")
