"""Writes docs/mkfs.md: the objects that each mkfs leaves on a volume, and the requests it took."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.mkfs import TOOLS, compare_mkfs  # noqa: E402 - the repository root has to be on the path first

_HEAD = """\
# What mkfs leaves in the bucket

Each tool was run on the mounted file of a 10 GiB volume and on a plain sparse file of the same size. No zero block but
block 0 becomes an object, so the objects on the volume are the blocks with content on the plain file, and block 0 where
the tool leaves it zero. `tests/filesystems/test_mkfs.py` shows that they are the same blocks;
`python tools/mkfs_table.py` makes this table (as root, with the four tools installed).

| filesystem | block size | blocks with content, plain file | objects on the volume | PUT | GET | DELETE | HEAD | LIST |
|---|---|---|---|---|---|---|---|---|
"""


def main() -> None:
    """Run every tool at both block sizes and write the table."""
    rows = []
    for tool in TOOLS:
        for block_size in (4096, 131072):
            with tempfile.TemporaryDirectory() as directory:
                outcome = compare_mkfs(tool, block_size, Path(directory))
            requests = " | ".join(str(outcome.requests[kind]) for kind in ("put", "get", "delete", "head", "list"))
            rows.append(
                f"| {tool} | {block_size // 1024} KiB | {len(outcome.plain)} | {len(outcome.objects)} | {requests} |\n"
            )
            print(rows[-1], end="")
    (ROOT / "docs" / "mkfs.md").write_text(_HEAD + "".join(rows))


if __name__ == "__main__":
    main()
