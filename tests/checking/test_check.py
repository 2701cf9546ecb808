"""Checking against an oracle: each damage that was done is told, by its kind and key, and nothing else is."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3backer.checking.findings import KINDS, MOST_NOTES, Counts
from s3backer.checking.run import Check, CheckOptions
from s3backer.checking.subject import find_subject
from s3backer.codec.choice import EncodingOptions
from s3backer.codec.encryption import SIGNATURE_METADATA
from s3backer.layouts.classic import ClassicLayout
from s3backer.layouts.token import new_token, write_token
from s3backer.opening import VolumeOptions
from tests.support.damage import (
    BESIDE,
    BLOCK_SIZE,
    DAMAGES,
    ENCODINGS,
    ENCRYPTED,
    PLAIN,
    PREFIX,
    WHOLE,
    Found,
    World,
    cut_short,
    data_of,
    far_too_long,
    flipped_under_a_checksum,
    mounted,
    put_encoded,
    unreadable,
    vanished,
    with_the_wrong_encryption,
    with_the_wrong_signature,
)
from tests.support.kept import KeepingStore


def run(world: World, **options: Any) -> tuple[Counter[Found], Counts]:
    """Check a volume; return (kind, key) of each finding, and the counts."""
    with Check(world.subject(), CheckOptions(**{"threads": 3, **options})) as check:
        counts = check.run()
        return told(check), counts


def told(check: Check) -> Counter[Found]:
    return Counter((finding.kind, finding.key) for finding in check.state.findings())


def require(world: World) -> None:
    findings, counts = run(world)
    expected, verified = world.wanted()
    assert findings == expected
    assert counts.kinds == Counter(kind for kind, _ in expected.elements())
    assert counts.verified == verified


@st.composite
def worlds(draw: st.DrawFn) -> World:
    world = World.make(
        draw(st.sampled_from(ENCODINGS)),
        hashed=draw(st.booleans()),
        kept=draw(st.sampled_from(["crc64nvme", "crc32c", "md5", ""])),
        seed=draw(st.integers(0, 1 << 16)),
    )
    seeds = st.integers(0, 1 << 16)
    # The first ones tell the encoding and whether the password is right.
    victims = sorted(world.present(), key=world.layout.key)[4:]
    for block in draw(st.lists(st.sampled_from(victims), unique=True, max_size=8)):
        draw(st.sampled_from(DAMAGES))(world, block, draw(seeds))
    for damage in draw(st.lists(st.sampled_from(BESIDE), max_size=4)):
        damage(world, draw(seeds))
    draw(st.sampled_from(WHOLE))(world)
    return world


@given(worlds())
def test_each_damage_is_told_and_nothing_else(world: World) -> None:
    before = dict(world.store._objects)
    require(world)
    assert world.store._objects == before


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: f"{encoding.compress}-{encoding.encrypt}")
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_each_damage_in_each_encoding(damage: Callable[[World, int, int], None], encoding: EncodingOptions) -> None:
    for seed in range(3):
        world = World.make(encoding)
        damage(world, world.present()[-1], seed)
        require(world)


@pytest.mark.parametrize("whole", WHOLE, ids=lambda whole: whole.__name__)
@pytest.mark.parametrize("hashed", [False, True])
def test_each_volume_that_is_not_as_it_should_be(whole: Callable[[World], None], hashed: bool) -> None:
    for encoding in ENCODINGS:
        world = World.make(encoding, hashed=hashed)
        whole(world)
        require(world)


def test_the_first_block_can_be_damaged_too() -> None:
    for encoding in ENCODINGS:
        world = World.make(encoding)
        key = world.layout.key(0)
        world.store.flip(key)
        world.store.kept[key] = "md5"
        world.find("altered", key)
        world.settle(0)
        require(world)
    world = World.make(ENCRYPTED)
    world.store.flip(world.layout.key(0))
    world.find("signature", world.layout.key(0))
    world.settle(0)
    require(world)


def test_a_first_block_of_zeros_is_as_it_should_be() -> None:
    for encoding in ENCODINGS:
        world = World.make(encoding)
        world.layout.write(0, None)
        require(world)


def test_the_store_may_be_asked_about_a_block_that_is_damaged_itself() -> None:
    """What comes before objects that cannot be read, to see whether the store works."""
    for damage in (flipped_under_a_checksum, far_too_long, vanished):
        world = World.make()
        unreadable(world, world.present()[-1], 0)
        damage(world, world.present()[-2], 1)
        require(world)


# ── encrypted, without the password ──────────────────────────────────────────────────────────────────────────────


def run_locked(world: World) -> tuple[Counter[Found], Counts]:
    subject = find_subject(world.store, PREFIX, VolumeOptions(block_hash_prefix=world.hashed))
    assert subject.locked is not None
    with Check(subject, CheckOptions()) as check:
        counts = check.run()
        return told(check), counts


def test_without_the_password_the_rest_is_verified() -> None:
    world = World.make(ENCRYPTED, kept="crc64nvme")
    one, two, three, four, five, six = world.present()[4:10]
    flipped_under_a_checksum(world, one, 1)
    with_the_wrong_encryption(world, two, 1)
    with_the_wrong_encryption(world, three, 2)
    with_the_wrong_signature(world, four, 0)
    key = world.layout.key(five)
    world.store.describe(key, metadata={SIGNATURE_METADATA: '"no digits"'})
    world.find("signature", key)
    put_encoded(world, six, bytes(7))
    world.store.describe(world.layout.key(six), size=7)
    found = world.store._objects[world.layout.key(six)]
    world.store._objects[found.info.key] = replace(found, body=b"odd one")
    world.find("length", world.layout.key(six))
    findings, counts = run_locked(world)
    assert findings == world.expected
    assert counts.verified == {"checksum": len(world.present()) + 1 - 6}
    world.store.default = ""
    assert run_locked(world)[1].verified == {"nothing": len(world.present()) + 1 - 6}


# ── what the checks of a whole volume rest on ────────────────────────────────────────────────────────────────────


def test_a_block_is_read_again_before_it_is_called_damaged() -> None:
    world = World.make()
    good, bad = (world.layout.key(block) for block in world.present()[:2])
    cut_short(world, world.present()[1], 0)
    found = world.store.get(good)
    answers = [replace(found, body=found.body[:-1]), found]

    class Once(KeepingStore):
        def get(self, key: str, *, at_most: int | None = None) -> Any:
            return answers.pop(0) if key == good and answers else world.store.get(key, at_most=at_most)

    store = Once()
    store._objects = world.store._objects
    world.store.gets.clear()
    with Check(find_subject(store, PREFIX, VolumeOptions()), CheckOptions()) as check:
        check.run()
        assert told(check) == world.expected
    assert not answers
    assert world.store.gets[bad] == 2
    assert {count for key, count in world.store.gets.items() if key not in (good, bad)} == {1}


def test_what_goes_away_while_it_is_checked_is_no_damage() -> None:
    world = World.make()
    victim = world.layout.key(world.present()[3])

    class Leaving(KeepingStore):
        def get(self, key: str, *, at_most: int | None = None) -> Any:
            if key == victim:
                self._objects.pop(key, None)
            return super().get(key, at_most=at_most)

    for token in (False, True):
        store = Leaving()
        store._objects = dict(world.store._objects)
        if token:
            write_token(store, PREFIX, "", new_token(random.Random(1)), former=None)
        with Check(find_subject(store, PREFIX, VolumeOptions()), CheckOptions()) as check:
            check.run()
            expected = {("mounted", ""): 1} if token else {("changed", victim): 1}
            assert told(check) == expected
            assert not check.state.counts.problems


def test_a_volume_that_grows_while_it_is_checked() -> None:
    world = World.make()
    mounted(world)
    subject = world.subject()
    layout = replace_size(world, 2 * world.layout.size)
    layout.write(world.blocks + 3, b"x" * BLOCK_SIZE)
    with Check(subject, CheckOptions()) as check:
        check.run()
        assert told(check) == world.expected


def replace_size(world: World, size: int) -> ClassicLayout:
    """Return the layout of the volume after a resize."""
    layout = ClassicLayout(world.store, PREFIX, block_size=BLOCK_SIZE, size=size)
    layout.write(0, data_of(world, 0))
    return layout


@pytest.mark.parametrize("encoding", [PLAIN, ENCODINGS[4]], ids=["plain", "encrypted"])
def test_a_volume_that_is_written_to_while_it_is_checked(encoding: EncodingOptions) -> None:
    world = World.make(encoding, blocks=200)
    mounted(world)
    done = threading.Event()

    def write() -> None:
        source = random.Random(3)
        while not done.is_set():
            block = source.randrange(200)
            world.layout.write(block, source.choice([None, source.randbytes(BLOCK_SIZE), b"x" * BLOCK_SIZE]))

    writer = threading.Thread(target=write, name="writer")
    writer.start()
    try:
        for _ in range(5):
            assert run(world)[0] == world.expected
    finally:
        done.set()
        writer.join()


def test_notes_without_number_are_counted() -> None:
    world = World.make()
    for number in range(MOST_NOTES + 50):
        world.store.put(f"{PREFIX}other/{number}", b"")
    findings, counts = run(world)
    assert counts.kinds == {"foreign": MOST_NOTES + 50}
    assert len(findings) == MOST_NOTES
    assert counts.problems == 0


def test_every_kind_has_a_meaning() -> None:
    for kind in KINDS.values():
        assert kind.means.format(place="bytes 0 to 1").endswith((".", "object."))


def test_requests_are_counted() -> None:
    world = World.make()
    before = world.store.counters.snapshot()["get"].requests
    _, counts = run(world)
    gets = world.store.counters.snapshot()["get"]
    # One was the token, asked for before.
    assert counts.requests["get"][0] == gets.requests - before - 1 == len(world.present()) + 1
    assert counts.requests["get"][2] == counts.stored == BLOCK_SIZE * (len(world.present()) + 1)
    assert counts.requests["put"] == counts.requests["delete"] == [0, 0, 0]
