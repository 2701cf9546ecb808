"""Filesystems on a volume with a journal whose daemon is killed while files are written, again and again.

There are many small files, a database, and one file that is exercised as by fsx. What was synced is there with every
byte, and the filesystem's own checker finds nothing wrong. The kernel's filesystem loses its device at that moment, as
with a cable pulled.
"""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.exerciser import Exerciser
from tests.support.filesystem_load import CHECKS, Load, Promised, check_device
from tests.support.mounts import Mounted, loop_device, needs_mounts
from tests.support.tools import run
from tests.support.workbench import Workbench

pytestmark = needs_mounts

SIZE = 512 << 20
KILLS = 5


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Workbench]:
    made = Workbench(tmp_path)
    try:
        yield made
    finally:
        made.close()


def mounted_load(
    mount: Mounted, make: list[str] | None, options: list[str], place: Path, seed: int
) -> tuple[Load, Exerciser]:
    """Kill the daemon under a load, and return what knows what had been promised."""
    with loop_device(mount.file) as device:
        if make is not None:
            run(*make, device)
        run("mount", *options, device, str(place))
        try:
            exerciser = Exerciser(place / f"exercised-{seed}", seed)
            try:
                load = Load(place, seed)
                threading.Event().wait(random.Random(seed).uniform(0.3, 1.5))
                mount.signal(signal.SIGKILL)
                load.join()
                exerciser.join()
            finally:
                exerciser.close()
        finally:
            run("umount", "-l", str(place))
    return load, exerciser


@pytest.mark.parametrize("kind", list(CHECKS))
def test_what_was_synced_survives_kills(bench: Workbench, tmp_path: Path, kind: str) -> None:
    make, _, options = CHECKS[kind]
    place = tmp_path / "fs"
    place.mkdir()
    bench.create(size=SIZE, block_size=128 << 10)
    volume = {"journal": 64 << 20, "journal_directory": str(tmp_path / "journals"), "write_delay": 0.2}
    promised, exercisers = Promised(), list[Exerciser]()
    for number in range(KILLS):
        with bench.mounted(volume=volume) as mount:
            load, exerciser = mounted_load(mount, make if number == 0 else None, options, place, number + 1)
            mount.umount("-l")
            mount.wait()
        promised.add(load)
        exercisers.append(exerciser)
    assert len(promised.synced) > 3 * KILLS
    with bench.mounted(volume=volume) as mount, loop_device(mount.file) as device:
        run("mount", *options, device, str(place))
        try:
            promised.check(place)
            for exerciser in exercisers:
                assert exerciser.check(exerciser.path) > 10
        finally:
            run("umount", str(place))
        check_device(kind, device)
