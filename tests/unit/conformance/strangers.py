"""Distributions of strangers for tests: on the path, with their metadata, as if they were installed."""

from __future__ import annotations

import textwrap
from pathlib import Path

GOOD = """
    import os
    from memplat import BackendInfo, BackingFile, hookimpl

    @hookimpl
    def memplat_backend_info():
        return BackendInfo(name="{name}", version="0.1", capabilities={{"share"}})

    @hookimpl
    def memplat_create_file(options):
        fd = os.memfd_create("stranger", os.MFD_CLOEXEC)
        os.fchmod(fd, 0o600)
        return BackingFile(fd=fd, page_size=4096, backend="{name}")
"""
#: Not only the smoke tier passes: one check of the rest fails.
READABLE = GOOD.replace("0o600", "0o644")
#: Zeros, and no storage given back: the smoke tier fails.
STINGY = (
    GOOD
    + """
    @hookimpl
    def memplat_decommit(file, ranges):
        for pages in ranges:
            os.pwrite(file.fd, bytes(pages.length), pages.start)
        return True
"""
)


def put(site: Path, name: str, module: str) -> Path:
    """A distribution *name* with a backend of that name, in the directory *site*."""
    info = site / f"{name}-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[memplat]\n{name} = {name}_backend\n")
    (site / f"{name}_backend.py").write_text(
        textwrap.dedent(module).replace("{name}", name).replace("{{", "{").replace("}}", "}")
    )
    return site
