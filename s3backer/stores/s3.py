"""A bucket on an S3 server.

Guarantees beyond those of every store
  * What comes out as an error was tried again as far as that may help (s3/engine.py).
  * A body is whole and verified by what there is (s3/checksums.py). What does not fit is asked for again, and is
    CorruptObject in the end. So is an answer asked for again that no S3 server gives.
  * "There is no such object" comes from an answer that says so of the object and not of the bucket, or from a bare
    404 once the bucket has been seen to exist.
  * A range is of the object's present content, and exactly the one that was asked for. A server that gives all of the
    object is believed, up to _MOST_WHOLE bytes.
  * A conditional PUT whose answer was lost is settled by reading the object back.
  * No late or repeated attempt of a write replaces what was written after it by this store (s3/unsettled.py), as long
    as the writes are conditional or the one that follows has time to wait.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from s3backer.errors import CorruptObject, ObjectNotFound, PreconditionFailed, S3backerError
from s3backer.s3 import messages
from s3backer.s3.checksums import ASK, Checksums
from s3backer.s3.deletions import BATCH, delete_together
from s3backer.s3.engine import EXPIRY, Engine, LostAnswer
from s3backer.s3.http1 import Answer
from s3backer.s3.multipart import PART, Upload, cut_parts
from s3backer.s3.request import Request
from s3backer.s3.responses import (
    BadAnswer,
    fits_xml,
    object_info,
    parse_list,
    parse_range,
    quoted_etag,
    size_past,
)
from s3backer.s3.retries import MAX_ALTERED
from s3backer.s3.trials import Trials
from s3backer.s3.unsettled import ABSENT
from s3backer.stores.base import Body, ListPage, ObjectInfo, ObjectRange, StoredObject
from s3backer.stores.bodies import Pieces, pieces, same, size_of
from s3backer.stores.checks import check_key, check_listing, check_range, checked_metadata
from s3backer.stores.options import StoreOptions
from s3backer.telemetry.requests import RequestCounters
from s3backer.url import normal_endpoint

#: Statuses of a HEAD that are looked into further: its answer has no body that tells a reason.
_SILENT = (400, 401, 403, 404)
#: Bytes of a whole object that are taken in answer to a request for a range of it.
_MOST_WHOLE = 64 << 20


class S3Store:
    """One bucket. ``clock`` in seconds since 1970; ``sleep(seconds)`` makes the pauses between attempts.

    ``expiry``: seconds for which the signature of a write is good; ``part_size``: bytes of the parts of large objects.
    """

    delayed = True

    def __init__(
        self,
        bucket: str,
        options: StoreOptions,
        *,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], object] | None = None,
        random_source: random.Random | None = None,
        expiry: int = EXPIRY,
        part_size: int = PART,
    ) -> None:
        self.name = f"s3://{bucket}"
        self.bucket = bucket
        self.counters = RequestCounters()
        self._engine = Engine(
            bucket, options, self.counters, clock=clock, sleep=sleep, random_source=random_source, expiry=expiry
        )
        self.lasting = self._engine.unsettled.lasting
        self.fence = self._engine.fence
        self.fenced = True
        asked = {
            "x-amz-acl": options.acl,
            "x-amz-storage-class": options.storage_class,
            "x-amz-server-side-encryption": options.encryption,
            "x-amz-server-side-encryption-aws-kms-key-id": options.encryption_key,
        }
        self._put_headers = {name: value for name, value in asked.items() if value is not None}
        self._checksums = Checksums()
        self._trials = Trials(self._engine, self.name)
        self._part_size = part_size
        #: Whether the server has shown that it deletes one object at a time.
        self._single_deletes = False
        #: Whether the server has shown that it knows no conditions for deletions.
        self._plain_deletes = False
        #: Whether the server has shown that the bucket exists.
        self._bucket_seen = False

    @property
    def place(self) -> str:
        """What tells the bucket from all others."""
        return f"{normal_endpoint(self.endpoint)} {self.bucket}"

    @property
    def arriving(self) -> float:
        """Seconds for which a write may still take effect that the fence let through at the last moment."""
        return self._trials.arriving

    @property
    def conditions(self) -> bool | None:
        """Whether the conditions of a PUT are heeded; None: nobody has seen it yet."""
        return self._trials.conditions

    @property
    def endpoint(self) -> str:
        """The service's URL."""
        return self._engine.place.endpoint

    # ── calls ────────────────────────────────────────────────────────────────────────────────────────

    def get(self, key: str, *, at_most: int | None = None) -> StoredObject:
        """Return the object; ObjectNotFound if absent.

        CorruptObject if its body is not what was stored, or if it is larger than ``at_most`` bytes.
        """
        found = self._get(key, {}, at_most)
        assert found is not None
        return found

    def get_unless(self, key: str, etag: str, *, at_most: int | None = None) -> StoredObject | None:
        """Return the object, or None if it has this ETag; errors as for ``get``.

        "Not modified" is believed only where it names this ETag; otherwise the object is asked for.
        """
        return self._get(key, {"If-None-Match": etag}, at_most)

    def _get(self, key: str, condition: dict[str, str], at_most: int | None) -> StoredObject | None:
        check_key(key)
        unless = condition.get("If-None-Match")

        def verify(answer: Answer) -> S3backerError | None:
            return self._check_whole(key, answer) if answer.status == 200 else None

        request = Request("get", "GET", key, headers=ASK | condition, hedged=True, at_most=at_most)
        answer = self._engine.perform(request, success=(200, 304) if unless else (200,), verify=verify)
        self._bucket_seen = True
        if answer.status == 200:
            return StoredObject(object_info(key, answer, len(answer.body)), answer.body, self._checksums.means(answer))
        return None if quoted_etag(answer.headers.get("etag", "")) == unless else self.get(key, at_most=at_most)

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> ObjectRange:
        """Return what there is of a range; ObjectNotFound, or PreconditionFailed for another ETag."""
        check_key(key)
        check_range(start, length)

        def verify(answer: Answer) -> S3backerError | None:
            if answer.status == 416:
                return self._not_there(key) if (size_past(answer) or 0) > start else None
            if answer.status == 200 or not answer.headers.get("etag"):
                return self._check_whole(key, answer)
            try:
                first, count, size = parse_range(answer)
            except BadAnswer as error:
                return self._unusable(key, str(error))
            if (first, count) == (start, min(length, size - start)) and count == len(answer.body):
                return None
            return self._unusable(key, f"{len(answer.body)} bytes said to be {count} from byte {first} of {size}")

        headers = {"Range": f"bytes={start}-{start + length - 1}"}
        if if_match is not None:
            headers["If-Match"] = if_match
        request = Request(
            "get",
            "GET",
            key,
            headers=headers,
            conditional=if_match is not None,
            hedged=True,
            at_most=max(length, _MOST_WHOLE),
        )
        try:
            answer = self._engine.perform(request, success=(200, 206, 416), verify=verify)
        except ObjectNotFound:
            # With If-Match SeaweedFS says so of a bucket that does not exist.
            self._prove_bucket(key)
            raise
        except PreconditionFailed:
            self.head(key)
            raise
        self._bucket_seen = True
        if answer.status == 416:
            return ObjectRange(b"", self._end_of(key, start, if_match, size_past(answer)))
        if if_match is not None and quoted_etag(answer.headers["etag"]) != if_match:
            raise PreconditionFailed(key)
        if answer.status == 206:
            return ObjectRange(answer.body, parse_range(answer)[2])
        return ObjectRange(answer.body[start : start + length], len(answer.body))

    def _end_of(self, key: str, start: int, if_match: str | None, said: int | None) -> int:
        """Return the size of an object that ends before ``start``, as its server ``said`` if it did.

        Whether the condition holds is not known: which of the two is answered first differs between servers.
        """
        if said is not None and if_match is None:
            return said
        info = self.head(key)
        if if_match is not None and info.etag != if_match:
            raise PreconditionFailed(key)
        if info.size > start:
            raise self._not_there(key)
        return info.size

    def head(self, key: str) -> ObjectInfo:
        """Return the object's facts; ObjectNotFound if absent."""
        check_key(key)

        def verify(answer: Answer) -> S3backerError | None:
            if answer.status != 200:
                return None
            if not answer.headers.get("content-length", "").isdecimal():
                return self._unusable(key, "it does not say how long the object is")
            return None if answer.headers.get("etag") else self._no_etag(key)

        request = Request("head", "HEAD", key)
        for _ in range(MAX_ALTERED):
            answer = self._engine.perform(request, success=(200, *_SILENT), verify=verify)
            if answer.status == 404:
                self._prove_bucket(key)
                raise ObjectNotFound(key)
            if answer.status == 200:
                self._bucket_seen = True
                return object_info(key, answer, int(answer.headers["content-length"]))
            # A GET is refused for the same reason, and says which; it follows the server's clock, too.
            self._engine.perform(_first_byte(key), success=(200, 206, 416))
        raise messages.explain_fault(self._engine.place, key, answer, None)

    def put(
        self,
        key: str,
        body: Body,
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
        whole = pieces(body)
        sums = self._checksums.of_put(whole)
        condition = _condition(if_match, if_none_match)
        # Each mount token is another one, put in place of the one before: where that is heeded a late one does no harm.
        is_token = key == self.fence.outside
        facts = self._facts(content_type, content_encoding, kept)
        if is_token:
            # It is put anew all the time, which some classes charge for.
            facts.pop("x-amz-storage-class", None)
        request = Request(
            "put",
            "PUT",
            key,
            headers=facts | sums | condition,
            body=whole,
            conditional=bool(condition),
            accepts=None if is_token and self.conditions else self._trials.accepts(if_match, if_none_match),
        )
        if not is_token:
            self._engine.wait(self._engine.unsettled.wait_before(key, lambda: self._checksums.etag_of(whole)))
        try:
            answer = self._engine.perform(request, verify=self._has_etag(key))
        except LostAnswer:
            with suppress(ObjectNotFound):
                found = self.get(key)
                if same(found.body, whole) and dict(found.info.metadata) == kept:
                    return found.info.etag
            raise PreconditionFailed(key) from None
        except PreconditionFailed:
            # SeaweedFS says so of an If-Match in a bucket that does not exist.
            self._prove_bucket(key)
            raise
        self._bucket_seen = True
        self._checksums.learn(sums, answer)
        if request.conditional and not is_token:
            answer = self._trials.after(request, self._has_etag(key)) or answer
        return quoted_etag(answer.headers["etag"])

    def put_large(
        self,
        key: str,
        body: Body,
        *,
        content_type: str = "application/octet-stream",
        content_encoding: str = "",
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        if_none_match: bool = False,
    ) -> str:
        """Store an object, in parts if it is larger than one, and return its ETag, which then is no MD5.

        PreconditionFailed if a condition does not hold: before anything is sent where that is to be seen, else when
        the parts are put together. Also if an answer was lost and the object is then another's.
        """
        parts = cut_parts(body, self._part_size)
        if len(parts) <= 1:
            return self.put(
                key,
                body,
                content_type=content_type,
                content_encoding=content_encoding,
                metadata=metadata,
                if_match=if_match,
                if_none_match=if_none_match,
            )
        check_key(key)
        kept = checked_metadata(content_type, content_encoding, metadata)
        condition = _condition(if_match, if_none_match)
        if condition:
            self._check_condition(key, if_match)
        upload = Upload(self._engine, self._checksums, key, self._facts(content_type, content_encoding, kept))
        self._bucket_seen = True
        try:
            return upload.finish(parts, condition, self._trials.accepts(if_match, if_none_match))
        except LostAnswer:
            with suppress(ObjectNotFound):
                info = self.head(key)
                if dict(info.metadata) == kept and self._consists_of(info, parts):
                    return info.etag
            raise PreconditionFailed(key) from None

    def _check_condition(self, key: str, if_match: str | None) -> None:
        """Raise PreconditionFailed if the object has another ETag than this, or is there where it should be absent."""
        try:
            found: str | None = self.head(key).etag
        except ObjectNotFound:
            found = None
        if found != if_match:
            raise PreconditionFailed(key)

    def _consists_of(self, info: ObjectInfo, parts: Sequence[Pieces]) -> bool:
        """Return whether an object has these parts. Reads it, a part at a time."""
        if info.size != sum(map(size_of, parts)):
            return False
        start = 0
        for part in parts:
            size = size_of(part)
            if not same(self.get_range(info.key, start, size, if_match=info.etag).body, part):
                return False
            start += size
        return True

    def _facts(self, content_type: str, content_encoding: str, metadata: Mapping[str, str]) -> dict[str, str]:
        """Return the headers that say of a new object what its body does not."""
        headers = {"Content-Type": content_type}
        if content_encoding:
            headers["Content-Encoding"] = content_encoding
        headers |= {f"x-amz-meta-{name}": value for name, value in metadata.items()}
        return headers | self._put_headers

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        """Remove the object. Absent already is a success; PreconditionFailed where the server heeds the condition."""
        check_key(key)

        def verify(answer: Answer) -> S3backerError | None:
            return self._unusable(key, "a document in reply to a DELETE") if answer.body else None

        conditional = if_match is not None and not self._plain_deletes
        headers = {"If-Match": if_match} if if_match is not None and conditional else {}
        request = Request("delete", "DELETE", key, headers=headers, conditional=conditional)
        self._engine.wait(self._engine.unsettled.wait_before(key, lambda: ABSENT))
        try:
            self._engine.perform(request, success=(200, 204), verify=verify)
        except messages.NoConditions:
            self._plain_deletes = True
            self.delete(key)
        except (LostAnswer, PreconditionFailed):
            # SeaweedFS says so of an object that is absent, too.
            with suppress(ObjectNotFound):
                self.head(key)
                raise PreconditionFailed(key) from None
        except ObjectNotFound:
            self._prove_bucket(key)

    def delete_many(self, keys: Sequence[str]) -> None:
        """Remove these objects, up to 1000 with one request where the server can and XML can carry the key."""
        batch = [key for key in keys if fits_xml(key)]
        for start in range(0, len(batch), BATCH):
            together = batch[start : start + BATCH]
            if self._single_deletes or not self._delete_together(together):
                for key in together:
                    self.delete(key)
        for key in keys:
            if not fits_xml(key):
                self.delete(key)

    def _delete_together(self, keys: Sequence[str]) -> bool:
        """Remove these objects with one request; False if the server does not know how."""
        for key in keys:
            check_key(key)
        errors = delete_together(self._engine, keys)
        if errors is None:
            self._single_deletes = True
            return False
        self._bucket_seen = True
        if errors:
            raise errors[0]
        return True

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> ListPage:
        """Return at most ``limit`` entries whose keys begin with prefix and follow ``start_after``."""
        check_listing(prefix, start_after, limit)
        query = {"list-type": "2", "max-keys": str(limit), "encoding-type": "url"}
        if prefix:
            query["prefix"] = prefix
        if start_after:
            query["start-after"] = start_after
        page = ListPage((), False)

        def verify(answer: Answer) -> S3backerError | None:
            nonlocal page
            try:
                page = parse_list(answer.body, prefix, start_after)
            except BadAnswer as error:
                return self._unusable("", str(error))
            return None

        self._engine.perform(Request("list", "GET", "", query), verify=verify)
        self._bucket_seen = True
        return page

    def settles_in(self) -> float:
        """Return for how many seconds writes whose answers were lost may still take effect; 0: none may."""
        return self._engine.unsettled.longest()

    def close(self) -> None:
        """Release connections and end what waits for another attempt."""
        self._engine.close()

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────

    def _unusable(self, key: str, problem: str) -> S3backerError:
        return messages.bad_answer(self._engine.place, key, problem)

    def _not_there(self, key: str) -> S3backerError:
        return self._unusable(key, "it says that the object ends before a range that it has")

    def _check_whole(self, key: str, answer: Answer) -> S3backerError | None:
        """Return what is wrong with an answer that has all of an object."""
        if not answer.headers.get("etag"):
            return self._no_etag(key)
        if self._checksums.fits(answer):
            return None
        return CorruptObject(
            f"object {key!r} in {self.name} does not have the content of its checksum or ETag {answer.headers['etag']}",
            hint="It was altered in the store or on the way. Read it with another program and compare.",
        )

    def _no_etag(self, key: str) -> S3backerError:
        """Return the error for the success of a server that is none of S3, such as the log-in page of a network."""
        return self._unusable(key, "it gives no ETag")

    def _has_etag(self, key: str) -> Callable[[Answer], S3backerError | None]:
        """Return what verifies that a success is one of S3."""
        return lambda answer: None if answer.headers.get("etag") else self._no_etag(key)

    def _prove_bucket(self, key: str) -> None:
        """Raise BucketNotFound, or whatever hides the bucket, unless it has been seen to exist."""
        if not self._bucket_seen:

            def verify(answer: Answer) -> S3backerError | None:
                return None if answer.status == 416 or answer.headers.get("etag") else self._no_etag(key)

            with suppress(ObjectNotFound):
                self._engine.perform(_first_byte(key), success=(200, 206, 416), verify=verify)
            self._bucket_seen = True


def _condition(if_match: str | None, if_none_match: bool) -> dict[str, str]:
    """Return the headers of a write's condition."""
    headers = {} if if_match is None else {"If-Match": if_match}
    return headers | ({"If-None-Match": "*"} if if_none_match else {})


def _first_byte(key: str) -> Request:
    """Return the request that asks least of an object and still gets a reason in return."""
    return Request("get", "GET", key, headers={"Range": "bytes=0-0"}, at_most=None)
