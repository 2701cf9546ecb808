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


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_many_more_worlds() -> None:
    run_worlds(50 * WORLDS)
