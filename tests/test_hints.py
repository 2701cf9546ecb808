"""The commands that errors tell to run: that they reach the store which the error is about."""

from __future__ import annotations

import contextlib
import os
import random
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from s3backer import hints
from s3backer.config import STORE, store_options
from s3backer.errors import UsageError
from s3backer.hints import check_command, recover_command, unlock_command, unmount_command
from s3backer.journal import named
from s3backer.layouts.token import new_token
from s3backer.stores import open_store
from s3backer.stores.options import StoreOptions
from s3backer.url import VolumeURL, volume_id

URL = "s3://bucket/disk"


@pytest.fixture(autouse=True)
def nothing_noted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let no store be noted before or after."""
    monkeypatch.setattr(hints, "_stores", {})
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    yield


def name(url: str, **options: Any) -> None:
    """Open and close a store, as a command does that names it like this."""
    open_store(VolumeURL.parse(url), StoreOptions(**options)).close()


def test_each_command_names_the_store_as_it_was_named() -> None:
    endpoint = "http://127.0.0.1:9000/it's; so"
    name(URL, endpoint_url=endpoint, region="eu-north-1")
    words = ["--endpoint-url", endpoint, "--region", "eu-north-1"]
    assert shlex.split(recover_command(URL, "/j", "--discard")) == [
        *("s3backer", "recover", URL, *words, "--journal-directory", "/j", "--discard")
    ]
    assert shlex.split(unlock_command(URL, "--force")) == ["s3backer", "unlock", "--force", *words, URL]
    assert shlex.split(check_command(URL, "--resume")) == ["s3backer", "check", URL, *words, "--resume"]
    assert shlex.split(unmount_command(URL)) == ["s3backer", "unmount", *words, URL]


def test_what_the_environment_says_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    name(URL)
    assert unlock_command(URL) == f"s3backer unlock {URL}"


def test_a_directory_and_a_mount_point_need_no_store() -> None:
    name("file:///srv/disk", endpoint_url="http://127.0.0.1:9000")
    assert unlock_command("file:///srv/disk") == "s3backer unlock file:///srv/disk"
    name(URL, endpoint_url="http://127.0.0.1:9000")
    assert unmount_command("/mnt/disk") == "s3backer unmount /mnt/disk"


def test_of_two_stores_each_is_named_as_it_was() -> None:
    name(URL, endpoint_url="http://127.0.0.1:9000")
    name("s3://other", region="eu-north-1")
    assert unlock_command(URL) == f"s3backer unlock --endpoint-url http://127.0.0.1:9000 {URL}"
    assert unlock_command("s3://other") == "s3backer unlock --region eu-north-1 s3://other"
    assert unlock_command("s3://third") == "s3backer unlock s3://third"


def test_of_two_stores_with_one_url_none_is_guessed() -> None:
    """A bucket that is copied to another service often keeps its name."""
    name(URL, endpoint_url="http://127.0.0.1:9000", region="us-east-1", virtual_host=False)
    for _ in range(2):
        name(URL, region="us-east-1", verify_tls=False)
        assert unlock_command(URL) == f"s3backer unlock --region us-east-1 --endpoint-url ENDPOINT_URL {URL}"
    # Run as it stands, it reaches no store at all.
    with pytest.raises(UsageError, match="no endpoint URL"):
        name("s3://another", endpoint_url="ENDPOINT_URL")


def test_the_endpoint_of_a_mount_that_had_another_one_is_left_to_be_said() -> None:
    name(URL, endpoint_url="http://127.0.0.1:9000", region="us-east-1")
    assert recover_command(URL, "/j", elsewhere=True) == (
        f"s3backer recover {URL} --endpoint-url ENDPOINT_URL --region us-east-1 --journal-directory /j"
    )
    assert recover_command("s3://third", "/j", elsewhere=True) == (
        "s3backer recover s3://third --endpoint-url ENDPOINT_URL --journal-directory /j"
    )


def test_every_option_that_leads_to_a_store_is_named() -> None:
    values: dict[str, Any] = {"verify_tls": False, "anonymous": True, "timeout": 7.0}
    for option in STORE:
        for value in {True, False} if option.name == "virtual_host" else {values.get(option.name, "http://x")}:
            named = store_options({option.name: value}).named()
            flag = (
                {True: "--virtual-host", False: "--path-style"}[value] if option.name == "virtual_host" else option.flag
            )
            assert list(named) == ([] if option.name == "timeout" else [flag])


def test_no_secret_is_told() -> None:
    with pytest.raises(UsageError, match="holds no user"):
        name(URL, endpoint_url="https://me:hush@host")
    assert "hush" not in unlock_command(URL)
    assert StoreOptions(endpoint_url="https://me:hush@host", access_key="me", secret_key="hush").named() == {}


def test_a_file_is_named_so_that_it_is_found_from_everywhere() -> None:
    assert StoreOptions(ca_bundle="ca.pem").named() == {"--ca-bundle": os.path.abspath("ca.pem")}


@pytest.mark.parametrize(
    ("url", "service", "options"),
    [
        ("s3://old/disk", "http://127.0.0.1:9000", "--endpoint-url http://127.0.0.1:9000 --region us-east-1 "),
        ("s3://old", "http://127.0.0.1:9001", "--endpoint-url ENDPOINT_URL --region us-east-1 "),
        ("file:///old", "/old", ""),
    ],
    ids=["renamed", "another service", "a directory"],
)
def test_a_journal_of_before_a_bucket_had_another_name_is_reached_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, service: str, options: str
) -> None:
    store = open_store(VolumeURL.parse(URL), StoreOptions("http://127.0.0.1:9000", "us-east-1"))
    with contextlib.closing(store):
        old = VolumeURL.parse(url)
        (tmp_path / "of-before").mkdir()
        (tmp_path / "of-before" / "token").write_text("0000abcd")
        place = service if old.scheme == "file" else f"{service} {old.bucket}"
        header = SimpleNamespace(url=url, volume=volume_id(place, old.prefix))
        monkeypatch.setattr(named, "newest_header", lambda path: header)
        token = new_token(random.Random(1), value=0xABCD, journal=str(tmp_path))
        found = named.under_another_name(store, "disk/", token)
    assert found is not None
    assert found.hint(URL, token).endswith(f": s3backer recover {url} {options}--journal-directory {tmp_path}")
