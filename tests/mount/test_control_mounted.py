"""The commands that a daemon answers while its volume is mounted."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from s3backer.cli import main
from s3backer.cli import unmount as unmount_module
from s3backer.control.asking import call
from s3backer.control.messages import processes
from s3backer.errors import S3backerError
from s3backer.mountpoint import find_mount, unmount
from tests.support.mounts import Mounted, is_alive, loop_device, needs_mounts, wait_until
from tests.support.tools import run
from tests.support.workbench import BLOCK, SIZE, Workbench, lane_first, without_lane, write_unflushed

pytestmark = needs_mounts

DATA = b"data" * 2000


def ask(volume: Workbench, command: str, **arguments: object) -> dict[str, object]:
    """Return the daemon's answer; there must be a daemon."""
    answer = call(volume.ident, command, arguments)
    assert answer is not None
    return answer


def refused(volume: Workbench, command: str, **arguments: object) -> S3backerError:
    """Return the error that a command is answered with."""
    with pytest.raises(S3backerError) as caught:
        ask(volume, command, **arguments)
    return caught.value


# ── info and flush ───────────────────────────────────────────────────────────────────────────────────────────


def test_info(volume: Workbench) -> None:
    with volume.mounted(volume={"read_only": False}) as mount:
        write_unflushed(mount.file, 0, DATA)
        facts = ask(volume, "info")
        assert facts["pid"] == mount.pid
        assert facts["mountpoint"] == str(mount.mountpoint)
        assert facts["file"] == str(mount.file)
        assert (facts["size"], facts["block_size"], facts["read_only"]) == (SIZE, BLOCK, False)
        assert facts["unsaved_blocks"] == -(-len(DATA) // BLOCK)
        requests = facts["requests"]
        assert isinstance(requests, dict) and requests["put"]
    assert call(volume.ident, "info") is None


def test_info_tells_that_write_back_fails_as_long_as_it_does(volume: Workbench) -> None:
    with volume.mounted() as mount:
        write_unflushed(mount.file, 0, DATA)
        assert ask(volume, "info")["write_back_error"] is None
        with volume.turned("outage"):
            refused(volume, "flush")
            facts = ask(volume, "info")
            assert (facts["write_back_error"], facts["unsaved_blocks"]) == ("the store is away", 2)
        ask(volume, "flush")
        facts = ask(volume, "info")
        assert (facts["write_back_error"], facts["unsaved_blocks"]) == (None, 0)


def test_flush(volume: Workbench) -> None:
    with volume.mounted() as mount:
        write_unflushed(mount.file, 0, DATA)
        assert volume.stored(0, len(DATA)) == bytes(len(DATA))
        assert ask(volume, "flush") == {"unsaved_blocks": 0}
        assert volume.stored(0, len(DATA)) == DATA


@without_lane
def test_flush_reports_progress_and_failure(bench: Workbench) -> None:
    with bench.mounted(fake=True):
        heard: list[dict[str, object]] = []
        several = threading.Event()

        def on_progress(facts: dict[str, object]) -> None:
            heard.append(facts)
            if len(heard) == 2:
                bench.release("hold-flush")
                several.set()

        (bench.knobs / "hold-flush").touch()
        assert call(bench.ident, "flush", on_progress=on_progress) == {"unsaved_blocks": 3}
        left = {"unsaved_blocks": 3, "write_back_error": None, "lost": False, "stores_in": 0.0}
        assert several.is_set() and heard[0] == left
        with bench.turned("fail-flush"):
            error = refused(bench, "flush")
        assert (error.message, error.hint, error.exit_code) == ("the store at 127.0.0.1 is away", "Wait.", 3)


def test_a_command_that_is_not_known(volume: Workbench) -> None:
    with volume.mounted():
        error = refused(volume, "explode")
        assert error.exit_code == 2 and "info" in error.hint


# ── resize ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_growing_is_seen_through_the_mount_and_a_loop_device(volume: Workbench) -> None:
    with volume.mounted() as mount, loop_device(mount.file) as device:
        # More than once, because the kernel is told in its own time and has to have it when the answer comes.
        for step in range(1, 9):
            size = SIZE + step * 64 * BLOCK
            answer = ask(volume, "resize", size=size)
            assert (answer["size"], answer["old_size"]) == (size, size - 64 * BLOCK)
            assert answer["loop_devices"] == [device]
            run("losetup", "-c", device)
            assert int(run("blockdev", "--getsize64", device)) == size
            assert mount.file.stat().st_size == size
        with mount.file.open("r+b") as file:
            file.seek(size - 4)
            assert os.write(file.fileno(), b"end, and more") == 4
    with volume.mounted() as mount:
        assert mount.file.stat().st_size == size
        assert mount.file.read_bytes()[SIZE:].rstrip(b"\0") == bytes(size - SIZE - 4) + b"end,"


def test_what_was_written_beyond_the_end_does_not_come_back(volume: Workbench) -> None:
    with volume.mounted() as mount:
        descriptor = os.open(mount.file, os.O_RDWR)
        try:
            assert os.pwrite(descriptor, b"x" * 100, SIZE - 10) == 10
            ask(volume, "resize", size=2 * SIZE)
            assert os.pread(descriptor, 200, SIZE - 10) == b"x" * 10 + bytes(190)
        finally:
            os.close(descriptor)


def test_shrinking_refuses_while_data_lies_beyond(volume: Workbench) -> None:
    with volume.mounted() as mount:
        with mount.file.open("r+b") as file:
            file.write(b"front")
            file.seek(SIZE - BLOCK)
            file.write(DATA[:BLOCK])
        error = refused(volume, "resize", size=SIZE // 2)
        assert error.exit_code == 2 and "beyond the new end" in error.message and "--discard" in error.hint
        assert mount.file.stat().st_size == SIZE
        assert volume.stored(SIZE - BLOCK, BLOCK) == DATA[:BLOCK]

        answer = ask(volume, "resize", size=SIZE // 2, discard=True)
        assert (answer["size"], answer["old_size"]) == (SIZE // 2, SIZE)
        assert mount.file.stat().st_size == SIZE // 2
        assert volume.stored(SIZE - BLOCK, BLOCK) == bytes(BLOCK)
        # Neither in the cache nor in the kernel's pages.
        ask(volume, "resize", size=SIZE)
        with mount.file.open("rb") as file:
            assert file.read() == b"front".ljust(SIZE, b"\0")


def test_shrinking_refuses_for_data_that_is_not_stored_yet(volume: Workbench) -> None:
    with volume.mounted() as mount:
        write_unflushed(mount.file, SIZE - 2 * BLOCK, DATA)
        assert "beyond the new end" in refused(volume, "resize", size=SIZE // 2).message
        assert mount.file.stat().st_size == SIZE


def test_shrinking_where_nothing_lies_beyond(volume: Workbench) -> None:
    with volume.mounted() as mount, loop_device(mount.file) as device:
        assert ask(volume, "resize", size=SIZE // 2)["size"] == SIZE // 2
        run("losetup", "-c", device)
        assert int(run("blockdev", "--getsize64", device)) == SIZE // 2


def test_sizes_that_cannot_be(volume: Workbench) -> None:
    with volume.mounted() as mount:
        for size in (0, -BLOCK, BLOCK + 1, "1GiB", None, True, 1.5, (1 << 32) * BLOCK):
            error = refused(volume, "resize", size=size)
            assert error.exit_code == 2 and error.message and error.hint, size
            assert mount.file.stat().st_size == SIZE, size


def test_a_read_only_mount_is_not_resized(volume: Workbench) -> None:
    with volume.mounted(volume={"read_only": True}) as mount:
        assert "read-only" in refused(volume, "resize", size=2 * SIZE).message
        assert mount.file.stat().st_size == SIZE


# ── unmount ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_unmount(volume: Workbench) -> None:
    with volume.mounted() as mount:
        write_unflushed(mount.file, 0, DATA)
        answer = ask(volume, "unmount")
        assert answer == {"pid": mount.pid, "mountpoint": str(mount.mountpoint), "settles_in": 0.0}
        mount.wait()
        assert volume.stored(0, len(DATA)) == DATA
        volume.wait_for_nothing()


def test_unmount_names_who_has_to_go_first(volume: Workbench, tmp_path: Path) -> None:
    with volume.mounted() as mount:
        with mount.file.open("r+b") as file:
            file.write(DATA)
            error = refused(volume, "unmount")
            assert error.exit_code == 7
            assert f"{mount.mountpoint} cannot be unmounted: Device or resource busy" in error.message
            assert f"fuser -vm {mount.mountpoint}" in error.hint
        with loop_device(mount.file) as device:
            error = refused(volume, "unmount")
            assert error.exit_code == 7 and f"losetup -d {device}" in error.hint
        # It is as if nobody had asked.
        assert is_alive(mount.pid) and volume.token.exists()
        assert mount.file.read_bytes()[: len(DATA)] == DATA
        ask(volume, "unmount")
        mount.wait()
    volume.wait_for_nothing()


def test_unmount_leaves_what_something_else_is_mounted_on(volume: Workbench) -> None:
    """It would be left below that, with nobody who serves it."""
    with volume.mounted() as mount:
        run("mount", "-t", "tmpfs", "tmpfs", str(mount.mountpoint))
        try:
            error = refused(volume, "unmount")
        finally:
            run("umount", str(mount.mountpoint))
        assert error.exit_code == 7 and "something else is mounted over it" in error.message
        assert error.hint == f"Unmount that first: umount {mount.mountpoint}"
        assert is_alive(mount.pid) and mount.file.exists()
        ask(volume, "unmount")
        mount.wait()
    volume.wait_for_nothing()


def test_unmount_of_what_was_taken_away_while_in_use_names_nobody_else(volume: Workbench) -> None:
    """Who uses what is on its mount point now has nothing to do with it."""
    with volume.mounted() as mount:
        with mount.file.open("rb"):
            mount.umount("-l")
            error = refused(volume, "unmount")
            assert "was unmounted already, while files of it were open" in error.message
            assert "fuser" not in error.hint and error.hint.startswith("Close them: it ends then.")
        mount.wait()
    volume.wait_for_nothing()


@pytest.mark.parametrize("how", ["by its place", "by its volume", "by a signal"])
def test_a_mount_that_was_moved_is_unmounted_where_it_is(
    volume: Workbench, capfd: pytest.CaptureFixture[str], how: str
) -> None:
    """As where a directory above it is renamed."""
    above, renamed = volume.directory / "above", volume.directory / "renamed"
    (above / "mnt").mkdir(parents=True)
    with volume.mounted(mountpoint=str(above / "mnt")) as mount:
        above.rename(renamed)
        write_unflushed(renamed / "mnt" / "file", 0, DATA)
        assert ask(volume, "info")["mountpoint"] == str(renamed / "mnt")
        assert ask(volume, "resize", size=2 * SIZE)["file"] == str(renamed / "mnt" / "file")
        capfd.readouterr()
        if how == "by a signal":
            mount.signal(signal.SIGTERM)
        else:
            what = str(renamed / "mnt") if how == "by its place" else f"file://{volume.bucket}"
            assert main(["unmount", what]) == 0
            assert capfd.readouterr() == ("", "")
        mount.wait()
        assert volume.mounts() == []
    assert volume.stored(0, len(DATA)) == DATA
    volume.wait_for_nothing()


def test_unmount_asks_no_mount_that_came_after_for_its_end(
    volume: Workbench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command may be stopped (Ctrl-Z) while the volume is mounted again, by whose socket it would wait for ever."""
    later: list[Mounted] = []

    def slow(ident: str, command: str, *args: Any, **more: Any) -> dict[str, object] | None:
        if command == "ended" and not later:
            first.wait()
            later.append(stack.enter_context(volume.mounted()))
        return call(ident, command, *args, **more)

    monkeypatch.setattr(unmount_module, "call", slow)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(volume.mounted())
        assert main(["unmount", str(first.mountpoint)]) == 7
        assert f"process {first.pid} ended before it had said" in capsys.readouterr().err
        error = refused(volume, "unmount", pid=first.pid, processes=processes())
        assert f"process {first.pid} has ended" in error.message
        assert is_alive(later[0].pid) and later[0].file.exists()


@pytest.mark.soak
def test_a_daemon_that_ends_leaves_what_has_the_number_of_its_mount_since(volume: Workbench) -> None:
    """The kernel gives the numbers of a mount, and of its device, to the next one at once."""
    other = volume.directory / "other"
    other.mkdir()
    with volume.mounted() as mount:
        ours = find_mount(str(mount.mountpoint))
        mount.signal(signal.SIGSTOP)
        unmount(str(mount.mountpoint))
        run("mount", "-t", "tmpfs", "tmpfs", str(other))
        try:
            (other / "file").write_bytes(DATA)
            theirs = find_mount(str(other))
            assert ours is not None and theirs is not None
            if (ours.mount_id, ours.device) != (theirs.mount_id, theirs.device):
                pytest.skip("others mount and unmount, too")
            mount.signal(signal.SIGCONT)
            mount.wait()
            assert (other / "file").read_bytes() == DATA
        finally:
            mount.signal(signal.SIGCONT)
            if find_mount(str(other)) is not None:
                run("umount", str(other))
    volume.wait_for_nothing()


@without_lane
def test_unmount_of_what_is_in_use_says_so_before_it_stores(bench: Workbench) -> None:
    with bench.mounted(fake=True) as mount:
        with mount.file.open("rb"), bench.turned("fail-flush"):
            error = refused(bench, "unmount")
            assert error.exit_code == 7 and "busy" in error.message
            assert f"fuser -vm {mount.mountpoint}" in error.hint
        ask(bench, "unmount")
        mount.wait()


@without_lane
def test_unmount_goes_on_when_the_one_who_asked_is_gone(bench: Workbench) -> None:
    with bench.mounted(fake=True) as mount:
        (bench.knobs / "hold-flush").touch()
        asking = subprocess.Popen(
            ["python3", "-c", ASK, str(bench.socket)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            bench.wait_reached("hold-flush")
        finally:
            asking.kill()
            asking.wait()
        bench.release("hold-flush")
        mount.wait()
    bench.wait_for_nothing()


ASK = """
import socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
connection.sendall(b'{"version":1,"command":"unmount"}\\n')
while connection.recv(4096):
    pass
"""


@without_lane
@pytest.mark.parametrize("first", ["asked", "signal"])
def test_whoever_asks_for_the_end_once_more_waits_for_the_same(bench: Workbench, first: str) -> None:
    (bench.knobs / "stay-open").touch()
    with bench.mounted(fake=True) as mount:
        if first == "asked":
            ask(bench, "unmount")
        else:
            mount.signal(signal.SIGTERM)
        wait_until(lambda: not bench.mounts(), "the mount is gone")
        heard: list[dict[str, object]] = []

        def on_progress(facts: dict[str, object]) -> None:
            heard.append(facts)
            if len(heard) == 2:
                bench.release("stay-open")

        assert ask(bench, "unmount")["pid"] == mount.pid
        assert call(bench.ident, "ended", on_progress=on_progress) == {}
        assert heard[0]["unsaved_blocks"] == 3
        mount.wait()
    bench.wait_for_nothing()


def test_the_end_says_why_nothing_is_stored(volume: Workbench) -> None:
    heard: list[dict[str, object]] = []

    def on_progress(facts: dict[str, object]) -> None:
        heard.append(facts)
        if facts["write_back_error"]:
            assert ask(volume, "info")["ending"] is True
            volume.release("outage")

    with volume.mounted() as mount:
        assert ask(volume, "info")["ending"] is False
        write_unflushed(mount.file, 0, DATA)
        (volume.knobs / "outage").touch()
        mount.umount()
        call(volume.ident, "ended", on_progress=on_progress)
        assert "the store is away" in [facts["write_back_error"] for facts in heard]
        mount.wait()
    volume.wait_for_nothing()


@without_lane
def test_unmount_while_the_store_fails_leaves_it_mounted(bench: Workbench) -> None:
    with bench.mounted(fake=True) as mount:
        with bench.turned("fail-flush"):
            assert "is away" in refused(bench, "unmount").message
        assert is_alive(mount.pid) and bench.mounts() == [str(mount.mountpoint)]
        with contextlib.suppress(S3backerError):
            ask(bench, "unmount")
        mount.wait()


@lane_first
def test_the_mount_that_took_a_volume_is_found_beside_the_one_that_lost_it(
    volume: Workbench, capfd: pytest.CaptureFixture[str]
) -> None:
    place, url = volume.directory / "second", f"file://{volume.bucket}"
    place.mkdir()
    taking = {"force": True, "journal_directory": str(volume.directory / "journals"), "journal": 4 << 20}

    def pids() -> list[object]:
        capfd.readouterr()
        assert main(["info", url, "--json"]) == 0
        facts = json.loads(capfd.readouterr().out)
        return [facts["pid"], *(other["pid"] for other in facts.get("other_mounts", ()) if other["lost"])]

    with (
        volume.mounted(volume={"lease": 3.0}) as loser,
        volume.mounted(volume=taking, mountpoint=str(place)) as mount,
    ):
        # From the first moment, when the other one does not know yet that it has lost it.
        assert pids()[0] == mount.pid
        wait_until(lambda: pids() == [mount.pid, loser.pid], "it is seen to be lost")
        third = volume.directory / "third"
        third.mkdir()
        code, said = volume.run(mountpoint=str(third))
        assert code == 6 and f"here on {place} by process {mount.pid}" in said
        write_unflushed(mount.file, 0, DATA)
        capfd.readouterr()
        assert main(["unmount", str(place)]) == 0
        assert not is_alive(mount.pid) and volume.stored(0, len(DATA)) == DATA
        assert capfd.readouterr() == ("", "")
        assert pids() == [loser.pid]
    assert not list(volume.socket.parent.glob(f"{volume.ident}*"))


def test_the_socket_of_a_killed_daemon_is_in_nobodys_way(volume: Workbench) -> None:
    with volume.mounted() as mount:
        os.kill(mount.pid, 9)
        mount.wait()
        assert volume.socket.exists()
        assert call(volume.ident, "info") is None
        assert not volume.socket.exists()
        mount.umount()
    with volume.mounted(volume={"force": True}) as mount:
        assert ask(volume, "info")["pid"] == mount.pid
