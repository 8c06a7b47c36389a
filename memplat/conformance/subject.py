"""What is tested: one backend with one set of options."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

import attrs

from memplat import config, opening, plugins
from memplat.errors import ConfigError
from memplat.memory import Memory
from memplat.types import Availability, BackendInfo, Capability, EngineOptions

#: What the options may hold beside those of the backend: what every memory has.
_ENGINE: Final = frozenset(field.name for field in attrs.fields(EngineOptions))


class Subject:
    """A backend, by its name or as the plugin itself, and its options.

    No configuration file has a say: what is tested is what is written here.

    :ivar options: options of the backend; those that every memory has are passed on, too
    :ivar without: capabilities that the backend declares and that these options switch off
    :ivar title: what to call it in reports
    """

    def __init__(
        self,
        backend: object,
        options: Mapping[str, Any] | None = None,
        title: str = "",
        *,
        without: Collection[Capability | str] = (),
    ) -> None:
        self.backend = backend
        self.options = dict(options or {})
        self.without = frozenset(map(Capability, without))
        self._loaded: plugins.Backend | None = None
        self.title = title or self.name

    @property
    def name(self) -> str:
        """The name of the backend; of a plugin that cannot be asked, the name of its class."""
        if isinstance(self.backend, str):
            return self.backend
        return self._loaded.name if self._loaded is not None else type(self.backend).__name__

    def load(self) -> plugins.Backend:
        """The backend, imported and checked.

        :raises PluginError: if it breaks the contract
        :raises UnknownBackendError: if no plugin has that name
        """
        if self._loaded is None:
            loaded = plugins.load(self.backend) if isinstance(self.backend, str) else plugins.load_object(self.backend)
            self._loaded = loaded
        return self._loaded

    @property
    def info(self) -> BackendInfo:
        """What the backend says about itself."""
        return self.load().info

    @property
    def declared(self) -> frozenset[Capability]:
        """The capabilities that have to be there: with these options."""
        return self.info.capabilities - self.without

    def own_options(self) -> Any:
        """The instance of the backend's options class that its hooks get; ``None`` if it has no such class.

        :raises ConfigError: if the options do not suit it
        """
        self.load()
        settings = config.load(self.backend, config=self._document(), backend_names={self.name}, environ={})
        return settings.backend_options(self.name, self.info.options)

    def availability(self) -> Availability | None:
        """What ``memplat_check`` says of these options.

        :raises ConfigError: if the options do not suit the backend
        """
        hooks = plugins.hooks_of(plugins.build_manager(self.load().plugin))
        return hooks.memplat_check(options=self.own_options())

    def open(self, **engine_options: Any) -> Memory:
        """Open a memory.

        :raises MemplatError: as :func:`memplat.open`
        """
        self.load()
        general = {name: value for name, value in self.options.items() if name in _ENGINE}
        return opening.open(self.backend, config=self._document(), **{**general, **engine_options})

    def adopt(self, fd: int, **engine_options: Any) -> Memory:
        """Have the backend take over an open, empty file.

        :raises MemplatError: as :func:`memplat.adopt`
        """
        return opening.adopt(fd, backend=self.backend, **engine_options)

    def _document(self) -> dict[str, Any]:
        """The backend's own options as a configuration has them: sizes may be text."""
        own = {name: value for name, value in self.options.items() if name not in _ENGINE}
        if own and self.info.options is None:
            raise ConfigError(f"{self.name} has no options of its own, but was given {', '.join(sorted(own))}")
        return {"memory": {self.name: own}} if own else {}


__all__ = ["Subject"]
