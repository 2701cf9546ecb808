"""What the user is told when S3 does not do what was asked: the cause, the name of it, and what to try."""

from __future__ import annotations

from dataclasses import dataclass

from s3backer.errors import (
    AccessDenied,
    BucketNotFound,
    ObjectNotFound,
    S3backerError,
    StoreError,
    StoreFull,
    StoreUnreachable,
    UsageError,
)
from s3backer.s3.credentials import is_region
from s3backer.s3.http1 import Answer
from s3backer.s3.responses import Fault, printable

_INSUFFICIENT_STORAGE = 507
_REDIRECTS = (301, 307, 308)
_ELSEWHERE = ("AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect")
#: What servers call it besides: MinIO (the latter for a bucket's quota), Ceph.
_FULL = frozenset({"XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where requests go, for messages."""

    bucket: str
    endpoint: str
    region: str

    def describe(self, key: str) -> str:
        """Name an object, or the bucket where the key is empty."""
        return f"s3://{self.bucket}/{key}" if key else f"s3://{self.bucket}"


def explain_fault(place: Place, key: str, answer: Answer, fault: Fault | None) -> S3backerError:
    """Return the error for an answer that is not a success. ``fault`` None: the body was no S3 error document."""
    what, where = place.describe(key), place.endpoint
    code = fault.code if fault else ""
    region = region_of(answer, fault)
    match code:
        case "NoSuchBucket":
            return BucketNotFound(
                f"there is no bucket {place.bucket!r} at {where}",
                hint="Check its name and the endpoint, or create it with 'aws s3 mb'.",
            )
        case "NoSuchKey":
            return ObjectNotFound(key)
        case "SignatureDoesNotMatch":
            return AccessDenied(
                f"{where} refuses the signature of the request for {what}",
                hint="The secret key is not the one of this access key. Check AWS_SECRET_ACCESS_KEY or the profile.",
            )
        case "InvalidAccessKeyId":
            return AccessDenied(
                f"{where} does not know this access key",
                hint="Check AWS_ACCESS_KEY_ID or the profile, and that the endpoint is the one the key is for.",
            )
        case "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired":
            return AccessDenied(
                f"the temporary credentials for {what} are not valid any more ({code})",
                hint="Get new ones, for example with 'aws sso login', or check AWS_SESSION_TOKEN.",
            )
        case "NoSuchUpload":
            return NoUpload(
                f"{where} has lost the parts of {what}",
                hint="Another program or a rule of the bucket removed them before they were put together. Try again.",
            )
        case "InvalidBucketName":
            return UsageError(f"{place.bucket!r} is no valid name of a bucket", hint="Check the URL.")
    if region or answer.status in _REDIRECTS:
        return _elsewhere(place, region)
    said = f"{answer.status} {code}" if code else f"{answer.status}"
    if fault and fault.message:
        said += f": {fault.message}"
    if answer.status == _INSUFFICIENT_STORAGE or code in _FULL or "no space left" in said.lower():
        return StoreFull(f"{where} has no room for {what} ({said})", hint="Free space there, or raise the quota.")
    if answer.status in (401, 403):
        return AccessDenied(
            f"{where} denies access to {what} ({said})",
            hint="Check that these credentials may get, put, delete and list objects of this bucket.",
        )
    if fault is None and answer.status < 500:
        kind = printable(answer.headers.get("content-type", "")) or "nothing"
        return StoreError(
            f"{where} answers {answer.status} with {kind} for {what}, not as an S3 server does",
            hint="Check that the endpoint URL is that of an S3 service and not of a web page or a proxy.",
        )
    return StoreError(f"{where} fails for {what} ({said})", hint="Try again later, or ask who runs the service.")


def region_of(answer: Answer, fault: Fault | None) -> str:
    """Return the region in which the server says the bucket is, empty if the request was not sent elsewhere."""
    if answer.status not in _REDIRECTS and (fault is None or fault.code not in _ELSEWHERE):
        return ""
    region = answer.headers.get("x-amz-bucket-region", "") or (fault.region if fault else "")
    return region if is_region(region) else ""


def clock_off(place: Place, seconds: float | None) -> AccessDenied:
    """Return the error for a clock that the server does not accept; ``seconds`` it is ahead, None if unknown."""
    off = "wrong" if seconds is None else f"off by {abs(seconds):.0f} s ({'ahead' if seconds > 0 else 'behind'})"
    return AccessDenied(
        f"the clock of this computer is {off}, and {place.endpoint} refuses its requests",
        hint="Set the clock, for example with 'timedatectl set-ntp true'.",
    )


class NoUpload(StoreError):
    """The server knows nothing of an upload in parts: it is complete already, or was aborted."""


class NoConditions(StoreError):
    """The server says that it cannot do conditional writes."""


def no_conditions(place: Place, key: str) -> NoConditions:
    """Return the error for a server that cannot do conditional writes."""
    return NoConditions(
        f"{place.endpoint} does not support conditional writes, which {place.describe(key)} needs",
        hint="Without them two writers cannot be kept apart. Use a newer version of the server, or another one.",
    )


def no_credentials(place: Place) -> AccessDenied:
    """Return the error for a request that cannot be signed."""
    return AccessDenied(
        f"no credentials found for s3://{place.bucket}",
        hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile, run 'aws configure', "
        "or access a public bucket anonymously.",
    )


def bad_answer(place: Place, key: str, problem: str) -> StoreError:
    """Return the error for an answer that makes no sense."""
    return StoreError(
        f"{place.endpoint} gave an unusable answer for {place.describe(key)}: {problem}",
        hint="Check the network, and that the endpoint is an S3 service without a proxy that changes answers.",
    )


def no_ranges(place: Place, key: str, at_most: int) -> StoreError:
    """Return the error for a server that gives all of a large object where a range of it was asked for."""
    return StoreError(
        f"{place.endpoint} answers a request for a part of {place.describe(key)} with more than {at_most} bytes",
        hint="It, or a proxy before it, ignores Range. Use another one.",
    )


def unreachable(place: Place, problem: str, hint: str) -> StoreUnreachable:
    """Return the error for a server that gave no answer."""
    return StoreUnreachable(f"{place.endpoint} cannot be reached: {problem}", hint=hint)


def _elsewhere(place: Place, region: str) -> StoreError:
    if region and region != place.region:
        return StoreError(
            f"bucket {place.bucket!r} is in region {printable(region)}, the request went to {place.region}",
            hint=f"Use --region {printable(region)}.",
        )
    return StoreError(
        f"{place.endpoint} sends requests for bucket {place.bucket!r} elsewhere",
        hint="Check --region and --endpoint-url: the bucket is served by another endpoint.",
    )
