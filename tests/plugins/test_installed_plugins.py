"""Distributions of strangers, installed with pip into an environment of their own, and used from there."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import memplat

HERE = Path(__file__).parent
pytestmark = pytest.mark.xdist_group("installed")  # they share an environment that takes seconds to make

PLUGINS = ("memplat-tiny", "memplat-broken")


def can_build() -> bool:
    """Whether our own setuptools can build wheels (since 70.1 without the package ``wheel``)."""
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        return False
    return tuple(map(int, version.split(".")[:2])) >= (70, 1)


class Environment:
    """A virtual environment that sees memplat and what it needs where they are, and has plugins of its own."""

    def __init__(self, directory: Path) -> None:
        self.python = directory / "bin" / "python"
        venv.create(directory, system_site_packages=True, symlinks=True)
        (site,) = directory.glob("lib/python*/site-packages")
        ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        lines = [str(Path(memplat.__file__).parents[1]), *(f"import site; site.addsitedir({path!r})" for path in ours)]
        (site / "host.pth").write_text("\n".join(lines) + "\n")

    def install(self, source: Path) -> None:
        """``pip install``, by the pip of the tests' own environment: offline, if that has setuptools."""
        isolation = ["--no-build-isolation", "--no-index"] if can_build() else []
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            self.python,
            "--disable-pip-version-check",
        ]
        self.execute(*command, "install", "--quiet", "--no-deps", *isolation, source)

    def execute(self, *command: str | Path, **environ: str) -> str:
        """Run a command with a clean configuration; what it prints."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MEMPLAT_", "PYTHON"))}
        kept |= {"XDG_CONFIG_HOME": "/nonexistent", "PIP_ROOT_USER_ACTION": "ignore"} | environ
        done = subprocess.run(command, env=kept, cwd="/", check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def run(self, code: str, **environ: str) -> Any:
        """Run Python in the environment, warnings being errors; what it prints as JSON."""
        program = "import json, sys, memplat\n" + textwrap.dedent(code)
        return json.loads(self.execute(self.python, "-W", "error", "-c", program, **environ))


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    if importlib.util.find_spec("pip") is None:
        pytest.skip("there is no pip in the tests' environment")
    scratch = tmp_path_factory.mktemp("strangers")
    environment = Environment(scratch / "venv")
    for name in PLUGINS:
        source = scratch / name  # a copy, because building writes into the source
        shutil.copytree(HERE / name, source)
        environment.install(source)
    return environment


def records(environment: Environment) -> Mapping[str, Mapping[str, str]]:
    return {
        record["name"]: record
        for record in environment.run("""
            import attrs
            from memplat import plugins
            listed = [attrs.asdict(record) for record in plugins.list_plugins()]
            assert "memplat_tiny" not in sys.modules and "memplat_broken" not in sys.modules
            print(json.dumps(listed))
            """)
    }


def test_both_are_listed_with_their_distributions_and_neither_is_imported(environment):
    listed = records(environment)
    assert set(listed) == {"memfd", "tmpfile", "hugetlb", "tiny", "broken"}
    tiny = listed["tiny"]
    assert (tiny["source"], tiny["value"], tiny["version"]) == ("memplat-tiny 1.2.0", "memplat_tiny", "1.2.0")
    assert listed["broken"]["source"] == "memplat-broken 0.1"
    assert not any(record["problem"] for record in listed.values())


def test_the_ten_line_backend_is_opened_and_does_all_that_a_memory_does(environment):
    seen = environment.run("""
        with memplat.open("tiny") as memory:
            assert "memplat_broken" not in sys.modules
            assert "memplat.backends.memfd" not in sys.modules
            pages = memory.allocate(16 * 4096, kind="page_cache", owner=3)
            view = memory.view(pages)
            view[:5] = b"hello"
            view[4096] = 1
            usage = memory.update_usage()
            reserved = memory.allocate(8192, mode="reserved")
            assert memory.read(memplat.FileRange(pages.start, pages.start + 5)) == b"hello"
            assert memory.decommit(pages) == 2 * 4096
            assert bytes(view[:5]) == bytes(5)
            del view
            memory.decref(pages)
            memory.decref(reserved)
            assert memory.wait_reclaimed(timeout=60)
            candidate, = memory.backend.selection
            print(json.dumps({
                "name": memory.backend.name,
                "source": candidate.source,
                "committed": usage.committed["page_cache"],
                "owner": usage.committed_by_owner[3]["page_cache"],
                "exact": usage.exact,
                "left": memory.total_usage(),
            }))
        """)
    assert seen == {
        "name": "tiny",
        "source": "memplat-tiny 1.2.0",
        "committed": 8192,
        "owner": 8192,
        "exact": True,
        "left": 0,
    }


def test_a_configuration_and_the_environment_can_name_it(environment, tmp_path):
    config = tmp_path / "memplat.toml"
    config.write_text('[memory]\nbackend = ["tiny", "memfd"]\n')
    name = "print(json.dumps(memplat.open({}).backend.name))"
    assert environment.run(name.format(f"config={str(config)!r}")) == "tiny"
    assert environment.run(name.format(""), MEMPLAT_CONFIG=str(config)) == "tiny"
    assert environment.run(name.format(""), MEMPLAT_BACKEND="tiny") == "tiny"


def test_the_broken_one_is_reported_and_breaks_nothing_else(environment):
    seen = environment.run("""
        import logging
        logging.disable()
        try:
            memplat.open("broken")
        except memplat.PluginError as error:
            told = str(error)
        with memplat.open(["broken", "tiny"]) as memory:
            fallback = [memory.backend.name, memory.backend.selection[0].reason, memory.backend.selection[0].source]
        # It might have had the option: a list with a broken plugin falls back all the same.
        with memplat.open(["broken", "memfd"], of_the_broken_one=1) as memory:
            assert memory.backend.name == "memfd"
        memplat.open("memfd").close()
        print(json.dumps([told, *fallback]))
        """)
    told, taken, reason, source = seen
    assert told == reason
    assert taken == "tiny"
    assert source == "memplat-broken 0.1"
    assert "plugin 'broken' (memplat-broken 0.1) cannot be imported from 'memplat_broken'" in told
    assert "RuntimeError: the library that this plugin needs is gone; mend or uninstall memplat-broken" in told


def test_plugins_can_be_shut_out(environment):
    code = """
        import logging
        logging.disable()
        with memplat.open(["tiny", "memfd"], **{}) as memory:
            print(json.dumps([memory.backend.name, memory.backend.selection[0].reason, "memplat_tiny" in sys.modules]))
        """
    name, reason, imported = environment.run(code.format("{}"), MEMPLAT_DISABLE_PLUGINS="1")
    assert (name, imported) == ("memfd", False)
    assert "MEMPLAT_DISABLE_PLUGINS shuts out" in reason
    name, reason, imported = environment.run(code.format('{"plugins": ["other"]}'))
    assert (name, imported) == ("memfd", False)
    assert 'add "tiny" to use it' in reason
    assert environment.run(code.format('{"plugins": ["tiny"]}'))[0] == "tiny"


def test_the_command_lists_both_and_tells_what_is_wrong_with_one(environment):
    pytest.importorskip("click")
    output = environment.execute(environment.python, "-m", "memplat", "backends", "--json")
    listed = {backend["name"]: backend for backend in json.loads(output)["backends"]}
    assert listed["tiny"]["available"] is True
    assert (listed["tiny"]["version"], listed["tiny"]["source"]) == ("1.2.0", "memplat-tiny 1.2.0")
    assert listed["broken"]["available"] is False
    assert listed["broken"]["status"] == "broken"
    assert "the library that this plugin needs is gone" in listed["broken"]["reason"]
    assert listed["memfd"]["available"] is True
