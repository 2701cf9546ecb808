"""Zeros cost nothing: on the mounted file they are no objects, and they remove the objects that they overwrite."""

from __future__ import annotations

import os
from pathlib import Path

from s3backer.admin import create_volume
from s3backer.stores.directory import DirectoryStore
from tests.support.mkfs import blocks_in
from tests.support.mounts import filesystem, loop_device, mounted, needs_mounts
from tests.support.tools import run

pytestmark = needs_mounts

BLOCK = 16384


def test_zeros_remove_what_they_overwrite(tmp_path: Path) -> None:
    bucket, mountpoint = tmp_path / "bucket", tmp_path / "mnt"
    bucket.mkdir()
    mountpoint.mkdir()
    create_volume(DirectoryStore(bucket), "", size=1 << 30, block_size=BLOCK)
    with mounted({"url": f"file://{bucket}", "mountpoint": str(mountpoint)}, tmp_path) as mount:
        with mount.file.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"x" * (8 * BLOCK), 4 * BLOCK)
            os.fsync(file.fileno())
            assert blocks_in(bucket) == {0, *range(4, 12)}
            # Whole blocks, halves that together are whole, and half of one.
            os.pwrite(file.fileno(), bytes(2 * BLOCK), 4 * BLOCK)
            os.pwrite(file.fileno(), bytes(BLOCK // 2), 6 * BLOCK)
            os.pwrite(file.fileno(), bytes(BLOCK // 2), 6 * BLOCK + BLOCK // 2)
            os.pwrite(file.fileno(), bytes(BLOCK // 2), 7 * BLOCK)
            os.fsync(file.fileno())
            assert blocks_in(bucket) == {0, *range(7, 12)}
            # Over nothing: no object, and no request either.
            before = mount.stats.read_text()
            os.pwrite(file.fileno(), bytes(100 * BLOCK), 1000 * BLOCK)
            os.pwrite(file.fileno(), bytes(BLOCK), 0)
            os.fsync(file.fileno())
            after = mount.stats.read_text()
            assert blocks_in(bucket) == {0, *range(7, 12)}
            for name in ("http_deletes", "http_gets"):
                assert _value(after, name) == _value(before, name)
        mount.umount()
        mount.wait()
    assert blocks_in(bucket) == {0, *range(7, 12)}
    assert (bucket / f"{7:08x}").read_bytes() == bytes(BLOCK // 2) + b"x" * (BLOCK // 2)


def test_zeroing_a_filesystem_away_leaves_block_0(tmp_path: Path) -> None:
    bucket, mountpoint = tmp_path / "bucket", tmp_path / "mnt"
    bucket.mkdir()
    mountpoint.mkdir()
    create_volume(DirectoryStore(bucket), "", size=64 << 20, block_size=BLOCK)
    with mounted({"url": f"file://{bucket}", "mountpoint": str(mountpoint)}, tmp_path) as mount:
        with loop_device(mount.file) as device:
            run("mkfs.ext4", "-q", device)
            with filesystem(device, tmp_path / "fs") as root:
                (root / "data").write_bytes(os.urandom(1 << 20))
        assert len(blocks_in(bucket)) > 64
        run("dd", "if=/dev/zero", f"of={mount.file}", "bs=1M", "count=64", "conv=notrunc,fsync")
        assert blocks_in(bucket) == {0}
        mount.umount()
        mount.wait()


def _value(text: str, name: str) -> int:
    return int(dict(line.split(maxsplit=1) for line in text.splitlines())[name])
