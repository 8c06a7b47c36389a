"""Every installed plugin, and what would come of it here, as configured: all that :func:`memplat.open` does with a
backend until it has a file, which is given back at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import attrs

from memplat import config as configuration
from memplat.backends.hugetlb.pool import Pool, find_pool
from memplat.engine import placement
from memplat.errors import ConfigError, MemplatError
from memplat.linux import filesystems, system
from memplat.opening import engine_options
from memplat.plugins import (
    Backend,
    Extension,
    PluginRecord,
    Policy,
    ask_available,
    build_manager,
    checked_file,
    hooks_of,
    list_plugins,
    load,
    load_extension,
    say,
)
from memplat.ranges import format_size
from memplat.types import Availability, BackendInfo, BackingFile, EngineOptions

_AVAILABLE: Final = "available"


@attrs.frozen
class Row:
    """What there is to say of a plugin."""

    record: PluginRecord
    status: str
    """``available``, ``unavailable``, ``broken``, ``shut out`` by the policy, or ``extension``."""
    reason: str = ""
    remedy: str = ""
    info: BackendInfo | None = None
    preference: int | None = None
    """Its place in the configured list, from 1."""
    selected: bool = False
    """Whether it is the one that the configuration comes to."""
    options: Any = None
    """Its own options as configured, if they are right."""
    notes: tuple[str, ...] = ()
    """What is not effective here, though the backend can be used."""
    error: ConfigError | None = None
    """What is wrong with its options in the configuration."""

    @property
    def name(self) -> str:
        """Its name."""
        return self.record.name

    @property
    def version(self) -> str:
        """Of the backend if it could be asked, else of its distribution."""
        return self.info.version if self.info else self.record.version

    @property
    def capabilities(self) -> list[str]:
        """What it declares."""
        return sorted(self.info.capabilities) if self.info else []

    def as_dict(self) -> dict[str, Any]:
        """The row in plain values."""
        info = self.info
        return {
            "name": self.name,
            "version": self.version,
            "status": self.status,
            "available": self.status == _AVAILABLE,
            "reason": self.reason,
            "remedy": self.remedy,
            "capabilities": self.capabilities,
            "source": self.record.source,
            "entry_point": self.record.value,
            "summary": info.summary if info else "",
            "contract_level": info.contract_level if info else None,
            "default_mode": info.default_mode if info else None,
            "preference": self.preference,
            "selected": self.selected,
            "notes": list(self.notes),
        }


@attrs.frozen
class Survey:
    """A configuration, and what came of every plugin under it."""

    config: configuration.Config
    rows: tuple[Row, ...]

    @property
    def wanted(self) -> list[Row]:
        """The configured list, in its order."""
        return sorted((row for row in self.rows if row.preference), key=lambda row: row.preference or 0)

    @property
    def taken(self) -> Row | None:
        """The backend that the configuration comes to."""
        return next((row for row in self.rows if row.selected), None)


def survey(config: str | None, profile: str | None) -> Survey:
    """Look at every installed plugin; one that is broken is told of, and hides no other.

    :raises ConfigError: if the configuration itself cannot be used
    :raises PluginError: if one of its extensions cannot be
    """
    records = list_plugins()
    names = {record.name for record in records}
    settings = configuration.load(config=config, profile=profile, backend_names=names)
    policy = Policy(settings.plugins_disabled, settings.allowed_plugins)
    extensions = [load_extension(extension, policy) for extension in settings.extensions]
    rows = [_look_at(record, settings, policy, extensions) for record in records]
    wanted = [row for name in settings.backends for row in rows if row.name == name]
    taken = next((row for row in wanted if row.status == _AVAILABLE), None)
    return Survey(
        settings,
        tuple(
            attrs.evolve(row, preference=wanted.index(row) + 1, selected=row is taken) if row in wanted else row
            for row in rows
        ),
    )


def _look_at(
    record: PluginRecord, settings: configuration.Config, policy: Policy, extensions: Sequence[Extension]
) -> Row:
    if record.problem:
        return Row(record, "broken", record.problem)
    if refusal := policy.refusal(record):
        return Row(record, "shut out", refusal)
    try:
        backend = load(record.name, policy)
    except MemplatError as error:
        return Row(record, "extension") if _is_extension(record, policy) else Row(record, "broken", str(error))
    try:
        options = settings.backend_options(record.name, backend.info.options)
    except ConfigError as error:
        return Row(record, "unavailable", str(error), "mend the configuration", backend.info, error=error)
    return _try(record, backend, options, settings, extensions)


def _is_extension(record: PluginRecord, policy: Policy) -> bool:
    try:
        load_extension(record.name, policy)
    except MemplatError:
        return False
    return True


def _try(
    record: PluginRecord,
    backend: Backend,
    options: Any,
    settings: configuration.Config,
    extensions: Sequence[Extension],
) -> Row:
    """Ask the backend; and one that is wanted for a file, too."""
    hooks = hooks_of(build_manager(backend.plugin, [extension.plugin for extension in extensions]))
    row = Row(record, _AVAILABLE, info=backend.info, options=options)
    try:
        found = ask_available(backend, hooks, options)
        if not found.available:
            remedy = _pool_remedy(row, settings) or found.remedy
            return attrs.evolve(row, status="unavailable", reason=found.reason, remedy=remedy)
        row = attrs.evolve(row, reason=found.reason, remedy=found.remedy)
        if record.name not in settings.backends:
            return row
        try:
            made = hooks.memplat_create_file(options=options)
        except Exception as error:  # noqa: BLE001 -- as memplat.open: whatever it raises is the reason not to take it
            return attrs.evolve(row, status="unavailable", reason=f"cannot create its file: {say(error)}", remedy="")
        file = checked_file(backend, made, hooks)
    except MemplatError as error:
        return attrs.evolve(row, status="broken", reason=str(error), remedy="")
    try:
        return _judge(row, file, settings)
    finally:
        hooks.memplat_close_file(file=file)


def _pool_remedy(row: Row, settings: configuration.Config) -> str:
    """The command that makes the pool as large as the configuration wants it; empty if that is not what is wrong."""
    if row.name != "hugetlb" or isinstance(pool := find_pool(row.options.page_size, row.options.mount), Availability):
        return ""
    wanted = settings.engine.prealloc or settings.engine.max_size or pool.page_size
    return "" if pool.available() else pool.remedy(-(-wanted // pool.page_size))


def _judge(row: Row, file: BackingFile, settings: configuration.Config) -> Row:
    """Whether the engine could do with the file what is configured."""
    try:
        engine = engine_options(settings, file.page_size)
    except ConfigError as error:
        return attrs.evolve(row, status="unavailable", reason=str(error), remedy="mend the configuration", error=error)
    if (short := _shortage(row, file, engine)) is not None:
        return attrs.evolve(row, status="unavailable", reason=short[0], remedy=short[1])
    ignored = placement.why_ignored(file, engine.numa) if engine.numa is not None else ""
    return attrs.evolve(row, notes=(f"numa is not effective: {ignored}",)) if ignored else row


def _shortage(row: Row, file: BackingFile, engine: EngineOptions) -> tuple[str, str] | None:
    """Why ``prealloc`` cannot be committed when a built-in backend is opened, and what would help."""
    wanted = engine.prealloc
    if not wanted:
        return None
    asked = f"prealloc = {format_size(wanted)} cannot be had"
    lockable = placement.lockable() if engine.lock and row.name != "hugetlb" else None
    if lockable is not None and lockable < wanted:
        return f"{asked}: with lock, RLIMIT_MEMLOCK leaves {format_size(lockable)}", "ulimit -l unlimited"
    room = room_of(row, file.page_size, file.fd)
    if room is None or room >= wanted:
        return None
    if row.name == "hugetlb":
        pool = Pool(file.page_size, row.options.mount)
        return f"{asked}: {pool.figures()}", pool.remedy(wanted // file.page_size)
    return f"{asked}: {format_size(room)} is left", "less prealloc, or more memory"


def room_of(row: Row, page_size: int, fd: int) -> int | None:
    """The bytes that a built-in backend could still commit here; ``None`` for others, and where nobody knows."""
    if row.name == "hugetlb":
        return Pool(page_size, row.options.mount).available()
    if row.name == "tmpfile":
        return filesystems.file_system(fd).available
    return system.commit_headroom() if row.name == "memfd" else None


__all__ = ["Row", "Survey", "room_of", "survey"]
