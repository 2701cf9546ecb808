"""Volume URLs: where a volume is, in one line of text.

    s3://BUCKET[/PREFIX]     a bucket, or a prefix in one; PREFIX gets a slash at its end
    file:///DIRECTORY        a local directory in place of a bucket

Parsing contacts nothing. A URL has one normal form, which ``str`` gives.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from s3backer.errors import UsageError

_BUCKET = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,61}[a-zA-Z0-9]")
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*):(.*)", re.DOTALL)
#: What the original cannot use either, or servers and proxies treat differently.
_UNSAFE = re.compile(r"[\x00-\x20\x7f%?#\\]")
_AWS = (".amazonaws.com", ".amazonaws.com.cn")
_FORM = "A volume is s3://BUCKET/PREFIX or file:///DIRECTORY."
#: A block's name and its hash have to fit behind it in a key of 1024 bytes.
_LONGEST_PREFIX = 1024 - 32


@dataclass(frozen=True, slots=True)
class VolumeURL:
    """A parsed URL. ``bucket`` and ``prefix`` for s3 (prefix empty or ending in a slash), ``path`` for file."""

    scheme: str
    bucket: str = ""
    path: str = ""
    prefix: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a URL; UsageError says what is wrong with it and what it may have been meant to be."""
        match = _SCHEME.fullmatch(text)
        if match is None:
            raise UsageError(f"{text!r} is no URL of a volume", hint=_guess(text))
        scheme, rest = match[1], match[2]
        if scheme not in ("s3", "file"):
            raise UsageError(
                f"{text!r} is no URL of a volume: {scheme!r} is no scheme of ours", hint=_guess_scheme(text)
            )
        if not rest.startswith("//"):
            raise UsageError(
                f"{text!r} is no URL of a volume: after {scheme}: come two slashes",
                hint=f"Did you mean {scheme}://{'/' if scheme == 'file' else ''}{rest.lstrip('/')}?",
            )
        return cls._file(text, rest[2:]) if scheme == "file" else cls._s3(text, rest[2:])

    @classmethod
    def _file(cls, text: str, path: str) -> Self:
        if not path.startswith("/"):
            raise UsageError(
                f"{text!r} does not name an absolute directory", hint=f"Did you mean file://{os.path.abspath(path)}?"
            )
        if "\0" in path:
            raise UsageError("a directory's name has no NUL in it", hint=_FORM)
        path = os.path.normpath(path)
        # POSIX lets two slashes at the beginning stand for something else; Linux does not.
        return cls("file", path="/" + path.lstrip("/"))

    @classmethod
    def _s3(cls, text: str, rest: str) -> Self:
        bucket, _, prefix = rest.partition("/")
        if not bucket:
            raise UsageError(f"{text!r} names no bucket", hint=_FORM)
        check_bucket(bucket)
        return cls("s3", bucket=bucket, prefix=checked_prefix(prefix.removesuffix("/") + "/") if prefix else "")

    def __str__(self) -> str:
        """Return the URL in its normal form."""
        return f"file://{self.path}" if self.scheme == "file" else f"s3://{self.bucket}/{self.prefix}".rstrip("/")


def check_bucket(name: str) -> None:
    """Raise UsageError unless this can be the name of a bucket."""
    if not _BUCKET.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a bucket",
            hint="It is 3 to 63 letters, digits, dots and hyphens, such as s3://my-bucket/disk.",
        )


def checked_prefix(prefix: str) -> str:
    """Return the prefix; UsageError where servers, proxies or the original would not agree on it."""
    if _UNSAFE.search(prefix):
        raise UsageError(
            f"the prefix {prefix!r} has a character that cannot be used",
            hint="Leave out blanks, control characters and % ? # \\.",
        )
    if any(part in ("", ".", "..") for part in prefix.removesuffix("/").split("/")):
        raise UsageError(
            f"the prefix {prefix!r} has an empty, '.' or '..' part", hint="Separate its parts by single slashes."
        )
    try:
        length = len(prefix.encode())
    except UnicodeEncodeError:
        length = _LONGEST_PREFIX + 1
    if length > _LONGEST_PREFIX:
        raise UsageError(
            f"the prefix is not text of at most {_LONGEST_PREFIX} bytes in UTF-8", hint="Use a shorter one."
        )
    return prefix


def volume_id(place: str, prefix: str) -> bytes:
    """Return the 32 bytes that stand for a volume, however its URL was written. ``place``: see ObjectStore."""
    return hashlib.sha256(f"{place}\0{prefix}".encode("utf-8", "surrogateescape")).digest()


def normal_endpoint(endpoint: str) -> str:
    """Return one form for all spellings of an endpoint: lower case, no default port, no slash at the end.

    All of AWS's are one, as a bucket's name is there only once in each of its partitions: which region, or which way
    into it, may be said differently the next time.
    """
    parts = urlsplit(endpoint)
    host = (parts.hostname or "").removesuffix(".")
    if host.endswith(_AWS):
        return "aws-cn" if host.endswith(".cn") else "aws-us-gov" if ".us-gov-" in host else "aws"
    if ":" in host:
        host = f"[{host}]"
    port = parts.port
    if port is not None and port != {"http": 80, "https": 443}.get(parts.scheme):
        host = f"{host}:{port}"
    return f"{parts.scheme}://{host}{parts.path.rstrip('/')}"


def _guess(text: str) -> str:
    if text.startswith("/"):
        return f"Did you mean file://{text}?"
    if text and _BUCKET.fullmatch(text.partition("/")[0]):
        return f"Did you mean s3://{text}?"
    return _FORM


def _guess_scheme(text: str) -> str:
    scheme, _, rest = text.partition(":")
    if scheme.lower() in ("s3", "file"):
        return f"Did you mean {scheme.lower()}:{rest}?"
    if scheme.lower() in ("http", "https"):
        return "Give the server with --endpoint-url, and the bucket as s3://BUCKET/PREFIX."
    near = difflib.get_close_matches(scheme.lower(), ("file", "s3"), 1, 0.5)
    return f"Did you mean {near[0]}:{rest}?" if near else _FORM
