"""Runs one mount as the command line would, in a process of its own: ``python -m tests.support.mount_runner JSON``.

    url, mountpoint        as on the command line
    store, volume          fields of StoreOptions and VolumeOptions
    request                further fields of MountRequest
    knobs                  a directory of switches, which are files
    fake                   whether to serve a FakeDisk, controlled by the knobs, instead of a volume
    fake_size              its size in bytes
    fail                   "silently" or "raise": how the daemon is to fail before it is ready
    crash                  whether the filesystem's figures (statfs) make llfuse's loop end with a defect
    stall                  seconds after which closing says that it waits
    expiry, doubt          of a bucket's writes: seconds for which a signature is good, and by which clocks may differ
    synced                 a directory that gets a copy of each of the journal's files whenever one is synced; then none
                           is that nobody asked for

Knobs of a real volume; KNOB-reached tells that it was met:

    hold-open              opening it waits
    hold-verify            the caller's look at the mount waits
    outage                 the store is away
    hold-get, hold-put     its answers do not come
    fail-sync              the journal's files cannot be synced, if it has "synced"

An error is printed as message and hint, and its exit code is the process's.
"""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from s3backer import closing, daemon
from s3backer.errors import S3backerError, StoreUnreachable
from s3backer.mount_request import MountRequest
from s3backer.opening import VolumeOptions
from s3backer.stores import open_store
from s3backer.stores.base import ObjectStore
from s3backer.stores.options import StoreOptions
from s3backer.url import VolumeURL
from tests.support.fake_disk import FakeDisk


class _FakeVolume:
    """Stands where Volume stands in the daemon."""

    control = Path()
    size = 1 << 20
    fail = ""

    @classmethod
    def open(cls, store: Any, prefix: str, options: VolumeOptions, **_: object) -> FakeDisk:
        if cls.fail == "silently":
            os._exit(9)
        if cls.fail == "raise":
            raise ValueError("a defect")
        return FakeDisk(cls.control, size=cls.size, read_only=options.read_only)


class _Knobs:
    """Makes what the daemon calls wait or fail."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def met(self, knob: str) -> bool:
        """Whether the knob is turned on; leaves word that it was met."""
        on = (self._directory / knob).exists()
        if on:
            (self._directory / f"{knob}-reached").touch()
        return on

    def held(self, knob: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, waiting while the knob is turned on."""

        def call(*args: Any, **kwargs: Any) -> Any:
            while self.met(knob):
                time.sleep(0.01)
            return function(*args, **kwargs)

        return call

    def failing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a store's method, failing while there is an outage."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.met("outage"):
                raise StoreUnreachable("the store is away", hint="Wait.")
            return function(*args, **kwargs)

        return call

    def open_store(self, url: VolumeURL, options: StoreOptions) -> ObjectStore:
        """Open the store, whose requests are failing while there is an outage."""
        store = open_store(url, options)
        for name in ("get", "get_unless", "head", "put", "delete", "list"):
            setattr(store, name, self.failing(getattr(store, name)))
        for name in ("get", "head", "put"):
            setattr(store, name, self.held(f"hold-{name}", getattr(store, name)))
        return store


def watch_syncs(copies: Path, knobs: _Knobs) -> None:
    """Let the journals of this process sync their files here: copied, or not at all."""
    # Imported here: most mounts have no journal.
    from s3backer import volume_journal
    from s3backer.journal import keeper, service
    from tests.support.power_loss import Calls

    def sync(fd: int) -> None:
        if knobs.met("fail-sync"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.fdatasync(fd)
        (copies / Path(os.readlink(f"/proc/self/fd/{fd}")).name).write_bytes(os.pread(fd, os.fstat(fd).st_size, 0))

    calls = Calls(lambda fd, data, position: os.pwrite(fd, data, position), sync)

    class Watched(service.WriteJournal):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            calls.interpose(self.core)

    vars(volume_journal)["WriteJournal"] = Watched
    vars(keeper).update(_SYNC=math.inf, _RETRY=0.2)


def main() -> int:
    what = json.loads(sys.argv[1])
    replaced: dict[str, object] = {}
    if "knobs" in what:
        knobs = _Knobs(Path(what["knobs"]))
        replaced["open_store"] = knobs.held("hold-open", knobs.open_store)
        replaced["_verify"] = knobs.held("hold-verify", daemon._verify)
        if "synced" in what:
            watch_syncs(Path(what["synced"]), knobs)
    if what.get("fake"):
        _FakeVolume.control = Path(what["knobs"])
        _FakeVolume.size = what.get("fake_size", _FakeVolume.size)
        _FakeVolume.fail = what.get("fail", "")
        replaced["Volume"] = _FakeVolume
    if "expiry" in what:
        # Imported here: no other mount needs what takes most of the start-up.
        from s3backer.s3 import engine
        from s3backer.stores.s3 import S3Store

        vars(engine)["DOUBT"] = what["doubt"]
        replaced["open_store"] = lambda url, options: S3Store(url.bucket, options, expiry=what["expiry"])
    if what.get("crash"):
        # Imported here, as by the daemon.
        from s3backer.frontends import fuse

        class Crashing(fuse.DiskOperations):
            def statfs(self, ctx: object = None) -> Any:
                raise ValueError("a defect")

        vars(fuse)["DiskOperations"] = Crashing
    if "stall" in what:
        closing._STALL_SECONDS = what["stall"]
    for name, value in replaced.items():
        setattr(daemon, name, value)
    request = MountRequest(
        url=VolumeURL.parse(what["url"]),
        mountpoint=what["mountpoint"],
        store_options=StoreOptions(**what.get("store", {})),
        volume_options=VolumeOptions(**what.get("volume", {})),
        **what.get("request", {}),
    )
    try:
        return daemon.run_mount(request)
    except S3backerError as error:
        print(error.message, file=sys.stderr)
        print(error.hint, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
