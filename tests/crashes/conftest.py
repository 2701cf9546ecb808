"""Volumes that end as if their process had been killed: tests/support/places.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3backer.codec.choice import EncodingOptions
from tests.support.places import SECRET, Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, EncodingOptions())


@pytest.fixture
def secret(tmp_path: Path) -> Place:
    return Place(tmp_path, SECRET)
