"""Hours of load on mounts over a real S3 server whose requests meet faults, and that is killed and frozen meanwhile.

Two volumes with a journal, each with two writers of stamped sectors (tests/support/stamping.py), behind the fault
proxy:

    mortal   its daemon is killed, or unmounted in order, again and again; after each kill all of it is compared
    steady   its daemon lives all the time

The server is killed and started again on the same data, or frozen for a while, so that its requests are never answered.
At the end both are unmounted, and what is in the buckets is compared once more, without the proxy.

**Flat** is what the process of the steady daemon has to be. Once a second its resident memory, descriptors and threads
are counted. The first quarter is warming up. Then
  * the median of the memory in the last quarter is at most ``GROWTH`` above that in the second,
  * the least number of descriptors in the last quarter is at most ``SPARE`` above that in the second, one for
    each connection to the server: what is lost is in the least, too, whatever comes and goes,
  * the most descriptors and threads at any time are at most ``MOST``.

``S3BACKER_MINUTES=240 make soak`` says how long it takes, divided among the servers; ``S3BACKER_SEED=N`` has the same
faults and the same plan again. A failure prints its seed.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.mounts import Mounted, needs_mounts
from tests.support.proxied import proxied
from tests.support.servers import S3Server
from tests.support.stamping import TIMEOUT, BucketBench, Stamper
from tools.fault_proxy import KINDS

pytestmark = [pytest.mark.soak, needs_mounts]

MINUTES = float(os.environ.get("S3BACKER_MINUTES", "120"))
#: Share of the requests that meet each kind of fault. The two left out are final by design.
SHARE = 0.005
FAULTS = dict.fromkeys((kind for kind in KINDS if kind not in ("redirect", "expired-token")), SHARE)
#: Twice the memory that a mount is given, so that blocks are stored and read again all the time.
SECTORS = 65_536
BLOCK = 8192
WRITERS = 2
PAUSE = 0.01
#: Bytes, and numbers of descriptors and threads.
GROWTH, SPARE, MOST = 4 << 20, 16, 120
#: Seconds that a call may take while the server is there: longer than any wait for faults.
STUCK = 90.0
WHAT = {"kill": 6, "restart": 1, "server": 2, "frozen": 2, "both": 1}


@dataclass
class Health:
    """What a process uses, counted again and again."""

    pid: int
    memory: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def look(self) -> None:
        """Count once."""
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines() if ":\t" in line
        )
        self.memory.append(int(status["VmRSS"].split()[0]) << 10)
        self.threads.append(int(status["Threads"]))
        self.descriptors.append(len(os.listdir(f"/proc/{self.pid}/fd")))

    def check(self) -> None:
        """Fail unless it was flat."""
        quarter = len(self.memory) // 4
        early, late = slice(quarter, 2 * quarter), slice(-quarter, None)
        growth = statistics.median(self.memory[late]) - statistics.median(self.memory[early])
        assert growth <= GROWTH, f"its memory has grown by {growth / 2**20:.1f} MiB: {self}"
        more = min(self.descriptors[late]) - min(self.descriptors[early])
        assert more <= SPARE, f"it has {more} descriptors more than before: {self}"
        assert max(self.descriptors) <= MOST and max(self.threads) <= MOST, str(self)

    def __str__(self) -> str:
        quarter = max(1, len(self.memory) // 4)
        parts = [slice(start, start + quarter) for start in range(0, 4 * quarter, quarter)]
        memory = ", ".join(f"{statistics.median(self.memory[part]) / 2**20:.1f}" for part in parts)
        least = ", ".join(str(min(self.descriptors[part])) for part in parts)
        return (
            f"by quarters: median of memory {memory} MiB, least descriptors {least}; "
            f"at most {max(self.descriptors)} descriptors, {max(self.threads)} threads"
        )


class Disk:
    """A mounted volume under load."""

    def __init__(self, bench: BucketBench, source: random.Random) -> None:
        self._bench = bench
        share = SECTORS // WRITERS
        self.stampers = [
            Stamper(source.getrandbits(30), number * share, share, pause=PAUSE) for number in range(WRITERS)
        ]
        self._undo = ExitStack()
        self.mount: Mounted | None = None
        bench.create(size=SECTORS * 512, block_size=BLOCK)

    def begin(self, *, check: bool = True) -> None:
        """Mount, compare everything, and load."""
        self.mount = self._undo.enter_context(self._bench.mounted())
        for stamper in self.stampers:
            if check:
                stamper.check(self.mount.file)
            stamper.start(self.mount.file)

    def look(self) -> None:
        """Fail if a writer had a problem or hangs."""
        for stamper in self.stampers:
            stamper.look()
            assert time.monotonic() - stamper.doing[1] < STUCK, f"{stamper} hangs"

    def kill(self) -> None:
        """Kill the daemon, and see the writers and the mount end."""
        mount = self._ending()
        mount.signal(signal.SIGKILL)
        for stamper in self.stampers:
            stamper.stop()
        self._undo.pop_all().close()
        mount.wait()

    def unmount(self) -> None:
        """Let the writers end, and unmount in order."""
        mount = self._ending()
        for stamper in self.stampers:
            stamper.stop()
            stamper.look()
        mount.umount()
        mount.wait()
        self._undo.pop_all().close()

    def close(self) -> None:
        """End everything, in whatever state it is."""
        for stamper in self.stampers:
            stamper.ending()
        try:
            self._undo.close()
        finally:
            self._bench.close()

    def _ending(self) -> Mounted:
        mount, self.mount = self.mount, None
        assert mount is not None
        for stamper in self.stampers:
            stamper.ending()
        return mount


class LongRun:
    """Two disks, and what happens to them. ``say`` is told what happened, now and then."""

    def __init__(self, directory: Path, server: S3Server, url: str, seed: int, say: Callable[[str], None]) -> None:
        self._server, self._say = server, say
        self._source = random.Random(seed)
        self._directory = directory
        self.done = Counter[str]()
        self._undo = ExitStack()
        self._benches = [BucketBench(directory / name, server, url) for name in ("mortal", "steady")]
        self._disks: list[Disk] = []
        for bench in self._benches:
            disk = Disk(bench, self._source)
            self._undo.callback(disk.close)
            self._disks.append(disk)

    def run(self, seconds: float) -> None:
        """Run for so long, then compare everything and see that the steady daemon was flat."""
        mortal, steady = self._disks
        for disk in self._disks:
            disk.begin(check=False)
        assert steady.mount is not None
        health = Health(steady.mount.pid)
        began = told = time.monotonic()
        while time.monotonic() < began + seconds:
            self._watch(self._source.uniform(1.0, 8.0), health)
            what = self._source.choices(list(WHAT), list(WHAT.values()))[0]
            self.done[what] += 1
            self._happen(what, mortal, health)
            if time.monotonic() > told + 300:
                told = time.monotonic()
                self._say(f"{(told - began) / 60:.0f} minutes: {self.told()}; {health}")
        self._watch(5.0, health)
        self._say(f"{(time.monotonic() - began) / 60:.1f} minutes: {self.told()}; {health}")
        for disk in self._disks:
            disk.unmount()
        for bench, disk in zip(self._benches, self._disks, strict=True):
            bench.url = self._server.endpoint
            with bench.mounted() as mount:
                for stamper in disk.stampers:
                    stamper.check(mount.file)
        health.check()

    def told(self) -> str:
        """Return what has happened."""
        stampers = [stamper for disk in self._disks for stamper in disk.stampers]
        happened = ", ".join(f"{count} {what}" for what, count in sorted(self.done.items()))
        return (
            f"{happened}; {sum(stamper.history.writes for stamper in stampers)} writes, "
            f"{sum(stamper.history.flushes for stamper in stampers)} flushes, "
            f"{sum(stamper.reads for stamper in stampers)} reads"
        )

    def close(self) -> None:
        """End everything."""
        self._undo.close()

    def _happen(self, what: str, mortal: Disk, health: Health) -> None:
        source = self._source
        match what:
            case "kill":
                mortal.kill()
                mortal.begin()
            case "restart":
                mortal.unmount()
                mortal.begin()
            case "server" | "both":
                self._server.kill()
                if what == "both":
                    mortal.kill()
                self._watch(source.choice([0.5, 2.0, 5.0, 15.0]), health, away=True)
                self._server.restart()
                if what == "both":
                    mortal.begin()
            case "frozen":
                pid = self._server.pid
                assert pid is not None
                os.kill(pid, signal.SIGSTOP)
                try:
                    self._watch(source.choice([0.5, 2.0, 5.0, 15.0]), health, away=True)
                finally:
                    os.kill(pid, signal.SIGCONT)

    def _watch(self, seconds: float, health: Health, *, away: bool = False) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(max(0.0, min(1.0, end - time.monotonic())))
            health.look()
            if not away:
                for disk in self._disks:
                    if disk.mount is not None:
                        disk.look()


@pytest.mark.timeout(0)
def test_hours_of_load_faults_and_kills(
    own_server: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("S3BACKER_SEED", random.SystemRandom().randrange(10**6)))

    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n{own_server.program}, S3BACKER_SEED={seed}: {text}", flush=True)

    with proxied(own_server, faults=FAULTS, stall=2 * TIMEOUT, seed=seed) as url:
        run = LongRun(tmp_path, own_server, url, seed, say)
        try:
            run.run(MINUTES * 60 / 2)
        except BaseException as error:
            error.add_note(f"S3BACKER_SEED={seed} after {run.told()}")
            raise
        finally:
            run.close()
