"""The loop devices of this machine: which are on a mount, and in the way of its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from s3backer.mountpoint import loop_devices
from tests.support.mounts import PATIENCE, environment, needs_mounts, wait_until
from tests.support.tools import run
from tests.support.workbench import Workbench, without_lane


def attach(sys_block: Path, name: str, file: bytes) -> None:
    """Show a loop device as the kernel does."""
    place = sys_block / name / "loop"
    place.mkdir(parents=True)
    (place / "backing_file").write_bytes(file + b"\n")


def test_files_whose_names_are_no_text_are_compared(tmp_path: Path) -> None:
    attach(tmp_path, "loop0", b"/home/\xe9.img")
    attach(tmp_path, "loop1", b"/mnt/file")
    attach(tmp_path, "loop2", b"/mnt/a\n")
    assert loop_devices("/mnt/file", str(tmp_path)) == ["/dev/loop1"]
    assert loop_devices(os.fsdecode(b"/home/\xe9.img"), str(tmp_path)) == ["/dev/loop0"]
    assert loop_devices("/mnt/a\n", str(tmp_path)) == ["/dev/loop2"]


def test_those_below_a_mount(tmp_path: Path) -> None:
    for number, file in enumerate((b"/mnt/file", b"/mnt2/file", b"/mnt/b/c", b"/mnt")):
        attach(tmp_path, f"loop{number}", file)
    assert loop_devices("/mnt", str(tmp_path)) == ["/dev/loop0", "/dev/loop2", "/dev/loop3"]


@needs_mounts
@without_lane
def test_a_dead_mount_is_freed_from_its_loop_device_first(volume: Workbench) -> None:
    unmount = [sys.executable, "-m", "s3backer", "unmount", str(volume.mountpoint)]
    with volume.mounted() as mount, ExitStack() as undo:
        device = run("losetup", "--show", "-f", str(mount.file)).strip()
        undo.callback(run, "losetup", "-d", device)
        mount.signal(signal.SIGKILL)
        mount.wait()
        command = f"losetup -d {device} && fusermount -u {mount.mountpoint}"
        code, said = volume.run()
        assert code == 7 and "is a dead mount" in said
        assert said.endswith(f"Unmount what is on it, then: {command}\n")

        def answer() -> subprocess.CompletedProcess[str] | None:
            done = subprocess.run(
                unmount,
                env=environment(volume.directory),
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
            # A test beside this one may have stopped a daemon.
            return None if "which may serve it" in done.stderr else done

        done = wait_until(answer, "no other daemon is stopped")
        assert done.returncode == 7 and "cannot be unmounted: Device or resource busy" in done.stderr
        assert done.stderr.endswith(f"Unmount what is on it, then: {command}\n")
        # The hint helps.
        subprocess.run(command, shell=True, check=True, timeout=PATIENCE)
        undo.pop_all()
        assert volume.mounts() == []
