"""What the process of a mount needs of the system: standard descriptors, enough open files, its place in reclaim."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource

from s3backer.errors import UsageError

#: Open files of a mount, and of each thread on top: a connection, or what a directory's store opens for one object.
_FILES_OF_PROCESS = 48
_FILES_OF_THREAD = 4
_PR_SET_IO_FLUSHER = 57
_M_ARENA_MAX = -8
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
#: Among the last to be killed where memory ends: what is not stored yet would be lost.
_OOM_SCORE = -800
#: More bytes than any limit that somebody has set; without one the kernel tells its largest number of pages.
_NO_LIMIT = 1 << 60


def open_standard_descriptors() -> None:
    """Open what is closed of 0, 1 and 2, so that nothing else gets these numbers and then what is meant for them."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)


def prepare_process() -> bool:
    """Set what must be set before the first thread: memory reclaim, the allocator, and the place among the killed.

    Return whether the kernel knows that this process serves a disk, which needs CAP_SYS_RESOURCE.
    """
    libc = ctypes.CDLL(None)
    # The kernel may write to this very disk in order to free memory; this process must not wait for that.
    known: bool = libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0
    with contextlib.suppress(AttributeError):
        libc.mallopt(_M_ARENA_MAX, 2)
    if os.geteuid() == 0:
        # What was touched stays: it may be needed to free memory, and fetching it back would need memory.
        libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)
        with contextlib.suppress(OSError, ValueError), open("/proc/self/oom_score_adj", "r+") as file:
            # The service manager may have chosen a lower one.
            if int(file.read()) > _OOM_SCORE:
                file.seek(0)
                file.write(str(_OOM_SCORE))
    return known


def has_memory_limit(groups: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> bool:
    """Whether a control group of this process limits its memory, as far as that can be seen from here.

    ``groups``: where control groups are mounted; ``own``: the file that names those of this process.
    """
    with contextlib.suppress(OSError, ValueError), open(own) as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            if "memory" in controllers.split(","):
                return _version1_has_limit(f"{groups}/memory", path)
            if not controllers and _version2_has_limit(groups, path):
                return True
    return False


def _version1_has_limit(top: str, path: str) -> bool:
    # In a container the path can be the host's, and the group is what is mounted.
    for place in (top + path, top):
        with contextlib.suppress(OSError), open(f"{place}/memory.stat") as file:
            facts = dict(line.split() for line in file)
            return int(facts.get("hierarchical_memory_limit", _NO_LIMIT)) < _NO_LIMIT
    return False


def _version2_has_limit(top: str, path: str) -> bool:
    parts = [part for part in path.split("/") if part]
    for count in range(len(parts), -1, -1):
        with contextlib.suppress(OSError), open("/".join([top, *parts[:count], "memory.max"])) as file:
            if file.read().strip() != "max":
                return True
    return False


def raise_open_files(threads: int) -> None:
    """Raise the limit of open files as far as it goes; UsageError if so many threads could not all work."""
    need = _FILES_OF_PROCESS + _FILES_OF_THREAD * threads
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < need:
        soft = need if hard == resource.RLIM_INFINITY else min(need, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft != resource.RLIM_INFINITY and soft < need:
        raise UsageError(
            f"{threads} threads need {need} open files, and no more than {soft} are allowed",
            hint="Use fewer with --threads, or raise the limit (ulimit -n).",
        )
