"""The loop devices of this machine: which are on a file, whatever those of others are on."""

from __future__ import annotations

import os
from pathlib import Path

from s3backer.mountpoint import loop_devices


def attach(sys_block: Path, name: str, file: bytes) -> None:
    """Show a loop device as the kernel does."""
    place = sys_block / name / "loop"
    place.mkdir(parents=True)
    (place / "backing_file").write_bytes(file + b"\n")


def test_files_whose_names_are_no_text_are_compared(tmp_path: Path) -> None:
    attach(tmp_path, "loop0", b"/home/\xe9.img")
    attach(tmp_path, "loop1", b"/mnt/file")
    attach(tmp_path, "loop2", b"/mnt/a\n")
    assert loop_devices("/mnt/file", str(tmp_path)) == ["/dev/loop1"]
    assert loop_devices(os.fsdecode(b"/home/\xe9.img"), str(tmp_path)) == ["/dev/loop0"]
    assert loop_devices("/mnt/a\n", str(tmp_path)) == ["/dev/loop2"]
