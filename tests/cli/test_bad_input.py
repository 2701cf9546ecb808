"""Every mistake gets one sentence, one line of advice and a stable exit code, and changes nothing."""

from __future__ import annotations

import errno
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from s3backer import cli
from s3backer.errors import StoreError, out_of_memory
from s3backer.layouts.token import TOKEN_NAME
from s3backer.stores.directory import DirectoryStore
from tests.support.commands import Run, tree
from tests.support.mounts import needs_mounts


@pytest.mark.parametrize(
    ("words", "code", "sentence", "hint"),
    [
        (("create", "s4://x", "--size", "1m"), 2, "no URL", "s3://x"),
        (("create", "s3:/bucket", "--size", "1m"), 2, "no URL", "s3://bucket"),
        (("info", "S3://bucket"), 2, "no URL", "s3://bucket"),
        (("info", "s3://"), 2, "no bucket", "s3://BUCKET"),
        (("info", "http://127.0.0.1/bucket"), 2, "no URL", "--endpoint-url"),
        (("info", "s3://bucket/a b"), 2, "prefix", "blanks"),
        (("info", "file://dir"), 2, "absolute", "file:///"),
        (("create", "file://{}/new", "--size", "0"), 2, "--size: '0'", "10GiB"),
        (
            ("create", "file://{}/new", "--size", "1000000"),
            2,
            "not a multiple of the block size 128KiB",
            "896KiB and 1MiB",
        ),
        (("create", "file://{}/new", "--size", "ten"), 2, "--size: 'ten' is no size", "10GiB"),
        (("create", "file://{}/new", "--size", "10GB"), 2, "1000 or of 1024", "10GiB"),
        (("create", "file://{}/new", "--size", "-1"), 2, "'-1' is no size", "10GiB"),
        (("create", "file://{}/new", "--size", "512TiB", "--block-size", "64k"), 2, "blocks", "larger block size"),
        (("create", "file://{}/new", "--size", "16TiB", "--block-size", "4k"), 2, "4294967296 blocks", "larger"),
        (("create", "file://{}/new", "--size", "3m", "--block-size", "3000"), 2, "power of two", "128KiB"),
        (("create", "file://{}/new", "--size", "1m", "--block-size", "256"), 2, "power of two", "128KiB"),
        (("create", "file://{}/new", "--size", "1m", "--block-size", "0"), 2, "--block-size: '0'", "128KiB"),
        (("create", "file://{}/new"), 2, "create needs --size", "--help"),
        (("create", "--size", "1m"), 2, "create needs URL", "--help"),
        (("create", "file://{}/new", "more", "--size", "1m"), 2, "more", "--help"),
        (("create", "file://{}/new", "--size", "1m", "--blok-size", "4k"), 2, "no option --blok-size", "--block-size"),
        (("create", "file://{}/new", "--size"), 2, "--size", "--help"),
        (("create", "file://{}/volume", "--size", "8m"), 6, "there is a volume", "erase"),
        (("create", "file://{}/a-file", "--size", "8m"), 5, "no directory", "path"),
        (("create", "file://{}/a-file/below", "--size", "8m"), 3, "cannot be made", "another"),
        (("info", "file://{}/missing"), 5, "no directory", "path"),
        (("info", "file://{}/empty"), 5, "no volume", "create"),
        (("mount", "file://{}/volume", "/mnt", "--fsync", "never"), 2, "--fsync: 'never' is no way", "'lazy'"),
        (("mount", "file://{}/volume", "/mnt", "--journal", "0"), 2, "--journal: '0' is no size", "512MiB, or none "),
        (("mount", "file://{}/volume", "/mnt", "--journal", "None"), 2, "--journal: 'None' is", "512MiB, or none "),
        (("mount", "file://{}/volume", "/mnt", "--journal", ""), 2, "--journal: '' is no size", "512MiB, or none "),
        (("mount", "file://{}/volume", "/mnt", "--journal", "10GB"), 2, "1000 or of 1024", "10GiB"),
        (("mount", "file://{}/volume", "/mnt", "--memory", "0"), 2, "--memory: '0' is no size", "256MiB or 2GiB"),
        (("mount", "file://{}/volume", "/mnt", "--memory", "x"), 2, "--memory: 'x' is no size", "256MiB or 2GiB"),
        (("mount", "file://{}/volume", "/mnt", "--timeout", "0"), 2, "--timeout: without any time", "5 or 30"),
        (("info", "file://{}/volume", "--timeout", "0.0"), 2, "--timeout: without any time", "5 or 30"),
        (("resize", "file://{}/empty", "1m"), 5, "no volume", "create"),
        (("resize", "file://{}/volume", "0"), 2, "size", "10GiB"),
        (
            ("resize", "file://{}/volume", "1000000"),
            2,
            "size 1000000 is not a multiple of the block size 64KiB",
            "960KiB",
        ),
        (("resize", "file://{}/volume", "1x"), 2, "no size", "10GiB"),
        (("resize", "file://{}/volume", "-5"), 2, "-5 is neither an option nor a size", "whole size, such as 10GiB"),
        (("resize", "file://{}/volume", "-5GiB", "--discard"), 2, "-5GiB is neither", "10GiB"),
        (("resize", "file://{}/volume", "-x"), 2, "no option -x", "--help"),
        (("unlock", "file://{}/empty"), 5, "no volume", "URL"),
        (("erase", "file://{}/volume"), 2, "confirmation", "--yes"),
        (("erase", "file://{}/empty", "--yes"), 5, "no volume", "nothing was erased"),
        (("mount", "file://{}/volume", "{}/missing"), 7, "does not exist", "mkdir"),
        (("mount", "file://{}/volume", "{}/a-file"), 7, "not a directory", "empty directory"),
        (("mount", "file://{}/volume", "{}/empty", "--file-mode", "rw"), 2, "--file-mode", "octal"),
        (("mount", "file://{}/volume", "{}/empty", "--threads", "0"), 2, "--threads", "value"),
        (("mount", "file://{}/volume", "{}/empty", "--write-delay", "soon"), 2, "--write-delay", "0.25"),
        (("mount", "file://{}/volume", "{}/empty", "--file-name", "a/b"), 2, "name of a file", "/"),
        (("mount", "file://{}/volume", "{}/empty", "--size", "0"), 2, "--size", "10GiB"),
        (("mount", "file://{}/volume"), 2, "mount needs MOUNTPOINT", "--help"),
        (("unmount", "{}/empty"), 7, "no volume is mounted", "findmnt"),
        (("unmount", "file://{}/volume"), 7, "not mounted here", "findmnt"),
        (("mont", "file://{}/volume", "{}/empty"), 1, "no command 'mont'", "s3backer mount"),
        (("moutn", "bucket", "/mnt", "more"), 1, "no command 'moutn'", "Did you mean 's3backer mount'?"),
        (("unmout",), 1, "no command 'unmout'", "Did you mean 's3backer unmount'?"),
        (("install-systm", "--remove"), 1, "no option --remove", "Or did you mean 's3backer install-system'?"),
        (("umount", "{}/missing"), 1, "does not exist", "Or did you mean 's3backer unmount'?"),
        (("--erase",), 1, "not 0 arguments", "see 's3backer --help-original'.$"),
        (("./umount", "{}/missing"), 1, "does not exist", "mkdir -p {}/missing$"),
        (("--debug", "mount", "file://{}/volume", "{}/empty"), 1, "has to come first", "s3backer mount"),
        (("s3://bucket", "{}/empty"), 1, "no command", "s3backer mount s3://bucket"),
    ],
)
def test_mistakes(run: Run, volume: Path, words: tuple[str, ...], code: int, sentence: str, hint: str) -> None:
    here = volume.parent
    (here / "a-file").write_text("x")
    (here / "empty").mkdir()
    before = tree(here)
    answer = run(*(word.replace("{}", str(here)) for word in words))
    assert answer.code == code, answer.err
    assert answer.out == ""
    assert sentence in answer.sentence()
    assert hint.replace("{}", str(here)) in answer.hint() + "$"
    assert tree(here) == before


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("info", "file:///nowhere/at/all"), 5),
        (("mount", "file:///nowhere/at/all", "/"), 7),
        (("create", "file:///tmp/x", "--size", "1"), 2),
        (("mount", "s3:/bucket", "/nowhere"), 2),
        (("bucket", "/nowhere", "--encrypt"), 1),
        (("erase", "file:///tmp/x"), 2),
    ],
)
def test_mistakes_of_a_process(run_apart: Run, words: tuple[str, ...], code: int) -> None:
    answer = run_apart(*words)
    assert answer.code == code
    assert answer.out == ""
    answer.sentence()


def test_a_create_that_fails_leaves_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(DirectoryStore):
        def put(self, *args: Any, **keywords: Any) -> str:
            super().put(".tmp" + "-half", b"x")
            super().delete(".tmp" + "-half")
            assert (tmp_path / "a/b/.s3backer").is_dir(), "the store has begun to write"
            raise StoreError("the disk is full", hint="Free some space.")

    monkeypatch.setattr("s3backer.stores.directory.DirectoryStore", Full)
    answer = run("create", f"file://{tmp_path}/a/b", "--size", "1m")
    assert answer.code == 3
    assert answer.sentence() == "the disk is full"
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_what_is_closed_is_not_written_to(tmp_path: Path, closed: str) -> None:
    """What is printed goes nowhere, neither into a file that got the number nor into an exception."""
    for url, code in ((f"file://{tmp_path}/new", 0), (f"file://{tmp_path}/new", 6)):
        script = f'exec "$@" {closed}'
        words = (sys.executable, "-m", "s3backer", "create", url, "--size", "1m")
        done = subprocess.run(["sh", "-c", script, "sh", *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done
        assert "defect" not in done.stderr


def test_blocks_larger_than_the_memory_are_no_defect(run: Run, tmp_path: Path) -> None:
    answer = run("create", f"file://{tmp_path}/new", "--size", "4PiB", "--block-size", "4PiB")
    assert answer.code == 1
    assert answer.sentence() == "there is not enough memory for this"
    assert "smaller blocks" in answer.hint()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("debug", [False, True])
def test_a_defect_asks_to_be_reported(run: Run, monkeypatch: pytest.MonkeyPatch, volume: Path, debug: bool) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(importlib.import_module("s3backer.cli.info"), "inspect_volume", fail)
    words = ("info", f"file://{volume}", *(["--debug"] if debug else []))
    if debug:
        with pytest.raises(ZeroDivisionError):
            run(*words)
        return
    answer = run(*words)
    assert answer.code == 1
    assert answer.sentence() == "unexpected ZeroDivisionError: a defect"
    assert "report" in answer.hint()


@pytest.mark.parametrize(
    "words",
    [
        ("resize", "file://{}/volume", "16m"),
        pytest.param(("mount", "file://{}/volume", "{}/empty"), marks=needs_mounts),
        pytest.param(("mount", "file://{}/volume", "{}/empty", "--foreground"), marks=needs_mounts),
    ],
)
def test_too_little_memory_is_no_defect(run_apart: Run, volume: Path, words: tuple[str, ...]) -> None:
    here = volume.parent
    (here / "empty").mkdir()
    limited = ("sh", "-c", 'ulimit -v 150000; exec "$@"', "sh")
    answer = run_apart(*(word.replace("{}", str(here)) for word in words), wrapper=limited)
    assert (answer.code, answer.sentence()) == (2, "a memory budget of 256MiB is more than this machine gives")
    assert "--memory" in answer.hint() and "ulimit -v" in answer.hint()
    assert not (volume / TOKEN_NAME).exists()


def test_what_python_says_when_memory_is_at_an_end() -> None:
    for error in (MemoryError(), OSError(errno.ENOMEM, "x"), RuntimeError("can't start new thread")):
        assert out_of_memory(error) is not None
    for other in (RuntimeError("a defect"), OSError(errno.EIO, "x")):
        assert out_of_memory(other) is None


def test_an_interrupted_command_says_so(run: Run, monkeypatch: pytest.MonkeyPatch, volume: Path) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("s3backer.cli.info"), "inspect_volume", interrupt)
    answer = run("info", f"file://{volume}")
    assert (answer.code, answer.out) == (130, "")
    assert answer.err.strip() == "s3backer: interrupted"


def test_every_command_is_listed_and_has_a_module(run: Run) -> None:
    for name in cli.COMMANDS:
        command = importlib.import_module(cli.module_of(name)).command
        assert isinstance(command, click.Command) and command.name == name
        assert f"\n  {name} " in run("--help").out
