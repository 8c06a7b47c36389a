"""Asking a backend whether it can be used here, and for a file: what a stranger's hooks return is not trusted."""

from __future__ import annotations

import mmap
import os
from typing import Any

from memplat.errors import PluginError
from memplat.hookspecs import BackendHooks
from memplat.plugins.loading import Backend
from memplat.types import Availability, BackingFile


def ask_available(backend: Backend, hooks: BackendHooks, options: Any) -> Availability:
    """Whether the backend can be used here, with these options.

    :raises PluginError: if its ``memplat_check`` raises, or returns what the contract does not allow
    """
    try:
        available = hooks.memplat_check(options=options)
    except Exception as error:
        raise broken(backend, "memplat_check", f"raised {say(error)}") from error
    if not isinstance(available, Availability):
        raise broken(backend, "memplat_check", f"returned {available!r}, which is no Availability")
    return available


def checked_file(backend: Backend, file: object, hooks: BackendHooks) -> BackingFile:
    """The file, if it is what the engine relies on before it touches it.

    :raises PluginError: if not; then it is closed
    """
    if not isinstance(file, BackingFile):
        raise broken(backend, "memplat_create_file", f"returned {file!r}, which is no BackingFile")
    problem = ""
    if file.backend != backend.name:
        problem = f"returned a file with backend={file.backend!r} instead of {backend.name!r}"
    elif not _is_page_size(file.page_size):
        problem = f"returned a file with page_size={file.page_size!r}; allowed are powers of two from {mmap.PAGESIZE}"
    elif type(file.fd) is not int or not _is_open(file.fd):
        problem = f"returned a file with fd={file.fd!r}, which is no open descriptor"
    if problem:
        if type(file.fd) is int and _is_open(file.fd):
            hooks.memplat_close_file(file=file)
        raise broken(backend, "memplat_create_file", problem)
    return file


def _is_page_size(size: object) -> bool:
    return type(size) is int and size >= mmap.PAGESIZE and size & (size - 1) == 0


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except (OSError, OverflowError):
        return False
    return True


def broken(backend: Backend, hook: str, problem: str) -> PluginError:
    """The error for a hook that breaks the contract."""
    return PluginError(
        f"plugin {backend.name!r} ({backend.source}), hook {hook!r}: it {problem}. "
        f"Remedy: mend the plugin, or name another backend",
        plugin=backend.name,
        hook=hook,
    )


def say(error: BaseException) -> str:
    """An exception in a line."""
    return f"{type(error).__name__}: {error}"


__all__ = ["ask_available", "broken", "checked_file", "say"]
