"""Platform memory for sandboxes, emulators and virtual machines: pages of one host file that can be allocated,
counted, mapped, measured exactly and given back.

Each name here has its home in one module, which is imported when the name is first used: importing the package alone
imports no backend, no plugin machinery and no library of the command line.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memplat.engine.registry import accounting, memories
    from memplat.errors import (
        AccessError,
        AddressSpaceError,
        BackendUnavailableError,
        ClosedError,
        ConfigError,
        DoubleFreeError,
        ForeignBlockError,
        ForkedError,
        GuestDiedError,
        HandleError,
        HandleExpiredError,
        HandleUsedError,
        HostError,
        InterruptedMemoryError,
        InvalidArgumentError,
        InvalidKindError,
        InvalidLengthError,
        InvalidOwnerError,
        InvalidRangeError,
        MemplatError,
        MisalignedRangeError,
        NotAllocatedError,
        NotMappedError,
        OutOfMemory,
        PluginError,
        ReentrantCallError,
        ReferenceOverflowError,
        TooManyMappingsError,
        UnknownBackendError,
        UnsealedFileError,
    )
    from memplat.hookspecs import hookimpl
    from memplat.memory import AddressSpace, Block, Memory
    from memplat.opening import adopt, open  # noqa: A004
    from memplat.ranges import FileRange, format_size, parse_size
    from memplat.sharing import Handle, attach
    from memplat.types import (
        Access,
        AllocationMode,
        AllocationRequest,
        Availability,
        BackendInfo,
        BackingFile,
        Candidate,
        Capability,
        Direction,
        EngineOptions,
        MemoryKind,
        Numa,
        NumaPolicy,
        PageInfo,
        PageState,
        ReclaimMode,
        SelectedBackend,
        Storage,
        Usage,
    )

    __version__: str
    core: str

__all__ = [
    "Access",
    "AccessError",
    "AddressSpace",
    "AddressSpaceError",
    "AllocationMode",
    "AllocationRequest",
    "Availability",
    "BackendInfo",
    "BackendUnavailableError",
    "BackingFile",
    "Block",
    "Candidate",
    "Capability",
    "ClosedError",
    "ConfigError",
    "Direction",
    "DoubleFreeError",
    "EngineOptions",
    "FileRange",
    "ForeignBlockError",
    "ForkedError",
    "GuestDiedError",
    "Handle",
    "HandleError",
    "HandleExpiredError",
    "HandleUsedError",
    "HostError",
    "InterruptedMemoryError",
    "InvalidArgumentError",
    "InvalidKindError",
    "InvalidLengthError",
    "InvalidOwnerError",
    "InvalidRangeError",
    "Memory",
    "MemoryKind",
    "MemplatError",
    "MisalignedRangeError",
    "NotAllocatedError",
    "NotMappedError",
    "Numa",
    "NumaPolicy",
    "OutOfMemory",
    "PageInfo",
    "PageState",
    "PluginError",
    "ReclaimMode",
    "ReentrantCallError",
    "ReferenceOverflowError",
    "SelectedBackend",
    "Storage",
    "TooManyMappingsError",
    "UnknownBackendError",
    "UnsealedFileError",
    "Usage",
    "__version__",
    "accounting",
    "adopt",
    "attach",
    "core",
    "format_size",
    "hookimpl",
    "memories",
    "open",
    "parse_size",
]

#: Where the names live that are no errors: most public names are.
_HOMES = {
    "memplat.engine.registry": ("accounting", "memories"),
    "memplat.hookspecs": ("hookimpl",),
    "memplat.memory": ("AddressSpace", "Block", "Memory"),
    "memplat.opening": ("adopt", "open"),
    "memplat.ranges": ("FileRange", "format_size", "parse_size"),
    "memplat.sharing": ("Handle", "attach"),
    "memplat.types": (
        "Access",
        "AllocationMode",
        "AllocationRequest",
        "Availability",
        "BackendInfo",
        "BackingFile",
        "Candidate",
        "Capability",
        "Direction",
        "EngineOptions",
        "MemoryKind",
        "Numa",
        "NumaPolicy",
        "PageInfo",
        "PageState",
        "ReclaimMode",
        "SelectedBackend",
        "Storage",
        "Usage",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = _OWN[name]() if name in _OWN else _from_home(name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _from_home(name: str) -> object:
    return getattr(importlib.import_module(_HOME_OF.get(name, "memplat.errors")), name)


def _version() -> str:
    from importlib import metadata  # slow to import: only for those who ask

    try:
        return metadata.version("memplat")
    except metadata.PackageNotFoundError:
        return "0+unknown"  # a source tree that is not installed


def _core_name() -> str:
    from memplat._core import NAME

    return NAME


_OWN = {"__version__": _version, "core": _core_name}
