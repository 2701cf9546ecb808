"""When a slow read is asked for twice: a model with a virtual clock, and a server that really stalls."""

from __future__ import annotations

import heapq
import random
import threading
from collections.abc import Callable

import pytest

from s3backer.s3.hedging import Hedging, Ticket
from s3backer.stores.s3 import S3Store
from tests.support.nasty import NastyServer, Step
from tests.support.talks import A_ETAG, OK, options_for

IN_FLIGHT = 16


class World:
    """Reads on a virtual clock, ``IN_FLIGHT`` at a time, each asked for twice when Hedging says so."""

    def __init__(self, latency: Callable[[random.Random], float], seed: int = 1) -> None:
        self.now = 0.0
        self.hedging = Hedging(lambda: self.now)
        self.latency = latency
        self.source = random.Random(seed)
        self.took: list[float] = []
        self.hedges = 0

    def run(self, reads: int) -> None:
        events: list[tuple[float, int, str, Ticket]] = []
        number = 0
        ended: set[int] = set()

        def begin() -> None:
            nonlocal number
            number += 1
            ticket = self.hedging.begin()
            heapq.heappush(events, (self.now + self.latency(self.source), number, "answer", ticket))
            look(ticket)

        def look(ticket: Ticket) -> None:
            nonlocal number
            patience = self.hedging.patience(ticket)
            if patience is not None:
                number += 1
                heapq.heappush(events, (self.now + patience, number, "look", ticket))

        for _ in range(min(IN_FLIGHT, reads)):
            begin()
        begun = min(IN_FLIGHT, reads)
        while events:
            self.now, _, what, ticket = heapq.heappop(events)
            if ticket.number in ended:
                continue
            if what == "look":
                if self.hedging.allowed(ticket):
                    self.hedges += 1
                    number += 1
                    heapq.heappush(events, (self.now + self.latency(self.source), number, "answer", ticket))
                else:
                    look(ticket)
                continue
            ended.add(ticket.number)
            self.took.append(self.now - ticket.began)
            self.hedging.end(ticket, answered=True)
            if begun < reads:
                begun += 1
                begin()

    def quantile(self, share: float) -> float:
        return sorted(self.took)[int(len(self.took) * share)]


def usual(source: random.Random) -> float:
    return 0.02 * source.uniform(0.8, 1.2)


def tailed(source: random.Random) -> float:
    return 10.0 if source.random() < 0.01 else usual(source)


@pytest.mark.parametrize("seed", range(5))
def test_a_tail_of_ten_seconds_is_cut_off(seed):
    world = World(tailed, seed)
    world.run(20_000)
    late = sorted(world.took)
    assert world.quantile(0.999) <= 5 * world.quantile(0.5)
    assert world.hedges <= 0.05 * 20_000
    # The first ones had nothing to be compared with.
    assert sum(seconds > 1 for seconds in late) <= 5


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_asked_for_twice_when_everything_slows_down(seed):
    world = World(usual, seed)
    world.run(2000)
    before = world.hedges
    world.latency = lambda source: 10 * usual(source)
    world.run(2000)
    assert world.hedges == before == 0


def test_the_budget_is_kept_whatever_the_server_does():
    world = World(lambda source: source.choice([0.01, 0.01, 0.5]))
    world.run(5000)
    assert 0 < world.hedges <= 0.05 * 5000 + 10


def test_a_lone_read_is_asked_for_twice_when_it_is_very_slow():
    now = 0.0
    hedging = Hedging(lambda: now)
    for _ in range(64):
        ticket = hedging.begin()
        now += 0.02
        hedging.end(ticket, answered=True)
    ticket = hedging.begin()
    now += 0.2
    assert not hedging.allowed(ticket)
    now += 0.2
    assert hedging.allowed(ticket)


def test_a_read_that_hangs_is_looked_at_ever_less_often():
    now = 0.0
    hedging = Hedging(lambda: now)
    for _ in range(64):
        ticket = hedging.begin()
        now += 0.001
        hedging.end(ticket, answered=True)
    ticket, looks = hedging.begin(), 0
    until = now + 30
    while now < until:
        patience = hedging.patience(ticket)
        assert patience is not None
        now += patience
        looks += 1
    assert looks < 100


def test_what_was_not_answered_teaches_nothing():
    hedging = Hedging(lambda: 0.0)
    for _ in range(1000):
        hedging.end(hedging.begin(), answered=False)
    ticket = hedging.begin()
    assert hedging.patience(ticket) is None
    assert not hedging.allowed(ticket)


def taught(url: str, **options) -> S3Store:
    """Return a store that knows how long reads take."""
    store = S3Store("bucket", options_for(url, **options))
    for _ in range(40):
        store.get("key")
    return store


@pytest.mark.parametrize(
    "stuck",
    [
        Step(hold=True),
        Step(OK[:-1], hold=True),
        Step(OK[:30], hold=True),
    ],
    ids=["silence", "half a body", "half a header"],
)
def test_an_answer_that_stalls_is_overtaken_by_the_second_one(stuck):
    with NastyServer(*[OK] * 40, stuck, OK) as server:
        store = taught(server.url)
        found = store.get("key")
        assert (found.body, found.info.etag) == (b"a", A_ETAG)
        assert (store.counters.hedges, store.counters.hedges_won) == (1, 1)
        assert store.counters.retries == 0
        assert store.counters.snapshot()["get"].requests == 42
        assert store.get("key").body == b"a"
        store.close()


def test_a_second_answer_that_breaks_off_leaves_the_first():
    slow = Step(OK[:-1] + b"a", pause=0.02)
    with NastyServer(*[OK] * 40, slow, Step(end="reset"), OK) as server:
        store = taught(server.url)
        assert store.get("key").body == b"a"
        store.close()


def test_writes_and_heads_are_asked_for_once():
    with NastyServer(*[OK] * 40, Step(hold=True), OK) as server:
        store = taught(server.url, timeout=0.7, patience=1.0)
        store.put("key", b"a")
        assert store.counters.hedges == 0
        assert store.counters.retries == 1
        store.close()


@pytest.mark.parametrize("end", ["comes", "breaks off"])
def test_the_first_answer_counts_while_the_second_connects(end, monkeypatch):
    first = Step(OK, pause=0.005) if end == "comes" else Step(OK[:30], pause=0.01, end="reset")
    with NastyServer(*[OK] * 40, first, OK) as server:
        store = taught(server.url)
        transport = store._engine._transport
        connect, connecting, connected = transport._connect, threading.Event(), threading.Event()

        def slow():
            connecting.set()
            assert connected.wait(20)
            return connect()

        monkeypatch.setattr(transport, "_connect", slow)
        # The kept connection goes to the first.
        if end == "breaks off":
            threading.Timer(1.0, connected.set).start()
        assert store.get("key").body == b"a"
        assert connecting.is_set()
        assert connected.is_set() == (end == "breaks off")
        connected.set()
        store.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "s3backer-hedge"]
