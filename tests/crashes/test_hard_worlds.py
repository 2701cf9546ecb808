"""Worlds in which memory and the journal's disk are scarce, and the power fails; see tests/support/hard_world.py.

``S3BACKER_SEED=N`` runs that one world, ``S3BACKER_HARD_WORLDS=N`` runs more of them.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from tests.support.hard_world import HardWorld

WORLDS = int(os.environ.get("S3BACKER_HARD_WORLDS", "220"))
#: One in so many is also replayed by the code that does it for users, which has threads of its own.
_REPLAYED = 10
#: Worlds that are run twice.
_TWICE = 5
#: In how many of them each of these has to happen, at least: one in so many.
_SEEN = {
    "behind": 3,
    "full disk": 3,
    "no memory": 5,
    "outage": 3,
    "patches": 2,
    "power loss": 5,
    "spilled": 3,
    "unnoted": 5,
}


def run_worlds(seeds: Sequence[int]) -> None:
    fixed = os.environ.get("S3BACKER_SEED")
    seen: Counter[str] = Counter()
    for seed in [int(fixed)] if fixed else seeds:
        world = HardWorld(seed, replayed=seed % _REPLAYED == 0)
        try:
            world.run()
        except BaseException as error:
            pytest.fail(f"world failed: run again with S3BACKER_SEED={seed}: {error!r}")
        seen.update(world.seen)
    print(f"of {len(seeds)} worlds: {dict(seen)}")
    assert fixed or not [what for what, rate in _SEEN.items() if seen[what] < len(seeds) // rate]


# Two of them run at a time.
@pytest.mark.timeout(600)
def test_the_first_hard_worlds() -> None:
    """The same ones each time: they find again what they have found once, unless what they do has changed."""
    run_worlds(range(WORLDS // 2))


@pytest.mark.timeout(600)
def test_hard_worlds() -> None:
    run_worlds(random.sample(range(2**32), WORLDS // 2))


def test_one_seed_is_one_hard_world() -> None:
    for seed in random.sample(range(2**32), _TWICE):
        states = []
        for _ in range(2):
            world = HardWorld(seed)
            world.run()
            states.append((world.now, world.crashes, bytes(world.model), world.random.getstate()))
        assert states[0] == states[1], f"seed {seed}"


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_many_more_hard_worlds() -> None:
    run_worlds(random.sample(range(2**32), 50 * WORLDS))
