"""Starting a mount: what the caller learns, what the daemon keeps, and that a refusal changes nothing."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s3backer.errors import MountError
from s3backer.mountpoint import check_fuse
from tests.support.cache_files import put_cache_file
from tests.support.mounts import (
    PATIENCE,
    ROOT,
    environment,
    is_alive,
    needs_mounts,
    start_runner,
    umount,
    wait_until,
)
from tests.support.workbench import BLOCK, SIZE, Workbench, without_lane

pytestmark = needs_mounts


# ── success ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_caller_returns_when_the_file_can_be_read_and_written(volume: Workbench) -> None:
    with volume.mounted() as mount:
        # Nothing waits here: the caller has returned, so it works.
        assert mount.process.returncode == 0
        assert mount.pid not in (0, mount.process.pid)
        with mount.file.open("r+b") as file:
            file.write(b"at once")
        assert mount.file.read_bytes()[:7] == b"at once"
        assert volume.socket.exists() and volume.token.exists()


@without_lane
def test_the_caller_waits_for_the_first_read(bench: Workbench) -> None:
    # Not the first block, which the fake never holds: the whole flush at the end of the caller's look is held.
    with bench.turned("hold-flush"):
        process = start_runner(bench.what(fake=True), bench.directory)
        try:
            bench.wait_reached("hold-flush")
            assert bench.mounts() == [str(bench.mountpoint)]
            assert process.poll() is None
            bench.release("hold-flush")
            assert process.wait(PATIENCE) == 0
        finally:
            bench.close(process)
        bench.wait_for_nothing()


def test_in_the_foreground_the_caller_serves(volume: Workbench) -> None:
    with volume.mounted(foreground=True) as mount:
        wait_until(lambda: os.path.exists(mount.file), "the file is there")
        assert mount.process.poll() is None
        mount.umount()
        assert mount.process.wait(PATIENCE) == 0
        assert mount.process.stderr is not None
        assert "is mounted on" in mount.process.stderr.read()
    volume.wait_for_nothing()


# ── what the daemon keeps of its caller ──────────────────────────────────────────────────────────────────────


def test_the_daemon_belongs_to_nobody(volume: Workbench) -> None:
    with volume.mounted() as mount:
        process = Path("/proc", str(mount.pid))
        assert os.readlink(process / "cwd") == "/"
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        parent, session, terminal = int(fields[1]), int(fields[3]), int(fields[4])
        assert terminal == 0
        assert parent not in (mount.process.pid, os.getpid())
        # Neither the caller's session nor the leader of its own, which could get a terminal again.
        assert session not in (os.getsid(0), mount.pid)
        for number in (0, 1, 2):
            assert os.readlink(process / "fd" / str(number)) == "/dev/null"


def test_the_daemon_keeps_no_descriptor(volume: Workbench, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    extra = os.open(tmp_path / "inherited", os.O_CREAT | os.O_RDWR)
    # Far away as well, where a loop up to some limit would not look.
    far = fcntl.fcntl(writer, fcntl.F_DUPFD, 900)
    try:
        with volume.mounted(options={"pass_fds": (writer, extra, far)}) as mount:
            os.close(writer)
            os.close(far)
            writer = far = -1
            # The caller is gone and the daemon holds no end, so the reader meets the end of the file.
            assert select.select([reader], [], [], PATIENCE)[0]
            assert os.read(reader, 1) == b""
            held = {os.readlink(entry) for entry in Path("/proc", str(mount.pid), "fd").iterdir()}
            assert str(tmp_path / "inherited") not in held
            # The streams of the caller too: whoever reads them learns that it is done.
            assert mount.process.communicate(timeout=PATIENCE) == ("", "")
            assert is_alive(mount.pid)
    finally:
        for number in (reader, writer, far, extra):
            if number >= 0:
                os.close(number)


def test_a_caller_without_standard_streams(volume: Workbench) -> None:
    def close() -> None:
        for number in (0, 1, 2):
            os.close(number)

    with volume.mounted(options={"preexec_fn": close}) as mount:
        for number in (0, 1, 2):
            assert os.readlink(f"/proc/{mount.pid}/fd/{number}") == "/dev/null"
        assert mount.file.stat().st_size == SIZE


def test_paths_do_not_depend_on_the_callers_directory(volume: Workbench) -> None:
    process = start_runner(volume.what(mountpoint="mnt"), volume.directory, cwd=volume.directory)
    try:
        assert process.wait(PATIENCE) == 0
        assert volume.mounts() == [str(volume.mountpoint)]
        assert (volume.mountpoint / "file").stat().st_size == SIZE
    finally:
        umount(volume.mountpoint)
        process.communicate()
    wait_until(lambda: not volume.token.exists(), "the token is removed")


# ── failure ──────────────────────────────────────────────────────────────────────────────────────────────────


@without_lane
@pytest.mark.parametrize(
    ("fail", "code", "text"), [("raise", 1, "ValueError('a defect')"), ("silently", 7, "ended without a word")]
)
def test_the_caller_hears_of_a_daemon_that_fails(bench: Workbench, fail: str, code: int, text: str) -> None:
    answer, said = bench.run(fake=True, fail=fail)
    assert answer == code
    assert text in said and len(said.splitlines()) == 2 and "Traceback" not in said
    bench.wait_for_nothing()


@without_lane
def test_the_caller_hears_what_the_store_said(bench: Workbench) -> None:
    before = bench.tree()
    code, said = bench.run()
    assert code == 5
    assert said.startswith("there is no volume at ") and "s3backer create" in said
    assert bench.tree() == before
    bench.wait_for_nothing()


@without_lane
def test_a_disk_that_cannot_be_used_is_unmounted_again(bench: Workbench) -> None:
    # The fake's first block can always be read, but the look at it ends with a close.
    with bench.turned("fail-flush"):
        code, said = bench.run(fake=True, request={"file_name": "disk"})
    assert code == 7
    assert f"{bench.mountpoint}/disk was mounted, but cannot be used: Input/output error" in said
    assert (bench.knobs / "closed").exists()
    bench.wait_for_nothing()


def test_a_daemon_that_is_killed_while_it_starts(volume: Workbench) -> None:
    (volume.knobs / "hold-verify").touch()
    process = start_runner(volume.what(), volume.directory)
    try:
        volume.wait_reached("hold-verify")
        os.kill(volume.daemon(process.pid), signal.SIGKILL)
        wait_until(lambda: not volume.daemon(process.pid), "the daemon is dead")
        volume.release("hold-verify")
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 7
        assert "Traceback" not in said and len(said.splitlines()) == 2
    finally:
        volume.close(process)


def test_a_mount_that_is_undone_while_it_starts(volume: Workbench) -> None:
    (volume.knobs / "hold-verify").touch()
    process = start_runner(volume.what(), volume.directory)
    try:
        volume.wait_reached("hold-verify")
        umount(volume.mountpoint)
        volume.release("hold-verify")
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 7
        assert "Traceback" not in said and len(said.splitlines()) == 2
    finally:
        volume.close(process)
    volume.wait_for_nothing()


# ── a caller that dies ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
@pytest.mark.parametrize("knob", ["hold-open", "hold-verify"])
def test_when_the_caller_is_killed_nothing_is_left(volume: Workbench, number: signal.Signals, knob: str) -> None:
    (volume.knobs / knob).touch()
    process = start_runner(volume.what(), volume.directory)
    try:
        volume.wait_reached(knob)
        daemon = volume.daemon(process.pid)
        assert daemon
        assert volume.mounts() == ([str(volume.mountpoint)] if knob == "hold-verify" else [])
        process.send_signal(number)
        process.communicate(timeout=PATIENCE)
        assert process.returncode != 0
        wait_until(lambda: not is_alive(daemon), "the daemon ends")
        volume.wait_for_nothing()
    finally:
        volume.close(process)


@without_lane
@pytest.mark.parametrize("journal", [0, 4 << 20], ids=["without a journal", "with a journal"])
@pytest.mark.parametrize("how", ["caller", "daemon", "foreground"])
def test_a_mount_that_waits_for_its_store_can_be_stopped(volume: Workbench, how: str, journal: int) -> None:
    """It has written nothing, so that there is nothing to wait for, and nothing hinders the next one."""
    what: dict[str, Any] = {"volume": {"journal": journal, "journal_directory": str(volume.directory / "journals")}}
    before = volume.tree()
    (volume.knobs / "hold-head").touch()
    process = start_runner(volume.what(foreground=how == "foreground", **what), volume.directory)
    try:
        volume.wait_reached("hold-head")
        daemon = process.pid if how == "foreground" else volume.daemon(process.pid)
        os.kill(process.pid if how == "caller" else daemon, signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == {"caller": -signal.SIGINT, "daemon": 7, "foreground": 130}[how], said
        assert how == "caller" or "stopped by a signal before the mount was ready" in said
        wait_until(lambda: not is_alive(daemon), "the daemon ends")
        assert volume.tree() == before
        volume.wait_for_nothing()
    finally:
        volume.close(process)
    with volume.mounted(**what) as mount:
        assert mount.file.stat().st_size == SIZE


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────


def refuse(
    volume: Workbench, code: int, *texts: str, run: Callable[[], tuple[int, str]] | None = None, **more: Any
) -> None:
    """See a mount refused with these texts, in one sentence and a hint, and nothing changed."""
    before = volume.tree(), volume.mounts()
    answer, said = run() if run else volume.run(**more)
    assert answer == code, said
    message, hint = said.splitlines()
    assert message and hint
    for text in texts:
        assert text in said
    assert (volume.tree(), volume.mounts()) == before
    assert not volume.socket.exists()


@without_lane
def test_a_mount_point_that_is_missing(volume: Workbench) -> None:
    volume.mountpoint.rmdir()
    refuse(volume, 7, f"mount point {volume.mountpoint} does not exist", f"mkdir -p {volume.mountpoint}")
    assert not volume.mountpoint.exists()


@without_lane
def test_a_mount_point_that_is_a_file(volume: Workbench) -> None:
    volume.mountpoint.rmdir()
    volume.mountpoint.write_text("content")
    refuse(volume, 7, "is not a directory")


@without_lane
def test_a_mount_point_below_a_file(volume: Workbench) -> None:
    (volume.mountpoint / "a").write_text("")
    refuse(volume, 7, "cannot be used: Not a directory", mountpoint=str(volume.mountpoint / "a" / "b"))


def test_a_mount_point_that_is_not_empty(volume: Workbench) -> None:
    (volume.mountpoint / "precious").write_text("content")
    refuse(volume, 7, "is not empty", "-o nonempty")
    with volume.mounted(request={"fuse_options": ["nonempty"]}) as mount:
        assert sorted(os.listdir(mount.mountpoint)) == ["file", "stats"]
        mount.umount()
        mount.wait()
    assert (volume.mountpoint / "precious").read_text() == "content"


def test_a_mount_point_with_a_volume_on_it(volume: Workbench, other: Workbench) -> None:
    with volume.mounted() as mount:
        refuse(
            other,
            7,
            f"file://{volume.bucket} is already mounted on {mount.mountpoint}",
            f"s3backer unmount {mount.mountpoint}",
            mountpoint=str(mount.mountpoint),
        )
        assert mount.file.stat().st_size == SIZE and is_alive(mount.pid)


@without_lane
def test_a_mount_point_whose_daemon_is_stopped(volume: Workbench, other: Workbench) -> None:
    """Whatever is asked of it would wait for ever."""
    with volume.mounted() as mount, mount.stopped():
        time.sleep(1.5)
        said = f"file://{volume.bucket} is already mounted on {mount.mountpoint}"
        refuse(other, 7, said, mountpoint=str(mount.mountpoint))


@without_lane
def test_a_stopped_daemon_keeps_nobody_waiting_who_looks_for_the_users_of_another_file(
    volume: Workbench, other: Workbench, tmp_path: Path
) -> None:
    cache = put_cache_file(tmp_path / "cache", [], block_size=BLOCK, token=1)
    with volume.mounted() as mount:
        with mount.file.open("r+b") as file:
            user = subprocess.Popen(["sleep", "infinity"], stdin=file)
            # What the kernel knew of the file is out of date then.
            file.write(b"x")
        try:
            with mount.stopped():
                time.sleep(1.5)
                what = [sys.executable, "-m", "s3backer", "import-cache", str(cache), f"file://{other.bucket}"]
                asked = subprocess.Popen(what, stderr=subprocess.PIPE, text=True)
                said = asked.communicate(timeout=PATIENCE)[1]
        finally:
            user.kill()
            user.wait()
        assert (asked.returncode, said) == (0, "")


def test_a_dead_mount(volume: Workbench, other: Workbench) -> None:
    with volume.mounted() as mount:
        mount.signal(signal.SIGKILL)
        mount.wait()
        for _ in range(2):
            refuse(
                other,
                7,
                f"mount point {mount.mountpoint} is a dead mount",
                f"fusermount -u {mount.mountpoint}",
                mountpoint=str(mount.mountpoint),
            )
        # The hint helps.
        subprocess.run(["fusermount", "-u", mount.mountpoint], check=True, timeout=PATIENCE)
        with other.mounted(mountpoint=str(mount.mountpoint)):
            assert mount.file.stat().st_size == SIZE


@without_lane
def test_what_is_told_to_run_can_be_run_whatever_the_mount_point_is_called(volume: Workbench) -> None:
    place = volume.directory / "it's a place; not two"
    _, said = volume.run(mountpoint=str(place))
    subprocess.run(said.rpartition("Create it: ")[2], shell=True, check=True, timeout=PATIENCE)
    assert place.is_dir()
    with volume.mounted(mountpoint=str(place)) as mount:
        _, said = volume.run()
        assert shlex.split(said.rpartition("Unmount it first: ")[2]) == ["s3backer", "unmount", str(place)]
        mount.signal(signal.SIGKILL)
        mount.wait()
        _, said = volume.run(mountpoint=str(place))
        subprocess.run(said.rpartition("Remove it first: ")[2], shell=True, check=True, timeout=PATIENCE)
        assert volume.mounts() == []


def test_a_volume_that_is_mounted_already(volume: Workbench, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    with volume.mounted() as mount:
        before = volume.tree(), volume.mounts()
        code, said = volume.run(mountpoint=str(tmp_path / "second"))
        assert code == 6
        host, moment, *_ = volume.token.read_text().split("\n")
        assert f"is mounted by {host} at {moment}" in said
        assert f"here on {mount.mountpoint} by process {mount.pid}\n" in said
        assert f"s3backer unmount {mount.mountpoint}\n" in said
        assert (volume.tree(), volume.mounts()) == before
        assert is_alive(mount.pid) and volume.socket.exists()
        # Reading beside the writer is allowed.
        with volume.mounted(mountpoint=str(tmp_path / "second"), volume={"read_only": True}) as second:
            assert second.file.stat().st_size == SIZE
        assert volume.token.exists() and volume.socket.exists()


@without_lane
def test_a_volume_whose_daemon_is_stopped(volume: Workbench, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    with volume.mounted() as mount:
        with mount.stopped():
            code, said = volume.run(mountpoint=str(tmp_path / "second"))
        assert code == 6
        assert f"process {mount.pid} serves this volume and does not answer: it is stopped" in said
        assert f"kill -CONT {mount.pid}" in said


@without_lane
def test_a_mount_point_that_somebody_else_takes_meanwhile(volume: Workbench, other: Workbench) -> None:
    (volume.knobs / "hold-open").touch()
    process = start_runner(volume.what(), volume.directory)
    try:
        volume.wait_reached("hold-open")
        with other.mounted(mountpoint=str(volume.mountpoint)):
            volume.release("hold-open")
            _, said = process.communicate(timeout=PATIENCE)
            assert process.returncode == 7
            assert f"file://{other.bucket} is already mounted on {volume.mountpoint}" in said
            assert f"s3backer unmount {volume.mountpoint}" in said
    finally:
        volume.close(process)
    volume.wait_for_nothing()


@without_lane
def test_a_mount_point_inside_the_volumes_own_directory(volume: Workbench) -> None:
    inside = volume.bucket / "inside"
    inside.mkdir()
    refuse(volume, 7, "lie in each other", mountpoint=str(inside))
    inside.rmdir()
    refuse(volume, 7, "lie in each other", mountpoint=str(volume.directory), request={"fuse_options": ["nonempty"]})


@without_lane
@pytest.mark.parametrize(
    ("request_fields", "code", "text"),
    [
        ({"file_name": "same", "stats_name": "same"}, 2, "the same name"),
        ({"file_name": "a/b"}, 2, "'a/b' cannot be the name of a file"),
        ({"file_name": ""}, 2, "'' cannot be the name of a file"),
        ({"stats_name": ".."}, 2, "'..' cannot be the name of a file"),
        ({"file_name": "x" * 256}, 2, "cannot be the name of a file"),
        ({"fuse_options": ["no_such_option"]}, 2, "mount option 'no_such_option'"),
        ({"fuse_options": ["max_read=many"]}, 2, "mount option 'max_read=many'"),
        ({"fuse_options": ["subtype=a,b"]}, 7, "without commas"),
    ],
)
def test_names_and_options_that_cannot_be(
    volume: Workbench, request_fields: dict[str, object], code: int, text: str
) -> None:
    refuse(volume, code, text, request=request_fields)


@without_lane
def test_a_machine_without_fuse(volume: Workbench) -> None:
    # In a mount namespace of its own, where /dev holds nothing that is of use here.
    empty = volume.directory / "dev"
    empty.mkdir()
    (empty / "null").touch()
    runner = [sys.executable, "-m", "tests.support.mount_runner", json.dumps(volume.what())]

    def run() -> tuple[int, str]:
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", 'mount --bind "$1" /dev && shift && exec "$@"', "sh", empty, *runner],
            cwd=ROOT,
            env=environment(volume.directory),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        return done.returncode, done.stderr

    refuse(volume, 7, "/dev/fuse does not exist", "modprobe fuse", run=run)


def test_the_device_is_missing_or_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MountError, match="does not exist") as missing:
        check_fuse(str(tmp_path / "fuse"))
    assert "modprobe fuse" in missing.value.hint and "--device /dev/fuse" in missing.value.hint
    with pytest.raises(MountError, match="cannot be opened") as directory:
        check_fuse(str(tmp_path))
    assert directory.value.hint

    def forbid(*_: object) -> int:
        raise PermissionError

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", forbid)
        with pytest.raises(MountError, match="may not open") as closed:
            check_fuse()
    assert "chmod 666 /dev/fuse" in closed.value.hint
    check_fuse()


def test_users_need_fusermount_and_root_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    check_fuse("/dev/null")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(MountError, match="fusermount was not found") as missing:
        check_fuse("/dev/null")
    assert "apt install fuse" in missing.value.hint
    (tmp_path / "fusermount").write_text("#!/bin/sh\n")
    (tmp_path / "fusermount").chmod(0o755)
    check_fuse("/dev/null")
