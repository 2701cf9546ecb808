"""Making memory short for some processes of a test, and undoing it."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.mounts import wait_until

_CAP_SYS_RESOURCE = 24
_PR_CAPBSET_DROP = 24


def may_be_io_flusher() -> bool:
    """Whether processes started here may tell the kernel that they serve a disk."""
    facts = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return bool(int(facts["CapEff"], 16) >> _CAP_SYS_RESOURCE & 1)


def drop_sys_resource() -> None:
    """Let what this process starts next be without that right, also if it is root's."""
    assert ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, _CAP_SYS_RESOURCE, 0, 0, 0) == 0


@dataclass(frozen=True)
class MemoryGroup:
    """A control group whose memory has a limit; ``members`` is the file that takes its processes."""

    members: Path

    def join(self) -> None:
        """Put the calling process, which was just forked, into the group, with all that it starts."""
        self.members.write_text("0")


@contextlib.contextmanager
def memory_group(name: str, limit: int) -> Iterator[MemoryGroup]:
    """Make a group that may have so many bytes; at the end whoever is left goes to the root group."""
    version1 = Path("/sys/fs/cgroup/memory")
    top = version1 if version1.is_dir() else Path("/sys/fs/cgroup")
    if top != version1:
        (top / "cgroup.subtree_control").write_text("+memory")
    group = top / name
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if top == version1 else "memory.max")).write_text(str(limit))
        yield MemoryGroup(group / "cgroup.procs")
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (top / "cgroup.procs").write_text(pid)
        wait_until(lambda: _removed(group), f"{group} is removed")


def _removed(group: Path) -> bool:
    # Who has just ended may be in it for a moment.
    with contextlib.suppress(OSError):
        group.rmdir()
    return not group.exists()


@contextlib.contextmanager
def setting(name: str, value: str) -> Iterator[None]:
    """Change a setting of the kernel's memory management for a while."""
    file = Path("/proc/sys/vm", name)
    before = file.read_text()
    file.write_text(value)
    try:
        yield
    finally:
        file.write_text(before)
