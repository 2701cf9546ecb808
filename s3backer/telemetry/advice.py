"""What a workload would cost: replayed through block sizes and layouts, without a bucket.

    interval    what is written between two flushes; without flushes, in ``delay`` seconds. Within one, writes to the
                same bytes count once: the cache holds them back and stores a block when the interval ends
    classic     a PUT for each block that was touched; a GET for each that was written in part and had been stored
    log         a PUT for each begun segment of 8 MiB of an interval; nothing is fetched
    reads       a GET for each block, as if nothing of them was cached: the most it can cost

A trace is a text file with a line for each operation: seconds, offset, length, and ``r``, ``w`` or ``f`` for a read, a
write or a flush (of which offset and length mean nothing), separated by blanks; ``#`` begins a comment.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from s3backer import _fast
from s3backer.errors import UsageError
from s3backer.telemetry.prices import GB, Prices

BLOCK_SIZES = tuple(4096 << shift for shift in range(12))
SEGMENT = 8 << 20
#: Operations that a given workload is made of at most: what comes out grows with it, and is scaled up.
_MOST_STEPS = 200_000
#: Of writes in order nothing is a sample: more of them would take longer than anybody waits.
_MOST_IN_ORDER = 1_000_000
_MOST_BYTES = 1 << 60


@dataclass(frozen=True, slots=True)
class Step:
    """One operation: ``kind`` is r, w or f; offset and length in bytes."""

    seconds: float
    offset: int
    length: int
    kind: str


@dataclass(frozen=True, slots=True)
class Workload:
    """Operations and by what their counts are multiplied: ``scale`` for a sample of a larger workload."""

    steps: tuple[Step, ...]
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one layout makes of a workload. ``block_size`` None: the log layout."""

    block_size: int | None
    puts: float
    gets: float
    sent: float
    written: float
    stored: float

    @property
    def amplification(self) -> float:
        """Bytes sent for each byte that was written."""
        return self.sent / self.written if self.written else 0.0

    def requests_cost(self, prices: Prices) -> float:
        """Return what the requests cost in dollars."""
        return (self.puts * prices.put + self.gets * prices.get) / 1000

    def storage_cost(self, prices: Prices) -> float:
        """Return what a month of storing the result costs in dollars."""
        return self.stored * prices.storage / GB


def read_trace(lines: Iterable[str], name: str) -> Workload:
    """Parse a trace; UsageError naming the line that is none."""
    steps = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            seconds, offset, length, kind = float(words[0]), int(words[1]), int(words[2]), words[3]
            if len(words) != 4 or kind not in ("r", "w", "f") or min(seconds, offset, length) < 0:
                raise ValueError
            if offset + length > _MOST_BYTES or not seconds < 1e12:
                raise ValueError
        except (ValueError, IndexError):
            raise UsageError(
                f"line {number} of {name} is no operation", hint="One looks like '12.5 1048576 4096 w' or '13 0 0 f'."
            ) from None
        steps.append(Step(seconds, offset, length, kind))
    return Workload(tuple(steps))


def make_workload(
    *, written: int, size: int, write_size: int, sequential: bool, flush_every: int | None, read: int
) -> Workload:
    """Return a workload of ``written`` bytes in a volume of ``size``, flushed after so many bytes (None: at the end).

    Sequential writes begin again at the start when they reach the end; UsageError if they are too many. Random ones
    are a sample where there are many.
    """
    steps: list[Step] = []
    if sequential:
        # Neighbours that are flushed together are one.
        step = max(write_size, min(flush_every or written, -(-written // _MOST_STEPS)))
        step = min(step, size)
        if written // step > _MOST_IN_ORDER:
            raise UsageError(
                f"this workload has more than {_MOST_IN_ORDER:,} writes",
                hint="Describe a part of it: with a tenth of --written everything is a tenth.",
            )
        _write_all(steps, ((at % size, min(step, written - at)) for at in range(0, written, step)), flush_every, size)
        scale = 1.0
    else:
        count = -(-written // write_size)
        scale = max(1.0, count / _MOST_STEPS)
        # A sample of writes in a sample of the volume: as many of them for each block as there really are.
        places = max(1, round(size / scale) // write_size)
        source = random.Random(0)
        flush_every = None if flush_every is None else max(write_size, round(flush_every / scale))
        some = ((source.randrange(places) * write_size, write_size) for _ in range(round(count / scale)))
        _write_all(steps, some, flush_every, places * write_size)
    if read:
        steps.append(Step(0.0, 0, round(read / scale), "r"))
    return Workload(tuple(steps), scale)


def _write_all(steps: list[Step], writes: Iterable[tuple[int, int]], flush_every: int | None, size: int) -> None:
    since = 0
    for offset, length in writes:
        for start, count in ((offset, min(length, size - offset)), (0, length - min(length, size - offset))):
            if count:
                steps.append(Step(0.0, start, count, "w"))
        since += length
        if flush_every is not None and since >= flush_every:
            steps.append(Step(0.0, 0, 0, "f"))
            since = 0
    steps.append(Step(0.0, 0, 0, "f"))


def estimate(workload: Workload, block_size: int | None, *, delay: float) -> Estimate:
    """Replay a workload through the classic layout with this block size in bytes, or through the log (None)."""
    unit = block_size or SEGMENT
    end = max((step.offset + step.length for step in workload.steps), default=0)
    stored = bytearray(end // unit // 8 + 1)
    puts = gets = sent = written = 0
    ever: list[tuple[int, int]] = []
    for step in workload.steps:
        if step.kind == "r" and step.length:
            gets += (step.offset + step.length - 1) // unit - step.offset // unit + 1
        elif step.kind == "w":
            written += step.length
    for ranges in _intervals(workload.steps, delay):
        if block_size is None:
            size = sum(stop - start for start, stop in ranges)
            puts += -(-size // unit)
            sent += size
            ever += ranges
            continue
        touched, partial = _blocks(ranges, unit, stored)
        puts += touched
        gets += partial
        sent += touched * unit
    if block_size is None:
        size = sum(stop - start for start, stop in _merged(ever))
    else:
        size = _fast.bitmap_count(stored, 0, len(stored) * 8) * unit
    scale = workload.scale
    return Estimate(block_size, puts * scale, gets * scale, sent * scale, written * scale, size * scale)


def _intervals(steps: Iterable[Step], delay: float) -> Iterator[list[tuple[int, int]]]:
    """Return for each interval the bytes that were written in it, as ranges in order that do not touch."""
    ranges: list[tuple[int, int]] = []
    began = 0.0
    for step in steps:
        if ranges and (step.kind == "f" or step.seconds - began >= delay):
            yield _merged(ranges)
            ranges = []
        if step.kind == "w" and step.length:
            if not ranges:
                began = step.seconds
            ranges.append((step.offset, step.offset + step.length))
    if ranges:
        yield _merged(ranges)


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], stop)
        else:
            merged.append((start, stop))
    return merged


def _blocks(ranges: list[tuple[int, int]], size: int, stored: bytearray) -> tuple[int, int]:
    """Enter the blocks of these ranges as stored; return how many there are, and how many have to be fetched first."""
    touched = partial = 0
    last = -1
    for start, stop in ranges:
        first, final = start // size, (stop - 1) // size
        # Ranges do not touch, so that a block with two of them in it is partial, and was counted with the first.
        if first == last:
            first += 1
        for block in {first, final} if first <= final else ():
            whole = max(start, block * size) == block * size and min(stop, (block + 1) * size) == (block + 1) * size
            if not whole and _fast.bitmap_any(stored, block, block + 1):
                partial += 1
        if first <= final:
            touched += final - first + 1
            _fast.bitmap_set(stored, first, final + 1)
        last = final
    return touched, partial
