"""Options of backends as they are written on a command line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from memplat.errors import ConfigError


def parse_options(given: Iterable[str]) -> dict[str, Any]:
    """``["directory=/mnt", "seal=false"]`` as a mapping: numbers, true and false, and text, which may be a size.

    :raises ConfigError: an item without ``=``
    """
    options: dict[str, Any] = {}
    for item in given:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise ConfigError(f"{item!r} is no option of a backend: write KEY=VALUE")
        options[name] = _value(text)
    return options


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    return text


__all__ = ["parse_options"]
