"""What each command does on a local volume, without a mount."""

from __future__ import annotations

import json
import os
import pty
import random
import subprocess
import sys
from pathlib import Path

import pytest

import s3backer
from s3backer.errors import UsageError
from s3backer.layouts.copy_note import CopyNote
from s3backer.layouts.token import TOKEN_NAME, new_token, write_token
from s3backer.opening import VolumeOptions
from s3backer.stores.directory import DirectoryStore
from s3backer.units import parse_size
from s3backer.volume import Volume
from tests.support.commands import Run, tree

MIB = 1 << 20


def lock(volume: Path) -> None:
    """Mark the volume as mounted by somebody."""
    write_token(DirectoryStore(volume), "", "", new_token(random.Random(1)), former=None)


def test_create_makes_the_directory_and_info_tells(run: Run, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/a/b"
    answer = run("create", url, "--size", "10MiB")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == f"created {url}: 10 MiB in blocks of 128 KiB\n"
    answer = run("info", url, "--json")
    assert answer.code == 0
    assert json.loads(answer.out) == {"url": url, "size": 10 * MIB, "block_size": 128 << 10, "mounted": False}
    assert "10 MiB" in run("info", url).out


def test_create_warns_of_blocks_for_which_a_mount_needs_more_memory(run: Run, tmp_path: Path) -> None:
    answer = run("create", f"file://{tmp_path}/small", "--size", "1GiB", "--block-size", "32MiB")
    assert (answer.code, answer.err) == (0, "")
    url = f"file://{tmp_path}/large"
    answer = run("create", url, "--size", "1GiB", "--block-size", "64MiB")
    assert (answer.code, answer.out) == (0, f"created {url}: 1 GiB in blocks of 64 MiB\n")
    assert "256MiB" in answer.sentence()
    named = answer.hint().split("--memory ")[1].split()[0]
    with Volume.open(DirectoryStore(tmp_path / "large"), "", VolumeOptions(memory=parse_size(named))):
        pass
    with pytest.raises(UsageError, match="too small"):
        Volume.open(DirectoryStore(tmp_path / "large"), "", VolumeOptions())
    assert run("resize", url, "2GiB").code == 0


@pytest.mark.parametrize("spelling", ["--block-size", "--blockSize"])
def test_create_takes_a_block_size_by_both_names(run: Run, tmp_path: Path, spelling: str) -> None:
    url = f"file://{tmp_path}/v"
    assert run("create", "--size", "1g", spelling, "4k", url).code == 0
    assert json.loads(run("info", url, "--json").out)["block_size"] == 4096


def test_info_counts_objects_and_bytes(run: Run, volume: Path) -> None:
    with s3backer.open(f"file://{volume}", memory=8 * MIB, threads=2) as opened:
        opened.write(3 * (64 << 10), b"x")
    facts = json.loads(run("info", f"file://{volume}", "--json", "--count").out)
    assert (facts["objects"], facts["stored_bytes"]) == (2, 128 << 10)
    assert "2 with 128 KiB" in run("info", f"file://{volume}", "--count").out


def test_info_names_the_host_that_has_it_mounted(run: Run, volume: Path) -> None:
    lock(volume)
    facts = json.loads(run("info", f"file://{volume}", "--json").out)
    assert facts["mounted"] is True
    assert facts["mounted_by"] == os.uname().nodename
    assert facts["mounted_at"].endswith("Z")
    assert os.uname().nodename in run("info", f"file://{volume}").out


def test_resize_unmounted(run: Run, volume: Path) -> None:
    url = f"file://{volume}"
    answer = run("resize", url, "16MiB")
    assert (answer.code, answer.out) == (0, f"{url}: 16 MiB, before 8 MiB\n")
    assert json.loads(run("info", url, "--json").out)["size"] == 16 * MIB
    assert not (volume / TOKEN_NAME).exists()


def test_resize_needs_no_memory_for_large_blocks(run: Run, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/v"
    assert run("create", url, "--size", "1GiB", "--block-size", "64MiB").code == 0
    for size in ("2GiB", "512MiB"):
        assert run("resize", url, size).code == 0
        assert json.loads(run("info", url, "--json").out)["size"] == int(size[:-3]) * (1024 if "G" in size else 1) * MIB


def test_shrinking_refuses_while_there_is_data(run: Run, volume: Path) -> None:
    url = f"file://{volume}"
    with s3backer.open(url, memory=8 * MIB, threads=2) as opened:
        opened.write(7 * MIB, b"x")
    before = tree(volume)
    answer = run("resize", url, "4MiB")
    assert answer.code == 2
    assert "data lies beyond" in answer.sentence() and "--discard" in answer.hint()
    assert tree(volume) == before
    assert run("resize", url, "4MiB", "--discard").code == 0
    assert json.loads(run("info", url, "--json", "--count").out)["objects"] == 1


def test_erase_with_yes_leaves_no_block(run: Run, volume: Path) -> None:
    (volume / "notes.txt").write_text("not ours")
    answer = run("erase", f"file://{volume}", "--yes")
    assert (answer.code, answer.out) == (0, f"erased file://{volume}: 1 blocks\n")
    assert [path.name for path in volume.iterdir() if path.name != ".s3backer"] == ["notes.txt"]
    assert run("erase", f"file://{volume}", "--yes").code == 5


def test_erase_refuses_a_mounted_volume_unless_forced(run: Run, volume: Path) -> None:
    lock(volume)
    before = tree(volume)
    answer = run("erase", f"file://{volume}", "--yes")
    assert answer.code == 6
    assert os.uname().nodename in answer.sentence()
    assert tree(volume) == before
    assert run("erase", f"file://{volume}", "--yes", "--force").code == 0
    assert not (volume / TOKEN_NAME).exists()


def test_an_unfinished_copy_without_any_block_is_given_up(run: Run, tmp_path: Path) -> None:
    url = f"file://{tmp_path}"
    note = CopyNote("somewhere", MIB, MIB, False, "", 0, "")
    write_token(DirectoryStore(tmp_path), "", "", new_token(random.Random(1), copy=note), former=None)
    answer = run("erase", url, "--yes", "--force")
    assert (answer.code, answer.out) == (0, f"erased {url}: 0 blocks\n")
    assert not (tmp_path / TOKEN_NAME).exists()
    assert run("erase", url, "--yes", "--force").code == 5


@pytest.mark.parametrize(("typed", "code"), [("yes", 0), ("no", 2), ("", 2), ("y", 2)])
def test_erase_asks_on_a_terminal(volume: Path, typed: str, code: int) -> None:
    master, terminal = pty.openpty()
    try:
        os.write(master, f"{typed}\n".encode())
        done = subprocess.run(
            [sys.executable, "-m", "s3backer", "erase", f"file://{volume}"],
            stdin=terminal,
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        os.close(master)
        os.close(terminal)
    assert done.returncode == code, done.stderr
    assert f"file://{volume}" in done.stdout and "a volume of 8 MiB" in done.stdout
    assert (volume / "00000000").exists() is (code != 0)


def test_unlock_says_whose_token_it_was(run: Run, volume: Path) -> None:
    url = f"file://{volume}"
    assert run("unlock", url).out == f"{url} was not locked\n"
    lock(volume)
    assert run("resize", url, "16MiB").code == 6
    answer = run("unlock", url)
    assert answer.code == 0
    assert os.uname().nodename in answer.out
    assert run("resize", url, "16MiB").code == 0


@pytest.mark.parametrize(
    "command", ["create", "mount", "unmount", "info", "resize", "copy", "erase", "unlock", "import-cache"]
)
def test_every_command_explains_itself(run: Run, command: str) -> None:
    answer = run(command, "--help")
    assert answer.code == 0
    for option in ("--endpoint-url", "--region", "--profile", "--no-sign-request", "--timeout", "--debug"):
        assert option in answer.out


def test_a_name_that_is_no_text_can_be_shown(tmp_path: Path) -> None:
    """A directory's name may be any bytes; saying it must not fail after the work is done."""
    directory = os.fsencode(tmp_path) + b"/v\xff"
    done = subprocess.run(
        [sys.executable.encode(), b"-m", b"s3backer", b"create", b"file://" + directory, b"--size", b"1m"],
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert directory in done.stdout


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"])
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": request.param}


def test_a_reader_that_has_seen_enough_is_no_error(volume: Path, environment: dict[str, str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "s3backer", "info", f"file://{volume}"],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            env=environment,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_output_that_cannot_be_written_is_an_error(volume: Path, environment: dict[str, str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "s3backer", "info", f"file://{volume}"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            env=environment,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("s3backer: the output cannot be written: No space left on device\n")
    assert len(done.stderr.splitlines()) == 2
