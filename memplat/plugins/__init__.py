"""Plugins: found by entry point, imported only when they are wanted, checked before anything of theirs runs.

``discovery.py`` lists what is installed without importing any of it; ``checks.py`` compares a plugin's functions with
the hook specifications; ``loading.py`` imports one plugin and assembles the plugin manager of one memory.
"""

from __future__ import annotations

from memplat.plugins.asking import ask_available, checked_file, say
from memplat.plugins.discovery import BUILT_IN, ENTRY_POINT_GROUP, PluginRecord, Policy, list_plugins
from memplat.plugins.loading import Backend, Extension, build_manager, hooks_of, load, load_extension, load_object

__all__ = [
    "BUILT_IN",
    "ENTRY_POINT_GROUP",
    "Backend",
    "Extension",
    "PluginRecord",
    "Policy",
    "ask_available",
    "build_manager",
    "checked_file",
    "hooks_of",
    "list_plugins",
    "load",
    "load_extension",
    "load_object",
    "say",
]
