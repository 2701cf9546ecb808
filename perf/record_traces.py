"""Records what file systems ask of the disk: ``python -m perf.record_traces [NAME…]``, as root; writes perf/traces/.

A disk of 1 GiB in a sparse file is mounted with our FUSE front end, a file system on a loop device above it with direct
I/O, as the README says. Between the phases of a workload the file system is unmounted and mounted again: what it reads
then it reads from the disk, as on a machine whose memory other programs use.
"""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from perf.trace_files import DIRECTORY, Access, save
from s3backer.frontends.fuse import DiskOperations
from s3backer.frontends.fuse_mount import FuseMount, mount_options
from s3backer.stores.base import Buffer
from tests.support.mounts import filesystem, loop_device, umount, wait_until

ROOT = Path(__file__).resolve().parents[1]
SIZE = 1 << 30
MKFS = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}


class RecordingDisk:
    """A disk in a sparse file that writes down every access."""

    name = "recording"
    block_size = 131072
    read_only = False
    size = SIZE

    def __init__(self, path: Path) -> None:
        self._data = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._data, SIZE)
        self.accesses: list[Access] = []

    def read_buffer(self, offset: int, length: int) -> Buffer:
        self.accesses.append(Access(offset, length, write=False))
        return os.pread(self._data, length, offset)

    def write(self, offset: int, data: Buffer) -> int:
        self.accesses.append(Access(offset, len(data), write=True))
        return os.pwrite(self._data, data, offset)

    def flush(self) -> None:
        pass

    def stats_text(self) -> str:
        return ""

    def reset_stats(self) -> None:
        pass


def serve(mountpoint: str, data: str, trace: str) -> None:
    """Serve the disk until it is unmounted."""
    disk = RecordingDisk(Path(data))
    operations = DiskOperations(disk)
    mount = FuseMount(operations, mountpoint, mount_options("recording", read_only=False, threads=4))
    mount.mount()
    mount.serve(4)
    save(Path(trace), disk.accesses)


def run(*command: str, cwd: Path | None = None) -> None:
    subprocess.run(command, check=True, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Work:
    """A file system on a recorded disk."""

    def __init__(self, directory: Path, device: str, kind: str) -> None:
        self._directory, self.device = directory, device
        run(*MKFS[kind], device)

    @contextmanager
    def phase(self) -> Iterator[Path]:
        with filesystem(self.device, self._directory / "fs") as path:
            yield path


def tree() -> list[str]:
    """Return what is unpacked: this repository and a part of its Python packages, some thousand files."""
    packages = sorted((ROOT / ".venv/lib").glob("python*/site-packages"))[0]
    chosen = [
        "botocore/data/ec2",
        "botocore/data/s3",
        "mypy",
        "pip",
        "hypothesis",
        "cryptography",
        "ruff",
        "setuptools",
    ]
    found = [str(packages / name) for name in chosen if (packages / name).exists()]
    return [str(ROOT / "s3backer"), str(ROOT / "tests"), *found]


def untar_and_look(work: Work) -> None:
    with work.phase() as path:
        subprocess.run(f"tar cf - {' '.join(tree())} 2>/dev/null | tar xf - -C {path}", shell=True, check=True)
    for word in ("eviction", "def read"):
        with work.phase() as path:
            subprocess.run(["grep", "-rlI", word, str(path)], stdout=subprocess.DEVNULL, check=False)
    with work.phase() as path:
        run("find", str(path), "-newer", "/etc/passwd")
    with work.phase() as path:
        run("tar", "cf", "/dev/null", "--one-file-system", "-C", str(path), ".")
        subprocess.run(f"tar cf - -C {path} . | cat > /dev/null", shell=True, check=True)


def untar_and_check(work: Work) -> None:
    untar_and_look(work)
    for _ in range(2):
        subprocess.run(["e2fsck", "-fy", work.device], capture_output=True, check=False)


def clone_and_work(work: Work) -> None:
    with work.phase() as path:
        run("git", "clone", "-q", "--no-hardlinks", str(ROOT), str(path / "clone"))
    for back in (1, 10, 25):
        with work.phase() as path:
            run("git", "checkout", "-q", f"HEAD~{back}", cwd=path / "clone")
            run("git", "status", cwd=path / "clone")
        with work.phase() as path:
            run("git", "log", "--stat", "-30", cwd=path / "clone")
            run("git", "grep", "-q", "slab", cwd=path / "clone")
    with work.phase() as path:
        run("git", "gc", "-q", cwd=path / "clone")


def updates(work: Work) -> None:
    """A database of about 60 MiB, of which some rows are wanted often; now and then all of it is read."""
    source = random.Random(1)
    with work.phase() as path:
        database = sqlite3.connect(path / "data.db")
        database.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, body BLOB)")
        rows = ((n, f"name{source.random()}", source.randbytes(200)) for n in range(150_000))
        database.executemany("INSERT INTO t VALUES (?, ?, ?)", rows)
        database.execute("CREATE INDEX i ON t (name)")
        database.commit()
        database.close()
    for number in range(24):
        with work.phase() as path:
            database = sqlite3.connect(path / "data.db")
            for _ in range(6):
                for _ in range(40):
                    row = int(150_000 * source.random() ** 4)
                    database.execute("UPDATE t SET body = ? WHERE id = ?", (source.randbytes(200), row))
                    row = int(150_000 * source.random() ** 4)
                    database.execute("SELECT body FROM t WHERE id = ?", (row,)).fetchone()
                database.commit()
            if number % 8 == 7:
                database.execute("SELECT sum(length(body)) FROM t").fetchone()
            database.close()


def work_beside_backups(work: Work) -> None:
    with work.phase() as path:
        subprocess.run(f"tar cf - {' '.join(tree())} 2>/dev/null | tar xf - -C {path}", shell=True, check=True)
        run("git", "clone", "-q", "--no-hardlinks", str(ROOT), str(path / "clone"))
    for number in range(12):
        with work.phase() as path:
            run("git", "status", cwd=path / "clone")
            subprocess.run(
                ["grep", "-rlI", f"word{number}", str(path / "clone")], stdout=subprocess.DEVNULL, check=False
            )
            (path / "clone" / f"note{number}").write_text("changed\n" * 2000)
            if number % 4 == 3:
                subprocess.run(f"tar cf - -C {path} . | cat > /dev/null", shell=True, check=True)


WORKLOADS: dict[str, tuple[str, Callable[[Work], None]]] = {
    "ext4-untar-grep-fsck": ("ext4", untar_and_check),
    "xfs-untar-grep": ("xfs", untar_and_look),
    "btrfs-untar-grep": ("btrfs", untar_and_look),
    "xfs-git": ("xfs", clone_and_work),
    "ext4-sqlite": ("ext4", updates),
    "ext4-work-backup": ("ext4", work_beside_backups),
}


def record(name: str) -> None:
    """Run one workload and keep its trace."""
    kind, workload = WORKLOADS[name]
    target = DIRECTORY / f"{name}.trace"
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        mountpoint = directory / "mnt"
        mountpoint.mkdir()
        arguments = ["serve", str(mountpoint), str(directory / "data"), str(target)]
        server = subprocess.Popen([sys.executable, "-m", "perf.record_traces", *arguments], cwd=ROOT)
        try:
            wait_until((mountpoint / "file").exists, "the disk is mounted")
            with loop_device(mountpoint / "file") as device:
                workload(Work(directory, device, kind))
            time.sleep(0.5)
            umount(mountpoint)
            server.wait(60)
        finally:
            server.kill()
            server.wait()
            subprocess.run(["umount", "-l", str(mountpoint)], stderr=subprocess.DEVNULL, check=False)
    print(f"{name}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(*sys.argv[2:])
    else:
        for wanted in sys.argv[1:] or WORKLOADS:
            record(wanted)
