"""What was acknowledged is in the bucket: fsync and close wait for it, and so does every way to end a mount."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from s3backer.admin import unlock_volume
from s3backer.cli import main
from s3backer.errors import VolumeInUse
from s3backer.layouts.token import new_token, read_token, write_token
from tests.support.mounts import PATIENCE, Mounted, filesystem, is_alive, loop_device, needs_mounts, wait_until
from tests.support.workbench import BLOCK, NEVER, SIZE, Workbench, lane_first, without_lane, write_unflushed

pytestmark = needs_mounts

DATA = bytes(range(1, 251)) * 20


class Attempt:
    """A call in a thread of its own, because it may have to wait; ended by what it waits for."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.error: OSError | None = None
        self._action = action
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._action()
        except OSError as error:
            self.error = error

    @property
    def waiting(self) -> bool:
        """Whether the call has not returned yet."""
        return self._thread.is_alive()

    def join(self) -> None:
        """Wait until it returns, and raise what it raised."""
        self._thread.join(PATIENCE)
        assert not self.waiting
        if self.error is not None:
            raise self.error


@contextlib.contextmanager
def opened(mount: Mounted, flags: int = os.O_RDWR) -> Iterator[int]:
    """Open the disk; a failure at the end is of no interest."""
    descriptor = os.open(mount.file, flags)
    try:
        yield descriptor
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)


# ── fsync and close ──────────────────────────────────────────────────────────────────────────────────────────


def test_fsync_stores_what_was_written_before(volume: Workbench) -> None:
    with volume.mounted() as mount, opened(mount) as descriptor:
        os.pwrite(descriptor, DATA, 10_000)
        assert volume.stored(10_000, len(DATA)) == bytes(len(DATA))
        os.fsync(descriptor)
        assert volume.stored(10_000, len(DATA)) == DATA


@pytest.mark.parametrize("through", ["fdatasync", "O_SYNC", "O_DSYNC"])
def test_other_ways_to_ask_for_the_same(volume: Workbench, through: str) -> None:
    flags = getattr(os, through, 0) if through.startswith("O_") else 0
    with volume.mounted() as mount, opened(mount, os.O_RDWR | int(flags)) as descriptor:
        os.pwrite(descriptor, DATA, 0)
        if not flags:
            os.fdatasync(descriptor)
        assert volume.stored(0, len(DATA)) == DATA


def test_close_stores_what_was_written_before(volume: Workbench) -> None:
    with volume.mounted() as mount:
        with mount.file.open("r+b") as file:
            file.write(DATA)
            file.flush()
            assert volume.stored(0, len(DATA)) == bytes(len(DATA))
        assert volume.stored(0, len(DATA)) == DATA


@without_lane
@pytest.mark.parametrize("what", ["fsync", "close"])
def test_lazy_fsync_returns_at_once_and_the_log_says_so(bench: Workbench, what: str) -> None:
    with bench.mounted(fake=True, request={"lazy_fsync": True, "foreground": True}) as mount:
        descriptor = os.open(mount.file, os.O_RDWR)
        os.pwrite(descriptor, DATA, 0)
        with bench.turned("hold-flush"):
            (os.fsync if what == "fsync" else os.close)(descriptor)
        if what == "fsync":
            os.close(descriptor)
        assert subprocess.run(["umount", str(mount.mountpoint)], check=False).returncode == 0
        mount.process.wait(PATIENCE)
        assert mount.process.stderr is not None
        assert "says yes and does nothing" in mount.process.stderr.read()


@without_lane
@pytest.mark.parametrize("what", ["fsync", "close"])
def test_it_waits_as_long_as_the_store_does(bench: Workbench, what: str) -> None:
    with bench.mounted(fake=True) as mount:
        descriptor = os.open(mount.file, os.O_RDWR)
        os.pwrite(descriptor, DATA, 0)
        with bench.turned("hold-flush"):
            attempt = Attempt(lambda: (os.fsync if what == "fsync" else os.close)(descriptor))
            bench.wait_reached("hold-flush")
            # Others are served meanwhile.
            assert mount.file.stat().st_size == SIZE
            assert mount.stats.read_bytes()
            assert attempt.waiting
        attempt.join()
        if what == "fsync":
            os.close(descriptor)


@without_lane
@pytest.mark.parametrize("what", ["fsync", "close"])
def test_a_failure_is_reported_and_does_not_stick(bench: Workbench, what: str) -> None:
    with bench.mounted(fake=True) as mount:
        descriptor = os.open(mount.file, os.O_RDWR)
        os.pwrite(descriptor, DATA, 0)
        with bench.turned("fail-flush"), pytest.raises(OSError) as caught:
            (os.fsync if what == "fsync" else os.close)(descriptor)
        assert caught.value.errno == errno.EIO
        with contextlib.ExitStack() as stack:
            if what == "close":
                descriptor = stack.enter_context(opened(mount))
            os.fsync(descriptor)
            if what == "fsync":
                os.close(descriptor)


def test_fsync_on_a_store_that_is_gone_is_an_error_until_it_is_back(volume: Workbench) -> None:
    away = volume.directory / "away"
    with volume.mounted() as mount, opened(mount) as descriptor:
        os.pwrite(descriptor, DATA, 0)
        volume.bucket.rename(away)
        try:
            with pytest.raises(OSError) as caught:
                os.fsync(descriptor)
            assert caught.value.errno == errno.EIO
            # What was written is still what is read.
            assert os.pread(descriptor, len(DATA), 0) == DATA
        finally:
            away.rename(volume.bucket)
        os.fsync(descriptor)
        assert volume.stored(0, len(DATA)) == DATA


@without_lane
@pytest.mark.parametrize("what", ["read", "write"])
def test_a_store_that_fails_is_an_io_error(bench: Workbench, what: str) -> None:
    with bench.mounted(fake=True) as mount, opened(mount) as descriptor, bench.turned(f"fail-{what}"):
        with pytest.raises(OSError) as caught:
            if what == "read":
                os.pread(descriptor, 10, 100_000)
            else:
                os.pwrite(descriptor, DATA, 100_000)
        assert caught.value.errno == errno.EIO


def test_syncing_a_filesystem_on_a_loop_device_reaches_the_bucket(bench: Workbench, tmp_path: Path) -> None:
    bench.create(size=32 << 20, block_size=64 << 10)
    content = b"found again by its content " * 5000

    def stored() -> bool:
        return content[:64] in bench.stored(0, 32 << 20, 64 << 10)

    with bench.mounted() as mount, loop_device(mount.file) as device:
        subprocess.run(["mkfs.ext4", "-q", device], check=True, timeout=PATIENCE)
        with filesystem(device, tmp_path / "ext4") as place:
            (place / "file").write_bytes(content)
            assert not stored()
            subprocess.run(["sync", "-f", str(place / "file")], check=True, timeout=PATIENCE)
            assert stored()


# ── one who waits stops nobody ───────────────────────────────────────────────────────────────────────────────


@without_lane
def test_a_reader_that_waits_stops_no_other(bench: Workbench) -> None:
    with bench.mounted(fake=True) as mount, opened(mount) as descriptor, bench.turned("hold-read"):
        # More than libfuse's own number of threads; the kernel reads ahead for each.
        held = [Attempt(lambda n=n: os.pread(descriptor, 1, (n + 1) * 128 * 1024)) for n in range(7)]  # type: ignore[misc]
        bench.wait_reached("hold-read")
        assert os.pread(descriptor, 100, 0) == bytes(100)
        os.pwrite(descriptor, DATA, 0)
        os.fsync(descriptor)
        assert all(attempt.waiting for attempt in held)
        bench.release("hold-read")
        for attempt in held:
            attempt.join()


# ── every way to end a mount ─────────────────────────────────────────────────────────────────────────────────


def by_signal(number: signal.Signals) -> Callable[[Mounted], None]:
    """Return an ending by a signal."""
    return lambda mount: mount.signal(number)


def by_fusermount(mount: Mounted) -> None:
    """End a mount as its user does who is not root."""
    subprocess.run(["fusermount", "-u", mount.mountpoint], check=True, timeout=PATIENCE)


ENDINGS: dict[str, Callable[[Mounted], None]] = {
    **{n.name: by_signal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)},
    "umount": lambda mount: mount.umount(),
    "umount -l": lambda mount: mount.umount("-l"),
    "fusermount -u": by_fusermount,
}


@pytest.mark.parametrize("foreground", [False, True], ids=["background", "foreground"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_every_ending_stores_everything(volume: Workbench, ending: str, foreground: bool) -> None:
    with volume.mounted(foreground=foreground) as mount:
        write_unflushed(mount.file, 8 * BLOCK, DATA)
        assert volume.stored(8 * BLOCK, len(DATA)) == bytes(len(DATA))
        assert volume.token.exists()
        ENDINGS[ending](mount)
        mount.wait()
        assert volume.stored(8 * BLOCK, len(DATA)) == DATA
        volume.wait_for_nothing()
        if foreground:
            assert mount.process.returncode == 0


@pytest.mark.parametrize("ending", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_ends_it_while_a_file_is_open(volume: Workbench, ending: str) -> None:
    with volume.mounted() as mount, opened(mount) as descriptor:
        os.pwrite(descriptor, DATA, 4 * BLOCK)
        ENDINGS[ending](mount)
        mount.wait()
        assert volume.stored(4 * BLOCK, len(DATA)) == DATA
        volume.wait_for_nothing()
        with pytest.raises(OSError):
            os.pwrite(descriptor, DATA, 0)


def test_a_busy_mount_is_not_unmounted_and_goes_on(volume: Workbench) -> None:
    with volume.mounted() as mount, opened(mount) as descriptor:
        done = subprocess.run(["umount", mount.mountpoint], capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode != 0 and "busy" in done.stderr
        os.pwrite(descriptor, DATA, 0)
        os.fsync(descriptor)
        assert is_alive(mount.pid) and volume.token.exists()


def test_a_lazy_unmount_ends_when_the_last_file_is_closed(volume: Workbench) -> None:
    with volume.mounted() as mount:
        with opened(mount) as descriptor:
            mount.umount("-l")
            assert volume.mounts() == []
            os.pwrite(descriptor, DATA, 0)
            assert os.pread(descriptor, len(DATA), 0) == DATA
            assert is_alive(mount.pid) and volume.token.exists()
        mount.wait()
        assert volume.stored(0, len(DATA)) == DATA
        volume.wait_for_nothing()


def test_a_loop_that_ends_with_a_defect_loses_nothing(volume: Workbench) -> None:
    with volume.mounted(crash=True) as mount:
        write_unflushed(mount.file, 0, DATA)
        with contextlib.suppress(OSError):
            os.statvfs(mount.mountpoint)
        mount.wait()
        assert volume.mounts() == []
        assert volume.stored(0, len(DATA)) == DATA
        volume.wait_for_nothing()


def test_a_mount_point_that_is_removed_underneath(volume: Workbench) -> None:
    """As a process may that does not see the mount: the kernel takes the mount away then, like a lazy unmount."""
    with volume.mounted() as mount:
        with opened(mount) as descriptor:
            os.pwrite(descriptor, b"before", 0)
            elsewhere = ("unshare", "--mount", "--propagation", "private", "sh", "-c", 'umount "$0" && rmdir "$0"')
            subprocess.run([*elsewhere, str(mount.mountpoint)], check=True, timeout=PATIENCE)
            assert volume.mounts() == [] and not mount.mountpoint.exists()
            os.pwrite(descriptor, DATA, 0)
            os.fsync(descriptor)
            assert os.pread(descriptor, len(DATA), 0) == DATA
            assert is_alive(mount.pid) and volume.token.exists()
        mount.wait()
        assert volume.stored(0, len(DATA)) == DATA
        volume.wait_for_nothing()


@lane_first
def test_a_signal_that_is_ignored_at_the_start_still_ends_it(volume: Workbench) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with volume.mounted(foreground=True, options={"preexec_fn": ignore}) as mount:
        write_unflushed(mount.file, 0, DATA)
        mount.signal(signal.SIGHUP)
        mount.wait()
        assert volume.stored(0, len(DATA)) == DATA


def wait_for_line(stream: IO[str] | None, text: str) -> None:
    """Read a process's lines until one has this text."""
    assert stream is not None
    said = ""
    while text not in said:
        assert select.select([stream], [], [], PATIENCE)[0], f"{text!r} was not said, but {said!r}"
        piece = os.read(stream.fileno(), 4096).decode()
        assert piece, f"{text!r} was not said, but {said!r}"
        said += piece


@without_lane
def test_ending_waits_for_a_store_that_is_stuck_and_says_so(bench: Workbench) -> None:
    with bench.turned("stay-open"), bench.mounted(fake=True, foreground=True, stall=0.2) as mount:
        with mount.file.open("r+b") as file:
            file.write(DATA)
        mount.signal(signal.SIGTERM)
        wait_for_line(mount.process.stderr, "waiting for the store: 3 blocks are not stored")
        # A second signal changes nothing and is answered.
        mount.signal(signal.SIGTERM)
        wait_for_line(mount.process.stderr, "SIGTERM again: still ending, 3 blocks")
        assert is_alive(mount.pid)
        assert not (bench.knobs / "closed").exists()
        bench.release("stay-open")
        mount.wait()
        assert (bench.knobs / "closed").read_bytes().startswith(DATA)


@lane_first
@pytest.mark.parametrize("dirty", [True, False], ids=["blocks", "token"])
def test_ending_waits_for_a_store_that_is_away(volume: Workbench, dirty: bool) -> None:
    with volume.mounted(foreground=True) as mount:
        if dirty:
            write_unflushed(mount.file, 0, DATA)
        with volume.turned("outage"):
            mount.signal(signal.SIGTERM)
            wait_for_line(
                mount.process.stderr, "write-back is failing" if dirty else "waiting to remove the mount token"
            )
            assert is_alive(mount.pid) and volume.token.exists()
        mount.wait()
        assert mount.process.returncode == 0
        assert volume.stored(0, len(DATA)) == (DATA if dirty else bytes(len(DATA)))
        volume.wait_for_nothing()


# ── death ────────────────────────────────────────────────────────────────────────────────────────────────────


#: Seconds of a lease that a test lives to see.
SHORT = 3.0


@pytest.fixture
def killed(volume: Workbench) -> Workbench:
    """A volume whose daemon was killed after a flush and one more write."""
    with volume.mounted(volume={"lease": SHORT}) as mount, opened(mount) as descriptor:
        os.pwrite(descriptor, DATA, 0)
        os.fsync(descriptor)
        os.pwrite(descriptor, b"never flushed", 64 * BLOCK)
        mount.signal(signal.SIGKILL)
        mount.wait()
    assert volume.mounts() == []
    return volume


def said_by(mount: Mounted) -> str:
    """Return what a mount said until it was ready."""
    assert mount.process.stderr is not None
    return mount.process.stderr.read()


def elsewhere(volume: Workbench) -> dict[str, str]:
    """Options of a mount as on another host: it knows nothing of this one."""
    return {"journal_directory": str(volume.directory / "elsewhere")}


@lane_first
def test_after_kill_9_the_next_mount_on_this_host_goes_on(killed: Workbench) -> None:
    with killed.mounted() as mount, mount.file.open("rb") as file:
        assert file.read(len(DATA)) == DATA
        assert "was not unmounted" in said_by(mount)
    assert not killed.token.exists()


@lane_first
def test_after_kill_9_another_host_is_told_to_unlock_it(killed: Workbench) -> None:
    """In a directory: a process that was stopped within a write could go on with it whenever it likes."""
    host, moment, *_ = killed.token.read_text().split("\n")
    code, said = killed.run(volume=elsewhere(killed))
    assert code == 6 and f"is mounted by {host} at {moment}" in said and "s3backer unlock" in said
    unlock_volume(killed.open_store(), "", journal_directory=elsewhere(killed)["journal_directory"])
    with killed.mounted(volume=elsewhere(killed)) as mount, mount.file.open("rb") as file:
        assert file.read(len(DATA)) == DATA
    assert not killed.token.exists()


@lane_first
def test_a_mount_on_another_host_is_seen_to_be_alive(volume: Workbench) -> None:
    with volume.mounted(volume={"lease": SHORT}) as mount:
        (volume.directory / "second").mkdir()
        code, said = volume.run(volume=elsewhere(volume), mountpoint=str(volume.directory / "second"))
        assert code == 6, said
        assert "is mounted by" in said and "Unmount it first" in said
        here = str(volume.directory / "state" / "s3backer" / "journals")
        for force in (False, True):
            store = volume.open_store()
            with pytest.raises(VolumeInUse, match="that mount is alive"):
                unlock_volume(store, "", force=force)
            with pytest.raises(VolumeInUse, match="in use by another process"):
                unlock_volume(store, "", force=force, journal_directory=here)
        with opened(mount) as descriptor:
            os.pwrite(descriptor, DATA, 0)
            os.fsync(descriptor)


@pytest.mark.parametrize("journal", [0, 4 << 20], ids=["plain", "journal"])
def test_a_mount_that_was_overtaken_is_read_only_and_ends(
    volume: Workbench, journal: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with volume.mounted(volume={"lease": SHORT, "journal": journal}) as mount:
        with opened(mount) as descriptor:
            os.pwrite(descriptor, DATA, 0)
            os.fsync(descriptor)
            os.pwrite(descriptor, b"never stored", 32 * BLOCK)
            store = volume.open_store()
            before = read_token(store, "")
            other = write_token(store, "", "", new_token(random.Random(1), lease=SHORT), former=before)

            def refused() -> int | None:
                try:
                    os.pwrite(descriptor, b"x", 64 * BLOCK)
                    return None
                except OSError as error:
                    return error.errno

            assert wait_until(refused, "a write is refused") == errno.EROFS
            for _ in range(3):
                with pytest.raises(OSError, match="Input/output error"):
                    os.fsync(descriptor)
            assert os.pread(descriptor, len(DATA), 0) == DATA
        capfd.readouterr()
        assert main(["info", f"file://{volume.bucket}"]) == 0
        said = capfd.readouterr().out
        assert f"\nvolume is lost:   file://{volume.bucket} is mounted by " in said
        assert "nothing is stored from here any more" in said and "it is tried again" not in said
        # A flush could never succeed: whoever unmounts it is told what is not stored.
        assert main(["unmount", str(mount.mountpoint)]) == VolumeInUse.exit_code
        said = capfd.readouterr().err
        assert "it is tried again" not in said
        assert "blocks that were written here are not in the bucket" in said
        assert ("s3backer recover" in said) is bool(journal)
        mount.wait()
    found = read_token(store, "")
    assert found is not None and found.value == other.value
    assert volume.stored(64 * BLOCK, BLOCK) == bytes(BLOCK)


@lane_first
def test_after_kill_9_it_can_be_unlocked(killed: Workbench) -> None:
    host, *_ = killed.token.read_text().split("\n")
    began = time.monotonic()
    token = unlock_volume(killed.open_store(), "")
    assert time.monotonic() - began >= SHORT
    assert token is not None and token.host == host
    with killed.mounted() as mount, mount.file.open("rb") as file:
        assert file.read(len(DATA)) == DATA


@lane_first
def test_force_takes_over_from_a_dead_one(volume: Workbench) -> None:
    with volume.mounted() as mount:
        mount.signal(signal.SIGKILL)
        mount.wait()
    old = volume.token.read_bytes()
    with volume.mounted(volume={"force": True}):
        assert volume.token.read_bytes() != old
    assert not volume.token.exists()


@lane_first
def test_the_dead_mount_itself_names_what_is_wrong(volume: Workbench) -> None:
    with volume.mounted() as mount:
        mount.signal(signal.SIGKILL)
        mount.wait()
        before = volume.mounts()
        code, said = volume.run(volume={"force": True})
        assert code == 7 and "dead mount" in said and f"fusermount -u {mount.mountpoint}" in said
        assert volume.mounts() == before


def test_a_writer_that_is_killed_leaves_what_it_flushed(volume: Workbench) -> None:
    writer = (
        "import os, sys, time\n"
        "number = os.open(sys.argv[1], os.O_RDWR)\n"
        "os.pwrite(number, b'flushed', 0); os.fsync(number); print('done', flush=True); time.sleep(3600)\n"
    )
    with volume.mounted() as mount:
        process = subprocess.Popen([sys.executable, "-c", writer, str(mount.file)], stdout=subprocess.PIPE, text=True)
        try:
            wait_for_line(process.stdout, "done")
        finally:
            process.kill()
            process.communicate()
        mount.umount()
        mount.wait()
    assert volume.stored(0, 7) == b"flushed"
    assert NEVER > PATIENCE
