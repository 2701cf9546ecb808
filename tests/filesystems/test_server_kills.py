"""Filesystems, and a raw disk of stamped sectors, over a real S3 server, while daemons and server are killed.

All disks are mounted at once, each with a load, and lose what serves them together, in one of these ways. Each round
ends with the death of all daemons; the next one begins with their mounts, which replay the journals.

    daemon       the daemons are killed
    both         daemons and server are killed, one right after the other; the server is started again before the mounts
    server       the server is killed, is away for a while and comes back, and the load goes on; then the daemons are
                 killed
    replaying    the daemons are killed, and the server while the next mounts replay

A server that is killed has the same page cache when it is started again, so nothing it acknowledged may be missing,
whether it syncs or not. A power failure under the server is not meant here.
"""

from __future__ import annotations

import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.filesystem_load import CHECKS, Load, Promised, check_device
from tests.support.minio_program import find_minio
from tests.support.mounts import Mounted, filesystem, loop_device, needs_mounts, wait_until
from tests.support.servers import S3Server, SeaweedServer
from tests.support.stamping import BucketBench, Stamper
from tests.support.tools import run

pytestmark = needs_mounts

#: Bytes of a disk: the smallest that all of these filesystems take.
SIZE = 320 << 20
SECTORS = 4096
KINDS = (*CHECKS, "ext4", "")
#: Four filesystems each. SeaweedFS takes seconds to start again, MinIO half of one; where that was not built, the other
#: one has its rounds, too.
ROUNDS = {"seaweed": ["both", "server"], "minio": ["server", "replaying", "daemon"]}
#: Kills of daemons in the long run, of each server (S3BACKER_KILLS, a twentieth).
MANY = int(os.environ.get("S3BACKER_KILLS", "2000")) // 20


class Disk:
    """A volume that is mounted, loaded and killed. ``kind``: a filesystem, or "" for stamped sectors."""

    def __init__(self, directory: Path, server: S3Server, kind: str, seed: int) -> None:
        self.kind = kind
        self.kills = 0
        self._bench = BucketBench(directory, server)
        self._bench.volume |= {"journal": 64 << 20}
        self._place = directory / "fs"
        self._place.mkdir()
        self._seed = seed
        self._promised = Promised()
        # Slow enough that few sectors are written again while the server is away: lost ones stay lost.
        self._stamper = Stamper(seed, 0, SECTORS, pause=0.003)
        self._mount: Mounted | None = None
        self._load: Load | None = None
        self._undo = ExitStack()
        self._bench.create(size=SIZE if kind else SECTORS * 512, block_size=(128 << 10) if kind else 4096)

    def begin(self) -> None:
        """Mount, which recovers what the last kill left, and load."""
        self._mount = self._undo.enter_context(self._bench.mounted())
        if not self.kind:
            self._stamper.check(self._mount.file)
            self._stamper.start(self._mount.file)
            return
        make, _, options = CHECKS[self.kind]
        device = self._undo.enter_context(loop_device(self._mount.file))
        if self.kills == 0:
            run(*make, device)
        run("mount", *options, device, str(self._place))
        self._undo.callback(run, "umount", "-l", str(self._place))
        self._load = Load(self._place, self._seed + self.kills)

    @property
    def progress(self) -> int:
        """How much the load has done in this life, or in all of them."""
        return self._load.rows if self._load is not None else self._stamper.history.writes // 10

    @property
    def problem(self) -> BaseException | None:
        """What the stamper met."""
        return self._stamper.problem

    @property
    def ended(self) -> bool:
        """Whether the load has ended although nobody killed its daemon."""
        return self.problem is not None or (self._load is not None and not self._load.alive)

    def kill(self) -> None:
        """Kill the daemon."""
        assert self._mount is not None
        self._stamper.ending()
        self._mount.signal(signal.SIGKILL)
        self.kills += 1

    def end(self) -> None:
        """Undo what is left of the mount after a kill."""
        assert self._mount is not None
        if self._load is not None:
            self._load.join()
            self._promised.add(self._load)
            self._load = None
        self._stamper.stop()
        mount, self._mount = self._mount, None
        self._undo.pop_all().close()
        mount.wait()

    def check(self) -> None:
        """Mount once more, and see that everything is there and whole."""
        with self._bench.mounted() as mount:
            if not self.kind:
                assert self._stamper.history.writes > 10 * self.kills
                self._stamper.check(mount.file)
                return
            with loop_device(mount.file) as device:
                assert len(self._promised.synced) > 3 * self.kills
                with filesystem(device, self._place, *CHECKS[self.kind][2]):
                    self._promised.check(self._place)
                check_device(self.kind, device)

    def close(self) -> None:
        """End everything, in whatever state it is."""
        self._stamper.ending()
        try:
            self._undo.close()
        finally:
            self._bench.close()


class Killing:
    """Disks on one server, killed together."""

    def __init__(self, directory: Path, server: S3Server, seed: int) -> None:
        self._server = server
        self._source = random.Random(seed)
        self.disks: list[Disk] = []
        self._pool = ThreadPoolExecutor(len(KINDS))
        try:
            for number, kind in enumerate(KINDS):
                self.disks.append(Disk(directory / str(number), server, kind, self._source.getrandbits(30)))
        except BaseException:
            self.close()
            raise

    def round(self, how: str) -> None:
        """Mount and load all disks, and kill in this way."""
        mounting = [self._pool.submit(disk.begin) for disk in self.disks]
        if how == "replaying":
            time.sleep(self._source.uniform(0.5, 2.5))
            self._server.kill()
            self._server.restart()
        for future in mounting:
            future.result()
        self._load(0.2, 1.2)
        if how == "server":
            self._server.kill()
            # Whoever reads what is only there waits for it.
            time.sleep(self._source.uniform(0.4, 1.5))
            self._server.restart()
            self._load(0.2, 1.0)
        steps = [disk.kill for disk in self.disks]
        if how == "both":
            steps.append(self._server.kill)
        self._source.shuffle(steps)
        for step in steps:
            step()
        ending = [self._pool.submit(disk.end) for disk in self.disks]
        if how == "both":
            self._server.restart()
        for future in ending:
            future.result()

    def check(self) -> None:
        """Check all disks."""
        for future in [self._pool.submit(disk.check) for disk in self.disks]:
            future.result()

    def close(self) -> None:
        """End everything."""
        self._pool.shutdown()
        with ExitStack() as stack:
            for disk in self.disks:
                stack.callback(disk.close)

    def _load(self, least: float, most: float) -> None:
        """Let the loads go on for a while, and until each has got somewhere."""
        before = [disk.progress for disk in self.disks]
        time.sleep(self._source.uniform(least, most))
        for disk, start in zip(self.disks, before, strict=True):
            wait_until(lambda: disk.ended or disk.progress > start + 2, "the load goes on")  # noqa: B023
            assert not disk.ended, f"the load on {disk.kind or 'the raw disk'} has ended: {disk.problem!r}"


def kill(server: S3Server, directory: Path, rounds: list[str], seed: int) -> int:
    """Kill in these ways, and return how many daemons were."""
    killing = Killing(directory, server, seed)
    try:
        for how in rounds:
            killing.round(how)
        killing.check()
    except BaseException as error:
        error.add_note(f"S3BACKER_SEED={seed}, rounds {rounds}")
        raise
    finally:
        killing.close()
    return sum(disk.kills for disk in killing.disks if disk.kind)


def new_seed() -> int:
    return int(os.environ.get("S3BACKER_SEED", random.SystemRandom().randrange(10**6)))


def test_daemons_and_server_are_killed(own_server: S3Server, tmp_path: Path) -> None:
    """Together 20 kills of daemons under a filesystem, 5 of the raw disk's, 4 of a server."""
    rounds = ROUNDS["seaweed" if isinstance(own_server, SeaweedServer) else "minio"]
    if find_minio() is None:
        rounds = [*ROUNDS["seaweed"], *ROUNDS["minio"]]
    assert kill(own_server, tmp_path, rounds, new_seed()) == (len(KINDS) - 1) * len(rounds)


@pytest.mark.soak
def test_daemons_and_server_are_killed_many_times(own_server: S3Server, tmp_path: Path) -> None:
    seed = new_seed()
    rounds = random.Random(seed).choices(["daemon", "both", "server", "replaying"], k=max(1, MANY // (len(KINDS) - 1)))
    kill(own_server, tmp_path, rounds, seed)
