"""Every error that a user can meet, in one tree.

An error says what happened, to which object or option, and what to try next. The first argument is
that text; ``hint`` is the next step and is printed on a line of its own. No traceback is shown for
any of these. ``exit_code`` is stable: scripts may rely on it.

    S3backerError            1   anything that has no code of its own
    ├── UsageError           2   a bad option, value or URL
    ├── StoreError           3   the store failed after all retries
    │   ├── StoreFull        3   no room: disk full, quota
    │   ├── StoreUnreachable 3   connection refused, unknown host, TLS failure, time-out
    │   ├── AccessDenied     4   wrong key, no permission, clock off
    │   ├── BucketNotFound   5   the bucket (or the directory) does not exist
    │   ├── ObjectNotFound   5   no such key
    │   ├── ObjectVanished   3   no such key any more
    │   └── PreconditionFailed 6 a conditional request lost
    ├── WrongPassword        4   it does not decrypt what is there
    ├── VolumeNotFound       5   there is no volume at this URL
    ├── VolumeExists         6   there is one already
    ├── VolumeInUse          6   it is mounted, here or elsewhere
    ├── MountError           7   mount point, /dev/fuse or fusermount
    ├── CorruptObject        8   an object cannot be what was written
    ├── JournalError         9   the journal on the local disk cannot be written, read or used
    │   ├── JournalDamaged   9   it does not hold what was written to it
    │   ├── JournalFull      9   its disk, or its quota, has no room now
    │   └── JournalGone      9   somebody has removed its directory or a file of it
    ├── DaemonSilent         1   the process that serves a volume lives, and does not answer
    ├── Interrupted          1   a signal came while a request waited
    └── OutOfMemory          1   the system gives no more memory, or no further thread

``errno`` is what a file operation reports when it meets the error.
"""

from __future__ import annotations

import errno

#: What to try where nobody but the program is to blame.
DEFECT = "This is a defect; please report it."


def is_full(error: OSError) -> bool:
    """Whether a disk, or what its quota gives, has no room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


class S3backerError(Exception):
    """Base of all errors that are explained to the user."""

    exit_code = 1
    errno = errno.EIO

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(S3backerError):
    """An option, argument or URL that cannot be used as given."""

    exit_code = 2
    errno = errno.EINVAL


class StoreError(S3backerError):
    """The store answered with an error, or not at all, and retrying did not help."""

    exit_code = 3


class StoreFull(StoreError):
    """The store has no room for more. ``hint`` says where some can be made."""

    def __init__(self, message: str, *, hint: str) -> None:
        waits = "What a mount has not stored yet waits in its memory: nothing is lost while its process lives."
        super().__init__(message, hint=f"{hint} {waits}")


class StoreUnreachable(StoreError):
    """No answer: connection refused, unknown host, TLS failure or time-out."""


class AccessDenied(StoreError):
    """The store refused these credentials for this request."""

    exit_code = 4


class BucketNotFound(StoreError):
    """The bucket or directory itself does not exist. Never the same as an empty volume."""

    exit_code = 5


class ObjectNotFound(StoreError):
    """The bucket exists and holds no object of this key."""

    exit_code = 5

    def __init__(self, key: str) -> None:
        super().__init__(f"there is no object {key!r}")
        self.key = key


class ObjectVanished(StoreError):
    """An object that was there is not there any more: what it held is lost, and is not zeros."""


class PreconditionFailed(StoreError):
    """A conditional PUT or DELETE found the object in another state."""

    exit_code = 6

    def __init__(self, key: str) -> None:
        super().__init__(f"object {key!r} was changed or created by somebody else")
        self.key = key


class WrongPassword(S3backerError):
    """A password that does not decrypt the blocks that are there."""

    exit_code = 4
    errno = errno.EACCES


class VolumeNotFound(S3backerError):
    """There is no volume at this URL."""

    exit_code = 5


class VolumeExists(S3backerError):
    """A volume is there already."""

    exit_code = 6


class VolumeInUse(S3backerError):
    """The volume is mounted, here or elsewhere."""

    exit_code = 6


class MountError(S3backerError):
    """The mount point or the FUSE installation cannot be used."""

    exit_code = 7


class CorruptObject(S3backerError):
    """An object's content cannot be what was written there."""

    exit_code = 8


class JournalError(S3backerError):
    """The write journal on the local disk cannot be written, read or used."""

    exit_code = 9


class JournalDamaged(JournalError):
    """The journal does not hold what was written to it. Its files are kept."""


class JournalFull(JournalError):
    """The disk under the journal, or what its quota gives, has no room now."""


class JournalGone(JournalError):
    """Somebody has removed the journal's directory, or a file of it, while it was in use."""


class ReadOnlyVolume(S3backerError):
    """The volume was opened read-only."""

    errno = errno.EROFS


class DaemonSilent(S3backerError):
    """The process that serves a volume on this host lives, and does not answer.

    ``who`` that is and ``what`` it does, to be said of another thing than the volume.
    """

    def __init__(self, who: str, what: str, *, hint: str) -> None:
        super().__init__(f"{who} serves this volume and {what}", hint=hint)
        self.who, self.what = who, what


class Interrupted(S3backerError):
    """Who asked was interrupted by a signal, and the request called off."""

    errno = errno.EINTR

    def __init__(self) -> None:
        super().__init__("interrupted by a signal")


class OutOfMemory(S3backerError):
    """The system gives this process no more memory, or no further thread."""

    errno = errno.ENOMEM


def out_of_memory(error: BaseException) -> OutOfMemory | None:
    """Return what to tell where an error of Python's means that memory is at an end, None for every other error."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return OutOfMemory(
            "there is not enough memory", hint="Give a mount a smaller --memory, or raise the limit (ulimit -v)."
        )
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return OutOfMemory(
            "there is not enough memory for another thread",
            hint="Give a mount a smaller --memory and fewer --threads, or raise the limits (ulimit -v, ulimit -u).",
        )
    return None
