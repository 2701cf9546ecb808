"""``s3backer unmount``: write everything back and end a mount."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Mapping
from typing import Any

import click

from s3backer.cli.common import Target, options, unsaved_progress
from s3backer.control.asking import Found, call, find_daemons, has_died, listens, stopped
from s3backer.control.messages import processes, result
from s3backer.control.sockets import all_socket_names
from s3backer.errors import DaemonSilent, MountError, S3backerError
from s3backer.hints import fusermount_command, unmount_command
from s3backer.mountpoint import FUSE_TYPE, Mount, find_mount, in_the_way, is_dead, resolve_mountpoint, unmount

#: Seconds for a daemon to say which mount it serves, while others may be the one that is looked for.
_SILENCE = 2.0
#: Seconds between two looks whether a daemon that ends goes on.
_LOOK = 1.0


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
        daemons = find_daemons(ident)
        if not daemons:
            raise MountError(f"{where} is not mounted here", hint="See 'findmnt -t fuse.s3backer'.")
        try:
            _unmount(daemons[0])
        finally:
            for other in daemons[1:]:
                way = unmount_command(str(other.facts.get("mountpoint")))
                print(f"it is also mounted {other.describe()}; to end that mount: {way}", file=sys.stderr)
        return
    path = resolve_mountpoint(where)
    found = _daemon_of(path)
    if found is None:
        _unmount_without_daemon(path)
    else:
        _unmount(found)


def _daemon_of(path: str) -> Found | None:
    """Return this user's daemon that serves this mount point, None if there is none.

    One that is about to end has it no longer, if another has, and neither has one whose mount is not the one that is
    there: it may have been unmounted lazily, or be in another namespace of mounts. Raises MountError if that cannot be
    told, because one of them does not answer.
    """
    silent: list[str] = []
    ending, mount = None, find_mount(path)
    for ident in all_socket_names():
        try:
            # One that is stopped must not keep the others from being found.
            facts = call(ident, "info", silence=_SILENCE)
        except DaemonSilent:
            silent.append(ident)
        except S3backerError:
            continue
        else:
            if facts is not None and facts.get("mountpoint") == path and _is_of(facts, mount):
                found = Found(ident, facts)
                if not facts.get("ending"):
                    return found
                ending = found
    if ending is not None or find_mount(path) is None:
        return ending
    for ident in silent:
        try:
            facts = call(ident, "info")
            if facts is not None and facts.get("mountpoint") == path and _is_of(facts, mount):
                return Found(ident, facts)
        except DaemonSilent as error:
            raise MountError(
                f"{path} is left as it is: {error.who}, which may serve it, {error.what}",
                hint=f"{error.hint.rstrip('.')}; if it serves another volume: {fusermount_command(path)}",
            ) from None
    return None


def _is_of(facts: Mapping[str, object], mount: Mount | None) -> bool:
    """Whether a daemon serves this mount, which it says is on that path, as far as it says it."""
    return mount is None or facts.get("device") in (None, "", mount.device)


def _unmount(daemon: Found) -> None:
    # The next mount of the volume may have its socket by the time that it is asked, and is not meant.
    ident, meant = daemon.name, daemon.process
    pid = meant["pid"]
    process, stores, heard = None, False, False

    def hear(facts: dict[str, object]) -> None:
        nonlocal stores
        stores = True
        # What cannot be shown says nothing of the daemon.
        with contextlib.suppress(OSError):
            report(facts)

    # Elsewhere its number is another process's, if anybody's.
    if isinstance(pid, int) and meant["processes"] in (None, processes()):
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            process = None
    try:
        with unsaved_progress() as report:
            answer = call(ident, "unmount", meant, on_progress=report, keep=True)
            seconds = None if answer is None else answer.get("settles_in")
            if isinstance(seconds, float) and seconds > 0:
                print(f"waits {seconds:.0f} s for requests that may still arrive", file=sys.stderr)
            left = None if answer is None else answer.get("left_unsaved")
            journal_left = None if answer is None else answer.get("journal_left")
            while True:
                try:
                    end = call(ident, "ended", meant, on_progress=hear, keep=True)
                except DaemonSilent:
                    raise
                except S3backerError:
                    # It may have ended by now. But one that stores answers before it does.
                    if stores and (process is None or select.select([process], [], [], _SILENCE)[0]):
                        raise _unheard(pid) from None
                    if process is None and _lives(ident, meant):
                        # It has no room for who asks now, and nothing else tells when it has ended.
                        time.sleep(_LOOK)
                        continue
                else:
                    if end is not None:
                        heard = True
                        left = end.get("error") or left
                        journal_left = end.get("journal_left") or journal_left
                break
            if process is not None and isinstance(pid, int):
                _wait_for_end(process, pid)
            if isinstance(journal_left, str):
                print(f"s3backer: {journal_left}", file=sys.stderr)
            if isinstance(left, dict):
                result(left)
            # By now another daemon may have its socket: how it ended is not known then.
            if not heard and (has_died(ident, ended=process is not None) or listens(ident)):
                raise _unheard(pid)
    finally:
        if process is not None:
            os.close(process)


def _lives(ident: str, meant: Mapping[str, object]) -> bool:
    """Whether the daemon that is meant is there still, as far as that can be told."""
    try:
        facts = call(ident, "info", keep=True)
    except DaemonSilent:
        raise
    except S3backerError:
        return listens(ident)
    # In a container that was started anew its process has the same number.
    return facts is not None and Found(ident, facts).process == meant


def _unheard(pid: object) -> MountError:
    return MountError(
        f"{'its daemon' if pid is None else f'process {pid}'} ended before it had said that everything is stored",
        hint="See its log, and mount the volume again on this host.",
    )


def _wait_for_end(process: int, pid: int) -> None:
    """Wait until a process, of which ``process`` is a descriptor, has ended. Raises DaemonSilent if it is stopped."""
    while not select.select([process], [], [], _LOOK)[0]:
        if (error := stopped(pid)) is not None:
            raise error


def _unmount_without_daemon(path: str) -> None:
    mount = find_mount(path)
    if mount is None or mount.kind != FUSE_TYPE:
        raise MountError(f"no volume is mounted on {path}", hint="See 'findmnt -t fuse.s3backer'.")
    if not is_dead(path):
        # Who is told that it is unmounted takes that for stored.
        raise MountError(
            f"{path} is left as it is: its daemon may live, and cannot be asked to store everything",
            hint="Run it as the user who mounted it, with the same XDG_RUNTIME_DIR. Or end it without waiting: "
            f"{fusermount_command(path)}; its log says when everything is stored.",
        )
    try:
        unmount(path)
    except OSError as error:
        raise in_the_way(path, error.strerror, dead=True) from None
    print(f"unmounted {path}; no daemon answered for it")
