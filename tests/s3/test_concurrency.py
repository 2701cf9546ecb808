"""The level of concurrency, against servers that are models: nothing here waits for real time."""

from __future__ import annotations

import heapq
import math
import random
import threading
import time

import pytest

from s3backer.s3.concurrency import LEAST, Limiter, Pace, Turn


def begun(limiter: Limiter, *, write: bool = False) -> Turn:
    """Return a turn that was given."""
    turn = limiter.begin(write=write)
    assert turn is not None
    return turn


class Model:
    """Callers that always want one more request, and a server that has ``servers`` of them work at a time."""

    def __init__(self, limiter: Limiter, *, latency: float, servers: int, seed: int = 1) -> None:
        self.limiter = limiter
        self.latency = latency
        self.servers = servers
        self.now = 0.0
        self.answers = 0
        self._free = [0.0] * servers
        self._source = random.Random(seed)
        self._under_way: list[tuple[float, float, int, Turn]] = []

    def under_way(self) -> list[Turn]:
        return [turn for _, _, _, turn in self._under_way]

    def run(self, answers: int, *, slow_downs: float = 0.0) -> None:
        stop = self.answers + answers
        while self.answers < stop:
            while self.limiter.under_way < self.limiter.allowed:
                turn = self.limiter.begin(write=False)
                assert turn
                at = heapq.heappop(self._free)
                took = self.latency * self._source.uniform(0.8, 1.2)
                done = max(at, self.now) + took
                heapq.heappush(self._free, done)
                heapq.heappush(self._under_way, (done, self.now, id(turn), turn))
            # Somebody waits all the time.
            self.limiter._full = True
            self.now, began, _, turn = heapq.heappop(self._under_way)
            slow = self._source.random() < slow_downs
            self.limiter.end(turn, seconds=None if slow else self.now - began, slow_down=slow)
            self.answers += 1


@pytest.mark.parametrize("latency", [0.001, 0.02, 0.35])
def test_a_server_that_takes_anything_is_given_all_that_is_allowed(latency):
    limiter = Limiter(64)
    Model(limiter, latency=latency, servers=1000).run(3000)
    assert limiter.allowed == 64


@pytest.mark.parametrize("latency", [0.001, 0.35])
def test_a_server_whose_queue_grows_is_not_given_more_than_it_works_on(latency):
    limiter = Limiter(64)
    Model(limiter, latency=latency, servers=8).run(5000)
    assert LEAST <= limiter.allowed <= 24


def test_slow_downs_bring_it_down_and_their_end_up_again():
    limiter = Limiter(64)
    model = Model(limiter, latency=0.05, servers=1000)
    model.run(2000)
    assert limiter.allowed == 64
    model.run(1000, slow_downs=0.6)
    assert limiter.allowed == LEAST
    model.run(3000)
    assert limiter.allowed == 64


def test_a_slow_down_now_and_then_costs_little():
    limiter = Limiter(64)
    Model(limiter, latency=0.05, servers=1000).run(5000, slow_downs=0.03)
    assert limiter.allowed >= 32


def test_without_anybody_waiting_nothing_is_learnt_of_more():
    limiter = Limiter(64)
    for _ in range(1000):
        limiter.end(begun(limiter), seconds=0.01)
    assert limiter.allowed == LEAST


def test_fewer_callers_than_the_least():
    limiter = Limiter(2)
    assert limiter.allowed == 2
    Model(limiter, latency=0.01, servers=1).run(500, slow_downs=0.5)
    assert limiter.allowed == 2


def test_where_one_is_allowed_reads_and_writes_take_turns():
    limiter = Limiter(1)
    order: list[bool] = []
    lock = threading.Lock()

    def work(write: bool) -> None:
        start.wait(20)
        for _ in range(50):
            turn = begun(limiter, write=write)
            with lock:
                order.append(write)
                assert limiter.under_way == 1
            # Meanwhile all others ask.
            threading.Event().wait(0.002)
            limiter.end(turn, seconds=0.001)

    start = threading.Barrier(4)

    threads = [threading.Thread(target=work, args=(write,)) for write in (False, False, False, True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    # The writes do not wait for the last read.
    assert len(order) == 200
    assert sum(order[:120]) >= 40


def test_late_requests_let_no_more_begin_than_ever_may_be_under_way():
    now = 0.0
    limiter = Limiter(64, least=64, clock=lambda: now)
    for _ in range(64):
        limiter.end(begun(limiter), seconds=0.01)
    turns = [begun(limiter) for _ in range(64)]
    now += 100.0
    # Now those that go on are late, so that others may have their places.
    limiter.end(turns.pop(), seconds=0.01)
    while limiter._has_room(False):
        begun(limiter)
    assert limiter.under_way == 64


def test_queued_writes_leave_reads_a_quarter_and_never_hold_one_up():
    limiter = Limiter(8)
    writers: list[threading.Thread] = []
    turns: list[Turn | None] = []
    for _ in range(20):
        writers.append(threading.Thread(target=lambda: turns.append(limiter.begin(write=True))))
        writers[-1].start()
    settled = time.monotonic() + 0.3
    for writer in writers:
        writer.join(max(0.0, settled - time.monotonic()))
    assert limiter.under_way == 6
    # They get in at once although writers have been waiting longer.
    assert limiter.begin(write=False) and limiter.begin(write=False)
    assert limiter.under_way == 8
    reader = threading.Thread(target=limiter.begin, kwargs={"write": False})
    reader.start()
    reader.join(0.1)
    assert reader.is_alive()
    # The next place is the reader's, although it is a write that ends.
    assert turns[0]
    limiter.end(turns[0], seconds=0.1)
    reader.join(20)
    assert not reader.is_alive()
    limiter.close()
    for writer in writers:
        writer.join(20)
        assert not writer.is_alive()
    assert limiter.begin(write=False) is None


def test_writes_that_began_when_more_was_allowed_hold_no_read_up():
    limiter = Limiter(64)
    model = Model(limiter, latency=0.05, servers=1000)
    model.run(2000)
    for turn in model.under_way():
        limiter.end(turn, seconds=None)
    for _ in range(48):
        assert limiter.begin(write=True)

    def read() -> None:
        while limiter.allowed > LEAST and (turn := limiter.begin(write=False)):
            limiter.end(turn, seconds=None, slow_down=True)

    reader = threading.Thread(target=read)
    reader.start()
    reader.join(20)
    assert limiter.allowed == LEAST
    assert limiter.begin(write=False) and limiter.begin(write=False)
    assert limiter.under_way == 50
    limiter.close()
    reader.join(20)


def test_reads_leave_waiting_writes_a_quarter():
    limiter = Limiter(8)
    turns = [begun(limiter) for _ in range(8)]
    writer = threading.Thread(target=limiter.begin, kwargs={"write": True})
    writer.start()
    readers = [threading.Thread(target=limiter.begin, kwargs={"write": False}) for _ in range(8)]
    for reader in readers:
        reader.start()
    writer.join(0.2)
    assert writer.is_alive()
    for turn in turns[:3]:
        limiter.end(turn, seconds=0.1)
    writer.join(20)
    assert not writer.is_alive()
    limiter.close()
    for reader in readers:
        reader.join(20)


def test_no_place_is_lost_or_doubled():
    limiter = Limiter(4)
    under_way, most, lock = 0, 0, threading.Lock()

    def work(seed: int) -> None:
        nonlocal under_way, most
        source = random.Random(seed)
        for _ in range(300):
            write = source.random() < 0.5
            turn = begun(limiter, write=write)
            with lock:
                under_way += 1
                most = max(most, under_way)
            with lock:
                under_way -= 1
            limiter.end(turn, seconds=source.choice([None, 0.01]), slow_down=source.random() < 0.3)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert limiter.under_way == 0
    assert most <= 4


class SlowWay:
    """Writers that always have more, and a way to the server that takes ``seconds`` for each, one after the other.

    What was given up is sent all the same, as what is in the buffers of a network.
    """

    def __init__(self, limiter: Limiter, *, seconds: float, timeout: float) -> None:
        self.limiter = limiter
        self.seconds = seconds
        self.timeout = timeout
        self.now = 0.0
        self.done = self.lost = 0
        self._free = 0.0
        self._under_way: list[tuple[float, float, int, Turn, bool]] = []

    def run(self, until: float) -> None:
        while self.now < until:
            while self.limiter._has_room(write=True):
                turn = begun(self.limiter, write=True)
                self._free = max(self._free, self.now) + self.seconds
                ends = min(self._free, self.now + self.timeout)
                heapq.heappush(self._under_way, (ends, self.now, id(turn), turn, ends < self._free))
            self.now, began, _, turn, lost = heapq.heappop(self._under_way)
            self.done, self.lost = self.done + (not lost), self.lost + lost
            self.limiter.end(turn, seconds=None if lost else self.now - began, timed_out=lost)


@pytest.mark.parametrize("seconds", [0.3, 0.6, 1.0, 2.0])
def test_writes_get_through_a_slow_way(seconds):
    limiter = Limiter(64, timeout=3.0)
    way = SlowWay(limiter, seconds=seconds, timeout=3.0)
    way.run(200)
    assert limiter.allowed >= LEAST
    before, lost = way.done, way.lost
    way.run(400)
    assert (way.done - before) * seconds > 180
    assert way.lost == lost


def test_writes_get_their_share_again_when_the_way_is_good():
    limiter = Limiter(64, timeout=3.0)
    way = SlowWay(limiter, seconds=3.5, timeout=3.0)
    way.run(50)
    assert way.done == 0
    way.seconds, way._free = 0.001, way.now
    way.run(way.now + 10)
    assert limiter._write_level == math.inf


def test_a_time_out_now_and_then_costs_nothing():
    limiter, source = Limiter(64, timeout=3.0), random.Random(1)
    for _ in range(5000):
        lost = source.random() < 0.1
        limiter.end(begun(limiter, write=True), seconds=None if lost else 0.01, timed_out=lost)
    assert limiter._write_level > 4


def test_time_outs_of_writes_leave_reads_alone():
    limiter = Limiter(64, timeout=3.0)
    for _ in range(20):
        limiter.end(begun(limiter, write=True), seconds=None, timed_out=True)
    assert limiter.begin(write=True)
    assert not limiter._has_room(write=True)
    for _ in range(LEAST - 1):
        assert limiter.begin(write=False)


class SomeStall:
    """Writers that always have more. Each takes ``latency``; of a share there is no answer within ``timeout``."""

    def __init__(self, *, latency: float, share: float, timeout: float) -> None:
        self.now = 0.0
        self.limiter = Limiter(64, timeout=timeout, clock=lambda: self.now)
        self.latency, self.share, self.timeout = latency, share, timeout
        self.answered = 0
        self._source = random.Random(1)
        self._under_way: list[tuple[float, float, int, Turn, bool]] = []

    def run(self, until: float) -> None:
        while self.now < until:
            while self.limiter._has_room(write=True):
                turn = begun(self.limiter, write=True)
                lost = self._source.random() < self.share
                took = self.timeout if lost else self.latency * self._source.uniform(0.8, 1.2)
                heapq.heappush(self._under_way, (self.now + took, self.now, id(turn), turn, lost))
            self.now, began, _, turn, lost = heapq.heappop(self._under_way)
            self.answered += not lost
            self.limiter.end(turn, seconds=None if lost else self.now - began, timed_out=lost)


def test_who_waits_for_an_answer_that_does_not_come_keeps_nobody_else_waiting():
    stalling, nobody = (SomeStall(latency=0.04, share=share, timeout=2.0) for share in (0.025, 0.0))
    stalling.run(60)
    nobody.run(60)
    # While they count they are more than half of what is under way.
    assert stalling.answered >= 0.75 * nobody.answered
    assert stalling.limiter.under_way <= 2 * stalling.limiter.allowed
    assert stalling.limiter._write_level == math.inf


def test_the_last_answers_of_a_rush_that_do_not_come_say_nothing_of_the_way():
    now = 0.0
    limiter = Limiter(64, timeout=3.0, clock=lambda: now)
    for _ in range(10):
        lost = [begun(limiter, write=True) for _ in range(4)]
        for _ in range(20):
            limiter.end(begun(limiter, write=True), seconds=0.01)
        now += 3.0
        for turn in lost:
            limiter.end(turn, seconds=None, timed_out=True)
    assert limiter._write_level == math.inf


def test_nobody_is_late_while_nobody_is_answered():
    now = 0.0
    limiter = Limiter(64, clock=lambda: now)
    for _ in range(8):
        limiter.end(begun(limiter), seconds=0.01)
    turns = [begun(limiter) for _ in range(8)]
    now += 100.0
    assert not limiter._has_room(write=False)
    limiter.end(turns[0], seconds=None)
    assert begun(limiter) and not limiter._has_room(write=False)
    # One is answered, so the others wait for something else; each time as many again as are allowed.
    limiter.end(turns[1], seconds=0.01)
    more = 0
    while limiter._has_room(write=False):
        begun(limiter)
        more += 1
    assert more == 7


def test_the_pace_is_that_of_everything_together():
    now = 100.0
    pace = Pace(8000, lambda: now)
    assert [pace.take(1000) for _ in range(3)] == [1.0, 2.0, 3.0]
    now = 102.5
    assert pace.take(500) == pytest.approx(1.0)
    now = 200.0
    assert pace.take(1000) == 1.0
    assert pace.take(0) == 0.0
    assert Pace(None, lambda: now).take(10**9) == 0.0
