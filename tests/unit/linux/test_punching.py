"""Giving many ranges back, by whichever way: the result is the same, and so is the error."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import os
import random
import re
import resource
import signal
import threading
from array import array
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest

from memplat import _core
from memplat.linux import extents as flat
from memplat.linux import files, memory, punching
from memplat.linux.pagemap import pagemap_scan
from memplat.ranges import FileRange
from tests.hostparts import MIB, hugetlb_pool
from tests.needs import needs

PAGE = 4096
SIZE = 16 * MIB


class Mapped:
    """A file that is mapped whole, every page of it written to."""

    def __init__(self, fd: int, size: int = SIZE) -> None:
        self.fd = fd
        self.size = size
        os.ftruncate(fd, size)
        self.address = memory.reserve_address_space(size)
        memory.map_shared(self.address, size, fd, 0)

    def fill(self) -> None:
        for offset in range(0, self.size, PAGE):
            memory.copy_to(self.address + offset, b"%08x" % offset)

    def zeroed(self) -> set[int]:
        """The numbers of the pages that read as zeros."""
        content = os.pread(self.fd, self.size, 0)
        return {number for number in range(self.size // PAGE) if not any(content[number * PAGE : number * PAGE + 8])}

    def storage(self) -> int:
        return os.fstat(self.fd).st_blocks * 512

    def close(self) -> None:
        memory.unmap(self.address, self.size)
        os.close(self.fd)


@contextlib.contextmanager
def opened(fd: int, size: int = SIZE) -> Iterator[Mapped]:
    file = Mapped(fd, size)
    try:
        yield file
    finally:
        file.close()


@pytest.fixture
def file() -> Iterator[Mapped]:
    with opened(files.memfd("test")) as mapped:
        yield mapped


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test with both implementations; a kernel that is faked is faked for the one in Python."""
    faked = "monkeypatch" in metafunc.fixturenames
    ways = ["python", "python, together"] if faked else ["python", "python, together", "native", "native, together"]
    metafunc.parametrize("core", ways, indirect=True)


@pytest.fixture(autouse=True)
def core(request: pytest.FixtureRequest) -> Iterator[str]:
    core, _, together = request.param.partition(", ")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_core, "BATCHING", native_batching() if core == "native" else None)
        patch.setattr(punching, "punch_batch", partial(punching.punch_batch, together=bool(together)))
        yield request.param


def native_batching() -> Any:
    """The compiled calls, whichever core is chosen."""
    try:
        return importlib.import_module("memplat._native.batching")
    except ImportError as error:
        needs("compiler", str(error))


def pages_of(ranges: list[FileRange]) -> set[int]:
    return {number for start, end in ranges for number in range(start // PAGE, end // PAGE)}


def scattered(count: int, step: int = 2) -> list[FileRange]:
    return [FileRange(number * step * PAGE, (number * step + 1) * PAGE) for number in range(count)]


@pytest.mark.parametrize("with_address", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, 1023, 1024, 1025, 2048])
def test_exactly_the_given_pages_are_given_back(file, count, with_address):
    file.fill()
    ranges = scattered(count)
    punching.punch_batch(file.fd, file.address if with_address else None, ranges)
    assert file.zeroed() == pages_of(ranges)
    assert file.storage() == SIZE - count * PAGE


def in_page_tables(file: Mapped) -> set[int]:
    found = pagemap_scan(file.address, 0, file.size)
    if found is None:
        needs("pagemap_scan", "no PAGEMAP_SCAN")
    return pages_of(flat.ranges(found))


NUMBERS = 192
Pages = st.frozensets(st.integers(0, NUMBERS - 1))


def dense_ranges(gaps: list[tuple[int, int]], order: int) -> list[FileRange]:
    """Ranges of so many pages, each so far from the one before; ascending, or every *order*-th first."""
    ranges: list[FileRange] = []
    at = 0
    for gap, count in gaps:
        at += gap
        if at + count > NUMBERS:
            break
        ranges.append(FileRange(at * PAGE, (at + count) * PAGE))
        at += count
    return [pages for first in range(order) for pages in ranges[first::order]]


@hypothesis.settings(max_examples=60)
@hypothesis.given(
    holes=Pages,
    elsewhere=Pages,
    gaps=st.lists(st.tuples(st.integers(0, 10), st.integers(1, 3)), min_size=4, max_size=60),
    order=st.integers(1, 3),
)
@hypothesis.example(holes=frozenset(), elsewhere=frozenset(), gaps=[(1, 1)] * 90, order=1)
@hypothesis.example(holes=frozenset(), elsewhere=frozenset(), gaps=[(0, 1)] * 128, order=2)
@hypothesis.example(holes=frozenset(range(0, NUMBERS, 3)), elsewhere=frozenset(), gaps=[(1, 1)] * 90, order=1)
@hypothesis.example(holes=frozenset(), elsewhere=frozenset(range(NUMBERS)), gaps=[(2, 1)] * 60, order=1)
def test_all_other_pages_stay_as_they_were_mapped_or_not(holes, elsewhere, gaps, order):
    ranges = dense_ranges(gaps, order)
    taken = pages_of(ranges)
    with opened(files.memfd("test"), NUMBERS * PAGE) as file:
        for number in range(NUMBERS):
            if number in elsewhere:
                os.pwrite(file.fd, b"away", number * PAGE)
            elif number not in holes:
                memory.copy_to(file.address + number * PAGE, b"here")
        held = set(range(NUMBERS)) - (holes - elsewhere)
        before = in_page_tables(file)
        punching.punch_batch(file.fd, file.address, ranges)
        # A fault may map more of what is there than the page that was asked for (fault-around).
        assert before - taken <= in_page_tables(file) <= held - taken
        assert file.storage() == len(held - taken) * PAGE
        assert file.zeroed() == set(range(NUMBERS)) - (held - taken)


def test_pages_between_can_be_written_to_all_the_time(file):
    file.fill()
    ranges = scattered(SIZE // PAGE // 2)
    stop, rounds = threading.Event(), [0]
    lost: list[int] = []

    def write() -> None:
        while not stop.is_set() and not lost:
            for offset in range(PAGE, SIZE, 32 * PAGE):
                memory.copy_to(file.address + offset, b"%08x" % (rounds[0] + offset))
                if memory.copy_from(file.address + offset, 8) != b"%08x" % (rounds[0] + offset):
                    lost.append(offset)
            rounds[0] += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        while rounds[0] < 20 and thread.is_alive():
            punching.punch_batch(file.fd, file.address, ranges)
            for start, _ in ranges:
                memory.copy_to(file.address + start, b"x")
    finally:
        stop.set()
        thread.join()
    assert not lost
    assert rounds[0] >= 20
    punching.punch_batch(file.fd, file.address, ranges)
    assert file.zeroed() == pages_of(ranges)
    assert memory.copy_from(file.address + PAGE, 8) == b"%08x" % (rounds[0] - 1 + PAGE)
    assert file.storage() == SIZE // 2


def faults_of_punching(file: Mapped, ranges: list[FileRange]) -> int:
    """How many pages were mapped meanwhile, at least: a fault may map some more."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    punching.punch_batch(file.fd, file.address, ranges)
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def test_only_close_ascending_ranges_leave_the_page_tables_together(file, core):
    in_page_tables(file)  # or skip
    file.fill()
    alone = faults_of_punching(file, scattered(256, 16))
    assert alone < 30, "too far from each other"
    file.fill()
    assert faults_of_punching(file, list(reversed(scattered(1000)))) < alone + 30, "those later may lie between others"
    file.fill()
    mapped_again = faults_of_punching(file, scattered(1000))
    if "together" in core:
        assert mapped_again > alone + 1000 // 16
    else:
        assert mapped_again < alone + 30


def test_ranges_of_all_sizes_in_any_order_are_given_back(file):
    file.fill()
    numbers = random.Random(1).sample(range(0, SIZE // PAGE, 16), 200)
    ranges = [FileRange(number * PAGE, (number + 1 + number % 11) * PAGE) for number in numbers]
    punching.punch_batch(file.fd, file.address, ranges)
    assert file.zeroed() == pages_of(ranges)


def test_pages_that_nobody_touched_can_be_given_back(file):
    punching.punch_batch(file.fd, file.address, scattered(1000))
    assert file.storage() == 0


def test_pages_that_only_somebody_else_mapped_are_given_back(file):
    os.pwrite(file.fd, b"x" * 8 * PAGE, 0)  # not in the page tables of the mapping
    punching.punch_batch(file.fd, file.address, scattered(4))
    assert file.zeroed() & set(range(8)) == {0, 2, 4, 6}


def test_a_locked_mapping_falls_back_to_the_descriptor(file):
    memory.lock(file.address, MIB)
    file.fill()
    ranges = scattered(400)
    punching.punch_batch(file.fd, file.address, ranges)  # 128 of them locked, where MADV_REMOVE is EINVAL
    assert file.zeroed() == pages_of(ranges)


def test_a_lock_in_the_middle_of_a_batch_is_got_round(file):
    memory.lock(file.address + MIB, MIB)
    file.fill()
    ranges = scattered(1000)
    punching.punch_batch(file.fd, file.address, ranges)
    assert file.zeroed() == pages_of(ranges)


def test_a_wrong_address_is_got_round(file):
    file.fill()
    ranges = scattered(10)
    punching.punch_batch(file.fd, memory.PROT_NONE + PAGE, ranges)  # nothing is mapped there
    assert file.zeroed() == pages_of(ranges)


@pytest.mark.parametrize("with_address", [True, False])
@pytest.mark.parametrize("count", [3, 2500])
def test_the_range_that_failed_is_named_and_those_before_it_are_done(file, monkeypatch, count, with_address):
    file.fill()
    ranges = scattered(count, step=1)
    random.Random(2).shuffle(ranges)
    bad = ranges[-2]
    refuse_one_range(monkeypatch, file.address, bad)
    with pytest.raises(PermissionError, match=re.escape(str(bad))):
        punching.punch_batch(file.fd, file.address if with_address else None, ranges)
    assert file.zeroed() == pages_of(ranges[:-2])


@pytest.mark.parametrize("with_address", [True, False])
@pytest.mark.parametrize(("count", "bad"), [(1, 0), (7, 3), (1500, 0), (1500, 1023), (1500, 1024), (1500, 1499)])
def test_a_range_that_no_file_can_have_is_named_and_those_before_it_are_done(file, count, bad, with_address):
    file.fill()
    ranges = scattered(count)
    ranges[bad] = FileRange(-(1 << 45), PAGE - (1 << 45))
    with pytest.raises(OSError, match=re.escape(str(ranges[bad]))) as caught:
        punching.punch_batch(file.fd, file.address if with_address else None, ranges)
    assert caught.value.errno == errno.EINVAL
    assert file.zeroed() == pages_of(ranges[:bad])


def test_compiled_calls_take_ranges_as_a_buffer_too(file):
    file.fill()
    batching = native_batching()
    ranges = scattered(40)
    flat = array("q", [bound for pages in ranges for bound in pages])
    assert batching.punch(file.fd, file.address, flat) == (40, 0)
    assert file.zeroed() == pages_of(ranges)
    for wrong in (array("i", [0, 1, 2, 3]), array("q", [0]), b"12345678" * 2):
        with pytest.raises(TypeError, match="pairs of 64-bit offsets"):
            batching.punch(file.fd, file.address, wrong)
    for wrong_pairs in ([(0,)], [(0, "1")], [3], [(0, 1 << 64)]):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            batching.punch(file.fd, file.address, wrong_pairs)
    assert file.zeroed() == pages_of(ranges)


def punch_until_stopped(file: Mapped) -> None:
    ranges = scattered(2048)
    try:
        while True:  # what a handler raises while the collector calls somebody back is lost: so it is asked for again
            signal.setitimer(signal.ITIMER_REAL, 0.0005)
            for _ in range(8):
                punching.punch_batch(file.fd, file.address, ranges)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.mark.no_cover  # it would be caught out in the middle of coverage's own lock, which nobody gives back then
def test_an_exception_from_a_signal_handler_ends_a_batch(file):
    class EnoughError(Exception):
        pass

    def stop(*_: object) -> None:
        raise EnoughError

    descriptors = len(os.listdir("/proc/self/fd"))
    before = signal.signal(signal.SIGALRM, stop)
    try:
        for _ in range(20):
            file.fill()
            with pytest.raises(EnoughError):
                punch_until_stopped(file)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def refuse_one_range(monkeypatch: pytest.MonkeyPatch, address: int, bad: FileRange) -> None:
    """A kernel that has something against *bad*, whichever way it is asked, and does all else."""
    advise: Callable[..., int] = punching._process_madvise
    fallocate: Callable[..., int] = files._fallocate_held

    def refusing_advise(number: int, pid: int, where: int, count: int, *rest: int) -> int:
        starts = list((ctypes.c_uint64 * (2 * count)).from_address(where))[0::2]
        if address + bad.start in starts:
            count = starts.index(address + bad.start)
            if not count:
                ctypes.set_errno(errno.EPERM)
                return -1
        return advise(number, pid, where, count, *rest)

    def refusing_fallocate(fd: int, mode: int, offset: int, length: int) -> int:
        if offset == bad.start:
            ctypes.set_errno(errno.EPERM)
            return -1
        return fallocate(fd, mode, offset, length)

    monkeypatch.setattr(punching, "_process_madvise", refusing_advise)
    monkeypatch.setattr(files, "_fallocate_held", refusing_fallocate)


def test_a_sealed_file_is_an_error_by_both_ways():
    fd = files.memfd("sealed")
    with opened(fd) as file:
        file.fill()
        files.add_seals(fd, files.F_SEAL_FUTURE_WRITE)
        for address in (file.address, None):
            with pytest.raises(PermissionError):
                punching.punch_batch(fd, address, scattered(10))
        assert not file.zeroed()


def test_a_read_only_descriptor_is_an_error(file):
    read_only = os.open(f"/proc/self/fd/{file.fd}", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="PUNCH_HOLE") as caught:
            punching.punch_batch(read_only, None, scattered(3))
        assert caught.value.errno == errno.EBADF
    finally:
        os.close(read_only)


def test_more_than_a_vector_holds_is_given_back_whole():
    with opened(files.memfd("large"), 5 << 30) as file:
        ends = [(1 << 30) - PAGE, 1 << 30, 3 << 30, (3 << 30) + PAGE, (5 << 30) - PAGE]
        for offset in (0, *ends):
            memory.copy_to(file.address + offset, b"x")
        punching.punch_batch(
            file.fd, file.address, [FileRange(0, 1 << 30), FileRange(1 << 30, 4 << 30), FileRange(4 << 30, 5 << 30)]
        )
        assert file.storage() == 0


@pytest.mark.parametrize("any_disk_directory", ["ext4", "xfs", "btrfs", "tmpfs"], indirect=True)
@pytest.mark.parametrize("with_address", [True, False])
def test_every_file_system_gives_back_exactly_the_pages(any_disk_directory: Path, with_address: bool):
    fd = os.open(any_disk_directory, os.O_TMPFILE | os.O_RDWR, 0o600)
    with opened(fd, 4 * MIB) as file:
        file.fill()
        os.fdatasync(fd)
        ranges = scattered(500)
        punching.punch_batch(fd, file.address if with_address else None, ranges)
        assert file.zeroed() == pages_of(ranges)
        data = files.seek_extents(fd, 0, file.size)
        assert pages_of(list(map(FileRange, data[0::2], data[1::2]))) == set(range(1024)) - pages_of(ranges)


@pytest.mark.parametrize("with_address", [True, False])
def test_huge_pages_are_given_back(with_address):
    with hugetlb_pool(8), opened(files.memfd("huge", files.MFD_HUGETLB)) as file:
        for offset in range(0, SIZE, 2 * MIB):
            memory.copy_to(file.address + offset, b"huge")
        ranges = [FileRange(0, 2 * MIB), FileRange(4 * MIB, 8 * MIB), FileRange(14 * MIB, 16 * MIB)]
        punching.punch_batch(file.fd, file.address if with_address else None, ranges)
        assert file.storage() == 8 * MIB
        assert [memory.copy_from(file.address + offset, 4) for offset in (2 * MIB, 8 * MIB)] == [b"huge", b"huge"]


def test_signals_do_not_disturb_a_batch(file):
    ticks: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: ticks.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        rounds = 0
        while len(ticks) < 20:
            file.fill()
            punching.punch_batch(file.fd, file.address, scattered(SIZE // PAGE, step=1))
            assert file.storage() == 0
            files.fallocate(file.fd, 0, 0, SIZE)
            assert file.storage() == SIZE
            rounds += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_forked_child_punches_by_its_own_mapping(file):
    file.fill()
    child = os.fork()
    if not child:  # pragma: no cover
        punching.punch_batch(file.fd, file.address, scattered(5))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert file.zeroed() == pages_of(scattered(5))


def without_process_madvise(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """A kernel that answers every process_madvise with *code*, as an older one or a sandbox does."""

    def refuse(*_: object) -> int:
        ctypes.set_errno(code)
        return -1

    monkeypatch.setattr(punching, "_process_madvise", refuse)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.EBADF])
def test_a_kernel_that_cannot_punch_vectors_is_got_round(file, monkeypatch, code):
    file.fill()
    without_process_madvise(monkeypatch, code)
    ranges = scattered(1500)
    punching.punch_batch(file.fd, file.address, ranges)
    assert file.zeroed() == pages_of(ranges)


def test_a_kernel_that_stops_halfway_is_continued_at_the_right_place(file, monkeypatch):
    file.fill()
    real: Callable[..., int] = punching._process_madvise

    def short(number: int, pid: int, where: int, count: int, advice: int, flags: int) -> int:
        return real(number, pid, where, min(count, 7), advice, flags)

    monkeypatch.setattr(punching, "_process_madvise", short)
    ranges = scattered(100)
    punching.punch_batch(file.fd, file.address, ranges)
    assert file.zeroed() == pages_of(ranges)


def test_the_pid_descriptor_serves_where_the_kernel_has_no_name_for_oneself(file, monkeypatch):
    file.fill()
    real: Callable[..., int] = punching._process_madvise

    def old(number: int, pid: int, *rest: int) -> int:
        if pid < 0:
            ctypes.set_errno(errno.EBADF)
            return -1
        return real(number, pid, *rest)

    monkeypatch.setattr(punching, "_process_madvise", old)
    monkeypatch.setattr(files, "punch_hole", lambda *_: pytest.fail("not by vector"))
    ranges = scattered(100)
    punching.punch_batch(file.fd, file.address, ranges)
    assert file.zeroed() == pages_of(ranges)


@pytest.mark.parametrize("with_address", [True, False])
def test_beside_a_busy_thread_the_interpreter_is_not_waited_for_once_a_range(file, with_address):
    file.fill()
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            pass

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        punching.punch_batch(file.fd, file.address if with_address else None, scattered(2048))
        waits = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before
    finally:
        stop.set()
        thread.join()
    assert file.storage() == SIZE // 2
    assert waits < 200
