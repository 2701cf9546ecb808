"""A writer that is killed at random moments and at every failpoint: nothing acknowledged is missing or torn.

No mount and no network: the volume is driven directly, over a directory.
"""

from __future__ import annotations

import os
import random
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import s3backer
from s3backer.admin import create_volume
from s3backer.stores.directory import DirectoryStore
from tests.support.crashing import BLOCK, SIZE, Life, Zygote, killed_again_and_again

SEED = 7
#: Writers that are killed at a random moment, in CI and in the long run (S3BACKER_KILLS).
KILLS, MANY = 180, int(os.environ.get("S3BACKER_KILLS", "2000"))
#: The share of them whose journal is taken over by the next one, which may be killed meanwhile.
LEFT = 0.5
#: Points of a journal's life that are reached once, and at which time a point is tried.
TIMES = (1, 4)


def create(bucket: Path) -> None:
    store = DirectoryStore(bucket)
    create_volume(store, "", size=SIZE, block_size=BLOCK)
    store.close()


def points() -> list[str]:
    """Return all failpoints in the sources that a directory's store reaches; of S3's see stores/test_two_writers.py."""
    found: set[str] = set()
    for path in Path(s3backer.__file__).parent.rglob("*.py"):
        found.update(re.findall(r'\breach\("([a-z-]+)"\)', path.read_text()))
    return sorted(found - {"signed"})


#: Those that a recovery reaches: killed there is the one that comes after another, without a journal, or with one.
REPLAY = [point for point in points() if point.startswith("replay")]
RECOVERY = [*REPLAY, "adopting"]


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as made:
        yield made


def random_lives(seed: int, count: int) -> list[Life]:
    source = random.Random(seed)
    return [
        Life(
            source.getrandbits(32),
            # Half of them in the first moments, in which journals are taken over and made. None ends before.
            seconds=source.uniform(0.002, source.choice([0.05, 0.25])),
            steps=100_000,
            left=source.random() < LEFT and number < count - 1,
        )
        for number in range(count)
    ]


def run(zygote: Zygote, directory: Path, lives: list[Life]) -> dict[str, int]:
    """Run lives one after the other on one volume, and return how they ended."""
    ends: dict[str, int] = {}
    with killed_again_and_again(zygote, directory, lives, create) as living:
        for life, status, history in living:
            killed = status == signal.SIGKILL
            assert killed or status == 0, f"{life}: status {status}"
            ends["killed" if killed else "ended"] = ends.get("killed" if killed else "ended", 0) + 1
            ends["writes"], ends["flushes"] = history.writes, history.flushes
    return ends


def test_killed_at_random_moments(zygote: Zygote, tmp_path: Path) -> None:
    ends = run(zygote, tmp_path, random_lives(SEED, KILLS))
    print(ends)
    assert ends["killed"] >= KILLS
    assert ends["writes"] > 1000
    assert ends["flushes"] > 100


@pytest.mark.soak
def test_killed_two_thousand_times(zygote: Zygote, tmp_path: Path) -> None:
    seed = int(os.environ.get("S3BACKER_SEED", random.SystemRandom().randrange(10**6)))
    print(f"S3BACKER_SEED={seed}")
    ends = run(zygote, tmp_path, random_lives(seed, MANY))
    print(ends)
    assert ends["killed"] >= MANY


@pytest.mark.parametrize("point", points())
def test_killed_at_a_failpoint(zygote: Zygote, tmp_path: Path, point: str) -> None:
    source = random.Random(f"{SEED} {point}")
    lives: list[Life] = []
    for count in TIMES:
        if point in RECOVERY:
            # First one that leaves something.
            lives.append(Life(source.getrandbits(32), "noted", 30, steps=600, left=True))
        journal = point not in REPLAY
        lives.append(Life(source.getrandbits(32), point, count, steps=600 if journal else 0, journal=journal))
    ends = run(zygote, tmp_path, lives)
    assert ends["killed"] > (len(TIMES) if point in RECOVERY else 0), f"{point} was never reached"
