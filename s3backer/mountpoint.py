"""Mount points: what may become one, what is mounted on it, and taking it down again.

The checks change nothing, so a refused mount leaves no trace. Nothing here asks the mounted filesystem
itself (except ``check_mountpoint``, before there is one): the table of mounts is read from the kernel, so that
the process that serves a mount can use it without waiting for itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from s3backer.errors import MountError, UsageError
from s3backer.hints import command_line, detach_command, fusermount_command, unmount_command

FUSE_TYPE = "fuse.s3backer"
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
#: What a file operation reports where the daemon of a FUSE mount is gone (or was cut off).
_DEAD = (errno.ENOTCONN, errno.ECONNABORTED)
#: Seconds for the process of a mount to answer.
_PATIENCE = 2.0
_FUSERMOUNT_SECONDS = 60
#: Symbolic links that are followed, as the kernel does it.
_MOST_LINKS = 40
#: Longest wait in seconds for the kernel to take note of a new size.
_KERNEL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of the kernel's table. ``device`` is MAJOR:MINOR, by which /sys/class/bdi names it too.

    ``root``: what of the filesystem is shown there.
    """

    mount_id: int
    device: str
    path: str
    kind: str
    source: str
    root: str = "/"


def read_mounts(table: str = "/proc/self/mountinfo") -> list[Mount]:
    """Return all mounts that this process sees, later ones on top of earlier ones."""
    mounts = []
    # By bytes: names may have what is white space, or ends a line, for text only; the kernel escapes but four.
    with open(table, "rb") as lines:
        for line in lines:
            fields = os.fsdecode(line.removesuffix(b"\n")).split(" ")
            rest = fields[fields.index("-", 6) + 1 :]
            root, path, source = map(_unescape, (fields[3], fields[4], rest[1]))
            mounts.append(Mount(int(fields[0]), fields[2], path, rest[0], source, root))
    return mounts


def find_mount(path: str, *, device: str = "") -> Mount | None:
    """Return the topmost mount on this (absolute, resolved) path, or None; with ``device`` only if it is that one."""
    found = None
    for mount in read_mounts():
        if mount.path == path:
            found = mount
    return found if found is None or not device or found.device == device else None


def find_again(mount: Mount) -> Mount | None:
    """Return a mount as it is now, wherever that is; None if it is no more."""
    # Both numbers may be another's by now: the kernel gives them to the next mount.
    return next((found for found in read_mounts() if replace(found, path=mount.path) == mount), None)


def is_covered(path: str, device: str) -> bool:
    """Whether a mount is on this path, but below another one."""
    on_path = [mount.device for mount in read_mounts() if mount.path == path]
    return device in on_path[:-1] and on_path[-1] != device


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _find_volume(path: str) -> Mount | None:
    """Return the mount on top of ``path``, None if that is no volume."""
    mounted = find_mount(path)
    return mounted if mounted is not None and mounted.kind == FUSE_TYPE else None


def resolve_mountpoint(path: str) -> str:
    """Return the absolute path without symbolic links, under which the kernel will list the mount.

    What is mounted there is not asked: its process may be stopped. Raises UsageError for an empty name, which would
    mean the working directory.
    """
    if not path:
        raise UsageError("an empty name is no mount point", hint="Name a directory.")
    current = path
    for _ in range(_MOST_LINKS):
        parent, name = os.path.split(current.rstrip("/"))
        if name in ("", ".", ".."):
            break
        direct = os.path.join(os.path.realpath(parent), name)
        if _find_volume(direct) is not None:
            return direct
        try:
            current = os.path.join(os.path.dirname(direct), os.readlink(direct))
        except OSError:
            break
    return os.path.realpath(path)


def check_mountpoint(path: str, *, allow_nonempty: bool = False, volume_directory: str | None = None) -> None:
    """Raise MountError unless something can be mounted on this resolved path.

    ``volume_directory`` is where a ``file:`` volume keeps its blocks: neither may lie in the other.
    """
    mounted = _find_volume(path)
    if mounted is not None:
        # Before anything else is asked of it: where its process is stopped that would wait.
        if is_dead(path):
            raise _unusable(path, OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN)))
        raise MountError(
            f"{mounted.source} is already mounted on {path}",
            hint=f"Use another directory, or unmount it first: {unmount_command(path)}",
        )
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise MountError(
            f"mount point {path} does not exist", hint=f"Create it: {command_line('mkdir', '-p', path)}"
        ) from None
    except OSError as error:
        raise _unusable(path, error) from None
    if not stat.S_ISDIR(status.st_mode):
        raise MountError(f"mount point {path} is not a directory", hint="Name an empty directory.")
    try:
        with os.scandir(path) as entries:
            occupied = not allow_nonempty and any(entries)
    except OSError as error:
        raise _unusable(path, error) from None
    if occupied:
        raise MountError(
            f"mount point {path} is not empty",
            hint="Name an empty directory, or mount over it with '-o nonempty'.",
        )
    if volume_directory is not None:
        _check_apart(path, os.path.realpath(volume_directory))


def is_dead(path: str) -> bool:
    """Whether the process that served the mount on ``path`` is gone; one that does not answer in a moment is there."""
    gone = threading.Event()

    def look() -> None:
        try:
            # Unlike what stat says, this is not remembered by the kernel for some time after a daemon's death.
            os.statvfs(path)
        except OSError as error:
            if error.errno in _DEAD:
                gone.set()

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(_PATIENCE)
    return gone.is_set()


def _unusable(path: str, error: OSError) -> MountError:
    if error.errno in _DEAD:
        return MountError(
            f"mount point {path} is a dead mount: the process that served it is gone",
            hint=_way_to_free(path, dead=True) or f"Remove it first: {fusermount_command(path)}",
        )
    return MountError(
        f"mount point {path} cannot be used: {error.strerror}", hint="Check the path and its permissions."
    )


def in_the_way(path: str, reason: str | None, *, dead: bool, covered: bool = False) -> MountError:
    """Return the error for a mount that cannot be removed, with who uses it.

    ``dead``: no daemon serves it; ``covered``: something else is mounted over it.
    """
    if covered:
        return MountError(
            f"{path} cannot be unmounted: {reason}", hint=f"Unmount that first: {command_line('umount', path)}"
        )
    return MountError(
        f"{path} cannot be unmounted: {reason}",
        hint=_way_to_free(path, dead=dead) or f"See who uses it, and close that: {command_line('fuser', '-vm', path)}",
    )


def _way_to_free(path: str, *, dead: bool) -> str:
    """Return how to free a mount from the loop devices that are on its files; empty if there are none."""
    devices = loop_devices(path)
    if not devices:
        return ""
    then = f" && {fusermount_command(path)}" if dead else ""
    return f"Unmount what is on it, then: {detach_command(devices)}{then}"


def _check_apart(path: str, directory: str) -> None:
    for inner, outer in ((path, directory), (directory, path)):
        if _lies_in(inner, outer):
            raise MountError(
                f"mount point {path} and the volume's own directory {directory} lie in each other",
                hint="Mount it somewhere else: a disk cannot be kept on itself.",
            )


def _lies_in(path: str, place: str) -> bool:
    """Whether a path lies in a place, by its name or by what a bind mount shows there; both absolute and resolved."""
    if os.path.commonpath((path, place)) == place:
        return True
    mounts = read_mounts()
    inner, outer = _in_filesystem(path, mounts), _in_filesystem(place, mounts)
    return inner[0] == outer[0] and os.path.commonpath((inner[1], outer[1])) == outer[1]


def _in_filesystem(path: str, mounts: Sequence[Mount]) -> tuple[str, str]:
    """Return the device on which a path is, and where it is in that filesystem."""
    # Of several the deepest shows it; of those on the same place the last.
    over = (mount for mount in mounts if os.path.commonpath((path, mount.path)) == mount.path)
    shown = max(enumerate(over), key=lambda numbered: (len(numbered[1].path), numbered[0]))[1]
    return shown.device, os.path.normpath(os.path.join(shown.root, os.path.relpath(path, shown.path)))


def check_outside(what: str, path: str, place: str, where: str, remedy: str) -> None:
    """Raise UsageError if a path lies in ``place``; both are absolute and resolved."""
    if _lies_in(path, place):
        raise UsageError(
            f"{what}: {path} lies {where}",
            hint=f"{remedy}: what is kept on its own volume waits for itself.",
        )


def check_fuse(device: str = "/dev/fuse") -> None:
    """Raise MountError unless this process can open FUSE's device and, not being root, has a fusermount."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise MountError(
            f"{device} does not exist",
            hint="Load the module with 'modprobe fuse'; in a container, start it with "
            "'--device /dev/fuse --cap-add SYS_ADMIN'.",
        ) from None
    except PermissionError:
        raise MountError(
            f"this user may not open {device}",
            hint=f"Run as root, or let this user read and write it: chmod 666 {device}",
        ) from None
    except OSError as error:
        raise MountError(
            f"{device} cannot be opened: {error.strerror}", hint="Load the module with 'modprobe fuse'."
        ) from None
    if os.geteuid() != 0 and shutil.which("fusermount") is None:
        raise MountError(
            "fusermount was not found, and only root can mount without it",
            hint="Install it with 'apt install fuse', or run as root.",
        )


def unmount(path: str, *, lazy: bool = False) -> None:
    """Unmount what is mounted on ``path``; OSError(EBUSY) while it is in use, unless ``lazy``.

    Waits for what the kernel has still to write, so the caller must not be the only thread that serves it.
    """
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(path), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
        return
    command = ["fusermount", "-u", *(["-z"] if lazy else []), "--", path]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=_FUSERMOUNT_SECONDS,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        raise OSError(errno.ETIMEDOUT, "fusermount did not end", path) from None
    if done.returncode != 0:
        code = errno.EBUSY if "busy" in done.stderr else errno.EINVAL
        raise OSError(code, done.stderr.strip() or os.strerror(code), path)


def loop_devices(path: str, sys_block: str = "/sys/block") -> Sequence[str]:
    """Return the loop devices, such as ``/dev/loop0``, that are attached to this file, or to one below this mount."""
    devices, name = [], os.fsencode(path)
    for entry in Path(sys_block).glob("loop*/loop/backing_file"):
        try:
            # Those of others may be on files whose names are no text.
            backing = entry.read_bytes().removesuffix(b"\n")
        except OSError:
            continue
        if backing == name or backing.startswith(name + b"/"):
            devices.append(f"/dev/{entry.parts[-3]}")
    return sorted(devices)


def wait_for_size(file: str, size: int) -> None:
    """Look at the file until the kernel has the new size, which is soon: it is told by llfuse in a queue.

    A loop device takes what the kernel has without looking, so a 'losetup -c' that comes too early finds the old one.
    """
    deadline = time.monotonic() + _KERNEL_SECONDS
    with contextlib.suppress(OSError):
        while os.stat(file).st_size != size and time.monotonic() < deadline:
            time.sleep(0.01)
