"""The power fails at every moment: what is read back is a beginning of what was written, and holds all that was synced.

The shipped journal runs on a recording disk; at each step of the record, and in several ways, everything that was not
synced is kept, lost, torn at sectors or reordered (tests/support/power_loss.py), and the rest is scanned.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from s3backer.journal.format import DATA, DONE, PAGE, ZEROS
from s3backer.journal.service import joined
from tests.support.journal_twin import plain_scan
from tests.support.journals import BATCH, BLOCK, BLOCKS, FILE, SmallJournal, files_of, scan_path
from tests.support.power_loss import Calls, Disk, Recorder


@dataclass(frozen=True)
class Knowledge:
    """What the writer knows at a moment: the writes so far, how many of them are synced, and which are still needed.

    Writes are (sequence, offset, data), ``needed`` (block, sequence) of what is in no bucket.
    """

    writes: tuple[tuple[int, int, bytes], ...]
    synced: int
    needed: frozenset[tuple[int, int]]


class Writer:
    """Writes, syncs, stores and prepares as a seed has it, and notes after each what it knows.

    Where there is a journal already it goes on from there.
    """

    def __init__(self, path: Path, seed: int) -> None:
        self.source = random.Random(seed)
        self.recorder = Recorder()
        self.writes: list[tuple[int, int, bytes]] = []
        self.needed: dict[int, set[int]] = {}
        self.carried = 0
        for record in plain_scan(files_of(path)):
            block = record.offset // BLOCK
            if record.kind in (DATA, ZEROS):
                data = bytes(record.length) if record.kind == ZEROS else record.data
                self.writes += pieces(record.sequence, record.offset, data)
                for changed in range(block, (record.offset + record.length - 1) // BLOCK + 1):
                    self.needed.setdefault(changed, set()).add(record.sequence)
            elif record.kind == DONE:
                left = {sequence for sequence in self.needed.pop(block, set()) if sequence > record.sequence}
                if left:
                    self.needed[block] = left
        self.synced = len(self.writes)
        self.know()
        self.small = SmallJournal(
            path, system=self.recorder, prepared=lambda journal: self.recorder.calls.interpose(journal.core)
        )
        self.recorder.meanwhile = self.write_meanwhile

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.source.choices(
                (
                    self.write,
                    self.zero,
                    self.write_nothing,
                    self.sync,
                    self.store,
                    self.carry,
                    self.small.journal.prepare,
                ),
                (12, 2, 3, 4, 4, 3, 2),
            )[0]()
            self.know()

    def know(self) -> None:
        needed = frozenset((block, sequence) for block, sequences in self.needed.items() for sequence in sequences)
        self.recorder.note(Knowledge(tuple(self.writes), self.synced, needed))

    def write(self) -> None:
        length = self.source.choice((1, 512, 700, BLOCK, BLOCK + 512, 4 * BLOCK))
        offset = self.source.randrange(BLOCKS * BLOCK - length)
        self.append(offset, self.source.randbytes(length), zeros=False)

    def zero(self) -> None:
        offset = self.source.randrange(BLOCKS - 4) * BLOCK
        self.append(offset, bytes(3 * BLOCK), zeros=True)

    def write_nothing(self) -> None:
        """Write what the slab does not take: zeros where there is nothing.

        At the end of a file it begins the next one all the same, which has nothing in it then.
        """
        data = bytes(self.source.choice((1, BATCH)) * BLOCK)
        assert self.small.core.write(BLOCKS * BLOCK, data, 0.0)[0] == 0

    def append(self, offset: int, data: bytes, *, zeros: bool) -> None:
        while data:
            before = self.small.slab.sequence
            # No more at once than gets one sequence.
            step = min(len(data), (offset // BLOCK + BATCH) * BLOCK - offset)
            if zeros:
                count, reason = self.small.core.write_zeros(offset, step, 0.0)
            else:
                count, reason = self.small.core.write(offset, data[:step], 0.0)
            if count:
                assert self.small.slab.sequence == before + 1
                self.writes.append((before + 1, offset, data[:count]))
                for block in range(offset // BLOCK, (offset + count - 1) // BLOCK + 1):
                    self.needed.setdefault(block, set()).add(before + 1)
            offset, data = offset + count, data[count:]
            if reason:
                self.store_oldest()
                self.sync()
                self.small.journal.prepare()

    def write_meanwhile(self) -> None:
        """Write a little while another thread, as it were, syncs."""
        if self.source.random() < 0.1:
            self.write_nothing()
        if self.source.random() < 0.3:
            before, data = self.small.slab.sequence, self.source.randbytes(512)
            offset = self.source.randrange(BLOCKS * BLOCK // 512) * 512
            if self.small.core.write(offset, data, 0.0)[0]:
                self.writes.append((before + 1, offset, data))
                self.needed.setdefault(offset // BLOCK, set()).add(before + 1)

    def sync(self) -> None:
        count = len(self.writes)
        self.small.core.sync()
        self.synced = count

    def store(self) -> None:
        blocks = sorted(self.needed)
        for block in self.source.sample(blocks, min(len(blocks), 4)):
            self.store_block(block)

    def carry(self) -> None:
        """Write once more what keeps the oldest file, which may go then."""
        journal = self.small.journal
        for block in self.small.core.keepers() or self.source.sample(sorted(self.needed), min(2, len(self.needed))):
            body = bytearray(BLOCK)
            found, _, last = self.small.core.load(block, body)
            ranges = joined(found)
            count, number = len(self.writes), self.small.core.number
            self.writes += [(last, block * BLOCK + a, bytes(body[a:b])) for a, b in ranges]
            self.know()
            self.carried += journal.carry_blocks([block])
            if self.small.core.number == number:
                # Nothing was appended. Else it was, also where it does not count as something was written meanwhile.
                del self.writes[count:]

    def store_oldest(self) -> None:
        for block in sorted(self.needed, key=lambda b: min(self.needed[b]))[: BLOCKS // 2]:
            self.store_block(block)

    def store_block(self, block: int) -> None:
        sequence = self.small.slab.sequence
        self.small.journal.intend(block, sequence, '"old"', "sum")
        self.small.journal.done(block, sequence, f'"{sequence}"')
        self.needed.pop(block, None)


def pieces(sequence: int, offset: int, data: bytes) -> list[tuple[int, int, bytes]]:
    """A write as records have it: by block."""
    found = []
    while data:
        length = min(len(data), BLOCK - offset % BLOCK)
        found.append((sequence, offset, data[:length]))
        offset, data = offset + length, data[length:]
    return found


def still_needed(
    must: list[tuple[int, int, bytes]], pending: frozenset[tuple[int, int]]
) -> Iterator[tuple[int, range]]:
    """The sequences of pieces that are in no bucket, and their bytes, without those before one of the whole block."""
    whole = {offset // BLOCK: sequence for sequence, offset, data in must if len(data) == BLOCK}
    for sequence, offset, data in must:
        if (offset // BLOCK, sequence) in pending and sequence >= whole.get(offset // BLOCK, 0):
            yield sequence, range(offset, offset + len(data))


def check(path: Path, known: Knowledge, next_known: Knowledge) -> None:
    _, writes = scan_path(path)
    found: list[tuple[int, int, bytes]] = []
    for record, data in writes:
        found += pieces(record.sequence, record.offset, bytes(record.length) if data is None else data)
    # The call that was under way may have appended already.
    appended = [piece for write in next_known.writes for piece in pieces(*write)]
    must = [piece for write in known.writes[: known.synced] for piece in pieces(*write)]
    if found:
        # What is carried may look like what it was.
        firsts = [i for i, piece in enumerate(appended) if piece == found[0]]
        fitting = [i for i in firsts if appended[i : i + len(found)] == found]
        assert fitting, "what is found was not written like that"
        assert fitting[-1] + len(found) >= len(must), "something that was synced is missing at the end"
    #: By byte: the sequence of the last write of it that was found.
    kept = [0] * (BLOCKS * BLOCK)
    for sequence, offset, data in found:
        kept[offset : offset + len(data)] = [sequence] * len(data)
    lost = {
        sequence
        for sequence, places in still_needed(must, known.needed & next_known.needed)
        if min(kept[places.start : places.stop]) < sequence
    }
    assert not lost, f"writes {lost} were synced and are needed"
    plain = [record for record in plain_scan(files_of(path)) if record.kind in (DATA, ZEROS)]
    assert [(r.number, r.offset, r.length) for r in plain] == [(r.number, r.offset, r.length) for r, _ in writes]


def fail_everywhere(path: Path, seed: int, steps: int, times: int) -> int:
    """Write in ``path / live``, let the power fail, and return how often; what one failure left stays in ``left``."""
    live = path / "live"
    live.mkdir(exist_ok=True)
    disk = Disk(live)
    writer = Writer(live, seed)
    writer.run(steps)
    writer.small.close()
    notes: list[Any] = [step.note for step in writer.recorder.steps if step.what == "note"]
    known = next_known = notes[0]
    upcoming = iter(notes[1:])
    source = random.Random(seed + 1)
    kept = source.randrange(len(writer.recorder.steps) // 2, len(writer.recorder.steps))
    count = 0
    assert writer.carried or steps < 40
    for number, step in enumerate(writer.recorder.steps):
        if step.what == "note":
            known, next_known = step.note, next(upcoming, step.note)
            continue
        disk.take(step)
        for way in range(times if disk.unsettled else 1):
            left = path / "failed"
            disk.fail(source, left)
            try:
                check(left, known, next_known)
            except BaseException as error:
                raise AssertionError(f"seed {seed}, step {number} ({step.what}), way {way}") from error
            if number >= kept and not (path / "left").exists():
                left.rename(path / "left")
            else:
                shutil.rmtree(left)
            count += 1
    return count


def fail_and_go_on(path: Path, seed: int, steps: int, times: int) -> None:
    """What the first failure leaves is gone on with, until the power fails again."""
    assert fail_everywhere(path, seed, steps, 1) > steps
    shutil.rmtree(path / "live")
    (path / "left").rename(path / "live")
    assert fail_everywhere(path, seed + 50, steps, times) > steps


@pytest.mark.parametrize("seed", range(2))
def test_power_loss_at_every_step(tmp_path: Path, seed: int) -> None:
    assert fail_everywhere(tmp_path, seed, steps=60, times=3) > 200


@pytest.mark.parametrize("seed", range(3))
def test_power_loss_after_power_loss(tmp_path: Path, seed: int) -> None:
    fail_and_go_on(tmp_path, 1000 + seed, steps=30, times=3)


@pytest.mark.parametrize("stored", [False, True])
def test_a_file_that_begins_with_a_write_of_nothing(tmp_path: Path, stored: bool) -> None:
    """Its first record waits for another one, and a sync meanwhile is none of it.

    Neither may a later record say that it is on the disk, nor may the file before go.
    """
    path, left = tmp_path / "live", tmp_path / "left"
    on_disk: dict[int, bytes] = {}

    def sync(fd: int) -> None:
        on_disk[os.fstat(fd).st_ino] = os.pread(fd, FILE, 0)

    with SmallJournal(path) as small:
        for file in path.glob("*.journal"):
            on_disk[file.stat().st_ino] = file.read_bytes()
        calls = Calls(lambda fd, data, at: os.pwrite(fd, data, at), sync)
        calls.interpose(small.core)
        small.write(0, b"x" * BLOCK)
        count = 1
        while small.core.files == 1:
            assert small.core.write(BLOCKS * BLOCK, bytes(BLOCK), 0.0)[0] == 0
            if small.core.files == 1:
                small.write(count % BLOCKS * BLOCK, bytes([count]) * 512)
                count += 1
        small.core.sync()
        if stored:
            for block in range(BLOCKS):
                small.core.stored(block, small.slab.sequence)
            small.journal.prepare()
        for block in range(4):
            small.write(block * BLOCK, b"x" * BLOCK)
        left.mkdir()
        for file in path.glob("*.journal"):
            synced, written = on_disk.get(file.stat().st_ino, b""), file.read_bytes()
            # A file that was made ready again got its header by another way.
            lost = written[:PAGE] + synced[PAGE : 2 * PAGE].ljust(PAGE, b"\0")
            (left / file.name).write_bytes(lost + written[2 * PAGE :])
    _, writes = scan_path(left)
    assert stored or len(writes) == count


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 300))
def test_power_loss_for_long(tmp_path: Path, seed: int) -> None:
    fail_and_go_on(tmp_path, 100 * seed, steps=100, times=6)
