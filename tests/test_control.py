"""The control socket: its protocol, and what garbage, strangers and the dead do to it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s3backer import mountpoint
from s3backer.control import asking, sockets
from s3backer.control import server as server_module
from s3backer.control.asking import ask, call, find_daemons, has_died
from s3backer.control.messages import MAX_LINE, Progress
from s3backer.control.server import MAX_CLIENTS, ControlServer, listen
from s3backer.control.sockets import control_path, socket_names
from s3backer.errors import DaemonSilent, S3backerError, VolumeInUse
from s3backer.mountpoint import Mount
from tests.support.commands import stopped_daemon


def echo(arguments: Mapping[str, object], progress: Progress) -> dict[str, object]:
    return dict(arguments)


def slow(arguments: Mapping[str, object], progress: Progress) -> dict[str, object]:
    for left in (3, 2, 1):
        progress({"left": left})
    return {"left": 0}


def fail(arguments: Mapping[str, object], progress: Progress) -> dict[str, object]:
    raise VolumeInUse("it is mounted", hint="unmount it")


def defect(arguments: Mapping[str, object], progress: Progress) -> dict[str, object]:
    raise KeyError("inner detail")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "s3backer" / "id.sock"


@pytest.fixture
def server(path: Path) -> Iterator[ControlServer]:
    server = ControlServer(path, {"echo": echo, "slow": slow, "fail": fail, "defect": defect})
    server.start()
    yield server
    server.stop()


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    connection.connect(str(path))
    return connection


def exchange(connection: socket.socket, data: bytes) -> dict[str, object]:
    connection.sendall(data)
    with connection.makefile("rb") as answers:
        return dict(json.loads(answers.readline()))


def test_a_call_is_answered(server: ControlServer, path: Path) -> None:
    assert call("id", "echo", {"size": 5, "text": "ü\n"}, path=path) == {"size": 5, "text": "ü\n"}


def test_progress_comes_before_the_result(server: ControlServer, path: Path) -> None:
    seen: list[dict[str, object]] = []
    assert call("id", "slow", None, seen.append, path=path) == {"left": 0}
    assert seen == [{"left": 3}, {"left": 2}, {"left": 1}]


def test_an_error_arrives_with_hint_and_exit_code(server: ControlServer, path: Path) -> None:
    with pytest.raises(S3backerError) as caught:
        call("id", "fail", path=path)
    assert (caught.value.message, caught.value.hint, caught.value.exit_code) == ("it is mounted", "unmount it", 6)


def test_a_defect_is_named_without_details(server: ControlServer, path: Path) -> None:
    with pytest.raises(S3backerError, match="unexpected KeyError") as caught:
        call("id", "defect", path=path)
    assert "inner detail" not in str(caught.value)
    assert call("id", "echo", path=path) == {}


def test_an_unknown_command_names_the_known_ones(server: ControlServer, path: Path) -> None:
    with pytest.raises(S3backerError, match="'format'") as caught:
        call("id", "format", path=path)
    assert caught.value.exit_code == 2
    assert "defect, echo, fail, slow" in caught.value.hint


def test_permissions(server: ControlServer, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_several_requests_on_one_connection(server: ControlServer, path: Path) -> None:
    with connect(path) as connection:
        for number in range(3):
            answer = exchange(connection, json.dumps({"version": 1, "command": "echo", "n": number}).encode() + b"\n")
            assert answer == {"version": 1, "ok": True, "result": {"n": number}}


@pytest.mark.parametrize(
    "line",
    [
        b"hello\n",
        b"[]\n",
        b"null\n",
        b"\xff\xfe\n",
        b"{}\n",
        b'{"version": 2, "command": "echo"}\n',
        b'{"version": 1}\n',
        b'{"version": 1, "command": ["echo"]}\n',
        b"[" * 20000 + b"\n",
    ],
)
def test_a_line_that_is_not_understood_is_answered(server: ControlServer, path: Path, line: bytes) -> None:
    with connect(path) as connection:
        answer = exchange(connection, line)
        assert answer["ok"] is False and answer["exit_code"] == 2 and answer["error"] and answer["hint"]
        assert exchange(connection, b'{"version":1,"command":"echo"}\n')["ok"] is True


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_garbage_never_stops_the_server(server: ControlServer, path: Path, garbage: bytes) -> None:
    with connect(path) as connection:
        connection.sendall(garbage + b"\n")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
    assert call("id", "echo", path=path) == {}


def test_a_line_that_is_too_long_ends_its_connection(server: ControlServer, path: Path) -> None:
    with connect(path) as connection, pytest.raises((BrokenPipeError, ConnectionResetError)):
        for _ in range(1000):
            connection.sendall(b"x" * MAX_LINE)
    assert call("id", "echo", path=path) == {}


def test_the_longest_line_is_served(server: ControlServer, path: Path) -> None:
    frame = len(json.dumps({"version": 1, "command": "echo", "t": ""}, separators=(",", ":")))
    text = "x" * (MAX_LINE - frame)
    assert call("id", "echo", {"t": text}, path=path) == {"t": text}


def test_a_client_that_vanishes_harms_nobody(path: Path) -> None:
    go, done = threading.Event(), threading.Event()

    def talk(arguments: Mapping[str, object], progress: Progress) -> dict[str, object]:
        go.wait(20)
        for _ in range(100):
            progress({"text": "x" * 10000})
        done.set()
        return {}

    server = ControlServer(path, {"talk": talk, "echo": echo})
    server.start()
    try:
        with connect(path) as connection:
            connection.sendall(b'{"version":1,"command":"talk"}\n')
        go.set()
        assert done.wait(20)
        assert call("id", "echo", path=path) == {}
    finally:
        server.stop()


def test_a_client_that_says_nothing_does_not_keep_the_server_from_stopping(server: ControlServer, path: Path) -> None:
    with connect(path) as silent:
        assert call("id", "echo", path=path) == {}
        server.stop()
        assert silent.recv(1) == b""
    assert not path.exists()
    assert not [t for t in threading.enumerate() if t.name.startswith("s3backer-control")]


def test_stop_lets_a_running_command_answer(path: Path) -> None:
    started, go = threading.Event(), threading.Event()

    def wait(arguments: Mapping[str, object], progress: Progress) -> dict[str, object]:
        started.set()
        go.wait(20)
        return {"done": True}

    server = ControlServer(path, {"wait": wait})
    server.start()
    with connect(path) as connection:
        connection.sendall(b'{"version":1,"command":"wait"}\n')
        assert started.wait(20)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        while path.exists():
            time.sleep(0.01)
        go.set()
        with connection.makefile("rb") as answers:
            assert json.loads(answers.readline())["result"] == {"done": True}
        stopping.join(20)
        assert not stopping.is_alive()


def test_too_many_clients_are_turned_away_and_come_back(server: ControlServer, path: Path) -> None:
    crowd = [connect(path) for _ in range(MAX_CLIENTS)]
    for connection in crowd:
        assert exchange(connection, b'{"version":1,"command":"echo"}\n')["ok"] is True
    with pytest.raises(S3backerError, match="did not answer"):
        call("id", "echo", path=path)
    for connection in crowd:
        connection.close()
    deadline = time.monotonic() + 20
    while True:
        try:
            assert call("id", "echo", path=path) == {}
            return
        except S3backerError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_no_daemon_is_none(path: Path) -> None:
    assert call("id", "echo", path=path) is None
    path.parent.mkdir(parents=True, mode=0o700)
    assert call("id", "echo", path=path) is None


def stale(path: Path) -> None:
    path.parent.mkdir(parents=True, mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


def test_the_socket_of_a_dead_daemon_is_removed(path: Path) -> None:
    stale(path)
    assert call("id", "echo", path=path) is None
    assert not path.exists()


def test_a_daemon_takes_the_place_of_a_dead_one(path: Path) -> None:
    stale(path)
    server = ControlServer(path, {"echo": echo})
    server.start()
    try:
        assert call("id", "echo", path=path) == {}
    finally:
        server.stop()


def test_a_second_daemon_is_refused_and_leaves_the_first_alone(server: ControlServer, path: Path) -> None:
    second = ControlServer(path, {})
    with pytest.raises(S3backerError, match="another daemon"):
        second.start()
    second.stop()
    assert call("id", "echo", path=path) == {}


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ControlServer]]:
    """Return what lets another daemon of one volume listen; it says these facts of its mount."""
    monkeypatch.setattr(sockets, "control_directory", lambda: tmp_path / "sockets")
    servers: list[ControlServer] = []

    def serve(**facts: object) -> ControlServer:
        servers.append(listen("id", {"info": lambda arguments, progress: facts, "echo": lambda *_: facts}))
        return servers[-1]

    yield serve
    for server in servers:
        server.stop()
    assert socket_names("id") == ["id"]


def test_several_daemons_of_a_volume_listen_and_none_leaves_its_socket(
    names: Callable[..., ControlServer], tmp_path: Path
) -> None:
    assert find_daemons("id") == [] and ask("id", "info") is None
    first, _, _ = (names(pid=pid) for pid in range(3))
    assert [found.facts["pid"] for found in find_daemons("id")] == [0, 1, 2]
    assert socket_names("id") == ["id", "id-2", "id-3"]
    first.stop()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "sockets" / "id-4.sock"))
    # The dead are removed, and a name that is free again is taken.
    assert [found.name for found in find_daemons("id")] == ["id-2", "id-3"]
    assert socket_names("id") == ["id", "id-2", "id-3"]
    names(pid=4)
    assert [found.name for found in find_daemons("id")] == ["id", "id-2", "id-3"]


def test_a_dead_daemons_name_is_taken_before_another_one(names: Callable[..., ControlServer], tmp_path: Path) -> None:
    names()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "sockets" / "id-2.sock"))
    names()
    assert socket_names("id") == ["id", "id-2"] and len(find_daemons("id")) == 2


def test_the_daemon_that_has_the_volume_is_asked(names: Callable[..., ControlServer]) -> None:
    names(pid=0, lost=True, opened=5.0)
    assert ask("id", "echo") == {"pid": 0, "lost": True, "opened": 5.0}
    names(pid=1, read_only=True, opened=4.0)
    names(pid=2, ending=True, opened=3.0)
    names(pid=3, opened=1.0)
    names(pid=4, opened=2.0)
    assert [found.facts["pid"] for found in find_daemons("id")] == [4, 3, 2, 1, 0]
    answer = ask("id", "echo")
    assert answer is not None and answer["pid"] == 4


def test_one_that_may_have_the_volume_and_is_silent_is_an_error(
    names: Callable[..., ControlServer], tmp_path: Path
) -> None:
    names(pid=0, lost=True)
    with stopped_daemon(tmp_path / "sockets" / "id-2.sock") as process:
        with pytest.raises(DaemonSilent, match=f"process {process.pid}"):
            find_daemons("id", silence=0.2)
        # It is in nobody's way either.
        names(pid=1)
        assert [found.facts["pid"] for found in find_daemons("id", silence=0.2)] == [1, 0]
    find_daemons("id")


def test_the_number_of_daemons_has_an_end(names: Callable[..., ControlServer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_DAEMONS", 2)
    names()
    names()
    with pytest.raises(S3backerError, match="another daemon"):
        names()


def test_stop_leaves_a_successors_socket_alone(server: ControlServer, path: Path) -> None:
    path.unlink()
    successor = ControlServer(path, {"echo": echo})
    successor.start()
    server.stop()
    try:
        assert call("id", "echo", path=path) == {}
    finally:
        successor.stop()


def test_a_directory_open_to_others_is_not_used(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.parent.chmod(0o755)
    for action in (lambda: call("id", "echo", path=path), lambda: ControlServer(path, {}).start()):
        with pytest.raises(S3backerError, match="not private") as caught:
            action()
        assert "chmod 700" in caught.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a directory to another user needs root")
def test_a_directory_of_another_user_is_not_used(path: Path) -> None:
    path.parent.mkdir(parents=True, mode=0o700)
    os.chown(path.parent, 65534, 65534)
    with pytest.raises(S3backerError, match="not private"):
        call("id", "echo", path=path)


def test_a_directory_that_is_a_symbolic_link_is_not_used(path: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    path.parent.parent.mkdir()
    path.parent.symlink_to(tmp_path / "real")
    with pytest.raises(S3backerError, match="cannot be used"):
        ControlServer(path, {}).start()


def test_a_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    path = tmp_path / ("d" * 150) / "s3backer" / "id.sock"
    server = ControlServer(path, {"echo": echo})
    server.start()
    try:
        assert call("id", "echo", path=path) == {}
    finally:
        server.stop()
    assert not path.exists()


def fake_daemon(path: Path, behave: Callable[[socket.socket], object]) -> threading.Thread:
    path.parent.mkdir(parents=True, mode=0o700)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with listener, listener.accept()[0] as connection:
            connection.settimeout(20)
            connection.recv(65536)
            behave(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "closed the connection"),
        (b'{"version":1,"progress":{}}\n{"version":1,"ok":tr', "closed the connection"),
        (b"nonsense\n", "not a JSON object"),
        (b'{"version":1,"ok":true}\n', "not understood"),
        (b'{"version":1,"ok":false,"exit_code":"7"}\n', "not understood"),
        (b"x" * (3 * MAX_LINE), "more than"),
    ],
)
def test_a_broken_daemon_is_an_error_and_no_hang(path: Path, answer: bytes, message: str) -> None:
    def behave(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(answer)

    thread = fake_daemon(path, behave)
    with pytest.raises(S3backerError, match=message):
        call("id", "echo", path=path)
    thread.join(20)


def test_a_silent_daemon_is_an_error_and_no_hang(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "SILENCE", 0.2)
    over = threading.Event()
    thread = fake_daemon(path, lambda connection: bool(over.wait(20)))
    with pytest.raises(DaemonSilent, match="said nothing") as caught:
        call("id", "echo", path=path)
    assert caught.value.who == f"process {os.getpid()}" and "try again" in caught.value.hint
    over.set()
    thread.join(20)


def test_a_daemon_that_is_stopped_is_an_error_that_says_so(path: Path) -> None:
    path.parent.mkdir(parents=True, mode=0o700)
    with stopped_daemon(path) as process:
        with pytest.raises(DaemonSilent) as caught:
            call("id", "echo", path=path, silence=0.2)
        assert str(caught.value) == (f"process {process.pid} serves this volume and does not answer: it is stopped")
        assert caught.value.hint == f"Let it go on: kill -CONT {process.pid}"


def test_what_a_client_has_given_up_is_not_done_later(path: Path) -> None:
    """It has told its user that nothing was done; a daemon that was stopped reads it when it goes on."""
    done: list[object] = []

    def resize(request: Mapping[str, object], progress: Progress) -> dict[str, object]:
        done.append(request["size"])
        return {}

    server, go_on = ControlServer(path, {"resize": resize}), threading.Event()
    serve = server._serve

    def later(connection: socket.socket) -> None:
        go_on.wait(20)
        serve(connection)

    server._serve = later  # type: ignore[method-assign]
    server.start()
    try:
        with pytest.raises(DaemonSilent):
            call("id", "resize", {"size": 1}, path=path, silence=0.5)
        time.sleep(0.5)
        go_on.set()
        assert call("id", "resize", {"size": 2}, path=path) == {}
    finally:
        server.stop()
    assert done == [2]


def listener(directory: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object]) -> ControlServer:
    """Return a server, A; ``meanwhile`` something happens while it begins to listen."""
    monkeypatch.setattr(sockets, "control_directory", lambda: directory)
    chmod = os.chmod

    def then(path: str, mode: int) -> None:
        chmod(path, mode)
        monkeypatch.setattr(os, "chmod", chmod)
        meanwhile()

    monkeypatch.setattr(os, "chmod", then)
    return listen("ab", {"info": lambda arguments, progress: {"pid": "A", "opened": 1.0}})


def found() -> list[str]:
    return sorted(str(daemon.facts["pid"]) for daemon in find_daemons("ab"))


def test_who_begins_to_listen_is_not_taken_for_dead(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = listener(path.parent, monkeypatch, lambda: call("ab", "info"))
    try:
        assert found() == ["A"]
    finally:
        server.stop()
    assert not list(path.parent.glob("ab*"))


def test_two_that_begin_at_once_have_a_socket_each(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others: list[ControlServer] = []

    def begin() -> None:
        others.append(listen("ab", {"info": lambda arguments, progress: {"pid": "B", "opened": 1.0}}))

    server = listener(path.parent, monkeypatch, begin)
    try:
        assert found() == ["A", "B"]
    finally:
        server.stop()
    try:
        assert found() == ["B"]
    finally:
        others[0].stop()


def test_a_new_daemon_keeps_the_socket_that_a_client_found_dead(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it gets the dead one's inode number, as on ext4."""
    path.parent.mkdir(parents=True, mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    changing = sockets.changing
    started: list[ControlServer] = []

    @contextlib.contextmanager
    def late(directory: int) -> Iterator[None]:
        if not started:
            started.append(ControlServer(path, {"info": echo}))
            started[0].start()
        with changing(directory):
            yield

    monkeypatch.setattr(sockets, "identity", lambda directory, name: (0, 0))
    monkeypatch.setattr(sockets, "changing", late)
    assert call("id", "info", path=path) is None
    monkeypatch.undo()
    assert call("id", "info", path=path) == {}
    started[0].stop()


def test_what_only_asks_is_answered_however_late(path: Path) -> None:
    """Who asks which daemon serves a mount point takes an error for another one's."""
    server = ControlServer(path, {"info": echo})
    server.start()
    try:
        assert call("id", "info", {"until": 0.0}, path=path) == {}
        with pytest.raises(S3backerError, match="too long ago"):
            call("id", "flush", {"until": 0.0}, path=path)
    finally:
        server.stop()


def test_a_command_from_where_the_clock_is_another_is_carried_out(path: Path) -> None:
    """Each namespace of times, as of a container, has one."""
    server = ControlServer(path, {"flush": echo})
    server.start()
    try:
        code = (
            "import sys, pathlib, s3backer.control.asking as c; c.call('id', 'flush', path=pathlib.Path(sys.argv[1]))"
        )
        other = ("unshare", "--time", "--boottime", "-100", sys.executable, "-c", code, str(path))
        done = subprocess.run(other, capture_output=True, text=True, check=False, timeout=60)
        if "unshare" in done.stderr:
            pytest.skip(done.stderr)
        assert done.returncode == 0, done.stderr
    finally:
        server.stop()


def test_a_daemon_for_which_too_many_wait_is_an_error_and_no_hang(path: Path) -> None:
    path.parent.mkdir(parents=True, mode=0o700)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        stack.enter_context(connect(path))
        with pytest.raises(DaemonSilent, match="too many wait for it"):
            call("id", "echo", path=path)
    assert call("id", "echo", path=path) is None


def test_where_the_socket_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert control_path("ab") == Path("/run/s3backer/ab.sock")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert control_path("ab") == Path("/run/user/1000/s3backer/ab.sock")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert control_path("ab") == Path("/tmp/s3backer-1000/ab.sock")


def test_without_a_thread_for_a_client_the_next_one_is_served(
    server: ControlServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, failures = threading.Thread.start, [RuntimeError("can't start new thread"), MemoryError()]

    def meager(thread: threading.Thread) -> None:
        if thread.name.startswith("s3backer-control-") and failures:
            raise failures.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", meager)
    for _ in range(2):
        with pytest.raises(S3backerError, match="did not answer"):
            call("id", "echo", path=path)
    assert call("id", "echo", path=path) is not None
    assert not failures


def test_a_caller_says_how_long_it_waits(path: Path) -> None:
    path.parent.mkdir(parents=True, mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(S3backerError, match="has said nothing for 0 s"):
            call("id", "echo", path=path, silence=0.2)


def test_who_has_died_is_known_by_the_socket_that_is_left(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that ends takes it away, unless what it closed was not closed well."""
    monkeypatch.setattr(sockets, "control_directory", lambda: path.parent)
    monkeypatch.setattr(asking, "_LEAVE_SECONDS", 0.1)
    assert not has_died("id")
    for keep in (False, True):
        server = ControlServer(path, {"echo": echo})
        server.start()
        assert not has_died("id")
        server.stop(keep=keep)
        assert call("id", "echo", keep=True) is None
        assert has_died("id") is keep
    assert call("id", "echo") is None
    assert not has_died("id")


def test_a_daemon_that_ends_leaves_the_socket_of_the_next_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever puts another one there waits until it has looked whose that is, and removed it."""
    server = ControlServer(path, {"echo": echo})
    server.start()
    unlink, changed = os.unlink, []

    def seen(*args: Any, **more: Any) -> None:
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(directory)
        changed.append(args)
        unlink(*args, **more)

    monkeypatch.setattr(os, "unlink", seen)
    server.stop()
    assert changed and not path.exists()


def test_who_keeps_the_directory_locked_holds_no_daemon(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As somebody may, to keep it from being cleaned."""
    monkeypatch.setattr(sockets, "_LOCK_SECONDS", 0.2)
    server = ControlServer(path, {"echo": echo})
    server.start()
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        stopping = threading.Thread(target=server.stop, daemon=True)
        stopping.start()
        stopping.join(10.0)
        assert not stopping.is_alive() and not path.exists()
        with pytest.raises(S3backerError, match="is locked by another process"):
            ControlServer(path, {"echo": echo}).start()
    finally:
        os.close(directory)


def test_a_mount_is_no_other_one_that_has_its_numbers_since(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel gives them to the next one; tests/mount/test_control_mounted.py has it happen, in make soak."""
    ours = Mount(71, "0:52", "/mnt/disk", "fuse.s3backer", "s3://bucket/disk")
    table = [replace(ours, path="/moved/disk")]
    monkeypatch.setattr(mountpoint, "read_mounts", lambda: table)
    assert mountpoint.find_again(ours) == table[0]
    for other in (replace(ours, kind="tmpfs"), replace(ours, source="s3://other"), replace(ours, mount_id=72)):
        table[:] = [replace(other, path="/elsewhere")]
        assert mountpoint.find_again(ours) is None
