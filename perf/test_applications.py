"""git clone, untar of a source tree, and sqlite's synchronous commits, on ext4 over the volume on MinIO.

The original's fsync does nothing, and neither does that of ``lazy``; ``ours`` waits until everything is in the bucket.
Each ends with syncfs, which is in the time.

The tree: ``fs``, ``kernel`` and ``net`` of Debian's linux-source-6.1, unpacked from a tar without compression, or,
where that is not installed, as many generated files; the table says which.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perf.figures import ROUNDS, Figure, Suite, Workload, memory
from perf.rivals import LAZY, MIB, OURS, TUNED, Rival, needs_rivals, new_place, running
from perf.side_by_side import Report
from perf.test_loop import ext4_over
from tests.support.minio_program import NOT_BUILT, find_minio
from tests.support.mounts import ROOT
from tests.support.servers import MinioServer

SIZE = 2048 * MIB
MEMORY = 256 * MIB
COMMITS = 50
LINUX = Path("/usr/src/linux-source-6.1.tar.xz")
PARTS = ("fs", "kernel", "net")
GENERATED = 4000

pytestmark = [*needs_rivals, pytest.mark.skipif(find_minio() is None, reason=NOT_BUILT)]


@pytest.fixture(scope="module")
def filesystems(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Rival, Path]]]:
    directory = tmp_path_factory.mktemp("applications")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(MinioServer())
        found = {}
        for program in (OURS, LAZY, TUNED):
            place = new_place(directory / program / "objects", server)
            rival = stack.enter_context(running(program, place, directory / program, size=SIZE, memory=MEMORY))
            found[program] = rival, stack.enter_context(ext4_over(rival, directory / program / "ext4"))
            rival.settle()
        yield found


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Return what the tree is called, and a tar of it."""
    directory = tmp_path_factory.mktemp("tree")
    if LINUX.exists():
        parts = [f"linux-source-6.1/{part}" for part in PARTS]
        subprocess.run(["tar", "-xf", str(LINUX), "-C", str(directory), *parts], check=True, timeout=600)
        name = "fs, kernel and net of linux-source-6.1"
    else:
        source = random.Random(1)
        for number in range(GENERATED):
            path = directory / f"d{number % 97}" / f"f{number}.c"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(source.randbytes(int(source.lognormvariate(9, 1.2))))
        name = f"{GENERATED} generated files"
    with tarfile.open(directory / "tree.tar", "w") as archive:
        for entry in sorted(directory.iterdir()):
            if entry.is_dir():
                archive.add(entry, entry.name)
    return name, directory / "tree.tar"


@pytest.fixture(scope="module")
def suite() -> Suite:
    return Suite("applications")


def measure(
    name: str,
    filesystems: dict[str, tuple[Rival, Path]],
    once: Callable[[Path], None],
    suite: Suite,
    report: Report,
    *,
    times: int = 1,
    unit: str = "an hour",
) -> None:
    """Run ``once`` in a new directory of each filesystem, once a round; the value is how often that is a ``unit``."""
    figures = {program: Figure(program) for program in filesystems}
    for number in range(ROUNDS):
        names = list(filesystems)
        for program in names[number % len(names) :] + names[: number % len(names)]:
            rival, root = filesystems[program]
            directory = root / f"round{number}"
            directory.mkdir()
            before, started = rival.cpu(), time.perf_counter()
            once(directory)
            subprocess.run(["sync", "-f", str(root)], check=True, timeout=600)
            seconds = time.perf_counter() - started
            rival.settle()
            figures[program].values.append(times * (3600 if unit == "an hour" else 1) / seconds)
            figures[program].cpu.append((rival.cpu() - before) / times * 1e6)
            shutil.rmtree(directory)
            rival.settle()
    for program, (rival, _) in filesystems.items():
        figures[program].peak = rival.peak()
    workload = Workload(name, unit, 1.0, list(figures.values()), judged=LAZY)
    suite.add(workload)
    report.add(workload.ratio(TUNED, LAZY))
    report.add(workload.ratio(TUNED))
    report.add(memory(workload, MEMORY))


def test_untar(
    tree: tuple[str, Path], filesystems: dict[str, tuple[Rival, Path]], suite: Suite, report: Report
) -> None:
    def untar(directory: Path) -> None:
        subprocess.run(["tar", "-xf", str(tree[1]), "-C", str(directory)], check=True, timeout=600)

    measure(f"untar {tree[0]}", filesystems, untar, suite, report)


def test_git_clone(filesystems: dict[str, tuple[Rival, Path]], suite: Suite, report: Report) -> None:
    """This project's own repository."""

    def clone(directory: Path) -> None:
        command = ["git", "clone", "-q", "--no-hardlinks", str(ROOT), str(directory / "clone")]
        subprocess.run(command, check=True, timeout=600)

    measure("git clone of this repository", filesystems, clone, suite, report)


def test_sqlite(filesystems: dict[str, tuple[Rival, Path]], suite: Suite, report: Report) -> None:
    def commit(directory: Path) -> None:
        with contextlib.closing(sqlite3.connect(directory / "base", isolation_level=None)) as base:
            base.execute("PRAGMA synchronous=FULL")
            base.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v TEXT)")
            for number in range(COMMITS):
                base.execute("INSERT INTO t VALUES (?, ?)", (number, "x" * 100))

    measure("sqlite, synchronous commits", filesystems, commit, suite, report, times=COMMITS, unit="a second")
