"""Which block has to go: what was used once goes before what was used again, whatever the states of the others."""

from __future__ import annotations

import random

import pytest

from s3backer import _fast
from tests.support.twins import PlainSlab

SIZE = 512


def use(slab: _fast.Slab, block: int) -> bool:
    """Read a block as the cache does: fetch it if it is not there. Return whether it was."""
    hit = not slab.read(block * SIZE, bytearray(SIZE))
    if not hit:
        slab.fill(block, None)
    return hit


def make_hot(slab: _fast.Slab, hot: range) -> None:
    """Use blocks again and again, between others that are used once."""
    others = iter(range(10_000, 20_000))
    for _ in range(6):
        for block in hot:
            use(slab, block)
        for _ in range(slab.slots // 8):
            use(slab, next(others))


@pytest.mark.parametrize("slots", [16, 200, 3000])
def test_a_scan_leaves_what_is_hot(slots: int) -> None:
    slab = _fast.Slab(SIZE, slots, slots // 2)
    hot = range(slots * 2 // 5)
    make_hot(slab, hot)
    for block in range(100_000, 100_000 + 20 * slots):
        use(slab, block)
    assert [block for block in hot if not slab.contains(block)] == []
    slab.check_invariants()


@pytest.mark.parametrize("pieces", [2, 8, 32])
def test_a_scan_in_small_pieces_is_a_scan_too(pieces: int) -> None:
    """Every block of the scan is read several times in a row, several scans at once."""
    slab = _fast.Slab(SIZE * pieces, 400, 200)
    hot = range(200)
    for _ in range(6):
        for block in hot:
            slab.fill(block, None)
    for step in range(8000):
        for stream in range(3):
            block = 100_000 * (1 + stream) + step
            for piece in range(pieces):
                if slab.read((block * pieces + piece) * SIZE, bytearray(SIZE)):
                    slab.fill(block, None)
    # One is given up where the first search finds too many that were used again.
    assert len([block for block in hot if not slab.contains(block)]) <= 1


def test_reading_ahead_leaves_what_is_hot_and_what_was_read_ahead() -> None:
    slots = 400
    slab = _fast.Slab(SIZE, slots, 200)
    hot, window = range(slots // 2), slots // 4
    make_hot(slab, hot)
    for block in range(100_000, 100_000 + 20 * slots):
        slab.fill(block + window, None, ahead=True)
        if block >= 100_000 + window:
            assert use(slab, block), "it was read ahead, and evicted before it was read"
    assert [block for block in hot if not slab.contains(block)] == []
    assert slab.ahead == window
    slab.check_invariants()


def test_what_is_read_ahead_for_nobody_leaves_what_is_hot() -> None:
    slots = 400
    slab = _fast.Slab(SIZE, slots, 200)
    hot = range(slots // 2)
    make_hot(slab, hot)
    ghosts = slab.ghosts
    for block in range(100_000, 100_000 + 20 * slots):
        slab.fill(block, None, ahead=True)
    assert [block for block in hot if not slab.contains(block)] == []
    # Nobody has used it, so it is nothing to remember.
    assert slab.ghosts < ghosts + slots
    slab.check_invariants()


def test_what_comes_back_soon_is_kept() -> None:
    slots = 100
    slab = _fast.Slab(SIZE, slots, 50)
    for block in range(2 * slots - 20):
        use(slab, block)
    assert not slab.contains(0)
    assert use(slab, 0) is False
    assert (slab.ghost_hits, slab.kept) == (1, 1)
    # By reading ahead too, once it is used.
    slab.fill(1, None, ahead=True)
    assert slab.kept == 1
    assert use(slab, 1)
    for block in range(5000, 5000 + 2 * slots):
        use(slab, block)
    assert slab.contains(0)
    assert slab.contains(1)


def test_most_is_dirty_and_the_hot_ones_stay() -> None:
    slots = 400
    slab = _fast.Slab(SIZE, slots, 360)
    # The clean ones are 40, of which new ones have up to a half.
    hot = range(16)
    for block in range(50_000, 50_360):
        assert slab.write(block * SIZE, b"\1" * SIZE, 0.0) == (SIZE, _fast.DONE)
    for _ in range(10):
        for block in hot:
            use(slab, block)
        use(slab, random.randrange(10_000, 20_000))
    for block in range(100_000, 110_000):
        use(slab, block)
    assert [block for block in hot if not slab.contains(block)] == []
    assert slab.dirty == 360
    slab.check_invariants()


def test_what_was_written_once_goes_first() -> None:
    slots = 400
    slab = _fast.Slab(SIZE, slots, 200)
    hot = range(slots // 2)
    make_hot(slab, hot)
    for block in range(100_000, 100_000 + 10 * slots):
        assert slab.write(block * SIZE, b"\1" * SIZE, 0.0) == (SIZE, _fast.DONE)
        slab.begin_store(block)
        slab.end_store(block, True)
    assert [block for block in hot if not slab.contains(block)] == []


@pytest.mark.parametrize("seed", range(4))
def test_long_runs_are_foretold(seed: int) -> None:
    """A cache large enough that a search gives up, beside its plain twin; everything in it is used again and again."""
    source = random.Random(seed)
    slots = 300
    real, plain = _fast.Slab(SIZE, slots, 100), PlainSlab(SIZE, slots, 100)
    for step in range(12_000):
        # At times all of it is used again before anything is evicted.
        around = step % 3000 < 600
        block = step % slots if around else source.randrange(source.choice((250, 2000)))
        kind = source.random()
        for slab in (real, plain):
            if slab.read(block * SIZE, bytearray(SIZE)):
                slab.fill(block, None, kind < 0.2)
            elif kind > 0.97:
                slab.write(block * SIZE, b"\1" * SIZE, 0.0)
        if kind > 0.99:
            for old, _, _, _ in real.dirty_blocks(20):
                for slab in (real, plain):
                    slab.begin_store(old)
                    slab.end_store(old, True)
        assert (real.evictions, real.kept, real.ghost_hits) == (plain.evictions, plain.kept, plain.ghost_hits), step
    assert all(real.contains(block) == plain.contains(block) for block in range(2000))
    real.check_invariants()


def test_a_search_ends_where_everything_was_used() -> None:
    slots = 20_000
    slab = _fast.Slab(SIZE, slots, 1)
    for _ in range(5):
        for block in range(slots):
            slab.fill(block, None)
    before = slab.evictions
    for block in range(slots, slots + 100):
        slab.fill(block, None)
    assert slab.evictions == before + 100
    slab.check_invariants()
