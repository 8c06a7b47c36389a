"""What the host offers, what the configuration comes to on it, and all that could be mended."""

from __future__ import annotations

import enum
import itertools
import shutil
from collections.abc import Iterator
from typing import Any, Final

import attrs

from memplat.backends.hugetlb.pool import Pool, find_pool
from memplat.config import Origin
from memplat.doctor.candidates import Row, Survey, survey
from memplat.doctor.findings import Finding, Mending, State
from memplat.doctor.host import examine_host
from memplat.doctor.kernel import examine_kernel
from memplat.doctor.places import examine_places
from memplat.linux import system
from memplat.ranges import format_size

_AREA: Final = "configuration"


@attrs.frozen
class Diagnosis:
    """All of it. The command line shows it, and adds nothing."""

    findings: tuple[Finding, ...]
    survey: Survey

    @property
    def taken(self) -> Row | None:
        """The backend that ``memplat.open`` would take."""
        return self.survey.taken

    @property
    def asked_by(self) -> str:
        """Who said which backends are wanted."""
        return str(self.survey.config.settings["backend"].source)

    def mendings(self) -> list[Mending]:
        """What could be mended: that of the wanted backends first, each remedy once."""
        found = [Mending(f"{row.name}: {row.reason}", row.remedy) for row in self.survey.wanted if row.remedy]
        found += [Mending(f"{each.name}: {each.says}", each.remedy) for each in self.findings if each.remedy]
        first: dict[str, Mending] = {}
        for each in found:
            first.setdefault(each.how, each)
        return list(first.values())

    def settings(self) -> list[dict[str, Any]]:
        """Every value in force that is no default, and who said so."""
        return [
            {"key": key, "value": _plain(setting.value), "source": str(setting.source)}
            for key, setting in self.survey.config.settings.items()
            if setting.source.origin is not Origin.DEFAULT
        ]

    def as_dict(self) -> dict[str, Any]:
        """All of it in plain values."""
        config = self.survey.config
        return {
            "findings": [attrs.asdict(finding) for finding in self.findings],
            "configuration": {
                "file": config.document.file if config.document is not None else None,
                "profile": config.profile,
                "asked": [row.name for row in self.survey.wanted],
                "asked_by": self.asked_by,
                "taken": self.taken.name if self.taken else None,
                "candidates": [row.as_dict() for row in self.survey.wanted],
                "settings": self.settings(),
            },
            "mend": [attrs.asdict(each) for each in self.mendings()],
        }


def diagnose(config: str | None, profile: str | None) -> Diagnosis:
    """Look at the host, and do what :func:`memplat.open` would do, but for opening a memory.

    :raises ConfigError: if the configuration cannot be used; the options of a backend count if it would be reached
    :raises PluginError: if an extension that it names cannot be loaded
    """
    found = survey(config, profile)
    for row in itertools.takewhile(lambda row: not row.selected, found.wanted):
        if row.error is not None:
            raise row.error
    wanted = [row.options.directory for row in found.wanted if row.name == "tmpfile" and row.options is not None]
    places = examine_places(directory for directory in wanted if directory is not None)
    findings = (*examine_host(), *examine_kernel(), *places, *_examine_sizes(found))
    return Diagnosis(findings, found)


def _examine_sizes(found: Survey) -> Iterator[Finding]:
    """Whether the host has what the configuration allows a memory to grow to."""
    max_size = found.config.engine.max_size
    if max_size is None:
        return
    for row in found.wanted:
        if row.name == "hugetlb" and row.options is not None:
            pool = find_pool(row.options.page_size, row.options.mount)
            if isinstance(pool, Pool):
                yield _pool_for(max_size, pool)
    name = found.taken.name if found.taken is not None else ""
    if name == "memfd":
        host = system.host_memory()
        yield _compare(max_size, "RAM and swap", host.ram + host.swap, "less max_size, or more swap")
    if name == "tmpfile" and found.taken is not None:
        place = found.taken.options.place()
        free = shutil.disk_usage(place).free
        yield _compare(max_size, f"what is free in {place}", free, "less max_size, or directory = one with more room")
    limit = min((level.limit for level in system.memory_cgroups() if level.limit is not None), default=None)
    if limit is not None:
        yield _compare(max_size, "the memory cgroup's limit", limit, "less max_size, or a higher limit (MemoryMax=)")
    if (limit := system.address_space_limit()) is not None:
        yield _compare(max_size, "the address space", limit, "ulimit -v unlimited")


def _pool_for(max_size: int, pool: Pool) -> Finding:
    pages = -(-max_size // pool.page_size)
    return _compare(max_size, "what is left of the huge pages", pool.available(), pool.remedy(pages))


def _compare(max_size: int, what: str, there_is: int, remedy: str) -> Finding:
    data = {"max_size": max_size, "there_is": there_is}
    if max_size <= there_is:
        says = f"{format_size(max_size)}, within {what}, {format_size(there_is)}"
        return Finding(_AREA, "max_size", State.GOOD, says, data=data)
    says = f"{format_size(max_size)} is more than {what}, {format_size(there_is)}"
    return Finding(_AREA, "max_size", State.LIMITED, says, remedy, data)


def _plain(value: Any) -> Any:
    """A value as JSON can have it."""
    if isinstance(value, enum.Enum):
        return value.value
    if attrs.has(type(value)):
        return attrs.asdict(value, value_serializer=lambda _, __, inner: _plain(inner))
    if isinstance(value, list | tuple | set | frozenset):
        return sorted(value) if isinstance(value, set | frozenset) else [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str | dict | None) else str(value)


__all__ = ["Diagnosis", "diagnose"]
