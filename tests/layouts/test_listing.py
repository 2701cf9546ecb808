"""Listing by several requests at once: each key once, whatever lies where, and hardly more requests than pages."""

from __future__ import annotations

import random
import threading
import time

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from s3backer.errors import StoreError
from s3backer.layouts.listing import POSITIONS, Claim, before, is_in, listed_up_to, position, walk
from s3backer.stores.base import ListEntry, ListPage

PAGE = 10


class Bucket:
    """Keys, listed ten at a time; each page takes ``seconds``."""

    def __init__(self, names: set[str], seconds: float = 0.0) -> None:
        self.names = sorted(names)
        self.seconds = seconds
        self.requests = 0
        self.taken: list[str] = []
        self.listed: list[tuple[int, int]] = []
        self.lock = threading.Lock()

    def fetch(self, after: str, claim: Claim) -> ListPage:
        assert after.startswith("p/")
        left = [name for name in self.names if name > after[2:]]
        page = ListPage(tuple(ListEntry(f"p/{name}", 1, "e") for name in left[:PAGE]), len(left) > PAGE)
        time.sleep(self.seconds)
        places = claim(page)
        with self.lock:
            self.requests += 1
            self.listed += [(some.start, some.stop) for some in places]
            for name in left[:PAGE]:
                if is_in(name, places):
                    self.taken.append(name)
        return page


digits = st.integers(0, POSITIONS - 1).map("{:08x}".format)
near = st.integers(0, 300).map("{:08x}".format)
far = st.integers(POSITIONS - 300, POSITIONS - 1).map("{:08x}".format)
hashed = st.builds("{}-{}".format, st.one_of(digits, near, far), near)
foreign = st.one_of(
    st.text("09afgz-/:A", min_size=1, max_size=10),
    st.builds("{}{}".format, st.one_of(near, far), st.sampled_from(["-", "/x", "g", "a", "é", " "])),
)


@given(st.sets(st.one_of(digits, near, far, hashed, foreign), max_size=200), st.sampled_from([1, 4]))
@example({f"{n:08x}" for n in range(40)}, 4)
@example({f"00000000-{n:08x}" for n in range(40)}, 1)
@example({f"z{n}" for n in range(100)} | {"00000000"}, 4)
@example({f"0:{n:03}" for n in range(100)} | {"10000000"}, 4)
def test_each_key_is_taken_once(names, threads):
    bucket = Bucket(names)
    assert walk("p/", bucket.fetch, threads=threads)
    assert len(bucket.taken) == len(set(bucket.taken))
    # What follows the digits otherwise is no name of a block, and may be stepped over.
    blocks = {name for name in bucket.names if position(name) is not None and name[8:9] in ("", "-")}
    assert blocks <= set(bucket.taken)


@given(st.sets(st.one_of(digits, near, far, foreign), max_size=200), st.sampled_from([1, 4]), st.integers(1, POSITIONS))
def test_every_position_below_the_end_is_listed_once(names, threads, end):
    bucket = Bucket(names)
    assert walk("p/", bucket.fetch, end=end, exact=True, threads=threads)
    assert len(bucket.taken) == len(set(bucket.taken))
    blocks = {name for name in bucket.names if len(name) == 8 and is_in(name, [range(end)])}
    assert blocks <= set(bucket.taken)
    reached = 0
    for start, stop in sorted(bucket.listed):
        assert start == reached
        reached = stop
    assert reached == end


@given(
    st.one_of(digits, near, far, hashed, foreign),
    st.booleans(),
    st.one_of(st.integers(0, POSITIONS - 1), st.integers(0, 300)),
)
def test_what_is_listed_up_to_a_name(name, exact, place):
    listed = listed_up_to(name, exact=exact)
    assert 0 <= listed <= POSITIONS
    there = f"{place:08x}"
    last = there if exact else f"{there}-ffffffff"
    # Nothing that matters at a position before it comes after the name, nor anything behind it before the name.
    assert last <= name if place < listed else last >= name
    # Listing begins after this name, with the first of the position.
    assert (f"{place - 1:08x}-ffffffff" if place else "") <= before(place) < there


def test_one_page_takes_one_request():
    bucket = Bucket({f"{n:08x}" for n in range(7)} | {"s3backer-mounted"})
    assert walk("p/", bucket.fetch, threads=8)
    assert bucket.requests == 1


@pytest.mark.parametrize("end", [1000, POSITIONS])
def test_a_dense_volume_takes_few_requests_more_than_it_has_pages(end):
    bucket = Bucket({f"{n:08x}" for n in range(1000)}, 0.002)
    assert walk("p/", bucket.fetch, end=end, exact=True, threads=4)
    assert 100 <= bucket.requests <= 100 + 4


@pytest.mark.parametrize("seed", range(5))
def test_uneven_volumes_take_few_requests_more_and_all_workers(seed):
    source = random.Random(seed)
    names = {f"{source.randrange(POSITIONS):08x}" for _ in range(300)}
    for _ in range(3):
        start = source.randrange(POSITIONS)
        names |= {f"{min(start + n, POSITIONS - 1):08x}" for n in range(400)}
    bucket = Bucket(names, 0.003)
    assert walk("p/", bucket.fetch, exact=True, threads=4)
    pages = len(names) / PAGE
    assert pages <= bucket.requests <= 1.5 * pages + 12


def test_foreign_objects_are_stepped_over():
    names = {f"{n:08x}" for n in range(50)} | {f"data/{n:04}" for n in range(2000)} | {f"x{n:04}" for n in range(2000)}
    bucket = Bucket(names)
    assert walk("p/", bucket.fetch, threads=4)
    assert bucket.requests < 30


def test_several_workers_are_faster():
    names = {f"{n:08x}" for n in range(400)}
    times = []
    for threads in (1, 8):
        bucket = Bucket(names, 0.02)
        started = time.perf_counter()
        walk("p/", bucket.fetch, threads=threads)
        times.append(time.perf_counter() - started)
    assert times[1] < times[0] / 2


@pytest.mark.parametrize("threads", [1, 4])
def test_it_stops_when_asked_and_where_it_fails(threads):
    bucket = Bucket({f"{n:08x}" for n in range(400)}, 0.001)
    assert not walk("p/", bucket.fetch, threads=threads, stop_asked=lambda: bucket.requests > 5)
    assert bucket.requests < 20

    def fail(after: str, claim: Claim) -> ListPage:
        if bucket.requests > 25:
            raise StoreError("away")
        return Bucket.fetch(bucket, after, claim)

    with pytest.raises(StoreError, match="away"):
        walk("p/", fail, threads=threads)
    assert bucket.requests < 40
