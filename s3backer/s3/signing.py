"""Signature Version 4 for S3: by headers, or in the query with an expiry.

What botocore's S3SigV4Auth computes (a property test compares them), for a time that is passed in and without
its log records, which show the session token. The signing key is derived once a day.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from s3backer.stores.base import Body
from s3backer.stores.bodies import pieces

UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
#: Headers that proxies may change.
_NOT_SIGNED = frozenset({"user-agent", "expect", "transfer-encoding", "connection"})


@dataclass(frozen=True, slots=True, repr=False)
class Keys:
    """Credentials at one moment. They have no text form, so that no log can show them."""

    access_key: str
    secret_key: str
    token: str = ""


def encode_path(path: str) -> str:
    """Percent-encode a path the way S3 signs it: all but unreserved characters and slashes."""
    return quote(path, safe="/-_.~")


def encode_query(query: Mapping[str, str]) -> str:
    """Return the query string in the form that is signed, which is also a good one to send."""
    pairs = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in query.items())
    return "&".join(f"{name}={value}" for name, value in pairs)


def payload_hash(body: Body) -> str:
    """Return the SHA-256 of a body as it is signed."""
    digest = hashlib.sha256()
    for piece in pieces(body):
        digest.update(piece)
    return digest.hexdigest()


class Signer:
    """Signs requests to S3 in one region. Any number of threads may use it."""

    def __init__(self, region: str) -> None:
        self.region = region
        self._derived: tuple[Keys, str, bytes] | None = None

    def sign(
        self,
        method: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        payload: str,
        keys: Keys,
        now: float,
    ) -> dict[str, str]:
        """Return the headers with those of the signature.

        ``path`` and ``query`` are encoded as they are sent; ``headers`` contain Host; ``payload`` is the body's
        SHA-256 or UNSIGNED_PAYLOAD; ``now`` is in seconds since 1970.
        """
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        scope = f"{stamp[:8]}/{self.region}/s3/aws4_request"
        signed = {**headers, "X-Amz-Date": stamp, "X-Amz-Content-SHA256": payload}
        if keys.token:
            signed["X-Amz-Security-Token"] = keys.token
        names, lines = _canonical_headers(signed)
        canonical = f"{method}\n{path}\n{query}\n{lines}\n{names}\n{payload}"
        signature = self._signature(canonical, stamp, scope, keys)
        signed["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={keys.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
        )
        return signed

    def sign_until(
        self,
        method: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        payload: str,
        keys: Keys,
        now: float,
        expires: int,
    ) -> str:
        """Return the target of a request that a server refuses once ``expires`` seconds have gone by.

        The parameters are those of ``sign``.
        """
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        scope = f"{stamp[:8]}/{self.region}/s3/aws4_request"
        names, lines = _canonical_headers(headers)
        mine = {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"{keys.access_key}/{scope}",
            "X-Amz-Date": stamp,
            "X-Amz-Expires": str(expires),
            "X-Amz-SignedHeaders": names,
        }
        if payload != UNSIGNED_PAYLOAD:
            # In a header SeaweedFS does not see it, and takes the signature for a wrong one.
            mine["X-Amz-Content-Sha256"] = payload
        if keys.token:
            mine["X-Amz-Security-Token"] = keys.token
        query = "&".join(sorted(filter(None, [*query.split("&"), *encode_query(mine).split("&")])))
        canonical = f"{method}\n{path}\n{query}\n{lines}\n{names}\n{payload}"
        signature = self._signature(canonical, stamp, scope, keys)
        return f"{path}?{query}&X-Amz-Signature={signature}"

    def _signature(self, canonical: str, stamp: str, scope: str, keys: Keys) -> str:
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}"
        return hmac.digest(self._key(keys, stamp[:8]), text.encode(), "sha256").hex()

    def _key(self, keys: Keys, day: str) -> bytes:
        derived = self._derived
        if derived is None or derived[0] != keys or derived[1] != day:
            key = f"AWS4{keys.secret_key}".encode()
            for part in (day, self.region, "s3", "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._derived = derived = (keys, day, key)
        return derived[2]


def _canonical_headers(headers: Mapping[str, str]) -> tuple[str, str]:
    """Return (names, lines) of the headers that are signed."""
    lower = sorted((name.lower(), " ".join(value.split())) for name, value in headers.items())
    lower = [pair for pair in lower if pair[0] not in _NOT_SIGNED]
    return ";".join(name for name, _ in lower), "".join(f"{name}:{value}\n" for name, value in lower)
