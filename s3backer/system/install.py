"""Putting s3backer's files into the system, and taking them out again.

Every file carries a marker line. The files are found by their names and recognised by that line, so that nothing has to
be recorded.

Guarantees
  * A file that is not ours is never replaced or removed; if one is in the way, nothing is written at all.
  * Each file is whole, or is not there: it is written under another name, synced and renamed.
  * Doing it again changes nothing. Files go nowhere outside the root directory, also by symbolic links in it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from s3backer.errors import S3backerError
from s3backer.system.manual import completions, pages
from s3backer.system.texts import SCRIPT, UNIT

MARKER = "Installed by 's3backer install-system'; replaced and removed by it too."
#: The command's name, for mount.fuse, which looks for it here before it finds another in /usr/bin.
COMMAND = "usr/local/bin/s3backer"
_UNIT = "usr/local/lib/systemd/system/s3backer@.service"
_COMPLETIONS = {
    "bash": "usr/local/share/bash-completion/completions/s3backer",
    "zsh": "usr/local/share/zsh/site-functions/_s3backer",
    "fish": "usr/local/share/fish/vendor_completions.d/s3backer.fish",
}
#: Bytes at a file's beginning in which its marker stands.
_HEAD = 512


class InstallError(S3backerError):
    """A file of the system cannot be written or removed."""


@dataclass(frozen=True, slots=True)
class File:
    """One file to install: its path below the root, its text, its permissions."""

    path: str
    text: str
    mode: int = 0o644


def files(python: str, *, command: bool = True) -> list[File]:
    """Return all files, for this interpreter; ``command``: with the command itself.

    -P keeps the directory in which somebody runs mount(8) from being searched for modules.
    """
    run = f"{shlex.quote(python)} -P -m"
    helper = _filled(SCRIPT, f"{run} s3backer.system.mount_helper")
    found = [File(f"sbin/{name}", helper, 0o755) for name in ("mount.s3backer", "mount.fuse.s3backer")]
    if command:
        found.append(File(COMMAND, _filled(SCRIPT, f"{run} s3backer"), 0o755))
    found.append(File(_UNIT, _filled(UNIT, f"{_unit_word(python)} -P -m s3backer")))
    for name, text in sorted(pages(MARKER).items()):
        found.append(File(f"usr/local/share/man/man{name[-1]}/{name}", text))
    for shell, text in completions(MARKER).items():
        found.append(File(_COMPLETIONS[shell], text))
    return found


def _filled(text: str, command: str) -> str:
    return text.replace("@MARKER@", MARKER).replace("@COMMAND@", command)


def _unit_word(path: str) -> str:
    """Quote a program's path for a unit, where % and $ mean something."""
    quoted = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{quoted}"' if quoted != path or " " in path else path


def install(root: str, *, command: bool = True, tell: Callable[[str], None]) -> None:
    """Write all files below ``root`` and ``tell`` what became of each; InstallError if one cannot be written."""
    wanted = [(_place(root, file.path), file) for file in files(sys.executable, command=command)]
    wanted = [(path, file) for path, file in wanted if not _is_environments_own(path)]
    # All of them are looked at before the first is written, so that nothing is half done.
    for path, _ in wanted:
        _require_directories(os.path.dirname(path))
        if os.path.lexists(path) and not _is_ours(path):
            raise InstallError(
                f"{path} is not a file of this program",
                hint="Nothing was written. Move it away first"
                + (", or leave the command out with --no-command." if path.endswith(COMMAND) else "."),
            )
    for path, file in wanted:
        with _explained(path, "written"):
            tell(f"{_write(path, file)} {path}")


def remove(root: str, *, tell: Callable[[str], None]) -> None:
    """Remove those files below ``root`` that are ours, and ``tell`` about each."""
    # All places are known before the first file goes.
    for path in [_place(root, file.path) for file in files(sys.executable)]:
        if os.path.lexists(path) and not _is_environments_own(path):
            if _is_ours(path):
                with _explained(path, "removed"):
                    os.unlink(path)
                    tell(f"removed {path}")
            else:
                tell(f"left {path}, which is not a file of this program")


def _place(root: str, path: str) -> str:
    """Return where a file goes, InstallError if links in the root lead out of it."""
    top = os.path.realpath(root)
    directory = os.path.realpath(os.path.join(top, os.path.dirname(path)))
    if os.path.commonpath((top, directory)) != top:
        raise InstallError(
            f"{os.path.join(root, os.path.dirname(path))} leads out of {root}, to {directory}",
            hint="Nothing was changed. Make it a relative link, or a directory.",
        )
    return os.path.join(directory, os.path.basename(path))


def _is_environments_own(path: str) -> bool:
    """Whether this is the command that came with the package itself, as after 'pip install' into the system."""
    return path == os.path.join(os.path.realpath(sysconfig.get_path("scripts")), "s3backer")


def _is_ours(path: str) -> bool:
    with _explained(path, "read"):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return False
        with open(path, "rb") as file:
            return MARKER.encode() in file.read(_HEAD)


def _write(path: str, file: File) -> str:
    """Write one file and return what that was: installed, updated or unchanged."""
    body = file.text.encode()
    there = os.path.lexists(path)
    if there:
        with open(path, "rb") as old:
            if old.read() == body and stat.S_IMODE(os.stat(path).st_mode) == file.mode:
                return "unchanged"
    directory = os.path.dirname(path)
    _make_directories(directory)
    descriptor, temporary = tempfile.mkstemp(prefix=".s3backer-", dir=directory)
    try:
        with open(descriptor, "wb") as new:
            new.write(body)
            new.flush()
            os.fchmod(new.fileno(), file.mode)
            os.fsync(new.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return "updated" if there else "installed"


def _require_directories(directory: str) -> None:
    """Raise InstallError if something else stands where a directory has to be."""
    while not os.path.lexists(directory):
        directory = os.path.dirname(directory)
    if not os.path.isdir(directory):
        raise InstallError(f"{directory} is not a directory", hint="Nothing was written. Move it away first.")


def _make_directories(directory: str) -> None:
    """Make a directory and those above it, readable by all whatever the umask is."""
    if os.path.isdir(directory):
        return
    _make_directories(os.path.dirname(directory))
    os.mkdir(directory)
    os.chmod(directory, 0o755)  # noqa: S103 - as every directory of the system is


@contextlib.contextmanager
def _explained(path: str, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InstallError(
            f"{path} cannot be {what}: {error.strerror}", hint="Run it as root, or name another directory with --root."
        ) from None
