"""The backend contract: the hooks that a backend implements, and the events that an extension may watch.

A backend is a module or an object whose functions carry :data:`hookimpl`. It must bring ``memplat_backend_info`` and
``memplat_create_file``; every other hook has a default that suits a file that can be punched
(``memplat/backends/default.py``). The smallest real backend::

    import os
    from memplat.hookspecs import hookimpl
    from memplat.types import BackendInfo, BackingFile

    @hookimpl
    def memplat_backend_info():
        return BackendInfo(name="tiny", version="1.0")

    @hookimpl
    def memplat_create_file(options):
        return BackingFile(fd=os.memfd_create("tiny"), page_size=4096, backend="tiny")

Rules for all hooks:

- They are called for assembly and for batches, never per page, and never with the engine's lock held. They may be
  called from any thread, two at a time for the same file.
- An implementation may leave out arguments that it does not need.
- All but the events are *firstresult*: the first implementation that returns something other than ``None`` answers.
- Extensions named in the configuration may wrap any hook (``@hookimpl(wrapper=True)``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import pluggy

from memplat.ranges import FileRange
from memplat.types import AllocationRequest, Availability, BackendInfo, BackingFile, Extents, Storage

if TYPE_CHECKING:
    from memplat.memory import Memory

PROJECT: Final = "memplat"
#: The plugin that implements every hook that has a default.
DEFAULTS: Final = "memplat.backends.default"

hookspec: Final = pluggy.HookspecMarker(PROJECT)
#: Marks a function as the implementation of the hook that it is named after.
hookimpl: Final = pluggy.HookimplMarker(PROJECT)


@hookspec(firstresult=True)
def memplat_backend_info() -> BackendInfo | None:
    """Say who the backend is. Required; called before everything else, must not touch the host.

    Example::

        @hookimpl
        def memplat_backend_info():
            return BackendInfo(name="mine", version="1.0", capabilities={"share"}, options=MyOptions)
    """


@hookspec(firstresult=True)
def memplat_check(options: Any) -> Availability | None:
    """Say whether the backend can be used here, as configured. The default says that it can.

    *options* is an instance of the class in ``BackendInfo.options``, or ``None``. Must leave nothing behind.

    Example::

        @hookimpl
        def memplat_check(options):
            if not os.path.isdir(options.directory):
                return Availability(False, f"{options.directory} is no directory", f"mkdir {options.directory}")
            return Availability(True)
    """


@hookspec(firstresult=True)
def memplat_create_file(options: Any) -> BackingFile | None:
    """Create an empty, unnamed, close-on-exec file, readable and writable by nobody else. Required.

    An exception means that the next backend of the user's list is tried; it is kept as the reason.

    Example::

        @hookimpl
        def memplat_create_file(options):
            fd = os.open(options.directory, os.O_TMPFILE | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
            return BackingFile(fd=fd, page_size=4096, backend="mine")
    """


@hookspec(firstresult=True)
def memplat_grow(file: BackingFile, size: int) -> bool | None:
    """Extend the file to *size* bytes and return True. A file that is so large already is success. Default: ftruncate.

    Must never make the file smaller. An ``OSError`` leaves the file as it was.

    Example::

        @hookimpl
        def memplat_grow(file, size):
            if os.fstat(file.fd).st_size < size:
                os.ftruncate(file.fd, size)
            return True
    """


@hookspec(firstresult=True)
def memplat_mapped(file: BackingFile, start: int, end: int) -> bool | None:
    """Advise the part ``[start, end)`` of the engine's mapping (at ``file.address + start``), which is new, and return
    True. Default: nothing.

    Example::

        @hookimpl
        def memplat_mapped(file, start, end):
            madvise(file.address + start, end - start, MADV_RANDOM)
            return True
    """


@hookspec(firstresult=True)
def memplat_reserve(file: BackingFile, ranges: Sequence[FileRange]) -> bool | None:
    """Make sure that touching these pages cannot fail, and return True. Default: ``fallocate(2)`` with mode 0.

    On ``OSError`` (``ENOSPC``, ``ENOMEM``) nothing stays reserved. Of a backend that says ``decommit_releases=False``,
    pages that were reserved or are committed stay reserved until they are decommitted: they are not asked for again.

    Example::

        @hookimpl
        def memplat_reserve(file, ranges):
            for pages in ranges:
                fallocate(file.fd, 0, pages.start, pages.length)
            return True
    """


@hookspec(firstresult=True)
def memplat_probe_committed(file: BackingFile, start: int, end: int) -> Extents | None:
    """The committed extents of ``[start, end)``: ``array('q', [start0, end0, start1, end1, …])``, page-aligned, sorted,
    disjoint, not touching each other. Committed is what the host spends storage on, in RAM or swapped out, whoever
    caused it. Pages that were reserved and never touched may be left out. Default: SEEK_DATA and SEEK_HOLE.

    The range may reach beyond ``file.size`` where a peer has grown the file, but not beyond the page that it ends in.

    Example::

        @hookimpl
        def memplat_probe_committed(file, start, end):
            return array("q", [offset for extent in list_extents(file.fd, start, end) for offset in extent])
    """


@hookspec(firstresult=True)
def memplat_probe_reserved(file: BackingFile, ranges: Sequence[FileRange]) -> Extents | None:
    """Which pages of *ranges*, all of them reserved by ``memplat_reserve``, cost storage; in the form of
    ``memplat_probe_committed``. Asked only for pages that the probe does not report. Default: cachestat(2) where the
    kernel has it, else all of them.

    Example::

        @hookimpl
        def memplat_probe_reserved(file, ranges):
            return array("q")  # my probe already reports reserved pages
    """


@hookspec(firstresult=True)
def memplat_storage(file: BackingFile) -> Storage | None:
    """What the host spends on the file. Default: ``st_blocks`` of one fstat, no overhead, nothing reserved.

    Example::

        @hookimpl
        def memplat_storage(file):
            return Storage(total=os.fstat(file.fd).st_blocks * 512)
    """


@hookspec(firstresult=True)
def memplat_decommit(file: BackingFile, ranges: Sequence[FileRange]) -> bool | None:
    """Make these pages uncommitted and zero, and return True. Default: FALLOC_FL_PUNCH_HOLE, in one system call a batch
    where the kernel can.

    After any exception the engine takes the whole batch as unknown: it probes, zeroes by hand what is still committed,
    counts it as retained and tries again later.

    Example::

        @hookimpl
        def memplat_decommit(file, ranges):
            for pages in ranges:
                fallocate(file.fd, PUNCH_HOLE | KEEP_SIZE, pages.start, pages.length)
            return True
    """


@hookspec(firstresult=True)
def memplat_close_file(file: BackingFile) -> bool | None:
    """Close the file and return True. Called exactly once. Default: close. Live views may still map it.

    Example::

        @hookimpl
        def memplat_close_file(file):
            os.close(file.fd)
            return True
    """


@hookspec(firstresult=True)
def memplat_out_of_memory(memory: Memory, request: AllocationRequest) -> bool | None:
    """A user's callback: an allocation failed although waste was reclaimed. Free something and return True to have it
    tried again. Never nested; not asked again unless something was freed.

    Example::

        @hookimpl
        def memplat_out_of_memory(memory, request):
            return cache.evict(request.length) > 0
    """


@hookspec
def memplat_memory_opened(memory: Memory) -> None:
    """Event: the memory is open.

    Example::

        @hookimpl
        def memplat_memory_opened(memory):
            log.info("opened %s", memory.backend.name)
    """


@hookspec
def memplat_memory_closed(memory: Memory) -> None:
    """Event: the memory was closed with ``close``; it refuses every call by now.

    Example::

        @hookimpl
        def memplat_memory_closed(memory):
            log.info("closed %s", memory.backend.name)
    """


@hookspec
def memplat_reclaimed(memory: Memory, nbytes: int, seconds: float) -> None:
    """Event: a batch of *nbytes* of waste went back to the host, in *seconds*.

    Example::

        @hookimpl
        def memplat_reclaimed(memory, nbytes, seconds):
            metrics.reclaimed.inc(nbytes)
    """


class BackendHooks(Protocol):
    """The caller's side of the hooks, as ``PluginManager.hook`` has it: keyword arguments only."""

    def memplat_backend_info(self) -> BackendInfo | None: ...
    def memplat_check(self, *, options: Any) -> Availability | None: ...
    def memplat_create_file(self, *, options: Any) -> BackingFile | None: ...
    def memplat_grow(self, *, file: BackingFile, size: int) -> bool | None: ...
    def memplat_mapped(self, *, file: BackingFile, start: int, end: int) -> bool | None: ...
    def memplat_reserve(self, *, file: BackingFile, ranges: Sequence[FileRange]) -> bool | None: ...
    def memplat_probe_committed(self, *, file: BackingFile, start: int, end: int) -> Extents | None: ...
    def memplat_probe_reserved(self, *, file: BackingFile, ranges: Sequence[FileRange]) -> Extents | None: ...
    def memplat_storage(self, *, file: BackingFile) -> Storage | None: ...
    def memplat_decommit(self, *, file: BackingFile, ranges: Sequence[FileRange]) -> bool | None: ...
    def memplat_close_file(self, *, file: BackingFile) -> bool | None: ...
    def memplat_out_of_memory(self, *, memory: Memory, request: AllocationRequest) -> bool | None: ...
    def memplat_memory_opened(self, *, memory: Memory) -> object: ...
    def memplat_memory_closed(self, *, memory: Memory) -> object: ...
    def memplat_reclaimed(self, *, memory: Memory, nbytes: int, seconds: float) -> object: ...


def answerer(hooks: BackendHooks, hook: str) -> str:
    """The name of the plugin that answers a hook first, if nobody wraps it; else empty. A caller that knows what this
    plugin does may do it himself.
    """
    caller = getattr(hooks, hook)
    found = caller.get_hookimpls() if isinstance(caller, pluggy.HookCaller) else []
    if not found or any(one.wrapper or one.hookwrapper for one in found):
        return ""
    return found[-1].plugin_name
