"""What the service manager is told, by the class alone and by real mounts."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3backer.mountpoint import find_mount
from s3backer.system.notify import EXTENSION, Service
from tests.support.mounts import needs_mounts, wait_until
from tests.support.workbench import Workbench, write_unflushed

EXTENDED = f"EXTEND_TIMEOUT_USEC={EXTENSION * 1_000_000}"


class Manager:
    """Stands for the service manager: collects the messages that come to its socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.messages: list[list[str]] = []
        self.on_ready: list[bool] = []
        self.look = lambda: True
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.settimeout(0.05)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._collect)
        self._thread.start()

    def _collect(self) -> None:
        while not self._over.is_set():
            try:
                message = self._socket.recv(65536).decode().split("\n")
            except TimeoutError:
                continue
            if "READY=1" in message:
                self.on_ready.append(self.look())
            self.messages.append(message)

    def lines(self) -> list[str]:
        return [line for message in list(self.messages) for line in message]

    def count(self, line: str) -> int:
        return self.lines().count(line)

    def wait_for(self, line: str) -> None:
        wait_until(lambda: line in self.lines(), f"{line} is said")

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    found = Manager(str(tmp_path / "notify") if request.param == "path" else f"@s3backer-test-{os.getpid()}")
    yield found
    found.close()


# ── the class ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_readiness_is_one_message_of_lines(manager: Manager) -> None:
    Service.from_environment({"NOTIFY_SOCKET": manager.address}).ready("on /mnt/two\nlines")
    wait_until(lambda: manager.messages, "a message comes")
    assert manager.messages == [["READY=1", "STATUS=on /mnt/two lines"]]


def test_time_is_asked_for_only_when_less_is_left(manager: Manager) -> None:
    left = 3
    service = Service(manager.address, interval=0.01)
    service.stopping(lambda: left)
    service.stopping(lambda: 100)
    manager.wait_for("STATUS=ending, 3 blocks are left to store")
    assert (manager.count("STOPPING=1"), manager.count(EXTENDED)) == (1, 1)
    left = 2
    manager.wait_for("STATUS=ending, 2 blocks are left to store")
    assert manager.count(EXTENDED) == 2
    left = 9
    manager.wait_for("STATUS=ending, 9 blocks are left to store")
    left = 2
    wait_until(lambda: manager.count("STATUS=ending, 2 blocks are left to store") == 2, "2 blocks are left again")
    # Back to where it was is no step forward.
    assert manager.count(EXTENDED) == 2
    left = 0
    manager.wait_for("STATUS=ending, no block is left to store")
    service.close("done")
    manager.wait_for("STATUS=done")
    assert (manager.count("STOPPING=1"), manager.count(EXTENDED)) == (1, 3)
    assert not [thread for thread in threading.enumerate() if thread.name == "s3backer-notify"]


def test_the_wait_for_lost_answers_is_asked_for_with_its_length(manager: Manager) -> None:
    left, seconds = 1, 150.0
    service = Service(manager.address, interval=0.01)
    service.stopping(lambda: left, lambda: seconds)
    manager.wait_for("STATUS=ending, 1 blocks are left to store")
    left = 0
    manager.wait_for("STATUS=ending, waits 150 s for requests without an answer")
    seconds = 149.0
    service.close("done")
    manager.wait_for("STATUS=done")
    assert manager.count(f"EXTEND_TIMEOUT_USEC={(EXTENSION + 150) * 1_000_000}") == 1


def test_without_a_manager_nothing_happens() -> None:
    service = Service.from_environment({})
    service.ready("")
    service.stopping(lambda: pytest.fail("nobody asked"))
    service.close("")


@pytest.mark.parametrize("address", ["/nonexistent/notify", "@nobody-listens-here", "/" + "x" * 200])
def test_a_manager_that_cannot_be_reached_is_mentioned_once(address: str, caplog: pytest.LogCaptureFixture) -> None:
    service = Service(address)
    with caplog.at_level(logging.WARNING):
        service.ready("")
        service.close("")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert address in caplog.text


# ── mounts ───────────────────────────────────────────────────────────────────────────────────────────────────────


@needs_mounts
def test_a_mount_is_ready_when_it_answers_and_reports_what_it_stores(
    volume: Workbench, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    manager.look = lambda: bool(find_mount(str(volume.mountpoint))) and volume.file.stat().st_size == 1 << 20
    with volume.mounted(foreground=True) as mount:
        manager.wait_for("READY=1")
        assert manager.on_ready == [True]
        assert "STOPPING=1" not in manager.lines()
        write_unflushed(volume.file, 0, b"x" * (256 << 10))
        mount.signal(signal.SIGTERM)
        mount.wait()
        assert mount.process.returncode == 0
    manager.wait_for("STATUS=everything is stored")
    assert manager.count("READY=1") == manager.count("STOPPING=1") == 1
    assert manager.count(EXTENDED) >= 1
    assert volume.stored(0, 256 << 10) == b"x" * (256 << 10)


@needs_mounts
def test_an_unmount_is_an_end_too(volume: Workbench, manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    with volume.mounted(foreground=True) as mount:
        manager.wait_for("READY=1")
        mount.umount()
        mount.wait()
    assert manager.count("STOPPING=1") == 1
    assert manager.lines()[-1] == "STATUS=everything is stored"


@needs_mounts
def test_a_store_that_is_away_gets_no_more_time_until_it_is_back(
    volume: Workbench, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    with volume.mounted(foreground=True) as mount:
        manager.wait_for("READY=1")
        write_unflushed(volume.file, 0, b"x" * 8192)
        with volume.turned("outage"):
            mount.signal(signal.SIGTERM)
            volume.wait_reached("outage")
            manager.wait_for("STATUS=ending, 2 blocks are left to store")
            # Longer than the pauses between its looks and the daemon's attempts.
            threading.Event().wait(2.5)
            assert manager.count(EXTENDED) == 1
            assert mount.process.poll() is None
        mount.wait()
    assert volume.stored(0, 8192) == b"x" * 8192
    assert manager.lines()[-1] == "STATUS=everything is stored"
