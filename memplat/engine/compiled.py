"""The memory as it is made: where there is a compiled core, with its fast ways before the methods in Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memplat import _core
from memplat.engine.memoryfile import MemoryFile

if TYPE_CHECKING or _core.MODULE is None:
    CompiledMemoryFile = MemoryFile
else:

    class CompiledMemoryFile(_core.MODULE.Polls, MemoryFile):
        """A memory whose hot calls are compiled. What they do not do themselves, they leave to :class:`MemoryFile`."""

        def __init__(self, *args: Any) -> None:
            MemoryFile.__init__(self, *args)
            self._attach(self._state, self._reclaimer, self._shares, self._mapping, self._default_mode)
            self._attach_scanner(*self._scanner.parts(), self._state.file.fd)

    _core.MODULE.install(MemoryFile)
    _core.MODULE.install_polls(MemoryFile)
