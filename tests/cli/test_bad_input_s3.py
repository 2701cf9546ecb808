"""What goes wrong with a real S3 server: one sentence, one line of advice, a stable exit code, nothing changed."""

from __future__ import annotations

import random
import re
import shlex
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import s3backer
from s3backer.admin import create_volume
from s3backer.errors import CorruptObject
from s3backer.layouts.token import new_token, write_token
from s3backer.stores.s3 import S3Store
from tests.support.commands import Run
from tests.support.mounts import mounts_below, needs_mounts
from tests.support.servers import S3Server, free_ports

SIZE, BLOCK = 8 << 20, 64 << 10


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a bucket, reachable by the environment of this test."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    return s3_server.make_bucket()


@pytest.fixture
def store(s3_server: S3Server, bucket: str) -> Iterator[S3Store]:
    opened = S3Store(bucket, s3_server.options())
    create_volume(opened, "disk/", size=SIZE, block_size=BLOCK)
    yield opened
    opened.close()


def snapshot(store: S3Store) -> list[tuple[str, int, str]]:
    return [(entry.key, entry.size, entry.etag) for entry in store.list("").entries]


def commands(url: str, mountpoint: Path) -> list[tuple[str, ...]]:
    return [
        ("create", f"{url}-new", "--size", "8MiB"),
        ("info", url),
        ("info", url, "--count"),
        ("resize", url, "16MiB"),
        ("erase", url, "--yes"),
        ("unlock", url),
        ("copy", url, f"{url}-new"),
        ("mount", url, str(mountpoint), "--foreground"),
    ]


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("mistake", ["no such bucket", "wrong secret", "unknown key", "refused", "no keys"])
def test_every_command_says_what_is_wrong(
    mistake: str,
    number: int,
    run: Run,
    store: S3Store,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    before = snapshot(store)
    url = f"s3://{bucket}/disk"
    code, words, advice = 4, "", ""
    # Waiting for a better answer is tested elsewhere.
    monkeypatch.setattr("s3backer.cli.common._PATIENCE", 0.1)
    defaults = S3Store.__init__.__kwdefaults__
    assert defaults is not None
    match mistake:
        case "no such bucket":
            url, code, words, advice = "s3://no-such-bucket/disk", 5, "there is no bucket 'no-such-bucket'", "create"
        case "wrong secret":
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-right-secret-at-all")
            words, advice = "signature", "AWS_SECRET_ACCESS_KEY"
        case "unknown key":
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
            words, advice = "does not know this access key", "AWS_ACCESS_KEY_ID"
        case "refused":
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
            monkeypatch.setitem(defaults, "sleep", lambda seconds: None)
            code, words, advice = 3, "connection refused", "server runs"
        case "no keys":
            monkeypatch.delenv("AWS_ACCESS_KEY_ID")
            monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
            monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
            words, advice = "no credentials found", "AWS_ACCESS_KEY_ID"
    (tmp_path / "mnt").mkdir()
    answer = run(*commands(url, tmp_path / "mnt")[number])
    assert answer.code == code, answer
    said = answer.err.splitlines()
    # In the foreground the log goes to the same place, with a date before each line.
    said = [line for line in said if not line[:1].isdigit()]
    assert len(said) == 2 and said[0].startswith("s3backer: ") and words in said[0] and advice in said[1], answer.err
    assert "Traceback" not in answer.err
    assert snapshot(store) == before
    assert not mounts_below(tmp_path)


def test_what_is_told_to_run_reaches_the_store_that_the_options_named(
    run: Run, store: S3Store, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    url, named = f"s3://{bucket}/disk", ("--endpoint-url", store.endpoint)
    token = new_token(random.Random(1), journal="/elsewhere/journals")
    write_token(store, "disk/", url, replace(token, host="elsewhere"), former=None)
    journals = ("--journal-directory", str(tmp_path / "journals"))

    def told(*words: str) -> list[str]:
        answer = run(*words)
        found = re.search(r"s3backer (recover .*? --journal-directory \S+/journals)", answer.out + answer.err)
        assert found is not None, answer
        return shlex.split(found[1])

    (tmp_path / "mnt").mkdir()
    for words in (
        ("info", url, *named),
        ("recover", url, *named, *journals),
        ("unlock", url, *named),
        ("copy", url, f"file://{tmp_path}/copy", *named),
        ("mount", url, str(tmp_path / "mnt"), "--foreground", *named, *journals),
        (f"--baseURL={store.endpoint}/", f"{bucket}/disk", str(tmp_path / "mnt"), "-f"),
    ):
        way = told(*words)
        assert way[:2] == ["recover", url], words
        # It reaches that store: the token is read there.
        assert "on elsewhere" in run(*way).err, (words, way)


@pytest.mark.parametrize("off", [-7200, 7200])
def test_a_clock_that_is_off_does_no_harm(
    off: int, run: Run, bucket: str, monkeypatch: pytest.MonkeyPatch, store: S3Store
) -> None:
    defaults = S3Store.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "clock", lambda: time.time() + off)
    url = f"s3://{bucket}/clock"
    assert run("create", url, "--size", "1MiB").code == 0
    assert run("info", url, "--count").code == 0
    assert run("erase", url, "--yes").code == 0


def test_what_is_there_already_is_not_created_over(run: Run, store: S3Store, bucket: str) -> None:
    before = snapshot(store)
    answer = run("create", f"s3://{bucket}/disk", "--size", "8MiB")
    assert (answer.code, answer.sentence()) == (6, f"there is a volume at s3://{bucket}/disk already")
    assert snapshot(store) == before


def test_blocks_without_metadata_are_not_created_over(run: Run, store: S3Store, bucket: str) -> None:
    store.delete("disk/00000000")
    store.put("disk/00000007", bytes(BLOCK - 1) + b"x")
    before = snapshot(store)
    assert run("create", f"s3://{bucket}/disk", "--size", "8MiB").code == 6
    assert snapshot(store) == before


@needs_mounts
@pytest.mark.parametrize("command", ["mount", "resize", "erase"])
def test_a_volume_that_is_mounted_elsewhere_is_left_alone(
    command: str, run: Run, run_apart: Run, store: S3Store, bucket: str, tmp_path: Path
) -> None:
    write_token(store, "disk/", "", new_token(random.Random(1)), former=None)
    before = snapshot(store)
    url = f"s3://{bucket}/disk"
    (tmp_path / "mnt").mkdir()
    if command == "mount":
        answer = run_apart("mount", url, str(tmp_path / "mnt"))
    else:
        answer = run(command, url, *(["16MiB"] if command == "resize" else ["--yes"]))
    assert answer.code == 6
    assert answer.sentence().startswith(f"{url} is mounted")
    assert "unlock" in answer.hint()
    assert snapshot(store) == before
    assert not mounts_below(tmp_path)


@pytest.mark.parametrize("length", [0, BLOCK - 1, BLOCK + 1])
def test_an_object_of_the_wrong_length_is_an_error_and_never_zeros(
    length: int, s3_server: S3Server, store: S3Store, bucket: str
) -> None:
    store.put("disk/00000003", b"x" * length, content_type="application/x-s3backer-block")
    before = snapshot(store)
    with s3backer.open(f"s3://{bucket}/disk") as volume:
        with pytest.raises(CorruptObject, match=f"'disk/00000003'.* has {length} bytes") as caught:
            volume.read(3 * BLOCK, 10)
        assert (caught.value.exit_code, bool(caught.value.hint)) == (8, True)
        assert volume.read(2 * BLOCK, BLOCK) == bytes(BLOCK)
    assert snapshot(store) == before
