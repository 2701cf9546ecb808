"""Reiserfs on a volume: made, checked, grown and shrunk with its own tools while the volume is mounted."""

from __future__ import annotations

from pathlib import Path

from s3backer.admin import create_volume
from s3backer.cli import main
from s3backer.stores.directory import DirectoryStore
from tests.support.mkfs import blocks_in
from tests.support.mounts import Mounted, mounted, needs_mounts
from tests.support.tools import run

pytestmark = needs_mounts

MIB = 1 << 20
BLOCK = 128 << 10


def check(mount: Mounted) -> None:
    run("reiserfsck", "--check", "-y", "-q", str(mount.file))


def test_made_checked_grown_and_shrunk(tmp_path: Path) -> None:
    bucket, mountpoint = tmp_path / "bucket", tmp_path / "mnt"
    bucket.mkdir()
    mountpoint.mkdir()
    url = f"file://{bucket}"
    create_volume(DirectoryStore(bucket), "", size=512 * MIB, block_size=BLOCK)
    with mounted({"url": url, "mountpoint": str(mountpoint)}, tmp_path) as mount:
        run("mkreiserfs", "-ff", "-q", str(mount.file))
        check(mount)
        # Grow: the disk first.
        assert main(["resize", url, "2GiB"]) == 0
        assert mount.file.stat().st_size == 2048 * MIB
        run("resize_reiserfs", "-f", "-q", str(mount.file))
        check(mount)
        grown = run("debugreiserfs", str(mount.file))
        assert "Count of blocks on the device: 524288" in grown
        # Shrink: the filesystem first. The disk refuses while the filesystem is still there.
        assert main(["resize", url, "512MiB"]) != 0
        assert mount.file.stat().st_size == 2048 * MIB
        run("bash", "-c", 'yes | resize_reiserfs -f -s 512M "$0"', str(mount.file))
        assert main(["resize", url, "512MiB", "--discard"]) == 0
        assert mount.file.stat().st_size == 512 * MIB
        check(mount)
        mount.umount()
        mount.wait()
    assert max(blocks_in(bucket)) < 512 * MIB // BLOCK
    # And once more from the bucket alone.
    with mounted({"url": url, "mountpoint": str(mountpoint)}, tmp_path) as mount:
        check(mount)
        assert "Count of blocks on the device: 131072" in run("debugreiserfs", str(mount.file))
