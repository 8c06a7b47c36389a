"""Making a file that has no name, not even for a process that is killed halfway."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from typing import Final

#: Whatever begins like this and belongs to this user may be removed by anybody at any time: its maker has it open.
_PREFIX: Final = ".memplat-unnamed-"

#: What open(2) says to O_TMPFILE where the file system (EOPNOTSUPP), the kernel (EISDIR, ENOENT) or both do not know
#: it.
_NO_TMPFILE: Final = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL})


def create(directory: str) -> int:
    """A descriptor of an empty file in *directory*: no name, mode 0600, close-on-exec.

    open(2): O_TMPFILE "Create an unnamed temporary regular file"; with O_EXCL it "prevents a temporary file from being
    linked into the filesystem in the above manner". Elsewhere it is made and unlinked, which cannot be undone either;
    what a process left behind that was killed between the two is empty, and removed by the next one.

    :raises OSError: ENOENT, ENOTDIR, EACCES, EROFS, ENOSPC
    """
    try:
        return os.open(directory, os.O_TMPFILE | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as reason:
        if reason.errno not in _NO_TMPFILE or not os.path.isdir(directory):
            raise
    _sweep(directory)
    fd, path = tempfile.mkstemp(prefix=_PREFIX, dir=directory)
    with contextlib.suppress(FileNotFoundError):  # somebody swept
        os.unlink(path)
    return fd


def _sweep(directory: str) -> None:
    """Remove what a killed process left behind."""
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(_PREFIX):
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                        os.unlink(entry.path)
