"""Other processes: the peer that gets the descriptor, and the child that a check runs in."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final

import attrs

from memplat.conformance import peer as peer_script

#: A stuck peer must not hold up the suite for ever.
_ANSWER_SECONDS: Final = 60.0
#: For writing down where the threads of a child stand that is about to be killed.
_STACKS_SECONDS: Final = 1.0


class Peer:
    """The client's side of ``peer.py``. The process is started with the first request, and again should it be gone."""

    def __init__(self) -> None:
        self._connection: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process unless it runs. Before a fork, so that children find it running."""
        if self._connection is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(Path(peer_script.__file__)), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        ours.settimeout(_ANSWER_SECONDS)
        self._connection = ours

    def stop(self) -> None:
        """Hang up, and wait for the process to end; idempotent."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.wait(_ANSWER_SECONDS)
            self._process = None

    def share(self, fd: int) -> PeerFile:
        """Hand a descriptor to the peer."""
        return PeerFile(self, int(self.request("keep", fd=fd)))

    def forget(self) -> None:
        """Have the peer let go of all that it holds, if it runs."""
        if self._connection is not None:
            self.request("drop_all")

    def request(self, name: str, *arguments: object, fd: int | None = None) -> Any:
        """Have the peer do something.

        :raises OSError: what the peer got from its kernel, with the same ``errno``
        """
        self.start()
        assert self._connection is not None, "start() has connected"
        packet = json.dumps([name, arguments]).encode()
        socket.send_fds(self._connection, [packet], [] if fd is None else [fd])
        answer = json.loads(self._connection.recv(peer_script.PACKET))
        if "errno" in answer:
            raise OSError(answer["errno"], f"in the other process: {answer['message']}")
        return answer["value"]


@attrs.frozen
class PeerFile:
    """A file that the peer has the descriptor of. Ranges are whole pages."""

    peer: Peer
    handle: int

    def map(self) -> int:
        """Map the file as large as it is now, and keep it mapped; its size."""
        return int(self.peer.request("map_all", self.handle))

    def poke(self, start: int, length: int, text: str) -> None:
        """Fill pages with *text* through a mapping."""
        self.peer.request("poke", self.handle, start, length, text)

    def peek(self, start: int, length: int) -> bytes:
        """The first 32 bytes of pages, through a mapping."""
        return str(self.peer.request("peek", self.handle, start, length)).encode("latin-1")

    def load(self, start: int, length: int) -> None:
        """Read a byte of each page through a mapping."""
        self.peer.request("load", self.handle, start, length)

    def pwrite(self, start: int, text: str) -> None:
        """Write by system call."""
        self.peer.request("pwrite", self.handle, start, text)

    def punch(self, start: int, length: int) -> None:
        """Give pages back to the host."""
        self.peer.request("punch", self.handle, start, length)

    def truncate(self, size: int) -> None:
        """Change the file's size."""
        self.peer.request("truncate", self.handle, size)

    def seal(self, seals: int) -> None:
        """Add seals."""
        self.peer.request("seal", self.handle, seals)

    def execute(self, length: int) -> None:
        """Map the front of the file executable."""
        self.peer.request("execute", self.handle, length)

    def drop(self) -> None:
        """Have the peer close it."""
        self.peer.request("drop", self.handle)


# ---- children --------------------------------------------------------------------------------------------------------


@attrs.frozen
class ChildResult:
    """How a child ended: with a value, or in one of the ways in which it has none."""

    value: Any = None
    error: str = ""
    """``SIGBUS …``, a hang, a refusal; empty if there is a value."""


def run_in_child(function: Callable[[], Any], seconds: float) -> ChildResult:
    """Call *function* in a forked child and return what it returned; what happens there stays there.

    Signals have their default dispositions in the child, so that a page that cannot be supplied kills it. A child that
    takes longer than *seconds* is killed, and the error shows where its threads stood.
    """
    reading, writing = os.pipe()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stacks:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads: the child uses none of theirs
            pid = os.fork()
        if not pid:
            os.close(reading)
            _be_child(function, writing, stacks)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            data = _read_until(pipe, time.monotonic() + seconds)
            if data is None:
                os.kill(pid, signal.SIGUSR1)
                _read_until(pipe, time.monotonic() + _STACKS_SECONDS)
                os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if data is None:
            stacks.seek(0)
            return ChildResult(error=f"it hangs: stopped after {seconds:g} s at\n{stacks.read().strip()}")
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        meaning = {"SIGBUS": ": the host could not supply a page", "SIGSEGV": ": a page was not mapped as promised"}
        return ChildResult(error=f"{name} killed the process{meaning.get(name, '')}")
    if not data:
        return ChildResult(error=f"the process ended with status {os.WEXITSTATUS(status)} and said nothing")
    return ChildResult(value=pickle.loads(data))  # noqa: S301 -- written by our own child


def _read_until(pipe: IO[bytes], deadline: float) -> bytes | None:
    """All that comes until the other end is closed, ``None`` if that is not before *deadline*."""
    parts: list[bytes] = []
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([pipe], [], [], left)[0]:
            break
        part = os.read(pipe.fileno(), 1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)
    return None


def _be_child(function: Callable[[], Any], writing: int, stacks: IO[str]) -> None:
    status = 1
    try:
        faulthandler.disable()
        for number in (signal.SIGBUS, signal.SIGSEGV):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGBUS, signal.SIGSEGV})
        # Not dump_traceback_later(): its thread does not survive a fork, and it waits for that of the parent.
        faulthandler.register(signal.SIGUSR1, file=stacks)
        data = pickle.dumps(function())
        while data:
            data = data[os.write(writing, data) :]
        status = 0
    except BaseException:  # noqa: BLE001 -- nothing of the parent may run on in the child, whatever happens
        with contextlib.suppress(Exception):
            sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


@contextlib.contextmanager
def stopped_child(function: Callable[[], Any]) -> Iterator[tuple[int, Any]]:
    """A child that has called *function* and waits to be killed: its process number, and what *function* returned.

    :raises RuntimeError: if *function* raised
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        os.close(reading)
        try:
            os.write(writing, pickle.dumps(function()))
            os.close(writing)
            signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as pipe:
            data = pipe.read()
        if not data:
            raise RuntimeError("the child ended before it said anything")
        yield pid, pickle.loads(data)  # noqa: S301 -- written by our own child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


__all__ = ["ChildResult", "Peer", "PeerFile", "run_in_child", "stopped_child"]
