"""The lease: its rules under clocks that nobody waits for, and who holds it with a store that fails.

The model has a holder that may be stopped at any moment for any time, a taker, and a server that heeds signatures. What
must never be: a write of the holder's takes effect after the taker has begun to write.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3backer.admin import unlock_volume
from s3backer.errors import ObjectNotFound, StoreError, VolumeInUse
from s3backer.holder import Holder, take
from s3backer.layouts.token import TOKEN_NAME, MountToken, claim_token, read_token, remove_token, write_token
from s3backer.lease import TERM, Lease, Watch
from s3backer.stores.memory import MemoryStore
from tests.support.mounts import wait_until

SOURCE = random.Random(1)
LOST = VolumeInUse("lost")


# ── the rules ────────────────────────────────────────────────────────────────────────────────────────────────


def test_when_it_is_renewed_when_writing_stops_and_for_how_long_it_is_signed():
    lease = Lease("v", 60.0, 100.0)
    assert lease.due_in(100.0) == 20.0 and lease.due_in(130.0) == 0.0
    assert lease.sign_for(100.0) == 60.0
    assert lease.sign_for(139.9) == pytest.approx(20.1)
    for now in (140.0, 159.0, 1e9):
        with pytest.raises(StoreError, match="was renewed"):
            lease.sign_for(now)
    # An answer that came late counts from when its request was sent.
    lease.renewed(120.0)
    assert lease.sign_for(159.0) == pytest.approx(21.0)
    lease.renewed(110.0)
    assert lease.sign_for(159.0) == pytest.approx(21.0)
    lease.failed(161.0)
    assert lease.due_in(161.0) == 3.0
    lease.renewed(162.0)
    assert lease.due_in(162.0) == 20.0 and lease.sign_for(162.0) == 60.0


def test_lost_is_lost():
    lease = Lease("v", 60.0, 0.0)
    lease.lose(LOST)
    lease.lose(VolumeInUse("once more"))
    lease.renewed(1.0)
    for now in (1.0, 100.0):
        with pytest.raises(VolumeInUse, match=r"^lost"):
            lease.sign_for(now)
    assert lease.lost is LOST


def test_who_watches_waits_for_a_whole_term_without_a_change():
    watch = Watch("a", 60.0, 1000.0)
    assert watch.left(1000.0) == 60.0 and watch.left(1059.0) == 1.0 and watch.left(1060.0) == 0.0
    assert not watch.saw("a") and watch.saw("b")


#: Of a term.
SHARES = st.sampled_from([0.0, 0.1, 0.34, 0.65, 0.99, 1.5])


@settings(max_examples=2000)
@given(st.data())
def test_nothing_of_the_holder_arrives_after_the_taker_begins(data: st.DataObject) -> None:
    """Real time is the server's; the holder's and the taker's clocks run alike, from different beginnings."""
    term = data.draw(st.sampled_from([3.0, 60.0]), "term")

    def some(what: str) -> float:
        return term * data.draw(SHARES, what)

    upload = some("what an upload may take after its head has come")
    ours = data.draw(st.sampled_from([-1e5, 0.0, 1e5]), "the holder's clock")
    # Each renewal: when it was sent, and when it was there, which is when it can be seen first.
    lease, now = Lease("v", term, ours), 0.0
    changed = some("the first one's way")
    arrivals: list[float] = []
    renewals = data.draw(st.integers(0, 3), "renewals")
    for step in range(renewals + data.draw(st.integers(1, 4), "writes")):
        # The process may be stopped anywhere: between a look at the clock and what it leads to, too.
        now += some("stopped")
        if step < renewals:
            sent, changed = now, max(changed, now + some("its way"))
            now = changed + some("the answer's way")
            lease.renewed(sent + ours)
            continue
        try:
            good_for = lease.sign_for(now + ours)
        except StoreError:
            continue
        # Its head may come as long as the signature is good, and its body later.
        arrivals.append(now + good_for * data.draw(st.sampled_from([0.0, 0.5, 1.0]), "head") + upload)
    # The taker has seen the last one, and watches for a term. From then on no renewal succeeds.
    taken = changed + some("until it comes") + term
    assert all(arrival <= taken + upload + 1e-6 for arrival in arrivals)


# ── the holder ───────────────────────────────────────────────────────────────────────────────────────────────


class Bucket(MemoryStore):
    """One process's view of a bucket. It may be away, may lose answers, and may heed no conditions."""

    def __init__(self, other: MemoryStore | None = None) -> None:
        super().__init__()
        if other is not None:
            self._objects = other._objects
        self.away = self.loses_answers = self.careless = False
        self.puts = 0

    def put(self, *args: object, **facts: object) -> str:
        """Put, or fail, before or after it took effect."""
        self.puts += 1
        if self.careless:
            facts.pop("if_match", None)
        if self.away:
            raise StoreError("the store is away", hint="Wait.")
        etag = super().put(*args, **facts)  # type: ignore[arg-type]
        if self.loses_answers:
            raise StoreError("the answer was lost", hint="Wait.")
        return etag


class Clock:
    """A clock that jumps."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def holder(bucket: Bucket, clock: Clock) -> Iterator[Holder]:
    token = write_token(bucket, "", "v", replace=None, random_source=SOURCE, lease=TERM, journal="/there")
    made = Holder(bucket, "", "v", token, clock(), clock=clock)
    yield made
    made.stop()


def test_it_renews_and_says_the_same(bucket: Bucket, holder: Holder) -> None:
    before = read_token(bucket, "")
    holder.renew()
    after = read_token(bucket, "")
    assert before is not None and after is not None
    assert before.etag != after.etag
    assert replace(before, etag="") == replace(after, etag="")
    assert after.lease == TERM and after.journal == "/there"
    holder.confirm()


def test_it_renews_by_itself(bucket: Bucket) -> None:
    token = write_token(bucket, "", "v", replace=None, random_source=SOURCE, lease=1.0)
    holder = Holder(bucket, "", "v", token, time.monotonic(), clock=time.monotonic)
    try:
        etags: set[str] = set()

        def seen() -> bool:
            found = read_token(bucket, "")
            etags.add(found.etag if found else "")
            return len(etags) > 3

        wait_until(seen, "it is renewed three times")
    finally:
        assert holder.give_back() is None
    assert read_token(bucket, "") is None


def test_after_a_sleep_a_write_waits_for_the_renewal(bucket: Bucket, holder: Holder, clock: Clock) -> None:
    bucket.put("block", b"1")
    puts = bucket.puts
    clock.ahead += 1000.0
    bucket.put("block", b"2")
    assert bucket.puts == puts + 2


def test_while_it_cannot_be_renewed_nothing_is_written(bucket: Bucket, holder: Holder, clock: Clock) -> None:
    clock.ahead += 1000.0
    bucket.away = True
    # In the order of the store's own faults: the fence is asked first where there is one.
    with pytest.raises(StoreError, match="was renewed 10"):
        bucket.fence.check("block")
    with pytest.raises(StoreError, match="was renewed 10"):
        MemoryStore.delete(bucket, "block")
    bucket.away = False
    bucket.put("block", b"2")


def test_an_answer_that_was_lost_is_no_loss(bucket: Bucket, holder: Holder) -> None:
    bucket.loses_answers = True
    with pytest.raises(StoreError, match="lost"):
        holder.renew()
    with pytest.raises(StoreError, match="lost"):
        holder.change(0x1234)
    bucket.loses_answers = False
    holder.confirm()
    holder.renew()
    found = read_token(bucket, "")
    assert found is not None and found.value == 0x1234
    assert holder.lease.lost is None
    assert holder.give_back() is None
    assert read_token(bucket, "") is None


def test_after_a_sleep_it_puts_nothing_over_another_s_token(bucket: Bucket, holder: Holder, clock: Clock) -> None:
    bucket.careless = True
    other = write_token(Bucket(bucket), "", "v", replace=read_token(bucket, ""), random_source=SOURCE, lease=TERM)
    clock.ahead += 1000.0
    with pytest.raises(VolumeInUse):
        bucket.put("block", b"1")
    found = read_token(bucket, "")
    assert found is not None and found.value == other.value


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_it_notices_that_the_token_is_another_s(bucket: Bucket, how: str) -> None:
    token = write_token(bucket, "", "v", replace=None, random_source=SOURCE, lease=1.0)
    holder = Holder(bucket, "", "v", token, time.monotonic(), clock=time.monotonic)
    told: list[VolumeInUse] = []
    holder.on_lost = told.append
    other = Bucket(bucket)
    mine = read_token(other, "")
    assert mine is not None
    if how == "replaced":
        while True:
            try:
                new = write_token(other, "", "v", replace=read_token(other, ""), random_source=SOURCE)
                break
            except VolumeInUse:
                continue
    else:
        remove_token(other, "", mine)
    wait_until(lambda: told, "it is lost")
    with pytest.raises(VolumeInUse):
        bucket.put("block", b"1")
    with pytest.raises(ObjectNotFound):
        other.get("block")
    if how == "replaced":
        left = holder.give_back()
        assert left is not None and left.value == new.value
    else:
        assert holder.give_back() is None
    assert len(told) == 1


# ── taking ───────────────────────────────────────────────────────────────────────────────────────────────────


def put(bucket: MemoryStore, *, lease: float = 0.0, journal: str = "") -> MountToken:
    return write_token(Bucket(bucket), "", "v", replace=None, random_source=SOURCE, lease=lease, journal=journal)


def test_a_token_without_a_lease_never_ends(bucket: Bucket) -> None:
    found = put(bucket)
    with pytest.raises(VolumeInUse):
        take(bucket, "", "v", found, force=False)
    began = time.monotonic()
    holder = take(bucket, "", "v", found, force=True)
    assert time.monotonic() - began < 10
    assert holder.give_back() is None


def test_a_mount_that_does_not_renew_is_taken_over_after_a_term(bucket: Bucket) -> None:
    found = put(bucket, lease=1.0)
    bucket.arriving = 0.5
    left: list[float] = []
    began = time.monotonic()
    holder = take(bucket, "", "v", found, force=False, looks=left.append)
    assert time.monotonic() - began >= 1.5
    assert left
    assert holder.give_back() is None


def test_by_force_it_waits_for_the_lease_of_who_may_be_alive(bucket: Bucket) -> None:
    found = put(bucket, lease=1.0, journal="/there")
    bucket.arriving = 0.5
    with pytest.raises(VolumeInUse, match="journal in /there"):
        take(bucket, "", "v", found, force=False)
    began = time.monotonic()
    holder = take(bucket, "", "v", found, force=True)
    assert time.monotonic() - began >= 1.5
    # It has been its own all the time.
    assert holder.give_back() is None


def test_a_mount_that_renews_is_alive(bucket: Bucket) -> None:
    found = put(bucket, lease=1.0)
    holder = Holder(Bucket(bucket), "", "v", found, time.monotonic(), clock=time.monotonic)
    try:
        with pytest.raises(VolumeInUse, match="alive"):
            take(bucket, "", "v", found, force=False)
    finally:
        holder.give_back()


def test_a_mount_that_ends_meanwhile_is_no_obstacle(bucket: Bucket) -> None:
    found = put(bucket, lease=3.0)
    late = threading.Timer(0.3, lambda: remove_token(Bucket(bucket), "", found))
    late.start()
    bucket.arriving = 3600.0
    holder = take(bucket, "", "v", found, force=False)
    assert holder.give_back() is None


def test_of_two_that_want_it_one_gets_it(bucket: Bucket) -> None:
    found = put(bucket, lease=1.0)
    results: list[Holder | VolumeInUse] = []

    def try_it() -> None:
        try:
            results.append(take(Bucket(bucket), "", "v", found, force=False))
        except VolumeInUse as error:
            results.append(error)

    threads = [threading.Thread(target=try_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    (winner,) = [result for result in results if isinstance(result, Holder)]
    assert len(results) == 4
    assert winner.give_back() is None


def test_whoever_stops_waiting_leaves_the_token(bucket: Bucket) -> None:
    found = put(bucket, lease=1.0)
    bucket.arriving = 3600.0

    def stop(left: float) -> None:
        if left > 10:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        take(bucket, "", "v", found, force=False, looks=stop)
    after = read_token(bucket, "")
    assert after is not None and after.value != found.value and after.lease == TERM


def test_unlock_leaves_a_mount_that_comes_back_while_it_waits(bucket: Bucket) -> None:
    found = put(bucket, lease=1.0)
    bucket.arriving = 1.5

    def come_back() -> None:
        claim_token(Bucket(bucket), "", "v", value=found.value, replace=found, random_source=SOURCE, lease=1.0)

    # After the term that it watches.
    late = threading.Timer(1.75, come_back)
    late.start()
    with pytest.raises(VolumeInUse):
        unlock_volume(bucket, "")
    late.join()
    after = read_token(bucket, "")
    assert after is not None and after.etag != found.etag


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("60 92", (60.0, 92.0)),
        ("0.01 -5", (1.0, 0.0)),
        ("1e9 1e9", (3600.0, 3600.0)),
        ("60", (3600.0, 3600.0)),
        ("soon", (3600.0, 3600.0)),
        ("nan 0", (3600.0, 3600.0)),
        ("", (0.0, 0.0)),
    ],
)
def test_leases_that_others_have_written(bucket: Bucket, text: str, seconds: tuple[float, float]) -> None:
    token = claim_token(bucket, "", "v", value=1, replace=None, random_source=SOURCE, lease=5.0)
    assert token.lease == 5.0
    found = bucket.get(TOKEN_NAME)
    metadata = {**found.info.metadata, "s3backer-lease": text}
    if not text:
        del metadata["s3backer-lease"]
    bucket.put(TOKEN_NAME, found.body, metadata=metadata)
    seen = read_token(bucket, "")
    assert seen is not None and (seen.lease, seen.arriving) == seconds
