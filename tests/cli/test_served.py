"""What the commands do with a volume that a daemon serves on this host. A control socket stands for the daemon."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from s3backer import mountpoint
from s3backer.cli import unmount as unmount_module
from s3backer.cli.common import unsaved_progress
from s3backer.control import asking
from s3backer.control.messages import Progress, failure
from s3backer.control.server import ControlServer
from s3backer.control.sockets import socket_name
from s3backer.daemon import _with_place
from s3backer.errors import MountError, UsageError, VolumeInUse
from s3backer.layouts.token import TOKEN_NAME, new_token, write_token
from s3backer.mountpoint import FUSE_TYPE, Mount, read_mounts, resolve_mountpoint
from s3backer.stores.directory import DirectoryStore
from s3backer.url import VolumeURL
from tests.support.cache_files import put_cache_file
from tests.support.commands import Run, stopped_daemon, tree


class Daemon:
    """Answers like a daemon that serves ``volume``. ``process`` is the one that it claims to be."""

    def __init__(self, volume: Path, sockets: Path, process: subprocess.Popen[bytes], suffix: str = "") -> None:
        self.url = VolumeURL.parse(f"file://{volume}")
        self.process = process
        self.mountpoint = "/mnt/s3backer-test"
        self.size = 8 << 20
        self.asked: list[tuple[str, dict[str, object]]] = []
        self.busy = False
        #: Seconds that an answer to ``info`` takes.
        self.slow = 0.0
        #: With which its process ends when it was asked to.
        self.last_signal = signal.SIGKILL
        self.failure: str | None = None
        self.lost = False
        self.ending = False
        #: In what namespace of processes it is, and what it serves, if it says so.
        self.where: dict[str, object] = {}
        #: What is reported while it ends.
        self.reports: list[dict[str, object]] = [{"unsaved_blocks": 1}]
        self.ended_at = 0.0
        #: How often it cannot say how it ends.
        self.refusals = 0
        self.settles_in = 0.0
        #: How closing ends, if not well.
        self.close_error: dict[str, object] | None = None
        names: dict[str, Any] = {
            "info": self.info,
            "resize": self.resize,
            "unmount": self.unmount,
            "ended": self.ended,
        }
        self.server = ControlServer(sockets / f"{socket_name(DirectoryStore(volume), '')}{suffix}.sock", names)

    def info(self, arguments: Mapping[str, object], progress: Progress) -> Mapping[str, object]:
        time.sleep(self.slow)
        count = {"requests": 3, "failures": 1, "bytes_sent": 10, "bytes_received": 20}
        return {
            "volume": str(self.url),
            "size": self.size,
            "block_size": 64 << 10,
            "opened": 1_700_000_000.0,
            "unsaved_blocks": 2,
            "write_back_error": self.failure,
            "lost": self.lost,
            "mountpoint": self.mountpoint,
            "pid": self.process.pid,
            **self.where,
            "ending": self.ending,
            "requests": {"get": count},
            "cost": 0.0123,
            "prices_as_of": "2026-11",
        }

    def resize(self, arguments: Mapping[str, object], progress: Progress) -> Mapping[str, object]:
        self.asked.append(("resize", dict(arguments)))
        if arguments["size"] == 12345:
            raise UsageError("size 12345 is not a multiple", hint="Use another.")
        progress({"unsaved_blocks": 1})
        return {"size": arguments["size"], "old_size": self.size, "loop_devices": ["/dev/loop7"], "file": "/f"}

    def unmount(self, arguments: Mapping[str, object], progress: Progress) -> Mapping[str, object]:
        self.asked.append(("unmount", dict(arguments)))
        if self.busy:
            raise MountError(f"{self.mountpoint} cannot be unmounted: busy", hint="losetup -d /dev/loop7")
        progress({"unsaved_blocks": 1})
        threading.Thread(target=self._end, name="ending").start()
        return {"pid": self.process.pid, "mountpoint": self.mountpoint, "settles_in": self.settles_in}

    def ended(self, arguments: Mapping[str, object], progress: Progress) -> Mapping[str, object]:
        if self.refusals:
            self.refusals -= 1
            raise MemoryError
        for report in self.reports:
            progress(report)
            time.sleep(0.01)
        return {} if self.close_error is None else {"error": self.close_error}

    def _end(self) -> None:
        time.sleep(0.3)
        self.ended_at = time.monotonic()
        self.process.send_signal(self.last_signal)


@contextlib.contextmanager
def serving(volume: Path, sockets: Path, suffix: str = "") -> Iterator[Daemon]:
    """Serve a volume; with ``suffix`` after another daemon."""
    if not suffix:
        write_token(DirectoryStore(volume), "", "", new_token(random.Random(1)), former=None)
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdin=subprocess.DEVNULL)
        )
        stack.callback(process.kill)
        served = Daemon(volume, sockets, process, suffix)
        served.server.start()
        stack.callback(served.server.stop)
        yield served
        for thread in threading.enumerate():
            if thread.name == "ending":
                thread.join()


@pytest.fixture
def daemon(volume: Path, sockets: Path) -> Iterator[Daemon]:
    with serving(volume, sockets) as daemon:
        yield daemon


@pytest.fixture
def taker(daemon: Daemon, volume: Path, sockets: Path) -> Iterator[Daemon]:
    """Return the daemon of a mount that has taken the volume from ``daemon``."""
    with serving(volume, sockets, "-2") as taker:
        daemon.lost, daemon.failure = True, "it is mounted by another"
        taker.mountpoint = "/mnt/s3backer-taker"
        yield taker


def test_of_two_daemons_the_one_that_has_the_volume_is_meant(run: Run, daemon: Daemon, taker: Daemon) -> None:
    url = str(taker.url)
    assert json.loads(run("info", url, "--json").out)["mountpoint"] == taker.mountpoint
    shown = run("info", url).out.splitlines()
    lost = f"here on {daemon.mountpoint} by process {daemon.process.pid}, which has lost the volume"
    assert f"another mount:    {lost}" in shown
    assert not any(line.startswith("volume is lost") for line in shown)
    assert run("resize", url, "16MiB").code == 0
    assert taker.mountpoint in run("erase", url, "--yes").sentence()
    answer = run("unmount", url)
    assert (answer.code, answer.out) == (0, "")
    assert answer.err == f"it is also mounted {lost}; to end that mount: s3backer unmount {daemon.mountpoint}\n"
    assert ([name for name, _ in taker.asked], daemon.asked) == (["resize", "unmount"], [])


def test_each_of_two_daemons_is_found_by_its_mount_point(run: Run, daemon: Daemon, taker: Daemon) -> None:
    for one in (taker, daemon):
        assert run("unmount", one.mountpoint).code == 0
        assert [name for name, _ in one.asked] == ["unmount"]


def test_a_mount_whose_daemon_lives_is_not_unmounted_without_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of another user, for example: nobody would know whether everything is stored."""
    monkeypatch.setattr(unmount_module, "find_mount", lambda path: Mount(1, "0:99", path, FUSE_TYPE, "file:///v"))
    answer = run("unmount", str(tmp_path))
    assert (answer.code, answer.out) == (7, "")
    assert (
        answer.sentence()
        == f"{tmp_path} is left as it is: its daemon may live, and cannot be asked to store everything"
    )
    assert f"fusermount -u {tmp_path}" in answer.hint() and "as the user who mounted it" in answer.hint()


def test_info_is_the_daemons(run: Run, daemon: Daemon) -> None:
    facts = json.loads(run("info", str(daemon.url), "--json").out)
    assert facts["mounted"] is True
    assert (facts["pid"], facts["mountpoint"]) == (daemon.process.pid, daemon.mountpoint)
    assert facts["requests"]["get"]["requests"] == 3
    assert (facts["cost"], facts["prices_as_of"]) == (0.0123, "2026-11")
    assert (facts["mounted_by"], facts["mounted_at"]) == (os.uname().nodename, "20231114T221320Z")
    assert "objects" not in facts
    shown = run("info", str(daemon.url)).out
    assert daemon.mountpoint in shown and "$0.0123" in shown and "2026-11" in shown


def test_info_says_why_write_back_fails(run: Run, daemon: Daemon) -> None:
    assert "write-back" not in run("info", str(daemon.url)).out
    daemon.failure = "the store is away"
    shown = run("info", str(daemon.url)).out.splitlines()
    assert "write-back fails: the store is away; it is tried again" in shown
    assert "not stored yet:   2 blocks" in shown
    assert json.loads(run("info", str(daemon.url), "--json").out)["write_back_error"] == "the store is away"


def test_info_says_that_the_volume_is_lost(run: Run, daemon: Daemon) -> None:
    daemon.failure, daemon.lost = "it is mounted by another", True
    shown = run("info", str(daemon.url)).out.splitlines()
    assert "volume is lost:   it is mounted by another; nothing is stored from here any more" in shown
    assert "not stored yet:   2 blocks" in shown


def test_info_does_not_need_the_store_while_a_daemon_answers(run: Run, daemon: Daemon, volume: Path) -> None:
    (volume / "00000000").unlink()
    assert json.loads(run("info", str(daemon.url), "--json").out)["size"] == 8 << 20


def test_info_counts_in_the_bucket(run: Run, daemon: Daemon) -> None:
    facts = json.loads(run("info", str(daemon.url), "--json", "--count").out)
    assert (facts["objects"], facts["pid"]) == (1, daemon.process.pid)


def test_resize_goes_through_the_daemon_and_names_the_loop_device(run: Run, daemon: Daemon, volume: Path) -> None:
    before = tree(volume)
    answer = run("resize", str(daemon.url), "16MiB", "--discard")
    assert answer.code == 0
    assert daemon.asked == [("resize", {"size": 16 << 20, "discard": True})]
    assert "16 MiB, before 8 MiB" in answer.out and "losetup -c /dev/loop7" in answer.out
    assert tree(volume) == before


def test_a_daemons_refusal_is_the_commands(run: Run, daemon: Daemon) -> None:
    answer = run("resize", str(daemon.url), "12345")
    assert (answer.code, answer.sentence(), answer.hint()) == (2, "size 12345 is not a multiple", "Use another.")


@pytest.mark.parametrize("words", [("erase", "{}", "--yes", "--force"), ("unlock", "{}")])
def test_what_is_served_here_is_neither_erased_nor_unlocked(
    run: Run, daemon: Daemon, volume: Path, words: tuple[str, ...]
) -> None:
    before = tree(volume)
    answer = run(*(word.replace("{}", str(daemon.url)) for word in words))
    assert answer.code == 6
    assert daemon.mountpoint in answer.sentence() and "s3backer unmount" in answer.hint()
    assert tree(volume) == before
    assert (volume / TOKEN_NAME).exists()


@pytest.mark.parametrize("by", ["url", "mountpoint"])
def test_unmount_waits_until_the_daemon_has_ended(run: Run, daemon: Daemon, by: str) -> None:
    answer = run("unmount", str(daemon.url) if by == "url" else daemon.mountpoint)
    back = time.monotonic()
    assert (answer.code, answer.err) == (0, "")
    assert [name for name, _ in daemon.asked] == ["unmount"]
    assert 0 < daemon.ended_at <= back


def test_unmount_says_that_the_daemon_waits(run: Run, daemon: Daemon) -> None:
    daemon.settles_in = 93.4
    answer = run("unmount", daemon.mountpoint)
    assert (answer.code, answer.err) == (0, "waits 93 s for requests that may still arrive\n")


OUTAGE = {"unsaved_blocks": 3, "write_back_error": "it is away"}


@pytest.mark.parametrize(
    ("reports", "said"),
    [
        ([OUTAGE] * 3, ["write-back fails: it is away; it is tried again"]),
        (
            [OUTAGE, OUTAGE | {"write_back_error": "it is full"}, OUTAGE | {"write_back_error": None}],
            ["write-back fails: it is away; it is tried again", "write-back fails: it is full; it is tried again"],
        ),
        ([OUTAGE | {"write_back_error": None}] * 50, ["waiting for the store: 3 blocks are not stored yet"]),
        (
            [OUTAGE | {"write_back_error": None, "stores_in": 93.4}] * 50,
            ["waits 93 s for requests of the mount before that may still arrive: 3 blocks are not stored yet"],
        ),
        ([{"unsaved_blocks": left} for left in range(50, 0, -1)], []),
        ([OUTAGE | {"lost": True}] * 3, ["volume is lost: it is away; nothing is stored from here any more"]),
    ],
    ids=["fails", "fails otherwise", "says no reason", "waits for requests", "goes on", "lost"],
)
def test_unmount_says_once_why_nothing_is_stored(
    run: Run, daemon: Daemon, monkeypatch: pytest.MonkeyPatch, reports: list[dict[str, object]], said: list[str]
) -> None:
    monkeypatch.setattr("s3backer.cli.common._STALL_SECONDS", 0.2)
    daemon.reports = reports
    answer = run("unmount", daemon.mountpoint)
    assert (answer.code, answer.err.splitlines()) == (0, said)


def test_a_line_beside_a_bar_is_shown_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with unsaved_progress() as report:
        report({"unsaved_blocks": 3, "write_back_error": "[red] " + "long " * 40})
    assert f"write-back fails: [red] {'long ' * 40}; it is tried again" in capsys.readouterr().err


def test_a_mount_that_is_about_to_end_is_shown_as_such(run: Run, daemon: Daemon) -> None:
    assert "about to end" not in run("info", str(daemon.url)).out
    daemon.ending = True
    assert "here on /mnt/s3backer-test by process" in (shown := run("info", str(daemon.url)).out)
    assert "which is about to end" in shown


@pytest.mark.parametrize("lives", [True, False])
def test_unmount_believes_no_end_that_it_could_not_ask_for(run: Run, daemon: Daemon, lives: bool) -> None:
    """Of a process of another namespace nothing else is known: as many clients as may were just asking it."""
    daemon.where = {"processes": "pid:[1]"}
    daemon.last_signal = signal.SIGCONT
    daemon.refusals = 2
    if lives:
        daemon.close_error = failure("the store is away", "Wait.", 3)
    answer = run("unmount", daemon.mountpoint)
    assert (answer.code, daemon.refusals) == (3 if lives else 0, 0)


def test_unmount_asks_the_daemon_that_it_found_and_no_later_one(
    run: Run, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next mount of the volume may be elsewhere, and in use by others."""

    def later(ident: str, command: str, *args: Any, **more: Any) -> dict[str, object] | None:
        answer = asking.call(ident, command, *args, **more)
        daemon.where = {"pid": 1}
        return answer

    monkeypatch.setattr(unmount_module, "call", later)
    assert run("unmount", daemon.mountpoint).code == 0
    assert daemon.asked == [("unmount", {"pid": daemon.process.pid, "processes": None})]


def test_unmount_waits_for_no_later_mount_whose_process_has_the_same_number(
    run: Run, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that is started anew when it has ended: it is 1 there each time."""
    daemon.where = {"processes": "pid:[1]"}
    daemon.last_signal = signal.SIGCONT
    daemon.refusals = 3

    def later(ident: str, command: str, *args: Any, **more: Any) -> dict[str, object] | None:
        if command == "ended":
            daemon.where = {"processes": "pid:[2]"}
        return asking.call(ident, command, *args, **more)

    monkeypatch.setattr(unmount_module, "call", later)
    answer = run("unmount", daemon.mountpoint)
    assert (answer.code, daemon.refusals) == (7, 2)
    assert answer.sentence() == f"process {daemon.process.pid} ended before it had said that everything is stored"


def test_that_a_daemon_died_is_seen_before_somebody_removes_its_socket(
    run: Run, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As whoever looks for a daemon does."""
    sockets.mkdir(mode=0o700, exist_ok=True)
    command = [sys.executable, "-c", DIES, str(sockets / f"{'a' * 32}.sock"), "info unmount ended", "says nothing"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"

        def look() -> None:
            process.wait()
            time.sleep(0.5)
            asking.call("a" * 32, "info")

        looked = threading.Thread(target=look)
        looked.start()
        answer = run("unmount", "/mnt/dies")
        looked.join()
    assert answer.code == 7 and "ended before it had said" in answer.sentence()


def unmounts_the_later_one(run: Run, daemon: Daemon, sockets: Path, **facts: object) -> None:
    """Unmount where another daemon, the first one in order, says the same mount point and these facts."""
    asked: list[str] = []

    def info(arguments: Mapping[str, object], progress: Progress) -> Mapping[str, object]:
        return {"mountpoint": daemon.mountpoint, "pid": os.getpid(), **facts}

    def unmount(arguments: Mapping[str, object], progress: Progress) -> Mapping[str, object]:
        asked.append("unmount")
        raise MountError("it is in use")

    before = ControlServer(sockets / f"{'0' * 32}.sock", {"info": info, "unmount": unmount})
    before.start()
    try:
        answer = run("unmount", daemon.mountpoint)
    finally:
        before.stop()
    assert (answer.code, asked, [name for name, _ in daemon.asked]) == (0, [], ["unmount"])


def test_unmount_means_the_mount_that_is_there_not_one_that_was(run: Run, daemon: Daemon, sockets: Path) -> None:
    """The same mount point may be used anew while the daemon before still stores."""
    unmounts_the_later_one(run, daemon, sockets, ending=True)


def test_unmount_says_how_closing_ended(run: Run, daemon: Daemon) -> None:
    """With the code that the error has, as if the command itself had met it."""
    daemon.close_error = failure("1 blocks cannot be stored", "They are in the journal.", 8)
    answer = run("unmount", daemon.mountpoint)
    assert (answer.code, answer.sentence(), answer.hint()) == (
        8,
        "1 blocks cannot be stored",
        "They are in the journal.",
    )


DIES = """
import os, signal, sys, threading, time
from pathlib import Path
from s3backer.control.server import ControlServer

facts = {"pid": os.getpid(), "mountpoint": "/mnt/dies", "settles_in": 0.0}
asked = []

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def handler(command):
    def answer(arguments, progress):
        asked.append(command)
        if " ".join(asked) != sys.argv[2]:
            return facts
        if sys.argv[3] == "answers":
            threading.Timer(0.1, die).start()
            return facts
        if sys.argv[3] == "reports":
            progress({"unsaved_blocks": 7})
            time.sleep(0.3)
        die()
    return answer

handlers = {command: handler(command) for command in ("info", "unmount", "ended")}
ControlServer(Path(sys.argv[1]), handlers).start()
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("when", "how"),
    [
        ("info", "answers"),
        ("info unmount", "answers"),
        ("info unmount ended", "says nothing"),
        ("info unmount ended", "reports"),
    ],
)
def test_unmount_says_that_the_daemon_died_while_it_stored(
    run: Run, sockets: Path, monkeypatch: pytest.MonkeyPatch, when: str, how: str
) -> None:
    def slow(*args: Any, **more: Any) -> dict[str, object] | None:
        answer = asking.call(*args, **more)
        if how == "answers" and not process.poll():
            # Who dies after an answer is dead when the next thing is asked.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
        return answer

    monkeypatch.setattr(unmount_module, "call", slow)
    sockets.mkdir(mode=0o700, exist_ok=True)
    command = [sys.executable, "-c", DIES, str(sockets / f"{'a' * 32}.sock"), when, how]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        answer = run("unmount", "/mnt/dies")
    assert answer.code == 7
    assert answer.sentence() == f"process {process.pid} ended before it had said that everything is stored"


def test_unmount_waits_for_no_process_of_another_namespace(run: Run, daemon: Daemon) -> None:
    """Here its number is another one's, which may never end."""
    daemon.where = {"processes": "pid:[1]"}
    daemon.last_signal = signal.SIGCONT
    began = time.monotonic()
    assert run("unmount", daemon.mountpoint).code == 0
    assert time.monotonic() < began + 5 and daemon.process.poll() is None


def test_unmount_means_the_mount_that_is_there_not_one_that_was_taken_away_while_in_use(
    run: Run, daemon: Daemon, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon serves on after a lazy unmount, and what is at its mount point then may be another's."""
    mounted = Mount(1, "0:99", daemon.mountpoint, FUSE_TYPE, "file:///v")
    monkeypatch.setattr(unmount_module, "find_mount", lambda path: mounted if path == mounted.path else None)
    daemon.where = {"device": "0:99"}
    unmounts_the_later_one(run, daemon, sockets, ending=False, device="0:98")


def test_the_root_of_a_mount_is_not_asked_for_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where its process is stopped that would wait for ever."""
    real, link = tmp_path / "real", tmp_path / "link"
    (real / "mnt").mkdir(parents=True)
    link.symlink_to(real)
    lstat = os.lstat

    def asked(path: str, **more: Any) -> os.stat_result:
        assert os.path.basename(path) != "mnt"
        return lstat(path, **more)

    mounted = Mount(1, "0:99", str(real / "mnt"), FUSE_TYPE, "file:///v")
    monkeypatch.setattr(mountpoint, "find_mount", lambda path: mounted if path == mounted.path else None)
    monkeypatch.setattr(os, "lstat", asked)
    (tmp_path / "straight").symlink_to(link / "mnt")
    for name in (link / "mnt", f"{link}/mnt/", f"{link}/../link/mnt", tmp_path / "straight"):
        assert resolve_mountpoint(str(name)) == mounted.path
    monkeypatch.setattr(os, "lstat", lstat)
    with pytest.raises(UsageError, match="an empty name"):
        resolve_mountpoint("")
    assert resolve_mountpoint(f"{link}/mnt/..") == str(real)


@pytest.mark.parametrize("character", ["\u00a0", "\u3000", "\x0c", "\x1c", "\r", "\u2028", "\x85"])
def test_a_name_in_the_mount_table_may_have_any_character(tmp_path: Path, character: str) -> None:
    """The kernel escapes but four, and no other one ends a name or a line."""
    table = tmp_path / "mountinfo"
    table.write_bytes(f"36 35 0:50 / /mnt/a{character}b rw,nosuid - fuse.s3backer src rw\n".encode())
    assert [mount.path for mount in read_mounts(str(table))] == [f"/mnt/a{character}b"]


def test_progress_that_cannot_be_shown_says_nothing_of_the_daemon(
    run: Run, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standard error goes to a full disk, or to a pipe that nobody reads any more."""

    @contextlib.contextmanager
    def shown() -> Iterator[Callable[[dict[str, object]], None]]:
        def show(facts: dict[str, object]) -> None:
            if facts.get("write_back_error"):
                raise OSError(28, "No space left on device")

        yield show

    daemon.reports = [OUTAGE] * 3
    monkeypatch.setattr(unmount_module, "unsaved_progress", shown)
    assert run("unmount", daemon.mountpoint).code == 0


def test_who_only_reads_is_not_said_to_have_the_volume(sockets: Path) -> None:
    """Another host has it."""
    facts = {"pid": 1, "mountpoint": "/ro", "opened": 1.0, "read_only": True, "lost": False}
    server = ControlServer(sockets / "ab.sock", {"info": lambda arguments, progress: facts})
    server.start()
    try:
        error = _with_place(VolumeInUse("mounted by another host", hint="Unmount it there."), "ab")
    finally:
        server.stop()
    assert (error.message, error.hint) == ("mounted by another host", "Unmount it there.")


def test_unmount_of_what_is_busy_says_how_to_go_on(run: Run, daemon: Daemon) -> None:
    daemon.busy = True
    answer = run("unmount", daemon.mountpoint)
    assert answer.code == 7
    assert "busy" in answer.sentence() and "losetup -d" in answer.hint()
    assert daemon.process.poll() is None


def test_check_says_where_it_is_mounted_and_repairs_nothing(
    run: Run, daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    answer = run("check", str(daemon.url))
    assert answer.code == 0 and f"{daemon.url} is mounted here on {daemon.mountpoint}" in answer.out
    answer = run("check", str(daemon.url), "--repair", "--yes")
    assert answer.code == 6 and f"is mounted here on {daemon.mountpoint}" in answer.sentence()


# ── a daemon that does not answer ────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def stopped(volume: Path, sockets: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """Let a process that is stopped listen where the daemon of ``volume`` does."""
    monkeypatch.setattr(asking, "SILENCE", 0.2)
    monkeypatch.setattr(unmount_module, "_SILENCE", 0.1)
    with stopped_daemon(sockets / f"{socket_name(DirectoryStore(volume), '')}.sock") as process:
        yield process


@pytest.mark.parametrize(
    "words",
    [("info",), ("unmount",), ("unlock",), ("resize", "16MiB"), ("check",), ("recover",), ("erase", "--yes")],
    ids=lambda words: words[0],
)
def test_no_command_waits_for_a_daemon_that_is_stopped(
    run: Run, stopped: subprocess.Popen[bytes], volume: Path, words: tuple[str, ...]
) -> None:
    before = tree(volume)
    command, *more = words
    answer = run(command, f"file://{volume}", *more)
    assert answer.code == 1
    assert answer.sentence() == f"process {stopped.pid} serves this volume and does not answer: it is stopped"
    assert answer.hint() == f"Let it go on: kill -CONT {stopped.pid}"
    assert tree(volume) == before


def test_unmount_leaves_a_mount_point_whose_daemon_may_be_stopped(
    run: Run, stopped: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path)
    monkeypatch.setattr(unmount_module, "find_mount", lambda path: Mount(1, "0:99", path, FUSE_TYPE, "file:///v"))
    answer = run("unmount", path)
    assert answer.code == 7
    assert answer.sentence() == (
        f"{path} is left as it is: process {stopped.pid}, which may serve it, does not answer: it is stopped"
    )
    assert f"kill -CONT {stopped.pid}" in answer.hint() and f"fusermount -u {path}" in answer.hint()


def test_unmount_asks_once_more_who_was_slow(run: Run, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy for a moment is no reason to take the mount away without its daemon."""
    monkeypatch.setattr(unmount_module, "_SILENCE", 0.1)
    monkeypatch.setattr(unmount_module, "find_mount", lambda path: Mount(1, "0:99", path, FUSE_TYPE, "file:///v"))
    daemon.slow = 0.5
    answer = run("unmount", daemon.mountpoint)
    assert (answer.code, answer.err) == (0, "")
    assert [name for name, _ in daemon.asked] == ["unmount"]


def test_unmount_does_not_wait_for_the_end_of_a_daemon_that_is_stopped(run: Run, daemon: Daemon) -> None:
    daemon.last_signal = signal.SIGSTOP
    answer = run("unmount", daemon.mountpoint)
    assert answer.code == 1 and "it is stopped" in answer.sentence()


@pytest.mark.parametrize(
    "words",
    [("check", "--repair"), ("erase", "--yes"), ("recover",), ("unlock",), ("import-cache",)],
    ids=lambda words: words[0],
)
def test_the_way_to_unmount_it_can_be_run_as_it_stands(
    run: Run, volume: Path, sockets: Path, words: tuple[str, ...]
) -> None:
    odd = volume.rename(volume.parent / "it's a volume; not two")
    command, *more = words
    if command == "import-cache":
        more.append(str(put_cache_file(volume.parent / "cache", [], block_size=64 << 10, token=1)))
    with serving(odd, sockets) as daemon:
        answer = run(command, *more, f"file://{odd}")
        assert answer.code == 6 and f"{daemon.url} is mounted here" in answer.sentence()
    assert shlex.split(answer.hint().partition(": ")[2]) == ["s3backer", "unmount", f"file://{odd}"]
