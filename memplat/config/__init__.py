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
coercing in silence, ``layers.py`` lays the layers upon each other and remembers where each value comes from;
``inforce.py`` is what comes of that. ``checking.py`` lists all that is wrong with a file, and ``schema.py`` writes the
definitions down as a JSON schema.
"""

from __future__ import annotations

from memplat.config.checking import check, memory_tables
from memplat.config.document import Document, find_document
from memplat.config.inforce import BackendItem, Config
from memplat.config.layers import RESERVED_NAMES, load, plugins_disabled, profile_names
from memplat.config.schema import SCHEMA_FILE, as_text, document_schema
from memplat.config.source import Origin, Setting, Source, nearest

__all__ = [
    "RESERVED_NAMES",
    "SCHEMA_FILE",
    "BackendItem",
    "Config",
    "Document",
    "Origin",
    "Setting",
    "Source",
    "as_text",
    "check",
    "document_schema",
    "find_document",
    "load",
    "memory_tables",
    "nearest",
    "plugins_disabled",
    "profile_names",
]
