"""All mistakes of a configuration at once: each with its line, each once, and the same as the parser's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from memplat import config as configuration
from memplat.config import Document
from memplat.errors import ConfigError

NAMES = ("memfd", "needy", "plain", "broken")


@attrs.frozen
class Options:
    name: str = "x"
    level: int = attrs.field(default=1, validator=attrs.validators.in_([1, 2, 3]))
    even: int = attrs.field(default=2)
    low: int = 0
    high: int = 9

    @even.validator
    def _check_even(self, attribute: Any, value: int) -> None:
        if value % 2:
            raise ValueError(f"{value} is odd")

    def __attrs_post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low is above high")


@attrs.frozen
class Needy:
    where: str
    count: int = 0


def class_of(backend: str) -> type[Any] | None:
    if backend == "broken":
        raise LookupError(backend)
    return {"memfd": Options, "needy": Needy}.get(backend)


def check(tmp_path: Path, text: str) -> list[tuple[int | None, str | None, str]]:
    path = tmp_path / "memplat.toml"
    path.write_text(text)
    found = configuration.check(Document.read(path), NAMES, class_of)
    assert all(error.file == str(path) for error in found)
    return [(error.line, error.key, str(error)) for error in found]


def where(found: list[tuple[int | None, str | None, str]]) -> list[tuple[int | None, str | None]]:
    return [(line, key) for line, key, _ in found]


def test_a_good_file_has_no_mistake(tmp_path: Path) -> None:
    text = "[memory]\nbackend=['memfd','plain']\nkeep='1MiB'\n[memory.memfd]\nlevel=3\n[profile.p.memory]\nkeep=0\n"
    assert check(tmp_path, text) == []
    assert check(tmp_path, "") == []


def test_every_mistake_is_told_in_the_order_of_the_lines(tmp_path: Path) -> None:
    found = check(
        tmp_path,
        "[memory]\n"
        "backend = ['memfs', 'memfd', 'plane']\n"
        "max_sise = 1\n"
        "keep = -1\n"
        "extensions = ['pain']\n"
        "[memory.memfd]\n"
        "nam = 1\n"
        "name = 2\n"
        "level = 9\n"
        "[memroy]\n"
        "[profile.p]\n"
        "memori = 1\n"
        "[profile.p.memory]\n"
        "reclaim = 'never'\n",
    )
    assert where(found) == [
        (2, "memory.backend"),
        (2, "memory.backend"),
        (3, "memory.max_sise"),
        (4, "memory.keep"),
        (5, "memory.extensions"),
        (7, "memory.memfd.nam"),
        (8, "memory.memfd.name"),
        (9, "memory.memfd.level"),
        (10, "memroy"),
        (12, "profile.p.memori"),
        (14, "profile.p.memory.reclaim"),
    ]
    assert 'did you mean "memfd"?' in found[0][2]
    assert 'did you mean "max_size"?' in found[2][2]


def test_a_mistake_in_memory_is_told_once_however_many_profiles_there_are(tmp_path: Path) -> None:
    text = "[memory]\nkeep = -1\n[profile.a.memory]\n[profile.b.memory]\nkeep = -1\n"
    assert where(check(tmp_path, text)) == [(2, "memory.keep"), (5, "profile.b.memory.keep")]


def test_a_mistake_that_a_profile_overrides_is_still_told(tmp_path: Path) -> None:
    text = "[memory.memfd]\nlevel = 9\n[profile.p.memory.memfd]\nlevel = 1\n"
    assert where(check(tmp_path, text)) == [(2, "memory.memfd.level")]


def test_values_that_do_not_go_together_are_told_where_they_meet(tmp_path: Path) -> None:
    text = "[memory]\nmax_size = '4KiB'\n[profile.p.memory]\nprealloc = '8KiB'\n"
    assert where(check(tmp_path, text)) == [(4, "profile.p.memory.prealloc")]
    assert check(tmp_path, "[memory.memfd]\nlow = 8\nhigh = 7\n")[0][1:] == (
        "memory.memfd",
        f"{tmp_path}/memplat.toml:1: memory.memfd: low is above high",
    )


def test_several_values_that_a_class_refuses_are_all_told(tmp_path: Path) -> None:
    found = check(tmp_path, "[memory.memfd]\nlevel = 9\neven = 1\n")
    assert where(found) == [(2, "memory.memfd.level"), (3, "memory.memfd.even")]


def test_a_required_option_is_missed_only_by_a_backend_that_is_asked_for(tmp_path: Path) -> None:
    table = "[memory.needy]\ncount = 1\n"
    assert check(tmp_path, table) == []
    assert where(check(tmp_path, "[memory]\nbackend = 'needy'\n" + table)) == [(3, "memory.needy.where")]
    assert where(check(tmp_path, "[memory]\nbackend = 'needy'\n")) == [(2, "memory.needy.where")]
    both = f"[memory]\nbackend = 'needy'\n{table}[profile.p.memory.needy]\nwhere = 'x'\n"
    assert len(check(tmp_path, both)) == 1, "without the profile it is missing"
    wrong = "[memory]\nbackend = 'needy'\n[memory.needy]\nwhere = 1\n"
    assert [message.partition("where: ")[2] for _, _, message in check(tmp_path, wrong)] == [
        "expected a text, got 1 (int)"
    ]


def test_options_of_a_backend_that_cannot_be_asked_are_left_unchecked(tmp_path: Path) -> None:
    assert check(tmp_path, "[memory]\nbackend = 'broken'\n[memory.broken]\nwhatever = 1\n") == []


def test_options_of_a_backend_without_any_are_each_a_mistake(tmp_path: Path) -> None:
    assert where(check(tmp_path, "[memory.plain]\na = 1\nb = 2\n")) == [(2, "memory.plain.a"), (3, "memory.plain.b")]


@pytest.mark.parametrize(
    "text",
    [
        "memory = 1\n",
        "profile = 1\n",
        "[profile]\np = 1\n",
        "[profile.p]\nmemory = 1\n",
        "[[memory]]\n",
        "[memory]\nplugins = [{}]\n",
        "[profile.''.memory]\nkeep = -1\n",
    ],
)
def test_what_is_no_table_is_a_mistake_and_no_crash(tmp_path: Path, text: str) -> None:
    assert len(check(tmp_path, text)) == 1


def test_each_wrong_element_of_a_list_is_told_with_its_own_line(tmp_path: Path) -> None:
    text = "[memory]\nbackend = [ # two lines\n  'memfs', 'memfd',\n  1,\n  'memfd',\n  'plane'\n]\n"
    assert where(check(tmp_path, text)) == [(line, "memory.backend") for line in (3, 4, 5, 6)]
    for profile in ("[profile.p]\nmemory.extensions = ['plain',\n'x']\n", "[profile]\np.memory.plugins = [\n[\n]]\n"):
        assert [line for line, _ in where(check(tmp_path, profile))] == [3 if "x" in profile else 4]


def test_the_first_mistake_of_the_list_is_no_other_than_the_parsers(tmp_path: Path) -> None:
    path = tmp_path / "memplat.toml"
    for text in ("[memory]\nkeep = -1\n", "[memory]\nbackend = 'x'\n", "[memory]\nmax_sise = 1\n", "[x]\n"):
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            configuration.load(config=path, backend_names=NAMES, environ={})
        (found,) = configuration.check(Document.read(path), NAMES, class_of)
        assert (str(found), type(found)) == (str(caught.value), type(caught.value))
