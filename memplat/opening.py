"""Open a memory: from configuration, plugins and engine to something that can be used."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import mmap
import os
import stat
from collections.abc import Mapping, Sequence
from typing import Any, Final

from memplat import config as configuration
from memplat import plugins
from memplat.engine import placement
from memplat.engine.compiled import CompiledMemoryFile
from memplat.engine.memoryfile import MemoryFile
from memplat.engine.prealloc import Progress
from memplat.errors import BackendUnavailableError, InvalidArgumentError, PluginError
from memplat.hookspecs import hookimpl
from memplat.linux import files, filesystems
from memplat.memory import Memory
from memplat.types import Availability, BackingFile, Candidate, EngineOptions, SelectedBackend
from memplat.wording import shown

_log = logging.getLogger("memplat")

#: Seals that would keep the memory from growing, or its owner from writing or punching.
_CRIPPLING_SEALS: Final = files.F_SEAL_GROW | files.F_SEAL_WRITE | files.F_SEAL_FUTURE_WRITE


def open(  # noqa: A001 -- the contract's name: memplat.open
    backend: object = None,
    *,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    profile: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Memory:
    """Open a memory on the first backend of a preference list that can be used here.

    :param backend: a name, or a list of names in order of preference; in place of a name also the plugin itself
        (a module, an object, a class). Without it the configuration says, and without one of those it is ``memfd``.
    :param config: a TOML file, or a mapping of the same shape; else ``MEMPLAT_CONFIG`` and the user's own file count
    :param profile: the profile of the configuration
    :param progress: is called with the bytes that ``prealloc`` has committed by now and with those that it shall, some
        times a second; an exception from it ends the work, closes the memory and propagates
    :param options: override the configuration. Options of every memory (the fields of :class:`EngineOptions`, and
        ``extensions`` and ``plugins``) and flat options that at least one listed backend has; options of one backend
        can be nested: ``memfd={"name": "x"}``
    :raises ConfigError: if the configuration cannot be used
    :raises UnknownBackendError: if no plugin has one of the names
    :raises BackendUnavailableError: if none of the backends can be used here; says why not, and what would help
    :raises PluginError: if an extension, or the only backend that was asked for, is broken
    """
    asked = _Selection(backend, config, profile, options, os.environ, progress)
    for item in asked.config.backends:
        try:
            memory = asked.attempt(item)
        except PluginError as error:
            if len(asked.config.backends) == 1:
                raise
            asked.refuse(item, str(error))
            continue
        if memory is not None:
            asked.log_choice()
            return memory
    raise BackendUnavailableError(f"no backend can be used here: {asked.describe()}")


def adopt(fd: int, *, backend: object = "memfd", progress: Progress | None = None, **options: Any) -> Memory:
    """Take over an open, empty file: for processes that may no longer create any.

    The backend's hooks are used, except those that look for or create a file. No configuration file is read, and no
    ``MEMPLAT_BACKEND``: what is to count is said by the arguments, which are those of :func:`open`.

    :param fd: a regular file, readable, writable and empty. It becomes the memory's, and close-on-exec, unless an error
        is raised: then it is left open and as it was (one that is sealed against shrinking may have become longer).
    :param backend: whose file it is: a name, or the plugin itself
    :raises InvalidArgumentError: if *fd* is no such file
    """
    if isinstance(backend, list | tuple):
        raise InvalidArgumentError(f"adopt() takes one backend, the one whose file it is, not {shown(backend)}")
    page_size = _page_size_of_adoptable(fd)
    policy = {name: value for name, value in os.environ.items() if name == "MEMPLAT_DISABLE_PLUGINS"}
    asked = _Selection("memfd" if backend is None else backend, {}, None, options, policy, progress)
    return asked.adopt(fd, page_size)


class _Selection:
    """What was asked for, and what came of each candidate."""

    def __init__(
        self,
        backend: object,
        config: Any,
        profile: str | None,
        options: Mapping[str, Any],
        environ: Mapping[str, str],
        progress: Progress | None,
    ) -> None:
        self._progress = progress
        self._given = {id(item): plugins.load_object(item) for item in _plugins_among(backend)}
        names = {record.name for record in plugins.list_plugins()}
        names |= {given.name for given in self._given.values()}
        self.config = configuration.load(
            backend, config=config, profile=profile, options=options, backend_names=names, environ=environ
        )
        self._policy = plugins.Policy(self.config.plugins_disabled, self.config.allowed_plugins)
        self._extensions = [
            plugins.load_extension(extension, self._policy).plugin for extension in self.config.extensions
        ]
        self._candidates: list[Candidate] = []
        self._check_flat_options()

    def attempt(self, item: object) -> MemoryFile | None:
        """A memory on this backend; ``None``, with the reason noted, if it cannot be had here.

        :raises PluginError: if the plugin is broken
        :raises ConfigError: if its options are wrong
        """
        backend = self._load(item)
        own_options = self.config.backend_options(backend.name, backend.info.options)
        manager = plugins.build_manager(backend.plugin, self._extensions)
        hooks = plugins.hooks_of(manager)
        available = plugins.ask_available(backend, hooks, own_options)
        if not available.available:
            self.refuse(item, available.reason, available.remedy)
            return None
        try:
            file = hooks.memplat_create_file(options=own_options)
        except Exception as error:  # noqa: BLE001 -- the contract: whatever it raises is the reason not to take it
            self.refuse(item, f"cannot create its file: {plugins.say(error)}")
            return None
        try:
            return self._construct(backend, plugins.checked_file(backend, file, hooks), own_options, manager, available)
        except (OSError, MemoryError) as error:
            self.refuse(item, f"cannot be opened: {plugins.say(error)}")
            return None

    def adopt(self, fd: int, page_size: int) -> MemoryFile:
        """A memory on the user's own file."""
        backend = self._load(self.config.backends[0])
        own_options = self.config.backend_options(backend.name, backend.info.options)
        manager = plugins.build_manager(backend.plugin, self._extensions)
        custody = _Custody()
        manager.register(custody)
        file = BackingFile(fd=fd, page_size=page_size, backend=backend.name)
        try:
            memory = self._construct(backend, file, own_options, manager, Availability(True, "adopted"))
        except BaseException:
            with contextlib.suppress(OSError):  # one that is sealed against shrinking keeps its size
                os.ftruncate(fd, 0)
            raise
        manager.unregister(custody)
        os.set_inheritable(fd, False)
        return memory

    def refuse(self, item: object, reason: str, remedy: str = "") -> None:
        """Note why a backend is not taken."""
        given = self._given.get(id(item))
        name = given.name if given else str(item)
        self._candidates.append(Candidate(name, False, reason, remedy, self._source(item)))

    def describe(self) -> str:
        """Every candidate with its reason."""
        return "; ".join(f"{candidate.name}: {_why(candidate)}" for candidate in self._candidates)

    def log_choice(self) -> None:
        """Say what was asked, what was taken, and why; louder if it was not the first choice."""
        level = logging.INFO if len(self._candidates) == 1 else logging.WARNING
        if _log.isEnabledFor(level):
            setting = self.config.settings["backend"]
            asked = ", ".join(item if isinstance(item, str) else repr(item) for item in setting.value)
            taken = self._candidates[-1]
            _log.log(
                level, "memplat: asked for %s (%s), took %s: %s", asked, setting.source, taken.name, self.describe()
            )

    def _construct(
        self, backend: plugins.Backend, file: BackingFile, own_options: Any, manager: Any, available: Availability
    ) -> MemoryFile:
        """The memory; takes *file* over, whatever happens."""
        hooks = plugins.hooks_of(manager)
        taken = Candidate(backend.name, True, available.reason, available.remedy, backend.source)
        selected = SelectedBackend(backend.info, own_options, (*self._candidates, taken))
        try:
            options = engine_options(self.config, file.page_size)
        except BaseException:
            hooks.memplat_close_file(file=file)
            raise
        memory = CompiledMemoryFile(file, hooks, selected, options, manager, self._progress)
        try:
            hooks.memplat_memory_opened(memory=memory)
        except BaseException:
            memory.close()
            raise
        self._candidates.append(taken)
        return memory

    def _load(self, item: object) -> plugins.Backend:
        given = self._given.get(id(item))
        return given if given is not None else plugins.load(str(item), self._policy)

    def _source(self, item: object) -> str:
        given = self._given.get(id(item))
        if given is not None:
            return given.source
        return next((record.source for record in plugins.list_plugins() if record.name == item), "")

    def _check_flat_options(self) -> None:
        """Flat options make it necessary to look at all listed backends; one that is broken might have had them."""
        if not self.config.flat:
            return
        classes = {}
        for item in self.config.backends:
            try:
                backend = self._load(item)
            except PluginError:
                return
            classes[backend.name] = backend.info.options
        self.config.check_flat(classes)


def engine_options(config: configuration.Config, page_size: int) -> EngineOptions:
    """The engine's options, judged by the backend's page size and by what the host has.

    :raises ConfigError: if they cannot be had here
    """
    options = config.engine_for(page_size)
    if options.numa is not None and (why := placement.refuse(options.numa)):
        raise config.settings["numa"].source.error(why)
    return options


class _Custody:
    """Keeps an adopted file open while it is not certain that the memory will own it."""

    @hookimpl(tryfirst=True)
    def memplat_close_file(self) -> bool:
        """Leave the user's file alone."""
        return True


def _plugins_among(backend: object) -> Sequence[object]:
    """The plugins that were given in place of names. What is neither is refused with the configuration."""
    items = backend if isinstance(backend, list | tuple) else (backend,)
    return [item for item in items if item is not None and not isinstance(item, str | int | float | Mapping | list)]


def _why(candidate: Candidate) -> str:
    reason = candidate.reason or ("available" if candidate.taken else "no reason given")
    return f"{reason} (remedy: {candidate.remedy})" if candidate.remedy else reason


def _page_size_of_adoptable(fd: object) -> int:
    """The page size of a file that can be adopted.

    :raises InvalidArgumentError: if it cannot be
    """
    if type(fd) is not int or fd < 0:
        raise InvalidArgumentError(f"fd={shown(fd)} is no descriptor: an integer from 0 is allowed")
    try:
        status, flags = os.fstat(fd), fcntl.fcntl(fd, fcntl.F_GETFL)
    except (OSError, OverflowError) as error:
        raise InvalidArgumentError(f"fd={shown(fd)} is no open descriptor: {error}") from error
    problem = ""
    if not stat.S_ISREG(status.st_mode):
        problem = f"is a {stat.filemode(status.st_mode)[0]!r} file; only regular files can be adopted"
    elif flags & os.O_ACCMODE != os.O_RDWR or flags & os.O_PATH:
        problem = "is not open for reading and writing; open it with O_RDWR"
    elif flags & os.O_APPEND:
        problem = "is open with O_APPEND, which pwrite(2) obeys whatever the offset; open it without"
    elif status.st_size or status.st_blocks:
        problem = (
            f"is not empty: {status.st_size} bytes long, {status.st_blocks * 512} allocated; truncate it to 0 first"
        )
    elif seals := _crippling_seals(fd):
        problem = f"is sealed ({seals:#x}) against growing or writing; adopt it before it is sealed"
    if problem:
        raise InvalidArgumentError(f"fd={fd} {problem}")
    file_system = filesystems.file_system(fd)
    return file_system.block_size if file_system.magic == filesystems.HUGETLBFS_MAGIC else mmap.PAGESIZE


def _crippling_seals(fd: int) -> int:
    try:
        return files.get_seals(fd) & _CRIPPLING_SEALS
    except OSError as error:
        if error.errno == errno.EINVAL:  # a file that cannot have any
            return 0
        raise


__all__ = ["adopt", "engine_options", "open"]
