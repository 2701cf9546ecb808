"""A volume in a directory, a place to mount it on, and what can be seen of both from outside."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from s3backer.admin import create_volume
from s3backer.control.sockets import control_path, socket_name
from s3backer.layouts.classic import parse_block_name
from s3backer.layouts.token import TOKEN_NAME
from s3backer.mountpoint import unmount
from s3backer.stores.directory import DirectoryStore
from tests.support.mounts import Mounted, daemon_pid, end_process, mounted, mounts_below, run_mount, runners, wait_until

BLOCK = 4096
SIZE = 1 << 20
#: A write delay in seconds that no test lives to see: what is stored was stored because it was asked for.
NEVER = 3600.0
#: Marks tests in which the fast lane plays no part, so that one way is enough: of a FakeDisk, which has none, and of
#: mounts that are refused before anything is served.
without_lane = pytest.mark.parametrize("fast_lane", [False], ids=["llfuse"])
#: Marks tests of what is found after a mount has ended, which way its requests went: llfuse's is for make soak.
lane_first = pytest.mark.parametrize(
    "fast_lane", [pytest.param(True, id="lane"), pytest.param(False, id="llfuse", marks=pytest.mark.soak)]
)


class Workbench:
    """Everything one mount test needs, in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        #: Whether the kernel's requests go through the fast lane.
        self.fast_lane = True
        self.bucket = directory / "bucket"
        self.mountpoint = directory / "mnt"
        self.knobs = directory / "knobs"
        for path in (self.bucket, self.mountpoint, self.knobs):
            path.mkdir()
        self.token = self.bucket / TOKEN_NAME
        self.file = self.mountpoint / "file"

    # ── the volume ───────────────────────────────────────────────────────────────────────────────────

    def create(self, *, size: int = SIZE, block_size: int = BLOCK) -> None:
        """Create the volume."""
        store = self.open_store()
        create_volume(store, "", size=size, block_size=block_size)
        store.close()

    def open_store(self) -> DirectoryStore:
        """Return the volume's store."""
        return DirectoryStore(self.bucket)

    @property
    def ident(self) -> str:
        """The name of the volume's control socket."""
        return socket_name(self.open_store(), "")

    @property
    def socket(self) -> Path:
        """Where the volume's daemon listens."""
        return control_path(self.ident)

    def stored(self, offset: int, length: int, block_size: int = BLOCK) -> bytes:
        """Return what the bucket, not the mount, has of a range."""
        content = bytearray(length)
        for path in self.bucket.iterdir():
            block = parse_block_name(path.name)
            if block is not None:
                start = block * block_size - offset
                body = path.read_bytes()
                low, high = max(start, 0), min(start + len(body), length)
                if low < high:
                    content[low:high] = body[low - start : high - start]
        return bytes(content)

    # ── mounting ─────────────────────────────────────────────────────────────────────────────────────

    def what(self, *, fake: bool = False, foreground: bool = False, **more: Any) -> dict[str, object]:
        """Return the description of a mount for mount_runner; ``fake`` serves a FakeDisk."""
        described: dict[str, object] = {
            "url": f"file://{self.bucket}",
            "mountpoint": str(self.mountpoint),
            "knobs": str(self.knobs),
            "fake": fake,
            **more,
        }
        described["request"] = {"fast_lane": self.fast_lane, **_fields(more.get("request"))}
        if foreground:
            described["request"] = {**_fields(described["request"]), "foreground": True}
        described["volume"] = {"write_delay": NEVER, **_fields(more.get("volume"))}
        return described

    def mounted(self, *, options: Mapping[str, Any] | None = None, **more: Any) -> AbstractContextManager[Mounted]:
        """Mount; ``options`` are the process's, all others as for ``what``."""
        return mounted(self.what(**more), self.directory, **(options or {}))

    def run(self, *, options: Mapping[str, Any] | None = None, **more: Any) -> tuple[int, str]:
        """Run a mount that is expected to fail; return its exit code and what it said."""
        return run_mount(self.what(**more), self.directory, **(options or {}))

    # ── knobs ────────────────────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def turned(self, knob: str) -> Iterator[None]:
        """Turn a knob of FakeDisk or mount_runner on for a while."""
        (self.knobs / knob).touch()
        try:
            yield
        finally:
            self.release(knob)

    def release(self, knob: str) -> None:
        """Turn a knob off."""
        (self.knobs / knob).unlink(missing_ok=True)
        (self.knobs / f"{knob}-reached").unlink(missing_ok=True)

    def wait_reached(self, knob: str) -> None:
        """Wait until somebody has met a knob."""
        wait_until((self.knobs / f"{knob}-reached").exists, f"a call meets {knob}")

    # ── what is left ─────────────────────────────────────────────────────────────────────────────────

    def mounts(self) -> list[str]:
        """Return what is mounted below this directory."""
        return mounts_below(self.directory)

    def tree(self) -> dict[str, bytes]:
        """Return every file of the bucket's directory and its content."""
        return {
            str(path.relative_to(self.bucket)): path.read_bytes() if path.is_file() else b""
            for path in self.bucket.rglob("*")
        }

    def daemon(self, caller: int = 0) -> int:
        """Return the daemon of this mount point, 0 if there is none; ``caller`` is who asked for it and still runs."""
        return daemon_pid(self.mountpoint, caller)

    def close(self, process: subprocess.Popen[str] | None = None) -> None:
        """End everything of this directory in whatever state it is; ``process`` is a mount started by hand."""
        for knob in self.knobs.iterdir():
            knob.unlink(missing_ok=True)
        if process is not None:
            process.kill()
            process.communicate()
        for path in self.mounts():
            unmount(path, lazy=True)
        for pid in runners(self.directory):
            with contextlib.suppress(ProcessLookupError):
                end_process(pid)
        for left in self.socket.parent.glob(f"{self.ident}*.sock"):
            left.unlink(missing_ok=True)

    def wait_for_nothing(self) -> None:
        """Wait until no mount, process, token or socket of this volume is left."""
        wait_until(lambda: not self.mounts(), "the mount is gone")
        wait_until(lambda: not self.daemon(), "the daemon is gone")
        assert not self.token.exists()
        assert not self.socket.exists()


def _fields(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def write_unflushed(file: Path, offset: int, data: bytes) -> None:
    """Write to a mounted file so that neither close(2) nor fsync(2) comes after: through a mapping that outlives them.

    ``offset`` is a multiple of the page size. The mmap module would not do: it keeps a descriptor of its own and
    closes that at the end.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    descriptor = os.open(file, os.O_RDWR)
    try:
        address = libc.mmap(None, len(data), mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, descriptor, offset)
    finally:
        os.close(descriptor)
    assert address != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
    ctypes.memmove(address, data, len(data))
    assert libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(len(data))) == 0
