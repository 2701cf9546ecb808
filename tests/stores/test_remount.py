"""A volume that is closed while requests without an answer may still arrive: nobody after it is harmed by them."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from s3backer.admin import create_volume, erase_volume, resize_volume, unlock_volume
from s3backer.cache_file import CacheFile
from s3backer.cache_import import plan_import
from s3backer.closing import ClosingProgress
from s3backer.copying import copy_volume
from s3backer.errors import VolumeInUse
from s3backer.layouts.token import TOKEN_NAME, MountToken, new_token, put_token, read_token
from s3backer.opening import VolumeOptions
from s3backer.stores.base import Body, ObjectStore
from s3backer.stores.memory import MemoryStore
from s3backer.stores.s3 import S3Store
from s3backer.volume import Volume
from tests.support.cache_files import Slot, put_cache_file
from tests.support.mounts import wait_until
from tests.support.servers import MinioServer
from tools.fault_proxy import FaultProxy

pytestmark = pytest.mark.usefixtures("same_clock")

BLOCK = 4096
SIZE = 16 * BLOCK
OPTIONS = VolumeOptions(memory=1 << 20, threads=4, write_delay=3600.0, lease=3.0)
EXPIRY = 1


class Bench:
    """A bucket on a real server, behind a proxy that holds requests back."""

    def __init__(self, server: MinioServer, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self.bucket = server.make_bucket()
        self._options = server.options()
        create_volume(self.plain(), "", size=SIZE, block_size=BLOCK)

    def store(self) -> S3Store:
        options = replace(self._options, endpoint_url=self.proxy.url, timeout=0.4, first_pause=0.01)
        return S3Store(self.bucket, options, expiry=EXPIRY)

    def plain(self) -> S3Store:
        return S3Store(self.bucket, self._options)

    def mount(self) -> Volume:
        return Volume.open(self.store(), "", OPTIONS)

    def read(self, block: int) -> bytes:
        with Volume.open(self.plain(), "", replace(OPTIONS, read_only=True)) as volume:
            return volume.read(block * BLOCK, BLOCK)


@pytest.fixture
def bench(minio: MinioServer) -> Iterator[Bench]:
    address = urlsplit(minio.endpoint)
    with FaultProxy((address.hostname or "", address.port or 0)) as proxy:
        yield Bench(minio, proxy)


def stored(volume: Volume, block: int, data: bytes | None) -> None:
    if data is None:
        volume.discard(block * BLOCK, BLOCK)
    else:
        volume.write(block * BLOCK, data * BLOCK)
    volume.flush()


@pytest.mark.parametrize(
    ("method", "before", "lost", "after"),
    [
        ("DELETE", b"a", None, b"b"),
        ("PUT", None, b"a", None),
        # The late PUT wants what the object is again.
        ("PUT", b"a", b"b", b"a"),
    ],
)
def test_the_next_mount_is_safe_from_late_requests(
    bench: Bench, method: str, before: bytes | None, lost: bytes | None, after: bytes | None
) -> None:
    with bench.mount() as volume:
        if before is not None:
            stored(volume, 3, before)
        late = bench.proxy.hold(method, "00000003")
        stored(volume, 3, lost)
        assert late.wait()
    with bench.mount() as volume:
        stored(volume, 3, after)
    assert late.release() == 403
    assert bench.read(3) == (after or b"\0") * BLOCK


def test_closing_says_that_it_waits_and_keeps_the_token_meanwhile(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    volume = bench.mount()
    bench.proxy.hold("PUT", "00000003")
    stored(volume, 3, b"a")
    said: list[float] = []

    def waits(seconds: float) -> None:
        said.append(seconds)
        assert bench.plain().head(TOKEN_NAME)

    assert volume.settles_in > 0
    with caplog.at_level(logging.INFO):
        volume.close(waits=waits)
    assert len(said) > 5 and said == sorted(said, reverse=True)
    assert caplog.text.count("for requests whose answers were lost") == 1
    assert TOKEN_NAME not in [entry.key for entry in bench.plain().list("").entries]


def test_a_token_whose_signature_ended_on_its_way_is_signed_anew(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    store = bench.store()
    transport = store._engine._transport
    start, late = transport.start, [2.0]

    def slow(method: str, target: str, headers: dict[str, str], *rest: Any, **more: Any) -> Any:
        # The one that takes the place of the first: who keeps a token tries nothing again.
        if TOKEN_NAME in target and "If-Match" in headers and late:
            time.sleep(late.pop())
        return start(method, target, headers, *rest, **more)

    monkeypatch.setattr(transport, "start", slow)
    with Volume.open(store, "", OPTIONS) as volume:
        assert not late
        stored(volume, 3, b"a")


def test_a_removal_whose_signature_ended_on_its_way_leaves_another_s_token(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MinIO does not heed the condition of a DELETE: only who has looked at the token may send another one."""
    store = bench.store()
    volume = Volume.open(store, "", OPTIONS)
    stored(volume, 3, b"a")
    transport = store._engine._transport
    start = transport.start
    others: list[MountToken] = []

    def slow(method: str, target: str, *rest: Any, **more: Any) -> Any:
        if method == "DELETE" and TOKEN_NAME in target and not others:
            time.sleep(2.0)
            others.append(put_token(bench.plain(), "", new_token(random.Random(2)), former=found(bench.plain())))
        return start(method, target, *rest, **more)

    monkeypatch.setattr(transport, "start", slow)
    volume.close()
    assert found(bench.plain()).is_put_of(others[0])


def test_a_terminal_shows_the_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    shown = ClosingProgress(terminal=True)
    with shown:
        for left in (1, 0):
            shown(left, 1)
        for seconds in (90.4, 45.0):
            shown.waits(seconds)
    said = capsys.readouterr().err
    assert "waiting 45 s for requests that may still arrive" in said and "50%" in said


def test_without_lost_answers_nothing_waits(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    volume = bench.mount()
    stored(volume, 3, b"a")
    # Those were not carried out, and say so.
    bench.proxy.script("error503", "error429")
    stored(volume, 3, b"b")
    assert volume.settles_in == 0
    started = time.monotonic()
    volume.close(waits=lambda seconds: pytest.fail("it waits"))
    assert time.monotonic() - started < 2
    assert "lost" not in caplog.text


def test_who_ends_a_volume_waits_after_removing_the_token(bench: Bench) -> None:
    volume = bench.mount()
    late = bench.proxy.hold("DELETE", TOKEN_NAME)
    volume.close()
    with bench.mount():
        assert late.release() == 403
        assert bench.plain().head(TOKEN_NAME)


def test_erasing_waits(bench: Bench) -> None:
    with bench.mount() as volume:
        stored(volume, 3, b"a")
    late = bench.proxy.hold("POST", bench.bucket)
    erase_volume(bench.store(), "")
    create_volume(bench.plain(), "", size=SIZE, block_size=BLOCK)
    with bench.mount() as volume:
        stored(volume, 3, b"b")
    # MinIO says 200 of a list of refusals.
    late.release()
    assert bench.read(3) == b"b" * BLOCK


def test_unlocking_waits(bench: Bench) -> None:
    bench.mount()._store.close()
    late = bench.proxy.hold("DELETE", TOKEN_NAME)
    assert unlock_volume(bench.store(), "")
    with bench.mount():
        assert late.release() == 403
        assert bench.plain().head(TOKEN_NAME)


class Lost(MemoryStore):
    """Each write may arrive again until ``LASTING`` seconds later. Notes what is removed too early."""

    LASTING = 0.3

    def __init__(self) -> None:
        super().__init__()
        self._settled_at = 0.0
        self.waited: list[bool] = []

    def settles_in(self) -> float:
        return max(0.0, self._settled_at - time.monotonic())

    def _lose(self, key: str) -> None:
        if key != TOKEN_NAME:
            self._settled_at = time.monotonic() + self.LASTING

    def put(self, key: str, body: Body, **options: Any) -> str:
        self._lose(key)
        return super().put(key, body, **options)

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        if key in (TOKEN_NAME, "00000000"):
            self.waited.append(self.settles_in() == 0)
        self._lose(key)
        super().delete(key, if_match=if_match)


def _write(store: MemoryStore, directory: Path) -> None:
    with Volume.open(store, "", OPTIONS) as volume:
        stored(volume, 3, b"b")


def _resize(store: MemoryStore, directory: Path) -> None:
    resize_volume(store, "", 3 * BLOCK, discard=True)


def _import(store: MemoryStore, directory: Path) -> None:
    path = put_cache_file(directory / "cache", [Slot(3, bytes(BLOCK))], block_size=BLOCK, token=5)
    with CacheFile(str(path)) as file:
        plan_import(file, store, "", OPTIONS).run(lambda text, done, total: None)


def test_who_imports_by_force_and_was_overtaken_while_it_waited_writes_nothing(tmp_path: Path) -> None:
    store = MemoryStore("bucket")
    create_volume(store, "", size=SIZE, block_size=BLOCK)
    mine = put_token(store, "", new_token(random.Random(1), lease=1.0, arriving=0.5), former=None)
    path = put_cache_file(tmp_path / "cache", [Slot(3, b"x" * BLOCK)], block_size=BLOCK, token=5)
    with CacheFile(str(path)) as file:
        importing = plan_import(file, store, "", OPTIONS)
        assert importing.found is not None and importing.found.is_put_of(mine)

        def overtake() -> None:
            wait_until(lambda: not found(store).is_put_of(mine), "it has put its own")
            put_token(store, "", new_token(random.Random(2)), former=found(store))

        other = threading.Thread(target=overtake)
        other.start()
        with pytest.raises(VolumeInUse):
            importing.run(lambda text, done, total: pytest.fail("it writes"))
        other.join(20)
    assert "00000003" not in [entry.key for entry in store.list("").entries]


def found(store: ObjectStore) -> MountToken:
    token = read_token(store, "")
    assert token is not None
    return token


def _erase(store: MemoryStore, directory: Path) -> None:
    erase_volume(store, "")


def _copy(store: MemoryStore, directory: Path) -> None:
    source = MemoryStore("source")
    create_volume(source, "", size=SIZE, block_size=BLOCK)
    with Volume.open(source, "", OPTIONS) as volume:
        stored(volume, 3, b"a")
    for entry in store.list("").entries:
        MemoryStore.delete(store, entry.key)
    copy_volume(source, "", store, "")


@pytest.mark.parametrize("command", [_write, _resize, _import, _erase, _copy])
def test_every_command_that_wrote_waits(tmp_path: Path, command: Callable[[MemoryStore, Path], None]) -> None:
    store = Lost()
    create_volume(store, "", size=SIZE, block_size=BLOCK)
    with Volume.open(store, "", OPTIONS) as volume:
        stored(volume, 3, b"a")
    store.waited.clear()
    command(store, tmp_path)
    assert store.waited and all(store.waited)
    assert store.settles_in() == 0
