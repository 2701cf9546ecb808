"""Sparse as filesystems like it: what mkfs leaves in the bucket is what it leaves on a plain sparse file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.mkfs import TOOLS, compare_mkfs
from tests.support.mounts import needs_mounts

pytestmark = needs_mounts


@pytest.mark.parametrize("block_size", [4096, 131072], ids=["4 KiB", "128 KiB"])
@pytest.mark.parametrize("tool", TOOLS)
def test_objects_are_the_blocks_with_content(tool: str, block_size: int, tmp_path: Path) -> None:
    outcome = compare_mkfs(tool, block_size, tmp_path)
    assert outcome.plain - {0}
    assert outcome.objects == outcome.plain | {0}
    # Nothing is fetched in order to be overwritten, and no zero block is deleted that was never there.
    assert outcome.requests["put"] < 10 * len(outcome.plain) + 100
