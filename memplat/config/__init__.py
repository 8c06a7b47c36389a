"""The configuration: which backend, with which options, and who said so.

Layers, each overriding those before it, key by key:

1. the defaults;
2. one TOML file: the ``config=`` argument (a path, or a mapping of the same shape), else ``MEMPLAT_CONFIG``, else
   ``$XDG_CONFIG_HOME/memplat/memplat.toml`` (``~/.config`` where the variable is unset). The working directory is never
   looked at, because a configuration chooses which plugin runs;
3. in that file the ``[profile.NAME.memory]`` tables of the profile that was asked for;
4. ``MEMPLAT_BACKEND``, for ``backend`` alone: a name, or names separated by commas;
5. the arguments of :func:`memplat.open`.

``document.py`` reads TOML and knows the line of each key, ``structure.py`` turns plain values into typed ones without
coercing in silence, ``layers.py`` lays the layers upon each other and remembers where each value comes from.
"""

from __future__ import annotations

from memplat.config.document import Document, find_document
from memplat.config.layers import RESERVED_NAMES, BackendItem, Config, load, profile_names
from memplat.config.source import Origin, Setting, Source, nearest

__all__ = [
    "RESERVED_NAMES",
    "BackendItem",
    "Config",
    "Document",
    "Origin",
    "Setting",
    "Source",
    "find_document",
    "load",
    "nearest",
    "profile_names",
]
