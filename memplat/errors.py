"""The error tree.

Divided by whose act caused the error: the caller's argument (:class:`InvalidArgumentError` and the page-state
errors), the host's shortage (:class:`OutOfMemory`, :class:`HostError`), the configuration
(:class:`ConfigError`, :class:`BackendUnavailableError`) or a plugin (:class:`PluginError`).

Every class is a :class:`MemplatError` and also the builtin that a Python user would expect. An error raised by a call
on a memory means that the call changed nothing, unless the class says otherwise.
"""

from __future__ import annotations


class MemplatError(Exception):
    """The root of all errors that memplat raises on purpose."""


class InvalidArgumentError(MemplatError, ValueError):
    """An argument that no state of the memory would make valid: a wrong type, an unknown name, a wrong shape."""


class InvalidLengthError(InvalidArgumentError):
    """A length that is zero, negative, absurdly large, or no multiple of the page size."""


class InvalidRangeError(InvalidArgumentError):
    """A range that is empty, reversed, negative, or outside of the backing file."""


class MisalignedRangeError(InvalidRangeError):
    """A range that does not start and end on page boundaries where pages change hands."""


class InvalidKindError(InvalidArgumentError):
    """A kind that does not exist, or that cannot be allocated from a backing file (``mapped``)."""


class InvalidOwnerError(InvalidArgumentError):
    """An owner that is no integer from 0 to 2**32 - 1."""


class ForeignBlockError(InvalidArgumentError):
    """A block that belongs to another memory."""


class NotAllocatedError(MemplatError, LookupError):
    """Pages that nobody holds a reference to were referenced, looked at, or handed over."""


class DoubleFreeError(NotAllocatedError):
    """A reference was dropped that nobody holds: the pages are free, waste, or only kept by a view."""


class ReferenceOverflowError(MemplatError, OverflowError):
    """A page would have more than 2**31 - 1 references."""


class ClosedError(MemplatError, ValueError):
    """The memory, or the block, was closed before the call."""


class ForkedError(MemplatError, RuntimeError):
    """A memory of the parent process was used in a forked child, where it allows only ``view`` and ``close``."""


class ReentrantCallError(MemplatError, RuntimeError):
    """A finalizer, a weak reference's callback or a signal handler called a memory while it had interrupted a call of
    the same thread on the same memory. Only ``decref``, and dropping views and blocks, can be done there.
    """


class InterruptedMemoryError(MemplatError, RuntimeError):
    """An exception from outside (KeyboardInterrupt, one that a signal handler raised) has cut a change of the memory's
    pages off halfway. Nobody knows any more which pages are free: every call but ``close`` is refused, views go on.
    """


class OutOfMemory(MemplatError, MemoryError):  # noqa: N818 -- the contract's name, after MemoryError
    """The request cannot be met: by ``max_size``, by an owner's limit, or by the host.

    Raised only after waste was reclaimed and the out-of-memory hook was asked (by an owner's limit: after the hook, and
    by ``transfer`` at once). What was allocated before is intact.

    :ivar requested: the bytes that were asked for
    :ivar limit: the limit that was hit in bytes, or ``None`` where the host refused
    :ivar used: the bytes in use against that limit, or ``None``
    :ivar owner: the owner whose limit was hit, or ``None``
    """

    def __init__(
        self,
        message: str,
        *,
        requested: int = 0,
        limit: int | None = None,
        used: int | None = None,
        owner: int | None = None,
    ) -> None:
        super().__init__(message)
        self.requested = requested
        self.limit = limit
        self.used = used
        self.owner = owner


class HandleError(MemplatError, RuntimeError):
    """A handle of shared pages that cannot be used so, here."""


class HandleUsedError(HandleError):
    """A handle that was attached before: each attaches once."""


class HandleExpiredError(HandleError):
    """A handle that nobody attached in time, that was revoked, or whose memory or process is gone."""


class UnsealedFileError(MemplatError, PermissionError):
    """A writable share of a file that the peer could truncate under us, without ``trusted=True``."""


class AddressSpaceError(MemplatError, RuntimeError):
    """An address space cannot do what it was asked for; its mappings are as before."""


class NotMappedError(AddressSpaceError, LookupError):
    """Addresses of a guest that nothing is mapped at, or that lie outside of the region that may be mapped."""


class AccessError(AddressSpaceError, PermissionError):
    """A mapping that would be writable and executable without having been asked for, or a store to read-only pages."""


class TooManyMappingsError(AddressSpaceError):
    """The address space has no slot left for one more mapping."""


class GuestDiedError(AddressSpaceError):
    """The process that was the address space has ended; all of its mappings are gone, and their references dropped.

    :ivar status: its exit status, the negative number of the signal that killed it, or ``None`` if unknown
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class HostError(MemplatError, OSError):
    """A system call failed in a way that the caller has to know of; ``errno`` is the host's.

    After a failed :meth:`Memory.write` or :meth:`Memory.flush` part of the data may have been written.
    """


class ConfigError(MemplatError, ValueError):
    """A configuration that cannot be used: an unknown key, a wrong type, an impossible value, a missing profile.

    :ivar file: the file, or ``None`` for arguments and environment variables
    :ivar line: the line in it, or ``None`` if unknown
    :ivar key: the dotted key, or ``None``
    """

    def __init__(
        self, message: str, *, file: str | None = None, line: int | None = None, key: str | None = None
    ) -> None:
        where = ":".join(str(part) for part in (file, line) if part is not None)
        super().__init__(": ".join(part for part in (where, key, message) if part))
        self.file = file
        self.line = line
        self.key = key


class UnknownBackendError(ConfigError, LookupError):
    """No installed plugin has that name."""


class BackendUnavailableError(MemplatError, OSError):
    """None of the backends that were asked for can be used here; the message lists each one with reason and remedy."""


class PluginError(MemplatError, RuntimeError):
    """A plugin cannot be loaded, breaks the hook contract, or returned what the contract does not allow.

    :ivar plugin: the plugin's name
    :ivar hook: the hook's name, or ``None``
    """

    def __init__(self, message: str, *, plugin: str, hook: str | None = None) -> None:
        super().__init__(message)
        self.plugin = plugin
        self.hook = hook


__all__ = [
    "AccessError",
    "AddressSpaceError",
    "BackendUnavailableError",
    "ClosedError",
    "ConfigError",
    "DoubleFreeError",
    "ForeignBlockError",
    "ForkedError",
    "GuestDiedError",
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
    "MemplatError",
    "MisalignedRangeError",
    "NotAllocatedError",
    "NotMappedError",
    "OutOfMemory",
    "PluginError",
    "ReentrantCallError",
    "ReferenceOverflowError",
    "TooManyMappingsError",
    "UnknownBackendError",
    "UnsealedFileError",
]
