"""What ``memplat conformance --all`` runs on: every backend on all that it can stand on, as far as this host has it.

As root, file systems are made in images and mounted, huge pages and a little swap are added; all is put back at the
end. What cannot be had is a reason, never silence.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from memplat import plugins
from memplat.conformance.observer import free_huge_pages
from memplat.ranges import KIB, MIB

#: The images: what mkfs wants, and the least size that it agrees to. Small, so that they can be filled.
_IMAGES: Final[Mapping[str, tuple[int, tuple[str, ...]]]] = {
    "ext4": (64 * MIB, ("-q", "-b", "4096")),
    "xfs": (300 * MIB, ("-q",)),
    "btrfs": (128 * MIB, ("-q",)),
}
_TMPFS_BYTES: Final = 64 * MIB
_HUGE_PAGES: Final = 40
_HUGE_PAGE_SIZE: Final = 2 * MIB
_SWAP_BYTES: Final = 64 * MIB
_SHMEM_SETTING: Final = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


class UnavailableError(Exception):
    """The host lacks something, or only root may have it.

    :param feature: what it lacks, in a word: ``root``, ``swap``, ``hugetlb``, ``thp``, or a file system
    """

    def __init__(self, feature: str, reason: str) -> None:
        super().__init__(f"needs {feature}: {reason}")


@attrs.frozen
class Stand:
    """One backend on one thing that it can stand on."""

    title: str
    backend: str
    provide: Callable[[], contextlib.AbstractContextManager[Mapping[str, Any]]]
    """Makes it, gives the backend's options, and puts everything back.

    :raises UnavailableError: if it cannot be had
    """


def stands() -> list[Stand]:
    """All of them: the built-in backends, then whatever else is installed, with its default options."""
    built_in = [
        Stand("memfd", "memfd", _nothing),
        Stand("memfd with huge pages (collapse)", "memfd", lambda: contextlib.nullcontext({"huge": "collapse"})),
        Stand("memfd with huge pages (advise)", "memfd", _advised_huge_pages),
        *(Stand(f"tmpfile on {name}", "tmpfile", _image_of(name)) for name in _IMAGES),
        Stand("tmpfile on tmpfs", "tmpfile", _tmpfs),
        *([Stand("tmpfile where temporary files are made", "tmpfile", _nothing)] if os.geteuid() else []),
        Stand("hugetlb with pages of 2 MiB", "hugetlb", _huge_pages),
    ]
    others = [
        Stand(record.name, record.name, _nothing) for record in plugins.list_plugins() if record.source != "built-in"
    ]
    return built_in + others


def _nothing() -> contextlib.AbstractContextManager[Mapping[str, Any]]:
    return contextlib.nullcontext({})


@contextlib.contextmanager
def swap() -> Iterator[str]:
    """A little swap if there is none, for as long as it lasts; the reason if it cannot be had."""
    if len(Path("/proc/swaps").read_text(encoding="utf-8").splitlines()) > 1:
        yield ""
        return
    with tempfile.TemporaryDirectory(prefix="memplat-") as scratch:
        path = Path(scratch, "swap")
        try:
            _need_root("adding swap")
            path.touch(mode=0o600)
            path.write_bytes(bytes(_SWAP_BYTES))  # swapon refuses holes
            _run("swap", "mkswap", str(path))
            _run("swap", "swapon", str(path))
        except (UnavailableError, OSError) as reason:
            yield f"there is no swap: {reason}"
            return
        try:
            yield ""
        finally:
            _run("swap", "swapoff", str(path))


def _image_of(name: str) -> Callable[[], contextlib.AbstractContextManager[Mapping[str, Any]]]:
    return lambda: _mounted_image(name)


@contextlib.contextmanager
def _mounted_image(name: str) -> Iterator[Mapping[str, Any]]:
    _need_root(f"mounting {name}")
    size, arguments = _IMAGES[name]
    with tempfile.TemporaryDirectory(prefix="memplat-") as scratch:
        image, target = Path(scratch, "image"), Path(scratch, "mounted")
        target.mkdir()
        with image.open("wb") as file:
            file.truncate(size)
        _run(name, f"mkfs.{name}", *arguments, str(image))
        _run(name, "mount", "-o", "loop", "-t", name, str(image), str(target))
        try:
            yield {"directory": str(target)}
        finally:
            _run(name, "umount", str(target))


@contextlib.contextmanager
def _tmpfs() -> Iterator[Mapping[str, Any]]:
    if os.geteuid() and os.access("/dev/shm", os.W_OK):  # noqa: S108 -- a tmpfs by definition, shm_overview(7)
        yield {"directory": "/dev/shm"}  # noqa: S108 -- as above
        return
    _need_root("mounting tmpfs")
    with tempfile.TemporaryDirectory(prefix="memplat-") as scratch:
        _run("tmpfs", "mount", "-t", "tmpfs", "-o", f"size={_TMPFS_BYTES}", "memplat-conformance", scratch)
        try:
            yield {"directory": scratch}
        finally:
            _run("tmpfs", "umount", scratch)


@contextlib.contextmanager
def _huge_pages() -> Iterator[Mapping[str, Any]]:
    directory = Path(f"/sys/kernel/mm/hugepages/hugepages-{_HUGE_PAGE_SIZE // KIB}kB")
    if not directory.is_dir():
        raise UnavailableError("hugetlb", "the kernel has no huge pages of 2 MiB")
    missing = _HUGE_PAGES - free_huge_pages(_HUGE_PAGE_SIZE)
    if missing <= 0:
        yield {"page_size": _HUGE_PAGE_SIZE}
        return
    remedy = f"echo {_HUGE_PAGES} > {directory}/nr_hugepages"
    _need_root(f"adding {missing} huge pages of 2 MiB ({remedy})")
    had = int((directory / "nr_hugepages").read_text())
    with _setting(directory / "nr_hugepages", str(had + missing)):
        if free_huge_pages(_HUGE_PAGE_SIZE) < _HUGE_PAGES:
            raise UnavailableError("hugetlb", f"the host has no room for {missing} more huge pages of 2 MiB")
        yield {"page_size": _HUGE_PAGE_SIZE}


@contextlib.contextmanager
def _advised_huge_pages() -> Iterator[Mapping[str, Any]]:
    setting = _SHMEM_SETTING.read_text() if _SHMEM_SETTING.exists() else ""
    if not setting:
        raise UnavailableError("thp", "the kernel has no transparent huge pages for memfds")
    if "[never]" not in setting and "[deny]" not in setting:
        yield {"huge": "advise"}
        return
    _need_root(f"switching transparent huge pages on (echo advise > {_SHMEM_SETTING})")
    with _setting(_SHMEM_SETTING, "advise"):
        yield {"huge": "advise"}


@contextlib.contextmanager
def _setting(file: Path, value: str) -> Iterator[None]:
    """A file of /sys set to *value*, and back to what it was."""
    before = file.read_text().strip()
    if "[" in before:
        before = before.partition("[")[2].partition("]")[0]
    file.write_text(value)
    try:
        yield
    finally:
        file.write_text(before)


def _need_root(what: str) -> None:
    if os.geteuid():
        raise UnavailableError("root", what)


def _run(feature: str, *command: str) -> None:
    """Run a program of the host, for the sake of *feature*."""
    path = shutil.which(command[0], path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if path is None:
        raise UnavailableError(feature, f"{command[0]} is not installed")
    done = subprocess.run([path, *command[1:]], capture_output=True, text=True, check=False)
    if done.returncode:
        told = done.stderr.strip() or done.stdout.strip()
        raise UnavailableError(feature, f"{' '.join(command)} failed: {told}")


__all__ = ["Stand", "UnavailableError", "stands", "swap"]
