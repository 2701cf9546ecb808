"""What mkfs leaves on a volume, beside what it leaves on a plain sparse file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from s3backer.admin import create_volume
from s3backer.layouts.classic import parse_block_name
from s3backer.stores.directory import DirectoryStore
from tests.support.mounts import mounted
from tests.support.tools import nonzero_blocks, run

SIZE = 10 << 30
#: The tools as their users call them, on a file.
TOOLS = {
    "reiserfs": ("mkreiserfs", "-ff", "-q"),
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}


@dataclass(frozen=True)
class Outcome:
    """Blocks with content on the plain file, blocks that are objects on the volume, and the requests sent."""

    plain: set[int]
    objects: set[int]
    requests: dict[str, int]


def on_plain_file(tool: str, path: Path, block_size: int) -> set[int]:
    """Make the filesystem on a sparse file and return the blocks that hold anything."""
    with path.open("wb") as file:
        file.truncate(SIZE)
    run(*TOOLS[tool], str(path))
    return nonzero_blocks(path, block_size)


def blocks_in(directory: Path) -> set[int]:
    """Return the blocks that are files of a volume's directory."""
    found = (parse_block_name(entry.name) for entry in directory.iterdir() if entry.is_file())
    return {block for block in found if block is not None}


def compare_mkfs(tool: str, block_size: int, directory: Path) -> Outcome:
    """Run the tool on a plain file and on a mounted volume of 10 GiB."""
    plain = on_plain_file(tool, directory / "plain", block_size)
    bucket, mountpoint = directory / "bucket", directory / "mnt"
    bucket.mkdir()
    mountpoint.mkdir()
    create_volume(DirectoryStore(bucket), "", size=SIZE, block_size=block_size)
    with mounted({"url": f"file://{bucket}", "mountpoint": str(mountpoint)}, directory) as mount:
        run(*TOOLS[tool], str(mount.file))
        with mount.file.open("rb") as file:
            os.fsync(file.fileno())
        stats = dict(line.split(maxsplit=1) for line in mount.stats.read_text().splitlines())
        mount.umount()
        mount.wait()
    requests = {kind: int(stats[f"http_{kind}s"]) for kind in ("put", "get", "delete", "head", "list")}
    return Outcome(plain, blocks_in(bucket), requests)
