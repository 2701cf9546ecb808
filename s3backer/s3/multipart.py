"""Uploads in parts: how an object comes to S3 that is too large for one PUT.

    create ──► parts, several at once ──► complete, under the condition ──► the object, as a whole
       └───────────────┴── any failure ───────────┴──► abort

Guarantees
  * Nobody sees the object before it is complete, and the condition is checked when it becomes so.
  * Each part is sent with its checksum, is tried again like any request, and counts only with an answer that does not
    contradict what was sent. Where the server keeps the checksum of the whole object, it compares that as well.
  * A failure removes the parts that the server has. Where that fails too, the log names the upload: parts cost money.
    A creation whose answer was lost may leave an upload without parts, which costs nothing.
  * LostAnswer: the parts have gone, or the condition failed, after an attempt to complete whose answer was lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from itertools import chain

from s3backer.errors import ObjectNotFound, S3backerError
from s3backer.s3 import messages
from s3backer.s3.checksums import CRC64, Checksums, crc64
from s3backer.s3.engine import Engine
from s3backer.s3.http1 import Answer
from s3backer.s3.request import Request
from s3backer.s3.responses import BadAnswer, completion, parse_completed, parse_upload, quoted_etag
from s3backer.stores.base import Body
from s3backer.stores.bodies import Pieces, cut, pieces, size_of

#: Bytes of a part. S3 takes from 5 MiB to 5 GiB, the last one may be smaller, and at most so many of them.
PART = 8 << 20
MOST_PARTS = 10_000
#: Parts of one object that are under way at once, at most.
_AT_ONCE = 4
_ALGORITHM = "x-amz-checksum-algorithm"
_WHOLE = {"x-amz-checksum-type": "FULL_OBJECT"}

log = logging.getLogger(__name__)


def cut_parts(body: Body, part: int = PART) -> list[Pieces]:
    """Cut a body into parts of ``part`` bytes, or more where they would be too many; the last has what is left."""
    return cut(pieces(body), max(part, -(-size_of(body) // MOST_PARTS)))


class Upload:
    """One object on its way, from its creation on."""

    def __init__(self, engine: Engine, checksums: Checksums, key: str, facts: Mapping[str, str]) -> None:
        self._engine = engine
        self._checksums = checksums
        self._key = key
        headers = {**facts, _ALGORITHM: "CRC64NVME", **_WHOLE}
        request = Request("put", "POST", key, {"uploads": ""}, headers, b"", accepts=None)
        answer = engine.perform(request, verify=self._said(parse_upload))
        self._id = parse_upload(answer.body)
        self._failed = False
        #: Whether the server will keep the checksum of the whole object.
        self._keeps_sum = answer.headers.get(_ALGORITHM) == "CRC64NVME"

    def finish(self, parts: Sequence[Pieces], condition: Mapping[str, str], accepts: str) -> str:
        """Send the parts and put them together; return the object's ETag. ``accepts``: see s3/unsettled.py.

        Raises PreconditionFailed, LostAnswer or what the engine raises, and then has aborted the upload.
        """
        try:
            return self._complete(parts, self._send_all(parts), condition, accepts)
        except BaseException:
            self._abort()
            raise

    def _send_all(self, parts: Sequence[Pieces]) -> list[tuple[str, str]]:
        """Send the parts; return the ETag and the checksum of each. When it returns or raises none is under way."""
        with ThreadPoolExecutor(min(_AT_ONCE, len(parts)), thread_name_prefix="part of an upload") as pool:
            sending = [pool.submit(self._send, number, part) for number, part in enumerate(parts, 1)]
            try:
                wait(sending, return_when=FIRST_EXCEPTION)
            finally:
                for part in sending:
                    part.cancel()
        # They begin in their order: one that failed comes before those that were not begun.
        return [part.result() for part in sending]

    def _send(self, number: int, part: Pieces) -> tuple[str, str]:
        if self._failed:
            raise CancelledError
        try:
            return self._put(number, part)
        except BaseException:
            self._failed = True
            raise

    def _put(self, number: int, part: Pieces) -> tuple[str, str]:
        sums = self._checksums.of_put(part)

        def verify(answer: Answer) -> S3backerError | None:
            if not answer.headers.get("etag"):
                return self._unusable("it gives no ETag")
            return None if self._checksums.confirmed(sums, answer) else self._unusable("it has received something else")

        query = {"partNumber": str(number), "uploadId": self._id}
        answer = self._engine.perform(Request("put", "PUT", self._key, query, sums, part, accepts=None), verify=verify)
        self._checksums.learn(sums, answer)
        return quoted_etag(answer.headers["etag"]), sums[CRC64]

    def _complete(
        self,
        parts: Sequence[Pieces],
        sent: Sequence[tuple[str, str]],
        condition: Mapping[str, str],
        accepts: str,
    ) -> str:
        headers = {"Content-Type": "application/xml", **condition}
        if self._keeps_sum:
            headers |= {CRC64: crc64(tuple(chain.from_iterable(parts))), **_WHOLE}
        request = Request(
            "put",
            "POST",
            self._key,
            {"uploadId": self._id},
            headers,
            completion(sent),
            conditional=bool(condition),
            accepts=accepts,
        )
        self._engine.wait(self._engine.unsettled.wait_before(self._key, lambda: None))
        return parse_completed(self._engine.perform(request, verify=self._said(parse_completed)).body)

    def _abort(self) -> None:
        request = Request("delete", "DELETE", self._key, {"uploadId": self._id}, accepts=None)
        try:
            self._engine.perform(request, success=(200, 204))
        except (messages.NoUpload, ObjectNotFound):
            pass
        except S3backerError as error:
            log.warning(
                "parts of an upload of %s are left in the store: abort upload %r there, or let a rule of the bucket "
                "do it (%s)",
                self._engine.place.describe(self._key),
                self._id,
                error,
            )

    def _said(self, parse: Callable[[bytes], str]) -> Callable[[Answer], S3backerError | None]:
        def verify(answer: Answer) -> S3backerError | None:
            try:
                parse(answer.body)
            except BadAnswer as error:
                return self._unusable(str(error))
            return None

        return verify

    def _unusable(self, problem: str) -> S3backerError:
        return messages.bad_answer(self._engine.place, self._key, problem)
