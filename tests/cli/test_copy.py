"""``s3backer copy``: over directories and buckets, killed and resumed."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import s3backer
from s3backer import config
from s3backer.admin import create_volume
from s3backer.errors import VolumeInUse
from s3backer.layouts.token import TOKEN_NAME, new_token, write_token
from s3backer.stores.base import ObjectStore
from s3backer.stores.directory import DirectoryStore
from s3backer.stores.s3 import S3Store
from tests.support.commands import Run, tree
from tests.support.servers import SeaweedServer

KIB, MIB = 1 << 10, 1 << 20
ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0
#: Blocks that the volume below does not have.
HOLES = range(100, 200)


@pytest.fixture
def reach(monkeypatch: pytest.MonkeyPatch, seaweed: SeaweedServer) -> None:
    """Let commands reach the S3 server."""
    for name, value in seaweed.environment().items():
        monkeypatch.setenv(name, value)


Places = Callable[[str], tuple[str, ObjectStore, str]]


@pytest.fixture
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Places:
    """Return what gives a URL for a scheme, with its store and prefix."""

    def make(scheme: str) -> tuple[str, ObjectStore, str]:
        if scheme == "file":
            directory = tmp_path / f"place-{random.SystemRandom().randrange(1 << 40):x}"
            directory.mkdir()
            return f"file://{directory}", DirectoryStore(directory), ""
        request.getfixturevalue("reach")
        seaweed: SeaweedServer = request.getfixturevalue("seaweed")
        bucket = seaweed.make_bucket()
        store = S3Store(bucket, seaweed.options())
        request.addfinalizer(store.close)
        return f"s3://{bucket}/disk", store, "disk/"

    return make


def fill(url: str, store: ObjectStore, prefix: str, *, blocks: int, block_size: int = 4 * KIB) -> bytes:
    """Make a volume with data and holes and return its bytes."""
    create_volume(store, prefix, size=blocks * block_size, block_size=block_size)
    data = bytearray(random.Random(blocks).randbytes(blocks * block_size))
    data[HOLES.start * block_size : HOLES.stop * block_size] = bytes(len(HOLES) * block_size)
    with s3backer.open(url, memory=32 * MIB) as volume:
        volume.write(0, data)
    return bytes(data)


def read(url: str, **options: str) -> bytes:
    with s3backer.open(url, memory=32 * MIB, read_only=True, **options) as volume:  # type: ignore[arg-type]
        return volume.read(0, volume.size)


def password_file(directory: Path, text: str) -> str:
    path = directory / f"password-{text}"
    path.write_text(f"{text}\n")
    return str(path)


@pytest.mark.parametrize("new", ["file", "s3"])
@pytest.mark.parametrize("old", ["file", "s3"])
def test_from_everywhere_to_everywhere(run: Run, places: Places, tmp_path: Path, old: str, new: str) -> None:
    url, new_url = places(old), places(new)
    data = fill(*url, blocks=256)
    secret = password_file(tmp_path, "swordfish")
    words = ("--to-block-size", "16k", "--to-compress", "zstd", "--to-encrypt", "AES-256-CBC")
    answer = run("copy", url[0], new_url[0], *words, "--to-password-file", secret)
    assert (answer.code, answer.err) == (0, ""), answer.err
    # 256 blocks of 4 KiB are 64 of 16 KiB, and the holes are 25 of them.
    assert answer.out == f"copied {url[0]} to {new_url[0]}: 1 MiB in blocks of 16 KiB, 39 written, 0 there already\n"
    assert read(new_url[0], password="swordfish") == data
    facts = json.loads(run("info", "--json", "--count", new_url[0]).out)
    assert (facts["objects"], facts["content_encoding"]) == (39, "zstd, encrypt-AES-256-CBC")
    assert read(url[0]) == data


def test_a_directory_that_is_missing_is_made(run: Run, volume: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/a/b"
    assert run("copy", f"file://{volume}", url).code == 0
    assert read(url) == bytes(8 * MIB)


def test_a_copy_that_cannot_begin_leaves_no_directory(run: Run, volume: Path, tmp_path: Path) -> None:
    answer = run("copy", f"file://{volume}", f"file://{tmp_path}/a/b", "--to-block-size", "16MiB")
    assert answer.code == 2 and "not a multiple" in answer.sentence()
    assert not (tmp_path / "a").exists()


def test_a_copy_that_fails_leaves_no_part_of_its_mark(run: Run, volume: Path, tmp_path: Path) -> None:
    """The mark's metadata is in a directory of its own, which goes only with the last block."""
    target = tmp_path / "a" / "b"
    with s3backer.open(f"file://{volume}", memory=8 * MIB) as opened:
        opened.write(64 * KIB, b"x")
    (volume / "00000001").write_bytes(b"cut short")
    answer = run("copy", f"file://{volume}", f"file://{target}", "--to-compress", "zstd")
    assert answer.code == 8 and "00000001" in answer.sentence()
    for read_only in (False, True):
        with pytest.raises(VolumeInUse, match="unfinished copy"):
            s3backer.open(f"file://{target}", read_only=read_only)


def test_the_wrong_password(run: Run, places: Places, tmp_path: Path) -> None:
    url, new_url = places("file"), f"file://{tmp_path}/copy"
    fill(*url, blocks=256)
    right, wrong = password_file(tmp_path, "right"), password_file(tmp_path, "wrong")
    encrypted = f"file://{tmp_path}/encrypted"
    assert run("copy", url[0], encrypted, "--to-encrypt", "AES-128-CBC", "--to-password-file", right).code == 0
    answer = run("copy", encrypted, new_url, "--password-file", wrong)
    assert answer.code == 4 and "password is wrong" in answer.sentence()
    answer = run("copy", encrypted, new_url)
    assert answer.code == 2 and "is encrypted" in answer.sentence()
    assert not (tmp_path / "copy").exists()
    # Nothing said about the copy: it has the same password.
    assert run("copy", encrypted, new_url, "--password-file", right).code == 0
    assert read(new_url, password="right") == read(encrypted, password="right")
    assert run("copy", encrypted, f"file://{tmp_path}/plain", "--password-file", right, "--to-plain").code == 0
    assert read(f"file://{tmp_path}/plain") == read(url[0])
    answer = run("copy", url[0], f"file://{tmp_path}/x", "--to-password-file", right)
    assert answer.code == 2 and "--to-encrypt" in answer.hint()


def test_what_is_there_is_not_copied_over(run: Run, volume: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    assert run("create", f"file://{target}", "--size", "1m").code == 0
    before = tree(target)
    for more in ((), ("--resume",)):
        answer = run("copy", f"file://{volume}", f"file://{target}", *more)
        assert (answer.code, answer.sentence()) == (6, f"there is a volume at file://{target} already")
    assert tree(target) == before
    answer = run("copy", f"file://{volume}", f"file://{volume}/../{volume.name}")
    assert answer.code == 2 and "onto itself" in answer.sentence()


def test_a_mounted_source_needs_force(run: Run, volume: Path, tmp_path: Path) -> None:
    write_token(DirectoryStore(volume), "", "", new_token(random.Random(1)), former=None)
    target = tmp_path / "target"
    answer = run("copy", f"file://{volume}", f"file://{target}")
    assert answer.code == 6 and "is mounted" in answer.sentence() and "--force" in answer.hint()
    assert not target.exists()
    assert run("copy", f"file://{volume}", f"file://{target}", "--force").code == 0
    assert not (target / TOKEN_NAME).exists() and (volume / TOKEN_NAME).exists()


def test_a_source_whose_mount_may_have_left_a_journal(run: Run, volume: Path, tmp_path: Path) -> None:
    """What that mount flushed may be in its journal only: the copy would be without it."""
    url, new_url = f"file://{volume}", f"file://{tmp_path}/target"
    token = replace(new_token(random.Random(1), journal="/its/journals"), host="elsewhere")
    token = write_token(DirectoryStore(volume), "", url, token, former=None)
    answer = run("copy", url, new_url)
    assert answer.code == 6 and "with a journal in /its/journals there" in answer.sentence()
    assert f"s3backer recover {url} --journal-directory /its/journals" in answer.hint()
    assert "--force" in answer.hint()
    answer = run("copy", url, new_url, "--force")
    assert answer.code == 0
    assert f"{url} is mounted by elsewhere" in answer.err
    assert "with a journal in /its/journals there: what it flushed may be in that only, and is not copied" in answer.err
    # One of this host that is gone with what was in it cannot be recovered.
    gone = replace(token, host=socket.gethostname(), journal=str(tmp_path / "gone"))
    write_token(DirectoryStore(volume), "", url, gone, former=token)
    answer = run("copy", url, f"{new_url}-2")
    assert "which is not there" in answer.hint() and f"s3backer unlock --force {url}" in answer.hint()


def test_of_a_source_whose_mount_had_no_journal_nothing_is_told_of_one(run: Run, volume: Path, tmp_path: Path) -> None:
    write_token(DirectoryStore(volume), "", "", new_token(random.Random(1)), former=None)
    answer = run("copy", f"file://{volume}", f"file://{tmp_path}/target")
    assert "journal" not in answer.err and f"s3backer unlock file://{volume}" in answer.hint()
    assert "journal" not in run("copy", f"file://{volume}", f"file://{tmp_path}/target", "--force").err


def test_how_the_new_store_is_reached(run: Run, volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the source's, but for signing, where no option says something about it."""

    seen: list[tuple[object, ...]] = []
    real = config.store_options

    def note(values: dict[str, object]) -> object:
        chosen = real(values)
        seen.append((chosen.endpoint_url, chosen.region, chosen.anonymous, chosen.connections, chosen.timeout))
        return chosen

    monkeypatch.setattr("s3backer.cli.common.store_options", note)
    words = ("--endpoint-url", "http://old", "--region", "r", "--no-sign-request", "--threads", "3", "--timeout", "7")
    same = f"file://{volume}"
    assert run("copy", same, same, *words).code == 2
    assert run("copy", same, same, *words, "--to-region", "s").code == 2
    # A longer wait must not lead to the same name on another server.
    assert run("copy", same, same, *words, "--to-timeout", "9").code == 2
    assert seen == [
        ("http://old", "r", True, 3, 7),
        ("http://old", "r", False, 3, 7),
        ("http://old", "r", True, 3, 7),
        (None, "s", False, 3, 30),
        ("http://old", "r", True, 3, 7),
        ("http://old", "r", False, 3, 9),
    ]


def begin(*words: str, store: ObjectStore, prefix: str, blocks: int) -> int:
    """Start a copy, kill it when so many blocks are there, and return how many there are then."""

    def count() -> int:
        return len(store.list(prefix).entries)

    process = subprocess.Popen(
        [sys.executable, "-m", "s3backer", "copy", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while count() < blocks and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
    finally:
        process.kill()
        _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said
    return count()


@pytest.mark.parametrize("new", ["file", "s3"])
def test_killed_and_resumed(run: Run, places: Places, new: str, tmp_path: Path) -> None:
    url, (new_url, store, prefix) = places("file"), places(new)
    data = fill(*url, blocks=900)
    secret = password_file(tmp_path, "swordfish")
    words = (url[0], new_url, "--to-encrypt", "AES-128-CBC", "--to-password-file", secret, "--threads", "2")
    there = begin(*words, store=store, prefix=prefix, blocks=100)
    assert there < 700
    for again in range(2):
        if again:
            assert begin(*words, "--resume", store=store, prefix=prefix, blocks=there + 100) > there
        for code, command in (
            (5, ("resize", new_url, "8m", "--force")),
            (5, ("info", new_url)),
            (6, ("unlock", new_url)),
            (6, ("copy", *words)),
        ):
            answer = run(*command)
            assert answer.code == code and "unfinished copy of" in answer.sentence(), answer
        with pytest.raises(VolumeInUse, match="unfinished copy of"):
            s3backer.open(new_url, force=True, size=3600 * KIB, block_size=4 * KIB, password="swordfish")
    answer = run("copy", *words, "--to-block-size", "8k", "--resume")
    assert answer.code == 2 and "has blocks of 4KiB, not 8KiB" in answer.sentence()
    answer = run("copy", *words, "--resume")
    assert answer.code == 0, answer.err
    written, kept = (int(part.split()[0]) for part in answer.out.split(", ")[-2:])
    assert written + kept == 800 and kept >= there + 90
    assert read(new_url, password="swordfish") == data
    assert len(store.list(prefix).entries) == 800


def test_interrupted_from_the_keyboard(run: Run, places: Places) -> None:
    """It ends soon, says so in a line, and what it leaves is taken up."""
    url, (new_url, store, prefix) = places("file"), places("file")
    data = fill(*url, blocks=900)
    process = subprocess.Popen(
        [sys.executable, "-m", "s3backer", "copy", url[0], new_url, "--threads", "1"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    while len(store.list(prefix).entries) < 20:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said.strip()) == (130, b"s3backer: interrupted")
    assert run("copy", url[0], new_url, "--resume").code == 0
    assert read(new_url) == data
