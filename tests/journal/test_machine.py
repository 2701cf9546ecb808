"""The journal against its plain twin: any sequence of writes, syncs, stores, loads, failures to store, and restarts."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from s3backer import _fast
from s3backer._journal import JOURNAL_BUSY, JOURNAL_FULL
from s3backer.journal.files import JournalDirectory
from s3backer.journal.format import DATA, DONE, INTENT, ZEROS
from s3backer.journal.service import joined
from tests.support.journal_twin import PlainMap, plain_scan
from tests.support.journals import BATCH, BLOCK, BLOCKS, SmallJournal, files_of, scan_path

SECTORS = BLOCKS * BLOCK // 512


class JournalMachine(RuleBasedStateMachine):
    """``disk`` is what the volume holds, ``bucket`` what was stored of it."""

    key: bytes | None = None

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp(prefix="s3b-journal-"))
        self.small = SmallJournal(self.path / "journal", capacity=120, key=self.key)
        self.plain = PlainMap(BLOCK)
        self.disk = bytearray(BLOCKS * BLOCK)
        self.bucket = bytearray(BLOCKS * BLOCK)
        self.appended: list[tuple[int, int, int]] = []
        self.etags: dict[int, str] = {}
        self.counter = 0
        #: Entries in whose place others were carried.
        self.replaced = 0
        #: Blocks of which the slab has something dirty.
        self.dirty: set[int] = set()

    def teardown(self) -> None:
        assert (self.small.core.waiting, self.small.core.loading) == (0, 0)
        self.small.close()
        shutil.rmtree(self.path)

    @rule(
        offset=st.integers(0, BLOCKS * BLOCK - 1) | st.integers(0, SECTORS - 1).map(lambda n: n * 512),
        length=st.integers(1, 3 * BLOCK) | st.sampled_from([512, BLOCK, 2 * BLOCK]),
        zeros=st.booleans(),
    )
    def write(self, offset: int, length: int, zeros: bool) -> None:
        self.counter += 1
        length = min(length, BLOCKS * BLOCK - offset)
        data = bytes(length) if zeros else random.Random(self.counter).randbytes(length)
        while data:
            step = min(len(data), (offset // BLOCK + BATCH) * BLOCK - offset)
            before = self.small.slab.sequence
            if zeros:
                count, reason = self.small.core.write_zeros(offset, step, 0.0)
            else:
                count, reason = self.small.core.write(offset, data[:step], 0.0)
            assert self.small.slab.sequence == before + (count > 0)
            if count:
                self.plain.write(offset, data[:count], before + 1)
                self.dirty.update(range(offset // BLOCK, (offset + count - 1) // BLOCK + 1))
                self.disk[offset : offset + count] = data[:count]
                self.appended.append((before + 1, offset, count))
            offset, data = offset + count, data[count:]
            if reason == JOURNAL_FULL:
                self.store_blocks(sorted(self.plain.blocks))
                self.small.core.sync()
                self.small.journal.prepare()
            elif reason == JOURNAL_BUSY:
                # One may be left to what is carried.
                assert self.small.core.spares <= 1
                self.small.journal.prepare()
            else:
                assert reason == _fast.DONE and count == step

    @rule(block=st.integers(0, BLOCKS - 1))
    def write_block(self, block: int) -> None:
        self.write(block * BLOCK, BLOCK, False)

    @rule(source=st.randoms(use_true_random=False))
    def store_some(self, source: random.Random) -> None:
        blocks = sorted(self.plain.blocks)
        self.store_blocks(source.sample(blocks, min(len(blocks), 5)))

    def store_blocks(self, blocks: list[int]) -> None:
        for block in blocks:
            sequence = self.small.slab.sequence
            self.small.journal.intend(block, sequence, self.etags.get(block, ""), "sum")
            self.bucket[block * BLOCK : (block + 1) * BLOCK] = self.disk[block * BLOCK : (block + 1) * BLOCK]
            etag = f'"{block}-{sequence}"'
            # Without room for the note the block is forgotten all the same.
            if self.small.journal.done(block, sequence, etag):
                self.etags[block] = etag
            self.plain.stored(block, sequence)

    @rule(block=st.integers(0, BLOCKS - 1), back=st.integers(0, 20))
    def store_an_older_state(self, block: int, back: int) -> None:
        """Writes came while the block was on its way."""
        sequence = max(0, self.small.slab.sequence - back)
        entries = [entry for entry in self.plain.blocks.get(block, []) if entry.sequence <= sequence]
        for entry in entries:
            start = block * BLOCK + entry.start
            self.bucket[start : start + len(entry.data)] = entry.data
        if self.small.journal.done(block, sequence, '"older"'):
            self.etags[block] = '"older"'
        self.plain.stored(block, sequence)

    @rule()
    def sync(self) -> None:
        durable = self.small.core.sync()
        assert durable == (self.appended[-1][0] if self.appended else durable)

    @rule()
    def prepare(self) -> None:
        self.small.journal.prepare()

    @rule(block=st.integers(0, BLOCKS - 1))
    def load(self, block: int) -> None:
        out = bytearray(self.bucket[block * BLOCK : (block + 1) * BLOCK])
        ranges, first, last = self.small.core.load(block, out)
        entries = self.plain.blocks.get(block, [])
        assert out == self.plain.over(block, self.bucket[block * BLOCK : (block + 1) * BLOCK])
        assert out == self.disk[block * BLOCK : (block + 1) * BLOCK]
        if entries:
            assert last == entries[-1].sequence and first <= last
            # What was carried may be read back beside where it stood before, and there it is older.
            assert self.replaced or entries[0].sequence <= first
            covered = set().union(*(range(start, stop) for start, stop in ranges))
            assert covered == set().union(*(range(e.start, e.start + len(e.data)) for e in entries))
        else:
            assert (ranges, first, last) == ([], 0, 0)

    @rule(block=st.integers(0, BLOCKS - 1))
    def spill(self, block: int) -> None:
        entries = self.plain.blocks.get(block, [])
        possible = bool(entries) and entries[-1].sequence <= self.small.core.durable and block in self.dirty
        assert self.small.core.spill(block) == possible
        self.small.slab.check_invariants()
        if possible:
            self.dirty.remove(block)
            self.plain.leave(block)

    @rule(blocks=st.lists(st.integers(0, BLOCKS - 1), max_size=3), source=st.randoms(use_true_random=False))
    def carry(self, blocks: list[int], source: random.Random) -> None:
        """Write blocks once more, as if they kept the oldest file; others write, store and spill meanwhile."""
        core, appended = self.small.core, []
        for block in blocks:
            body = bytearray(BLOCK)
            found, first, last = core.load(block, body)
            ranges = joined(found)
            assert core.append_again(block, body, ranges, first, last + 1) is None
            assert core.append_again(block, body, ranges, first + 1, last) is None
            places = core.append_again(block, body, ranges, first, last)
            if places is not None:
                appended.append((block, ranges, first, last, places))
        for block in blocks:
            if source.random() < 0.5:
                self.write(block * BLOCK + 512 * source.randrange(4), source.choice((512, BLOCK)), False)
            if source.random() < 0.3:
                self.store_an_older_state(block, source.randrange(3))
        core.sync()
        for facts in appended:
            block, _, first, last, _ = facts
            held = self.plain.blocks.get(block, [])
            if core.replace(*facts):
                self.replaced += len(held)
                assert held
                self.plain.carry(block, last)

    @rule()
    def carry_what_keeps_the_oldest_file(self) -> None:
        core, before = self.small.core, self.small.core.oldest
        keepers = core.keepers()
        assert set(keepers) <= set(self.plain.blocks)
        held = {block: len(self.plain.blocks[block]) for block in keepers}
        if self.small.journal.carry_blocks(keepers) == len(keepers) > 0:
            assert before is not None and core.oldest == (before[0], 0)
            for block in keepers:
                self.replaced += held[block]
                self.plain.carry(block, self.plain.blocks[block][-1].sequence)

    @rule(sync=st.booleans())
    def restart(self, sync: bool) -> None:
        """End without a word, and go on from what is found."""
        if sync:
            self.small.core.sync()
        sequence = self.appended[-1][0] if self.appended else 0
        self.small.close()
        recovered, writes = scan_path(self.path / "journal", key=self.key)
        records = plain_scan(files_of(self.path / "journal"), 16 if self.key else 0)
        found = [(r.sequence, r.offset, r.length) for r, _ in writes]
        assert found == [(r.sequence, r.offset, r.length) for r in records if r.kind in (DATA, ZEROS)]
        assert recovered.cut is None
        kept = [file.kept for file in recovered.files]
        for file in recovered.files:
            file.kept = None
        with JournalDirectory(self.path / "journal") as recovered.directory:
            assert [list(recovered.facts(file)) for file in recovered.files] == kept
        assert sorted(recovered.pending) == sorted(self.plain.blocks)
        if found:
            assert recovered.last_sequence == sequence
        last = {r.offset // BLOCK: r for r in records if r.kind == DONE}
        assert {b: k.etag for b, k in recovered.known.items() if k.etag is not None} == {
            block: record.data[2:].decode() for block, record in last.items()
        }
        open_intents = {r.offset // BLOCK for r in records if r.kind == INTENT} - set(last)
        assert {b for b, k in recovered.known.items() if k.etag is None} == open_intents
        self.small = SmallJournal(self.path / "journal", capacity=64, key=self.key)
        self.dirty = set()
        for block in self.plain.blocks:
            self.plain.leave(block)
        if found:
            assert self.small.slab.sequence == sequence
            assert self.small.core.durable == sequence

    @invariant()
    def agree(self) -> None:
        core = self.small.core
        assert sorted(core.pending(BLOCKS)) == sorted(self.plain.blocks)
        assert core.blocks == len(self.plain.blocks)
        left = [block for block in sorted(self.plain.blocks) if self.plain.is_left(block)]
        assert core.left == len(left)
        assert [block for block in range(BLOCKS) if core.is_left(block)] == left
        for start in (0, 7):
            assert core.next_left(start, 20) == min((b for b in left if start <= b < 20), default=20)
        assert core.entries >= core.blocks
        # Where what was carried stood before is read back as well.
        assert core.entries <= sum(map(len, self.plain.blocks.values())) + self.replaced
        assert core.files + core.spares <= core.most_files
        assert 0 <= core.fill <= 1
        assert core.failure is None


def test_the_sequence_goes_on_when_the_files_of_all_writes_are_gone(tmp_path: Path) -> None:
    with SmallJournal(tmp_path / "j") as small:
        small.write(0, b"x")
    with SmallJournal(tmp_path / "j") as small:
        small.store_all()
    for _ in range(3):
        with SmallJournal(tmp_path / "j") as small:
            assert small.slab.sequence == small.core.durable == 1
    assert sorted(files_of(tmp_path / "j"))[0] > 1


def test_what_fitted_fits_the_next_session(tmp_path: Path) -> None:
    """Also what was stored, but without room for a note of that, so that it is taken to be needed once more."""
    capacity = 200
    with SmallJournal(tmp_path / "j", files=2, capacity=capacity) as small:
        core = small.core
        while core.fill < 0.68:
            small.write(0, b"y" * BLOCK)
            core.sync()
        count = 0
        while core.write(count % 20 * BLOCK + 64 * (count // 20), b"z" * 8, 0.0)[1] == _fast.DONE:
            count += 1
        while small.journal.intend(0, small.slab.sequence, "e" * 64, "c"):
            pass
        for block in core.pending(BLOCKS):
            small.journal.done(block, small.slab.sequence, '"e"')
        assert core.entries == 0
        small.journal.prepare()
        for again in range(190):
            small.write(again % 20 * BLOCK + 64 * (again // 20), b"w" * 8)
        plain = PlainMap(BLOCK)
        for record in plain_scan(files_of(tmp_path / "j")):
            if record.kind == DATA:
                plain.write(record.offset, record.data, record.sequence)
            elif record.kind == DONE:
                plain.stored(record.offset // BLOCK, record.sequence)
    assert sum(map(len, plain.blocks.values())) > capacity
    with SmallJournal(tmp_path / "j", files=2, capacity=capacity) as small:
        assert sorted(small.core.pending(BLOCKS)) == sorted(plain.blocks)
        assert small.core.entries > capacity
        for block in plain.blocks:
            out = bytearray(BLOCK)
            small.core.load(block, out)
            assert out == plain.over(block, bytes(BLOCK))


class EncryptedMachine(JournalMachine):
    """The same, encrypted."""

    key = b"a key"


TestEncryptedJournal = EncryptedMachine.TestCase
TestEncryptedJournal.settings = settings(max_examples=10, stateful_step_count=40, deadline=None)
TestJournal = JournalMachine.TestCase
TestJournal.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
