"""``s3backer unmount``: write everything back and end a mount."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from typing import Any

import click

from s3backer.cli.common import Target, options, unsaved_progress
from s3backer.control import call, control_path, result
from s3backer.errors import MountError, S3backerError
from s3backer.mountpoint import FUSE_TYPE, find_mount, resolve_mountpoint, unmount

#: Seconds for a daemon to say which mount it serves.
_SILENCE = 2.0


@click.command("unmount")
@click.argument("where", metavar="MOUNTPOINT|URL")
@options()
def command(where: str, **values: Any) -> None:
    """Write everything back, unmount, and wait until the daemon has ended.

    Names the mount by its mount point or by the volume's URL.
    """
    if "://" in where:
        with Target(where, values) as target:
            ident = target.id
        if call(ident, "info") is None:
            raise MountError(f"{where} is not mounted here", hint="See 'findmnt -t fuse.s3backer'.")
    else:
        path = resolve_mountpoint(where)
        found = _daemon_of(path)
        if found is None:
            _unmount_without_daemon(path)
            return
        ident = found
    _unmount(ident)


def _daemon_of(path: str) -> str | None:
    """Return the id of the volume that a daemon of this user serves on this mount point."""
    for socket in sorted(control_path("").parent.glob("*.sock")):
        try:
            # One that is stopped must not keep the others from being found.
            facts = call(socket.stem, "info", silence=_SILENCE)
        except S3backerError:
            continue
        if facts is not None and facts.get("mountpoint") == path:
            return socket.stem
    return None


def _unmount(ident: str) -> None:
    facts = call(ident, "info") or {}
    pid = facts.get("pid")
    process = None
    if isinstance(pid, int):
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            process = None
    try:
        with unsaved_progress() as report:
            answer = call(ident, "unmount", on_progress=report)
            seconds = None if answer is None else answer.get("settles_in")
            if isinstance(seconds, float) and seconds > 0:
                print(f"waits {seconds:.0f} s for requests that may still arrive", file=sys.stderr)
            left = None if answer is None else answer.get("left_unsaved")
            # It may have ended by now.
            with contextlib.suppress(S3backerError):
                left = (call(ident, "ended", on_progress=report) or {}).get("error") or left
            if process is not None:
                select.select([process], [], [])
            if isinstance(left, dict):
                result(left)
    finally:
        if process is not None:
            os.close(process)


def _unmount_without_daemon(path: str) -> None:
    mount = find_mount(path)
    if mount is None or mount.kind != FUSE_TYPE:
        raise MountError(f"no volume is mounted on {path}", hint="See 'findmnt -t fuse.s3backer'.")
    try:
        unmount(path)
    except OSError as error:
        raise MountError(
            f"{path} cannot be unmounted: {error.strerror}", hint=f"See who uses it: fuser -vm {path}"
        ) from None
    print(f"unmounted {path}; no daemon answered for it")
