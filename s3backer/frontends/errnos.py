"""What an application is told: the errno of an error, and the line in the log that says more."""

from __future__ import annotations

import errno
import logging

from s3backer.errors import S3backerError
from s3backer.logs import RateLimited

log = logging.getLogger(__name__)


def errno_of(error: Exception, what: str, limited: RateLimited) -> int:
    """Log an error in one line and return the errno that tells it; what is an answer and no failure is not logged."""
    code = getattr(error, "errno", None)
    known = isinstance(error, S3backerError | OSError) and isinstance(code, int) and code > 0
    if not (known and code in (errno.ENOSPC, errno.EROFS, errno.EINTR)):
        text = str(error) if known else f"unexpected {error!r}"
        limited.limited((what.split()[0], type(error)), logging.ERROR, f"{what}: {text}")
        if not known:
            log.debug("where it happened", exc_info=error)
    assert not known or isinstance(code, int)
    return code if known and code is not None else errno.EIO
