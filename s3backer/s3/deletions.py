"""Deleting many objects with one request, where the server can (DeleteObjects)."""

from __future__ import annotations

from collections.abc import Sequence

from s3backer.errors import S3backerError
from s3backer.s3 import messages
from s3backer.s3.checksums import md5_base64
from s3backer.s3.engine import Engine
from s3backer.s3.http1 import Answer
from s3backer.s3.request import Request
from s3backer.s3.responses import BadAnswer, Fault, deletion, parse_deleted
from s3backer.s3.retries import is_retried
from s3backer.s3.unsettled import ABSENT

#: Keys that one request may delete.
BATCH = 1000
#: Statuses by which a server says that it does not know a request.
_UNKNOWN = (405, 501)


def delete_together(engine: Engine, keys: Sequence[str]) -> list[S3backerError] | None:
    """Remove at most BATCH objects, whose keys XML can carry; absent already is a success.

    Return why some of them are still there, and None if the server does not know such requests.
    """
    body = deletion(keys)
    faults: dict[str, Fault] = {}

    def not_deleted(key: str, fault: Fault) -> S3backerError:
        denied = fault.code == "AccessDenied"
        return messages.explain_fault(engine.place, key, Answer(403 if denied else 500, {}, b""), fault)

    def verify(answer: Answer) -> S3backerError | None:
        nonlocal faults
        if answer.status != 200:
            return None
        try:
            faults = parse_deleted(answer.body, set(keys))
        except BadAnswer as error:
            return messages.bad_answer(engine.place, "", str(error))
        again = next((key for key, fault in faults.items() if is_retried(200, fault.code)), None)
        return None if again is None else not_deleted(again, faults[again])

    headers = {"Content-Type": "application/xml", "Content-MD5": md5_base64(body)}
    request = Request("delete", "POST", "", {"delete": ""}, headers, body, keys=tuple(keys))
    engine.wait(max(engine.unsettled.wait_before(key, lambda: ABSENT) for key in keys))
    if engine.perform(request, success=(200, *_UNKNOWN), verify=verify).status != 200:
        return None
    return [not_deleted(key, fault) for key, fault in faults.items() if fault.code != "NoSuchKey"]
