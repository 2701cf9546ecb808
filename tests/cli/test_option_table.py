"""The page about the original's options: made from the table, complete, and with a reason where something differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3backer.original_options import ORIGINAL
from tools.option_table import option_table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "original-options.md"
#: Every option that the original has, or had and may still be met in /etc/fstab.
_NAMES = """
    accessFile accessId accessKey accessKeyEnv accessType accessEC2IAM accessEC2IAM-IMDSv2 authVersion baseURL region
    ssl vhost no-vhost cacert insecure http11 noCurlCache ipTOS timeout initialRetryPause maxRetryPause maxUploadSpeed
    maxDownloadSpeed sse sse-key-id storageClass defaultContentEncoding blockSize size noAutoDetect force prefix
    blockHashPrefix filename fileMode readOnly directIO statsFilename statsFileMirror statsFileMirrorInterval
    blockCacheSize blockCacheThreads blockCacheTimeout blockCacheWriteDelay blockCacheMaxDirty blockCacheSync
    blockCacheNumProtected blockCacheFile blockCacheNoVerify blockCacheRecoverDirtyBlocks blockCacheFileAdvise
    readAhead readAheadTrigger md5CacheSize md5CacheTime minWriteDelay listBlocks listBlocksThreads sharedDiskMode
    compress compress-level encrypt keyLength password passwordFile configFile erase reset-mounted-flag
    nbd nbd-flag nbd-param quiet debug debug-http test test-errors test-delays test-discard
    assumeEmpty rrs access cacheSize cacheTime connectTimeout ioTimeout maxRetry retryPause
"""
NAMES = _NAMES.split()


def rows() -> dict[str, list[str]]:
    """Return the cells of each option's row on the page."""
    found = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("| `"):
            name, *cells = (cell.strip() for cell in line.replace("\\|", "/").strip("|").split("|"))
            found[name.strip("`")] = cells
    return found


def test_the_page_is_what_the_tool_prints() -> None:
    assert PAGE.read_text() == option_table(), "python tools/option_table.py > docs/original-options.md"


def test_every_option_of_the_original_is_on_it() -> None:
    assert sorted(rows()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_whatever_differs_has_a_reason(name: str) -> None:
    value, treatment, help_text, note = rows()[name]
    assert treatment in ("same", "better", "accepted", "refused")
    assert help_text
    assert note or treatment == "same"
    assert bool(value) == (ORIGINAL[name].convert is not None)
