"""The mount token: its form, and that of two mounts exactly one wins."""

from __future__ import annotations

import random
import re

import pytest

from s3backer.errors import VolumeInUse
from s3backer.layouts.token import MountToken, in_use, new_token, read_token, remove_token, write_token
from s3backer.stores.memory import MemoryStore

SOURCE = random.Random(1)


def test_its_form_is_the_originals() -> None:
    store = MemoryStore()
    token = write_token(store, "p/", "memory:p/", new_token(SOURCE), former=None)
    found = store.get("p/s3backer-mounted")
    assert found.info.content_type == "text/plain"
    assert re.fullmatch(r"[0-9a-f]{8}", found.info.metadata["s3backer-mount-token"])
    assert re.fullmatch(rb"[^\n]+\n\d{8}T\d{6}Z\n[0-9a-f]{8}\n[0-9a-f]{32}\n", found.body)
    assert read_token(store, "p/") == token
    assert 1 <= token.value <= 0x7FFFFFFE


def test_only_one_of_two_mounts_wins() -> None:
    store = MemoryStore()
    write_token(store, "", "memory:", new_token(SOURCE), former=None)
    with pytest.raises(VolumeInUse, match="is mounted by"):
        write_token(store, "", "memory:", new_token(SOURCE), former=None)
    seen = read_token(store, "")
    write_token(store, "", "memory:", new_token(SOURCE), former=seen)
    with pytest.raises(VolumeInUse):
        write_token(store, "", "memory:", new_token(SOURCE), former=seen)


def test_only_our_own_token_is_removed() -> None:
    store = MemoryStore()
    mine = write_token(store, "", "memory:", new_token(SOURCE), former=None)
    other = write_token(store, "", "memory:", new_token(SOURCE), former=mine)
    assert remove_token(store, "", mine) == other
    assert read_token(store, "") == other
    assert remove_token(store, "", other) is None
    assert read_token(store, "") is None
    assert remove_token(store, "", other) is None


@pytest.mark.parametrize(
    ("metadata", "value"),
    [({}, 1), ({"s3backer-mount-token": "00000000"}, 1), ({"s3backer-mount-token": "zz"}, 1),
     ({"s3backer-mount-token": "7fffffff"}, 0x7FFFFFFF), ({"s3backer-mount-token": "0badcafe"}, 0x0BADCAFE)],
)  # fmt: skip
def test_tokens_of_others(metadata: dict[str, str], value: int) -> None:
    store = MemoryStore()
    store.put("s3backer-mounted", b"vm\n20261122T185245Z\n\xff\x00", metadata=metadata)
    token = read_token(store, "")
    assert token is not None
    assert (token.value, token.host) == (value, "vm")
    assert "20261122T185245Z" in token.describe()


@pytest.mark.parametrize("line", [b"[" * (1 << 17), b'{"copy":' * 50_000, b'{"copy": []}', b'{"copy": {"source": 1}}'])
def test_a_fourth_line_that_is_no_note(line: bytes) -> None:
    store = MemoryStore()
    store.put("s3backer-mounted", b"vm\n20261122T185245Z\n1\n" + line, metadata={"s3backer-mount-token": "1"})
    token = read_token(store, "")
    assert token is not None and token.copy is None


def test_the_message_says_who_when_and_what_to_do() -> None:
    error = in_use("s3://b", MountToken(0x1234, "host", "20261122T185245Z", "e"))
    assert "host" in str(error)
    assert "00001234" in str(error)
    assert "unlock" in error.hint
    assert "shared" in str(in_use("s3://b", MountToken(0x7FFFFFFF, "", "", "e")))
