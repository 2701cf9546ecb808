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


def open_standard_descriptors() -> None:
    """Open what is closed of 0, 1 and 2, so that nothing else gets these numbers and then what is meant for them."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)


def prepare_process() -> None:
    """Set what must be set before the first thread: memory reclaim, the allocator, and the place among the killed."""
    libc = ctypes.CDLL(None)
    # The kernel may write to this very disk in order to free memory; this process must not wait for that.
    # It needs CAP_SYS_RESOURCE, and without it everything works as long as memory is not short.
    libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0)
    with contextlib.suppress(AttributeError):
        libc.mallopt(_M_ARENA_MAX, 2)
    if os.geteuid() == 0:
        # What was touched stays: it may be needed to free memory, and fetching it back would need memory.
        libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(_OOM_SCORE))


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
