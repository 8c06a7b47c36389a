"""``memplat demo``: the main job, and every way in which it can go wrong."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from memplat.cli.app import app
from memplat.cli.demo import worker, workers
from tests.hostparts import hugetlb_pool
from tests.needs import need_root
from tests.unit.cli.running import WIDE, environment, run_memplat

REAL_WORKER = workers.WORKER_SCRIPT


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Files of sizes around the page, one of them empty, one with words across the borders of pages and chunks."""
    contents = {
        "empty": b"",
        "small": b"one two\tthree\n",
        "page": b"x" * 4096,
        "more": b"word " * 1000 + b"\xff\x00 end",
        "long": b"0123456 " * (3 << 17) + b"0" * 5000,
    }
    paths = []
    for name, content in contents.items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(content)
    return paths


@pytest.fixture(autouse=True)
def nobodys_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user's that changes what memplat does."""
    for name in [name for name in os.environ if name.startswith("MEMPLAT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")


def run_here(*arguments: object) -> Result:
    """The demo in this process, so that a test can put other workers in."""
    return CliRunner(env=WIDE).invoke(app, ["demo", *map(str, arguments)], catch_exceptions=False)


def report_of(*arguments: object) -> dict[str, Any]:
    result = run_here("--json", *arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["ok"] is True
    assert report["problems"] == []
    return report  # type: ignore[no-any-return]


def moments_of(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {moment["name"]: moment for moment in report["moments"]}


def round_up(nbytes: int) -> int:
    return -(-nbytes // 4096) * 4096


def test_without_files_it_takes_the_packages_own_sources() -> None:
    done = run_memplat("demo", "--json")
    assert done.returncode == 0, done.stderr
    names = {Path(found["path"]).name for found in json.loads(done.stdout)["files"]}
    assert {"memory.py", "memoryfile.py", "worker.py"} <= names


def test_results_are_those_of_the_files(files: list[Path]) -> None:
    report = report_of(*files, "--workers", 2)
    found = {found["path"]: found for found in report["files"]}
    assert found.keys() == {str(path) for path in files}
    for path in files:
        content = path.read_bytes()
        mine = found[str(path)]
        assert mine["sha256"] == hashlib.sha256(content).hexdigest()
        assert (mine["length"], mine["words"]) == (len(content), len(content.split()))


def test_usage_is_what_the_files_need_at_every_moment(files: list[Path]) -> None:
    report = report_of(*files, "--workers", 2)
    pages = sum(round_up(path.stat().st_size) for path in files)
    moments = moments_of(report)
    assert list(moments) == ["opened", "loaded", "working", "worked", "freed"]
    for name in ("loaded", "working", "worked"):
        assert moments[name]["committed"]["page_cache"] == pages
    assert moments["worked"]["committed"]["anonymous"] == 2 * 4096  # a page of results for each worker
    assert moments["worked"]["total"] == moments["worked"]["fstat"] == pages + 2 * 4096
    assert {owner for owner, kinds in moments["worked"]["committed_by_owner"].items() if any(kinds.values())} == {
        "1",
        "2",
    }
    assert moments["opened"]["fstat"] == moments["freed"]["fstat"] == moments["freed"]["total"] == 0
    for name in ("opened", "loaded", "worked", "freed"):
        assert moments[name]["exact"] is True


def test_the_work_is_done_by_other_processes(files: list[Path]) -> None:
    report = report_of(*files, "--workers", 3)
    assert report["workers"] == 3
    assert len({found["process"] for found in report["files"]}) == 3


def test_no_more_workers_than_files(files: list[Path]) -> None:
    assert report_of(files[1], "--workers", 9)["workers"] == 1


def test_an_empty_file_alone_takes_no_page_cache(files: list[Path]) -> None:
    report = report_of(files[0])
    assert moments_of(report)["worked"]["committed"].get("page_cache", 0) == 0
    assert report["files"][0]["sha256"] == hashlib.sha256(b"").hexdigest()


def test_the_same_file_twice_is_two_files(files: list[Path]) -> None:
    assert len(report_of(files[1], files[1])["files"]) == 2


def test_the_page_map_shows_pages_of_both_kinds(files: list[Path]) -> None:
    page_map = report_of(files[2], "--workers", 1)["page_map"]
    assert page_map == {"cell_bytes": 4096, "rows": ["PA"]}


def test_piped_output_has_no_escapes(files: list[Path]) -> None:
    done = run_memplat("demo", *files)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "5 files" in done.stdout
    assert "What the host still spends on the memory: nothing." in done.stdout


def run_in_terminal(*arguments: object, **env: str) -> str:
    """All that the demo writes to a terminal that is its standard output and standard error."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "memplat", "demo", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=follower,
        env=environment(TERM="xterm-256color", **env),
    )
    os.close(follower)
    output = bytearray()
    while True:
        try:
            output += os.read(leader, 65536)
        except OSError:  # EIO: the other end was closed
            break
    os.close(leader)
    assert process.wait() == 0, output
    return output.decode()


def test_a_terminal_gets_colours_and_progress(files: list[Path]) -> None:
    shown = run_in_terminal(*files)
    assert "\x1b[36mP" in shown
    assert "loading" in shown


def test_no_color_is_honoured_in_a_terminal(files: list[Path]) -> None:
    assert "\x1b[36m" not in run_in_terminal(*files, NO_COLOR="1")


def test_verbose_lists_every_file_with_its_whole_digest(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"file{number}").write_text(f"{number}")
    few = run_here(*sorted(tmp_path.iterdir()))
    assert "and 4 more" in few.stdout
    every = run_here("--verbose", *sorted(tmp_path.iterdir()))
    assert all(f"file{number}" in every.stdout for number in range(12))
    assert hashlib.sha256(b"11").hexdigest() in every.stdout


# -- wrong usage ------------------------------------------------------------------------------------------------------


def expect_usage_error(*told: str, arguments: tuple[object, ...]) -> None:
    result = run_here(*arguments)
    assert result.exit_code == 2, result.output
    for words in told:
        assert words in result.stderr


def test_a_missing_file_is_wrong_usage(tmp_path: Path) -> None:
    expect_usage_error("does not exist", "nothing", arguments=(tmp_path / "nothing",))


def test_a_directory_is_wrong_usage(tmp_path: Path) -> None:
    expect_usage_error("is a directory", arguments=(tmp_path,))


def test_what_is_no_regular_file_is_wrong_usage(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    expect_usage_error("fifo", "no regular file", arguments=(tmp_path / "fifo",))
    expect_usage_error("no regular file", arguments=("/dev/zero",))


def test_an_unreadable_file_is_wrong_usage() -> None:
    need_root("to run a process as somebody else")
    code = (
        "import os, sys; from memplat.cli import app; os.setgid(65534); os.setuid(65534);"
        "app.app(['demo', sys.argv[1]], prog_name='memplat')"
    )
    with tempfile.TemporaryDirectory() as directory:  # tmp_path is below a directory that only root may enter
        Path(directory).chmod(0o755)
        secret = Path(directory, "secret")
        secret.write_text("secret")
        secret.chmod(0o600)
        command = [sys.executable, "-c", code, str(secret)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "is not readable" in done.stderr


@pytest.mark.parametrize("workers", ["0", "-1", "many"])
def test_an_impossible_number_of_workers_is_wrong_usage(workers: str) -> None:
    expect_usage_error("--workers", arguments=("--workers", workers))


def test_an_unknown_backend_is_wrong_usage() -> None:
    expect_usage_error("memdf", "memfd", arguments=("--backend", "memdf"))


# -- what can go wrong while it runs ----------------------------------------------------------------------------------


def use_worker(monkeypatch: pytest.MonkeyPatch, directory: Path, before: str, *, after: str = "") -> None:
    """Let the workers run *before*, then their real work, then *after*."""
    script = directory / "other_worker.py"
    script.write_text(
        f"import os, runpy, signal\n{before}\nrunpy.run_path({str(REAL_WORKER)!r}, run_name='__main__')\n{after}"
    )
    monkeypatch.setattr(workers, "WORKER_SCRIPT", script)


def expect_failure(*arguments: object, told: str) -> dict[str, Any]:
    """The demo fails, says so, and has given everything back."""
    result = run_here(*arguments)
    assert result.exit_code == 1, result.output
    assert "FAILED" in result.stderr
    assert told in result.stderr
    again = run_here("--json", *arguments)
    assert again.exit_code == 1
    report = json.loads(again.stdout)
    assert report["ok"] is False
    assert any(told in problem for problem in report["problems"])
    freed = moments_of(report)["freed"]
    assert freed["fstat"] == freed["total"] == sum(freed["allocated"].values()) == 0
    return report  # type: ignore[no-any-return]


def test_a_killed_worker_is_told_and_everything_given_back(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_worker(monkeypatch, tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    report = expect_failure(*files, told="was killed by SIGKILL before its work was done")
    assert report["files"] == []


def test_a_worker_that_ends_early_is_told(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_worker(monkeypatch, tmp_path, "raise SystemExit(0)")
    expect_failure(*files, told="ended with status 0 before its work was done")


def test_a_worker_that_raises_is_told_with_its_last_words(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_worker(monkeypatch, tmp_path, "raise LookupError('no table')")
    expect_failure(*files, told="ended with status 1 before its work was done: LookupError: no table")


def test_one_dead_worker_ends_the_others(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tmp_path / "first"
    use_worker(
        monkeypatch,
        tmp_path,
        f"try: os.mkdir({str(first)!r})\n"
        f"except FileExistsError: open({str(tmp_path)!r} + f'/pid-{{os.getpid()}}', 'w').close(); signal.pause()\n"
        "else: os.kill(os.getpid(), signal.SIGKILL)",
    )
    result = run_here(*files, "--workers", 3)
    assert result.exit_code == 1
    assert "SIGKILL" in result.stderr
    for path in tmp_path.glob("pid-*"):
        assert not Path(f"/proc/{path.name.removeprefix('pid-')}").exists()


def test_a_file_that_changes_meanwhile_is_told(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_worker(monkeypatch, tmp_path, f"open({str(files[1])!r}, 'a').write('four')")
    expect_failure(files[1], told=f"{files[1]}: SHA-256 and words are not those of the file: it was changed")


def test_a_file_that_vanishes_meanwhile_is_told(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_worker(monkeypatch, tmp_path, f"os.unlink({str(files[1])!r})")
    result = run_here(files[1])
    assert result.exit_code == 1
    assert "FileNotFoundError" in result.stderr


def test_a_wrong_result_is_told(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_worker(monkeypatch, tmp_path, "import hashlib; hashlib.sha256 = hashlib.sha3_256")
    expect_failure(files[1], told="the pages or the worker are wrong")


def test_a_page_that_a_worker_commits_outside_of_its_ranges_is_shown_apart(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_worker(
        monkeypatch,
        tmp_path,
        "import io, json, sys\norder = sys.stdin.read()\nsys.stdin = io.StringIO(order)\n"
        "fd = json.loads(order)['fd']\nos.pwrite(fd, b'stray', os.fstat(fd).st_size - 4096)",
    )
    result = run_here("--json", files[1], "--workers", 1)
    report = json.loads(result.stdout)
    worked = moments_of(report)["worked"]
    assert worked["free_committed"] + worked["waste"] == 4096
    assert worked["total"] == worked["fstat"] == 3 * 4096


def test_a_file_whose_size_the_kernel_does_not_tell_is_told() -> None:
    expect_failure("/proc/self/status", told="0 bytes long by its size, but at least 1 when it is read")


def test_files_larger_than_the_memory_may_be_are_told(files: list[Path], tmp_path: Path) -> None:
    config = tmp_path / "memplat.toml"
    config.write_text("[memory]\nmax_size = '64KiB'\n")
    expect_failure("--config", config, *files, told="max_size")


def test_a_file_larger_than_the_host_is_told_before_it_is_loaded(tmp_path: Path) -> None:
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(4 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    config = tmp_path / "memplat.toml"
    config.write_text("[memory]\nmax_size = '64TiB'\n")
    expect_failure("--config", config, huge, told="the host refused")


def test_an_interrupt_leaves_no_worker_behind(tmp_path: Path) -> None:
    pid_file, script, source = tmp_path / "pid", tmp_path / "worker.py", tmp_path / "source"
    source.write_text("some words")
    script.write_text(
        "import os, signal, sys\n"
        "sys.stdin.read()\n"  # not before the parent has it in its care
        f"open({str(pid_file)!r}, 'w').write(str(os.getpid()))\nos.kill(os.getppid(), signal.SIGINT)\nsignal.pause()\n"
    )
    code = (
        "from pathlib import Path; from memplat.cli import main; from memplat.cli.demo import workers;"
        f"workers.WORKER_SCRIPT = Path({str(script)!r}); main()"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, "demo", str(source)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "Aborted" in done.stderr
    assert "ResourceWarning" not in done.stderr
    assert not Path(f"/proc/{pid_file.read_text()}").exists()


def test_a_closed_pipe_is_no_traceback(files: list[Path]) -> None:
    command = f"{sys.executable} -m memplat demo {' '.join(map(str, files))} | head -n 1"
    done = subprocess.run(["bash", "-c", command], env=environment(), capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


# -- configurations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    ["reclaim = 'manual'", "default_mode = 'committed'", "reclaim_delay = 60", "[memory.memfd]\nhuge = 'advise'"],
)
def test_it_adds_up_however_the_memory_is_configured(files: list[Path], tmp_path: Path, settings: str) -> None:
    config = tmp_path / "memplat.toml"
    config.write_text(f"[memory]\n{settings}\n")
    report_of("--config", config, *files)


def test_what_the_configuration_keeps_is_no_leak(files: list[Path], tmp_path: Path) -> None:
    config = tmp_path / "memplat.toml"
    config.write_text("[memory]\nkeep = '32KiB'\n")
    freed = moments_of(report_of("--config", config, *files))["freed"]
    assert 0 < freed["free_committed"] == freed["total"] <= 32 * 1024
    assert "which the configuration keeps" in run_here("--config", config, *files).stdout


def test_the_backend_is_taken_from_a_list_in_order(files: list[Path]) -> None:
    assert report_of("--backend", "memfd,tmpfile", files[1])["backend"]["name"] == "memfd"


def test_it_adds_up_on_a_file_system(files: list[Path], tmp_path: Path) -> None:
    config = tmp_path / "memplat.toml"
    config.write_text(f"[memory]\nbackend = 'tmpfile'\n[memory.tmpfile]\ndirectory = '{tmp_path}'\n")
    before = sorted(os.listdir(tmp_path))
    report = report_of("--config", config, *files)
    assert report["backend"]["name"] == "tmpfile"
    assert sorted(os.listdir(tmp_path)) == before


def test_it_adds_up_on_huge_pages(files: list[Path]) -> None:
    with hugetlb_pool(16):
        report = report_of("--backend", "hugetlb", "--workers", 2, *files)
    assert moments_of(report)["worked"]["committed"]["page_cache"] == 5 * (2 << 20)  # "long" has two


# -- the parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 4096])
def test_words_are_counted_right_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(worker, "_CHUNK", chunk)
    for content in (b"", b" ", b"a", b" a", b"a ", b"ab cd", b"ab  cd\n", b"\n\n a\tb\x0bc\x0c", b"abcdefgh " * 5):
        digest, words = worker.digest_and_count(memoryview(content))
        assert digest == hashlib.sha256(content).digest()
        assert words == len(content.split())


def test_a_worker_imports_nothing_of_memplat() -> None:
    code = f"import sys, runpy; runpy.run_path({str(REAL_WORKER)!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert not [name for name in done.stdout.split() if name.startswith("memplat")]


def test_a_worker_dies_of_a_signal_with_its_name() -> None:
    error = workers.WorkerError(3, -signal.SIGSEGV, 42, "")
    assert str(error) == "worker 3 (process 42) was killed by SIGSEGV before its work was done"
