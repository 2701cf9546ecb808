"""Files and rows written to a filesystem until its device dies, and whether what was synced is there afterwards."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import threading
from pathlib import Path

#: How a filesystem is made, how it is checked, and how it is mounted after its device died.
CHECKS = {
    "ext4": (["mkfs.ext4", "-q"], ["e2fsck", "-fn"], []),
    # What is left of the mount before may still be there (nouuid).
    # Of two files that share a block one may be cut and the other written. XFS writes that block in place before the
    # cut is on the disk: a crash in between leaves the first one with what was written to the second, as it does
    # on a plain file.
    "xfs": (["mkfs.xfs", "-q", "-m", "reflink=0"], ["xfs_repair", "-n"], ["-o", "nouuid"]),
    "btrfs": (["mkfs.btrfs", "-q"], ["btrfs", "check"], []),
}


class Load:
    """Writes small files and syncs each, and commits rows to sqlite, until everything fails."""

    def __init__(self, place: Path, seed: int) -> None:
        self._place = place
        self._source = random.Random(seed)
        self.seed = seed
        self.synced: dict[str, bytes] = {}
        self.rows = 0
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._files, self._commits)]
        for thread in self._threads:
            thread.start()

    def _files(self) -> None:
        try:
            for number in range(100_000):
                name = f"{self.seed}-{number}"
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
        # sqlite says yes to a commit after which it cannot open the directory to sync it: a filesystem that has shut
        # down meanwhile opens nothing.
        directory = os.open(self._place, os.O_RDONLY)
        try:
            base = sqlite3.connect(self._place / "base", isolation_level=None)
            # FULL does not sync the directory after the commit: the last one may be rolled back.
            base.execute("PRAGMA synchronous=EXTRA")
            base.execute("CREATE TABLE IF NOT EXISTS t (round INTEGER, k INTEGER)")
            for number in range(100_000):
                base.execute("INSERT INTO t VALUES (?, ?)", (self.seed, number))
                os.fsync(directory)
                self.rows = number + 1
        except (OSError, sqlite3.Error):
            return
        finally:
            os.close(directory)

    @property
    def alive(self) -> bool:
        """Whether nothing has failed yet."""
        return all(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()


class Promised:
    """What loads were promised, together."""

    def __init__(self) -> None:
        self.synced: dict[str, bytes] = {}
        self._rows: dict[int, int] = {}

    def add(self, load: Load) -> None:
        """Add what one was promised; it has ended."""
        self.synced |= load.synced
        self._rows[load.seed] = load.rows

    def check(self, place: Path) -> None:
        """Compare all of it with what is there."""
        for name, content in self.synced.items():
            assert (place / name).read_bytes() == content, name
        base = sqlite3.connect(place / "base")
        try:
            assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            for seed, count in self._rows.items():
                (found,) = base.execute("SELECT count(*) FROM t WHERE round = ?", (seed,)).fetchone()
                assert found >= count, f"round {seed}: {found} of {count} rows"
        finally:
            base.close()


def check_device(kind: str, device: str) -> None:
    """Let the filesystem's own checker look at it."""
    done = subprocess.run([*CHECKS[kind][1], device], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
