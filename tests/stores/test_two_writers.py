"""Two writers of one volume on a real server: the first one is stopped, and goes on when it is another's.

The first writer is a process of its own, behind a proxy that can hold its requests back. It is stopped with SIGSTOP:
where its request has been sent, or between the signature and the sending. The second one takes the volume over when the
lease has ended, and has read the block in question but never written it: no condition protects that, only time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from s3backer.admin import create_volume
from s3backer.errors import StoreError, VolumeInUse
from s3backer.layouts.token import TOKEN_NAME, read_token
from s3backer.opening import VolumeOptions
from s3backer.stores.s3 import S3Store
from s3backer.volume import Volume
from tests.support.mounts import PATIENCE, wait_until
from tests.support.places import shortened
from tests.support.servers import S3Server
from tests.support.writer import Told
from tools.fault_proxy import Fault, FaultProxy

pytestmark = pytest.mark.usefixtures("same_clock")

BLOCK = 4096
SIZE = 16 * BLOCK
LEASE = 2.0
#: Seconds that an attempt of a request may take.
TIMEOUT = 0.5
OPTIONS = VolumeOptions(memory=1 << 20, threads=4, write_delay=3600.0, list_blocks=False, lease=LEASE)


class Writer(Told):
    """The first writer."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.support.writer"]
        self._process = subprocess.Popen(
            command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        super().__init__(self._process.stdin, self._process.stdout)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    @property
    def stopped(self) -> bool:
        """Whether it stands still."""
        with open(f"/proc/{self._process.pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "T"

    def end(self) -> None:
        """Kill it. May be called twice."""
        self._process.kill()
        self._process.wait(PATIENCE)
        for stream in (self._lines, self._answers):
            stream.close()


class Place:
    """A bucket, and the way of the first writer to it."""

    def __init__(self, server: S3Server, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self.bucket = server.make_bucket()
        self._options = replace(server.options(), timeout=TIMEOUT, first_pause=0.01)
        self._writers: list[Writer] = []
        create_volume(self.store(), "", size=SIZE, block_size=BLOCK)

    def store(self) -> S3Store:
        return S3Store(self.bucket, self._options)

    def far_store(self) -> S3Store:
        return S3Store(self.bucket, replace(self._options, endpoint_url=self.proxy.url))

    def writer(self, **options: object) -> Writer:
        way = replace(self._options, endpoint_url=self.proxy.url)
        writer = Writer()
        self._writers.append(writer)
        writer.open(self.bucket, way, replace(OPTIONS, **options))  # type: ignore[arg-type]
        return writer

    def open(self, **options: object) -> Volume:
        return Volume.open(self.store(), "", replace(OPTIONS, **options))  # type: ignore[arg-type]

    def end(self) -> None:
        for writer in self._writers:
            writer.end()


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    server = request.getfixturevalue(getattr(request, "param", "minio"))
    address = urlsplit(server.endpoint)
    with FaultProxy((address.hostname or "", address.port or 0)) as proxy:
        made = Place(server, proxy)
        try:
            yield made
        finally:
            made.end()


def taken_over(place: Place, writer: Writer, arrive: Callable[[], object], **options: object) -> None:
    """Take the volume over from a writer that is stopped with block 3 to be changed, and let that go on."""
    with place.open(**options) as second:
        assert second.read(3 * BLOCK, 8) == b"a" * 8
        second.write(4 * BLOCK, b"z" * BLOCK)
        second.flush()
        arrive()
        writer.signal(signal.SIGCONT)
        # Its flush was under way. Whatever it tries now, it is told.
        assert writer.answer() in ("VolumeInUse", "AccessDenied")
        wait_until(lambda: writer.do("flush") == "VolumeInUse", "it is told")
        assert writer.do("write", 5 * BLOCK, "q", BLOCK) == "ReadOnlyVolume"
        assert writer.do("close") == "VolumeInUse"
        second.flush()
        with Volume.open(place.store(), "", replace(OPTIONS, read_only=True)) as fresh:
            assert fresh.read(3 * BLOCK, 3 * BLOCK) == b"a" * BLOCK + b"z" * BLOCK + bytes(BLOCK)
    assert read_token(place.store(), "") is None


both = pytest.mark.parametrize("place", ["seaweed", "minio"], indirect=True)


# SeaweedFS heeds the condition of a DELETE, which protects as well.
@pytest.mark.parametrize(
    ("place", "method"), [("seaweed", "PUT"), ("minio", "PUT"), ("minio", "DELETE")], indirect=["place"]
)
def test_a_request_that_was_sent_arrives_too_late(place: Place, method: str) -> None:
    writer = place.writer()
    assert writer.do("write", 3 * BLOCK, "a", BLOCK) == writer.do("flush") == "done"
    late = place.proxy.hold(method, "00000003")
    assert (
        writer.do("write", 3 * BLOCK, "b", BLOCK) if method == "PUT" else writer.do("discard", 3 * BLOCK, BLOCK)
    ) == ("done")
    writer.begin("flush")
    assert late.wait()
    writer.signal(signal.SIGSTOP)
    answers: list[int | None] = []
    taken_over(place, writer, lambda: answers.append(late.release()))
    assert answers == [403]


def test_stopped_between_the_signature_and_the_sending(place: Place) -> None:
    writer = place.writer()
    assert writer.do("write", 3 * BLOCK, "a", BLOCK) == writer.do("flush") == "done"
    assert writer.do("arm", "signed") == "done"
    assert writer.do("write", 3 * BLOCK, "b", BLOCK) == "done"
    writer.begin("flush")
    wait_until(lambda: writer.stopped, "it has stopped")
    taken_over(place, writer, lambda: None)


def test_taken_by_force_from_one_that_lives(place: Place) -> None:
    writer = place.writer()
    assert writer.do("write", 3 * BLOCK, "a", BLOCK) == writer.do("flush") == "done"
    with pytest.raises(VolumeInUse, match="that mount is alive"):
        place.open()
    late = place.proxy.hold("PUT", "00000003")
    assert writer.do("write", 3 * BLOCK, "b", BLOCK) == "done"
    writer.begin("flush")
    assert late.wait()
    writer.signal(signal.SIGSTOP)
    taken_over(place, writer, lambda: late.release(), force=True)


@pytest.mark.parametrize(
    ("place", "method"), [("seaweed", "PUT"), ("minio", "PUT"), ("minio", "DELETE")], indirect=["place"]
)
def test_a_request_of_a_mount_that_was_killed_arrives_while_the_next_one_serves(
    place: Place, method: str, tmp_path: Path
) -> None:
    """The next one goes on with its journal at once. What it reads before and after is the same, and so what stays."""
    # No signature outlasts the lease: with one of two seconds it is a matter of luck whether it still holds below.
    journaled: dict[str, object] = {"journal": 1 << 20, "journal_directory": str(tmp_path), "lease": 60.0}
    writer = place.writer(**journaled, write_delay=0.05)
    assert writer.do("write", 3 * BLOCK, "a", BLOCK) == "done"
    # And it knows that: else it would be tried again.
    assert writer.do("stored") == "done"
    # It may try again before it is killed.
    late, *others = [place.proxy.hold(method, "00000003") for _ in range(9)]
    if method == "PUT":
        assert writer.do("write", 3 * BLOCK + 512, "b", 512) == "done"
        expected = b"a" * 512 + b"b" * 512 + b"a" * (BLOCK - 1024)
    else:
        assert writer.do("discard", 3 * BLOCK, BLOCK) == "done"
        expected = bytes(BLOCK)
    assert late.wait()
    writer.end()
    for other in others:
        other.end()
    with Volume.open(place.far_store(), "", replace(OPTIONS, **journaled)) as second:  # type: ignore[arg-type]
        assert second.settles_in > 0
        assert second.read(3 * BLOCK, BLOCK) == expected
        second.write(4 * BLOCK, b"z" * BLOCK)
        second.flush()
        assert second.settles_in > 0
        # Its signature holds, and so does its condition.
        assert late.release() in (200, 204)
        second._slab.drop_from(5)
        assert second.read(3 * BLOCK, BLOCK) == expected
        second.write(3 * BLOCK, b"c" * 512)
        shortened(second)
    with Volume.open(place.store(), "", replace(OPTIONS, read_only=True)) as fresh:
        assert fresh.read(3 * BLOCK, 2 * BLOCK) == b"c" * 512 + expected[512:] + b"z" * BLOCK
    assert read_token(place.store(), "") is None


def test_the_journal_of_who_was_overtaken_is_kept(place: Place, tmp_path: object) -> None:
    writer = place.writer(journal=1 << 20, journal_directory=f"{tmp_path}/first")
    assert writer.do("write", 3 * BLOCK, "a", BLOCK) == writer.do("flush") == "done"
    writer.signal(signal.SIGSTOP)
    with pytest.raises(VolumeInUse, match=f"journal in {tmp_path}/first"):
        place.open()
    with place.open(force=True) as second:
        writer.signal(signal.SIGCONT)
        second.write(3 * BLOCK, b"b" * BLOCK)
        second.flush()
        # With a journal a flush asks nobody; it is told when the lease is renewed.
        wait_until(lambda: writer.do("flush") == "VolumeInUse", "it is told")
        assert writer.do("write", 5 * BLOCK, "q", BLOCK) == "ReadOnlyVolume"
        assert writer.do("close") == "VolumeInUse"
        assert os.listdir(f"{tmp_path}/first")
        assert second.read(3 * BLOCK, BLOCK) == b"b" * BLOCK


@pytest.mark.parametrize("heeded", [True, False])
def test_a_renewal_whose_answer_was_lost(place: Place, heeded: bool) -> None:
    """Nothing is lost, and where conditions are heeded nothing waits for it: that it comes late does no harm."""
    store = S3Store(place.bucket, replace(place._options, endpoint_url=place.proxy.url, timeout=1.0))
    with Volume.open(store, "", replace(OPTIONS, lease=60.0)) as volume:
        if heeded:
            volume.write(0, b"x" * 2 * BLOCK)
            volume.flush()
        assert bool(store.conditions) is heeded
        assert volume._holder is not None
        before = read_token(place.store(), "")
        lost = Fault("stall-after", 5.0)
        place.proxy.choose(lambda seen: lost if seen.method == "PUT" and TOKEN_NAME in seen.path else None)
        with pytest.raises(StoreError, match="no whole answer"):
            volume._holder.renew()
        place.proxy.choose(None)
        after = read_token(place.store(), "")
        assert before is not None and after is not None and before.etag != after.etag
        assert (volume.settles_in > 0) is not heeded
        began = time.monotonic()
        volume._holder.renew()
        assert time.monotonic() - began < 5.0
        volume.write(3 * BLOCK, b"y" * BLOCK)
        volume.flush()
        assert not volume.lost
        # What is tested is the renewal: the end need not wait for it.
        store._engine.unsettled._until.clear()
    assert read_token(place.store(), "") is None


def test_the_token_waits_for_no_limit_of_speed(place: Place) -> None:
    """It is read and put at once, however much else has to wait."""
    store = S3Store(place.bucket, replace(place._options, upload_limit=80_000, download_limit=80_000))
    with Volume.open(store, "", replace(OPTIONS, lease=60.0)) as volume:
        assert volume._holder is not None
        for pace in (store._engine._upload, store._engine._download):
            assert pace.take(1 << 20) > 100
        began = time.monotonic()
        volume._holder.renew()
        volume._holder.confirm()
        assert time.monotonic() - began < 20


@both
def test_whether_a_server_heeds_the_end_of_a_signature(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    store = place.store()
    with Volume.open(store, "", OPTIONS) as volume:
        volume.write(0, b"x" * 2 * BLOCK)
        volume.flush()
        assert store.conditions and store._trials.heeds_expiry
        assert store.arriving == pytest.approx(3 * TIMEOUT + 0.2)
        assert "signatures" not in caplog.text
        anonymous = S3Store(place.bucket, replace(place._options, anonymous=True))
        anonymous._trials.conditions = True
        anonymous.fence.put_up("s3backer-mounted", lambda wait: 60.0)
        anonymous._trials.try_expiry()
        assert anonymous.arriving > 900
        assert f"the service of {anonymous.name} takes requests whose signatures have ended" in caplog.text


def test_a_server_that_is_busy_says_nothing_of_signatures(place: Place) -> None:
    store = S3Store(place.bucket, replace(place._options, endpoint_url=place.proxy.url))
    store._trials.conditions = True
    store.fence.put_up("s3backer-mounted", lambda wait: 60.0)
    place.proxy.script(*["error503"] * 3)
    store._trials.try_expiry()
    assert store._trials.heeds_expiry is None and store.arriving < 900
    store._trials.try_expiry()
    assert store._trials.heeds_expiry
