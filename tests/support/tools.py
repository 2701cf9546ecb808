"""Running real programs in tests, and the holes of files."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)


def run(*command: str, timeout: float = 300) -> str:
    """Run a program and return its output; an AssertionError shows what it said when it fails."""
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert result.returncode == 0, f"{' '.join(command)} exited {result.returncode}:\n{result.stdout}\n{result.stderr}"
    return result.stdout


def nonzero_blocks(path: Path, block_size: int) -> set[int]:
    """Return the numbers of the blocks of a sparse file that hold anything but zeros."""
    zeros, found = bytes(block_size), set[int]()
    with path.open("rb") as file:
        for start, stop in data_ranges(file.fileno()):
            for block in range(start // block_size, -(-stop // block_size)):
                if block not in found and os.pread(file.fileno(), block_size, block * block_size) != zeros:
                    found.add(block)
    return found


def data_ranges(descriptor: int) -> Iterator[tuple[int, int]]:
    """Yield the (start, stop) byte ranges of a file that are not holes."""
    end = os.fstat(descriptor).st_size
    position = 0
    while position < end:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError:
            return
        position = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, position


def punch_hole(descriptor: int, offset: int, length: int) -> None:
    """Make a range of a file a hole, as FALLOC_FL_PUNCH_HOLE does; its size stays."""
    if _libc.fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_long(offset), ctypes.c_long(length)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
