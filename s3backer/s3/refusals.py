"""What an answer means that is no success, where there is nothing about the next attempt to correct.

Guarantees
  * What the user is told is what the server says of it; a document that did not come as it was sent says nothing.
  * ``unsettled`` is false only where the answer says that the request has no effect, now or later.
"""

from __future__ import annotations

from s3backer.errors import ObjectNotFound, PreconditionFailed, S3backerError
from s3backer.s3 import messages
from s3backer.s3.http1 import Answer
from s3backer.s3.messages import Place
from s3backer.s3.request import Request
from s3backer.s3.responses import Fault, is_xml
from s3backer.s3.retries import THROTTLED, Failure, is_retried, parse_retry_after

#: Statuses of failures that say that nothing was done: a conflict with another write, a request not implemented.
_WITHOUT_EFFECT = frozenset({409, 501})


def refusal(place: Place, request: Request, answer: Answer, fault: Fault | None, *, expired: bool) -> Failure:
    """Return what to do about an answer. ``expired``: it may be refused because its signature had ended."""
    code = fault.code if fault else ""
    # A document that did not come as it was sent says nothing.
    broken = fault is None and answer.status != 412 and is_xml(answer)
    retried = is_retried(answer.status, code)
    without_effect = answer.status in _WITHOUT_EFFECT or code in THROTTLED
    return Failure(
        _error(place, request, answer, fault, broken=broken),
        retried=broken or expired or retried,
        unsettled=broken or (not without_effect and (retried or answer.status >= 500)),
        retry_after=parse_retry_after(answer.headers.get("retry-after", "")),
        at_once=expired,
    )


def _error(place: Place, request: Request, answer: Answer, fault: Fault | None, *, broken: bool) -> S3backerError:
    key, code = request.resource, fault.code if fault else ""
    if broken:
        return messages.bad_answer(place, key, f"status {answer.status} with broken XML")
    if request.conditional:
        gone = request.writes and code == "NoSuchKey"
        if answer.status == 412 or code == "PreconditionFailed" or gone:
            return PreconditionFailed(key)
        if answer.status == 501 or code == "NotImplemented":
            return messages.no_conditions(place, key)
    if request.kind == "delete" and answer.status == 404 and not answer.body:
        return ObjectNotFound(key)
    return messages.explain_fault(place, key, answer, fault)
