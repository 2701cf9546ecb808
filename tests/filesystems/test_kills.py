"""Filesystems on a volume with a journal whose daemon is killed while files are written, again and again.

What was synced is there with every byte, and the filesystem's own checker finds nothing wrong. The kernel's
filesystem loses its device at that moment, as with a cable pulled.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounts import Mounted, loop_device, needs_mounts
from tests.support.tools import run
from tests.support.workbench import Workbench

pytestmark = needs_mounts

SIZE = 512 << 20
KILLS = 5
CHECKS = {
    "ext4": (["mkfs.ext4", "-q"], ["e2fsck", "-fn"], []),
    # What is left of the mount before may still be there.
    "xfs": (["mkfs.xfs", "-q"], ["xfs_repair", "-n"], ["-o", "nouuid"]),
    "btrfs": (["mkfs.btrfs", "-q"], ["btrfs", "check"], []),
}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Workbench]:
    made = Workbench(tmp_path)
    try:
        yield made
    finally:
        made.close()


class Load:
    """Writes small files and syncs each, and commits rows to sqlite, until everything fails."""

    def __init__(self, place: Path, seed: int) -> None:
        self._place = place
        self._source = random.Random(seed)
        self._seed = seed
        self.synced: dict[str, bytes] = {}
        self.rows = 0
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._files, self._commits)]
        for thread in self._threads:
            thread.start()

    def _files(self) -> None:
        try:
            for number in range(100_000):
                name = f"{self._seed}-{number}"
                content = self._source.randbytes(self._source.randrange(1, 30_000))
                with (self._place / name).open("wb", buffering=0) as file:
                    file.write(content)
                    os.fsync(file.fileno())
                descriptor = os.open(self._place, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                self.synced[name] = content
        except OSError:
            return

    def _commits(self) -> None:
        try:
            base = sqlite3.connect(self._place / "base", isolation_level=None)
            # FULL does not sync the directory after the commit: the last one may be rolled back.
            base.execute("PRAGMA synchronous=EXTRA")
            base.execute("CREATE TABLE IF NOT EXISTS t (round INTEGER, k INTEGER)")
            for number in range(100_000):
                base.execute("INSERT INTO t VALUES (?, ?)", (self._seed, number))
                self.rows = number + 1
        except (OSError, sqlite3.Error):
            return

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()


def mounted_load(mount: Mounted, make: list[str] | None, options: list[str], place: Path, seed: int) -> Load:
    """Kill the daemon under a load and return what the load had been promised."""
    with loop_device(mount.file) as device:
        if make is not None:
            run(*make, device)
        run("mount", *options, device, str(place))
        try:
            load = Load(place, seed)
            threading.Event().wait(random.Random(seed).uniform(0.3, 1.5))
            mount.signal(signal.SIGKILL)
            load.join()
        finally:
            run("umount", "-l", str(place))
    return load


@pytest.mark.parametrize("kind", list(CHECKS))
def test_what_was_synced_survives_kills(bench: Workbench, tmp_path: Path, kind: str) -> None:
    make, check, options = CHECKS[kind]
    place = tmp_path / "fs"
    place.mkdir()
    bench.create(size=SIZE, block_size=128 << 10)
    volume = {"journal": 64 << 20, "journal_directory": str(tmp_path / "journals"), "write_delay": 0.2}
    synced: dict[str, bytes] = {}
    rows: dict[int, int] = {}
    for number in range(KILLS):
        with bench.mounted(volume=volume) as mount:
            load = mounted_load(mount, make if number == 0 else None, options, place, number + 1)
            mount.umount("-l")
            mount.wait()
        synced |= load.synced
        rows[number + 1] = load.rows
    assert len(synced) > 3 * KILLS
    with bench.mounted(volume=volume) as mount, loop_device(mount.file) as device:
        run("mount", *options, device, str(place))
        try:
            for name, content in synced.items():
                assert (place / name).read_bytes() == content, name
            base = sqlite3.connect(place / "base")
            assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            for seed, count in rows.items():
                (found,) = base.execute("SELECT count(*) FROM t WHERE round = ?", (seed,)).fetchone()
                assert found >= count, f"round {seed}: {found} of {count} rows"
            base.close()
        finally:
            run("umount", str(place))
        done = subprocess.run([*check, device], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
