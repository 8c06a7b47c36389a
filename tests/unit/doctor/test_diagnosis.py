"""The doctor and ``memplat.open`` come to the same backend, for the same reasons."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import memplat
from memplat.doctor import diagnose
from memplat.engine import placement
from memplat.errors import BackendUnavailableError, ConfigError, PluginError
from memplat.linux import numa, system
from tests.hostparts import MIB, hugetlb_pool, loop_mount, mounted, tmpfs_mount
from tests.needs import needs
from tests.unit.conformance import strangers

BUSY = strangers.GOOD.replace(
    "fd = os.memfd_create", "raise OSError(28, 'No space left on the moon'); fd = os.memfd_create"
)
LIAR = strangers.GOOD.replace("page_size=4096", "page_size=4095")
SHY = (
    strangers.GOOD
    + """
    @hookimpl
    def memplat_check(options):
        raise RuntimeError("boom")
"""
)


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of strangers' distributions; and no configuration of the user's."""
    for name in [name for name in os.environ if name.startswith("MEMPLAT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    before = set(sys.modules)
    yield site
    for name in set(sys.modules) - before:
        if str(site) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def agree(config: Path) -> tuple[str | None, list[tuple[str, str]]]:
    """What the doctor says, after making sure that opening comes to the same; reasons by backend, up to the taken."""
    found = diagnose(str(config), None)
    rows = found.survey.wanted
    if found.taken is not None:
        rows = rows[: rows.index(found.taken) + 1]
    said = [(row.name, row.reason) for row in rows]
    try:
        with memplat.open(config=config) as memory:
            opened: str | None = memory.backend.name
            selection = memory.backend.selection
            assert [(each.name, each.taken) for each in selection] == [(row.name, row.selected) for row in rows]
            assert [each.remedy for each in selection if each.taken] == [row.remedy for row in rows if row.selected]
            assert without_free(selection[-1].reason) == without_free(rows[-1].reason)
    except (BackendUnavailableError, PluginError):
        opened = None
    assert opened == (found.taken.name if found.taken else None)
    json.dumps(found.as_dict())
    return opened, said


def without_free(reason: str) -> str:
    """The reason without how much is free, which others change meanwhile."""
    return re.sub(r"[\d.]+ \wiB free", "some free", reason)


def write(directory: Path, text: str) -> Path:
    path = directory / "memplat.toml"
    path.write_text(text)
    return path


def test_without_a_configuration_it_is_memfd_by_default() -> None:
    found = diagnose(None, None)
    assert found.taken is not None
    assert (found.taken.name, found.asked_by) == ("memfd", "default")
    assert found.settings() == []


def test_the_environment_is_named_as_the_one_who_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMPLAT_BACKEND", "tmpfile,memfd")
    found = diagnose(None, None)
    assert found.asked_by == "environment MEMPLAT_BACKEND"
    assert [row.name for row in found.survey.wanted] == ["tmpfile", "memfd"]


def test_the_first_that_is_available_is_taken_and_the_rest_is_not_needed(tmp_path: Path) -> None:
    config = write(tmp_path, f"[memory]\nbackend = ['tmpfile', 'memfd']\n[memory.tmpfile]\ndirectory = '{tmp_path}'\n")
    assert agree(config)[0] == "tmpfile"
    missing = write(
        tmp_path, "[memory]\nbackend = ['tmpfile', 'memfd']\n[memory.tmpfile]\ndirectory = '/nonexistent'\n"
    )
    taken, said = agree(missing)
    assert taken == "memfd"
    assert said[0] == ("tmpfile", "/nonexistent does not exist")
    assert diagnose(str(missing), None).mendings()[0].how == "mkdir -p /nonexistent"


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (BUSY, "cannot create its file: OSError: [Errno 28] No space left on the moon"),
        (LIAR, "hook 'memplat_create_file': it returned a file with page_size=4095"),
        (SHY, "hook 'memplat_check': it raised RuntimeError: boom"),
        ("import nothing_of_that_name", "cannot be imported"),
    ],
    ids=["busy", "liar", "shy", "broken"],
)
def test_a_strangers_backend_is_passed_over_for_the_same_reason(
    tmp_path: Path, site: Path, module: str, says: str
) -> None:
    strangers.put(site, "mine", module)
    taken, said = agree(write(tmp_path, "[memory]\nbackend = ['mine', 'memfd']\n"))
    assert taken == "memfd"
    assert says in said[0][1]
    assert agree(write(tmp_path, "[memory]\nbackend = 'mine'\n"))[0] is None


def test_a_file_that_was_made_on_trial_is_closed(tmp_path: Path, site: Path) -> None:
    strangers.put(site, "mine", strangers.GOOD)
    config = write(tmp_path, "[memory]\nbackend = ['mine', 'memfd']\n")
    assert agree(config)[0] == "mine"
    before = len(os.listdir("/proc/self/fd"))
    diagnose(str(config), None)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_what_is_shut_out_is_told_with_its_remedy(tmp_path: Path, site: Path) -> None:
    strangers.put(site, "mine", strangers.GOOD)
    config = write(tmp_path, "[memory]\nbackend = ['mine', 'memfd']\nplugins = []\n")
    taken, said = agree(config)
    assert taken == "memfd"
    assert 'add "mine" to use it' in said[0][1]


def test_prealloc_that_the_pool_does_not_have_passes_over_the_backend(tmp_path: Path) -> None:
    text = "[memory]\nbackend = ['hugetlb', 'memfd']\nprealloc = '{}'\n[memory.hugetlb]\npage_size = '2MiB'\n"
    config = write(tmp_path, text.format("64MiB"))
    with hugetlb_pool(4):
        taken, said = agree(config)
        assert taken == "memfd"
        assert said[0][1].startswith("prealloc = 64 MiB cannot be had: the pool has 4 pages of 2 MiB")
        (mending, *_) = diagnose(str(config), None).mendings()
        assert mending.how.startswith("sysctl vm.nr_hugepages=")
        assert int(mending.how.partition("=")[2]) >= 32
    with hugetlb_pool(40):
        assert agree(config)[0] == "hugetlb"


def test_prealloc_that_the_disk_does_not_have_passes_over_the_backend(tmp_path: Path) -> None:
    with tmpfs_mount(8 * MIB) as place:
        config = write(
            tmp_path, f"[memory]\nbackend = ['tmpfile', 'memfd']\nprealloc = '16MiB'\ntmpfile.directory = '{place}'\n"
        )
        taken, said = agree(config)
        assert taken == "memfd"
        assert said[0][1] == "prealloc = 16 MiB cannot be had: 8 MiB is left"
        assert list(place.iterdir()) == []


def test_a_host_without_a_directory_for_temporary_files_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    config = write(tmp_path, "[memory]\nbackend = ['tmpfile', 'memfd']\n")
    taken, said = agree(config)
    assert (taken, said[0][1]) == ("memfd", "No usable temporary directory found in ['/tmp']")
    assert diagnose(str(config), None).mendings()[0].how == "directory = a writable one, or TMPDIR"


def test_max_size_is_compared_with_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(tmp_path, "[memory]\nbackend = ['hugetlb', 'memfd']\nmax_size = '1TiB'\n")
    monkeypatch.setattr(system, "address_space_limit", lambda: 1 << 40)
    with hugetlb_pool(4):
        sizes = {
            each.says: each.remedy for each in diagnose(str(config), None).findings if each.area == "configuration"
        }
    short, *_, enough = sizes
    assert "1 TiB is more than what is left of the huge pages" in short
    assert sizes[short].startswith("sysctl vm.nr_hugepages=")
    assert enough == "1 TiB, within the address space, 1 TiB"
    config.write_text("[memory]\nmax_size = '1TiB'\n")
    sizes = {each.says: each.remedy for each in diagnose(str(config), None).findings if each.area == "configuration"}
    assert "1 TiB is more than RAM and swap" in next(iter(sizes))


def test_wrong_options_of_a_backend_that_would_be_reached_are_a_wrong_configuration(tmp_path: Path) -> None:
    config = write(tmp_path, "[memory]\nbackend = ['memfd', 'tmpfile']\n[memory.memfd]\nhug = 'never'\n")
    with pytest.raises(ConfigError, match=r":4: memory\.memfd\.hug: is no option"):
        diagnose(str(config), None)
    # Those of one that is never reached are none of memplat.open()'s business, either; config check tells of them.
    unreached = write(tmp_path, "[memory]\nbackend = ['memfd', 'tmpfile']\n[memory.tmpfile]\ndir = 'x'\n")
    assert agree(unreached)[0] == "memfd"
    assert "is no option of backend 'tmpfile'" in diagnose(str(unreached), None).survey.wanted[1].reason


def test_a_size_that_the_pages_do_not_divide_is_a_wrong_configuration_only_where_there_are_such_pages(
    tmp_path: Path,
) -> None:
    sizes = "max_size = '4100KiB'\nhugetlb.page_size = '2MiB'\n"
    config = write(tmp_path, f"[memory]\nbackend = ['hugetlb', 'memfd']\n{sizes}")
    with hugetlb_pool(0):
        assert agree(config)[0] == "memfd"
    with hugetlb_pool(4), pytest.raises(ConfigError, match=r"no multiple of the backend's page size, 2097152"):
        diagnose(str(config), None)


def test_numa_nodes_that_the_host_does_not_have_are_a_wrong_configuration(tmp_path: Path) -> None:
    if numa.nodes_with_memory() is None:
        needs("numa", "the kernel knows no nodes")
    config = write(tmp_path, "[memory]\nkeep = 0\nnuma = {policy = 'bind', nodes = [1023]}\n")
    with pytest.raises(ConfigError, match=r":3: memory\.numa: the host has no memory on node 1023"):
        memplat.open(config=config)
    with pytest.raises(ConfigError, match=r":3: memory\.numa: the host has no memory on node 1023"):
        diagnose(str(config), None)


def test_what_is_not_effective_is_a_note_as_it_is_of_the_memory(tmp_path: Path) -> None:
    with loop_mount("ext4") as place:
        config = write(
            tmp_path,
            f"[memory]\nbackend = 'tmpfile'\nnuma.policy = 'local'\ntmpfile.directory = '{place}'\n",
        )
        assert agree(config)[0] == "tmpfile"
        (row,) = diagnose(str(config), None).survey.wanted
        with memplat.open(config=config) as memory:
            assert memory.backend.notes == row.notes
        assert "numa is not effective: the file is on ext4" in row.notes[0]


def test_prealloc_that_may_not_be_locked_passes_over_the_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "lockable", lambda: MIB)
    config = write(tmp_path, "[memory]\nbackend = ['memfd']\nlock = true\nprealloc = '16MiB'\n")
    taken, said = agree(config)
    assert (taken, said[0][1]) == (
        None,
        "prealloc = 16 MiB cannot be had: with lock, RLIMIT_MEMLOCK leaves 1 MiB",
    )
    assert diagnose(str(config), None).mendings()[0].how == "ulimit -l unlimited"


def test_a_remedy_for_the_taken_backend_is_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "shmem_huge_pages", lambda: "never")
    config = write(tmp_path, "[memory.memfd]\nhuge = 'advise'\n")
    assert agree(config)[0] == "memfd"
    assert diagnose(str(config), None).mendings()[0].how.startswith("echo advise > ")


def test_each_remedy_is_told_once(tmp_path: Path) -> None:
    with mounted("ramfs") as place:
        config = write(tmp_path, f"[memory]\nbackend = 'tmpfile'\ntmpfile.directory = '{place}'\n")
        hows = [each.how for each in diagnose(str(config), None).mendings()]
        assert len(hows) == len(set(hows))


def test_settings_are_told_with_who_set_them(tmp_path: Path) -> None:
    config = write(tmp_path, "[memory]\nmax_size = '1GiB'\ndefault_mode = 'reserved'\nplugins = ['b', 'a']\n")
    assert diagnose(str(config), None).settings() == [
        {"key": "max_size", "value": 1 << 30, "source": f"{config}:2"},
        {"key": "default_mode", "value": "reserved", "source": f"{config}:3"},
        {"key": "plugins", "value": ["a", "b"], "source": f"{config}:4"},
    ]


def test_a_profile_is_diagnosed_on_top_of_the_rest(tmp_path: Path) -> None:
    config = write(tmp_path, "[memory]\nkeep = 0\n[profile.disk.memory]\nbackend = 'tmpfile'\n")
    found = diagnose(str(config), "disk").as_dict()["configuration"]
    assert (found["file"], found["profile"], found["asked"]) == (str(config), "disk", ["tmpfile"])
