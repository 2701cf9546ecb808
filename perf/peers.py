"""Filesystems over a bucket, mounted beside the block devices where a comparison makes sense.

    s3fs        Debian's s3fs: a file is an object
    rclone      ``rclone mount`` with its cache of files being written: a file is an object
    juicefs     JuiceFS with SQLite for its metadata: a file is cut into objects of 4 MiB

Their memory is not bounded by what ours gets. None of them is a disk: no filesystem or virtual machine goes on top.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from perf.rivals import Place, Rival, mounted_by
from tests.support.mounts import PATIENCE, environment, wait_until
from tests.support.servers import find_program

S3FS, RCLONE, JUICEFS = "s3fs", "rclone", "juicefs"


PEERS = tuple(name for name in (S3FS, RCLONE, JUICEFS) if find_program(name))


def _command(peer: str, place: Place, directory: Path, mountpoint: Path, surroundings: dict[str, str]) -> list[str]:
    """Return what mounts in the foreground, after doing what comes before."""
    server = place.server
    program = find_program(peer)
    assert server is not None and program is not None
    if peer == S3FS:
        passwords = directory / "keys"
        passwords.write_text(f"{server.access_key}:{server.secret_key}\n")
        passwords.chmod(0o600)
        options = f"url={server.endpoint},use_path_request_style,passwd_file={passwords}"
        return [program, place.bucket, str(mountpoint), "-f", "-o", options]
    if peer == RCLONE:
        surroundings |= {
            "RCLONE_CONFIG_S_TYPE": "s3",
            "RCLONE_CONFIG_S_PROVIDER": "Minio",
            "RCLONE_CONFIG_S_ENV_AUTH": "true",
            "RCLONE_CONFIG_S_ENDPOINT": server.endpoint,
        }
        # It looks for the fusermount of fuse3, which cannot be installed beside ours and takes the same words.
        fusermount = shutil.which("fusermount")
        assert fusermount is not None
        helpers = directory / "bin"
        helpers.mkdir(exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (helpers / "fusermount3").symlink_to(fusermount)
        surroundings["PATH"] = f"{helpers}:{surroundings['PATH']}"
        cache = ["--vfs-cache-mode", "writes", "--vfs-write-back", "0s", "--cache-dir", str(directory / "cache")]
        return [program, "mount", f"s:{place.bucket}", str(mountpoint), "--config", "/dev/null", *cache]
    metadata = f"sqlite3://{directory / 'metadata.db'}"
    if not (directory / "metadata.db").exists():
        bucket = f"{server.endpoint}/{place.bucket}"
        keys = ["--access-key", server.access_key, "--secret-key", server.secret_key]
        form = [program, "format", "--storage", "minio", "--bucket", bucket, *keys, metadata, "disk"]
        subprocess.run(form, env=surroundings, check=True, capture_output=True, timeout=PATIENCE)
    cache = ["--cache-dir", str(directory / "cache"), "--no-usage-report", "--log", str(directory / "log")]
    return [program, "mount", *cache, metadata, str(mountpoint)]


@contextlib.contextmanager
def peer_running(peer: str, place: Place, directory: Path) -> Iterator[Rival]:
    """Mount a peer; unmount it on leaving and wait until its process has ended. ``disk``: where its file is to be."""
    mountpoint = directory / "mnt"
    mountpoint.mkdir(parents=True, exist_ok=True)
    surroundings = {**environment(directory), **(place.server.environment() if place.server else {})}
    command = _command(peer, place, directory, mountpoint, surroundings)
    with mounted_by(peer, command, directory, surroundings) as process:
        yield Rival(peer, mountpoint / "file", _server_of(process.pid))


def _server_of(pid: int) -> int:
    """Return the process that serves: JuiceFS watches over one that does."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else pid


def drop_cache(directory: Path) -> None:
    """Forget what a peer keeps on the disk of what it read or wrote."""
    shutil.rmtree(directory / "cache", ignore_errors=True)


def wait_for_bytes(place: Place, amount: int) -> None:
    """Return when the bucket holds so many bytes."""
    from s3backer.stores.s3 import S3Store

    assert place.server is not None
    store = S3Store(place.bucket, place.server.options())

    def total() -> int:
        found, after = 0, ""
        while True:
            page = store.list("", start_after=after)
            found += sum(entry.size for entry in page.entries)
            if not page.truncated:
                return found
            after = page.entries[-1].key

    try:
        wait_until(lambda: total() >= amount, f"{amount} bytes are in the bucket")
    finally:
        store.close()
