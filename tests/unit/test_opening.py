"""Choosing a backend along the user's list, and taking over a file."""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import resource
import socket
import sys
from pathlib import Path

import attrs
import pytest

import memplat
from memplat.hookspecs import hookimpl
from memplat.linux import files
from memplat.types import Availability, BackendInfo, BackingFile, EngineOptions, ReclaimMode
from tests.naming import shown


@attrs.frozen
class FakeOptions:
    colour: str = "red"
    amount_size: int = 0


class Fake:
    """A backend on a memfd that notes what is done to it, and fails where it is told to."""

    def __init__(self, name: str = "fake", **behaviour: object) -> None:
        self.info = BackendInfo(name=name, version="1.0", options=FakeOptions)
        self.behaviour = behaviour
        self.made: list[int] = []
        self.closed: list[int] = []
        self.options: object = None

    def answer(self, hook: str, otherwise: object) -> object:
        result = self.behaviour.get(hook, otherwise)
        if isinstance(result, BaseException):
            raise result
        return result

    @hookimpl
    def memplat_backend_info(self):
        return self.info

    @hookimpl
    def memplat_check(self, options):
        self.options = options
        return self.answer("check", Availability(True, "as always"))

    @hookimpl
    def memplat_create_file(self, options):
        self.answer("create", None)
        fd = os.memfd_create("fake")
        self.made.append(fd)
        changes = self.behaviour.get("file", {})
        assert isinstance(changes, dict)
        return attrs.evolve(BackingFile(fd=fd, page_size=4096, backend=self.info.name), **changes)

    @hookimpl(wrapper=True)
    def memplat_close_file(self, file):
        self.closed.append(file.fd)
        return (yield)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch, tmp_path):
    """No configuration but the tests' own, and at the end no descriptor more than before."""
    for name in [name for name in os.environ if name.startswith("MEMPLAT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    left = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in set(os.listdir("/proc/self/fd")) - before}
    assert not left


@pytest.fixture
def memfd():
    """A descriptor that a test may give away: it is closed only if it is still the same file."""
    fd = os.memfd_create("adopted", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    inode = os.fstat(fd).st_ino
    yield fd
    try:
        if os.fstat(fd).st_ino == inode:
            os.close(fd)
    except OSError:
        pass


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


# ---- choosing


def test_without_anything_said_it_is_memfd_and_it_works():
    with memplat.open() as memory:
        assert memory.backend.name == "memfd"
        assert isinstance(memory, memplat.Memory)
        pages = memory.allocate(memory.page_size, fill=b"hello")
        assert memory.read(memplat.FileRange(0, 5)) == b"hello"
        memory.decref(pages)
        (candidate,) = memory.backend.selection
        assert (candidate.name, candidate.taken, candidate.source) == ("memfd", True, "built-in")


def test_the_first_of_the_list_that_is_available_is_taken_and_the_reasons_are_kept():
    absent = Fake("absent", check=Availability(False, "no such device", "modprobe device"))
    failing = Fake("failing", create=OSError(28, "No space left on device"))
    crashing = Fake("crashing", check=ZeroDivisionError("oops"))
    good, unused = Fake("good"), Fake("unused")
    with memplat.open([absent, failing, crashing, good, unused]) as memory:
        selection = memory.backend.selection
        assert memory.backend.name == "good"
        assert [candidate.name for candidate in selection] == ["absent", "failing", "crashing", "good"]
        assert [candidate.taken for candidate in selection] == [False, False, False, True]
        assert (selection[0].reason, selection[0].remedy) == ("no such device", "modprobe device")
        assert "No space left on device" in selection[1].reason
        assert "hook 'memplat_check': it raised ZeroDivisionError: oops" in selection[2].reason
        assert selection[3].reason == "as always"
        assert all("given in Python" in candidate.source for candidate in selection)
    assert unused.options is None
    assert good.closed == good.made


def test_if_none_can_be_used_the_error_lists_each_with_reason_and_remedy():
    absent = Fake("absent", check=Availability(False, "no such device", "modprobe device"))
    failing = Fake("failing", create=RuntimeError("broke"))
    with pytest.raises(memplat.BackendUnavailableError) as caught:
        memplat.open([absent, failing])
    message = str(caught.value)
    assert "absent: no such device (remedy: modprobe device)" in message
    assert "failing: cannot create its file: RuntimeError: broke" in message
    assert isinstance(caught.value, OSError)


def test_nothing_outside_of_the_list_is_ever_taken():
    with pytest.raises(memplat.BackendUnavailableError, match="absent: gone"):
        memplat.open(Fake("absent", check=Availability(False, "gone")))


def test_an_unknown_name_is_an_error_even_if_another_one_would_do():
    with pytest.raises(memplat.UnknownBackendError, match='did you mean "memfd"'):
        memplat.open(["memfd", "memfs"])


def test_the_choice_is_logged_once_and_louder_if_it_was_not_the_first(caplog):
    absent = Fake("absent", check=Availability(False, "no such device", "modprobe device"))
    with caplog.at_level(logging.INFO, "memplat"), memplat.open(config={"memory": {"backend": "memfd"}}):
        (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "asked for memfd (mapping memory.backend), took memfd" in record.getMessage()
    caplog.clear()
    with caplog.at_level(logging.INFO, "memplat"), memplat.open([absent, "memfd"]):
        (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "took memfd: absent: no such device (remedy: modprobe device); memfd: " in record.getMessage()


# ---- configuration reaches where it should


def test_the_configuration_picks_backend_and_options(tmp_path, monkeypatch):
    own = tmp_path / "xdg" / "memplat" / "memplat.toml"
    own.parent.mkdir(parents=True)
    own.write_text("""
        [memory]
        max_size = "64MiB"
        reclaim = "manual"
        [memory.memfd]
        name = "configured"
        [profile.small.memory]
        max_size = "1MiB"
        """)
    with memplat.open() as memory:
        assert os.readlink(f"/proc/self/fd/{memory.fileno()}").startswith("/memfd:configured")
        with pytest.raises(memplat.OutOfMemory):
            memory.allocate(128 << 20)
    with memplat.open(profile="small", memfd={"name": "argument"}) as memory:
        assert "argument" in os.readlink(f"/proc/self/fd/{memory.fileno()}")
        with pytest.raises(memplat.OutOfMemory):
            memory.allocate(2 << 20)
    monkeypatch.setenv("MEMPLAT_CONFIG", str(tmp_path / "other.toml"))
    Path(tmp_path, "other.toml").write_text("[memory]\nbackend = 'memfd'\nkeep = 'lots'\n")
    with pytest.raises(memplat.ConfigError, match=r"other\.toml:3: memory\.keep"):
        memplat.open()


def test_a_backend_that_is_given_as_an_object_can_have_a_table_of_options():
    fake = Fake()
    config = {"memory": {"fake": {"colour": "green", "amount_size": "1KiB"}}}
    with memplat.open(fake, config=config) as memory:
        assert fake.options == FakeOptions("green", 1024)
        assert memory.backend.options is fake.options


def test_flat_options_reach_the_listed_backends_that_have_them_and_no_nonsense_passes():
    fake = Fake()
    with memplat.open([fake, "memfd"], colour="blue", name="unused here"):
        assert fake.options == FakeOptions("blue")
    with pytest.raises(memplat.ConfigError, match=r"coluor: .* nor of 'fake', 'memfd'; did you mean \"colour\""):
        memplat.open([fake, "memfd"], coluor="blue")
    with pytest.raises(memplat.ConfigError, match="sizes in Python are integers: write 1024"):
        memplat.open(fake, amount_size="1KiB")


def test_a_wrong_option_is_an_error_and_no_reason_to_fall_back():
    with pytest.raises(memplat.ConfigError, match=r"fake\.colour: expected a text"):
        memplat.open([Fake(), "memfd"], fake={"colour": 3})


def test_engine_options_reach_the_engine():
    with memplat.open(reclaim="manual", default_mode=memplat.AllocationMode.COMMITTED) as memory:
        pages = memory.allocate(8192)
        assert memory.update_usage().committed["anonymous"] == 8192
        memory.decref(pages)
        assert memory.reclaim() == 8192
    assert EngineOptions().reclaim is ReclaimMode.BACKGROUND


def test_a_size_that_the_backends_page_does_not_divide_is_an_error_and_leaks_nothing():
    fake = Fake(file={"page_size": 1 << 16})
    with pytest.raises(memplat.ConfigError, match=r"max_size: 69632 is no multiple .* 65536 and 131072"):
        memplat.open(fake, max_size=65536 + 4096)
    with pytest.raises(memplat.ConfigError, match="the nearest are 65536"):
        memplat.open(fake, max_size=4096)
    assert fake.closed == fake.made
    assert not any(is_open(fd) for fd in fake.made)


# ---- extensions


class Extension:
    def __init__(self, refuse: BaseException | None = None) -> None:
        self.refuse = refuse
        self.opened: list[object] = []
        self.grown: list[int] = []

    @hookimpl(wrapper=True)
    def memplat_grow(self, file, size):
        self.grown.append(size)
        return (yield)

    @hookimpl
    def memplat_memory_opened(self, memory):
        if self.refuse:
            raise self.refuse
        self.opened.append(memory.backend.name)


def test_an_extension_sees_the_memory_opened_and_wraps_its_hooks():
    extension = Extension()
    with memplat.open(extensions=[extension]) as memory:
        assert extension.opened == ["memfd"]
        memory.block(4096).close()
        assert extension.grown
    with memplat.open() as memory:
        memory.block(4096).close()
    assert extension.opened == ["memfd"]


def test_an_extension_that_fails_when_the_memory_opens_leaves_nothing_behind():
    fake = Fake()
    with pytest.raises(KeyError, match="no thanks"):
        memplat.open(fake, extensions=[Extension(KeyError("no thanks"))])
    assert fake.closed == fake.made


def test_an_extension_that_is_none_is_an_error_before_anything_is_created():
    fake = Fake()
    with pytest.raises(memplat.PluginError, match="implements no hook"):
        memplat.open(fake, extensions=[object()])
    with pytest.raises(memplat.UnknownBackendError, match="no plugin is named 'trace'"):
        memplat.open(fake, extensions=["trace"])
    assert not fake.made


# ---- plugins that break the contract


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        ({"check": True}, "hook 'memplat_check': it returned True, which is no Availability"),
        ({"check": OSError("broken")}, "hook 'memplat_check': it raised OSError: broken"),
        ({"file": {"backend": "other"}}, "backend='other' instead of 'fake'"),
        ({"file": {"page_size": 1000}}, "page_size=1000; allowed are powers of two from 4096"),
        ({"file": {"page_size": 12288}}, "page_size=12288"),
        ({"file": {"page_size": True}}, "page_size=True"),
    ],
)
def test_a_backend_that_breaks_the_contract_is_an_error_that_says_how(behaviour, says):
    fake = Fake(**behaviour)
    with pytest.raises(memplat.PluginError) as caught:
        memplat.open(fake)
    assert says in str(caught.value)
    assert caught.value.plugin == "fake"
    assert fake.closed == fake.made
    with memplat.open([fake, "memfd"]) as memory:
        assert says in memory.backend.selection[0].reason


@pytest.mark.parametrize("fd", [-1, 1 << 40, None, "3"])
def test_a_file_without_an_open_descriptor_is_refused(fd):
    class Lost(Fake):
        @hookimpl
        def memplat_create_file(self, options):
            return BackingFile(fd=fd, page_size=4096, backend="fake")

    with pytest.raises(memplat.PluginError, match="which is no open descriptor"):
        memplat.open(Lost())


def test_what_is_no_backing_file_is_refused():
    class Wrong(Fake):
        @hookimpl
        def memplat_create_file(self, options):
            return 7

    with pytest.raises(memplat.PluginError, match="returned 7, which is no BackingFile"):
        memplat.open(Wrong())


def test_a_memory_that_cannot_be_constructed_is_a_reason_to_take_the_next():
    fake = Fake()
    usual = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (64 << 30, usual[1]))
    try:
        with pytest.raises(memplat.BackendUnavailableError, match=r"fake: cannot be opened: HostError: .*max_size"):
            memplat.open(fake, max_size=1 << 40)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, usual)
    assert fake.closed == fake.made


def test_a_plugin_object_that_is_no_plugin_is_an_error():
    with pytest.raises(memplat.PluginError, match="does not implement memplat_backend_info"):
        memplat.open(object())
    nothings: list[object] = [3, {}, [], [[]]]
    for nothing in nothings:
        with pytest.raises(memplat.ConfigError):
            memplat.open(nothing)


def test_only_the_plugins_that_are_looked_at_are_imported(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("memplat.backends.hugetlb")]:
        monkeypatch.delitem(sys.modules, name)
    with memplat.open(["memfd", "hugetlb"]):
        assert "memplat.backends.hugetlb" not in sys.modules


# ---- adopting


def test_an_empty_memfd_is_adopted_and_closed_with_the_memory(memfd):
    os.set_inheritable(memfd, True)
    with memplat.adopt(memfd) as memory:
        assert memory.fileno() == memfd
        assert memory.backend.name == "memfd"
        assert memory.page_size == 4096
        assert not os.get_inheritable(memfd)
        with memory.block(8192, fill=b"x" * 8192) as block:
            assert os.pread(memfd, 3, block.pages.start) == b"xxx"
            assert memory.update_usage().committed["anonymous"] == 8192
    assert not is_open(memfd)


def test_a_file_in_a_directory_can_be_adopted_with_options(tmp_path):
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    with memplat.adopt(fd, backend="memfd", max_size=1 << 20) as memory:
        with pytest.raises(memplat.OutOfMemory):
            memory.allocate(2 << 20)
        with memory.block(4096, fill=b"abc"):
            assert Path(tmp_path, "file").read_bytes()[:3] == b"abc"
    assert not is_open(fd)


def test_a_file_can_be_adopted_for_a_plugin_and_its_create_is_not_called(memfd):
    fake = Fake(create=AssertionError("never called"), check=AssertionError("never called"))
    with memplat.adopt(memfd, backend=fake, colour="green") as memory:
        assert memory.backend.options == FakeOptions("green")
    assert fake.closed == [memfd]


def test_no_configuration_file_and_no_backend_variable_is_read_when_adopting(memfd, monkeypatch, tmp_path):
    monkeypatch.setenv("MEMPLAT_CONFIG", str(tmp_path / "missing.toml"))
    monkeypatch.setenv("MEMPLAT_BACKEND", "nonsense")
    memplat.adopt(memfd).close()


@pytest.mark.parametrize("fd", [-1, True, "3", None, 1 << 40, 987_654])
def test_what_is_no_open_descriptor_is_not_adopted(fd):
    with pytest.raises(memplat.InvalidArgumentError, match="fd="):
        memplat.adopt(fd)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (os.O_RDONLY, "not open for reading and writing"),
        (os.O_WRONLY, "not open for reading and writing"),
        (os.O_PATH, "not open for reading and writing"),
        (os.O_RDWR | os.O_APPEND, "O_APPEND"),
    ],
)
def test_a_file_that_is_open_the_wrong_way_is_not_adopted(tmp_path, flags, says):
    path = tmp_path / "file"
    path.touch()
    fd = os.open(path, flags)
    with pytest.raises(memplat.InvalidArgumentError, match=says):
        memplat.adopt(fd)
    os.close(fd)


def test_a_file_that_is_not_empty_is_not_adopted(memfd):
    os.write(memfd, b"x")
    with pytest.raises(memplat.InvalidArgumentError, match="not empty: 1 bytes long, 4096 allocated"):
        memplat.adopt(memfd)
    os.ftruncate(memfd, 0)
    files.fallocate(memfd, 1, 0, 8192)  # FALLOC_FL_KEEP_SIZE
    with pytest.raises(memplat.InvalidArgumentError, match="not empty: 0 bytes long, 8192 allocated"):
        memplat.adopt(memfd)
    assert is_open(memfd)


def test_what_is_no_regular_file_is_not_adopted(tmp_path):
    reader, writer = os.pipe()
    directory = os.open(tmp_path, os.O_RDONLY)
    zero = os.open("/dev/zero", os.O_RDWR)
    with socket.socket() as sock:
        for fd in (reader, directory, zero, sock.fileno()):
            with pytest.raises(memplat.InvalidArgumentError, match="only regular files"):
                memplat.adopt(fd)
            assert is_open(fd)
    for fd in (reader, writer, directory, zero):
        os.close(fd)


@pytest.mark.parametrize("seal", [files.F_SEAL_GROW, files.F_SEAL_WRITE, files.F_SEAL_FUTURE_WRITE])
def test_a_file_that_is_sealed_against_use_is_not_adopted(memfd, seal):
    files.add_seals(memfd, seal)
    with pytest.raises(memplat.InvalidArgumentError, match="is sealed"):
        memplat.adopt(memfd)


def test_a_file_that_is_sealed_against_shrinking_is_adopted(memfd):
    files.add_seals(memfd, files.F_SEAL_SHRINK | files.F_SEAL_SEAL)
    with memplat.adopt(memfd) as memory:
        memory.block(4096, fill=b"x").close()


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_size": 4097},
        {"backend": "memfs"},
        {"backend": ["memfd"]},
        {"nonsense": 1},
        {"config": {}},
        {"extensions": [Extension(KeyError("no thanks"))]},
        {"prealloc": 1 << 20, "extensions": [Extension(KeyError("no thanks"))]},
        {"max_size": 1 << 62},
    ],
    ids=shown,
)
def test_a_file_that_was_not_adopted_stays_open_empty_and_usable(memfd, arguments):
    os.set_inheritable(memfd, True)
    with pytest.raises((memplat.MemplatError, KeyError)):
        memplat.adopt(memfd, **arguments)
    gc.collect()
    assert is_open(memfd)
    assert os.get_inheritable(memfd)
    status = os.fstat(memfd)
    assert (status.st_size, status.st_blocks) == (0, 0)
    assert fcntl.fcntl(memfd, fcntl.F_GET_SEALS) == 0
    memplat.adopt(memfd).close()
