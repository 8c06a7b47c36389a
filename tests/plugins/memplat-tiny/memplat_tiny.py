"""A backend in ten lines: everything that it does not say has a default."""

import mmap
import os

from memplat import BackendInfo, BackingFile, hookimpl


@hookimpl
def memplat_backend_info() -> BackendInfo:
    """Say who it is."""
    return BackendInfo(name="tiny", version="1.2.0")


@hookimpl
def memplat_create_file() -> BackingFile:
    """Create an empty file that nobody else can open."""
    return BackingFile(fd=os.memfd_create("tiny"), page_size=mmap.PAGESIZE, backend="tiny")
