"""A mount with a journal: what fsync promises, and what is there again after the daemon was killed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from s3backer import failpoints
from s3backer.admin import create_volume, erase_volume
from s3backer.control.asking import call
from tests.support.mounts import (
    PATIENCE,
    Mounted,
    environment,
    filesystem,
    loop_device,
    needs_mounts,
    umount,
    wait_until,
)
from tests.support.tools import run
from tests.support.workbench import BLOCK, Workbench, lane_first, without_lane, write_unflushed

pytestmark = needs_mounts

SIZE = 64 << 20
DATA = bytes(range(1, 251)) * 400


class Bench(Workbench):
    """A workbench whose mounts have a journal."""

    journals: Path
    size = 4 << 20
    memory = 32 << 20

    def what(self, **more: object) -> dict[str, object]:
        given = more.pop("volume", {})
        assert isinstance(given, dict)
        journal = {"journal": self.size, "journal_directory": str(self.journals)}
        volume = {"memory": self.memory, "lease": 3.0, **journal, **given}
        return super().what(volume=volume, **more)  # type: ignore[arg-type]

    @property
    def files(self) -> list[Path]:
        """The files of the journal but those that are being prepared, and what else a mount keeps there."""
        found = (path for path in self.journals.rglob("*") if path.is_file())
        return sorted(path for path in found if path.name != "lock" and path.suffix != ".spare")

    def command(self, *words: str, code: int = 0) -> str:
        """Run a command and return what it said."""
        done = subprocess.run(
            [sys.executable, "-m", "s3backer", words[0], f"file://{self.bucket}", *words[1:]],
            env=environment(self.directory),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def journaled(bench: Workbench) -> Bench:
    bench.__class__ = Bench
    assert isinstance(bench, Bench)
    bench.journals = bench.directory / "journals"
    bench.create(size=SIZE)
    return bench


@pytest.fixture
def dead(journaled: Bench) -> Iterator[Bench]:
    """A volume whose daemon was killed with DATA in its journal only."""
    with journaled.mounted() as mount, journaled.turned("outage"):
        write(mount, DATA, sync=True)
        kill(mount)
    yield journaled


def write(mount: Mounted, data: bytes, offset: int = 0, *, sync: bool) -> None:
    descriptor = os.open(mount.file, os.O_RDWR)
    try:
        os.pwrite(descriptor, data, offset)
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def kill(mount: Mounted) -> None:
    mount.signal(signal.SIGKILL)
    mount.umount("-l")
    mount.wait()


def read(mount: Mounted, length: int, offset: int = 0) -> bytes:
    with mount.file.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), length, offset)


# ── flush ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_fsync_and_close_do_not_wait_for_the_bucket(journaled: Bench) -> None:
    with journaled.mounted() as mount, journaled.turned("outage"):
        write(mount, DATA, sync=True)
        assert journaled.stored(0, len(DATA)) == bytes(len(DATA))
        assert "% of 4 MiB in use" in journaled.command("info")
    assert journaled.stored(0, len(DATA)) == DATA
    assert not journaled.files


def test_what_was_only_written_survives_a_kill_too(journaled: Bench) -> None:
    with journaled.mounted() as mount:
        # Neither fsync nor close comes after; the kernel is asked to hand over its pages without a barrier.
        write_unflushed(mount.file, 0, DATA[: 4 * BLOCK])
        with mount.file.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        range_written(mount, 0, 4 * BLOCK)
        kill(mount)
    with journaled.mounted() as mount:
        assert read(mount, 4 * BLOCK) == DATA[: 4 * BLOCK]


def range_written(mount: Mounted, offset: int, length: int) -> None:
    """Let the kernel write its dirty pages to the daemon, without a flush: sync_file_range(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(mount.file, os.O_RDONLY)
    try:
        flags = 1 | 2 | 4
        done = libc.sync_file_range(descriptor, ctypes.c_int64(offset), ctypes.c_int64(length), flags)
        assert done == 0, os.strerror(ctypes.get_errno())
    finally:
        # Its close would be a flush, and is one; what was written is in the journal by then either way.
        os.close(descriptor)


def test_the_memory_may_be_full_and_the_store_away(journaled: Bench) -> None:
    """Writers wait when the journal is full, go on when the store is back, and everything is there after a kill."""
    piece = os.urandom(1 << 20)
    with journaled.mounted() as mount:
        with journaled.turned("outage"):
            descriptor = os.open(mount.file, os.O_RDWR | os.O_DIRECT)
            page = mmap.mmap(-1, len(piece))
            page.write(piece)
            written: list[int] = []

            def fill() -> None:
                for number in range(12):
                    os.pwritev(descriptor, [page], number << 20)
                    written.append(number)

            writer = threading.Thread(target=fill, daemon=True)
            writer.start()
            wait_until(lambda: len(written) >= 2, "something was taken")
            before = -1
            while before != len(written):
                before = len(written)
                time.sleep(1.0)
            assert len(written) < 12
        writer.join(PATIENCE)
        assert len(written) == 12
        os.fsync(descriptor)
        os.close(descriptor)
        kill(mount)
    with journaled.mounted() as mount:
        for number in range(12):
            assert read(mount, 1 << 20, number << 20) == piece


def test_what_left_memory_is_read_back_while_the_store_is_away(journaled: Bench) -> None:
    """Parts of blocks, too: the bucket is not asked for the rest."""
    journaled.size, journaled.memory = 16 << 20, 1 << 20
    blocks = range(16, 616)
    page = mmap.mmap(-1, BLOCK)
    with journaled.mounted() as mount, journaled.turned("outage"):
        descriptor = os.open(mount.file, os.O_RDWR | os.O_DIRECT)
        for block in blocks:
            page[:512] = block.to_bytes(2, "big") * 256
            assert os.pwritev(descriptor, [memoryview(page)[:512]], block * BLOCK) == 512
        os.fsync(descriptor)
        for block in blocks:
            assert os.preadv(descriptor, [memoryview(page)[:512]], block * BLOCK) == 512
            assert page[:512] == block.to_bytes(2, "big") * 256
        with pytest.raises(OSError, match="Input/output error"):
            for block in blocks:
                os.preadv(descriptor, [memoryview(page)[:1024]], block * BLOCK)
        os.close(descriptor)


# ── recovery ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_next_mount_recovers_and_needs_no_force(dead: Bench) -> None:
    assert dead.stored(0, len(DATA)) == bytes(len(DATA))
    with dead.mounted() as mount:
        assert read(mount, len(DATA)) == DATA
        # And is stored by itself.
        wait_until(lambda: dead.stored(0, len(DATA)) == DATA, "it is stored")


@lane_first
def test_so_does_one_without_a_journal(dead: Bench) -> None:
    with dead.mounted(volume={"journal": 0}) as mount:
        assert read(mount, len(DATA)) == DATA
        assert not [path for path in dead.files if path.suffix == ".journal"]
    assert not dead.files


@lane_first
def test_recover_without_mounting(dead: Bench) -> None:
    directory = ("--journal-directory", str(dead.journals))
    said = dead.command("recover", *directory)
    assert "blocks of the mount that began at" in said
    assert dead.stored(0, len(DATA)) == DATA
    assert not dead.token.exists()
    assert not dead.files
    assert "has no journal on this host" in dead.command("recover", *directory)


@lane_first
def test_to_a_file_and_giving_it_up(dead: Bench, tmp_path: Path) -> None:
    directory = ("--journal-directory", str(dead.journals))
    tree, files = dead.tree(), dead.files
    dead.command("recover", *directory, "--to", str(tmp_path / "found"))
    assert (tmp_path / "found").read_bytes()[: len(DATA)] == DATA
    assert (tmp_path / "found").stat().st_mode & 0o777 == 0o600
    assert (dead.tree(), dead.files) == (tree, files)
    assert "cannot be written: File exists" in dead.command(
        "recover", *directory, "--to", str(tmp_path / "found"), code=2
    )
    assert f"{-(-len(DATA) // BLOCK)} blocks in it were not in the bucket" in dead.command(
        "recover", *directory, "--discard"
    )
    assert not dead.files
    assert not dead.token.exists()
    with dead.mounted() as mount:
        assert not any(read(mount, len(DATA)))


@lane_first
def test_unlock_and_other_mounts_mind_it(dead: Bench) -> None:
    said = dead.command("unlock", code=6)
    assert f"had a journal, in {dead.journals} there" in said
    assert f"s3backer recover file://{dead.bucket} --journal-directory {dead.journals}" in said
    # As on another host: it does not know of the journal.
    code, text = dead.run(volume={"journal_directory": str(dead.directory / "elsewhere")})
    assert code == 6
    assert f"with a journal in {dead.journals} there" in text


@lane_first
def test_unlocked_by_force_it_is_replayed_only_by_force(dead: Bench) -> None:
    directory = ("--journal-directory", str(dead.journals))
    dead.command("unlock", "--force")
    code, text = dead.run()
    assert code == 9
    assert "somebody else may have written to it since" in text
    assert "has no token" in dead.command("recover", *directory, code=9)
    dead.command("recover", *directory, "--force")
    assert dead.stored(0, len(DATA)) == DATA
    assert not dead.token.exists()


@lane_first
def test_somebody_else_has_it_now(dead: Bench) -> None:
    dead.command("unlock", "--force")
    elsewhere = {"journal_directory": str(dead.directory / "elsewhere")}
    with dead.mounted(volume=elsewhere) as mount:
        write(mount, b"x" * BLOCK, sync=True)
        said = dead.command("recover", "--journal-directory", str(dead.journals), code=6)
        assert "is mounted" in said
    # They have unmounted it, and block 0 is not what it was.
    said = dead.command("recover", "--journal-directory", str(dead.journals), code=9)
    assert "the journal does not know what was there" in said
    assert dead.stored(0, BLOCK) == b"x" * BLOCK


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """Mount a filesystem of that size."""
    place.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place))
    try:
        yield place
    finally:
        umount(place)


def command_mounted(bench: Bench, *words: str) -> str:
    """Mount with the command and its defaults, and return what info says of the journal."""
    bench.command("mount", str(bench.mountpoint), *words)
    try:
        facts = call(bench.ident, "info")
        assert facts is not None
        return str(facts["journal"])
    finally:
        umount(bench.mountpoint)
        wait_until(lambda: not bench.token.exists(), "it has ended")


@pytest.fixture
def in_its_directory(journaled: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench whose sockets are found from here."""
    monkeypatch.setenv("XDG_STATE_HOME", str(journaled.directory / "state"))
    return journaled


@lane_first
def test_there_is_one_where_nothing_is_said(in_its_directory: Bench) -> None:
    here = in_its_directory.directory / "state" / "s3backer" / "journals"
    assert f"'directory': '{here}" in command_mounted(in_its_directory)
    assert not list(here.rglob("*.journal"))
    for words in (["--journal=none"], ["--fsync=lazy"], ["--read-only"]):
        assert command_mounted(in_its_directory, *words) == "None"


def read_directly(mount: Mounted, length: int, offset: int) -> bytes:
    """Read so many bytes, and not the pages around them."""
    descriptor = os.open(mount.file, os.O_RDONLY | os.O_DIRECT)
    try:
        return os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)


@lane_first
def test_parts_of_sectors_wait_for_nothing(journaled: Bench) -> None:
    """Of a block that would have to be fetched, with the store away; they are there after a kill, too."""
    # The first blocks are read when it is mounted.
    first = SIZE // 2
    second = first + 8 * BLOCK
    with journaled.mounted() as mount:
        write(mount, DATA, first, sync=True)
        mount.umount()
        mount.wait()
    with journaled.mounted() as mount, journaled.turned("outage"):
        write(mount, b"x" * 100, first + 7, sync=True)
        assert read_directly(mount, 100, first + 7) == b"x" * 100
        with pytest.raises(OSError, match="Input/output error"):
            read_directly(mount, 101, first + 7)
        write(mount, b"x" * 512, second, sync=True)
        write(mount, b"y" * 100, second, sync=True)
        # From the middle of a sector into the middle of another.
        write(mount, b"z" * 2 * BLOCK, second + 3 * BLOCK + 5, sync=True)
        assert read_directly(mount, 2 * BLOCK, second + 3 * BLOCK + 5) == b"z" * 2 * BLOCK
        mount.signal(signal.SIGKILL)
        mount.umount("-l")
        mount.wait()
    expected = bytearray(DATA)
    expected[7:107] = b"x" * 100
    expected[8 * BLOCK : 8 * BLOCK + 512] = b"y" * 100 + b"x" * 412
    expected[11 * BLOCK + 5 : 13 * BLOCK + 5] = b"z" * 2 * BLOCK
    with journaled.mounted() as mount:
        assert read(mount, len(DATA), first) == expected
        write(mount, b"!" * 3, first + 511, sync=True)
        expected[511:514] = b"!" * 3
        assert read(mount, len(DATA), first) == expected
        mount.umount()
        mount.wait()
    with journaled.mounted() as mount:
        assert read(mount, len(DATA), first) == expected


@lane_first
@pytest.mark.parametrize("point", ["before-sync:2", "synced:2", "before-store:2", "stored:2"])
def test_the_command_dies_where_the_environment_says(
    journaled: Bench, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """What fsync had promised until then is there after the next mount, without the variable."""
    words = ["mount", str(journaled.mountpoint), "--journal=4MiB", f"--journal-directory={journaled.journals}"]
    flushed: list[bytes] = []
    with monkeypatch.context() as patch:
        patch.setenv(failpoints.VARIABLE, point)
        journaled.command(*words, "--write-delay=0.01")
        descriptor = os.open(journaled.file, os.O_RDWR)
        try:
            with pytest.raises(OSError):
                for number in range(10_000):
                    content = os.urandom(BLOCK)
                    os.pwrite(descriptor, content, number * BLOCK)
                    os.fsync(descriptor)
                    flushed.append(content)
        finally:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            umount(journaled.mountpoint, "-l")
    assert flushed
    assert journaled.token.exists() and journaled.files
    journaled.command(*words)
    try:
        with journaled.file.open("rb", buffering=0) as file:
            for number, content in enumerate(flushed):
                assert os.pread(file.fileno(), BLOCK, number * BLOCK) == content, number
    finally:
        umount(journaled.mountpoint)
    wait_until(lambda: not journaled.token.exists(), "it has ended")


@lane_first
def test_there_is_none_where_it_cannot_be(in_its_directory: Bench, tmp_path: Path) -> None:
    """Where nobody has asked for it, that is no error."""
    with small_disk(tmp_path / "small", "100m") as small:
        assert command_mounted(in_its_directory, f"--journal-directory={small}") == "None"
    store = in_its_directory.open_store()
    erase_volume(store, "")
    create_volume(store, "", size=256 << 20, block_size=8 << 20)
    assert command_mounted(in_its_directory, "--memory=1GiB") == "None"


@lane_first
def test_who_has_named_a_directory_for_it_hears_that_there_is_none(in_its_directory: Bench, tmp_path: Path) -> None:
    bench, mount = in_its_directory, ("mount", str(in_its_directory.mountpoint))

    def said(*words: str) -> str:
        text = bench.command(*mount, *words)
        umount(bench.mountpoint)
        wait_until(lambda: not bench.token.exists(), "it has ended")
        return text

    assert f"file://{bench.bucket} has no journal: /dev/null is not a directory\n" in said(
        "--journal-directory=/dev/null"
    )
    assert said("--journal-directory=/dev/null", "--journal=none") == ""
    with small_disk(tmp_path / "small", "100m") as small:
        assert "does not last" in said(f"--journal-directory={small}")


@without_lane
def test_a_refusal_of_the_last_journal_is_said_once(dead: Bench) -> None:
    """Also where nobody has asked for a journal: mounting without one would be refused as well."""
    dead.command("unlock", "--force")
    code, text = dead.run(request={"default_journal": True, "foreground": True})
    assert code == 9
    assert text.count("was not unmounted") == 1


def said_by(bench: Bench, volume: Mapping[str, object] | None = None, **request: object) -> str:
    """Mount in the foreground, where nothing is said of a journal, and return what it has logged."""
    request = {"foreground": True, "default_journal": True, **request}
    with bench.mounted(request=request, volume=volume or {}) as mount:
        wait_until(mount.file.exists, "it answers")
        mount.umount()
        _, said = mount.process.communicate(timeout=PATIENCE)
    return str(said)


@without_lane
def test_the_log_says_where_the_journal_is(journaled: Bench) -> None:
    said = said_by(journaled)
    assert f"INFO: file://{journaled.bucket} has a journal of 4 MiB in {journaled.journals}/" in said


@without_lane
@pytest.mark.parametrize(
    ("said", "volume", "why"),
    [
        ({"default_journal": False}, {"journal": 0}, "none was asked for"),
        ({"default_journal": False}, {"journal": 4 << 20, "read_only": True}, "it is read-only"),
        ({}, {"journal": 0, "read_only": True}, "it is read-only"),
        ({}, {"journal": 4 << 20, "write_through": True}, "each write is in the bucket when it returns"),
        ({"lazy_fsync": True}, {"journal": 0}, "fsync is lazy"),
        ({}, {"journal": 4096}, "a journal of 4KiB is too small for blocks of 4KiB"),
    ],
)
def test_the_log_says_why_there_is_none(
    journaled: Bench, said: dict[str, object], volume: dict[str, object], why: str
) -> None:
    log = said_by(journaled, volume, **said)
    assert f"INFO: file://{journaled.bucket} has no journal: {why}\n" in log


@without_lane
def test_the_log_says_why_there_is_none_by_default(journaled: Bench, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "100m") as small:
        said = said_by(journaled, volume={"journal": 0, "journal_directory": str(small / "j")})
        assert f"has no journal: {small} is on tmpfs, which does not last\n" in said


@without_lane
def test_lazy_fsync_with_a_journal(journaled: Bench) -> None:
    """What was written survives a kill all the same, and the log says no less."""
    with journaled.mounted(request={"lazy_fsync": True, "foreground": True}) as mount:
        wait_until(mount.file.exists, "it answers")
        assert "fsync:            lazy: says yes and does nothing\n" in journaled.command("info")
        write(mount, DATA, sync=True)
        kill(mount)
        assert mount.process.stderr is not None
        said = mount.process.stderr.read()
    assert "a kill loses nothing that is in the journal, but a loss of power loses writes that were synced" in said
    assert "a crash loses" not in said
    with journaled.mounted() as mount:
        assert read(mount, len(DATA)) == DATA
        assert "fsync:" not in journaled.command("info")


def test_a_live_mount_keeps_its_journal(journaled: Bench) -> None:
    with journaled.mounted():
        said = journaled.command("recover", "--journal-directory", str(journaled.journals), code=6)
        assert "That mount is alive" in said


@lane_first
def test_a_read_only_mount_leaves_it_alone(dead: Bench) -> None:
    files = dead.files
    with dead.mounted(volume={"read_only": True}) as mount:
        assert not any(read(mount, BLOCK))
    assert dead.files == files


def test_a_filesystem_is_whole_after_a_kill(journaled: Bench, tmp_path: Path) -> None:
    place = tmp_path / "fs"
    contents = {f"file{number}": os.urandom(1000 * number + 1) for number in range(60)}
    with journaled.mounted() as mount:
        with loop_device(mount.file) as device:
            run("mkfs.ext4", "-q", device)
            place.mkdir()
            run("mount", device, str(place))
            try:
                for name, content in contents.items():
                    (place / name).write_bytes(content)
                run("sync", "-f", str(place))
                mount.signal(signal.SIGKILL)
            finally:
                run("umount", "-l", str(place))
        mount.umount("-l")
        mount.wait()
    with journaled.mounted() as mount, loop_device(mount.file) as device:
        with filesystem(device, place):
            assert {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()} == contents
        run("e2fsck", "-fn", device)


@lane_first
def test_a_damaged_journal_is_kept_until_it_is_given_up(journaled: Bench) -> None:
    with journaled.mounted() as mount, journaled.turned("outage"):
        # The second one bears witness that the first one was on the disk.
        write(mount, DATA, sync=True)
        write(mount, DATA, offset=len(DATA), sync=True)
        kill(mount)
    directory = ("--journal-directory", str(journaled.journals))
    first = min(journaled.files)
    content = bytearray(first.read_bytes())
    content[5000] ^= 1
    first.write_bytes(content)
    code, text = journaled.run()
    assert code == 9
    assert f"{first} is damaged at byte" in text
    assert f"{first} is damaged at byte" in journaled.command("recover", *directory, code=9)
    assert first.read_bytes() == content
    assert "was given up, it was damaged" in journaled.command("recover", *directory, "--discard")
    assert not journaled.files
    assert not journaled.token.exists()


# ── its place ────────────────────────────────────────────────────────────────────────────────────────────────


@without_lane
def test_too_small_a_journal(journaled: Bench) -> None:
    code, text = journaled.run(volume={"journal": 1000})
    assert code == 2
    assert "a journal of 1000 bytes is too small for blocks of 4KiB" in text
    assert not journaled.token.exists()
    assert not journaled.files


@without_lane
def test_a_disk_without_room_for_it(journaled: Bench, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "512k") as small:
        code, text = journaled.run(volume={"journal_directory": str(small / "j")})
        assert code == 9
        assert "has no room for another file: No space left on device" in text
        assert "two files of 256 KiB have to fit" in text and "a smaller --journal" in text
        assert "--journal-directory" in text
        assert not journaled.token.exists()


@without_lane
def test_a_disk_with_less_room_than_was_asked_for(journaled: Bench, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "21m") as small:
        with journaled.mounted(volume={"journal": 64 << 20, "journal_directory": str(small)}) as mount:
            assert "in use, room for 20 MiB, " in journaled.command("info")
            assert mount.process.stderr is not None
            said = mount.process.stderr.read()
            assert f"--journal: the disk of {small}/" in said and " has room for only 20 MiB of 64 MiB: " in said
        with journaled.mounted(volume={"journal": 20 << 20, "journal_directory": str(small)}) as mount:
            assert "room for" not in journaled.command("info")
            assert mount.process.stderr is not None
            assert "room for" not in mount.process.stderr.read()


@without_lane
def test_a_place_that_cannot_be_used(journaled: Bench, tmp_path: Path) -> None:
    """What is said to try helps: another place, or no journal."""
    with small_disk(tmp_path / "small", "8m") as small:
        run("mount", "-o", "remount,ro", str(small))
        (tmp_path / "file").touch()
        for place, why in (
            (small / "j", " cannot be used: Read-only file system"),
            (tmp_path / "file", f"{tmp_path}/file, where journals are to be, is not a directory"),
            # Its mode lets others write to it, and is none of ours to change.
            (Path("/dev/null"), "/dev/null, where journals are to be, is not a directory"),
        ):
            code, text = journaled.run(volume={"journal_directory": str(place)})
            assert code == 9
            said, hint = text.splitlines()
            assert str(place) in said and said.endswith(why)
            assert "chmod" not in hint and "--journal-directory" in hint and "--journal none" in hint
            assert not journaled.token.exists()
            assert "has no journal" in said_by(journaled, {"journal": 0, "journal_directory": str(place)})


@contextlib.contextmanager
def left_on_a_read_only_disk(bench: Bench, place: Path) -> Iterator[Path]:
    """A small disk that has the journal of a mount which was killed, and has become read-only."""
    with small_disk(place, "8m") as small:
        with bench.mounted(volume={"journal_directory": str(small)}) as mount:
            write(mount, DATA, sync=True)
            kill(mount)
        run("mount", "-o", "remount,ro", str(small))
        yield small


@without_lane
def test_a_journal_that_cannot_be_gone_on_with(journaled: Bench, tmp_path: Path) -> None:
    """Another place, or no journal, is not what helps where something is left."""
    with left_on_a_read_only_disk(journaled, tmp_path / "small") as small:
        where = {"journal_directory": str(small)}
        for volume in (where, {**where, "journal": 0}):
            code, text = journaled.run(volume=volume)
            assert code == 9
            said, hint = text.splitlines()
            assert said.endswith(" cannot be used: Read-only file system")
            assert hint.startswith("What a mount has left is in it: ") and "mount -o remount,rw" in hint
            assert "--journal none" not in hint
        run("mount", "-o", "remount,rw", str(small))
        with journaled.mounted(volume=where) as mount:
            assert read(mount, len(DATA)) == DATA


@without_lane
def test_a_journal_on_a_disk_that_is_read_only_is_copied(journaled: Bench, tmp_path: Path) -> None:
    """What is said to try helps, and what is left there does no harm."""
    with left_on_a_read_only_disk(journaled, tmp_path / "small") as small:
        where = {"journal_directory": str(small)}
        _, text = journaled.run(volume=where)
        copying = text.partition("that can be written to (")[2].partition(")")[0]
        assert copying.startswith("mkdir DIR && cp -a ")
        subprocess.run(copying, shell=True, check=True, cwd=tmp_path, timeout=60)
        journaled.command("recover", "--journal-directory", str(tmp_path / "DIR"))
        assert not journaled.token.exists()
        with journaled.mounted() as mount:
            assert read(mount, len(DATA)) == DATA
            write(mount, DATA[::-1], sync=True)
        run("mount", "-o", "remount,rw", str(small))
        code, text = journaled.run(volume=where)
        assert code == 9 and "somebody else may have written to it since" in text
        with journaled.mounted() as mount:
            assert read(mount, len(DATA)) == DATA[::-1]


@without_lane
def test_a_place_that_others_can_change(journaled: Bench) -> None:
    journaled.journals.mkdir()
    journaled.journals.chmod(0o777)
    code, text = journaled.run()
    assert code == 9
    said, hint = text.splitlines()
    assert said == f"others than this user can write to {journaled.journals}, where journals are"
    assert f"chmod go-w {journaled.journals}" in hint and "--journal none" in hint
    assert not list(journaled.journals.iterdir()) and not journaled.token.exists()


@contextlib.contextmanager
def disk_of_its_own(directory: Path) -> Iterator[Path]:
    """Mount an ext4 of an image."""
    image, disk = directory / "image", directory / "disk"
    if not image.exists():
        disk.mkdir()
        image.write_bytes(b"")
        os.truncate(image, 32 << 20)
        run("mkfs.ext4", "-q", str(image))
    run("mount", "-o", "loop", str(image), str(disk))
    try:
        yield disk
    finally:
        run("umount", str(disk))


@lane_first
@pytest.mark.parametrize("how", ["killed", "unmounted"])
def test_the_disk_of_the_journal_fails(journaled: Bench, tmp_path: Path, how: str) -> None:
    """Writes go on, fsync waits for the bucket, and what is then in the bucket is not overwritten by the journal."""
    fresh = bytes(reversed(DATA))
    with disk_of_its_own(tmp_path) as disk:
        volume = {"journal_directory": str(disk / "j")}
        with journaled.mounted(volume=volume) as mount:
            write(mount, DATA, sync=True)
            run("xfs_io", "-x", "-c", "shutdown", str(disk))
            descriptor = os.open(mount.file, os.O_RDWR)
            try:
                os.pwrite(descriptor, fresh, 0)
                os.fsync(descriptor)
            except OSError as error:
                assert error.errno == errno.EIO
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            # What fsync has promised is in the bucket now, and a note there says so.
            assert journaled.stored(0, len(fresh)) == fresh
            assert list(journaled.bucket.glob("s3backer-stored-*"))
            if how == "killed":
                kill(mount)
            else:
                said = journaled.command("unmount")
                assert f"the journal's directory {disk / 'j'}/" in said and "Input/output error" in said
                assert "All that was in the journal is in the bucket, and a note there says so" in said
                assert not journaled.token.exists()
                mount.wait()
    with disk_of_its_own(tmp_path), journaled.mounted(volume=volume) as mount:
        assert read(mount, len(fresh)) == fresh
        assert not list(journaled.bucket.glob("s3backer-stored-*"))


@lane_first
def test_writers_are_slowed_down_before_they_wait(journaled: Bench) -> None:
    """The last quarter of the journal takes its time, however fast one writes; ``info`` says so."""

    def facts() -> dict[str, object]:
        return call(journaled.ident, "info") or {}

    with journaled.mounted() as mount, journaled.turned("outage"):
        descriptor = os.open(mount.file, os.O_RDWR)
        try:

            def fill() -> None:
                with contextlib.suppress(OSError):
                    for offset in range(BLOCK, SIZE, BLOCK):
                        if not ended.is_set():
                            os.pwrite(descriptor, DATA[:512], offset)

            ended = threading.Event()
            writer = threading.Thread(target=fill)
            writer.start()
            seen: set[object] = set()

            def waits() -> bool:
                seen.add(facts()["writers"])
                return "wait for room" in seen

            wait_until(waits, "writers wait")
            assert {"are slowed down", "wait for room"} <= seen
            # How long they were is for the speed of the machine to say, and whether the next file was there in time.
            assert int(str(facts()["slowed_writes"])) >= 20
        finally:
            ended.set()
            journaled.release("outage")
            writer.join()
            os.close(descriptor)
        wait_until(lambda: facts()["writers"] == "go on", "they go on")
