"""The first writer's computer sleeps, or is a virtual machine that is paused, and goes on when the volume is another's.

It is a guest of QEMU's: what SIGSTOP does to a process (tests/stores/test_two_writers.py) is done to all of it. Asleep,
its clock of the time since it started goes on while everything else stands still; paused, all clocks stand still.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from s3backer.admin import create_volume
from s3backer.layouts.token import read_token
from s3backer.opening import VolumeOptions
from s3backer.stores.s3 import S3Store
from s3backer.volume import Volume
from tests.support.guest import NOT_HERE, Guest, can_run
from tests.support.mounts import wait_until
from tests.support.servers import MinioServer
from tools.fault_proxy import FaultProxy

pytestmark = [pytest.mark.usefixtures("same_clock"), pytest.mark.skipif(not can_run(), reason=NOT_HERE)]

BLOCK = 4096
SIZE = 16 * BLOCK
#: Seconds; the guest is emulated and slow.
LEASE, TIMEOUT = 6.0, 2.0
#: Seconds after which a lease has ended, and so few that a signature that ended meanwhile is seen by the clock.
PAUSE = 14.0
OPTIONS = VolumeOptions(memory=1 << 20, threads=4, write_delay=3600.0, list_blocks=False, lease=LEASE)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    directory = tmp_path_factory.mktemp("guest")
    with Guest(directory) as guest:
        yield guest


class Place:
    """A volume that the guest has opened, the guest's way to it, and our own."""

    def __init__(self, server: MinioServer, proxy: FaultProxy, guest: Guest) -> None:
        self.proxy, self.guest, self.writer = proxy, guest, guest.writer
        self.bucket = server.make_bucket()
        self._options = replace(server.options(), timeout=TIMEOUT)
        create_volume(self.store(), "", size=SIZE, block_size=BLOCK)
        way = replace(self._options, endpoint_url=guest.reach(proxy.url))
        self.writer.open(self.bucket, way, OPTIONS)
        assert self.writer.do("write", 3 * BLOCK, "a", BLOCK) == self.writer.do("flush") == "done"

    def store(self) -> S3Store:
        return S3Store(self.bucket, self._options)

    def stop(self, how: str) -> Callable[[], None]:
        """Have the guest sleep, or pause it; return what ends that."""
        if how == "paused":
            self.guest.pause()
            return self.guest.go_on
        self.guest.asleep()
        return self.guest.wake

    def read(self) -> bytes:
        with Volume.open(self.store(), "", replace(OPTIONS, read_only=True)) as fresh:
            return fresh.read(3 * BLOCK, 3 * BLOCK)


@pytest.fixture
def place(minio: MinioServer, guest: Guest) -> Iterator[Place]:
    address = urlsplit(minio.endpoint)
    with FaultProxy((address.hostname or "", address.port or 0)) as proxy:
        yield Place(minio, proxy, guest)


@pytest.mark.parametrize("how", ["asleep", "paused"])
def test_it_goes_on_when_the_volume_is_another_s(place: Place, how: str) -> None:
    writer = place.writer
    # It may try again before it sleeps.
    late, *others = [place.proxy.hold("PUT", "00000003") for _ in range(9)]
    assert writer.do("write", 3 * BLOCK, "b", BLOCK) == "done"
    if how == "asleep":
        assert writer.do("sleep", 0.5) == "done"
    writer.begin("flush")
    assert late.wait()
    go_on = place.stop(how)
    with Volume.open(place.store(), "", OPTIONS) as second:
        assert second.read(3 * BLOCK, 8) == b"a" * 8
        second.write(4 * BLOCK, b"z" * BLOCK)
        second.flush()
        assert late.release() == 403
        for other in others:
            other.end()
        go_on()
        # Its flush was under way. Whatever it tries now, it is told.
        assert writer.answer() in ("VolumeInUse", "AccessDenied", "StoreError")
        wait_until(lambda: writer.do("flush") == "VolumeInUse", "it is told")
        assert writer.do("write", 5 * BLOCK, "q", BLOCK) == "ReadOnlyVolume"
        assert writer.do("close") == "VolumeInUse"
        second.flush()
        assert place.read() == b"a" * BLOCK + b"z" * BLOCK + bytes(BLOCK)
    assert read_token(place.store(), "") is None


@pytest.mark.parametrize("how", ["asleep", "paused"])
def test_it_goes_on_where_nobody_came(place: Place, how: str) -> None:
    writer = place.writer
    assert writer.do("write", 3 * BLOCK, "b", BLOCK) == "done"
    if how == "asleep":
        assert writer.do("sleep", 0.0) == "done"
    go_on = place.stop(how)
    # Its lease ends meanwhile.
    time.sleep(PAUSE)
    go_on()
    assert writer.do("flush") == writer.do("close") == "done"
    assert place.read() == b"b" * BLOCK + bytes(2 * BLOCK)
    assert read_token(place.store(), "") is None
