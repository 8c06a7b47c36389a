"""A naive page-by-page model and a real memfd memory do the same at random, and have to agree after every step.

The model is ``tests/oracle.py``. What the host really holds is read from the kernel by other means than the engine's.
``MEMPLAT_SOAK=1`` does ten times as many examples.
"""

from __future__ import annotations

import gc
import io
import os
import warnings
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import memplat
from memplat import FileRange
from memplat.memory import Memory
from tests.oracle import (
    KINDS,
    PAGE,
    ModelError,
    NaiveModel,
    Observer,
    backing_descriptor,
    descriptors,
    has_cachestat,
    positive,
    usage_errors,
)
from tests.unit.engine.helpers import HUGE, MIB

pytestmark = pytest.mark.skipif(not has_cachestat(), reason="the oracle needs cachestat(2), Linux 6.5")

MAX_SIZE = 8 * MIB
OWNERS = (0, 1, 2, 2**32 - 1)
SOAK = os.environ.get("MEMPLAT_SOAK", "") not in ("", "0")

counts = st.one_of(st.integers(1, 6), st.integers(1, 6), st.integers(1, 64), st.sampled_from([511, 512, 513, 1024]))
fractions = st.integers(0, 10_000)
modes = st.sampled_from(["uncommitted", "uncommitted", "will_commit", "reserved", "committed"])


class MemoryMachine(RuleBasedStateMachine):
    """The rules are what users, peers and the host do."""

    def __init__(self) -> None:
        super().__init__()
        self.model = NaiveModel()
        self.memory: Memory
        self.observer: Observer
        self.views: list[tuple[memoryview, FileRange, bool]] = []
        self.blocks: list[tuple[memplat.Block, FileRange]] = []
        self.huge_was_used = False
        self.serial = 0

    @initialize(manual=st.booleans(), shared=st.booleans(), keep=st.sampled_from([0, 0, 0, 64 * PAGE]))
    def open(self, manual: bool, shared: bool, keep: int) -> None:
        before = descriptors()
        self.manual, self.shared, self.keep = manual, shared, keep
        self.dirtied: set[int] = set()
        self.memory = memplat.open(
            "memfd",
            max_size=MAX_SIZE,
            reclaim="manual" if manual else "background",
            reclaim_delay=0,
            keep=keep,
        )
        fd = self.memory.fileno() if shared else backing_descriptor(before)
        self.observer = Observer(fd)
        self.mapping: Any = None

    def teardown(self) -> None:
        if not hasattr(self, "observer"):
            return
        try:
            self.end()
        finally:
            for view, _, _ in self.views:
                view.release()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                self.memory.close()
            if self.mapping is not None:
                self.mapping.close()
            self.observer.close()
            gc.collect()

    def end(self) -> None:
        """Everything is let go; nothing is left on the host. Views still show what they showed."""
        shown = [(view, bytes(view)) for view, _, pinned in self.views if pinned]
        for block, _ in self.blocks:
            block.close()
        for _, pages in self.blocks:
            self.model.decref(*pages)
        self.verify_contents()
        for start, end in self.model.used_runs():
            refs = self.model.pages[start // PAGE].refs
            first = start
            for offset in range(start, end + PAGE, PAGE):
                now = self.model.pages[offset // PAGE].refs if offset < end else -1
                if now != refs:
                    for _ in range(refs):
                        self.memory.decref(FileRange(first, offset))
                        self.model.decref(first, offset)
                    first, refs = offset, now
        self.check_pages()
        for view, content in shown:
            assert bytes(view) == content
        for view, covered, pinned in self.views:
            view.release()
            if pinned:
                self.model.unpin(*covered)
        self.views.clear()
        assert not self.model.pages
        if self.observer.size > self.memory.total_size():  # what peers put beyond our size is theirs to take back
            self.observer.punch(self.memory.total_size(), self.observer.size - self.memory.total_size())
        self.memory.update_usage()
        self.memory.reclaim()
        assert self.memory.wait_reclaimed(timeout=60)
        assert self.memory.total_usage() <= self.keep
        usage = self.memory.update_usage()
        assert usage.total == self.observer.blocks + sum(self.model.external.values())
        # A page that is kept committed may be dirtied behind our back: it is zeroed when it is handed out.
        assert set(self.observer.nonzero_pages(self.observer.committed_pages())) <= self.dirtied

    # -- what to do it with ----------------------------------------------------------------------------------------

    def a_range(self, where: int, length: int, *, by_refs: bool = True) -> FileRange | None:
        """A page-aligned part of what is held, across allocations if they are adjacent."""
        runs = self.model.used_runs(by_refs=by_refs)
        if not runs:
            return None
        start, end = runs[where % len(runs)]
        pages = (end - start) // PAGE
        first = (where * 7919) % pages
        return FileRange(start + first * PAGE, start + min(first + length, pages) * PAGE)

    def bytes_of(self, where: int, length: int, offset: int) -> FileRange | None:
        """Any byte range of what is held."""
        pages = self.a_range(where, length)
        if pages is None:
            return None
        start = pages.start + offset % PAGE
        return FileRange(start, max(start + 1, pages.end - offset % 97))

    def stamp(self) -> bytes:
        """Bytes that were never written before."""
        self.serial += 1
        return b"<%d>" % self.serial

    # -- rules: the memory's calls ---------------------------------------------------------------------------------

    @rule(
        count=counts,
        kind=st.sampled_from(KINDS),
        owner=st.sampled_from(OWNERS),
        mode=modes,
        direction=st.sampled_from(["up", "down"]),
        huge=st.integers(0, 9).map(lambda number: number == 0),
        fill=st.sampled_from([None, None, None, b"", b"buffer", "reader"]),
        block=st.integers(0, 5).map(lambda number: number == 0),
    )
    def allocate(
        self,
        count: int,
        kind: str,
        owner: int,
        mode: str,
        direction: str,
        huge: bool,
        fill: bytes | str | None,
        block: bool,
    ) -> None:
        huge = huge and self.manual  # in the background, a part of a huge page may stay waste for ever
        content = self.stamp() * 300 if fill == "reader" else fill
        assert not isinstance(content, str)
        content = None if content is None else content[: count * PAGE]
        source = io.BytesIO(content) if fill == "reader" and content is not None else content
        options: dict[str, Any] = {"kind": kind, "owner": owner, "mode": mode, "direction": direction}
        free = self.free_pages() if self.manual else None
        clean = max(self.memory.total_size(), self.observer.size)  # what a peer has grown may come in as waste
        room = self.fits(count)
        try:
            if block:
                got = self.memory.block(count * PAGE, huge=huge, fill=source, **options)
                pages = got.pages
                self.blocks.append((got, pages))
            else:
                pages = self.memory.allocate(count * PAGE, huge=huge, fill=source, **options)
        except memplat.OutOfMemory:
            assert not room or huge or self.huge_was_used, f"{count} pages fit\n{self.memory.dump()}"
            return
        assert room, f"{count} pages do not fit, and yet {pages} was handed out"
        assert pages.end - pages.start == count * PAGE
        assert pages.start % (HUGE if count * PAGE >= HUGE else PAGE) == 0
        assert pages.end <= self.memory.total_size()
        if free is not None and mode == "uncommitted" and not huge and not self.huge_was_used:
            self.check_first_fit(pages, direction, free, clean)
        self.huge_was_used |= huge
        committed = {"uncommitted": False, "will_commit": None, "reserved": True, "committed": True}[mode]
        if self.keep or huge or self.huge_was_used:
            committed = committed or None  # a free page may be kept, or be part of a huge page
        self.model.allocate(pages.start, pages.end, kind, owner, committed=committed)
        fresh = content or b""
        assert self.observer.read(pages.start, count * PAGE) == fresh + bytes(count * PAGE - len(fresh))
        if content:
            self.model.write(pages.start, content)

    def fits(self, count: int) -> bool:
        """Whether there is room, once all waste has been given back."""
        step = HUGE // PAGE if count * PAGE >= HUGE else 1
        held = self.model.pages
        last = MAX_SIZE // PAGE - count
        first = 0
        while first <= last:
            obstacle = next((page for page in range(first + count - 1, first - 1, -1) if page in held), None)
            if obstacle is None:
                return True
            first = -(-(obstacle + 1) // step) * step
        return False

    def free_pages(self) -> set[int]:
        """The pages that the memory calls free."""
        found: set[int] = set()
        offset, size = 0, self.memory.total_size()
        while offset < size:
            info = self.memory.inspect(offset)
            if info.state == "free":
                found.update(range(offset // PAGE, info.pages.end // PAGE))
            offset = info.pages.end
        return found

    def check_first_fit(self, pages: FileRange, direction: str, free: set[int], clean: int) -> None:
        count = (pages.end - pages.start) // PAGE
        now = self.memory.total_size()
        free = free | set(range(-(-clean // PAGE), now // PAGE))
        step = HUGE // PAGE if count * PAGE >= HUGE else 1
        starts = range(0, now // PAGE - count + 1, step)
        for first in starts if direction == "up" else reversed(starts):
            if all(page in free for page in range(first, first + count)):
                assert pages.start == first * PAGE, f"{pages}, but page {first} is the first fit {direction}"
                return
        # Nothing fitted, so waste had to be reclaimed first: the model does not know which.

    @precondition(lambda self: self.blocks)
    @rule(which=fractions)
    def close_block(self, which: int) -> None:
        block, pages = self.blocks.pop(which % len(self.blocks))
        block.close()
        block.close()
        self.model.decref(*pages)

    def protected(self, pages: FileRange) -> bool:
        """Whether a block owns the last reference of one of the pages: dropping it by range is a user's mistake."""
        return any(
            self.model.pages[number].refs <= sum(own.start <= number * PAGE < own.end for _, own in self.blocks)
            for number in self.model.span(*pages)
        )

    @rule(where=fractions, length=counts)
    def incref(self, where: int, length: int) -> None:
        pages = self.a_range(where, length)
        if pages is not None:
            self.memory.incref(pages)
            self.model.incref(*pages)

    @rule(where=fractions, length=counts)
    def decref(self, where: int, length: int) -> None:
        self._decref(where, length)

    @rule(where=fractions, length=counts)
    def decref_again(self, where: int, length: int) -> None:
        self._decref(where, length)

    def _decref(self, where: int, length: int) -> None:
        pages = self.a_range(where, length)
        if pages is not None and not self.protected(pages):
            self.memory.decref(pages)
            self.model.decref(*pages)

    @rule(first=st.integers(0, MAX_SIZE // PAGE), count=st.integers(1, 40), what=st.sampled_from(["incref", "decref"]))
    def change_references_anywhere(self, first: int, count: int, what: str) -> None:
        pages = FileRange(first * PAGE, (first + count) * PAGE)
        error: type[Exception] = memplat.DoubleFreeError if what == "decref" else memplat.NotAllocatedError
        if pages.end > self.memory.total_size():
            error = memplat.InvalidRangeError
        try:
            self.model.held(*pages, by_refs=True)
        except ModelError:
            with pytest.raises(error):
                getattr(self.memory, what)(pages)
            return
        if what == "incref" or not self.protected(pages):
            getattr(self.memory, what)(pages)
            getattr(self.model, what)(*pages)

    @rule(where=fractions, length=counts, offset=fractions, writable=st.booleans(), pin=st.booleans())
    def open_view(self, where: int, length: int, offset: int, writable: bool, pin: bool) -> None:
        covered = self.bytes_of(where, length, offset)
        if covered is None:
            return
        view = self.memory.view(covered, writable=writable, pin=pin)
        assert len(view) == covered.end - covered.start
        assert view.readonly is not writable
        self.views.append((view, covered, pin))
        if pin:
            self.model.pin(*covered)

    @precondition(lambda self: self.views)
    @rule(which=fractions)
    def drop_view(self, which: int) -> None:
        view, covered, pin = self.views.pop(which % len(self.views))
        if pin:
            self.model.unpin(*covered)
        view.release()

    @precondition(lambda self: self.views)
    @rule(which=fractions)
    def drop_view_by_slice(self, which: int) -> None:
        """The view goes, a slice of it stays for a moment."""
        view, covered, pin = self.views.pop(which % len(self.views))
        piece = view[: len(view) // 2 + 1]
        del view
        gc.collect(0)
        if pin:
            assert self.memory.inspect(covered.start).views > 0
            self.model.unpin(*covered)
        del piece

    @precondition(lambda self: self.views)
    @rule(which=fractions, offset=fractions)
    def write_by_view(self, which: int, offset: int) -> None:
        view, covered, _ = self.views[which % len(self.views)]
        if not self.is_held(covered):
            return
        stamp = self.stamp()[: len(view)]
        at = offset % (len(view) - len(stamp) + 1)
        if view.readonly:
            with pytest.raises(TypeError):
                view[at] = 1
            return
        view[at : at + len(stamp)] = stamp
        self.model.write(covered.start + at, stamp)

    @precondition(lambda self: self.views)
    @rule(which=fractions)
    def read_by_view(self, which: int) -> None:
        view, covered, _ = self.views[which % len(self.views)]
        if self.is_held(covered):
            assert bytes(view) == self.model.read(*covered)
            self.model.touch(*covered)

    def is_held(self, covered: FileRange) -> bool:
        return all(number in self.model.pages for number in self.model.span(*covered))

    @rule(where=fractions, length=counts, offset=fractions)
    def write(self, where: int, length: int, offset: int) -> None:
        covered = self.bytes_of(where, length, offset)
        if covered is not None:
            stamp = (self.stamp() * 1200)[: covered.end - covered.start]
            self.memory.write(covered, stamp)
            self.model.write(covered.start, stamp)

    @rule(where=fractions, length=counts, offset=fractions)
    def read(self, where: int, length: int, offset: int) -> None:
        covered = self.bytes_of(where, length, offset)
        if covered is not None:
            assert self.memory.read(covered) == self.model.read(*covered)

    @rule(where=fractions, length=counts)
    def decommit(self, where: int, length: int) -> None:
        pages = self.a_range(where, length)
        if pages is None:
            return
        before = self.observer.blocks
        back = self.memory.decommit(pages)
        assert self.observer.is_zero(pages.start, pages.end - pages.start)
        if self.manual:
            assert back == before - self.observer.blocks
        self.model.clear(*pages)
        if self.huge_was_used:  # part of a huge page stays
            for number in self.model.span(*pages):
                self.model.pages[number].committed = None

    @rule(where=fractions, length=counts, owner=st.sampled_from(OWNERS))
    def transfer(self, where: int, length: int, owner: int) -> None:
        pages = self.a_range(where, length)
        if pages is not None:
            self.memory.transfer(pages, owner)
            self.model.transfer(*pages, owner)

    @rule(where=fractions, length=counts)
    def ask_about_sharing(self, where: int, length: int) -> None:
        pages = self.a_range(where, length)
        if pages is not None:
            assert self.memory.has_unique_ref(pages) is self.model.unique(*pages)
            assert self.memory.first_shared_range(pages) == self.model.first_shared(*pages)

    @rule(max_bytes=st.sampled_from([None, None, PAGE, 16 * PAGE, MIB]))
    def reclaim(self, max_bytes: int | None) -> None:
        before = self.free_pages() if self.manual else set()
        back = self.memory.reclaim(max_bytes)
        if self.manual:
            assert len(self.free_pages() - before) * PAGE == back
            if max_bytes is None and not self.huge_was_used:
                assert self.memory.wait_reclaimed() is True

    @rule(nbytes=st.integers(-5_000, 20_000), owner=st.sampled_from(OWNERS))
    def account_external(self, nbytes: int, owner: int) -> None:
        if self.model.external.get(owner, 0) + nbytes < 0:
            with pytest.raises(memplat.InvalidArgumentError):
                self.memory.account_external(nbytes, owner=owner)
            return
        self.memory.account_external(nbytes, owner=owner)
        self.model.external[owner] = self.model.external.get(owner, 0) + nbytes

    @rule()
    def dump(self) -> None:
        assert self.memory.dump()

    # -- rules: what happens behind the memory's back --------------------------------------------------------------

    @precondition(lambda self: self.shared)
    @rule(where=fractions, length=st.integers(1, 8), write=st.booleans())
    def touch_by_second_mapping(self, where: int, length: int, write: bool) -> None:
        pages = self.a_range(where, length, by_refs=False)
        if pages is None:
            return
        if self.mapping is None or self.mapping.length < pages.end:
            if self.mapping is not None:
                self.mapping.close()
            self.mapping = self.observer.map(0, self.memory.total_size())
        for start in range(pages.start, pages.end, PAGE):
            if write:
                stamp = self.stamp()
                self.mapping.touch_write(start, stamp)
                self.model.write(start, stamp)
            else:
                self.mapping.touch_read(start)
                self.model.touch(start, start + PAGE)

    @precondition(lambda self: self.shared)
    @rule(where=fractions, length=st.integers(1, 8))
    def write_by_peer(self, where: int, length: int) -> None:
        pages = self.a_range(where, length, by_refs=False)
        if pages is not None:
            stamp = self.stamp()
            self.observer.write(pages.end - len(stamp), stamp)
            self.model.write(pages.end - len(stamp), stamp)

    @precondition(lambda self: self.shared)
    @rule(where=fractions, length=counts)
    def punch_by_peer(self, where: int, length: int) -> None:
        pages = self.a_range(where, length, by_refs=False)
        if pages is not None:
            self.observer.punch(pages.start, pages.end - pages.start)
            self.model.clear(*pages)

    @precondition(lambda self: self.shared and self.manual)
    @rule(page=st.integers(0, MAX_SIZE // PAGE - 1), count=st.integers(1, 4), write=st.booleans())
    def dirty_a_free_page(self, page: int, count: int, write: bool) -> None:
        """A stale mapping touches free pages. The scan right after it makes waste of them, so that a page handed out
        is zero; before a scan nobody can know."""
        pages = [n for n in range(page, page + count) if n not in self.model.pages]
        for number in pages:
            if (number + 1) * PAGE <= self.observer.size:
                if self.keep:
                    self.dirtied.add(number)
                if write:
                    self.observer.write(number * PAGE + 9, b"dirt")
                else:
                    self.observer.write(number * PAGE, b"\0")
        usage = self.memory.update_usage()
        if usage.file_size:
            for number in pages:
                if (number + 1) * PAGE <= usage.file_size and not self.keep and not self.huge_was_used:
                    assert self.memory.inspect(number * PAGE).state == "waste"

    @precondition(lambda self: self.shared)
    @rule(pages=st.integers(1, 300), beyond=st.integers(0, 300))
    def grow_by_peer(self, pages: int, beyond: int) -> None:
        """A peer grows the file and writes beyond our size; growing over that must hand out zeros."""
        size = self.observer.size + pages * PAGE
        if size <= 2 * MAX_SIZE:
            os.ftruncate(self.observer.fd, size)
            at = self.memory.total_size() + beyond * PAGE
            if at + PAGE <= size and at // PAGE not in self.model.pages:
                self.observer.write(at, b"foreign")

    # -- what holds after every step -------------------------------------------------------------------------------

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "observer"):
            return
        self.memory._check()  # type: ignore[attr-defined]
        self.check_pages()
        self.check_usage()

    def check_pages(self) -> None:
        size = self.memory.total_size()
        assert size % PAGE == 0
        assert size <= MAX_SIZE
        assert size <= self.observer.size
        assert all(number * PAGE < size for number in self.model.pages)
        for start, end, page in self.model.alike_runs(size // PAGE):
            offset = start
            while offset < end:
                info = self.memory.inspect(offset)
                assert info.pages.start <= offset < info.pages.end, info
                if page is None:
                    assert info.state in ("free", "waste", "releasing"), info
                    assert (info.kind, info.owner, info.refs, info.views) == (None, 0, 0, 0), info
                else:
                    assert (info.state, info.kind, info.owner, info.refs, info.views) == ("used", *page.look), info
                    assert start <= info.pages.start, info
                    assert info.pages.end <= end, info
                offset = info.pages.end

    def check_usage(self) -> None:
        if not self.manual:
            assert self.memory.wait_reclaimed(timeout=60)
        owners = sorted({page.owner for page in self.model.pages.values()} - {0})[:2]
        alone = {owner: self.memory.update_usage(owner=owner) for owner in owners}
        usage = self.memory.update_usage()
        if not self.manual:  # a scan may have found something to give back
            assert self.memory.wait_reclaimed(timeout=60)
            usage = self.memory.update_usage()
        committed = self.observer.committed_pages()
        assert self.model.prediction_errors(committed) == []
        assert usage_errors(usage, self.model.expected(committed, self.memory.total_size())) == []
        assert usage.exact, usage
        for owner, mine in alone.items():
            assert positive(mine.committed) == positive(usage.committed_by_owner.get(owner, {}))
        assert usage.overhead == usage.reserved == 0
        assert usage.total == self.observer.blocks + sum(self.model.external.values())
        assert self.memory.total_usage() == self.observer.blocks
        assert usage.peak_committed >= usage.total
        assert usage.file_size == self.memory.total_size()
        free = self.free_pages()
        assert usage.free == len(free) * PAGE
        assert usage.largest_free <= usage.free
        if not self.huge_was_used:
            longest = 0
            run = 0
            for page in range(usage.file_size // PAGE):
                run = run + 1 if page in free else 0
                longest = max(longest, run)
            assert usage.largest_free == longest * PAGE
        assert self.observer.nonzero_pages(free & committed) == [], "a free page is dirty"
        if not self.keep and not self.huge_was_used:
            assert not free & committed, "a free page is committed, and neither kept nor retained"

    def verify_contents(self) -> None:
        """Every held page reads as the model says."""
        for number, page in self.model.pages.items():
            content = self.observer.read(number * PAGE, PAGE)
            assert content == (page.content or bytes(PAGE)), f"page {number}: {content[:40]!r}, not {page.content!r}"

    @rule()
    def look_at_all_contents(self) -> None:
        self.verify_contents()


TestMemoryAgainstANaiveModel = MemoryMachine.TestCase
TestMemoryAgainstANaiveModel.settings = settings(
    max_examples=600 if SOAK else 60,
    stateful_step_count=80,
    deadline=None,
    derandomize=not SOAK,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


def test_the_machine_does_thousands_of_steps() -> None:
    configured = TestMemoryAgainstANaiveModel.settings
    assert configured.max_examples * configured.stateful_step_count >= 4_800
