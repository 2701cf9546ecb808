"""The lease: its rules under clocks that nobody waits for, and who holds it with a store that fails.

The model has a holder that may be stopped at any moment for any time, a taker, and a server that heeds signatures. What
must never be: a write of the holder's takes effect after the taker has begun to write.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3backer.admin import unlock_volume
from s3backer.errors import AccessDenied, JournalError, ObjectNotFound, StoreError, VolumeInUse
from s3backer.holder import Holder, take
from s3backer.journal.files import JournalDirectory
from s3backer.layouts.token import TOKEN_NAME, MountToken, new_token, put_token, read_token, remove_token, write_token
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
    lease.failed(161.0, StoreError("refused", hint="Look."))
    with pytest.raises(StoreError, match=r"^the mount token of v cannot be renewed: refused$") as caught:
        lease.sign_for(161.0)
    assert caught.value.hint.endswith("tried all the time. Look.")
    lease.renewed(162.0)
    with pytest.raises(StoreError, match=r"was renewed 40 s ago and not since$"):
        lease.sign_for(202.0)
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
    """One process's view of a bucket.

    It may be away, may lose answers, may heed no conditions, and may let nothing be replaced.
    """

    def __init__(self, other: MemoryStore | None = None) -> None:
        super().__init__()
        if other is not None:
            self._objects = other._objects
        self.away = self.loses_answers = self.careless = self.keeps = False
        self.puts = 0
        #: Called with the key before a DELETE, and whether its answer is lost.
        self.on_delete: Callable[[str], bool] = lambda key: False
        #: When what was lost has expired.
        self.settled_at = 0.0

    def put(self, *args: object, **facts: object) -> str:
        """Put, or fail, before or after it took effect."""
        self.puts += 1
        if self.careless:
            facts.pop("if_match", None)
        if self.away:
            raise StoreError("the store is away", hint="Wait.")
        if self.keeps and facts.get("if_match"):
            raise AccessDenied("nothing may be replaced", hint="Ask for it.")
        etag = super().put(*args, **facts)  # type: ignore[arg-type]
        if self.loses_answers:
            raise StoreError("the answer was lost", hint="Wait.")
        return etag

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        """Delete, or fail."""
        if self.on_delete(key):
            raise StoreError("the answer was lost", hint="Wait.")
        super().delete(key, if_match=None if self.careless else if_match)

    def settles_in(self) -> float:
        """Return how long what was lost may still take effect."""
        return max(0.0, self.settled_at - time.monotonic())


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
    token = write_token(bucket, "", "v", new_token(SOURCE, lease=TERM, journal="/there"), former=None)
    made = Holder(bucket, "", "v", token, clock(), clock=clock)
    yield made
    made.stop()


def test_it_renews_and_says_the_same(bucket: Bucket, holder: Holder) -> None:
    before = read_token(bucket, "")
    holder.renew()
    after = read_token(bucket, "")
    assert before is not None and after is not None
    assert before.etag != after.etag
    assert replace(before, etag="", nonce="") == replace(after, etag="", nonce="")
    assert after.lease == TERM and after.journal == "/there"
    holder.confirm()


def test_it_renews_by_itself(bucket: Bucket) -> None:
    token = write_token(bucket, "", "v", new_token(SOURCE, lease=1.0), former=None)
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


def test_while_it_cannot_be_renewed_nothing_is_written(bucket: Bucket, clock: Clock) -> None:
    holder = take(bucket, "", "v", None, force=False, lease=3.0)
    holder._clock = clock
    clock.ahead += 1000.0
    bucket.away = True
    # In the order of the store's own faults: the fence is asked first where there is one. Who waits for a renewal hears
    # why there is none.
    for write in (lambda: bucket.fence.check("block"), lambda: MemoryStore.delete(bucket, "block")):
        with pytest.raises(StoreError, match="the mount token of v cannot be renewed: the store is away") as caught:
            write()
        assert "tried all the time" in caught.value.hint and "Wait." in caught.value.hint
    bucket.away = False
    bucket.put("block", b"2")
    holder.stop()


def test_an_answer_that_was_lost_is_no_loss(bucket: Bucket, holder: Holder) -> None:
    bucket.loses_answers = True
    with pytest.raises(StoreError, match="lost"):
        holder.renew()
    with pytest.raises(StoreError, match="lost"):
        holder.disown_journal()
    bucket.loses_answers = False
    holder.confirm()
    holder.renew()
    found = read_token(bucket, "")
    assert found is not None and found.value == holder.token.value and not found.journal
    assert holder.lease.lost is None
    assert holder.give_back() is None
    assert read_token(bucket, "") is None


def test_after_a_sleep_it_puts_nothing_over_another_s_token(bucket: Bucket, holder: Holder, clock: Clock) -> None:
    bucket.careless, bucket.conditions = True, None
    other = write_token(Bucket(bucket), "", "v", new_token(SOURCE, lease=TERM), former=read_token(bucket, ""))
    clock.ahead += 1000.0
    with pytest.raises(VolumeInUse):
        bucket.put("block", b"1")
    found = read_token(bucket, "")
    assert found is not None and found.value == other.value


def test_a_token_of_the_same_value_is_another_s(bucket: Bucket, holder: Holder) -> None:
    """As that of who replays a copy of the journal: its value is what the journal knows."""
    other = Bucket(bucket)
    found = read_token(other, "")
    assert found is not None
    theirs = put_token(other, "", new_token(SOURCE, value=found.value, lease=TERM), former=found)
    with pytest.raises(VolumeInUse):
        holder.renew()
    with pytest.raises(VolumeInUse):
        holder.confirm()
    left = holder.give_back()
    assert left is not None and left.etag == theirs.etag


def test_where_conditions_are_not_heeded_nothing_is_renewed_over_another_s(bucket: Bucket) -> None:
    """Two have put their tokens, and both heard that it went well: one of them finds the other's."""
    bucket.careless, bucket.conditions = True, False
    first = take(bucket, "", "v", None, force=False, lease=1.0)
    other = Bucket(bucket)
    other.careless, other.conditions = True, False
    second = take(other, "", "v", read_token(other, ""), force=True, looks=lambda left: first.stop())
    with pytest.raises(VolumeInUse):
        first.renew()
    second.renew()
    assert first.give_back() is not None
    assert second.give_back() is None


def test_writers_do_not_make_it_ask_more_often_while_the_store_is_away(bucket: Bucket, clock: Clock) -> None:
    term = 6.0
    token = write_token(bucket, "", "v", new_token(SOURCE, lease=term), former=None)
    holder = Holder(bucket, "", "v", token, clock(), clock=clock)
    clock.ahead += 1000.0
    bucket.away = True
    with pytest.raises(StoreError):
        bucket.fence.check("block")
    puts = bucket.puts

    def write() -> None:
        for _ in range(3):
            with pytest.raises(StoreError):
                bucket.fence.check("block")

    began = time.monotonic()
    threads = [threading.Thread(target=write) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    # A twentieth of the term is between two attempts.
    assert bucket.puts - puts <= (time.monotonic() - began) / (term / 20) + 2
    with pytest.raises(StoreError):
        bucket.fence.check("block", wait=False)
    holder.stop()


def test_a_removal_that_may_still_arrive_is_waited_for(bucket: Bucket) -> None:
    """Before the next attempt, which looks whose token it is: not every service heeds the condition of a DELETE."""
    bucket.careless = True
    holder = take(bucket, "", "v", None, force=False)
    lost = [0.0]
    theirs: list[MountToken] = []

    def lose(key: str) -> bool:
        if lost[0]:
            assert time.monotonic() >= bucket.settled_at
            return False
        lost[0], bucket.settled_at = time.monotonic(), time.monotonic() + 3.0
        other = Bucket(bucket)
        threading.Timer(
            2.0,
            lambda: theirs.append(put_token(other, "", new_token(SOURCE, lease=TERM), former=read_token(other, ""))),
        ).start()
        return True

    bucket.on_delete = lose
    left = holder.give_back()
    assert time.monotonic() >= lost[0] + 3.0
    assert left is not None and left.etag == theirs[0].etag
    assert read_token(bucket, "") is not None


def test_however_often_it_fails_its_token_is_its_own(bucket: Bucket, holder: Holder) -> None:
    """As in an outage of hours, of which the first renewal took effect."""
    bucket.loses_answers = True
    with pytest.raises(StoreError):
        holder.renew()
    bucket.loses_answers, bucket.away = False, True
    for _ in range(1000):
        with pytest.raises(StoreError):
            holder.renew()
    bucket.away = False
    holder.confirm()
    holder.renew()
    assert holder.give_back() is None and read_token(bucket, "") is None


def test_a_copy_of_the_running_process_is_another_holder(bucket: Bucket) -> None:
    """As of a virtual machine with its memory: it has the same session, and goes on from the same token."""
    token = write_token(bucket, "", "v", new_token(random.Random(1), lease=60.0), former=None)
    first = Holder(bucket, "", "v", token, time.monotonic(), clock=time.monotonic)
    second = Holder(bucket, "", "v", token, time.monotonic(), clock=time.monotonic)
    try:
        first.renew()
        with pytest.raises(VolumeInUse):
            second.renew()
        first.renew()
    finally:
        first.stop()
        second.stop()


def test_a_pause_that_the_clock_did_not_see_ends_the_lease(bucket: Bucket) -> None:
    """As of a virtual machine that was paused: the server's answers show how long."""
    seconds = 0.0
    bucket.fence.clock = lambda: time.monotonic() + seconds
    holder = take(bucket, "", "v", None, force=False)
    assert bucket.fence.check("a block") > 0
    seconds = 600.0
    other = write_token(bucket, "", "v", new_token(random.Random(2), lease=60.0), former=read_token(bucket, ""))
    with pytest.raises((StoreError, VolumeInUse)):
        bucket.fence.check("a block")
    assert holder.give_back() == other


def test_that_the_token_is_being_removed_is_noted(bucket: Bucket, tmp_path: Path) -> None:
    """The answer may be lost, and whoever comes next on this host has to wait for that request."""
    seen: list[float | None] = []
    with JournalDirectory(tmp_path / "id") as directory:
        holder = take(bucket, "", "v", None, force=False, directory=directory)
        assert directory.changed_at([]) == 0.0

        def look(key: str) -> bool:
            seen.append(directory.changed_at([]))
            return False

        bucket.on_delete = look
        assert holder.give_back() is None
    assert seen[0]


def test_where_it_cannot_be_noted_that_it_writes_it_is_at_home_nowhere(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the note says is too old from then on."""
    with JournalDirectory(tmp_path / "id") as directory:
        holder = take(bucket, "", "v", None, force=False, directory=directory)
        assert holder.token.home == directory.home

        def fail(self: JournalDirectory) -> None:
            raise JournalError("it is read-only", hint="Look.")

        monkeypatch.setattr(JournalDirectory, "note_busy", fail)
        bucket.put("block", b"1")
        holder.renew()
        found = read_token(bucket, "")
        assert found is not None and found.home == ""
        assert holder.give_back() is None


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_it_notices_that_the_token_is_another_s(bucket: Bucket, how: str) -> None:
    token = write_token(bucket, "", "v", new_token(SOURCE, lease=1.0), former=None)
    holder = Holder(bucket, "", "v", token, time.monotonic(), clock=time.monotonic)
    told: list[VolumeInUse] = []
    holder.on_lost = told.append
    other = Bucket(bucket)
    mine = read_token(other, "")
    assert mine is not None
    if how == "replaced":
        while True:
            try:
                new = write_token(other, "", "v", new_token(SOURCE), former=read_token(other, ""))
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
    return write_token(Bucket(bucket), "", "v", new_token(SOURCE, lease=lease, journal=journal), former=None)


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


def test_where_a_stopped_write_may_go_on_silence_is_no_death(bucket: Bucket) -> None:
    found = put(bucket, lease=1.0)
    bucket.fenced = False
    with pytest.raises(VolumeInUse) as caught:
        take(bucket, "", "v", found, force=False)
    assert "s3backer unlock" in caught.value.hint
    assert take(bucket, "", "v", found, force=True).give_back() is None


def test_a_token_that_may_be_put_but_not_replaced_is_found_out_at_once(bucket: Bucket) -> None:
    bucket.keeps = True
    with pytest.raises(AccessDenied, match="nothing may be replaced"):
        take(bucket, "", "v", None, force=False)
    assert read_token(bucket, "") is None


def test_what_is_waited_for_is_passed_on(bucket: Bucket) -> None:
    """Whoever finds the token of a take-over that was interrupted waits for the mount before it, too."""
    found = put(bucket, lease=1.0)
    found = put_token(bucket, "", replace(found, arriving=5.0), former=found)

    def stop(left: float) -> None:
        if left > 4.0:
            raise InterruptedError

    for _ in range(3):
        with pytest.raises(InterruptedError):
            take(bucket, "", "v", read_token(bucket, ""), force=True, lease=1.0, looks=stop)
        # Not longer each time.
        after = read_token(bucket, "")
        assert after is not None and (after.lease, after.arriving, after.owed) == (1.0, 0.0, 6.0)
    began = time.monotonic()
    holder = take(bucket, "", "v", after, force=False, lease=1.0)
    assert time.monotonic() - began >= 7.0
    # After that only its own requests count.
    holder.renew()
    after = read_token(bucket, "")
    assert after is not None and after.owed == 0.0
    assert holder.give_back() is None


def test_an_answer_that_was_lost_removes_no_token_that_stood_for_a_wait(bucket: Bucket) -> None:
    found = put(bucket, lease=1.0)
    bucket.loses_answers = True
    with pytest.raises(StoreError, match="lost"):
        take(bucket, "", "v", found, force=True)
    assert read_token(bucket, "") is not None
    bucket.loses_answers = False
    remove_token(bucket, "", found)


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
        put_token(Bucket(bucket), "", found.anew(SOURCE), former=found)

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
        ("60 92 0", (60.0, 92.0, 0.0)),
        ("0.01 -5 -1", (1.0, 0.0, 0.0)),
        ("1e9 1e9 1e9", (3600.0, 3600.0, 3600.0)),
        ("60 92", (3600.0, 3600.0, 3600.0)),
        ("soon", (3600.0, 3600.0, 3600.0)),
        ("nan 0 0", (3600.0, 3600.0, 3600.0)),
        ("", (0.0, 0.0, 0.0)),
    ],
)
def test_leases_that_others_have_written(bucket: Bucket, text: str, seconds: tuple[float, float, float]) -> None:
    token = put_token(bucket, "", new_token(SOURCE, lease=5.0), former=None)
    assert token.lease == 5.0
    found = bucket.get(TOKEN_NAME)
    metadata = {**found.info.metadata, "s3backer-lease": text}
    if not text:
        del metadata["s3backer-lease"]
    bucket.put(TOKEN_NAME, found.body, metadata=metadata)
    seen = read_token(bucket, "")
    assert seen is not None and (seen.lease, seen.arriving, seen.owed) == seconds


# ── the fence ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_fence_is_shut_only_before_anything_was_written(bucket: Bucket) -> None:
    assert bucket.fence.shut()
    with pytest.raises(StoreError, match="about to end"):
        bucket.put("block", b"1")
    assert Bucket(bucket).list("").entries == ()
    other = Bucket()
    other.put("block", b"1")
    assert not other.fence.shut()
    other.put("block", b"2")
