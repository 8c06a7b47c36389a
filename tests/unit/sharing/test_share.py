"""Sharing pages: what a handle is good for, when it ends, and what it lets a peer do."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pickle
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import memplat
from memplat import _core
from memplat.engine import service
from memplat.memory import Memory
from tests.hostparts import hugetlb_pool, in_another_process
from tests.needs import need_root, needs
from tests.oracle import PAGE
from tests.unit.sharing.looks import ROOT, refs


def test_a_share_is_a_reference_until_the_view_is_gone(memory: Memory) -> None:
    pages = memory.allocate(4 * PAGE, fill=b"hello")
    handle = memory.share(pages)
    assert refs(memory, pages) == 2
    view = memplat.attach(pickle.loads(pickle.dumps(handle)))
    part = view.cast("H")[1:]
    assert bytes(view[:5]) == b"hello"
    assert len(view) == 4 * PAGE
    del view
    assert not handle.wait(0)
    del part
    assert handle.wait(20)
    assert refs(memory, pages) == 1
    memory.decref(pages)


@pytest.mark.parametrize("core", ["python", "native"])
def test_a_handle_means_the_same_to_the_other_core(memory: Memory, core: str) -> None:
    pages = memory.allocate(PAGE, fill=b"hello")
    code = (
        "import pickle, sys, memplat; views = [memplat.attach(pickle.loads(bytes.fromhex(h))) for h in sys.argv[1:]]\n"
        "print(*(bytes(view[:5]) for view in views), views[1].readonly)"
    )
    handles = [memory.share(pages), memory.share(pages)]
    command = [sys.executable, "-c", code, *(pickle.dumps(handle).hex() for handle in handles)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MEMPLAT_CORE": core if _core.MODULE is not None else "python",
    }
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout == "b'hello' b'hello' True\n"
    assert all(handle.wait(20) for handle in handles)
    memory.decref(pages)


@pytest.mark.parametrize("whole", [False, True], ids=["as bytes", "as a handle again"])
def test_a_handle_goes_as_bytes_too(memory: Memory, whole: bool) -> None:
    pages = memory.allocate(4 * PAGE, fill=b"hello")
    part = memplat.FileRange(pages.start, pages.start + PAGE)
    for writable in (False, True):
        handle = memory.share(part, writable=writable)
        data = bytes(handle)
        again = memplat.Handle.from_bytes(data)
        assert (again.pages, again.writable, bytes(again)) == (part, writable, data)
        view = memplat.attach(again if whole else data)
        assert bytes(view[:5]) == b"hello"
        assert len(view) == PAGE
        assert view.readonly is not writable
        for late in (data, again, handle):
            with pytest.raises(memplat.HandleUsedError):
                memplat.attach(late)
        del view
        assert handle.wait(20)
        with pytest.raises(memplat.HandleExpiredError):
            memplat.attach(data)
    memory.decref(pages)


def test_bytes_that_are_no_handle_are_refused(memory: Memory) -> None:
    pages = memory.allocate(PAGE)
    handle = memory.share(pages)
    data = bytes(handle)
    for wrong in (b"", data[:48], bytearray(data), "x" * 99, None):
        with pytest.raises(memplat.InvalidArgumentError):
            memplat.Handle.from_bytes(wrong)  # type: ignore[arg-type]
        with pytest.raises(memplat.InvalidArgumentError):
            memplat.attach(wrong)  # type: ignore[arg-type]
    for broken in (data[:32] + b"\xff" * 16 + data[48:], data[:32] + data[40:48] + data[32:40] + data[48:]):
        with pytest.raises(memplat.InvalidArgumentError):
            memplat.attach(broken)
    for other in (b"\0" * len(data), b"\0" * 16 + data[16:], data[:24] + b"\xff" * 8 + data[32:]):
        with pytest.raises(memplat.MemplatError):
            memplat.attach(other)
    for slot in (7, (1 << 15) - 1):
        with pytest.raises(memplat.MemplatError):
            memplat.attach(data[:16] + slot.to_bytes(8, "little", signed=True) + data[24:])
    assert bytes(memplat.attach(data)) == bytes(PAGE)
    assert handle.wait(20)
    with pytest.raises(memplat.HandleError):
        bytes(memplat.Handle.from_fd(os.dup(0)))
    memory.decref(pages)


def test_a_view_outlives_the_memory(memory: Memory) -> None:
    pages = memory.allocate(PAGE, fill=b"hello")
    view = memplat.attach(memory.share(pages))
    memory.decref(pages)
    memory.close()
    assert bytes(view[:5]) == b"hello"


@pytest.mark.parametrize("by_descriptor", [False, True])
def test_a_handle_attaches_once(memory: Memory, by_descriptor: bool) -> None:
    pages = memory.allocate(PAGE)
    handle = memory.share(pages)
    if by_descriptor:
        handles = [memplat.Handle.from_fd(os.dup(handle.fileno())) for _ in range(2)]
        del handle
    else:
        handles = [pickle.loads(pickle.dumps(handle)) for _ in range(2)]
    view = memplat.attach(handles[0])
    for again in handles:
        with pytest.raises(memplat.HandleUsedError):
            memplat.attach(again)
    view.release()
    del view
    memory.decref(pages)


@pytest.mark.parametrize("by_descriptor", [False, True])
def test_a_handle_that_nobody_attaches_expires(memory: Memory, by_descriptor: bool) -> None:
    pages = memory.allocate(PAGE)
    handle = memory.share(pages, expires=0.01)
    if by_descriptor:
        handle.fileno()
    assert handle.wait(20)
    assert refs(memory, pages) == 1
    with pytest.raises(memplat.HandleExpiredError):
        memplat.attach(handle)
    memory.decref(pages)


@pytest.mark.parametrize("by_descriptor", [False, True])
def test_one_that_was_attached_does_not(memory: Memory, by_descriptor: bool) -> None:
    pages = memory.allocate(PAGE)
    handle = memory.share(pages, expires=0.2)
    sent = memplat.Handle.from_fd(os.dup(handle.fileno())) if by_descriptor else handle
    view = memplat.attach(sent)
    later = memory.share(pages, expires=0.3)
    assert later.wait(20)
    assert refs(memory, pages) == 2
    assert not handle.revoke()
    assert view[0] == 0
    del view
    assert handle.wait(20)
    memory.decref(pages)


def test_a_handle_can_be_revoked_until_it_is_attached(memory: Memory) -> None:
    pages = memory.allocate(PAGE)
    first, second = memory.share(pages), memory.share(pages)
    second.fileno()
    assert first.revoke()
    assert second.revoke()
    assert not first.revoke()
    assert refs(memory, pages) == 1
    for handle in (first, second):
        with pytest.raises(memplat.HandleExpiredError):
            memplat.attach(handle)
    with pytest.raises(memplat.HandleExpiredError):
        first.fileno()
    memory.decref(pages)


def test_a_descriptor_that_nobody_keeps_ends_the_share(memory: Memory) -> None:
    pages = memory.allocate(PAGE)
    handle = memory.share(pages)
    here, there = socket.socketpair()
    with here, there:
        socket.send_fds(here, [b"-"], [handle.fileno()])
        handle.close()
        assert not handle.wait(0)  # it is still on its way
    assert handle.wait(20)
    assert refs(memory, pages) == 1
    memory.decref(pages)


def test_closing_the_memory_ends_what_was_not_attached(memory: Memory) -> None:
    pages = memory.allocate(PAGE)
    handle, ticket = memory.share(pages), memory.share(pages)
    descriptor = memplat.Handle.from_fd(os.dup(ticket.fileno()))
    memory.decref(pages)
    memory.close()
    assert handle.wait(0)
    assert ticket.wait(0)
    with pytest.raises(memplat.HandleExpiredError):
        memplat.attach(handle)
    with pytest.raises(memplat.ClosedError):
        memory.share(pages)
    memplat.attach(descriptor).release()  # its message was sent: it is good for what it was, as a view would be


def test_read_only_means_read_only(memory: Memory) -> None:
    pages = memory.allocate(PAGE)
    view = memplat.attach(memory.share(pages))
    assert view.readonly
    with pytest.raises(TypeError):
        view[0] = 1
    found = [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd" in line]
    assert any(line.split()[1] == "r--s" for line in found)
    memory.decref(pages)
    del view


def test_the_descriptor_of_a_read_only_share_gives_another_user_no_way_to_write(memory: Memory) -> None:
    need_root("becoming another user")
    pages = memory.allocate(PAGE)
    handle = memory.share(pages)
    with socket.socket(fileno=os.dup(handle.fileno())) as ticket:
        _, fds, _, _ = socket.recv_fds(ticket, 64, 2)
    code = """
        import mmap, os, sys
        fd = int(sys.argv[1])
        os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
        def refused(what):
            try:
                what()
            except OSError:
                return True
            return False
        print(refused(lambda: mmap.mmap(fd, 4096)),
              refused(lambda: os.pwrite(fd, b"x", 0)),
              refused(lambda: os.ftruncate(fd, 0)),
              refused(lambda: os.fchmod(fd, 0o666)),
              refused(lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDWR)),
              len(mmap.mmap(fd, 4096, prot=mmap.PROT_READ)))
        """
    assert in_another_process(code, fds[0], fds=[fds[0]]).split() == ["True"] * 5 + ["4096"]
    again = os.open(f"/proc/self/fd/{fds[0]}", os.O_RDWR)  # the same user can: docs/sharing.md says so
    for fd in (*fds, again):
        os.close(fd)
    assert handle.wait(20)
    memory.decref(pages)


def test_a_writable_share_needs_a_sealed_file_or_trust(tmp_path: Path) -> None:
    for backend, options in (("memfd", {"seal": False}), ("tmpfile", {"directory": tmp_path})):
        with memplat.open(backend, max_size=64 << 20, **options) as memory:
            pages = memory.allocate(PAGE)
            memory.share(pages).revoke()
            with pytest.raises(memplat.UnsealedFileError, match="trusted=True"):
                memory.share(pages, writable=True)
            assert refs(memory, pages) == 1
            view = memplat.attach(memory.share(pages, writable=True, trusted=True))
            view[:2] = b"ab"
            assert memory.read(memplat.FileRange(pages.start, pages.start + 2)) == b"ab"
            del view
            memory.decref(pages)


def test_whole_huge_pages_are_shared() -> None:
    with hugetlb_pool(4), memplat.open("hugetlb", max_size=8 << 20) as memory:
        pages = memory.allocate(2 * memory.page_size)
        size = os.fstat(memory.fileno()).st_size
        view = memplat.attach(memory.share(pages, writable=True))
        view[-1] = 7
        assert memory.read(memplat.FileRange(pages.end - 1, pages.end)) == b"\x07"
        assert os.fstat(memory.fileno()).st_size == size  # a writable mapping of hugetlb may grow the file
        del view
        memory.decref(pages)


def test_what_makes_no_sense_is_refused_and_leaves_no_reference(memory: Memory) -> None:
    pages = memory.allocate(PAGE)
    with pytest.raises(memplat.InvalidArgumentError):
        memory.share(pages, expires=-1)
    with pytest.raises(memplat.MisalignedRangeError):
        memory.share(memplat.FileRange(1, 2))
    with pytest.raises(memplat.InvalidArgumentError):
        memplat.attach(pages)  # type: ignore[arg-type]
    handle = memory.share(pages)
    copy = pickle.loads(pickle.dumps(handle))
    for call in (copy.fileno, copy.revoke, copy.wait):
        with pytest.raises(memplat.HandleError):
            call()
    handle.fileno()
    with pytest.raises(memplat.HandleError):
        pickle.dumps(handle)
    here, there = socket.socketpair()
    with here, there:
        for fd in (*os.pipe(), os.dup(here.fileno()), socket.socket().detach()):
            with pytest.raises(memplat.InvalidArgumentError):
                memplat.attach(memplat.Handle.from_fd(fd))
    handle.revoke()
    assert refs(memory, pages) == 1
    memory.decref(pages)
    with pytest.raises(memplat.NotAllocatedError):
        memory.share(pages)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_handles_travel_through_multiprocessing(method: str) -> None:
    script = Path(__file__).with_name("pools.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script), method], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "sums": [120, 120, 120],
        "waited": True,
        "queue": 127,
        "codes": [0, 0],
        "inherited": True,
        "first": 7,
        "refs": 1,
    }


def test_many_threads_share_and_attach_at_once(memory: Memory) -> None:
    pages = memory.allocate(8 * PAGE)
    handles: list[memplat.Handle] = []

    def work() -> None:
        for _ in range(20):
            handle = memory.share(pages)
            memplat.attach(handle).release()
            handles.append(handle)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(handles) == 80
    assert all(handle.wait(20) for handle in handles)
    assert refs(memory, pages) == 1
    memory.decref(pages)


def test_arrays_take_a_share_as_it_is(memory: Memory) -> None:
    try:
        import numpy as np
    except ImportError:
        needs("numpy", "it is not installed")
    pages = memory.allocate(4 * PAGE)
    handle = memory.share(pages, writable=True)
    array = np.frombuffer(memplat.attach(handle), dtype=np.int64)
    array[:] = np.arange(len(array))
    mine = np.frombuffer(memory.view(pages), dtype=np.int64)
    assert (mine == array).all()
    assert not array.flags.owndata
    part = array[10:20]
    del array
    assert not handle.wait(0)
    del part
    assert handle.wait(20)
    del mine
    memory.decref(pages)


def test_arrow_buffers_take_a_share_as_it_is(memory: Memory) -> None:
    try:
        pyarrow = importlib.import_module("pyarrow")
    except ImportError:
        needs("pyarrow", "it is not installed")
    pages = memory.allocate(PAGE, fill=b"hello")
    handle = memory.share(pages)
    view = memplat.attach(handle)
    buffer = pyarrow.py_buffer(view)
    del view
    assert buffer.size == PAGE
    assert buffer.slice(0, 5).to_pybytes() == b"hello"
    assert not handle.wait(0)
    del buffer
    assert handle.wait(20)
    memory.decref(pages)


def test_tensors_take_a_share_as_it_is(memory: Memory) -> None:
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        needs("torch", "it is not installed")
    pages = memory.allocate(2 * PAGE)
    handle = memory.share(pages, writable=True)
    tensor = torch.frombuffer(memplat.attach(handle), dtype=torch.int64)
    tensor[:] = torch.arange(len(tensor))
    assert memory.view(pages).cast("q").tolist() == list(range(2 * PAGE // 8))
    part = tensor[10:20]
    del tensor
    assert not handle.wait(0)
    del part
    assert handle.wait(20)
    read_only = memplat.attach(memory.share(pages))
    with pytest.warns(UserWarning, match="not writable"):  # torch knows no tensors that are read-only
        assert int(torch.frombuffer(read_only, dtype=torch.int64)[100]) == 100
    del read_only
    memory.decref(pages)


def test_a_forked_child_attaches_but_cannot_speak_for_the_owner(memory: Memory) -> None:
    pages = memory.allocate(PAGE, fill=b"hello")
    handle = memory.share(pages)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            try:
                handle.revoke()
            except memplat.ForkedError:
                os.write(write, bytes(memplat.attach(handle)[:5]))
        finally:
            os._exit(0)
    os.close(write)
    assert os.read(read, 16) == b"hello"
    os.close(read)
    os.waitpid(child, 0)
    assert handle.wait(20)
    memory.decref(pages)


def test_strangers_at_the_door_get_nothing(memory: Memory) -> None:
    pages = memory.allocate(PAGE)
    handle = memory.share(pages)
    for word in (b"", b"short", b"x" * 16, b"x" * 100):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
            stranger.connect(handle._address)
            stranger.send(word)
            assert stranger.recv(64) in (b"", b"unknown")
    assert refs(memory, pages) == 2
    assert handle.revoke()
    memory.decref(pages)


def test_what_a_peer_commits_by_looking_is_counted_exactly(memory: Memory) -> None:
    pages = memory.allocate(16 * PAGE, owner=5)
    assert memory.update_usage().total == 0
    with memplat.attach(memory.share(pages)) as view:
        assert sum(view[:: 4 * PAGE]) == 0
    usage = memory.update_usage()
    assert usage.exact
    assert usage.total == memory.total_usage() == usage.committed_by_owner[5]["anonymous"] == 4 * PAGE
    memory.decref(pages)


def test_an_owner_without_a_free_descriptor_turns_peers_away_and_goes_on(memory: Memory) -> None:
    pages = memory.allocate(PAGE, fill=b"hello")
    memplat.attach(memory.share(pages)).release()  # the service runs by now
    handles = [memory.share(pages), memory.share(pages)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    to_child, from_child = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        try:
            os.read(to_child[0], 1)
            try:
                memplat.attach(handles[0])
            except memplat.HandleExpiredError:
                os.write(from_child[1], b"refused")
                os.read(to_child[0], 1)
                os.write(from_child[1], bytes(memplat.attach(handles[1])[:5]))
        finally:
            os._exit(0)
    os.close(from_child[1])
    fill: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                fill.append(os.dup(to_child[0]))
        os.write(to_child[1], b"-")
        assert os.read(from_child[0], 16) == b"refused"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fill:
            os.close(fd)
    os.write(to_child[1], b"-")
    assert os.read(from_child[0], 16) == b"hello"
    os.waitpid(child, 0)
    for fd in (*to_child, from_child[0]):
        os.close(fd)
    assert handles[1].wait(20)
    assert handles[0].revoke()
    assert refs(memory, pages) == 1
    memory.decref(pages)


def test_memories_that_a_process_has_met_leave_no_descriptors_behind() -> None:
    def watched() -> int:
        found = 0
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):
                found += "pidfd" in os.readlink(f"/proc/self/fd/{name}")
        return found

    before = watched()
    for _ in range(5):
        with memplat.open("memfd", max_size=64 << 20) as memory, memory.block(PAGE) as block:
            memplat.attach(memory.share(block)).release()
    assert watched() <= before + 1, "one a process: this one has attached what it has shared"


class _Failing:
    """What an iterator gives, but no memory for this thread."""

    def __init__(self, real: Iterator[int]) -> None:
        self._real = real
        self._thread = threading.get_ident()

    def __next__(self) -> int:
        if threading.get_ident() == self._thread:
            raise MemoryError
        return next(self._real)


@pytest.mark.parametrize("step", ["numbers", "_order"])
def test_a_share_that_fails_halfway_drops_its_own_reference_once(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    pages = memory.allocate(PAGE)
    first = memory.share(pages)
    memplat.attach(first).release()
    assert first.wait(20)
    serving = service.running()
    assert serving is not None
    for _ in range(2):
        monkeypatch.setattr(serving, step, _Failing(getattr(serving, step)))
        with pytest.raises(MemoryError):
            memory.share(pages)
        monkeypatch.undo()
        assert refs(memory, pages) == 1
        handle = memory.share(pages)
        memplat.attach(handle).release()
        assert handle.wait(20)
        memory.reclaim()
        assert refs(memory, pages) == 1
    assert not memory._shares.living  # type: ignore[attr-defined]
    memory.decref(pages)


def test_nothing_is_left_behind(memory: Memory) -> None:
    pages = memory.allocate(PAGE)
    handle = memory.share(pages)
    memplat.attach(handle).release()
    assert handle.wait(20)
    before = sorted(os.listdir("/proc/self/fd"))
    maps = Path("/proc/self/maps").read_text().count("memfd")
    for _ in range(10):
        handle = memory.share(pages)
        view = memplat.attach(handle)
        view.release()
        del view
        assert handle.wait(20)
    del handle
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert Path("/proc/self/maps").read_text().count("memfd") == maps
    memory.decref(pages)


def test_a_share_that_expires_in_months_leaves_the_service_alive(memory: Memory) -> None:
    pages = memory.allocate(PAGE, fill=b"hello")
    later = memory.share(pages, expires=90 * 86_400)
    with memplat.attach(memory.share(pages)) as view:  # the service has seen the far deadline by now
        assert bytes(view[:5]) == b"hello"
    with memplat.attach(memory.share(pages)) as view:
        assert bytes(view[:5]) == b"hello"
    assert later.revoke()
    memory.decref(pages)
