"""Drive both page tables, the one in Python and the compiled one, with the same random operations, and compare them.

    python -m benchmarks.compare_cores [--operations 10000000] [--compare-all 100000] [--seed 1] [--page-size 4096]

After each of the first operations everything that can be seen of the tables is compared, afterwards a checksum of it
every now and then. Results and error texts are compared after every operation.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from memplat.engine import pages
from memplat.ranges import FileRange

KINDS = ("system", "anonymous", "page_cache", "tmpfs", "ramdiskfs")
OWNERS = (0, 1, 2, 3, (1 << 32) - 1)
MIB = 1 << 20


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returned, or its error."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001 -- whatever it is, it has to be the same
        return type(error), str(error)


def observables(table: Any, *, full: bool = True) -> tuple[Any, ...]:
    """Everything that can be seen of a table."""
    figures = (
        table.size,
        table.waste,
        table.releasing,
        table.allocations,
        table.frees,
        table.changes,
        table.has_flags,
        len(table.segments),
        len(table.flags),
        table.free_bytes(),
        table.largest_free(),
        table.tail(huge=False),
        table.tail(huge=True),
        table.has_releasable_waste(),
    )
    if not full:
        return figures
    columns = table.segments.columns()
    return (*figures, columns, dict(table.allocated.items()), list(table.runs()), list(table.flags.runs()))


class Driver:
    """Makes up operations, within what the tables' callers may ask for."""

    def __init__(self, seed: int, page_size: int, limit: int) -> None:
        self.random = random.Random(seed)
        self.found: Any = None  # what the last operation gave, of the native table
        self.batch: Any = None  # the same of the last that took pages to release them
        self.page = page_size
        self.limit = limit
        self.python: Any = pages.PageTable(page_size)
        self.native: Any = importlib.import_module("memplat._native.core").PageTable(page_size)
        self.python.kept_is_reserved = self.native.kept_is_reserved = seed % 2 == 1
        self.releasing: list[Any] = []
        self.live: list[Any] = []
        self.pins: list[tuple[int, int]] = []
        self.last = ""

    def both(self, name: str, *args: Any, **options: Any) -> Any:
        """Do the same to both, and compare what comes of it."""
        self.last = f"{name}{args}{options}"
        wanted = outcome(lambda: getattr(self.python, name)(*args, **options))
        found = self.found = outcome(lambda: getattr(self.native, name)(*args, **options))
        alike = type(wanted) is type(found) or (isinstance(wanted, list) and isinstance(found, Sequence))
        if wanted != found or not alike:
            raise SystemExit(f"{self.last}: Python says {wanted!r}, native {found!r}")
        return wanted

    def compare(self, *, full: bool) -> None:
        """Compare all that can be seen."""
        wanted, found = observables(self.python, full=full), observables(self.native, full=full)
        if wanted != found:
            raise SystemExit(f"after {self.last}:\nPython {wanted}\nnative {found}")

    def part(self) -> tuple[int, int]:
        """Some pages: a live allocation, a part of one, or just any."""
        chance = self.random.random()
        if self.live and chance < 0.85:
            start, end = self.random.choice(self.live)
            if chance < 0.6:
                return start, end
            first = self.random.randrange(start, end, self.page)
            return first, self.random.randrange(first, end, self.page) + self.page
        size = self.python.size
        first = self.random.randrange(0, size, self.page)
        most = min(size, first + self.random.choice((1, 4, 64, 1024)) * self.page)
        return first, self.random.randrange(first, most, self.page) + self.page

    def step(self) -> None:
        """One operation."""
        if not self.python.size:
            self.extend()
        name = self.random.choices(NAMES, WEIGHTS)[0]
        getattr(self, name)()

    def extend(self) -> None:
        size = self.python.size
        unit = self.python.huge_unit
        if size >= self.limit:
            return
        grown = size + self.random.randint(1, 4) * unit + self.random.choice((0, 0, 3 * self.page, unit // 2))
        grown = grown // self.page * self.page
        dirty = self.random.choice((0, 0, 0, size + 2 * self.page, grown, grown + unit))
        self.both("extend", grown, huge=self.random.random() < 0.3, dirty_end=dirty)

    def allocate(self) -> None:
        length = self.random.choice((1, 1, 1, 2, 3, 5, 16, 16, 64, 511, 512, 513, 700, 1024)) * self.page
        source = pages.WASTE if self.random.random() < 0.15 else pages.FREE
        found = self.both(
            "allocate",
            length,
            self.random.choice(KINDS),
            self.random.choice(OWNERS),
            down=self.random.random() < 0.2,
            huge=self.random.random() < 0.2,
            source=source,
        )
        if found is not None:
            self.live.append(tuple(found))
        elif source == pages.FREE and self.random.random() < 0.5:
            self.extend()

    def decref(self) -> None:
        if self.live and self.random.random() < 0.8:
            index = self.random.randrange(len(self.live))
            self.live[index], self.live[-1] = self.live[-1], self.live[index]
            self.both("decref", *self.live.pop())
        else:
            self.both("decref", *self.part())

    def incref(self) -> None:
        start, end = self.part()
        if self.both("incref", start, end) is None and self.random.random() < 0.7:
            self.live.append((start, end))

    def pin(self) -> None:
        start, end = self.part()
        if self.both("pin", start, end, "view") is None:
            self.pins.append((start, end))

    def unpin(self) -> None:
        if self.pins:
            self.both("unpin", *self.pins.pop(self.random.randrange(len(self.pins))))

    def transfer(self) -> None:
        self.both("transfer", *self.part(), self.random.choice(OWNERS))

    def borrow(self) -> None:
        self.both("borrow", self.random.choice((1, 512, 513)) * self.page, huge=self.random.random() < 0.5)

    def take_waste(self) -> None:
        if not self.releasing:
            flagged = (*self.python.flagged(pages.KEPT), *self.python.flagged(pages.RETAINED))
            for start, end in zip(flagged[0::2], flagged[1::2], strict=True):
                if any(value[5] == pages.HUGE for _, _, value in self.python.runs(start, end)):
                    self.both("flag", start, end, pages.NONE)  # huge pages are taken with the free pages in them
            most = self.random.choice((1, self.page, 7 * self.page, MIB, 3 * MIB, 64 * MIB))
            self.releasing = self.both("take_waste", most, self.random.choice((1, 2, 3, 64, 1024)))
            self.batch = self.found

    def end_releasing(self) -> None:
        ranges, self.releasing = self.releasing, []
        name = "take_back" if self.random.random() < 0.2 else "release"
        if ranges and self.random.random() < 0.5:
            self.both(name, ranges)
        elif ranges:  # each what it has made itself
            getattr(self.python, name)(ranges)
            getattr(self.native, name)(self.batch)

    def take_free(self) -> None:
        if not self.releasing:
            to_waste = self.random.random() < 0.5
            taken = self.both("take_free", [FileRange(*self.part())], to_waste=to_waste)
            if not to_waste:
                self.releasing, self.batch = taken, self.found

    def flag(self) -> None:
        start, end = self.part()
        self.both("flag", start, end, self.random.choice((pages.NONE, pages.RESERVED)))
        for flag in (pages.RETAINED, pages.KEPT, pages.RESERVED):
            self.both("flagged", flag)
            self.both("flagged", flag, *self.part())

    def flag_free(self) -> None:
        size = self.python.size
        for first, last, value in [*self.python.runs(self.random.randrange(0, size, self.page), size)][:3]:
            if value[0] == pages.FREE:
                self.both("flag", first, last, self.random.choice((pages.RETAINED, pages.KEPT, pages.NONE)))

    def free_waste(self) -> None:
        self.both("free_waste", *self.part())

    def unflag(self) -> None:
        if self.random.random() < 0.2:
            self.both("flag", 0, self.python.size, pages.NONE)

    def look(self) -> None:
        start, end = self.part()
        self.both("inspect", start)
        self.both("first_shared", start, end)
        self.both("require", start, end, "look")
        self.both("ranges_of", self.random.choice(OWNERS))


OPERATIONS = {
    "allocate": 30,
    "decref": 25,
    "incref": 8,
    "pin": 5,
    "unpin": 6,
    "transfer": 3,
    "borrow": 1,
    "take_waste": 4,
    "end_releasing": 5,
    "take_free": 1,
    "flag": 1,
    "flag_free": 1,
    "free_waste": 1,
    "unflag": 1,
    "look": 3,
    "extend": 1,
}
NAMES, WEIGHTS = list(OPERATIONS), list(OPERATIONS.values())


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=10_000_000)
    parser.add_argument("--compare-all", type=int, default=100_000, help="compare everything after so many operations")
    parser.add_argument("--every", type=int, default=10_000, help="then compare checksums so often")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--page-size", type=int, default=4096)
    parser.add_argument("--limit", type=int, default=64 * MIB, help="the size up to which the file grows")
    options = parser.parse_args()
    driver = Driver(options.seed, options.page_size, options.limit)
    started = time.monotonic()
    checksum = 0
    for number in range(options.operations):
        driver.step()
        if number < options.compare_all:
            driver.compare(full=True)
        if number % options.every == 0:
            driver.compare(full=True)
            driver.python._check()
            driver.native._check()
            checksum = zlib.crc32(repr(observables(driver.native)).encode(), checksum)
        if number % 1_000_000 == 0:
            print(f"{number:,} operations, {len(driver.native.segments)} segments", flush=True)
    driver.compare(full=True)
    driver.native._check()
    print(
        f"{options.operations:,} operations, the same in both cores (checksum {checksum:08x}), "
        f"{len(driver.native.segments):,} segments at the end, {time.monotonic() - started:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
