"""What every store asks of its callers, so that all stores refuse the same keys, names and values.

key        1 to 1024 bytes of UTF-8, no NUL
metadata   names of lower-case letters, digits, '-', '_' and '.'; values of printable ASCII, not empty and
           without blanks at the ends: what an HTTP header carries through any S3 server unchanged
limit      1 to 1000
range      from byte 0 or later, of 1 byte or more, before byte 2**63
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from s3backer.errors import CorruptObject, UsageError

MAX_KEY_BYTES = 1024
MAX_LIST = 1000
_MAX_SIZE = 1 << 63
_NAME = re.compile(r"[a-z0-9._-]+")
_VALUE = re.compile(r"[!-~](?:[ -~]*[!-~])?")


def check_key(key: str) -> None:
    """Raise UsageError unless ``key`` can name an object."""
    try:
        length = len(key.encode())
    except UnicodeEncodeError:
        length = 0
    if not 1 <= length <= MAX_KEY_BYTES or "\0" in key:
        raise UsageError(
            f"{key[:80]!r} cannot be the name of an object",
            hint=f"A name is 1 to {MAX_KEY_BYTES} bytes of UTF-8 without NUL.",
        )


def check_listing(prefix: str, start_after: str, limit: int) -> None:
    """Raise UsageError unless a page of a listing can be asked for in this way."""
    if not 1 <= limit <= MAX_LIST:
        raise UsageError(f"a listing page has 1 to {MAX_LIST} entries, not {limit}")
    for text in filter(None, (prefix, start_after)):
        check_key(text)


def check_range(start: int, length: int) -> None:
    """Raise UsageError unless these can be the first byte and the length of a range."""
    if start < 0 or length < 1 or start + length > _MAX_SIZE:
        raise UsageError(f"{length} bytes from byte {start} on are no range of an object")


def too_large(store: str, key: str, at_most: int) -> CorruptObject:
    """Return the error for an object of which more came than it can rightly have."""
    return CorruptObject(
        f"object {key!r} in {store} has more than {at_most} bytes, too many for what it should be",
        hint="Another program put it there. Move it away; if a block was there before, restore that one.",
    )


def checked_metadata(content_type: str, content_encoding: str, metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Return a copy of the metadata; UsageError where a name or value cannot be a header."""
    found = dict(metadata or {})
    for name, value in found.items():
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot be a metadata name")
        if not _VALUE.fullmatch(value):
            raise UsageError(f"{value!r} cannot be the value of metadata {name!r}")
    for value in (content_type, content_encoding):
        if value and not _VALUE.fullmatch(value):
            raise UsageError(f"{value!r} cannot be a content type or encoding")
    return found
