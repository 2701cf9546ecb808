"""The directory of one volume's journal: its lock, and how files come into it and leave it.

    a new file       zeros and header ─ fdatasync ─ rename to NUMBER.journal ─ fsync of the directory
    one used again   rename to NAME.spare ─ fsync of the directory ─ header ─ fdatasync ─ rename ─ fsync
    the end of all   the file ``ended`` ─ fsync ─ all others removed ─ fsync ─ ``ended`` removed; it says "settled" if
                     no request that was sent before can take effect any more. Where there is no room for another file
                     it is ``begun``, by another name
    ``token``        the value of this host's mount token, 8 hex digits: there from before it is put until it is
                     removed
    ``busy``         changed every second while requests that change the bucket may be under way; there, from before
                     the token is, with the time 0 until then: to change it needs no room
    ``nonces``       which tokens of that value this host has put: see nonces.py

Guarantees
  * A file has the name NUMBER.journal only while its header is on the disk.
  * Its blocks are allocated and written before, so that fdatasync has no size and no extent to record: on ext4 a file
    that was only allocated (fallocate) makes every fdatasync convert an extent, which was 2 to 20 times slower.
    Zeros for 64 MiB take 30 to 60 ms.
  * Whoever holds the directory is the only one on this host: the file ``lock`` is locked with flock.
  * Everything is opened relative to the directory's descriptor and never through a symbolic link. Directories have
    mode 0700, files 0600. One that is another user's, or that others can write to, is refused, and a place in which
    others could move it (no sticky bit).
  * An end that was interrupted is finished by who opens the directory next; no part of the journal is read again.
  * A file whose making failed goes before anything else changes: empty, between others or before them, it would look
    like one that was lost. One whose next use failed may wait as NAME.spare, while nothing newer is made.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterable
from typing import Self

from s3backer.errors import JournalError, JournalFull, JournalGone, VolumeInUse, is_full
from s3backer.failpoints import reach
from s3backer.hints import command_line
from s3backer.journal import marks
from s3backer.journal.format import PAGE, Header
from s3backer.journal.nonces import Nonces
from s3backer.journal.system import SAFE, System
from s3backer.layouts.token import LONGEST_PLACE, can_tell
from s3backer.units import format_size

#: Bytes of a file, unless blocks are so large that few would fit.
FILE_BYTES = 64 << 20
_STEP = 1 << 20
_FULL = "Free some space there, or put it elsewhere with --journal-directory."
_ELSEWHERE = "Name another place with --journal-directory."
#: Permissions of others than the owner.
_OTHERS, _OTHERS_WRITE = 0o077, 0o022


def _way_to_use(path: str) -> str:
    """Return what to try where something is left in a directory that cannot be written to."""
    copying = f"mkdir DIR && {command_line('cp', '-a', path, 'DIR')}"
    return (
        "What a mount has left is in it: let this user write to it (a disk that is mounted read-only: mount -o "
        f"remount,rw), and try again. Or copy it to a disk that can be written to ({copying}), and give that with "
        "--journal-directory DIR."
    )


class JournalDirectory:
    """A volume's directory, made if need be, and locked. A context manager that unlocks it.

    Raises VolumeInUse if somebody on this host has it, JournalError where it cannot be made or is not ours.
    """

    def __init__(self, path: str | os.PathLike[str], *, system: System | None = None) -> None:
        self.path = os.fspath(path)
        self._system = system or System()
        #: Names under which a file may stand whose making failed.
        self._unfinished: list[str] = []
        self._descriptor = self._lock = -1
        if not can_tell(self.place):
            raise JournalError(
                f"{os.fsencode(self.place)!r}, where journals are to be, is not a name that the mount token can say: "
                f"printable, in UTF-8, and up to {LONGEST_PLACE} bytes as a URL has them",
                hint=_ELSEWHERE,
            )
        try:
            self._make_directories(self.place)
            self._check_place()
            self._make_directories(self.path)
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | SAFE)
            self._check_private()
            self._take_lock()
            self._clean()
            self._nonces = Nonces(self._system, self._descriptor)
        except OSError as error:
            self.close()
            hint = _way_to_use(self.path) if marks.has_files(self.path) else _ELSEWHERE
            raise self._error("cannot be used", error, hint=hint) from None
        except BaseException:
            self.close()
            raise

    def _make_directories(self, path: str) -> None:
        """Make a directory and those above it, each with its entry on the disk."""
        missing: list[str] = []
        while not os.path.lexists(path):
            missing.append(path)
            path = os.path.dirname(path) or "."
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            parent = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._system.sync(parent)
            finally:
                os.close(parent)

    def _check_place(self) -> None:
        """Raise JournalError if others could put a directory of theirs in place of the journal's."""
        mode = os.stat(self.place).st_mode
        if not stat.S_ISDIR(mode):
            raise JournalError(f"{self.place}, where journals are to be, is not a directory", hint=_ELSEWHERE)
        if mode & _OTHERS_WRITE and not mode & stat.S_ISVTX:
            raise JournalError(
                f"others than this user can write to {self.place}, where journals are",
                hint=f"Make it private ({command_line('chmod', 'go-w', self.place)}), or name another place with "
                "--journal-directory.",
            )

    def _check_private(self) -> None:
        """Raise JournalError if others can have put files there; keep them from reading it."""
        facts = os.fstat(self._descriptor)
        if facts.st_uid != os.geteuid():
            raise JournalError(
                f"the journal's directory {self.path} belongs to another user",
                hint="Be that user, or name another place with --journal-directory.",
            )
        if facts.st_mode & _OTHERS_WRITE:
            raise JournalError(
                f"others than this user can write to the journal's directory {self.path}",
                hint=f"See whether all in it is yours, then: {command_line('chmod', '700', self.path)}",
            )
        if facts.st_mode & _OTHERS:
            # As after a copy. Not every filesystem can.
            with contextlib.suppress(OSError):
                os.fchmod(self._descriptor, 0o700)

    def _take_lock(self) -> None:
        self._lock = os.open(marks.LOCK, os.O_RDWR | os.O_CREAT | SAFE, 0o600, dir_fd=self._descriptor)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise VolumeInUse(
                f"the volume is in use by another process of this host, which has locked {self.path}",
                hint="Unmount it; or wait, if a mount begins or ends just now. If that process hangs, end it first.",
            ) from None

    def _clean(self) -> None:
        """Finish an end that was interrupted, and remove what was being prepared."""
        names = os.listdir(self._descriptor)
        if marks.ENDED in names:
            fd = os.open(marks.ENDED, os.O_RDONLY | os.O_NONBLOCK | SAFE, dir_fd=self._descriptor)
            try:
                settled = os.read(fd, len(marks.SETTLED)) == marks.SETTLED
            finally:
                os.close(fd)
            self._remove_all(names, settled=settled)
        for name in filter(marks.SPARE.fullmatch, names):
            with contextlib.suppress(FileNotFoundError):
                self._system.remove(name, self._descriptor)

    def _has(self, name: str) -> bool:
        return os.access(name, os.F_OK, dir_fd=self._descriptor, follow_symlinks=False)

    def numbers(self) -> list[int]:
        """Return the numbers of the files, in order."""
        return marks.numbers_among(os.listdir(self._descriptor))

    @property
    def lost(self) -> bool:
        """Whether somebody has removed the files of a journal that has not ended."""
        return self._has(marks.BEGUN) and not self.numbers()

    @property
    def home(self) -> str:
        """What tells this directory from a copy of it, and this start of the host from the next one.

        Who has it locked and finds it in a token knows that the token's mount has died.
        """
        return marks.home_of(os.fstat(self._lock))

    def changed_at(self, numbers: Iterable[int]) -> float | None:
        """Return when one of these files was written last, or a mount busy, in seconds since 1970; 0: never.

        None where that is not known: the note could not be made.
        """
        times = [0.0]
        for name in (marks.BUSY, *map(marks.file_name, numbers)):
            try:
                times.append(os.stat(name, dir_fd=self._descriptor, follow_symlinks=False).st_mtime)
            except FileNotFoundError:
                if name == marks.BUSY and self.token is not None:
                    return None
        return max(times)

    def note_busy(self) -> None:
        """Note that requests that change the bucket may be under way now. Raises JournalError."""
        try:
            self._make_busy()
            os.utime(marks.BUSY, dir_fd=self._descriptor, follow_symlinks=False)
        except OSError as error:
            with contextlib.suppress(OSError):
                # Then nobody believes an older time.
                self._system.remove(marks.BUSY, self._descriptor)
            raise self._cannot_take("a note", error) from None

    def _make_busy(self) -> None:
        try:
            fd = self._system.create(marks.BUSY, self._descriptor)
        except FileExistsError:
            return
        try:
            os.utime(fd, (0, 0))
        finally:
            os.close(fd)
        self._system.sync(self._descriptor)

    def room(self) -> int:
        """Return how many bytes there is room for on its disk."""
        facts = os.fstatvfs(self._descriptor)
        return facts.f_bavail * facts.f_frsize

    def open(self, number: int, *, writable: bool = False) -> int:
        """Return a descriptor of a file. Raises JournalError."""
        mode = os.O_RDWR if writable else os.O_RDONLY
        try:
            # Not blocking: a FIFO would wait.
            fd = os.open(marks.file_name(number), mode | os.O_NONBLOCK | SAFE, dir_fd=self._descriptor)
        except OSError as error:
            raise self._error(f"has a file {marks.file_name(number)} that cannot be opened", error) from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise JournalError(
                f"{self.path}/{marks.file_name(number)} is not a regular file", hint="Move it away; it is not ours."
            )
        return fd

    def check(self, number: int, fd: int) -> None:
        """Raise JournalGone if somebody has removed an open file: then nobody can read it back."""
        try:
            self._check_name(marks.file_name(number), fd)
        except OSError as error:
            raise self._error(f"has a file {marks.file_name(number)} that cannot be looked at", error) from None

    def _check_there(self) -> None:
        # It goes before the directory does.
        self._check_name(marks.LOCK, self._lock)

    def _check_name(self, name: str, fd: int) -> None:
        # Some filesystems count no names at all.
        if os.fstat(fd).st_nlink == 0 and not self._has(name):
            raise JournalGone(f"somebody has removed {self.path}/{name}", hint=marks.LOOK)

    def settle(self, fd: int) -> None:
        """Let what is read of a file be what the disk has. Raises OSError if that is not what was written.

        After a write-back that failed the page cache shows what the disk never got, as if it were well.
        """
        self._system.settle(fd)

    def make(self, header: Header) -> int:
        """Make a new file and return its descriptor. Raises JournalError, and then leaves nothing behind."""
        spare = marks.spare_name(header.number)
        try:
            self._remove_unfinished()
            self._unfinished = [spare, marks.file_name(header.number)]
            fd = self._system.create(spare, self._descriptor)
            try:
                with contextlib.suppress(OSError):
                    # Only for its place: not every filesystem can.
                    self._system.allocate(fd, header.size)
                for position in range(PAGE, header.size, _STEP):
                    self._system.write(fd, bytes(min(_STEP, header.size - position)), position)
                self._finish(fd, spare, header)
            except BaseException:
                os.close(fd)
                with contextlib.suppress(OSError):
                    self._remove_unfinished()
                raise
        except OSError as error:
            full = (
                f"Free some space there: two files of {format_size(header.size)} have to fit, smaller ones with a "
                "smaller --journal. Or put it elsewhere with --journal-directory."
            )
            raise self._cannot_take("another file", error, full=full) from None
        return fd

    def use_again(self, number: int, fd: int, header: Header) -> None:
        """Make a file ready for its next use, under another number. Raises JournalError; its descriptor stays open.

        It may be called again after it failed, with the same header, before anything else is made or used again.
        """
        spare, name = marks.spare_name(number), marks.file_name(header.number)
        try:
            self._unfinished = [left for left in self._unfinished if left not in (spare, name)]
            self._remove_unfinished()
            self._unfinished = [spare, name]
            if not self._has(spare):
                # An attempt that failed may have come as far as to its next name.
                self._system.rename(name if self._has(name) else marks.file_name(number), spare, self._descriptor)
            self._system.sync(self._descriptor)
            self._finish(fd, spare, header)
        except OSError as error:
            raise self._error("cannot prepare a file", error) from None

    def _finish(self, fd: int, spare: str, header: Header) -> None:
        reach("file-without-header")
        self._system.write(fd, header.pack(), 0)
        self._system.sync(fd)
        reach("file-without-name")
        self._system.rename(spare, marks.file_name(header.number), self._descriptor)
        self._system.sync(self._descriptor)
        if not self._has(marks.BEGUN):
            # Not before: without a file it says that they were lost. So it goes before the only one goes.
            if self.numbers() == [header.number]:
                self._unfinished.insert(0, marks.BEGUN)
            os.close(self._system.create(marks.BEGUN, self._descriptor))
            self._system.sync(self._descriptor)
        reach("file-ready")
        self._unfinished.clear()

    def _remove_unfinished(self) -> None:
        while self._unfinished:
            with contextlib.suppress(FileNotFoundError):
                self._system.remove(self._unfinished[0], self._descriptor)
            del self._unfinished[0]

    def remove(self, number: int) -> None:
        """Remove a file of which nothing is needed, also where preparing its next use failed. Raises JournalError."""
        try:
            self._unfinished.append(marks.file_name(number))
            self._remove_unfinished()
            self._system.sync(self._descriptor)
        except OSError as error:
            raise self._error("cannot be changed", error) from None

    def remove_all(self, *, settled: bool) -> None:
        """Remove every file, after an end with which everything is in the bucket. Raises JournalError.

        ``settled``: no request that was sent before can take effect any more. It may be called again after it failed.
        """
        try:
            # What has no file needs no room for the mark of its end.
            if self._has(marks.BEGUN) or self.numbers():
                self._mark_end(settled)
                reach("end-marked")
            else:
                self._check_there()
            self._remove_all(os.listdir(self._descriptor), settled=settled)
        except OSError as error:
            raise self._error("cannot be emptied", error) from None

    def _mark_end(self, settled: bool) -> None:
        try:
            fd = self._system.create(marks.ENDED, self._descriptor)
        except FileExistsError:
            pass
        except OSError as error:
            if not (is_full(error) and self._has(marks.BEGUN)):
                raise
            # It is empty, and goes with the first of the others. It needs no room, and one of both is always there.
            self._system.rename(marks.BEGUN, marks.ENDED, self._descriptor)
        else:
            try:
                if settled:
                    self._system.write(fd, marks.SETTLED, 0)
                    self._system.sync(fd)
            except OSError as error:
                # Whoever finds it as it is waits for the last requests once more.
                if not is_full(error):
                    raise
            finally:
                os.close(fd)
        self._system.sync(self._descriptor)

    def _remove_all(self, names: list[str], *, settled: bool) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._system.remove(marks.BEGUN, self._descriptor)
        for name in names:
            if marks.FILE.fullmatch(name) or marks.SPARE.fullmatch(name):
                with contextlib.suppress(FileNotFoundError):
                    self._system.remove(name, self._descriptor)
                reach("end-half-done")
        if settled:
            with contextlib.suppress(FileNotFoundError):
                os.utime(marks.BUSY, (0, 0), dir_fd=self._descriptor, follow_symlinks=False)
        self._system.sync(self._descriptor)
        with contextlib.suppress(FileNotFoundError):
            self._system.remove(marks.ENDED, self._descriptor)

    @property
    def place(self) -> str:
        """The directory in which those of all volumes are."""
        return os.path.dirname(self.path) or "."

    @property
    def token(self) -> int | None:
        """The value of the token that the last mount noted, None if it removed it."""
        return self._noted()[0]

    def has_begun(self, value: int, session: bytes) -> bool:
        """Whether a forced replay of the journal whose newest session that is has begun, with a token of this value."""
        return bool(session) and self._noted() == (value, session)

    def _noted(self) -> tuple[int | None, bytes]:
        try:
            return marks.read_token(marks.TOKEN, self._descriptor)
        except OSError as error:
            raise self._error("cannot be read", error) from None

    def note_token(self, value: int, session: bytes = b"") -> None:
        """Note the value of the token that is about to be put. Raises JournalError.

        ``session``: of the journal that is about to be replayed by force with a token of that value.
        """
        try:
            self._make_busy()
            noted, begun = self._noted()
            if noted == value and session in (b"", begun):
                return
            with contextlib.suppress(FileNotFoundError):
                self._system.remove(marks.NEW_TOKEN, self._descriptor)
            fd = self._system.create(marks.NEW_TOKEN, self._descriptor)
            try:
                self._system.write(fd, marks.token_text(value, session), 0)
                self._system.sync(fd)
            finally:
                os.close(fd)
            self._system.rename(marks.NEW_TOKEN, marks.TOKEN, self._descriptor)
            self._system.sync(self._descriptor)
        except OSError as error:
            raise self._cannot_take("a note", error) from None

    def note_nonce(self, nonce: str) -> None:
        """Note the nonce of a token that is about to be put. Raises JournalError."""
        try:
            self._nonces.note(nonce)
        except OSError as error:
            raise self._cannot_take("a note", error) from None

    def is_home_of(self, home: str, nonce: str) -> bool:
        """Whether a token with these was put by who had this directory, and so has died: see ``home``."""
        return home == self.home and not self.is_older(home, nonce)

    def is_older(self, home: str, nonce: str) -> bool:
        """Whether a token of the same mount was put after this directory was copied from its own. Raises JournalError.

        Not to be known where that had no home: it could note nothing.
        """
        if not home:
            return False
        try:
            noted = self._nonces.noted()
        except OSError as error:
            path = f"{self.path}/nonces"
            raise JournalError(
                f"{path}, by which a copy of this journal that is older would be known, cannot be read: "
                f"{error.strerror}",
                hint=f"If this is no such copy, go on without it: {command_line('mv', path, path + '.bad')}. Then try "
                "again.",
            ) from None
        return noted is not None and nonce not in noted

    def forget_token(self, *, nonces: bool = True) -> None:
        """Note that the token was removed, or is none of ours. Raises JournalError.

        ``nonces``: also which ones were put here; not where one of them may be found still that is not to be gone on
        with.
        """
        try:
            for name in (marks.TOKEN, marks.BUSY):
                with contextlib.suppress(FileNotFoundError):
                    self._system.remove(name, self._descriptor)
            if nonces:
                self._nonces.forget()
        except OSError as error:
            raise self._error("cannot be changed", error) from None

    def close(self) -> None:
        """Unlock and close the directory."""
        for descriptor in (self._lock, self._descriptor):
            if descriptor >= 0:
                os.close(descriptor)
        self._lock = self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _cannot_take(self, thing: str, error: OSError, full: str = _FULL) -> JournalError:
        return self._error(f"{'has no room for' if is_full(error) else 'cannot take'} {thing}", error, full=full)

    def _error(self, what: str, error: OSError, hint: str = marks.LOOK, full: str = _FULL) -> JournalError:
        text = f"the journal's directory {self.path} {what}: {error.strerror}"
        if is_full(error):
            return JournalFull(text, hint=full)
        # A file that is not there any more, or, on NFS, a directory.
        kind = JournalGone if error.errno in (errno.ENOENT, errno.ESTALE) else JournalError
        return kind(text, hint=hint)
