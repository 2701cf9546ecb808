"""The disk cache of a volume in a bucket: what a second mount still downloads, on both servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from s3backer.admin import create_volume
from s3backer.opening import VolumeOptions
from s3backer.stores.s3 import S3Store
from s3backer.volume import Volume
from tests.support.mounts import wait_until
from tests.support.servers import S3Server

BLOCK = 16384
BLOCKS = 40
SIZE = 64 * BLOCK
TEXT = b"".join(bytes([65 + block]) * BLOCK for block in range(BLOCKS))


class Bench:
    def __init__(self, server: S3Server, directory: Path) -> None:
        self._server = server
        self._bucket = server.make_bucket()
        self._directory = directory
        create_volume(self.store(), "p/", size=SIZE, block_size=BLOCK)

    def store(self) -> S3Store:
        return S3Store(self._bucket, self._server.options())

    def mount(self, **more: Any) -> tuple[S3Store, Volume]:
        store = self.store()
        # All that is written here may wait for the disk at once: nothing is left out.
        options = {"memory": 64 << 20, "threads": 4, "write_delay": 3600.0, "disk_cache": 8 << 20, **more}
        return store, Volume.open(store, "p/", VolumeOptions(disk_cache_directory=str(self._directory), **options))


def received(store: S3Store) -> tuple[int, int]:
    """Return the GETs so far, and the bytes that came with them."""
    count = store.counters.snapshot()["get"]
    return count.requests, count.bytes_received


def statistics(volume: Volume) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in volume.stats_text().splitlines())


def test_a_second_mount_downloads_nothing_again(s3_server: S3Server, tmp_path: Path) -> None:
    bench = Bench(s3_server, tmp_path)
    _, volume = bench.mount()
    with volume:
        volume.write(0, TEXT)
        volume.flush()
    # Before the listing is done, or without one: the server is asked, and sends no block.
    store, volume = bench.mount(list_blocks=False)
    with volume:
        before = received(store)
        assert volume.read(0, len(TEXT)) == TEXT
        requests, size = received(store)
        assert (requests - before[0], size - before[1]) == (BLOCKS, 0)
        assert statistics(volume)["disk_cache_verified"] == str(BLOCKS)
        assert not any(store.counters.failures().values())
    # With a listing that has the ETags not even that.
    store, volume = bench.mount()
    with volume:
        wait_until(lambda: volume.facts()["surveyed"], "the listing is done")
        before = received(store)
        assert volume.read(0, len(TEXT)) == TEXT
        assert received(store) == before
        assert statistics(volume)["disk_cache_hits"] == str(BLOCKS)


def test_another_writers_blocks_are_seen(s3_server: S3Server, tmp_path: Path) -> None:
    bench = Bench(s3_server, tmp_path)
    _, volume = bench.mount()
    with volume:
        volume.write(0, TEXT)
    _, volume = bench.mount(disk_cache=None)
    with volume:
        volume.write(3 * BLOCK, b"new" * 1000)
        volume.discard(5 * BLOCK, BLOCK)
    now = bytearray(TEXT)
    now[3 * BLOCK : 3 * BLOCK + 3000] = b"new" * 1000
    now[5 * BLOCK : 6 * BLOCK] = bytes(BLOCK)
    for more in ({"list_blocks": False}, {}, {"read_only": True}):
        store, volume = bench.mount(**more)
        with volume:
            if not more:
                wait_until(lambda volume=volume: volume.facts()["surveyed"], "the listing is done")
            before = received(store)[1]
            assert volume.read(0, len(TEXT)) == now
            # Only what was changed came again, and that once; beside it the message that there is no object.
            assert received(store)[1] - before < (2 * BLOCK if more == {"list_blocks": False} else BLOCK)


def test_beside_a_writer_no_old_block_is_read(s3_server: S3Server, tmp_path: Path) -> None:
    bench = Bench(s3_server, tmp_path)
    _, writer = bench.mount(disk_cache=None)
    with writer:
        for letter in (b"a", b"b", b"c"):
            writer.write(3 * BLOCK, letter * BLOCK)
            writer.flush()
            _, reader = bench.mount(read_only=True)
            with reader:
                assert reader.read(3 * BLOCK, BLOCK) == letter * BLOCK
