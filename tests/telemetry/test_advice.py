"""What a workload would cost, against an oracle that walks over every byte, and against a published figure."""

from __future__ import annotations

import time

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from s3backer.errors import UsageError
from s3backer.telemetry.advice import SEGMENT, Step, Workload, estimate, make_workload, read_trace
from s3backer.telemetry.prices import TABLES

STEPS = st.lists(
    st.builds(
        Step,
        seconds=st.just(0.0),
        offset=st.integers(0, 3000),
        length=st.integers(0, 900),
        kind=st.sampled_from("wwwwrf"),
    ),
    max_size=25,
)


def walked(steps: list[Step], size: int, delay: float) -> tuple[int, int, int]:
    """Return (puts, gets, stored blocks) by walking over the bytes."""
    puts = gets = 0
    stored: set[int] = set()
    dirty: set[int] = set()
    began = 0.0

    def store() -> None:
        nonlocal puts, gets
        for block in {byte // size for byte in dirty}:
            puts += 1
            if block in stored and any(byte not in dirty for byte in range(block * size, (block + 1) * size)):
                gets += 1
            stored.add(block)
        dirty.clear()

    for step in steps:
        if dirty and (step.kind == "f" or step.seconds - began >= delay):
            store()
        if step.kind == "r" and step.length:
            gets += len({byte // size for byte in range(step.offset, step.offset + step.length)})
        if step.kind == "w" and step.length:
            if not dirty:
                began = step.seconds
            dirty.update(range(step.offset, step.offset + step.length))
    store()
    return puts, gets, len(stored)


@settings(max_examples=300)
@given(STEPS, st.sampled_from([64, 256, 1024]), st.lists(st.floats(0, 9), max_size=25))
def test_a_replay_against_walking_over_every_byte(steps, size, pauses):
    now = 0.0
    timed = []
    for step, pause in zip(steps, [*pauses, *[0.0] * len(steps)], strict=False):
        now += pause
        timed.append(Step(now, step.offset, step.length, step.kind))
    puts, gets, stored = walked(timed, size, 5.0)
    found = estimate(Workload(tuple(timed)), size, delay=5.0)
    assert (found.puts, found.gets, found.stored) == (puts, gets, stored * size)
    assert found.sent == puts * size
    assert found.written == sum(step.length for step in timed if step.kind == "w")


def test_many_flushes_take_time_in_proportion():
    def seconds(writes: int) -> float:
        steps = [Step(0.0, (7919 * n % writes) * 8192, 4096, kind) for n in range(writes) for kind in "wf"]
        began = time.thread_time()
        assert estimate(Workload(tuple(steps)), None, delay=5.0).stored == writes * 4096
        return time.thread_time() - began

    # Twenty times as many take twenty times as long, and four hundred times if each looks at all others.
    small, large = (min(seconds(writes) for _ in range(3)) for writes in (1000, 20_000))
    assert large < 150 * small


def test_the_published_figure():
    """50 GB in 4 KiB blocks at the prices of 2010: some $130 of PUTs, 17 times what storing them for a month costs."""
    prices = TABLES["2010"]
    for size, dollars in ((50 * 10**9, 122), (50 << 30, 131)):
        workload = make_workload(written=size, size=size, write_size=1 << 20, sequential=True, flush_every=None, read=0)
        found = estimate(workload, 4096, delay=5.0)
        assert found.puts == -(-size // 4096)
        assert found.requests_cost(prices) == pytest.approx(dollars, abs=1)
        assert found.requests_cost(prices) / found.storage_cost(prices) == pytest.approx(16.3, abs=0.1)
    assert pytest.approx(17.5, abs=0.1) == 131 / (50 * 0.15)


def test_larger_blocks_and_the_log_make_fewer_requests():
    workload = make_workload(
        written=1 << 30, size=1 << 30, write_size=1 << 20, sequential=True, flush_every=None, read=1 << 20
    )
    for size in (4096, 131072, 8 << 20):
        found = estimate(workload, size, delay=5.0)
        assert (found.puts, found.gets) == ((1 << 30) // size, max(1, (1 << 20) // size))
        assert found.amplification == 1
    log = estimate(workload, None, delay=5.0)
    assert (log.puts, log.amplification) == ((1 << 30) // SEGMENT, 1)


def test_small_random_writes_are_amplified_by_large_blocks():
    workload = make_workload(
        written=64 << 20, size=1 << 30, write_size=4096, sequential=False, flush_every=1 << 20, read=0
    )
    small, large = (estimate(workload, size, delay=5.0) for size in (4096, 1 << 20))
    assert small.amplification == pytest.approx(1, abs=0.01)
    assert large.amplification > 100
    assert estimate(workload, None, delay=5.0).amplification == pytest.approx(1, abs=0.01)


@pytest.mark.soak
def test_a_sample_counts_as_the_whole():
    def puts(written: int, size: int) -> float:
        workload = make_workload(
            written=written, size=size, write_size=4096, sequential=False, flush_every=None, read=0
        )
        return estimate(workload, 65536, delay=5.0).puts

    assert puts(4 << 30, 8 << 30) == pytest.approx(4 * puts(1 << 30, 2 << 30), rel=0.02)
    # Half as many bytes as there are, in pieces of a sixteenth of a block: hardly a block is left alone.
    assert puts(4 << 30, 8 << 30) == pytest.approx((8 << 30) / 65536, rel=0.01)


def test_rewriting_in_order_begins_again_at_the_start():
    workload = make_workload(written=3000, size=1000, write_size=700, sequential=True, flush_every=1000, read=0)
    assert sum(step.length for step in workload.steps if step.kind == "w") == 3000
    assert all(step.offset + step.length <= 1000 for step in workload.steps)
    assert estimate(workload, 512, delay=5.0).stored == 1024


def test_a_trace(tmp_path):
    lines = ["# comment", "", "0.5 4096 512 w  # a write", "1 0 0 f", "2 0 4096 r"]
    workload = read_trace(lines, "t")
    assert workload.steps == (Step(0.5, 4096, 512, "w"), Step(1, 0, 0, "f"), Step(2, 0, 4096, "r"))


@pytest.mark.parametrize(
    "line", ["1 2 3", "1 2 3 x", "1 2 3 w w", "a 2 3 w", "1 -2 3 w", "nan 0 1 w", "inf 0 1 w", f"1 {1 << 62} 1 w"]
)
def test_a_line_that_is_none(line):
    with pytest.raises(UsageError, match="line 2 of t is no operation") as caught:
        read_trace(["0 0 1 w", line], "t")
    assert "4096 w" in caught.value.hint
