"""Short of memory: a filesystem on the disk is written back, whoever has none left.

In a control group of version 1 whose pages are all being written, who needs one more waits for one of them. They are
written by the daemon: if that waits too, all do for ever. The kernel lets it go on if it knows that it serves a disk.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.memory import drop_sys_resource, may_be_io_flusher, memory_group, setting
from tests.support.mounts import cut_off_after, filesystem, loop_device, needs_mounts
from tests.support.tools import run
from tests.support.workbench import Workbench

pytestmark = [needs_mounts, pytest.mark.usefixtures("connections")]


@pytest.fixture
def fast_lane() -> bool:
    """Return that most of these tests are about the fast lane."""
    return True


needs_flusher = pytest.mark.skipif(
    not may_be_io_flusher(), reason="without CAP_SYS_RESOURCE the daemon cannot be told from other processes"
)
MIB = 1 << 20
#: MiB that are written.
WRITTEN = 100
#: What ends a test that hangs, in seconds; on an idle machine it takes two.
LONGEST = 60.0
#: The daemon's own memory (50 MiB with this budget) and too little for what is written.
BOTH = 96 * MIB


def write_file(bench: Workbench, join: Callable[[], None] | None = None, *, direct_io: str = "on", **more: Any) -> None:
    """Mount, and write WRITTEN MiB to ext4 on a loop device; ``join`` is called by dd before it begins."""
    if run("stat", "-f", "-c", "%T", str(bench.directory)).strip() == "tmpfs":
        pytest.skip("the bucket itself would be memory of the group")
    bench.create(size=256 * MIB, block_size=128 << 10)
    with (
        bench.mounted(**more) as mount,
        cut_off_after(mount, LONGEST),
        loop_device(mount.file, direct_io=direct_io) as device,
    ):
        run("mkfs.ext4", "-q", device)
        with filesystem(device, bench.directory / "ext4") as place, setting("dirty_ratio", "1"):
            command = ["dd", "if=/dev/urandom", f"of={place}/file", "bs=1M", f"count={WRITTEN}", "conv=fsync"]
            done = subprocess.run(command, preexec_fn=join, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert (place / "file").stat().st_size == WRITTEN * MIB


def small(journal: int) -> dict[str, Any]:
    return {"memory": 16 * MIB, "write_delay": 0.5, "journal": journal}


def name_of(bench: Workbench) -> str:
    return f"s3backer-test-{os.getpid()}-{bench.directory.name}"


@pytest.mark.parametrize("direct_io", ["on", "off"])
def test_the_writer_has_no_memory(bench: Workbench, direct_io: str) -> None:
    with memory_group(name_of(bench), 48 * MIB) as group:
        write_file(bench, group.join, direct_io=direct_io, volume=small(0))


@pytest.mark.parametrize("journal", [0, 64 * MIB], ids=["plain", "journal"])
def test_the_daemon_has_no_memory(bench: Workbench, journal: int) -> None:
    # What it writes to its bucket and its journal takes all the room there is.
    with memory_group(name_of(bench), BOTH) as group:
        write_file(bench, volume=small(journal), options={"preexec_fn": group.join})


@needs_flusher
@pytest.mark.parametrize("fast_lane", [True, False], ids=["lane", "llfuse"])
@pytest.mark.parametrize(("journal", "direct_io"), [(0, "on"), (64 * MIB, "off")], ids=["plain", "journal"])
def test_writer_and_daemon_have_no_memory_together(bench: Workbench, journal: int, direct_io: str) -> None:
    with memory_group(name_of(bench), BOTH) as group:
        write_file(bench, group.join, direct_io=direct_io, volume=small(journal), options={"preexec_fn": group.join})


@pytest.mark.parametrize("limited", [True, False])
def test_who_has_a_limit_and_cannot_tell_the_kernel_says_so(volume: Workbench, limited: bool) -> None:
    with memory_group(name_of(volume), BOTH) as group:

        def prepare() -> None:
            drop_sys_resource()
            if limited:
                group.join()

        code, said = volume.run(options={"preexec_fn": prepare})
        assert code == 0, said
        assert ("keep programs that write to the disk out of that group" in said) == limited, said
        volume.close()
