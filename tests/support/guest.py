"""A virtual machine that sleeps, or is paused, as no process can: QEMU's, with Debian's kernel and a writer in it.

    with Guest(directory) as guest:
        guest.writer                who tells its writer (tests/support/writer.py) what to do
        guest.pause(), guest.go_on()
        guest.asleep(), guest.wake()

Its root is an archive in memory: this Python, the packages and the kernel's module that it needs, and s3backer. It is
emulated, so that it runs anywhere, and takes some seconds to start. The host's 127.0.0.1 is its 10.0.2.2.

    python -m tests.support.guest       fetches the kernel unless it is there; prints where it is, or why not
"""

from __future__ import annotations

import json
import lzma
import re
import shutil
import socket
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support import writer
from tests.support.guest_init import HOST
from tests.support.provided import CannotProvide, kept_path, run_alone

ROOT = Path(__file__).resolve().parent.parent.parent
#: Why a test is skipped that needs it; in CI too it may be (tools/run_tests.py).
NOT_HERE = "without QEMU and Debian's kernel nothing can be put to sleep: run 'tools/bootstrap test'"
#: Seconds that starting, sleeping and waking may take.
PATIENCE = 120.0
_PROGRAM = "qemu-system-x86_64"
_MODULE = "e1000.ko"
#: What s3backer needs of the packages that are installed, and not of the standard library.
_NEEDED = re.compile(r"(botocore/(?!data/)|botocore/data/(s3/|[^/]*$)|dateutil/|jmespath/|llfuse|six|urllib3/)")
_NOT_NEEDED = re.compile(r"(config-|ensurepip|idlelib|lib2to3|site-packages|test|tkinter|turtledemo|unittest)")


# ── the kernel ───────────────────────────────────────────────────────────────────────────────────────────────────


def kernel_path() -> Path:
    """Return the directory where the kernel and its module are, or would be."""
    return kept_path("kernel")


def can_run() -> bool:
    """Whether there is all that a guest needs."""
    return shutil.which(_PROGRAM) is not None and (kernel_path() / "vmlinuz").exists()


def _said(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotProvide(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def fetch() -> Path:
    """Take the kernel out of its Debian package, without installing it; return where it is. Raises CannotProvide."""
    path = kernel_path()
    if (path / "vmlinuz").exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        directory = Path(name)
        found = re.search(
            r"Depends: (linux-image-\S+)", _said("apt-cache", "depends", "linux-image-amd64", cwd=directory)
        )
        if found is None:
            raise CannotProvide("no package is called linux-image-amd64")
        _said("apt-get", "-q", "download", found[1], cwd=directory)
        _said("dpkg-deb", "-x", *(file.name for file in directory.glob("*.deb")), "all", cwd=directory)
        ready = directory / "ready"
        ready.mkdir()
        for file in directory.glob("all/boot/vmlinuz-*"):
            file.rename(ready / "vmlinuz")
        for file in directory.rglob(f"{_MODULE}*"):
            data = file.read_bytes()
            (ready / _MODULE).write_bytes(lzma.decompress(data) if file.suffix == ".xz" else data)
        ready.rename(path)
    return path


# ── what is in the machine ───────────────────────────────────────────────────────────────────────────────────────


def _libraries(files: list[Path]) -> Iterator[Path]:
    """Name the shared libraries that programs and modules are linked to."""
    said = subprocess.run(["ldd", *map(str, files)], capture_output=True, text=True, check=False).stdout
    for word in said.split():
        if word.startswith("/") and not word.endswith(":"):
            yield Path(word)


def _below(directory: Path, wanted: Callable[[str], object]) -> Iterator[Path]:
    return (file for file in directory.rglob("*") if file.is_file() and wanted(file.relative_to(directory).as_posix()))


def _contents() -> dict[str, bytes | Path]:
    """Return what is in the archive, by its path there."""
    python = Path(sys.executable).resolve()
    standard, packages = Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))
    files = [python, *_below(standard, lambda name: not _NOT_NEEDED.match(name)), *_below(packages, _NEEDED.match)]
    files += [*_below(ROOT / "s3backer", re.compile(r".*\.(py|so)$").match), Path(writer.__file__)]
    files += _libraries([file for file in files if file == python or ".so" in file.suffixes])
    found: dict[str, bytes | Path] = {str(file): file for file in files}
    init = Path(__file__).with_name("guest_init.py").read_text()
    found["/init"] = f"#!{python} -I\n{init}".encode()
    found["/paths"] = f"{ROOT}\n{packages}\n".encode()
    found[f"/modules/{_MODULE}"] = kernel_path() / _MODULE
    return found


def _member(number: int, name: str, mode: int, data: bytes) -> bytes:
    """Return one member of an archive in cpio's format "newc"."""
    encoded = name.encode() + b"\0"
    numbers = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % value for value in numbers) + encoded
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def _write_archive(path: Path) -> None:
    """Write the archive that the machine has for its root."""
    contents = _contents()
    directories = sorted({str(parent) for name in contents for parent in Path(name).parents} - {"/"})
    with path.open("wb") as file:
        for number, name in enumerate(directories, 1):
            file.write(_member(number, name[1:], stat.S_IFDIR | 0o755, b""))
        for number, (name, data) in enumerate(contents.items(), len(directories) + 1):
            data = data.read_bytes() if isinstance(data, Path) else data
            file.write(_member(number, name[1:], stat.S_IFREG | 0o755, data))
        file.write(_member(0, "TRAILER!!!", 0, b""))


# ── the machine ──────────────────────────────────────────────────────────────────────────────────────────────────


class Guest:
    """A machine with a writer, from the beginning of its ``with`` block to the end; ``directory`` is its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE)
        self._process: subprocess.Popen[bytes] | None = None
        self._open: list[Any] = [self._listener]
        self._events: list[str] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _start(self) -> None:
        control, archive = self._directory / "qmp", self._directory / "root"
        _write_archive(archive)
        listener = socket.socket(socket.AF_UNIX)
        self._open.append(listener)
        listener.settimeout(PATIENCE)
        listener.bind(str(control))
        listener.listen()
        port = self._listener.getsockname()[1]
        command = [
            _PROGRAM,
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-m",
            "1024",
            "-machine",
            "pc",
            "-nodefaults",
            "-no-reboot",
        ]
        command += ["-display", "none", "-serial", f"file:{self._directory / 'console'}", "-qmp", f"unix:{control}"]
        command += ["-nic", "user,model=e1000", "-kernel", str(kernel_path() / "vmlinuz"), "-initrd", str(archive)]
        command += ["-append", f"console=ttyS0 quiet panic=-1 peer={port}"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self._qmp, _ = listener.accept()
        self._open.append(self._qmp)
        self._said = self._qmp.makefile("r")
        self._open.append(self._said)
        self._qmp.settimeout(PATIENCE)
        self._said.readline()
        self._ask("qmp_capabilities")
        try:
            peer, _ = self._listener.accept()
        except TimeoutError:
            raise AssertionError(f"the guest has not started:\n{self.console()[-3000:]}") from None
        self._open.append(peer)
        peer.settimeout(PATIENCE)
        lines, answers = peer.makefile("w"), peer.makefile("r")
        self._open += [lines, answers]
        self.writer = writer.Told(lines, answers)

    def console(self) -> str:
        """Return what its kernel and its program have said."""
        return (self._directory / "console").read_text(errors="replace")

    def reach(self, url: str) -> str:
        """Return the URL by which the machine reaches a server of this one."""
        return url.replace("127.0.0.1", HOST)

    def pause(self) -> None:
        """Have it stand still, its clocks too, without its being told."""
        self._ask("stop")

    def go_on(self) -> None:
        """End a pause."""
        self._ask("cont")

    def asleep(self) -> None:
        """Return when it sleeps, as its program has asked for."""
        while "SUSPEND" not in self._events:
            self._events.append(self._message().get("event", ""))

    def wake(self) -> None:
        """Have it wake up."""
        self._events.clear()
        self._ask("system_wakeup")

    def end(self) -> None:
        """End it. May be called twice."""
        for opened in reversed(self._open):
            opened.close()
        self._open.clear()
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE)

    def _message(self) -> dict[str, Any]:
        line = self._said.readline()
        assert line, f"the guest has ended:\n{self.console()[-3000:]}"
        message: dict[str, Any] = json.loads(line)
        return message

    def _ask(self, command: str) -> None:
        self._qmp.sendall(json.dumps({"execute": command}).encode())
        while "return" not in (message := self._message()):
            assert "error" not in message, message
            self._events.append(message.get("event", ""))


if __name__ == "__main__":
    sys.exit(run_alone(fetch))
