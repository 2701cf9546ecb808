"""Volume, cache and journal over a faulty store, in seeded worlds that end anywhere; see tests/support/crash_world.py.

``S3BACKER_SEED=N`` runs that one world, ``S3BACKER_WORLDS=N`` runs more of them.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from tests.support.crash_world import CrashWorld
from tests.support.mounts import ROOT

WORLDS = int(os.environ.get("S3BACKER_WORLDS", "10000"))
#: One in so many is recovered by the code that does it for users, which has threads of its own.
_REPLAYED = 50
#: Worlds that are run twice: so many, and as many that go on after a crash.
_TWICE = 20
_TRACES = "import sys; from tests.support.crash_world import trace; print(*(trace(int(seed)) for seed in sys.argv[1:]))"


def run_worlds(count: int) -> None:
    fixed = os.environ.get("S3BACKER_SEED")
    seeds = [int(fixed)] if fixed else random.sample(range(2**32), count)
    crashed = carried = 0
    for seed in seeds:
        world = CrashWorld(seed, replayed=seed % _REPLAYED == 0)
        try:
            world.run()
        except BaseException as error:
            pytest.fail(f"world failed: run again with S3BACKER_SEED={seed}: {error!r}")
        crashed += world.crashes > 0
        carried += world.carried > 0
    print(f"{crashed} of {len(seeds)} worlds crashed, {carried} carried blocks into a newer file of the journal")
    assert fixed or (crashed > count // 2 and carried > count // 20)


# Two of them run at a time.
@pytest.mark.parametrize("quarter", range(4))
@pytest.mark.timeout(600)
def test_worlds_that_crash(quarter: int) -> None:
    run_worlds(WORLDS // 4)


def test_one_seed_is_one_world() -> None:
    """Also in another process, in which sets have another order."""
    seeds = [str(seed) for seed in (*random.sample(range(2**32), _TWICE), *range(0, 10 * _TWICE, 10))]
    traces = [
        subprocess.run(
            [sys.executable, "-c", _TRACES, *seeds],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": order},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout.split()
        for order in ("1", "2")
    ]
    assert len(set(traces[0])) == len(seeds)
    assert not [seed for seed, one, other in zip(seeds, *traces, strict=True) if one != other]


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_many_more_worlds_that_crash() -> None:
    run_worlds(10 * WORLDS)
