"""A bucket on an S3 server, through urllib3's connections and a signer of our own.

Guarantees beyond those of every store
  * What comes out as an error was tried as long as ``StoreOptions.patience`` allows (s3/retries.py says what is tried
    again); ``close`` ends such waiting at once.
  * A body is whole: its length is that of Content-Length, and its MD5 that of the ETag where that can be one, unless
    a PUT has shown that this server's ETags are something else. What does not fit is asked for once more and is then
    CorruptObject. Each PUT carries its MD5.
  * "There is no such object" comes from an answer that says so of the object and not of the bucket, or from a bare
    404 once the bucket has been seen to exist.
  * A conditional PUT whose answer was lost is settled by reading the object back.
  * No key, token or signature is in any message or log line.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from s3backer.errors import CorruptObject, ObjectNotFound, PreconditionFailed, S3backerError
from s3backer.s3 import messages
from s3backer.s3.credentials import Environment
from s3backer.s3.messages import Place
from s3backer.s3.responses import (
    Answer,
    BadAnswer,
    md5_of_etag,
    object_info,
    parse_fault,
    parse_list,
    quoted_etag,
    server_time,
)
from s3backer.s3.retries import Failure, RetryPolicy, is_retried, parse_retry_after
from s3backer.s3.signing import UNSIGNED_PAYLOAD, Signer, encode_path, encode_query, payload_hash
from s3backer.s3.transport import LongAnswer, Transport, closed, tls_context
from s3backer.stores.base import Buffer, ListPage, ObjectInfo, StoredObject
from s3backer.stores.checks import check_key, check_listing, checked_metadata, too_large
from s3backer.stores.options import StoreOptions
from s3backer.telemetry.requests import RequestCounters, failure_of_status

#: Statuses of a HEAD that are looked into further: its answer has no body that tells a reason.
_SILENT = (400, 401, 403, 404)
#: Statuses that do not count as failed attempts.
_EXPECTED = frozenset({200, 204, 206, 404, 412, 416})
#: How far a clock may be off before every signature is refused, in seconds. Source: the S3 documentation.
_MOST_SKEW = 15 * 60

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Request:
    """One request before it is signed. ``kind`` is what it counts as; ``resource`` a key, or empty for the bucket."""

    kind: str
    method: str
    resource: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Buffer | None = None
    conditional: bool = False
    at_most: int | None = None


class S3Store:
    """One bucket. ``clock`` in seconds since 1970; ``sleep(seconds)`` makes the pauses between attempts."""

    def __init__(
        self,
        bucket: str,
        options: StoreOptions,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], object] | None = None,
        random_source: random.Random | None = None,
    ) -> None:
        self._environment = Environment(options)
        endpoint = self._environment.endpoint
        self.name = f"s3://{bucket}"
        self.bucket = bucket
        self.endpoint = str(endpoint)
        self.counters = RequestCounters()
        self._options = options
        self._clock = clock
        self._closed = threading.Event()
        self._sleep = sleep or self._closed.wait
        self._random = random_source or random.SystemRandom()
        self._policy = RetryPolicy(patience=options.patience, first_pause=options.first_pause)
        asked = {
            "x-amz-acl": options.acl,
            "x-amz-storage-class": options.storage_class,
            "x-amz-server-side-encryption": options.encryption,
            "x-amz-server-side-encryption-aws-kms-key-id": options.encryption_key,
        }
        self._put_headers = {name: value for name, value in asked.items() if value is not None}
        self._place = Place(bucket, self.endpoint, self._environment.region)
        self._signer = Signer(self._environment.region)
        in_host = options.virtual_host
        if in_host is None:
            in_host = endpoint.is_aws and "." not in bucket
        in_host = in_host and not endpoint.is_address
        self._host = endpoint.netloc(bucket if in_host else "")
        self._root = endpoint.path if in_host else f"{endpoint.path}/{bucket}"
        self._secure = endpoint.scheme == "https"
        self._transport = Transport(
            self._place,
            scheme=endpoint.scheme,
            host=f"{bucket}.{endpoint.host}" if in_host else endpoint.host,
            port=endpoint.port,
            timeout=options.timeout,
            connections=options.connections,
            type_of_service=options.type_of_service,
            tls=tls_context(
                verify=options.verify_tls,
                ca_bundle=self._environment.ca_bundle,
                spare_bundle=self._environment.spare_bundle,
            )
            if self._secure
            else None,
            on_connect=self.counters.add_connection,
        )
        #: What the server has shown: that its ETags are no MD5s, and that the bucket exists.
        self._etags_differ = False
        self._bucket_seen = False

    # ── calls ────────────────────────────────────────────────────────────────────────────────────────

    def get(self, key: str, *, at_most: int | None = None) -> StoredObject:
        """Return the object; ObjectNotFound if absent.

        CorruptObject if its body is not that of its ETag, or if it is larger than ``at_most`` bytes.
        """
        check_key(key)
        for last in (False, True):
            answer = self._perform(_Request("get", "GET", key, at_most=at_most))
            info = object_info(key, answer, len(answer.body))
            self._require_etag(info.etag, key)
            if self._fits(answer):
                return StoredObject(info, answer.body)
            if not last:
                self.counters.add_retry()
        raise CorruptObject(
            f"object {key!r} in {self.name} does not have the content of its ETag {info.etag}",
            hint="It was altered in the store or on the way. Read it with another program and compare.",
        )

    def head(self, key: str) -> ObjectInfo:
        """Return the object's facts; ObjectNotFound if absent."""
        check_key(key)
        answer = self._perform(_Request("head", "HEAD", key), success=(200, *_SILENT))
        if answer.status == 404:
            self._prove_bucket(key)
            raise ObjectNotFound(key)
        if answer.status != 200:
            # A GET is refused for the same reason, and says which.
            self._perform(_first_byte(key), success=(200, 206, 416))
            raise messages.explain_fault(self._place, key, answer, None)
        try:
            size = int(answer.headers["Content-Length"])
        except (KeyError, ValueError):
            raise messages.bad_answer(self._place, key, "it does not say how long the object is") from None
        info = object_info(key, answer, size)
        self._require_etag(info.etag, key)
        return info

    def put(
        self,
        key: str,
        body: Buffer,
        *,
        content_type: str = "application/octet-stream",
        content_encoding: str = "",
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        if_none_match: bool = False,
    ) -> str:
        """Store the object and return its ETag; PreconditionFailed if a condition does not hold."""
        check_key(key)
        kept = checked_metadata(content_type, content_encoding, metadata)
        digest = hashlib.md5(body, usedforsecurity=False)
        headers = {"Content-Type": content_type, "Content-MD5": base64.b64encode(digest.digest()).decode()}
        if content_encoding:
            headers["Content-Encoding"] = content_encoding
        headers |= {f"x-amz-meta-{name}": value for name, value in kept.items()}
        headers |= self._put_headers
        if if_match is not None:
            headers["If-Match"] = if_match
        if if_none_match:
            headers["If-None-Match"] = "*"
        conditional = if_match is not None or if_none_match
        request = _Request("put", "PUT", key, headers=headers, body=body, conditional=conditional)
        try:
            answer = self._perform(request)
        except _Unsettled:
            with suppress(ObjectNotFound):
                found = self.get(key)
                if found.body == bytes(body) and dict(found.info.metadata) == kept:
                    return found.info.etag
            raise PreconditionFailed(key) from None
        except PreconditionFailed:
            # SeaweedFS says so of an If-Match in a bucket that does not exist.
            self._prove_bucket(key)
            raise
        etag = quoted_etag(answer.headers.get("ETag", ""))
        self._require_etag(etag, key)
        # The server has checked the body against Content-MD5, so it is the ETag that differs.
        if md5_of_etag(answer) not in (None, digest.hexdigest()):
            self._etags_differ = True
        return etag

    def delete(self, key: str) -> None:
        """Remove the object. Absent already is a success."""
        check_key(key)
        try:
            answer = self._perform(_Request("delete", "DELETE", key), success=(200, 204))
        except ObjectNotFound:
            self._prove_bucket(key)
            return
        if answer.body:
            raise messages.bad_answer(self._place, key, "a document in reply to a DELETE")

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> ListPage:
        """Return at most ``limit`` entries whose keys begin with prefix and follow ``start_after``."""
        check_listing(prefix, start_after, limit)
        query = {"list-type": "2", "max-keys": str(limit), "encoding-type": "url"}
        if prefix:
            query["prefix"] = prefix
        if start_after:
            query["start-after"] = start_after
        answer = self._perform(_Request("list", "GET", "", query))
        try:
            page = parse_list(answer.body, prefix, start_after)
        except BadAnswer as error:
            raise messages.bad_answer(self._place, "", str(error)) from None
        self._bucket_seen = True
        return page

    def close(self) -> None:
        """Release connections and end what waits for another attempt."""
        self._closed.set()
        self._transport.close()

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────

    def _fits(self, answer: Answer) -> bool:
        """Whether a whole object's body is what its ETag says, as far as that can be told."""
        expected = md5_of_etag(answer)
        if expected is None or self._etags_differ:
            return True
        return hashlib.md5(answer.body, usedforsecurity=False).hexdigest() == expected

    def _require_etag(self, etag: str, key: str) -> None:
        """Refuse the success of a server that is none of S3, such as the log-in page of a network."""
        if not etag:
            raise messages.bad_answer(self._place, key, "it gives no ETag")
        self._bucket_seen = True

    def _prove_bucket(self, key: str) -> None:
        """Raise BucketNotFound, or whatever hides the bucket, unless it has been seen to exist."""
        if not self._bucket_seen:
            with suppress(ObjectNotFound):
                found = self._perform(_first_byte(key), success=(200, 206, 416))
                if found.status != 416:
                    self._require_etag(found.headers.get("ETag", ""), key)
            self._bucket_seen = True

    def _perform(self, request: _Request, success: tuple[int, ...] = (200,)) -> Answer:
        """Send a request, again where that may help, and return its successful answer or raise what went wrong.

        Raises _Unsettled where a condition failed after an attempt that may have taken effect.
        """
        waited, attempt, unsettled = 0.0, 1, False
        while True:
            if self._closed.is_set():
                raise closed(self._place)
            try:
                return self._attempt(request, success)
            except Failure as failure:
                if isinstance(failure.error, PreconditionFailed) and unsettled:
                    raise _Unsettled from None
                unsettled = unsettled or failure.unsettled
                pause = None
                if failure.retried:
                    pause = self._policy.pause(attempt, waited, self._random, failure.retry_after)
                if pause is None:
                    raise failure.error from None
                log.debug("%s; attempt %d in %.1f s", failure.error, attempt + 1, pause)
            self._sleep(pause)
            waited += pause
            attempt += 1
            self.counters.add_retry(pause)

    def _attempt(self, request: _Request, success: tuple[int, ...]) -> Answer:
        path = encode_path(f"{self._root}/{request.resource}")
        query = encode_query(request.query)
        headers = self._signed(request, path, query)
        started = time.perf_counter()
        answer: Answer | None = None
        try:
            target = f"{path}?{query}" if query else path
            answer = self._transport.send(request.method, target, headers, request.body, at_most=request.at_most)
            self.counters.add_failure(failure_of_status(answer.status))
        except Failure as failure:
            self.counters.add_failure(failure.counted_as)
            raise
        except LongAnswer as long:
            raise too_large(self.name, request.resource, long.at_most) from None
        finally:
            self.counters.add(
                request.kind,
                sent=len(memoryview(request.body).cast("B")) if request.body else 0,
                received=len(answer.body) if answer else 0,
                seconds=time.perf_counter() - started,
                failed=answer is None or answer.status not in _EXPECTED,
            )
        self._slow_down(request, answer, started)
        if answer.status in success:
            return answer
        raise self._failure(request, answer)

    def _slow_down(self, request: _Request, answer: Answer, started: float) -> None:
        """Wait until the transfer has taken as long as the limits of speed make it."""
        seconds = 0.0
        if self._options.upload_limit and request.body:
            seconds += len(memoryview(request.body).cast("B")) * 8 / self._options.upload_limit
        if self._options.download_limit:
            seconds += len(answer.body) * 8 / self._options.download_limit
        left = started + seconds - time.perf_counter()
        if left > 0:
            self._sleep(left)

    def _signed(self, request: _Request, path: str, query: str) -> dict[str, str]:
        # "identity": a proxy that compresses on the way would change the length.
        headers = {"Host": self._host, "User-Agent": "s3backer", "Accept-Encoding": "identity", **request.headers}
        if self._options.anonymous:
            return headers
        keys = self._environment.keys()
        if keys is None:
            raise messages.no_credentials(self._place)
        # TLS keeps the body whole and Content-MD5 is signed; on plain http the signature has to cover it.
        payload = UNSIGNED_PAYLOAD if self._secure else payload_hash(request.body or b"")
        return self._signer.sign(request.method, path, query, headers, payload, keys, self._clock())

    def _failure(self, request: _Request, answer: Answer) -> Failure:
        """Return what an answer means that is no success."""
        key, now = request.resource, self._clock()
        fault = parse_fault(answer.body)
        code = fault.code if fault else ""
        said = server_time(answer)
        skew = None if said is None else now - said
        signed = not self._options.anonymous
        error: S3backerError
        if code == "RequestTimeTooSkewed" or (
            answer.status == 403 and signed and skew is not None and abs(skew) > _MOST_SKEW
        ):
            error = messages.clock_off(self._place, skew)
        elif request.conditional and (answer.status == 412 or code in ("PreconditionFailed", "NoSuchKey")):
            error = PreconditionFailed(key)
        elif request.conditional and (answer.status == 501 or code == "NotImplemented"):
            error = messages.no_conditions(self._place, key)
        elif request.kind == "delete" and answer.status == 404 and fault is None:
            error = ObjectNotFound(key)
        else:
            error = messages.explain_fault(self._place, key, answer, fault)
        return Failure(
            error,
            retried=is_retried(answer.status, code),
            unsettled=answer.status >= 500,
            retry_after=parse_retry_after(answer.headers.get("Retry-After", "")),
        )


def _first_byte(key: str) -> _Request:
    """Return the request that asks least of an object and still gets a reason in return."""
    return _Request("get", "GET", key, headers={"Range": "bytes=0-0"})


class _Unsettled(Exception):
    """A condition failed, but perhaps by our own earlier attempt."""
