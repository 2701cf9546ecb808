"""What an S3 server answers, parsed without trust.

XML goes through expat into a tree, all of it in C: boto3 takes 75 ms for a listing of 1000 keys. A document type
declaration is refused, so there are no entities to expand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Set
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from operator import itemgetter
from urllib.parse import unquote_plus
from xml.etree.ElementTree import Element, ParseError, fromstring
from xml.sax.saxutils import escape

from s3backer.s3.http1 import Answer
from s3backer.stores.base import ListEntry, ListPage, ObjectInfo

#: What XML would otherwise read as a newline or a blank.
_LINE_ENDS = {"\r": "&#13;", "\n": "&#10;", "\t": "&#9;"}
_NOT_XML = re.compile("[^\\t\\n\\r\x20-\\ud7ff\\ue000-\\ufffd\U00010000-\U0010ffff]")
_META = "x-amz-meta-"
_RANGE = re.compile("bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})")
_UNSATISFIED = re.compile(r"bytes \*/([0-9]{1,19})")
#: Bytes that an error document has at most.
_FAULT = 1 << 16


class BadAnswer(Exception):
    """The answer is not what S3 says in reply to this request."""


@dataclass(frozen=True, slots=True)
class Fault:
    """An error document. ``region`` is where the bucket is, if the server says so."""

    code: str
    message: str = ""
    region: str = ""


def _document(body: bytes) -> Element:
    """Return the root of a document; BadAnswer if it is none, or says what its own names mean."""
    if b"<!DOCTYPE" in body or b"\0" in body:  # the latter in encodings that hide the former
        raise BadAnswer("XML with a document type declaration, or in UTF-16")
    try:
        return fromstring(body.lstrip())  # noqa: S314 - without a document type there is nothing to expand or to fetch
    except (ParseError, LookupError, ValueError) as error:  # the latter two for its encoding
        raise BadAnswer(f"no valid XML: {error}") from None


def _named(root: Element, name: str) -> str | None:
    """Return the namespace of a root of this name, as it stands before its tag and those below; None for another."""
    space, _, local = root.tag.rpartition("}")
    return None if local != name else f"{space}}}" if space else ""


def parse_fault(body: bytes) -> Fault | None:
    """Return what an error document says, None if the body is none (HTML, text, nothing)."""
    try:
        root = _document(body)
    except BadAnswer:
        return None
    space = _named(root, "Error")
    if space is None or not root.findtext(f"{space}Code"):
        return None
    code, message, region = (printable(root.findtext(f"{space}{name}", "")) for name in ("Code", "Message", "Region"))
    return Fault(code, message, region)


def unmasked(answer: Answer) -> Answer:
    """Return an answer to a POST with the status that it should have.

    S3 may say 200 before it knows how putting parts together ends, send blanks meanwhile, and an error after them.
    Source: the description of CompleteMultipartUpload in Amazon's S3 API reference.
    """
    fault = parse_fault(answer.body) if answer.status == 200 else None
    if fault is None:
        return answer
    return replace(answer, status={"PreconditionFailed": 412, "AccessDenied": 403}.get(fault.code, 400))


def is_xml(answer: Answer) -> bool:
    """Return whether an answer claims to be a document of S3."""
    return answer.body.startswith(b"<?xml") or (bool(answer.body) and "/xml" in answer.headers.get("content-type", ""))


def is_from_s3(answer: Answer) -> bool:
    """Return whether an answer comes from an S3 server, and not from something on the way to it."""
    return any(name.startswith("x-amz-") for name in answer.headers) or parse_fault(answer.body[:_FAULT]) is not None


def parse_list(body: bytes, prefix: str, start_after: str) -> ListPage:
    """Return a page of ListObjectsV2 with ``encoding-type=url``; BadAnswer if it is none, or another's."""
    root = _document(body)
    space = _named(root, "ListBucketResult")
    if space is None:
        raise BadAnswer(f"a document {printable(root.tag)!r} in place of a listing")
    encoded = root.findtext(f"{space}EncodingType") == "url"
    key_tag, size_tag, etag_tag = f"{space}Key", f"{space}Size", f"{space}ETag"
    found = []
    for item in root.iterfind(f"{space}Contents"):
        key, size = item.findtext(key_tag), item.findtext(size_tag, "")
        if key is None or not (size.isascii() and size.isdecimal()):
            raise BadAnswer("an entry without key or size")
        if encoded and ("%" in key or "+" in key):
            key = unquote_plus(key, errors="replace")
        found.append(
            (key.encode(errors="replace"), ListEntry(key, int(size), quoted_etag(item.findtext(etag_tag, ""))))
        )
    truncated = root.findtext(f"{space}IsTruncated", "").strip() == "true"
    if truncated and not found:
        raise BadAnswer("a truncated listing without entries")
    if not truncated and not start_after:
        # SeaweedFS takes "a/b" for less than "a-b". Where nothing is left out that does no harm.
        found.sort(key=itemgetter(0))
    start, last = prefix.encode(), start_after.encode()
    for name, _ in found:
        if not name.startswith(start) or (start_after and name <= start_after.encode()):
            raise BadAnswer("keys that were not asked for")
        if name <= last:
            raise BadAnswer("keys out of order, so that the listing cannot be continued")
        last = name
    return ListPage(tuple(entry for _, entry in found), truncated)


def parse_deleted(body: bytes, keys: Set[str]) -> dict[str, Fault]:
    """Return which of the keys were not deleted and why; BadAnswer if it is no answer to that request."""
    root = _document(body)
    space = _named(root, "DeleteResult")
    if space is None:
        raise BadAnswer(f"a document {printable(root.tag)!r} in place of a result")
    faults = {}
    for item in root.iterfind(f"{space}Error"):
        key, code, message = (item.findtext(f"{space}{name}", "") for name in ("Key", "Code", "Message"))
        faults[key] = Fault(printable(code), printable(message))
    if not faults.keys() <= keys:
        raise BadAnswer("keys that were not to be deleted")
    return faults


def parse_upload(body: bytes) -> str:
    """Return the id of an upload that has been begun; BadAnswer if it does not say."""
    return _said(body, "InitiateMultipartUploadResult", "UploadId")


def parse_completed(body: bytes) -> str:
    """Return the ETag of an object whose parts have been put together; BadAnswer if it does not say."""
    return quoted_etag(_said(body, "CompleteMultipartUploadResult", "ETag"))


def _said(body: bytes, document: str, name: str) -> str:
    root = _document(body)
    space = _named(root, document)
    if space is None:
        raise BadAnswer(f"a document {printable(root.tag)!r} in place of {document}")
    text = root.findtext(f"{space}{name}", "").strip()
    if not text:
        raise BadAnswer(f"no {name}")
    return text


def completion(parts: Iterable[tuple[str, str]]) -> bytes:
    """Return the document that puts parts together, given the ETag and the CRC-64/NVME of each in order."""
    listed = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag>"
        f"<ChecksumCRC64NVME>{crc}</ChecksumCRC64NVME></Part>"
        for number, (etag, crc) in enumerate(parts, 1)
    )
    return f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()


def parse_range(answer: Answer) -> tuple[int, int, int]:
    """Return (first byte, bytes, bytes of the whole object) of a 206; BadAnswer if it does not say, or not clearly."""
    found = _RANGE.fullmatch(answer.headers.get("content-range", ""))
    if found is None:
        raise BadAnswer("it does not say which range of the object it is")
    first, last, size = map(int, found.groups())
    return first, last - first + 1, size


def size_past(answer: Answer) -> int | None:
    """Return the size in bytes of an object that has nothing of a range (416), None if the answer does not say."""
    found = _UNSATISFIED.fullmatch(answer.headers.get("content-range", ""))
    return int(found[1]) if found else None


def deletion(keys: Iterable[str]) -> bytes:
    """Return the document that asks for the deletion of these keys, all of which XML can carry."""
    objects = "".join(f"<Object><Key>{escape(key, _LINE_ENDS)}</Key></Object>" for key in keys)
    return f"<Delete><Quiet>true</Quiet>{objects}</Delete>".encode()


def fits_xml(key: str) -> bool:
    """Return whether XML can carry a key."""
    return _NOT_XML.search(key) is None


def object_info(key: str, answer: Answer, size: int) -> ObjectInfo:
    """Return the facts in the headers of a GET or HEAD."""
    headers = answer.headers
    return ObjectInfo(
        key,
        size,
        quoted_etag(headers.get("etag", "")),
        headers.get("content-type", ""),
        headers.get("content-encoding", ""),
        {name[len(_META) :]: value for name, value in headers.items() if name.startswith(_META)},
    )


def quoted_etag(etag: str) -> str:
    """Return an ETag in the form of RFC 9110: some servers leave out the quotes here or there."""
    return etag if not etag or etag.endswith('"') else f'"{etag}"'


def server_time(answer: Answer) -> float | None:
    """Return the server's clock in seconds since 1970, if it tells."""
    try:
        return parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def printable(text: str) -> str:
    """Return a server's words fit for a message on a terminal."""
    return "".join(c if c.isprintable() else " " for c in text).strip()[:200]
