"""Interrupted anywhere, a check that goes on comes to what one comes to that was not interrupted."""

from __future__ import annotations

import random
import stat
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s3backer.checking import run as run_module
from s3backer.checking.findings import Counts, Finding
from s3backer.checking.run import Check, CheckOptions
from s3backer.checking.state import CheckState
from s3backer.checking.subject import find_subject
from s3backer.codec.choice import EncodingOptions
from s3backer.errors import S3backerError, StoreError, UsageError, VolumeInUse
from s3backer.opening import VolumeOptions
from s3backer.stores.base import ListPage
from tests.support.damage import BESIDE, DAMAGES, ENCRYPTED, PREFIX, Found, World
from tests.support.kept import KeepingStore

ABOUT = {
    "place": "memory:/disk",
    "said": "1048576 bytes, plain",
    "size": 1 << 20,
    "block_size": 1024,
    "block_hash_prefix": False,
    "encoding": "",
    "cipher": "",
    "password_check": "",
}


@pytest.fixture(autouse=True)
def marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write down what was checked after each object, and list few at a time."""
    monkeypatch.setattr(run_module, "_MARK_SECONDS", -1.0)
    monkeypatch.setattr(run_module, "_WINDOW", 5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made" / "check-x"


def told(check: Check) -> Counter[Found]:
    return Counter((finding.kind, finding.key) for finding in check.state.findings())


def damaged(encoding: EncodingOptions = ENCRYPTED) -> World:
    world = World.make(encoding, kept="md5")
    victims = world.present()[4:]
    for seed, damage in enumerate(DAMAGES):
        damage(world, victims[seed % len(victims)] if seed < len(victims) else victims[-1], seed)
    for seed, beside in enumerate(BESIDE):
        beside(world, seed)
    return world


class SmallPages(KeepingStore):
    """Pages of few entries, and an interruption at one of the calls."""

    def __init__(self, world: World, fail_at: int = 0) -> None:
        super().__init__(default="md5")
        self.name = self.bucket = world.store.name
        self._objects, self.kept = world.store._objects, world.store.kept
        self.altered, self.failing, self.lost = world.store.altered, world.store.failing, world.store.lost
        self._left = fail_at
        self._turn = threading.Lock()

    def get(self, key: str, *, at_most: int | None = None) -> Any:
        self._interrupt()
        return super().get(key, at_most=at_most)

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> ListPage:
        self._interrupt()
        return super().list(prefix, start_after=start_after, limit=min(limit, 7))

    def _interrupt(self) -> None:
        with self._turn:
            self._left -= 1
            if self._left == 0:
                raise KeyboardInterrupt


def options(world: World) -> VolumeOptions:
    return world.options()


def whole(world: World) -> tuple[list[Finding], dict[str, Any]]:
    with Check(find_subject(SmallPages(world), PREFIX, options(world)), CheckOptions()) as check:
        check.run()
        return list(check.state.findings()), facts(check.state.counts)


def facts(counts: Counts) -> dict[str, Any]:
    return {name: value for name, value in counts.facts().items() if name != "requests"}


@pytest.mark.parametrize("threads", [1, 4])
def test_interrupted_at_any_request(path: Path, threads: int) -> None:
    world = damaged()
    expected = whole(world)
    at, went_on = 0, 0
    while True:
        at += 1
        wanted = CheckOptions(threads=threads, state=path, resume=True)
        store = SmallPages(world, at)
        try:
            with Check(find_subject(store, PREFIX, options(world)), wanted) as check:
                check.run()
        except KeyboardInterrupt:
            pass
        else:
            break
        with Check(find_subject(SmallPages(world), PREFIX, options(world)), wanted) as check:
            went_on += bool(check.state.after)
            check.run()
            assert (list(check.state.findings()), facts(check.state.counts)) == expected
            check.state.discard()
    assert at > len(world.present())
    assert went_on > 10


def test_a_state_that_is_cut_off_anywhere(path: Path) -> None:
    """As after a loss of power: what cannot be read is checked again."""
    world = damaged()
    expected = whole(world)
    with Check(find_subject(SmallPages(world), PREFIX, options(world)), CheckOptions(state=path)) as check:
        check.run()
    full = path.read_bytes()
    source = random.Random(5)
    for _ in range(60):
        end = source.randrange(len(full))
        torn = full[:end] + source.choice([b"", b"\0" * 50, b"garbage\n"])
        path.write_bytes(torn)
        try:
            with Check(
                find_subject(SmallPages(world), PREFIX, options(world)), CheckOptions(state=path, resume=True)
            ) as check:
                check.run()
                assert (list(check.state.findings()), facts(check.state.counts)) == expected
        except UsageError as error:
            # Without a whole first line it is not seen to be ours.
            assert 0 < end < full.index(b"\n") + 1 and "no state" in error.message


def test_what_follows_the_last_mark_is_cut_off(path: Path) -> None:
    with CheckState(path, ABOUT, resume=False) as state:
        state.expect(1)
        state.found(Finding("foreign", "a", "first"))
        state.mark("a")
        whole = path.read_bytes()
        state.found(Finding("foreign", "b", "second"))
        state.mark("b")
    after = path.read_bytes()[len(whole) :].split(b"\n")[0] + b"\n"
    path.write_bytes(whole + after)
    with CheckState(path, ABOUT, resume=True) as state:
        assert (state.after, [finding.key for finding in state.findings()]) == ("a", ["a"])
        assert path.read_bytes() == whole


def test_requests_of_all_runs_are_counted(path: Path) -> None:
    world = damaged()
    store = SmallPages(world, 20)
    with (
        pytest.raises(KeyboardInterrupt),
        Check(find_subject(store, PREFIX, options(world)), CheckOptions(threads=1, state=path)) as check,
    ):
        check.run()
    with Check(find_subject(SmallPages(world), PREFIX, options(world)), CheckOptions(state=path, resume=True)) as check:
        before = check.state.counts.requests["get"][0]
        counts = check.run()
        assert 0 < before < counts.requests["get"][0]
        assert counts.requests["get"][0] >= len(world.present())


def test_a_check_that_ended_is_begun_anew_unless_it_is_taken_over(path: Path) -> None:
    world = damaged()
    gets: list[int] = []
    for wanted in (
        CheckOptions(state=path),
        CheckOptions(state=path, resume=True),
        CheckOptions(state=path, resume=True, ended_too=True),
    ):
        store = SmallPages(world)
        with Check(find_subject(store, PREFIX, options(world)), wanted) as check:
            store.gets.clear()
            check.run()
            assert told(check) == world.expected
            gets.append(len(store.gets))
    assert gets == [len(world.present()) + 1] * 2 + [0]


def test_the_file(path: Path) -> None:
    with CheckState(path, ABOUT, resume=False) as state:
        state.expect(3)
        state.found(Finding("foreign", "disk/ü\n", "odd", None))
        assert list(state.findings()) == []
        state.mark("disk/ü\n")
        assert list(state.findings()) == [Finding("foreign", "disk/ü\n", "odd", None)]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        with pytest.raises(VolumeInUse, match="another process"):
            CheckState(path, ABOUT, resume=True)
    first, *records = path.read_bytes().split(b"\n")
    assert first == b"s3backer-check 1 0 0"
    assert len(records) == 4
    with CheckState(path, ABOUT, resume=True) as state:
        assert (state.after, state.objects) == ("disk/ü\n", 3)
        state.discard()
    assert not path.exists()


@pytest.mark.parametrize(
    ("name", "other", "said"),
    [
        ("place", "memory:/other", "was of memory:/other, not of memory:/disk"),
        ("size", 1 << 30, "was of a volume of 1GiB, not 1MiB"),
        ("block_size", 4096, "was of a volume with blocks of 4KiB, not 1KiB"),
        ("block_hash_prefix", True, "was of a volume with hashed keys: True, not False"),
        ("encoding", "deflate", "took objects that do not say it for 'deflate', not for ''"),
        ("cipher", "AES-128-CBC", "was of a volume encrypted with 'AES-128-CBC', not ''"),
        ("password_check", "x", "was made with another password, or without one"),
    ],
)
def test_the_state_of_another_check_is_refused(path: Path, name: str, other: object, said: str) -> None:
    with CheckState(path, {**ABOUT, name: other}, resume=False) as state:
        state.expect(1)
        state.mark("")
    before = path.read_bytes()
    with pytest.raises(UsageError) as caught:
        CheckState(path, ABOUT, resume=True)
    assert said in caught.value.message and "--resume" in caught.value.hint
    assert path.read_bytes() == before
    # Without --resume it is replaced.
    with CheckState(path, ABOUT, resume=False) as state:
        assert state.objects is None


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (b"something else\n", "no state of a check"),
        (b"s3backer-check 2 0 0\n", "newer"),
        (b"s3backer-check 1 4 0\n", "newer"),
        (b"\n", "no state"),
    ],
)
def test_a_file_that_is_not_ours_is_refused(path: Path, first: bytes, said: str) -> None:
    path.parent.mkdir()
    path.write_bytes(first + b"more")
    with pytest.raises(UsageError, match=said):
        CheckState(path, ABOUT, resume=True)
    assert path.read_bytes() == first + b"more"


def test_a_state_of_the_first_version(tmp_path: Path) -> None:
    """Every later version goes on with it."""
    golden = Path(__file__).resolve().parents[1] / "golden" / "check-state-1"
    path = tmp_path / "state"
    path.write_bytes(golden.read_bytes())
    with CheckState(path, ABOUT, resume=True) as state:
        assert (state.begun, state.objects, state.after) == ("20261126T160000Z", 4, "disk/readme")
        assert (state.counts.objects, state.counts.problems, state.ended) == (2, 1, None)
        assert list(state.findings()) == [
            Finding("length", "disk/00000001", "it has 9 bytes", 1, '"etag"'),
            Finding("foreign", "disk/readme", "it is not named like a block"),
        ]


def test_a_compatible_feature_is_accepted(path: Path) -> None:
    with CheckState(path, ABOUT, resume=False) as state:
        state.expect(1)
        state.mark("key")
    path.write_bytes(path.read_bytes().replace(b"1 0 0", b"1 0 8", 1))
    with CheckState(path, ABOUT, resume=True) as state:
        assert state.after == "key"


def test_a_link_in_its_place_is_not_followed(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir()
    victim = path.with_name("victim")
    victim.write_bytes(b"precious")
    path.symlink_to(victim)
    with CheckState(path, ABOUT, resume=False) as state:
        state.expect(1)
    assert victim.read_bytes() == b"precious"
    assert "cannot be resumed" in caplog.text


def test_without_a_place_for_it_the_check_goes_on(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.write_bytes(b"in the way")
    world = damaged()
    with Check(world.subject(), CheckOptions(state=path)) as check:
        check.run()
        assert told(check) == world.expected
        assert check.state.path is None
    assert "cannot be resumed" in caplog.text


# ── a store that fails ───────────────────────────────────────────────────────────────────────────────────────────


class Ending(KeepingStore):
    """A store that gives so many objects and then none; ``down``: it fails altogether."""

    def __init__(self, world: World, after: int) -> None:
        super().__init__()
        self._objects = world.store._objects
        self.name = self.bucket = world.store.name
        self.left = after

    def get(self, key: str, *, at_most: int | None = None) -> Any:
        if "s3backer-mounted" not in key:
            self.left -= 1
            if self.left < 0:
                raise StoreError("the server is away", hint="Try again.")
        return super().get(key, at_most=at_most)


@pytest.fixture
def streak(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(run_module, "_STREAK", 8)
    yield 8


def test_a_store_that_goes_away_is_no_damage(path: Path, streak: int) -> None:
    """Neither in the middle nor so late that nothing comes after it."""
    world = World.make(blocks=60)
    total = len(world.present()) + 1
    for good in (10, total - 3):
        wanted = CheckOptions(threads=2, state=path, resume=True)
        with (
            pytest.raises(StoreError, match="the store fails: the server is away") as caught,
            Check(find_subject(Ending(world, good), PREFIX, VolumeOptions()), wanted) as check,
        ):
            check.run()
        assert "--resume" in caught.value.hint
        with Check(world.subject(), wanted) as check:
            assert check.state.counts.objects == good
            check.run()
            assert told(check) == {}
            assert check.state.counts.objects == total
            check.state.discard()


def test_a_store_that_gives_nothing_is_an_error(streak: int) -> None:
    world = World.make(blocks=60)
    with (
        pytest.raises(S3backerError, match=r"no object can be read.* the server is away"),
        Check(find_subject(Ending(world, 0), PREFIX, VolumeOptions()), CheckOptions()) as check,
    ):
        check.run()


def test_an_unreadable_object_holds_nothing_up(path: Path, streak: int) -> None:
    world = World.make(blocks=60)
    world.store.failing.add(world.layout.key(world.present()[2]))
    store = SmallPages(world, 50)
    with (
        pytest.raises(KeyboardInterrupt),
        Check(find_subject(store, PREFIX, VolumeOptions()), CheckOptions(threads=1, state=path)) as check,
    ):
        check.run()
    assert check.state.after > world.layout.key(world.present()[20])


def test_many_unreadable_objects_of_a_store_that_works(streak: int) -> None:
    """As where a server has lost a disk."""
    world = World.make(blocks=80)
    for block in world.present()[5:-5]:
        world.store.failing.add(world.layout.key(block))
        world.find("unreadable", world.layout.key(block))
    for number in range(3):
        world.store.put(f"{PREFIX}0000000f-{number}", b"")
        world.find("foreign", f"{PREFIX}0000000f-{number}")
    with Check(world.subject(), CheckOptions(threads=3)) as check:
        check.run()
        found = list(check.state.findings())
        assert told(check) == world.expected
    assert [finding.key for finding in found] == sorted(finding.key for finding in found)


def test_all_objects_of_a_small_volume_may_be_unreadable(streak: int) -> None:
    world = World.make(blocks=4)
    with Check(find_subject(Ending(world, 0), PREFIX, VolumeOptions()), CheckOptions()) as check:
        counts = check.run()
        assert counts.kinds == {"unreadable": len(world.present()) + 1}
