"""What exercises a file: it finds what a disk has lost or made up, and nothing else."""

from __future__ import annotations

import os
import time
from itertools import islice
from pathlib import Path

import pytest

from tests.support.exerciser import LARGEST, Exerciser, Model, Operation, operations, sync_file
from tests.support.mounts import needs_mounts, umount, wait_until
from tests.support.tools import run


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    exerciser = Exerciser(tmp_path / "file", 1)
    try:
        time.sleep(0.5)
        assert exerciser.alive
    finally:
        exerciser.close()
    assert exerciser.check(tmp_path / "file") > 10
    content = (tmp_path / "file").read_bytes()
    assert content
    for damaged in (content + bytes(LARGEST), bytes(byte ^ 0xFF for byte in content)):
        (tmp_path / "file").write_bytes(damaged)
        with pytest.raises(AssertionError, match=r"are left|written there since"):
            exerciser.check(tmp_path / "file")


def test_it_ends_where_nothing_works(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    exerciser = Exerciser(tmp_path / "file", 1)
    wait_until(lambda: not exerciser.alive, "it ends")
    exerciser.join()


@needs_mounts
def test_no_sync_counts_on_a_filesystem_that_has_given_up(tmp_path: Path) -> None:
    run("mount", "--bind", str(tmp_path), str(tmp_path))
    try:
        descriptor = os.open(tmp_path, os.O_RDONLY)
        try:
            for sync in (os.fsync, os.fdatasync):
                sync_file(descriptor, sync)
            run("mount", "-o", "remount,bind,ro", str(tmp_path))
            for sync in (os.fsync, os.fdatasync):
                sync(descriptor)
                with pytest.raises(OSError, match="Read-only"):
                    sync_file(descriptor, sync)
        finally:
            os.close(descriptor)
    finally:
        umount(tmp_path)


def test_one_seed_is_one_series() -> None:
    assert list(islice(operations(5), 500)) == list(islice(operations(5), 500))
    assert {operation.kind for operation in islice(operations(5), 500)} == {
        *("write", "map", "copy", "punch", "truncate", "read", "fsync", "fdatasync")
    }


def done(*what: Operation) -> Model:
    model = Model()
    for operation in what:
        if operation.kind == "fsync":
            model.synced()
        else:
            model.apply(operation)
    return model


FSYNC = Operation("fsync", 0, 0)
BEGIN = (Operation("write", 0, 4, b"aaaa"), FSYNC)


@pytest.mark.parametrize(
    ("later", "allowed", "lost"),
    [
        ((), [b"aaaa"], [b"aaa", b"aaaaa", b"aaab", b"\0aaa"]),
        ((Operation("write", 1, 2, b"bb"),), [b"aaaa", b"abba", b"abaa"], [b"bbaa", b"a\0ba", b"abb"]),
        ((Operation("write", 1, 2, b"bb"), FSYNC), [b"abba"], [b"aaaa", b"abaa"]),
        ((Operation("write", 5, 1, b"b"),), [b"aaaa", b"aaaa\0b", b"aaaa\0\0", b"aaaa\0"], [b"aaaaab", b"aaaa\0c"]),
        ((Operation("punch", 1, 2),), [b"aaaa", b"a\0\0a"], [b"\0aaa", b"a\0\0"]),
        ((Operation("truncate", 1, 1),), [b"aaaa", b"a", b"aa"], [b"", b"ab", b"\0"]),
        ((Operation("truncate", 1, 1), Operation("truncate", 3, 1)), [b"aaaa", b"a\0\0", b"a"], [b"", b"ab\0", b"ba"]),
        ((Operation("copy", 1, 1, source=0), Operation("write", 2, 1, b"c")), [b"aaca"], [b"acca", b"caaa"]),
    ],
)
def test_what_a_crash_may_leave(later: tuple[Operation, ...], allowed: list[bytes], lost: list[bytes]) -> None:
    model = done(*BEGIN, *later)
    for found in allowed:
        model.check(found)
    for found in lost:
        with pytest.raises(AssertionError):
            model.check(found)
