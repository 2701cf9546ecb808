"""A volume on a real S3 server while the server is away: nothing is lost, nothing is claimed to be safe."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from s3backer.admin import create_volume
from s3backer.errors import StoreUnreachable
from s3backer.opening import VolumeOptions
from s3backer.stores.s3 import S3Store
from s3backer.volume import Volume
from tests.support.forwarder import Forwarder
from tests.support.servers import SeaweedServer

BLOCK = 16 << 10
SIZE = 4 << 20
OPTIONS = VolumeOptions(memory=1 << 20, threads=4, write_delay=0.2)


@pytest.fixture
def network(seaweed: SeaweedServer) -> Iterator[Forwarder]:
    port = urlsplit(seaweed.endpoint).port
    assert port
    with Forwarder(port) as forwarder:
        yield forwarder


@pytest.fixture
def volume(seaweed: SeaweedServer, network: Forwarder) -> Iterator[Volume]:
    options = replace(seaweed.options(), endpoint_url=f"http://127.0.0.1:{network.port}", timeout=2, patience=0.5)
    store = S3Store(seaweed.make_bucket(), options)
    # Closing waits for requests whose answers were lost; what is cut off here does not arrive later.
    store._engine.unsettled.lasting = 0.5
    create_volume(store, "", size=SIZE, block_size=BLOCK)
    volume = Volume.open(store, "", OPTIONS)
    yield volume
    network.mend()
    volume.close()


def reopened(volume: Volume, seaweed: SeaweedServer) -> bytes:
    bucket = volume.name.removeprefix("s3://")
    with Volume.open(S3Store(bucket, seaweed.options()), "", OPTIONS) as again:
        return again.read(0, SIZE)


def test_writes_wait_in_memory_and_arrive_when_it_is_back(
    volume: Volume, network: Forwarder, seaweed: SeaweedServer
) -> None:
    source = random.Random(1)
    expected = bytearray(SIZE)

    def write(offset: int, length: int) -> None:
        data = source.randbytes(length)
        assert volume.write(offset, data) == length
        expected[offset : offset + length] = data

    write(0, 10 * BLOCK)
    volume.flush()
    network.cut()
    write(5 * BLOCK + 100, 3 * BLOCK)
    write(100 * BLOCK, BLOCK)
    with pytest.raises(StoreUnreachable) as caught:
        volume.flush()
    assert caught.value.hint
    assert volume.unsaved >= 4
    # What is in memory can be read; what is not is an error, and never zeros.
    assert volume.read(5 * BLOCK, 3 * BLOCK) == expected[5 * BLOCK : 8 * BLOCK]
    network.mend()
    volume.flush()
    assert volume.unsaved == 0
    volume.close()
    assert reopened(volume, seaweed) == expected


def test_a_read_of_what_is_not_in_memory_is_an_error_and_then_works_again(
    volume: Volume, network: Forwarder, seaweed: SeaweedServer
) -> None:
    volume.write(0, b"x" * SIZE)
    volume.flush()
    network.cut()
    failed = 0
    for block in range(SIZE // BLOCK):
        try:
            assert volume.read(block * BLOCK, BLOCK) == b"x" * BLOCK
        except StoreUnreachable:
            failed += 1
        if failed == 3:
            break
    assert failed == 3
    network.mend()
    assert volume.read(0, SIZE) == b"x" * SIZE


def test_writers_stop_when_memory_is_full_and_go_on_when_it_is_back(
    volume: Volume, network: Forwarder, seaweed: SeaweedServer
) -> None:
    network.cut()
    data = random.Random(2).randbytes(SIZE)
    written = threading.Event()

    def write() -> None:
        for start in range(0, SIZE, BLOCK):
            volume.write(start, data[start : start + BLOCK])
        written.set()

    writer = threading.Thread(target=write)
    writer.start()
    assert not written.wait(2)
    network.mend()
    writer.join(60)
    assert written.is_set()
    volume.flush()
    volume.close()
    assert reopened(volume, seaweed) == data


def test_closing_waits_for_the_server(volume: Volume, network: Forwarder, seaweed: SeaweedServer) -> None:
    network.cut()
    volume.write(BLOCK, b"y" * BLOCK)
    reports: list[int] = []
    closer = threading.Thread(target=volume.close, args=(lambda left, total: reports.append(left),))
    closer.start()
    closer.join(2)
    assert closer.is_alive()
    assert set(reports) == {1}
    network.mend()
    closer.join(60)
    assert not closer.is_alive()
    assert reports[-1] == 0
    assert reopened(volume, seaweed)[BLOCK : 2 * BLOCK] == b"y" * BLOCK
