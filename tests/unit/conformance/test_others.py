"""Children and the peer: whatever happens to them, the suite goes on and says what it was."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import threading

import pytest

from memplat.conformance.others import Peer, run_in_child, stopped_child


def test_a_child_returns_what_its_function_returned():
    assert run_in_child(lambda: {"pid": os.getpid()}, 30).value["pid"] != os.getpid()


def test_what_a_child_changes_stays_there():
    changed: list[int] = []
    assert run_in_child(lambda: changed.append(1), 30).error == ""
    assert changed == []


def test_large_results_come_through():
    assert len(run_in_child(lambda: b"x" * 3_000_000, 30).value) == 3_000_000


def test_a_page_that_the_host_cannot_supply_is_told_as_sigbus():
    def touch_beyond_the_end() -> None:
        fd = os.memfd_create("short")
        os.ftruncate(fd, mmap.PAGESIZE)
        window = mmap.mmap(fd, mmap.PAGESIZE)
        os.ftruncate(fd, 0)
        window[0]

    assert "SIGBUS killed the process: the host could not supply a page" in run_in_child(touch_beyond_the_end, 30).error


def test_a_wild_pointer_is_told_as_sigsegv():
    assert "SIGSEGV killed the process" in run_in_child(lambda: ctypes.string_at(8), 30).error


def test_a_child_that_hangs_is_stopped_and_shows_where_it_stood():
    def wait_for_ever() -> None:
        threading.Event().wait()

    error = run_in_child(wait_for_ever, 0.3).error
    assert "it hangs: stopped after 0.3 s" in error
    assert "wait_for_ever" in error


def test_a_child_that_ends_without_a_word_is_told():
    assert "ended with status 7" in run_in_child(lambda: os._exit(7), 30).error


def test_an_exception_in_a_child_is_an_error(capfd: pytest.CaptureFixture[str]):
    assert "ended with status 1" in run_in_child(lambda: 1 // 0, 30).error
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_children_can_have_children():
    assert run_in_child(lambda: run_in_child(lambda: 42, 20).value, 30).value == 42


def test_a_stopped_child_lives_until_it_is_killed():
    with stopped_child(lambda: "ready") as (pid, said):
        assert said == "ready"
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_stopped_child_that_fails_is_an_error():
    with pytest.raises(RuntimeError, match="ended before"), stopped_child(lambda: signal.raise_signal(signal.SIGKILL)):
        pass


@pytest.fixture
def peer():
    peer = Peer()
    yield peer
    peer.stop()


@pytest.fixture
def file():
    fd = os.memfd_create("shared", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 8 * mmap.PAGESIZE)
    yield fd
    os.close(fd)


def test_the_peer_reads_and_writes_what_is_in_the_file(peer: Peer, file: int):
    theirs = peer.share(file)
    os.pwrite(file, b"from here", 0)
    assert theirs.peek(0, mmap.PAGESIZE).startswith(b"from here\0")
    theirs.poke(mmap.PAGESIZE, mmap.PAGESIZE, "from there ")
    assert os.pread(file, 10, mmap.PAGESIZE) == b"from there"
    theirs.pwrite(2 * mmap.PAGESIZE, "written")
    assert os.pread(file, 7, 2 * mmap.PAGESIZE) == b"written"


def test_the_peer_punches_truncates_and_seals(peer: Peer, file: int):
    theirs = peer.share(file)
    os.pwrite(file, b"x" * mmap.PAGESIZE, 0)
    theirs.punch(0, mmap.PAGESIZE)
    assert os.fstat(file).st_blocks == 0
    theirs.truncate(2 * mmap.PAGESIZE)
    assert os.fstat(file).st_size == 2 * mmap.PAGESIZE
    theirs.seal(2)
    with pytest.raises(PermissionError, match="in the other process"):
        theirs.truncate(0)


def test_the_peer_lets_go(peer: Peer, file: int):
    theirs = peer.share(file)
    assert theirs.map() == 8 * mmap.PAGESIZE
    theirs.drop()
    with pytest.raises(OSError, match="KeyError"):
        theirs.load(0, mmap.PAGESIZE)
    again = peer.share(file)
    peer.forget()
    with pytest.raises(OSError, match="KeyError"):
        again.load(0, mmap.PAGESIZE)


def test_a_peer_that_was_stopped_starts_again(peer: Peer, file: int):
    peer.share(file)
    peer.stop()
    peer.stop()
    assert peer.share(file).map() > 0
