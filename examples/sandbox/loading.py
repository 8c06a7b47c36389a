"""Putting a program into a guest's memory: its segments, and what it finds on its stack."""

from __future__ import annotations

import os
import struct

from examples.sandbox import elf
from examples.sandbox.frames import FRAME, CachedFile
from examples.sandbox.virtual import EXECUTE, READ, TOP, WRITE, VirtualMemory
from memplat.ranges import MIB, align_down, align_up

STACK = 8 * MIB


def map_program(virtual: VirtualMemory, file: CachedFile, program: elf.Program) -> int:
    """Map a program and its stack; where its heap may begin."""
    for segment in program.segments:
        _map_segment(virtual, file, segment)
    virtual.map(TOP - STACK, STACK, READ | WRITE)
    end = max(segment.address + segment.memory_size for segment in program.segments)
    return align_up(end, FRAME)


def _map_segment(virtual: VirtualMemory, file: CachedFile, segment: elf.Segment) -> None:
    access = READ * segment.readable | WRITE * segment.writable | EXECUTE * segment.executable
    start = align_down(segment.address, FRAME)
    skew = segment.address - start
    file_end = align_up(segment.address + segment.file_size, FRAME)
    end = align_up(segment.address + segment.memory_size, FRAME)
    if segment.file_size:
        virtual.map(start, file_end - start, access, file, segment.offset - skew)
    if end > file_end:
        virtual.map(file_end, end - file_end, access)
    rest = file_end - (segment.address + segment.file_size)
    if segment.writable and rest:
        virtual.write(segment.address + segment.file_size, bytes(rest))


def fill_stack(
    virtual: VirtualMemory, program: elf.Program, path: str, arguments: list[str], environment: dict[str, str]
) -> int:
    """Strings, auxiliary vector, environment, arguments, as the System V ABI has them; the stack pointer."""
    at = TOP - 16

    def push(data: bytes) -> int:
        nonlocal at
        at -= len(data)
        virtual.write(at, data)
        return at

    strings = [push(os.fsencode(argument) + b"\0") for argument in arguments]
    variables = [push(os.fsencode(f"{name}={value}") + b"\0") for name, value in environment.items()]
    name, platform, seed = push(os.fsencode(path) + b"\0"), push(b"x86_64\0"), push(os.urandom(16))
    vector = {
        3: program.headers,
        4: program.header_size,
        5: program.header_count,
        6: FRAME,
        9: program.entry,
        **dict.fromkeys((11, 12, 13, 14), 1000),
        15: platform,
        17: 100,
        23: 0,
        25: seed,
        31: name,
        0: 0,
    }
    auxiliary = [word for pair in vector.items() for word in pair]
    words = [len(strings), *strings, 0, *variables, 0, *auxiliary]
    at = align_down(at - 8 * len(words), 16)
    virtual.write(at, struct.pack(f"<{len(words)}Q", *words))
    return at
