"""The backend ``memfd``: anonymous memory with a descriptor, sealed against shrinking. memfd_create(2).

The kernel's own memory overcommit decides whether touching an ``UNCOMMITTED`` page succeeds, as for all memory of a
process; ``RESERVED`` pages are there when ``allocate`` returns. Everything that is not said here is
:mod:`memplat.backends.default`'s.

Transparent huge pages, option ``huge``:

- ``never``: none, also where the host would give them unasked.
- ``advise``: a first touch takes 2 MiB where the host allows it (``shmem_enabled``).
- ``collapse``: whole 2 MiB regions that are reserved or committed become one huge page each, even where
  ``shmem_enabled`` is ``never``. Regions that are touched page by page do not.
"""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Generator, Sequence
from typing import Final

import attrs

from memplat.hookspecs import hookimpl
from memplat.linux import files, memory, names, shmem, system
from memplat.linux.shmem import Probe
from memplat.ranges import HUGE_PAGE_SIZE, FileRange, align_down, align_up
from memplat.types import AllocationMode, Availability, BackendInfo, BackingFile, Capability, Extents

NAME: Final = "memfd"

#: Not F_SEAL_FUTURE_WRITE: it would forbid the owner to punch.
_SEALS: Final = files.F_SEAL_SHRINK | files.F_SEAL_SEAL

_SETTING: Final = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"


class HugePages(enum.StrEnum):
    """When transparent huge pages are taken."""

    NEVER = "never"
    ADVISE = "advise"
    COLLAPSE = "collapse"


#: Not MADV_NOHUGEPAGE where collapsing is wanted: it would forbid that, too.
_ADVICE: Final = {HugePages.NEVER: memory.MADV_NOHUGEPAGE, HugePages.ADVISE: memory.MADV_HUGEPAGE}


@attrs.frozen
class MemfdOptions:
    """The options of the backend."""

    name: str = attrs.field(
        default="memplat", validator=names.check_name, metadata={"schema": {"maxLength": names.MAX_NAME_BYTES}}
    )
    """Shown in /proc/PID/fd and /proc/PID/maps as ``memfd:NAME``."""
    seal: bool = attrs.field(default=True, validator=attrs.validators.instance_of(bool))
    """Forbid everybody to make the file smaller."""
    huge: HugePages = attrs.field(default=HugePages.NEVER, converter=HugePages)
    """When transparent huge pages are taken."""
    probe: Probe = attrs.field(default=Probe.AUTO, converter=Probe)
    """Which interface of the kernel is asked first what is committed: ``pagemap_scan``, ``cachestat``, ``seek_data``.
    """


@hookimpl
def memplat_backend_info() -> BackendInfo:
    """Memory with a descriptor."""
    return BackendInfo(
        name=NAME,
        version="1.0",
        contract_level=1,
        summary="anonymous memory with a descriptor, sealed against shrinking",
        capabilities=frozenset(
            {
                Capability.RESERVE,
                Capability.SHARE,
                Capability.SEAL,
                Capability.SWAP_EXACT,
                Capability.SUB_PAGE_DECOMMIT,
                Capability.EXECUTE,
            }
        ),
        options=MemfdOptions,
        default_mode=AllocationMode.UNCOMMITTED,
    )


@hookimpl
def memplat_check(options: MemfdOptions | None) -> Availability:
    """Available on every Linux; the reason tells what becomes of the wish for huge pages."""
    effective, reason, remedy = huge_decision(options.huge if options is not None else HugePages.NEVER)
    return Availability(True, f"huge pages: {effective}, {reason}", remedy)


def huge_decision(wanted: HugePages) -> tuple[HugePages, str, str]:
    """What is effective here, why, and the remedy where that is not what was wanted."""
    setting = system.shmem_huge_pages()
    told = f"shmem_enabled is {setting or 'unknown'}"
    if wanted is HugePages.NEVER:
        return wanted, "as configured", ""
    if wanted is HugePages.ADVISE:
        if setting in ("advise", "always", "within_size", "force"):
            return wanted, f"{told}: a first touch takes 2 MiB", ""
        return HugePages.NEVER, f"though advise is configured: {told}", f"echo advise > {_SETTING}"
    if setting == "deny":
        return HugePages.NEVER, f"though collapse is configured: {told}", f"echo never > {_SETTING}"
    if not setting:
        return HugePages.NEVER, "though collapse is configured: the kernel has no transparent huge pages", ""
    if not system.kernel_features()["collapse"]:
        return HugePages.NEVER, "though collapse is configured: the kernel has no MADV_COLLAPSE", "Linux 6.1 or later"
    return wanted, "of 2 MiB regions that are reserved or committed as a whole", ""


@hookimpl
def memplat_create_file(options: MemfdOptions | None) -> BackingFile:
    """An empty memfd: mode 0600, close-on-exec, not executable as a program, sealed as configured."""
    chosen = options if options is not None else MemfdOptions()
    fd = files.memfd(chosen.name)
    try:
        if chosen.seal:
            files.add_seals(fd, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    is_default = chosen.probe is Probe.AUTO
    return BackingFile(fd=fd, page_size=system.PAGE_SIZE, backend=NAME, state=chosen, is_shmem=is_default)


@hookimpl
def memplat_mapped(file: BackingFile, start: int, end: int) -> bool:
    """Tell the kernel whether first touches may take 2 MiB. One without huge pages refuses, and need not be told."""
    advice = _ADVICE.get(_options(file).huge)
    if file.address is not None and advice is not None:
        with contextlib.suppress(OSError):
            memory.madvise(file.address + start, end - start, advice)
    return True


@hookimpl
def memplat_probe_committed(file: BackingFile, start: int, end: int) -> Extents:
    """The cheapest way that is proven to be exact, or the one that was configured."""
    probe = _options(file).probe
    extents, file.probe_method = shmem.committed_extents(file.fd, start, end, file.address, file.size, probe)
    return extents


@hookimpl(wrapper=True)
def memplat_reserve(file: BackingFile, ranges: Sequence[FileRange]) -> Generator[None, bool | None, bool | None]:
    """After the default has reserved the pages: collapse, if so configured. Reserved they are, also if that fails."""
    result = yield
    if _options(file).huge is HugePages.COLLAPSE and file.address is not None:
        for pages in ranges:
            _collapse(file.address, pages)
    return result


def _collapse(address: int, pages: FileRange) -> None:
    """Make huge pages of the 2 MiB regions in *pages*, which all have storage.

    madvise(2): MADV_COLLAPSE "Perform a best-effort synchronous collapse of the native pages mapped by the memory range
    into Transparent Huge Pages"; it "ignores any sysfs setting".
    """
    start, end = align_up(pages.start, HUGE_PAGE_SIZE), align_down(pages.end, HUGE_PAGE_SIZE)
    if start < end:
        with contextlib.suppress(OSError):  # no contiguous memory, say: the small pages serve as well
            memory.populate_write(address + start, end - start)
            memory.madvise(address + start, end - start, memory.MADV_COLLAPSE)


def _options(file: BackingFile) -> MemfdOptions:
    """The options that the file was created with; the defaults for one that was adopted."""
    return file.state if isinstance(file.state, MemfdOptions) else MemfdOptions()
