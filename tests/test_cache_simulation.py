"""The cache and the classic layout in many small worlds; see tests/support/simulation.py for what is checked.

``S3BACKER_SEED=N`` runs that one world, ``S3BACKER_WORLDS=N`` runs more of them.
"""

from __future__ import annotations

import os
import random

import pytest

from tests.support.simulation import World

WORLDS = int(os.environ.get("S3BACKER_WORLDS", "400"))


def run_worlds(count: int) -> None:
    fixed = os.environ.get("S3BACKER_SEED")
    seeds = [int(fixed)] if fixed else random.sample(range(2**32), count)
    for seed in seeds:
        try:
            World(seed).run()
        except BaseException as error:
            pytest.fail(f"world failed: run again with S3BACKER_SEED={seed}: {error!r}")


def test_worlds() -> None:
    run_worlds(WORLDS)


def test_an_outage_of_hours() -> None:
    """What was written comes home when the store is back, and asking for it all the time costs little meanwhile."""
    hours = 6
    fixed = os.environ.get("S3BACKER_SEED")
    for seed in [int(fixed)] if fixed else random.sample(range(2**32), 6):
        world = World(seed, operations=20, outage=hours * 3600.0)
        try:
            world.run()
            assert world.now >= hours * 3600
            # Of each block an attempt in half a minute, and some more at first and when a flush asks for it.
            assert world.attempts < world.slab.dirty_limit * (hours * 120 + 200), f"{world.attempts} attempts"
        except BaseException as error:
            pytest.fail(f"world failed: run again with S3BACKER_SEED={seed}: {error!r}")


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_many_more_worlds() -> None:
    run_worlds(50 * WORLDS)
