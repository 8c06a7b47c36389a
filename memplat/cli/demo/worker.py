"""What a worker process of the demo runs: standard library only, so that it is plain that a descriptor and offsets are
all that a process needs to use pages of a memory. Started as a script, it never imports memplat.

It reads one JSON document from standard input: ``fd``, an inherited descriptor of the backing file; ``jobs``, a list of
``[start, mapped, length]`` (where the pages begin, how many bytes of pages, how many of them are content); ``results``,
the ``[start, mapped]`` of its result range. For each job it writes a record into that range and then a byte to standard
output. All pages are mapped with mmap(2); those of the content without the right to write.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import sys
from typing import Final

#: SHA-256, bytes, words, the worker's process id.
RECORD: Final = struct.Struct("<32sQQQ")
#: Records are as far apart as cache lines.
RECORD_STRIDE: Final = 64
_CHUNK: Final = 1 << 20


def digest_and_count(content: memoryview) -> tuple[bytes, int]:
    """The SHA-256 of *content*, and how many words (runs of anything but ASCII white space) are in it."""
    digest, words, in_word = hashlib.sha256(), 0, False
    for start in range(0, len(content), _CHUNK):
        chunk = bytes(content[start : start + _CHUNK])
        digest.update(chunk)
        words += len(chunk.split())
        if in_word and not chunk[:1].isspace():
            words -= 1  # a word that began in the chunk before
        in_word = not chunk[-1:].isspace()
    return digest.digest(), words


def work(fd: int, start: int, mapped: int, length: int) -> tuple[bytes, int]:
    """Map the pages read-only and look at the content; an empty file has no pages."""
    if length == 0:
        return digest_and_count(memoryview(b""))
    with (
        mmap.mmap(fd, mapped, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, offset=start) as pages,
        memoryview(pages) as view,
        view[:length] as content,
    ):
        return digest_and_count(content)


def main() -> None:
    """Do all the jobs."""
    order = json.load(sys.stdin)
    fd, (start, mapped) = order["fd"], order["results"]
    with mmap.mmap(fd, mapped, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE, offset=start) as results:
        for index, (pages_start, pages_mapped, length) in enumerate(order["jobs"]):
            digest, words = work(fd, pages_start, pages_mapped, length)
            RECORD.pack_into(results, index * RECORD_STRIDE, digest, length, words, os.getpid())
            os.write(sys.stdout.fileno(), b".")


if __name__ == "__main__":
    main()
