"""The backend hugetlb, with a pool of a few pages."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator

import pytest

from memplat.backends import hugetlb
from memplat.backends.hugetlb import HugetlbOptions
from memplat.linux import files, memory, system, userfaultfd
from memplat.ranges import FileRange
from memplat.types import AllocationMode, Availability, BackingFile, Storage
from tests.hostparts import GIB, MIB, hugetlb_pool, mounted, setting, touch_elsewhere
from tests.needs import needs
from tests.unit.backends.hooked import Hooked, hooks_of, opened

HUGE = 2 * MIB
SIZE = 8 * HUGE


@pytest.fixture(autouse=True)
def _pool() -> Iterator[None]:
    if not userfaultfd.is_available():
        needs("userfaultfd", "the kernel or the sandbox refuses it")
    with hugetlb_pool(4):
        yield
        left = pool()
        assert (left.free, left.reserved) == (4, 0), "a test left pages or reservations behind"


@pytest.fixture(params=["memfd", "mount"])
def file(request: pytest.FixtureRequest) -> Iterator[Hooked]:
    with contextlib.ExitStack() as stack:
        mount = None
        if request.param == "mount":
            mount = str(stack.enter_context(mounted("hugetlbfs", "pagesize=2M")))
        yield stack.enter_context(opened(hugetlb, HugetlbOptions(mount=mount), SIZE))


def pool() -> system.HugePagePool:
    return system.huge_page_pools()[HUGE]


def check(**options: object) -> Availability:
    availability = hooks_of(hugetlb).memplat_check(options=HugetlbOptions(**options))  # type: ignore[arg-type]
    assert availability is not None
    return availability


def storage(file: Hooked) -> Storage:
    found = file.hooks.memplat_storage(file=file.file)
    assert found is not None
    return found


def in_mib(found: Storage) -> tuple[int, int, int]:
    return found.total // MIB, found.overhead // MIB, found.reserved // MIB


def test_it_says_who_it_is():
    info = hooks_of(hugetlb).memplat_backend_info()
    assert info is not None
    assert (info.name, info.default_mode, info.decommit_releases) == ("hugetlb", AllocationMode.RESERVED, False)
    assert info.options is HugetlbOptions


# ---- availability ---------------------------------------------------------------------------------------------------


def test_a_pool_with_pages_is_available_with_its_figures():
    availability = check()
    assert availability.available
    assert availability.reason == "the pool has 4 pages of 2 MiB, 4 free, 0 of these reserved"
    assert hooks_of(hugetlb).memplat_check(options=None) == availability


def test_an_empty_pool_is_unavailable_with_the_figures_and_the_sysctl():
    with setting("/proc/sys/vm/nr_hugepages", "0"):
        availability = check(page_size=HUGE)
    assert not availability.available
    assert "0 pages of 2 MiB, 0 free" in availability.reason
    assert availability.remedy == "sysctl vm.nr_hugepages=1"


def test_a_pool_that_may_grow_is_available():
    directory = "/sys/kernel/mm/hugepages/hugepages-2048kB"
    with setting(f"{directory}/nr_hugepages", "0"), setting(f"{directory}/nr_overcommit_hugepages", "2"):
        assert "may grow by 2" in check().reason
        assert check().available


def test_a_page_size_that_the_host_lacks_is_unavailable_and_names_those_it_has():
    availability = check(page_size="16MiB")
    assert not availability.available
    assert "has no huge pages of 16 MiB: it has 2 MiB" in availability.reason
    with pytest.raises(OSError, match="remedy") as caught:
        hooks_of(hugetlb).memplat_create_file(options=HugetlbOptions(page_size=16 * MIB))
    assert caught.value.errno == errno.ENODEV


def test_a_kernel_without_huge_pages_is_unavailable(monkeypatch):
    monkeypatch.setattr("memplat.linux.system.huge_page_pools", dict)
    assert "CONFIG_HUGETLBFS" in check().reason


def test_a_sandbox_that_hides_which_pages_exist_is_unavailable(monkeypatch):
    monkeypatch.setattr(userfaultfd, "_userfaultfd", lambda *_: -1)
    availability = check()
    assert not availability.available
    assert "userfaultfd" in availability.reason


def test_a_mount_that_is_none_is_unavailable_with_the_command(tmp_path):
    assert check(mount=str(tmp_path / "missing")).remedy.startswith("mkdir -p")
    availability = check(mount=str(tmp_path))
    assert not availability.available
    assert availability.remedy == f"mount -t hugetlbfs -o pagesize=2M none {tmp_path}"


def test_the_limit_of_a_mount_counts():
    with mounted("hugetlbfs", "pagesize=2M", "size=4M") as path:
        assert "has 4 MiB of 4 MiB left" in check(mount=str(path)).reason
        with opened(hugetlb, HugetlbOptions(mount=str(path)), SIZE) as file:
            file.reserve(file.pages(0, 2))
            assert not check(mount=str(path)).available
            with pytest.raises(OSError, match="huge pages wanted") as caught:
                file.reserve(file.pages(2, 3))
            assert caught.value.errno == errno.ENOMEM


def test_the_page_size_of_a_mount_must_fit():
    with mounted("hugetlbfs", "pagesize=2M") as path:
        availability = check(mount=str(path), page_size="1GiB")
        assert not availability.available
        assert "has pages of 2 MiB, not of 1 GiB" in availability.reason


@pytest.mark.parametrize(
    "wrong", [{"page_size": 3}, {"page_size": "much"}, {"mount": 5}, {"name": "x" * 300}, {"seal": 0}]
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises((ValueError, TypeError)):
        HugetlbOptions(**wrong)


# ---- the file -------------------------------------------------------------------------------------------------------


def test_the_file_is_empty_private_unnamed_and_closed_on_exec(file):
    status = os.fstat(file.fd)
    assert (status.st_nlink, stat.S_IMODE(status.st_mode), status.st_blocks) == (0, 0o600, 0)
    assert fcntl.fcntl(file.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert file.page == HUGE


def test_a_memfd_is_sealed_against_shrinking():
    with opened(hugetlb, None, SIZE) as file, pytest.raises(PermissionError):
        os.ftruncate(file.fd, HUGE)


def test_growing_costs_nothing_of_the_pool(file):
    file.hooks.memplat_grow(file=file.file, size=64 * HUGE)
    assert (pool().free, pool().reserved) == (4, 0)
    assert storage(file) == Storage(total=0)


def test_pages_of_one_gibibyte_work():
    with hugetlb_pool(1, GIB), opened(hugetlb, HugetlbOptions(page_size="1GiB"), 2 * GIB) as file:
        assert file.page == GIB
        assert check(page_size="1GiB").reason.startswith("the pool has 1 pages of 1 GiB")
        file.reserve(file.pages(1, 2))
        file.touch(1)
        assert file.probe() == {1}
        with pytest.raises(OSError, match="hugepages-1048576kB/nr_hugepages"):
            file.reserve(file.pages(0, 1))
        file.decommit(file.pages(1, 2))
        assert storage(file) == Storage(total=0)


# ---- reserving ------------------------------------------------------------------------------------------------------


def test_a_pool_of_four_serves_four_allocations_and_refuses_the_fifth(file):
    for number in (0, 2, 5, 7):
        file.reserve(file.pages(number, number + 1))
    assert in_mib(storage(file)) == (0, 0, 8)
    with pytest.raises(
        OSError, match=r"1 huge pages wanted: the pool has 4 pages .* sysctl vm.nr_hugepages=5"
    ) as caught:
        file.reserve(file.pages(1, 2))
    assert caught.value.errno == errno.ENOMEM
    assert in_mib(storage(file)) == (0, 0, 8)
    file.touch(0, 2, 5, 7)  # no SIGBUS
    assert in_mib(storage(file)) == (8, 0, 0)


def test_reserved_pages_survive_what_others_take(file):
    file.reserve(file.pages(0, 2))
    with opened(hugetlb, None, SIZE) as other:
        other.reserve(other.pages(0, 2))
        other.touch(0, 1)
        with pytest.raises(OSError, match="wanted"):
            other.reserve(other.pages(2, 3))
    file.touch(0, 1)
    assert file.probe() == {0, 1}


def test_a_reservation_that_fails_leaves_nothing_reserved(file):
    file.reserve(file.pages(0, 1))
    with pytest.raises(OSError, match="wanted"):
        file.reserve(file.pages(0, 3), file.pages(4, 8))
    assert (pool().free, pool().reserved) == (4, 1)
    assert in_mib(storage(file)) == (0, 0, 2)


def test_a_reservation_that_fails_keeps_content(file):
    file.reserve(file.pages(0, 2))
    file.touch(1)
    with pytest.raises(OSError, match="wanted"):
        file.reserve(file.pages(0, 3), file.pages(4, 8))
    assert file.probe() == {1}
    assert memory.copy_from(file.address + HUGE, 1) == b"x"
    assert (pool().free, pool().reserved) == (3, 1)


def test_reserving_twice_costs_once(file):
    file.reserve(file.pages(0, 3))
    file.touch(1)
    file.reserve(file.pages(0, 4))
    assert (pool().free, pool().reserved) == (3, 3)
    assert in_mib(storage(file)) == (2, 0, 6)


def test_pages_touched_without_a_reservation_can_be_reserved_later(file):
    file.touch(3)
    file.reserve(file.pages(2, 4))
    assert in_mib(storage(file)) == (2, 0, 2)
    assert pool().reserved == 1


def test_given_back_pages_and_reservations_serve_others(file):
    file.reserve(file.pages(0, 4))
    file.touch(0, 2)
    file.decommit(file.pages(0, 2), file.pages(2, 4))
    assert storage(file) == Storage(total=0)
    assert (pool().free, pool().reserved) == (4, 0)
    with opened(hugetlb, None, SIZE) as other:
        other.reserve(other.pages(0, 4))
        with pytest.raises(OSError, match="wanted"):
            file.reserve(file.pages(0, 1))


def test_a_part_of_a_reservation_can_be_given_back(file):
    file.reserve(file.pages(0, 4))
    file.touch(1)
    file.decommit(file.pages(1, 3))
    assert (pool().free, pool().reserved) == (4, 2)
    assert in_mib(storage(file)) == (0, 0, 4)
    file.touch(0, 3)
    file.reserve(file.pages(1, 2))
    assert in_mib(storage(file)) == (4, 0, 2)


def test_closing_gives_everything_back():
    with opened(hugetlb, None, SIZE) as file:
        file.reserve(file.pages(0, 4))
        file.touch(1)
    assert (pool().free, pool().reserved) == (4, 0)


def test_a_killed_process_leaves_no_reservation():
    code = """
        import os, signal, sys
        sys.path.insert(0, sys.argv[1])
        from memplat.backends import hugetlb
        from memplat.ranges import FileRange
        file = hugetlb.memplat_create_file(options=None)
        os.ftruncate(file.fd, 16 << 21)
        hugetlb.memplat_reserve(file=file, ranges=[FileRange(0, 4 << 21)])
        print("reserved", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), os.getcwd()], capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.returncode) == ("reserved", -signal.SIGKILL), done.stderr
    assert (pool().free, pool().reserved) == (4, 0)


def test_two_threads_reserve_and_give_back_exactly(file):
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(40):
                file.reserve(file.pages(number, number + 2))
                file.touch(number)
                file.decommit(file.pages(number, number + 2))
        except BaseException as reason:
            errors.append(reason)

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert storage(file) == Storage(total=0)


# ---- decommit -------------------------------------------------------------------------------------------------------


def test_decommitted_pages_are_zero(file):
    file.reserve(file.pages(0, 2))
    file.touch(0, 1)
    file.decommit(file.pages(0, 1))
    file.reserve(file.pages(0, 1))
    assert memory.copy_from(file.address, 8) == bytes(8)
    assert memory.copy_from(file.address + HUGE, 1) == b"x"


@pytest.mark.parametrize("wrong", [FileRange(0, 4096), FileRange(4096, HUGE), FileRange(HUGE, HUGE + MIB)])
def test_parts_of_huge_pages_are_refused_and_nothing_changes(file, wrong):
    file.touch(0, 1)
    with pytest.raises(OSError, match="whole pages of 2 MiB") as caught:
        file.decommit(file.pages(2, 3), wrong)
    assert caught.value.errno == errno.EINVAL
    assert memory.copy_from(file.address, 1) == memory.copy_from(file.address + HUGE, 1) == b"x"


def test_a_failed_decommit_is_an_error(file, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no")

    file.reserve(file.pages(0, 1))
    monkeypatch.setattr("memplat.backends.hugetlb.punching.punch_batch", refuse)
    with pytest.raises(PermissionError):
        file.decommit(file.pages(0, 1))
    assert in_mib(storage(file)) == (2, 0, 0)


# ---- probing --------------------------------------------------------------------------------------------------------


def test_untouched_and_full_files_are_answered_by_their_blocks(file):
    assert file.probe() == set()
    assert file.file.probe_method == "st_blocks"
    with opened(hugetlb, None, 4 * HUGE) as full:
        full.reserve(full.pages(0, 4))
        full.touch(0, 1, 2, 3)
        assert full.probe() == {0, 1, 2, 3}
        assert full.probe(1, 3) == {1, 2}
        assert full.file.probe_method == "st_blocks"


def test_own_pages_are_answered_by_the_page_tables(file):
    file.touch(1, 6)
    assert file.probe() == {1, 6}
    assert file.file.probe_method == "pagemap_scan"
    assert file.probe(2, 8) == {6}


def test_pages_of_others_are_found(file):
    file.touch(1)
    touch_elsewhere(file.fd, [3 * HUGE, 4 * HUGE], SIZE)
    files.fallocate(file.fd, 0, 7 * HUGE, HUGE)
    assert file.probe() == {1, 3, 4, 7}
    assert file.file.probe_method == "userfaultfd"
    assert file.probe(2, 4) == {3}
    assert in_mib(storage(file)) == (8, 0, 0)


def test_what_a_peer_added_is_found(file):
    file.touch(1)
    os.ftruncate(file.fd, 2 * SIZE)
    touch_elsewhere(file.fd, [10 * HUGE], 2 * SIZE)
    assert file.probe(0, 16) == {1, 10}


def test_reserved_pages_are_no_storage(file):
    file.reserve(file.pages(0, 3))
    file.touch(1)
    assert file.probe() == {1}
    assert file.probe_reserved(file.pages(0, 1), file.pages(2, 3)) == set()


def test_the_reserved_figure_follows_touches_of_others(file):
    file.reserve(file.pages(0, 4))
    assert in_mib(storage(file)) == (0, 0, 8)
    touch_elsewhere(file.fd, [2 * HUGE], SIZE)
    assert in_mib(storage(file)) == (2, 0, 6)
    assert in_mib(storage(file)) == (2, 0, 6)


def test_without_userfaultfd_a_probe_is_an_error_rather_than_wrong(file, monkeypatch):
    touch_elsewhere(file.fd, [2 * HUGE], SIZE)
    monkeypatch.setattr(userfaultfd, "_userfaultfd", lambda *_: -1)
    with pytest.raises(OSError, match="userfaultfd") as caught:
        file.probe()
    assert caught.value.errno == errno.EOPNOTSUPP


def test_an_adopted_file_gets_its_state_when_it_is_needed():
    fd = files.memfd("adopted", files.MFD_HUGETLB)
    os.ftruncate(fd, SIZE)
    hooks = hooks_of(hugetlb)
    file = BackingFile(fd=fd, page_size=HUGE, backend="hugetlb")
    hooks.memplat_reserve(file=file, ranges=[FileRange(0, HUGE)])
    assert hooks.memplat_storage(file=file) == Storage(total=0, reserved=HUGE)
    hooks.memplat_close_file(file=file)
