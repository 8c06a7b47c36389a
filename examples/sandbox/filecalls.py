"""The system calls on files: read-only, and only what lies in directories that the user has named."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections import Counter
from collections.abc import Callable
from typing import IO

import attrs

from examples.sandbox.frames import FRAME, CachedFile, PageCache
from examples.sandbox.virtual import VirtualMemory

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_MOST_IO = 1 << 20
_MOST_FILES = 1024
_STAT = struct.Struct("<QQQIIIIQqqqQQQQQQ24x")


class RefusedError(Exception):
    """The guest gets an errno."""

    def __init__(self, number: int) -> None:
        self.number = number


@attrs.define
class OpenFile:
    """What a descriptor of the guest stands for."""

    file: CachedFile | None = None
    stream: IO[bytes] | None = None
    offset: int = 0


@attrs.define
class Outcome:
    """How a program has ended."""

    status: int
    killed_by: str = ""
    missing: Counter[str] = attrs.field(factory=Counter)
    """Calls that got ENOSYS, by number, and paths that were refused."""
    calls: int = 0
    faults: int = 0
    shared_pages: int = 0
    copied_pages: int = 0
    taken_over_pages: int = 0


def signed(value: int, bits: int = 32) -> int:
    """A register as a signed number."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


class FileCalls:
    """The calls, and what they need of a sandbox."""

    virtual: VirtualMemory
    outcome: Outcome
    _cache: PageCache
    _roots: list[str]
    _program: str
    _files: dict[int, OpenFile]

    def _file(self, fd: int) -> OpenFile:
        try:
            return self._files[fd & 0xFFFF_FFFF]
        except KeyError:
            raise RefusedError(errno.EBADF) from None

    def _path(self, directory: int, address: int) -> str:
        """A path of the host that the guest may read."""
        path = os.fsdecode(self.virtual.read_string(address))
        if not path.startswith("/") and signed(directory) != _AT_FDCWD:
            raise RefusedError(errno.ENOTDIR)
        real = os.path.realpath(os.path.join("/", path))
        if real != self._program and not any(os.path.commonpath([root, real]) == root for root in self._roots):
            self.outcome.missing[f"path {path}"] += 1
            raise RefusedError(errno.ENOENT)
        return real

    def open(self, path: int, flags: int) -> int:
        return self.openat(_AT_FDCWD, path, flags)

    def openat(self, directory: int, path: int, flags: int) -> int:
        real = self._path(directory, path)
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            raise RefusedError(errno.EROFS)
        if not stat.S_ISREG(os.stat(real).st_mode):
            raise RefusedError(errno.EISDIR)
        return self._new_descriptor(OpenFile(file=self._cache.open(real)), 0)

    def _new_descriptor(self, file: OpenFile, first: int) -> int:
        fd = next((number for number in range(first, _MOST_FILES) if number not in self._files), None)
        if fd is None:
            raise RefusedError(errno.EMFILE)
        self._files[fd] = file
        return fd

    def close_descriptor(self, fd: int) -> int:
        self._file(fd)
        del self._files[fd & 0xFFFF_FFFF]
        return 0

    def dup(self, fd: int) -> int:
        return self._new_descriptor(self._file(fd), 0)

    def dup2(self, fd: int, new: int) -> int:
        self._files[new & 0xFFFF_FFFF] = self._file(fd)
        return new

    def fcntl(self, fd: int, command: int, argument: int) -> int:
        file = self._file(fd)
        if command in (0, 1030):  # F_DUPFD, F_DUPFD_CLOEXEC
            return self._new_descriptor(file, argument)
        return 0

    def read(self, fd: int, address: int, length: int) -> int:
        file = self._file(fd)
        length = min(length, _MOST_IO)
        data = self._take(file, file.offset, length)
        self.virtual.write(address, data)
        file.offset += len(data)
        return len(data)

    def pread(self, fd: int, address: int, length: int, offset: int) -> int:
        data = self._take(self._file(fd), offset, min(length, _MOST_IO))
        self.virtual.write(address, data)
        return len(data)

    @staticmethod
    def _take(file: OpenFile, offset: int, length: int) -> bytes:
        if file.file is not None:
            return file.file.read(offset, length)
        return b"" if file.stream is None or not file.stream.readable() else file.stream.read(length)

    def write(self, fd: int, address: int, length: int) -> int:
        stream = self._file(fd).stream
        if stream is None or not stream.writable():
            raise RefusedError(errno.EBADF)
        data = self.virtual.read(address, min(length, _MOST_IO))
        stream.write(data)
        return len(data)

    def readv(self, fd: int, vector: int, count: int) -> int:
        return self._vector(self.read, fd, vector, count)

    def writev(self, fd: int, vector: int, count: int) -> int:
        return self._vector(self.write, fd, vector, count)

    def _vector(self, call: Callable[[int, int, int], int], fd: int, vector: int, count: int) -> int:
        done = 0
        words = struct.unpack(f"<{2 * count}Q", self.virtual.read(vector, 16 * count)) if 0 < count <= 1024 else ()
        for base, length in zip(words[::2], words[1::2], strict=True):
            moved = call(fd, base, length) if length else 0
            done += moved
            if moved < length:
                break
        return done

    def sendfile(self, to: int, fd: int, offset: int, length: int) -> int:
        source, stream = self._file(fd), self._file(to).stream
        if source.file is None or stream is None or offset:
            raise RefusedError(errno.EINVAL)
        data = self._take(source, source.offset, min(length, _MOST_IO))
        stream.write(data)
        source.offset += len(data)
        return len(data)

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        file = self._file(fd)
        if file.file is None:
            raise RefusedError(errno.ESPIPE)
        start = {os.SEEK_SET: 0, os.SEEK_CUR: file.offset, os.SEEK_END: file.file.size}.get(whence)
        if start is None or start + signed(offset, 64) < 0:
            raise RefusedError(errno.EINVAL)
        file.offset = start + signed(offset, 64)
        return file.offset

    def stat(self, path: int, buffer: int) -> int:
        return self._put_stat(os.stat(self._path(_AT_FDCWD, path)), buffer)

    def fstat(self, fd: int, buffer: int) -> int:
        file = self._file(fd)
        return self._put_stat(None if file.file is None else file.file.stat, buffer)

    def newfstatat(self, directory: int, path: int, buffer: int, flags: int) -> int:
        if flags & _AT_EMPTY_PATH and not self.virtual.read_string(path):
            return self.fstat(directory, buffer)
        return self._put_stat(os.stat(self._path(directory, path)), buffer)

    def _put_stat(self, found: os.stat_result | None, buffer: int) -> int:
        """struct stat; that of a pipe without *found*."""
        size, mode, inode, seconds = (0, stat.S_IFIFO | 0o600, 1, 0)
        if found is not None:
            size, mode, inode, seconds = found.st_size, found.st_mode & ~0o222, found.st_ino, int(found.st_mtime)
        times = (seconds, 0) * 3
        data = _STAT.pack(1, inode, 1, mode, 1000, 1000, 0, 0, size, FRAME, -(-size // 512), *times)
        self.virtual.write(buffer, data)
        return 0

    def access(self, path: int, mode: int) -> int:
        os.stat(self._path(_AT_FDCWD, path))
        return -errno.EROFS if mode & os.W_OK else 0

    def readlink(self, path: int, buffer: int, size: int) -> int:
        if self.virtual.read_string(path) != b"/proc/self/exe":
            raise RefusedError(errno.EINVAL)
        data = os.fsencode(self._program)[:size]
        self.virtual.write(buffer, data)
        return len(data)

    def readlinkat(self, _directory: int, path: int, buffer: int, size: int) -> int:
        return self.readlink(path, buffer, size)

    def getcwd(self, buffer: int, _size: int) -> int:
        self.virtual.write(buffer, b"/\0")
        return 2

    def ioctl(self, fd: int) -> int:
        self._file(fd)
        raise RefusedError(errno.ENOTTY)
