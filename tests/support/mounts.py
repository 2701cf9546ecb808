"""Mounts, loop devices and filesystems for tests: everything that is made here is undone by its id.

Nothing is found by name or pattern: a mount is undone by its path in the test's own directory, a daemon by the
process id that its mount reported, a loop device by the name that losetup returned.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from s3backer.mountpoint import find_mount, read_mounts, unmount

ROOT = Path(__file__).resolve().parents[2]
#: Long enough for a loaded machine; only a failing test waits for it.
PATIENCE = 60.0
#: The kernel's files of FUSE connections, where they are mounted.
CONNECTIONS = Path("/sys/fs/fuse/connections")


def why_no_mounts() -> str:
    """Return why this machine cannot run mount tests, or an empty text."""
    if os.geteuid() != 0:
        return "mounting loop devices needs root"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse cannot be opened: {error.strerror}"
    return ""


needs_mounts = pytest.mark.skipif(bool(why_no_mounts()), reason=why_no_mounts() or "mounts work")


def wait_until(condition: Any, what: str) -> Any:
    """Return the condition's first true value; fail the test with ``what`` if it stays false."""
    deadline = time.monotonic() + PATIENCE
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"in {PATIENCE:.0f} s this did not happen: {what}")
        time.sleep(0.02)


def umount(mountpoint: str | Path, *options: str) -> None:
    """Unmount with umount(8). Whoever looks into a mount keeps it busy for that moment, so it is tried again."""

    def unmounted() -> bool:
        done = subprocess.run(
            ["umount", *options, str(mountpoint)], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0 or "busy" in done.stderr, done.stderr
        return done.returncode == 0

    wait_until(unmounted, f"{mountpoint} is not busy")


def is_alive(pid: int) -> bool:
    """Whether a process (that may be nobody's child here) still runs."""
    # Not by its state in /proc: the first thread of a process can be a zombie while others still hold its files.
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        return not select.select([handle], [], [], 0)[0]
    finally:
        os.close(handle)


def wait_for_end(pid: int) -> None:
    """Wait until a process has ended."""
    wait_until(lambda: not is_alive(pid), f"process {pid} ends")


@dataclass
class Mounted:
    """A running mount. ``pid`` is the daemon's, ``process`` the one that was started."""

    mountpoint: Path
    pid: int
    process: subprocess.Popen[str]
    file: Path = field(init=False)
    stats: Path = field(init=False)

    def __post_init__(self) -> None:
        self.file = self.mountpoint / "file"
        self.stats = self.mountpoint / "stats"

    def signal(self, number: int) -> None:
        """Send a signal to the daemon."""
        os.kill(self.pid, number)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Keep the daemon from doing anything for a while."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def umount(self, *options: str) -> None:
        """Unmount with umount(8)."""
        umount(self.mountpoint, *options)

    def wait(self) -> None:
        """Wait until the daemon has ended."""
        if self.process.pid == self.pid:
            self.process.wait(PATIENCE)
        else:
            wait_for_end(self.pid)


@contextlib.contextmanager
def cut_off_after(mount: Mounted, seconds: float) -> Iterator[None]:
    """End the mount's connection if this takes longer: who hangs in the kernel for it gets an error then.

    Nothing else ends such a wait, no signal does. CONNECTIONS has to be mounted.
    """
    abort = CONNECTIONS / str(os.minor(os.stat(mount.mountpoint).st_dev)) / "abort"
    late = threading.Timer(seconds, lambda: abort.write_text("1"))
    late.start()
    try:
        yield
        assert late.is_alive(), f"the mount was cut off after {seconds:.0f} s"
    finally:
        late.cancel()
        late.join()


def environment(directory: Path) -> dict[str, str]:
    """Return the environment of a mount: its local state and sockets stay in the test's directory."""
    return {**os.environ, "XDG_STATE_HOME": str(directory / "state"), "PYTHONPATH": str(ROOT)}


def start_runner(what: Mapping[str, object], directory: Path, **options: Any) -> subprocess.Popen[str]:
    """Start a mount as described in mount_runner."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.mount_runner", json.dumps(what)],
        cwd=options.pop("cwd", ROOT),
        env=environment(directory),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run_mount(what: Mapping[str, object], directory: Path, **options: Any) -> tuple[int, str]:
    """Run a mount that is expected to come back; return its exit code and what it said."""
    process = start_runner(what, directory, **options)
    try:
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    return process.returncode, said


def runners(place: Path) -> Iterator[int]:
    """Yield the processes that mount something on ``place`` or below it.

    They name their mount point in their command line, which is unique to the test's directory.
    """
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, ValueError):
                *_, module, what, _ = (entry / "cmdline").read_bytes().split(b"\0")
                ours = module == b"tests.support.mount_runner"
                if ours and Path(json.loads(what)["mountpoint"]).is_relative_to(place):
                    yield int(entry.name)


def daemon_pid(mountpoint: Path, apart_from: int = 0) -> int:
    """Return the process that serves, or begins to serve, this mount point, 0 if there is none.

    ``apart_from`` is the process that was started, as long as it runs.
    """
    return next((pid for pid in runners(mountpoint) if pid != apart_from), 0)


@contextlib.contextmanager
def mounted(what: Mapping[str, object], directory: Path, **options: Any) -> Iterator[Mounted]:
    """Mount, and at the end unmount and see the daemon end, whatever happened."""
    mountpoint = Path(str(what["mountpoint"]))
    process = start_runner(what, directory, **options)
    foreground = bool(dict(what.get("request", {})).get("foreground"))  # type: ignore[call-overload]
    pid = process.pid if foreground else 0
    try:
        if foreground:
            wait_until(lambda: find_mount(str(mountpoint)) or process.poll() is not None, f"{mountpoint} is mounted")
        else:
            process.wait(PATIENCE)
            pid = daemon_pid(mountpoint)
        if process.poll() is not None and (foreground or process.returncode != 0):
            assert process.stderr is not None
            pytest.fail(f"the mount failed with {process.returncode}: {process.stderr.read()}")
        yield Mounted(mountpoint, pid, process)
    finally:
        _end(mountpoint, pid, process)


def _end(mountpoint: Path, pid: int, process: subprocess.Popen[str]) -> None:
    pid = pid or daemon_pid(mountpoint, process.pid)
    with contextlib.suppress(OSError):
        if find_mount(str(mountpoint)):
            unmount(str(mountpoint), lazy=True)
    try:
        if pid and is_alive(pid):
            end_process(pid)
    except ProcessLookupError:
        pass
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def end_process(pid: int) -> None:
    """See a daemon end that is about to; ask it if it does not, and kill it if that does not help."""
    handle = os.pidfd_open(pid)
    try:
        if not select.select([handle], [], [], 5)[0]:
            signal.pidfd_send_signal(handle, signal.SIGTERM)
        if not select.select([handle], [], [], 15)[0]:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    finally:
        os.close(handle)


@contextlib.contextmanager
def loop_device(file: Path, *, direct_io: str = "on") -> Iterator[str]:
    """Attach a file to a free loop device, with direct I/O unless it is to be off, and detach it at the end."""
    done = subprocess.run(
        ["losetup", f"--direct-io={direct_io}", "--show", "-f", str(file)],
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    device = done.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=True, timeout=PATIENCE)


@contextlib.contextmanager
def filesystem(device: str, mountpoint: Path, *options: str) -> Iterator[Path]:
    """Mount a filesystem and unmount it at the end."""
    mountpoint.mkdir(exist_ok=True)
    subprocess.run(["mount", *options, device, str(mountpoint)], check=True, timeout=PATIENCE)
    try:
        yield mountpoint
    finally:
        umount(mountpoint)


def mounts_below(directory: Path) -> list[str]:
    """Return what is mounted at or below a directory; what others mount meanwhile is theirs."""
    root = str(directory.resolve())
    return [mount.path for mount in read_mounts() if mount.path == root or mount.path.startswith(f"{root}/")]
