"""The fault proxy as a process of its own: it takes no time from whoever is tested or measured behind it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

from tests.support.servers import S3Server

_END_SECONDS = 60


@contextmanager
def proxied(
    server: S3Server,
    *,
    latency: Mapping[str, str] | None = None,
    faults: Mapping[str, float] | None = None,
    stall: float = 30.0,
    seed: int = 1,
) -> Iterator[str]:
    """Run the proxy before a server and return its URL; at the end it prints what it did.

    ``latency``: SECONDS[,SPREAD[,TAIL,TAIL_SECONDS]] by method, in small letters; ``faults``: the share of each kind;
    ``stall``: seconds of a stall.
    """
    command = [sys.executable, "-m", "tools.fault_proxy", "--to", urlsplit(server.endpoint).netloc, "--port", "0"]
    command += ["--seed", str(seed), "--stall", str(stall)]
    for method, seconds in (latency or {}).items():
        command += ["--latency", f"{method}={seconds}"]
    for kind, share in (faults or {}).items():
        command += ["--fault", f"{kind}={share}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().partition(" ")[0]
        assert url.startswith("http://"), f"the fault proxy ended with {process.wait(_END_SECONDS)}"
        yield url
        process.send_signal(signal.SIGINT)
        print(process.communicate(timeout=_END_SECONDS)[0])
    finally:
        process.kill()
        process.communicate()
