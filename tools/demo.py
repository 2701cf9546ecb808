"""The demonstration: a bucket on a real S3 server becomes a disk with ext4, and comes back from the bucket alone.

Needs root, /dev/fuse, loop devices and mkfs.ext4; ``make demo`` prepares the rest. Interrupted at any point it undoes
everything it did: filesystems, loop devices, mounts, the daemon, the server, its files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.servers import SeaweedServer

CHUNK = 1 << 20
VOLUME_SIZE = "1GiB"
BLOCK_SIZE = "128KiB"
#: How long one command of the clean-up may take in seconds before it is done the hard way.
PATIENCE = 60

console = Console()


class Stopped(BaseException):
    """A signal asked the demonstration to end."""


def stop_on_signals() -> None:
    """Turn the signals that end a program into an exception, so that everything is undone."""

    def stop(number: int, _: FrameType | None) -> None:
        # From here on nothing may interrupt the clean-up.
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, signal.SIG_IGN)
        raise Stopped(signal.Signals(number).name)

    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, stop)


class Demo:
    """One run. Everything it sets up is pushed to ``undo`` before it can take effect."""

    def __init__(self, work: Path, undo: contextlib.ExitStack) -> None:
        self.work = work
        self.undo = undo
        self.environment = dict(os.environ)
        self.url = ""
        self.mount_point = work / "volume"
        self.filesystem = work / "filesystem"
        self.requests: dict[str, int] = {}
        self.cost = 0.0

    # ── commands ─────────────────────────────────────────────────────────────────────────────────────

    def run(self, *command: str, check: bool = True, timeout: float | None = None) -> str:
        """Run a command in a session of its own, so that Ctrl-C reaches only this program.

        When this program is stopped meanwhile, the command is let finish: half a mount could not be undone.
        """
        process = subprocess.Popen(
            command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
            process.kill()
            process.wait()
            raise
        if check and process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{errors or output}")
        return output

    def s3backer(self, *arguments: str, check: bool = True, timeout: float | None = None) -> str:
        """Run the command line of this environment."""
        return self.run(sys.executable, "-m", "s3backer", *arguments, check=check, timeout=timeout)

    # ── steps ────────────────────────────────────────────────────────────────────────────────────────

    def start_server(self) -> None:
        """Start the S3 server and point the AWS environment at it."""
        server = self.undo.enter_context(SeaweedServer(self.work / "server"))
        self.url = f"s3://{server.make_bucket()}"
        state = self.work / "state"
        self.environment.update(
            AWS_ACCESS_KEY_ID=server.access_key,
            AWS_SECRET_ACCESS_KEY=server.secret_key,
            AWS_ENDPOINT_URL_S3=server.endpoint,
            AWS_REGION="us-east-1",
            AWS_CONFIG_FILE=os.devnull,
            AWS_SHARED_CREDENTIALS_FILE=os.devnull,
            XDG_STATE_HOME=str(state),
            XDG_RUNTIME_DIR=str(state),
            PYTHONPATH=str(Path(__file__).resolve().parent.parent),
        )

    @contextlib.contextmanager
    def mounted_volume(self) -> Iterator[Path]:
        """Mount the bucket; on leaving, write everything back and unmount."""
        self.mount_point.mkdir(exist_ok=True)
        with contextlib.ExitStack() as undo:
            undo.callback(self.unmount_volume)
            self.s3backer("mount", self.url, str(self.mount_point))
            yield self.mount_point / "file"
            self.count_requests()

    def unmount_volume(self) -> None:
        """Unmount the volume and wait for its daemon; by force if it does not answer."""
        pid = self.daemon_pid()
        if pid is None and not self.mount_point.is_mount():
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.s3backer("unmount", str(self.mount_point), check=False, timeout=PATIENCE)
        if pid is not None and Path(f"/proc/{pid}").exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.mount_point.is_mount():
            self.run("umount", "-l", str(self.mount_point), check=False)

    def daemon_info(self) -> dict[str, Any]:
        """Return what the daemon says about itself, nothing if there is none."""
        text = self.s3backer("info", "--json", self.url, check=False, timeout=PATIENCE)
        try:
            answer: dict[str, Any] = json.loads(text)
        except ValueError:
            return {}
        return answer

    def daemon_pid(self) -> int | None:
        """Return the process id of the daemon."""
        pid = self.daemon_info().get("pid")
        return pid if isinstance(pid, int) else None

    def count_requests(self) -> None:
        """Wait until everything is in the bucket, and add the daemon's requests and their price to the totals."""
        deadline = time.monotonic() + PATIENCE
        while (info := self.daemon_info())["unsaved_blocks"] and time.monotonic() < deadline:
            time.sleep(0.1)
        for kind, count in info["requests"].items():
            self.requests[kind] = self.requests.get(kind, 0) + count["requests"]
        self.cost += info["cost"]

    @contextlib.contextmanager
    def loop_device(self, file: Path) -> Iterator[str]:
        """Attach the file to a loop device with direct I/O."""
        with contextlib.ExitStack() as undo:
            undo.callback(self.detach, file)
            yield self.run("losetup", "--find", "--show", "--direct-io=on", str(file)).strip()

    def detach(self, file: Path) -> None:
        """Detach every loop device of the file: after an interruption its name may not be known."""
        for line in self.run("losetup", "--noheadings", "--output", "NAME", "--associated", str(file)).split():
            self.run("losetup", "--detach", line, check=False)

    @contextlib.contextmanager
    def mounted_filesystem(self, device: str, *options: str) -> Iterator[Path]:
        """Mount the filesystem on the device."""
        self.filesystem.mkdir(exist_ok=True)
        with contextlib.ExitStack() as undo:
            undo.callback(self.unmount_filesystem)
            self.run("mount", *options, device, str(self.filesystem))
            yield self.filesystem

    def unmount_filesystem(self) -> None:
        """Unmount the filesystem if it is mounted; in use or not, so that nothing stays behind."""
        if self.filesystem.is_mount():
            self.run("umount", str(self.filesystem), check=False)
        if self.filesystem.is_mount():
            self.run("umount", "--lazy", str(self.filesystem), check=False)

    def forget(self) -> None:
        """Remove every local state: the daemon's files and the kernel's cached pages."""
        shutil.rmtree(self.work / "state", ignore_errors=True)
        with contextlib.suppress(OSError):
            Path("/proc/sys/vm/drop_caches").write_text("3\n", encoding="ascii")


def tree() -> list[Path]:
    """Return the files of the Python standard library, without what was installed or compiled besides."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "__pycache__"}
    return sorted(
        path
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink() and not skipped.intersection(path.relative_to(root).parts)
    )


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def demonstrate(demo: Demo, progress: Progress) -> Table:
    """Run the whole demonstration and return its table."""

    def step(text: str, action: Callable[[], Any], total: int | None = None) -> Any:
        task = progress.add_task(text, total=total or 1)
        result = action()
        progress.update(task, completed=total or 1)
        return result

    root = Path(sysconfig.get_path("stdlib"))
    files = step("Reading the Python standard library", lambda: [(p, digest(p), p.stat().st_size) for p in tree()])
    total = sum(size for _, _, size in files)
    step("Starting the S3 server", demo.start_server)
    step(
        f"Creating the volume {demo.url} ({VOLUME_SIZE}, blocks of {BLOCK_SIZE})",
        lambda: demo.s3backer("create", demo.url, "--size", VOLUME_SIZE, "--block-size", BLOCK_SIZE),
    )

    started = time.monotonic()
    with demo.mounted_volume() as file, demo.loop_device(file) as device:
        step("Making ext4 on it", lambda: demo.run("mkfs.ext4", "-q", device))
        with demo.mounted_filesystem(device) as target:
            task = progress.add_task("Copying the tree", total=len(files))
            for path, _, _ in files:
                copy = target / path.relative_to(root)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
                progress.advance(task)
            task = progress.add_task("Unmounting: everything goes to the bucket", total=1)
    progress.update(task, completed=1)
    write_seconds = time.monotonic() - started

    step("Forgetting every local state", demo.forget)

    started = time.monotonic()
    wrong = []
    with (
        demo.mounted_volume() as file,
        demo.loop_device(file) as device,
        demo.mounted_filesystem(device, "-o", "ro") as target,
    ):
        task = progress.add_task("Comparing every file's SHA-256", total=len(files))
        for path, expected, _ in files:
            copy = target / path.relative_to(root)
            if not copy.is_file() or digest(copy) != expected:
                wrong.append(path)
            progress.advance(task)
    read_seconds = time.monotonic() - started
    if wrong:
        raise SystemExit(f"{len(wrong)} files differ, the first is {wrong[0]}")

    info = json.loads(demo.s3backer("info", "--json", "--count", demo.url))
    table = Table(title="A bucket became a disk, and came back from the bucket alone", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    mib = 1 << 20
    table.add_row("files verified", f"{len(files):,}")
    table.add_row("bytes verified", f"{total:,}")
    table.add_row("objects in the bucket", f"{info['objects']:,}")
    table.add_row("bytes in the bucket", f"{info['stored_bytes']:,}")
    for kind, count in demo.requests.items():
        table.add_row(f"{kind.upper()} requests", f"{count:,}")
    table.add_row("what the requests would have cost", f"${demo.cost:.4f}")
    table.add_row("written to the bucket (mount to unmounted)", f"{total / mib / write_seconds:.1f} MiB/s")
    table.add_row("read back and compared (mount to unmounted)", f"{total / mib / read_seconds:.1f} MiB/s")
    return table


def main() -> int:
    """Run the demonstration; return the exit code."""
    if os.geteuid() != 0:
        console.print("The demonstration mounts filesystems: run it as root or with sudo.")
        return 1
    stop_on_signals()
    table = None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with contextlib.ExitStack() as undo:
            work = Path(tempfile.mkdtemp(prefix="s3backer-demo-"))
            undo.callback(shutil.rmtree, work, ignore_errors=True)
            with Progress(*columns, console=console) as progress:
                table = demonstrate(Demo(work, undo), progress)
    except Stopped as stopped:
        console.print(f"Stopped by {stopped}; everything is undone.")
        return 130
    except RuntimeError as error:
        console.print(f"The S3 server did not start: {error}")
        return 1
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
