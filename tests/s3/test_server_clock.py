"""The server's clock: known as exactly as whole seconds and the time on the way allow, whatever ours does."""

from __future__ import annotations

import math
from email.utils import formatdate

import hypothesis.strategies as st
from hypothesis import given

from s3backer.s3.http1 import Answer
from s3backer.s3.server_clock import DOUBT, ServerClock

seconds = st.floats(0, 30)


class World:
    """A true time, and a computer's clock that differs from it."""

    def __init__(self, off: float) -> None:
        self.time = 1_800_000_000.0
        self.off = off

    def ours(self) -> float:
        return self.time + self.off


@given(
    st.floats(-1e6, 1e6),
    st.lists(st.tuples(seconds, seconds, seconds, st.sampled_from([0.0, 0.0, 0.0, -500.0, 7.0])), min_size=1),
)
def test_the_servers_time_is_known_up_to_the_time_on_the_way(off, exchanges):
    world = World(off)
    clock = ServerClock(world.ours, "s3")
    for pause, out, back, jump in exchanges:
        world.time += pause
        # Somebody sets the clock.
        world.off += jump
        asked = clock.ours()
        world.time += out
        date = formatdate(math.floor(world.time), usegmt=True)
        world.time += back
        clock.observe(Answer(200, {"date": date}, b""), asked)
        assert abs(clock.now() - world.time) <= out + back + 1 + DOUBT + 1e-3


def test_a_slow_answer_changes_nothing_while_it_may_be_right():
    world = World(0.0)
    clock = ServerClock(world.ours, "s3")
    date = formatdate(world.time, usegmt=True)
    asked = clock.ours()
    world.time += 300
    assert not clock.observe(Answer(200, {"date": date}, b""), asked)
    assert clock.now() == world.time


def test_a_pause_is_learned_from_the_next_answer_and_never_forgotten():
    """As of a virtual machine: the server's clock went on, ours stood still."""
    world = World(0.0)
    clock = ServerClock(world.ours, "s3")
    before = clock.unpaused()

    def answered() -> float:
        asked = clock.ours()
        date = formatdate(math.floor(world.time), usegmt=True)
        clock.observe(Answer(200, {"date": date}, b""), asked)
        return clock.unpaused() - before

    assert answered() < 60
    world.time, world.off = world.time + 600, world.off - 600
    assert 590 < answered() < 660
    # A server whose clock is set back does not make the time go back.
    world.time, world.off = world.time - 600, world.off + 600
    assert 590 < answered() < 660


def test_servers_that_differ_do_not_make_the_time_run():
    """As behind one name: each answer is another one's."""
    world = World(0.0)
    clock = ServerClock(world.ours, "s3")
    before = clock.unpaused()
    for turn in range(100):
        date = formatdate(math.floor(world.time) + 6 * (turn % 2), usegmt=True)
        clock.observe(Answer(200, {"date": date}, b""), clock.ours())
    assert clock.unpaused() - before < 60


def test_a_clock_that_was_set_during_a_request_teaches_nothing():
    world = World(0.0)
    clock = ServerClock(world.ours, "s3")
    asked = clock.ours()
    world.off = -3600.0
    assert not clock.observe(Answer(200, {"date": formatdate(world.time, usegmt=True)}, b""), asked)
    assert clock.ahead == 0


def test_no_date_and_nonsense_teach_nothing():
    world = World(5000.0)
    clock = ServerClock(world.ours, "s3")
    for headers in ({}, {"date": "yesterday"}, {"date": ""}):
        assert not clock.observe(Answer(200, headers, b""), clock.ours())
    assert clock.ahead == 0
