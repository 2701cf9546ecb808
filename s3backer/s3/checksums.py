"""What shows that a body is the one that was sent: the server's checksum header, else the MD5 that an ETag may be.

PUT    CRC64NVME, which the server compares and keeps, and Content-MD5 until it has shown that it does
GET    asks for the checksum that is kept; without one the ETag, where it can be an MD5 and no PUT has shown that
this server's are not
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable

from s3backer import _checksum
from s3backer.s3.http1 import Answer
from s3backer.stores.base import Body
from s3backer.stores.bodies import pieces

_CHECKSUM = "x-amz-checksum-"
CRC64 = f"{_CHECKSUM}crc64nvme"
_CRC32C = f"{_CHECKSUM}crc32c"
_MD5 = "md5"
#: Asks for the checksum that is kept with an object.
ASK = {"x-amz-checksum-mode": "ENABLED"}


def _encoded(value: int, size: int) -> str:
    return base64.b64encode(value.to_bytes(size, "big")).decode()


def crc64(body: Body) -> str:
    """Return the CRC-64/NVME of a body as headers and documents of S3 say it."""
    value = 0
    for piece in pieces(body):
        value = _checksum.crc64nvme(piece, value)
    return _encoded(value, 8)


def _crc32c(body: bytes) -> str:
    return _encoded(_checksum.crc32c(body), 4)


#: Strongest first.
_KNOWN: dict[str, Callable[[bytes], str]] = {CRC64: crc64, _CRC32C: _crc32c}


class Checksums:
    """Makes and verifies the checksums of one server, and learns what it knows."""

    def __init__(self) -> None:
        self._knows_crc = False
        #: Whether a PUT has shown that its ETag is the MD5 of the body, or that it is not.
        self._etags_agree = False
        self._etags_differ = False

    def of_put(self, body: Body) -> dict[str, str]:
        """Return the headers that go with a body."""
        headers = {CRC64: crc64(body)}
        if not self._knows_crc:
            headers["Content-MD5"] = md5_base64(body)
        return headers

    def etag_of(self, body: Body) -> str | None:
        """Return the ETag that an object with this body will have, None where this server's are no MD5s."""
        return None if self._etags_differ or not self._etags_agree else f'"{_md5(body).hexdigest()}"'

    def confirmed(self, sent: dict[str, str], answer: Answer) -> bool:
        """Whether nothing in the answer to a PUT contradicts the headers ``sent``, as far as the server is known."""
        if answer.headers.get(CRC64, sent[CRC64]) != sent[CRC64]:
            return False
        if "Content-MD5" not in sent or not self._etags_agree:
            return True
        return md5_of_etag(answer) in (None, base64.b64decode(sent["Content-MD5"]).hex())

    def learn(self, sent: dict[str, str], answer: Answer) -> None:
        """Learn from a PUT that succeeded: the server has compared what it knows of the headers ``sent``."""
        if answer.headers.get(CRC64) == sent[CRC64]:
            self._knows_crc = True
        if "Content-MD5" in sent:
            etag, own = md5_of_etag(answer), base64.b64decode(sent["Content-MD5"]).hex()
            self._etags_agree = self._etags_agree or etag == own
            self._etags_differ = self._etags_differ or etag not in (None, own)

    def fits(self, answer: Answer) -> bool:
        """Whether a whole object's body is the one that was stored, as far as that can be told."""
        name = self._shown_by(answer)
        if name == _MD5:
            return _md5(answer.body).hexdigest() == md5_of_etag(answer)
        return not name or _KNOWN[name](answer.body) == answer.headers[name]

    def means(self, answer: Answer) -> str:
        """Return by what ``fits`` can tell, as ``StoredObject.verified`` says it; empty for nothing."""
        return self._shown_by(answer).removeprefix(_CHECKSUM)

    def _shown_by(self, answer: Answer) -> str:
        """Return the header that shows whether a body is the one that was stored, ``_MD5`` for the ETag, or nothing."""
        if answer.headers.get("x-amz-checksum-type", "FULL_OBJECT") == "FULL_OBJECT":
            for name in _KNOWN:
                if "-" not in answer.headers.get(name, "-"):
                    return name
        return "" if self._etags_differ or md5_of_etag(answer) is None else _MD5


def md5_base64(body: Body) -> str:
    """Return what Content-MD5 says of a body."""
    return base64.b64encode(_md5(body).digest()).decode()


def _md5(body: Body) -> hashlib._Hash:
    digest = hashlib.md5(usedforsecurity=False)
    for piece in pieces(body):
        digest.update(piece)
    return digest


def md5_of_etag(answer: Answer) -> str | None:
    """Return the hex MD5 that the ETag may be, None if it is certainly none (multipart, SSE-KMS, SSE-C)."""
    headers = answer.headers
    etag = headers.get("etag", "").strip('"')
    if len(etag) != 32 or any(digit not in "0123456789abcdef" for digit in etag):
        return None
    if headers.get("x-amz-server-side-encryption", "AES256") != "AES256":
        return None
    if "x-amz-server-side-encryption-customer-algorithm" in headers:
        return None
    return etag
