"""Reading, writing and syncing the backing file by system call: an error instead of a signal."""

from __future__ import annotations

import errno
import os
from typing import Final

from memplat.engine.state import EngineState, host_error
from memplat.errors import HostError
from memplat.linux import memory as host
from memplat.types import Capability

#: The most that one read(2) or write(2) transfers (man 2 read, NOTES).
_MAX_TRANSFER: Final = 0x7FFFF000


class HostIO:
    """The backing file as a file. Offsets are checked already; the pages are held by the caller."""

    def __init__(self, state: EngineState) -> None:
        self._state = state
        self._writable = True  # False once the file turned out to know no write(2): hugetlbfs

    def read(self, start: int, end: int) -> bytes:
        """The bytes of ``[start, end)``. A hole is zeros, and stays one.

        :raises HostError: the host cannot supply a page, or a peer has truncated the file
        """
        parts = []
        fd = self._state.file.fd
        while start < end:
            try:
                data = os.pread(fd, min(end - start, _MAX_TRANSFER), start)
            except OSError as error:
                raise host_error(error, f"read at {start}") from error
            if not data:
                raise HostError(errno.EIO, f"read at {start}: a peer has truncated the backing file")
            parts.append(data)
            start += len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, offset: int, data: memoryview) -> None:
        """The file gets *data*, from *offset* on; through the mapping where it knows no write(2).

        :raises OSError: the host cannot supply a page; a part may have been written
        """
        while data and self._writable:
            try:
                written = os.pwrite(self._state.file.fd, data[:_MAX_TRANSFER], offset)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
                self._writable = False
            else:
                offset += written
                data = data[written:]
        if data:
            self._state.mapping.store(offset, data)

    def flush(self) -> None:
        """fdatasync(2), where there is a disk.

        :raises HostError: the disk failed, or is full
        """
        if Capability.FLUSH not in self._state.backend.info.capabilities:
            return
        try:
            os.fdatasync(self._state.file.fd)
        except OSError as error:
            raise host_error(error, "flush") from error

    def settle_ima(self) -> None:
        """Map one page executable while the file is empty: IMA measures a file when it is first mapped so, and would
        read all of its holes. Not fatal when refused.
        """
        host.ima_workaround(self._state.file.fd, self._state.file.page_size)
