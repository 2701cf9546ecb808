"""Runs one mount as the command line would, in a process of its own: ``python -m tests.support.mount_runner JSON``.

    url, mountpoint        as on the command line
    store, volume          fields of StoreOptions and VolumeOptions
    request                further fields of MountRequest
    fake                   a directory: serve a FakeDisk that is controlled by it instead of a volume
    fake_size              its size in bytes
    fail                   "silently" or "raise": how the daemon is to fail before it is ready

An error is printed as message and hint, and its exit code is the process's.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from s3backer import daemon
from s3backer.errors import S3backerError
from s3backer.stores.options import StoreOptions
from s3backer.url import VolumeURL
from s3backer.volume import VolumeOptions
from tests.support.fake_disk import FakeDisk


class _FakeVolume:
    """Stands where Volume stands in the daemon."""

    control = Path()
    size = 1 << 20
    fail = ""

    @classmethod
    def open(cls, store: Any, prefix: str, options: VolumeOptions) -> FakeDisk:
        if cls.fail == "silently":
            os._exit(9)
        if cls.fail == "raise":
            raise ValueError("a defect")
        return FakeDisk(cls.control, size=cls.size, read_only=options.read_only)


def main() -> int:
    what = json.loads(sys.argv[1])
    if "fake" in what:
        _FakeVolume.control = Path(what["fake"])
        _FakeVolume.size = what.get("fake_size", _FakeVolume.size)
        _FakeVolume.fail = what.get("fail", "")
        setattr(daemon, "Volume", _FakeVolume)  # noqa: B010 - a stand-in of another type
    request = daemon.MountRequest(
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
