"""One FUSE mount: its options, and mounting, serving and ending it with llfuse.

Guarantees
  * Options that libfuse would refuse are refused before anything is opened or mounted.
  * ``stop`` ends the loop whatever it is doing, also while files are open.
  * Only our own mount is ever unmounted, never another that has taken its place.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

import llfuse

from s3backer.errors import MountError
from s3backer.frontends.fuse import FILE_HANDLE, FILE_INODE, DiskOperations
from s3backer.frontends.fuse_options import sort_out
from s3backer.frontends.lane import FastLane, device_descriptors
from s3backer.mountpoint import Mount, check_mountpoint, find_again, find_mount, is_covered, unmount
from s3backer.port import Port

log = logging.getLogger(__name__)

#: Pause in seconds between two attempts to wake workers that are to end.
_NUDGE = 0.02
#: Seconds to wait for the kernel after an unmount, before open files in other mount namespaces are cut off.
_UNMOUNT_GRACE = 2.0
#: The kernel's own limit on asynchronous requests.
_KERNEL_BACKGROUND = 12

#: llfuse's workers beside the fast lane: none of them ever waits.
_LANE_WORKERS = 4

_OPPOSITES = {"dev": "nodev", "suid": "nosuid", "rw": "ro", "allow_root": "allow_other"}


def clean_fsname(name: str) -> str:
    """Return the text that the mount table shows, without what libfuse or the table could misread."""
    return quote(name, safe="!\"#$%&'()*+-./:;<=>?@[]^_`{|}~", errors="surrogateescape")


def background_requests(threads: int) -> int:
    """Return how many asynchronous requests (read-ahead above all) the kernel may have under way.

    Its default of 12 keeps a bucket idle: 128 KiB reads of 30 ms, read ahead 2 MiB, gave 34 MB/s with 12
    and 113 MB/s with 32. Twice the fetching threads, so that each finds its next request waiting.
    """
    return max(_KERNEL_BACKGROUND, 2 * threads)


def worker_count(threads: int, options: set[str]) -> int:
    """Return how many llfuse workers to run above a volume of ``threads`` fetching threads.

    A worker that waits for the bucket serves nobody else, so a hit waits only when all of them wait. The kernel's
    asynchronous requests may all be waiting; on top come as many synchronous ones as can be fetched at once.
    A worker costs 132 KiB of buffer; 32 instead of 4 changed nothing in the speed of cached 4 KiB requests.
    """
    return background_of(options) + max(threads, 4)


def background_of(options: set[str]) -> int:
    """Return how many asynchronous requests these options let the kernel have under way."""
    limits = [int(o.partition("=")[2]) for o in options if o.startswith("max_background=")]
    return max([_KERNEL_BACKGROUND, *limits])


def mount_options(fsname: str, *, read_only: bool, threads: int, user: Sequence[str] = ()) -> set[str]:
    """Return llfuse's set of mount options: our defaults and, over them, the user's.

    ``threads`` is how many requests the volume can have under way.

    Raises UsageError for what libfuse would refuse, because it would do so only after the volume was opened, and
    MountError for values that would not reach it whole.
    """
    options = set(llfuse.default_options)
    options |= {"nodev", "nosuid", "default_permissions"}
    if os.geteuid() == 0:
        # Others could not even see the disk, and for root nothing has to be allowed in /etc/fuse.conf.
        options.add("allow_other")
    background = str(background_requests(threads))
    named = {"max_background": background, "congestion_threshold": background}
    named |= {"fsname": clean_fsname(fsname), "subtype": "s3backer"}
    for option in sort_out(user).options:
        name, equals, value = option.partition("=")
        if not equals:
            options.discard(_OPPOSITES.get(name, ""))
            options.discard(name.removeprefix("no_") if name.startswith("no_") else f"no_{name}")
            options.add(name)
        else:
            named[name] = clean_fsname(value) if name == "fsname" else value
    if any(not value.isascii() or "," in value for value in named.values()):
        raise MountError("a mount option's value must be ASCII without commas", hint="Change the value.")
    options.discard("rw")
    if read_only:
        options.add("ro")
    return options | {f"{name}={value}" for name, value in named.items()}


class FuseMount:
    """One mount of a DiskOperations: mounting, serving, ending. llfuse has room for one per process.

    ``port``: what the fast lane goes by, None: llfuse answers everything. ``direct_io``: the kernel keeps nothing of
    the disk; only the fast lane can ask for that. ``lazy_fsync``: as that of the operations.
    """

    def __init__(
        self,
        operations: DiskOperations,
        mountpoint: str,
        options: set[str],
        *,
        port: Port | None = None,
        direct_io: bool = False,
        lazy_fsync: bool = False,
    ) -> None:
        self._operations = operations
        self._port = port
        self._direct_io = direct_io
        self._lazy_fsync = lazy_fsync
        self._lane: FastLane | None = None
        self._options = options
        self._mountpoint = mountpoint
        self._mount: Mount | None = None
        self._ended = threading.Event()
        self._stopping = threading.Lock()

    @property
    def mountpoint(self) -> str:
        """Where it is mounted, absolute and resolved; where it is now, if it was moved, or a directory above it was."""
        mount = self._mount
        found = None if mount is None else find_again(mount)
        return self._mountpoint if found is None else found.path

    @property
    def covered(self) -> bool:
        """Whether something else is mounted over it."""
        return self._mount is not None and is_covered(self.mountpoint, self._mount.device)

    @property
    def detached(self) -> bool:
        """Whether somebody has taken it out of the tree; it goes on for who has files of it open (umount --lazy)."""
        return self._mount is not None and find_again(self._mount) is None

    def mount(self) -> None:
        """Mount; requests wait until ``serve``. Raises MountError with what libfuse and fusermount said."""
        try:
            self._mount_now()
        except BaseException:
            # There is nothing that ``stop`` would have to wait for.
            self._ended.set()
            raise
        self._mount = find_mount(self._mountpoint)

    def _take_over(self, device: int, port: Port) -> None:
        self._lane = FastLane(
            device,
            port,
            inode=FILE_INODE,
            handle=FILE_HANDLE,
            direct_io=self._direct_io,
            lazy_fsync=self._lazy_fsync,
            background=background_of(self._options),
            allow=self._allow_background,
            on_gone=self._end_loop,
        )
        lane = self._lane.lane
        self._operations.wrote_at = lambda: lane.wrote_at

    def _mount_now(self) -> None:
        failure = ""
        before = device_descriptors()
        with _captured_stderr() as said:
            try:
                llfuse.init(self._operations, self._mountpoint, self._options)
            except RuntimeError as error:
                failure = str(error)
            text = said()
        if failure:
            # Somebody may have been quicker since it was looked at.
            check_mountpoint(self._mountpoint, allow_nonempty="nonempty" in self._options)
            raise MountError(
                f"mounting on {self._mountpoint} failed: {text or failure}",
                hint="Mounting needs root (in a container CAP_SYS_ADMIN), or a setuid fusermount and a mount point "
                "that belongs to the user.",
            )
        if text:
            log.warning("mounting on %s: %s", self._mountpoint, text)
        if self._port is not None:
            (device,) = device_descriptors() - before
            try:
                self._take_over(device, self._port)
            except OSError as error:
                llfuse.close(unmount=True)
                raise MountError(
                    f"the fast lane of {self._mountpoint} cannot begin: {error.strerror}",
                    hint="Raise the limit of open files (ulimit -n), or mount with --no-fast-lane.",
                ) from None

    def serve(self, workers: int) -> None:
        """Answer requests until the filesystem is unmounted or ``stop`` is called, then take it down."""
        # When the loop ends llfuse puts back what was there before: it must not be "die", because ``_end_loop``
        # may still be sending.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, _ignore)
        lane = self._lane
        try:
            if lane is not None:
                lane.start()
            llfuse.main(workers=workers if lane is None else _LANE_WORKERS)
        finally:
            self._ended.set()
            self._detach()
            if lane is not None:
                lane.stop()
            # Not llfuse's own unmount: by now something else may be mounted there.
            llfuse.close(unmount=False)
            if lane is not None:
                lane.join()

    def facts(self) -> dict[str, object]:
        """Return what ``info`` shows of it; of the fast lane: requests that were answered at once, waited, wait.

        ``device``: see Mount.
        """
        lane = None if self._lane is None else self._lane.lane
        return {
            "device": "" if self._mount is None else self._mount.device,
            "lazy_fsync": self._lazy_fsync,
            "fast_lane": lane is not None,
            "lane_answered": lane.answered if lane else 0,
            "lane_waited": lane.parking.waited if lane else 0,
            "lane_waiting": lane.parking.waiting if lane else 0,
        }

    def unmount(self) -> None:
        """Unmount and let the loop end by it. OSError(EBUSY) while files are open; it goes on serving then.

        So it does where something else was mounted on it since: it would be left there, dead.
        """
        path = self.mountpoint
        if self._still_mounted(path):
            unmount(path)
        elif self.covered:
            raise OSError(errno.EBUSY, "something else is mounted over it", path)

    def stop(self) -> None:
        """End ``serve``: by an unmount where nobody uses it, else by cutting off those who do.

        Must be called from another thread than ``serve``; returns when ``serve`` is about to return.
        """
        with self._stopping:
            while not self._operations.serving.wait(_NUDGE):
                if self._ended.is_set():
                    return
            try:
                self.unmount()
            except OSError as error:
                if not self._ended.is_set():
                    log.warning("%s is still in use (%s); cutting it off", self._mountpoint, error.strerror)
                self._detach()
            else:
                if self._ended.wait(_UNMOUNT_GRACE):
                    return
            self._end_loop()

    def tune_read_ahead(self, size: int) -> None:
        """Let the kernel read ahead ``size`` bytes, where root may set it and the user did not.

        FUSE's own negotiation cannot go beyond 128 KiB, one or two requests under way: 8.5 MB/s from a bucket
        30 ms away, where 2 MiB gave 113. Needs ``serving``: the negotiation sets it back.
        """
        if self._mount is None or any(option.startswith("max_readahead=") for option in self._options):
            return
        try:
            Path("/sys/class/bdi", self._mount.device, "read_ahead_kb").write_text(f"{size // 1024}\n")
        except OSError as error:
            log.debug("read-ahead stays as it is: %s", error)

    def _allow_background(self, requests: int) -> None:
        """Let the kernel have so many asynchronous requests under way, where root may say so."""
        if self._mount is None:
            return
        minor = self._mount.device.rpartition(":")[2]
        try:
            Path("/sys/fs/fuse/connections", minor, "max_background").write_text(f"{requests}\n")
        except OSError as error:
            log.debug("the kernel's requests stay as they are: %s", error)

    def _still_mounted(self, path: str) -> bool:
        mount = self._mount
        found = None if mount is None else find_mount(path, device=mount.device)
        # The device's number may be another's by now.
        return mount is not None and found is not None and (found.kind, found.source) == (mount.kind, mount.source)

    def _detach(self) -> None:
        """Take the mount out of the tree, leaving open files as they are."""
        try:
            path = self.mountpoint
            if self._still_mounted(path):
                unmount(path, lazy=True)
        except OSError as error:
            log.error("%s could not be unmounted: %s", self._mountpoint, error)

    def _end_loop(self) -> None:
        """Make llfuse's workers leave although the kernel's connection goes on.

        llfuse 1.5.2 has no call for it. Its handler of SIGTERM marks the session as ended, in whatever thread it
        runs. A worker sees the mark when its read of /dev/fuse returns, and SIGUSR1 interrupts a read; but one that
        comes between the look at the mark and the read is lost, so it is repeated until the loop is over.
        """
        mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        libc = ctypes.CDLL(None)
        while not self._ended.wait(_NUDGE):
            for thread in threading.enumerate():
                if thread.name.startswith("fuse-worker-") and thread.native_id is not None:
                    # By the kernel's number: a pthread handle may be gone, this then just finds nobody.
                    libc.tgkill(os.getpid(), thread.native_id, signal.SIGUSR1)


def _ignore(*_: object) -> None:
    pass


class _captured_stderr:
    """Collects what C code writes to standard error, where libfuse explains why a mount failed."""

    def __enter__(self) -> Callable[[], str]:
        self._saved = os.dup(2)
        self._file = os.memfd_create("stderr", os.MFD_CLOEXEC)
        os.dup2(self._file, 2)
        return self._text

    def _text(self) -> str:
        os.lseek(self._file, 0, os.SEEK_SET)
        lines = os.read(self._file, 4096).decode("utf-8", "replace").splitlines()
        return "; ".join(line.strip() for line in lines if line.strip())

    def __exit__(self, *_: object) -> None:
        os.dup2(self._saved, 2)
        os.close(self._saved)
        os.close(self._file)
