"""Volume URLs: one normal form, and a helpful sentence for each way to misspell one."""

from __future__ import annotations

import os
import string
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from s3backer.errors import UsageError
from s3backer.stores.directory import DirectoryStore
from s3backer.stores.options import StoreOptions
from s3backer.stores.s3 import S3Store
from s3backer.url import VolumeURL, volume_id

_ALNUM = string.ascii_lowercase + string.digits
buckets = st.builds(
    lambda first, middle, last: first + middle + last,
    st.sampled_from(_ALNUM),
    st.text(_ALNUM + "-.", min_size=1, max_size=61),
    st.sampled_from(_ALNUM),
)
parts = st.text(
    st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="%?#\\/ \x7f"), min_size=1, max_size=20
).filter(lambda part: part not in (".", ".."))
prefixes = st.lists(parts, max_size=4).map("/".join)


@given(buckets, prefixes)
def test_s3_urls_survive_a_round_trip(bucket: str, prefix: str) -> None:
    url = VolumeURL.parse(f"s3://{bucket}/{prefix}")
    assert (url.scheme, url.bucket, url.path) == ("s3", bucket, "")
    assert url.prefix == (f"{prefix}/" if prefix else "")
    assert VolumeURL.parse(str(url)) == url


@given(st.lists(parts, max_size=4).map("/".join))
def test_file_urls_survive_a_round_trip(path: str) -> None:
    url = VolumeURL.parse(f"file:///{path}")
    assert (url.scheme, url.path, url.bucket, url.prefix) == ("file", f"/{path}", "", "")
    assert VolumeURL.parse(str(url)) == url


@given(st.text(max_size=60), st.sampled_from(["", "s3:", "s3://", "s3://bucket/", "file:", "file://", "file:///"]))
def test_any_text_is_a_volume_or_a_usage_error(text: str, start: str) -> None:
    try:
        url = VolumeURL.parse(start + text)
    except UsageError as error:
        assert error.exit_code == 2
        assert error.message and error.hint
        return
    assert VolumeURL.parse(str(url)) == url
    assert url.prefix == "" or url.prefix.endswith("/")


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/a/b", "s3://bucket/a/b"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("file:///a/../b/./c/", "file:///b/c"),
        ("file:////a", "file:///a"),
        ("file:///", "file:///"),
    ],
)
def test_normal_form(text: str, normal: str) -> None:
    assert str(VolumeURL.parse(text)) == normal


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("s3:/bucket/disk", "Did you mean s3://bucket/disk?"),
        ("s3:bucket", "Did you mean s3://bucket?"),
        ("S3://bucket/disk", "Did you mean s3://bucket/disk?"),
        ("File:///dir", "Did you mean file:///dir?"),
        ("s4://bucket", "Did you mean s3://bucket?"),
        ("fil:///some/dir", "Did you mean file:///some/dir?"),
        ("bucket/disk", "Did you mean s3://bucket/disk?"),
        ("/some/dir", "Did you mean file:///some/dir?"),
        ("file:/some/dir", "Did you mean file:///some/dir?"),
        ("http://127.0.0.1:8333/bucket", "--endpoint-url"),
        ("https://bucket.s3.amazonaws.com/", "--endpoint-url"),
        ("s3://", "s3://BUCKET/PREFIX"),
        ("s3:///disk", "s3://BUCKET/PREFIX"),
        ("", "s3://BUCKET/PREFIX"),
        ("file://host/dir", "Did you mean file:///"),
        ("file://", "Did you mean file:///"),
    ],
)
def test_misspelt_urls_are_guessed(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        VolumeURL.parse(text)
    assert hint in caught.value.hint


def test_a_relative_directory_is_shown_as_an_absolute_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        VolumeURL.parse("file://dir")
    assert caught.value.hint == f"Did you mean file://{tmp_path}/dir?"


@pytest.mark.parametrize(
    "bucket", ["ab", "a" * 64, "-bucket", "bucket-", ".bucket", "buc ket", "büro", "a:b", "bucket\0", "a@b", "bucket\n"]
)
def test_names_that_no_bucket_has(bucket: str) -> None:
    with pytest.raises(UsageError, match="bucket"):
        VolumeURL.parse(f"s3://{bucket}")


@pytest.mark.parametrize("character", ["%", "?", "#", " ", "\t", "\n", "\0", "\x7f", "\x1b", "\\"])
def test_characters_that_no_prefix_has(character: str) -> None:
    with pytest.raises(UsageError, match="character"):
        VolumeURL.parse(f"s3://bucket/a{character}b")


@pytest.mark.parametrize("prefix", ["a//b", "/a", "/", "a//", "a/./b", "..", "a/../b"])
def test_parts_that_no_prefix_has(prefix: str) -> None:
    with pytest.raises(UsageError, match="part"):
        VolumeURL.parse(f"s3://bucket/{prefix}")


def test_a_prefix_leaves_room_for_the_names_of_blocks() -> None:
    assert VolumeURL.parse("s3://bucket/" + "a" * 991).prefix == "a" * 991 + "/"
    for prefix in ("a" * 992, "ü" * 496, "\ud800"):
        with pytest.raises(UsageError, match="at most 992 bytes"):
            VolumeURL.parse(f"s3://bucket/{prefix}")


def test_a_directory_has_no_nul() -> None:
    with pytest.raises(UsageError, match="NUL"):
        VolumeURL.parse("file:///a\0b")


@given(buckets, prefixes, buckets, prefixes)
def test_ids_tell_volumes_apart(bucket: str, prefix: str, other_bucket: str, other_prefix: str) -> None:
    assume((bucket, prefix) != (other_bucket, other_prefix))
    ids = [
        volume_id(f"{host} {url.bucket}", url.prefix)
        for url in (
            VolumeURL.parse(f"s3://{bucket}/{prefix}"),
            VolumeURL.parse(f"s3://{other_bucket}/{other_prefix}"),
        )
        for host in ("https://host", "https://elsewhere")
    ]
    assert len(set(ids)) == 4
    assert all(len(found) == 32 for found in ids)


SPELLINGS = [
    ("https://Example.COM", "https://example.com"),
    ("https://example.com/", "https://example.com"),
    ("https://example.com:443", "https://example.com"),
    ("http://example.com:80/", "http://example.com"),
    ("HTTP://example.com:9000//", "http://example.com:9000"),
    ("https://example.com.", "https://example.com"),
    ("http://[::1]:80", "http://[::1]"),
    ("https://s3.amazonaws.com", "https://s3.eu-west-1.amazonaws.com"),
    ("https://s3.eu-west-1.amazonaws.com", "https://s3.dualstack.us-west-2.amazonaws.com:443/"),
]


@pytest.mark.parametrize(("one", "other"), SPELLINGS)
def test_a_bucket_is_the_same_however_its_endpoint_is_written(one: str, other: str) -> None:
    first, second = (S3Store("bucket", StoreOptions(endpoint_url=end, region="r")) for end in (one, other))
    try:
        assert first.place == second.place
    finally:
        first.close()
        second.close()


def test_buckets_are_told_apart_by_their_service() -> None:
    ends = [
        "https://a",
        "http://a",
        "https://a:8443",
        "https://a/path",
        "https://b",
        "https://s3.amazonaws.com",
        "https://s3.cn-north-1.amazonaws.com.cn",
    ]
    stores = [S3Store(name, StoreOptions(endpoint_url=end, region="r")) for end in ends for name in ("one", "two")]
    assert len({store.place for store in stores}) == 14
    for store in stores:
        store.close()


def test_a_directory_is_the_same_through_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "link")
    assert DirectoryStore(tmp_path / "real").place == DirectoryStore(tmp_path / "link").place
