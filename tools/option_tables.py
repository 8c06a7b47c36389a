#!/usr/bin/env python3
"""Write the tables of options in docs/configuration.md, from the shipped JSON schema.

Usage: option_tables.py [--check]

A table stands between ``<!-- options of NAME -->`` and ``<!-- end -->``; NAME is ``memory`` or a backend. With --check
nothing is written. Exit status: 0 if the page is up to date, 1 if it is (or was) not.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "configuration.md"
SCHEMA: Final = ROOT / "memplat" / "config" / "memplat.schema.json"
_TABLE: Final = re.compile(r"(<!-- options of ([a-z0-9_-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_WORDS: Final = {"boolean": "true or false", "number": "a number", "integer": "an integer", "string": "a text"}


def options(schema: dict[str, Any], name: str) -> dict[str, Any]:
    """The options of ``[memory]``, or of a backend; the tables of backends are none."""
    memory: dict[str, Any] = schema["$defs"]["memory"]["properties"]
    if name != "memory":
        return dict(memory[name]["properties"])
    return {key: value for key, value in memory.items() if "properties" not in value}


def kind(option: dict[str, Any]) -> str:
    """What an option takes, in a few words."""
    if "$ref" in option:
        return "a size"
    if "enum" in option:
        return ", ".join(f"`{json.dumps(value)}`" for value in option["enum"])
    if "anyOf" in option:
        return " or ".join(dict.fromkeys(kind(each) for each in option["anyOf"] if each.get("type") != "null"))
    if option.get("type") == "array":
        return "a list"
    if option.get("type") == "object":
        return "a table: " + ", ".join(f"`{key}`: {kind(each)}" for key, each in option.get("properties", {}).items())
    return _WORDS.get(str(option.get("type")), "see there")


def rows(schema: dict[str, Any], name: str) -> Iterator[str]:
    """The table, line by line."""
    yield "| key | takes | default | what |"
    yield "|---|---|---|---|"
    for key, option in options(schema, name).items():
        default = f"`{json.dumps(option['default'])}`" if "default" in option else ""
        words = option.get("description", "").replace("|", "\\|")
        yield f"| `{key}` | {kind(option)} | {default} | {words} |"


def written(page: str, schema: dict[str, Any]) -> str:
    """The page with its tables as they should be."""
    return _TABLE.sub(lambda found: found[1] + "\n".join(rows(schema, found[2])) + "\n" + found[3], page)


def main(arguments: list[str]) -> int:
    """Write or check; the exit status."""
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    page = PAGE.read_text(encoding="utf-8")
    right = written(page, json.loads(SCHEMA.read_text(encoding="utf-8")))
    if page == right:
        return 0
    if not arguments:
        PAGE.write_text(right, encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: the tables of options {'are' if arguments else 'were'} out of date")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
