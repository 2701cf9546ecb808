"""What the system's errors mean for a store in a directory, and what to try."""

from __future__ import annotations

import errno
import os

from s3backer.errors import AccessDenied, S3backerError, StoreError, StoreFull, UsageError


def explain(error: OSError, path: str) -> S3backerError:
    """Return the error to raise for what the system has answered about ``path``."""
    what = f"{path}: {error.strerror or os.strerror(error.errno or errno.EIO)}"
    match error.errno:
        case errno.EACCES | errno.EPERM:
            return AccessDenied(what, hint="Give this user the right to read and write there.")
        case errno.EROFS:
            return AccessDenied(what, hint="Make that filesystem writable, or mount read-only.")
        case errno.ENOSPC | errno.EDQUOT:
            return StoreFull(what, hint="Free some space on that filesystem.")
        case errno.EIO:
            return StoreError(what, hint="The disk reports an error: look at the kernel's log.")
        case errno.ELOOP:
            return StoreError(what, hint="Symbolic links in there are not followed.")
        case errno.ENAMETOOLONG:
            return UsageError(what, hint="Use a shorter prefix.")
        case errno.EISDIR | errno.ENOTDIR | errno.ENOTEMPTY | errno.EEXIST:
            return StoreError(what, hint="A file and a directory cannot have the same name.")
        case errno.EMFILE | errno.ENFILE:
            return StoreError(what, hint="Raise the limit of open files (ulimit -n).")
        case _:
            return StoreError(what, hint="Check the directory and the filesystem it is on.")
