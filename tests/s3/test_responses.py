"""What servers answer: the documents of several servers, and anything else."""

from __future__ import annotations

from xml.etree import ElementTree
from xml.sax.saxutils import escape

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from s3backer.s3.checksums import md5_of_etag
from s3backer.s3.http1 import Answer
from s3backer.s3.responses import (
    BadAnswer,
    Fault,
    deletion,
    fits_xml,
    object_info,
    parse_deleted,
    parse_fault,
    parse_list,
    printable,
    quoted_etag,
    server_time,
)

MD5 = "0cc175b9c0f1b6a831c399e269772661"


def listing(*keys: str, truncated: bool = False, size: str = "1", extra: str = "") -> bytes:
    contents = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        f"<ETag>&quot;{MD5}&quot;</ETag><Size>{size}</Size><Owner><ID>Key</ID></Owner></Contents>"
        for key in keys
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>b</Name><IsTruncated>{str(truncated).lower()}</IsTruncated>{extra}{contents}</ListBucketResult>"
    ).encode()


def answer(**headers: str) -> Answer:
    return Answer(200, {name.replace("_", "-").lower(): value for name, value in headers.items()}, b"")


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────


def test_an_error_document():
    text = (
        b'<?xml version="1.0"?><Error><Code> NoSuchKey\n</Code><Message>The key\ndoes not exist</Message>'
        b"<Key>Code</Key><Inner><Code>Other</Code></Inner><Region>eu-central-1</Region></Error>"
    )
    assert parse_fault(text) == Fault("NoSuchKey", "The key does not exist", "eu-central-1")


def test_an_error_document_with_a_namespace():
    text = b'<Error xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Code>X</Code></Error>'
    assert parse_fault(text) == Fault("X")


def test_what_a_server_says_cannot_write_on_the_terminal():
    fault = parse_fault("<Error><Code>A\u009b31mB</Code><Message>x\u202ey</Message></Error>".encode())
    assert fault == Fault("A 31mB", "x y")
    assert len(printable("x" * 1000)) == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><body>403 Forbidden</body></html>",
        b"<!DOCTYPE html><html></html>",
        b"<Error></Error>",
        b"<Error><Code></Code></Error>",
        b"<Error><Code>NoSuchKey</Code>",
        b"not xml",
        b"<Other><Code>NoSuchKey</Code></Other>",
        b'<!DOCTYPE e [<!ENTITY a "NoSuchKey">]><Error><Code>&a;</Code></Error>',
        b"<Error>" + b"<a>" * 100_000,
        b"\xff\xfe\x00",
    ],
)
def test_what_is_no_error_document(body):
    assert parse_fault(body) is None


# ── listings ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_listing():
    page = parse_list(listing("p/1", "p/2", truncated=True, size="42"), "p/", "p/0")
    assert [(e.key, e.size, e.etag) for e in page.entries] == [("p/1", 42, f'"{MD5}"'), ("p/2", 42, f'"{MD5}"')]
    assert page.truncated


def test_an_empty_listing():
    page = parse_list(listing(), "p/", "")
    assert (page.entries, page.truncated) == ((), False)


@pytest.mark.parametrize("sent", ["a%20b%2Bc%25", "a+b%2Bc%25"])
def test_encoded_keys(sent):
    found = parse_list(listing(sent, extra="<EncodingType>url</EncodingType>"), "", "")
    assert [entry.key for entry in found.entries] == ["a b+c%"]


def test_keys_without_encoding_are_as_they_are():
    keys = ["a+b%20c", "q&<>"]
    found = parse_list(listing(*map(escape, keys)), "", "")
    assert [entry.key for entry in found.entries] == keys


def test_etags_without_quotes_get_them():
    body = listing("a").replace(b"&quot;", b"")
    assert parse_list(body, "", "").entries[0].etag == f'"{MD5}"'
    assert [quoted_etag(e) for e in ("", "x", '"x"', 'W/"x"')] == ["", '"x"', '"x"', 'W/"x"']


def test_a_whole_listing_may_come_in_any_order():
    found = parse_list(listing("a/b", "a-b"), "", "")
    assert [entry.key for entry in found.entries] == ["a-b", "a/b"]


@pytest.mark.parametrize(
    ("body", "after", "problem"),
    [
        (b"<html></html>", "", "'html' in place of a listing"),
        (b"", "", "no valid XML"),
        (listing("p/1")[:-9], "", "no valid XML"),
        (b"<!DOCTYPE x>" + listing().partition(b"?>")[2], "", "document type"),
        (listing("p/2", "p/1", truncated=True), "", "out of order"),
        (listing("p/3", "p/2"), "p/1", "out of order"),
        (listing("p/1", "p/1"), "", "out of order"),
        (listing("p/1", "q"), "", "not asked for"),
        (listing("p/1"), "p/1", "not asked for"),
        (listing("p/1"), "p/2", "not asked for"),
        (listing(truncated=True), "", "without entries"),
        (listing("p/1", size=""), "", "without key or size"),
        (listing("p/1", size="x"), "", "without key or size"),
        (listing("p/1").replace(b"Key>", b"Kex>"), "", "without key or size"),
        (b"<ListBucketResult>" + b"<a>" * 100_000, "", "no valid XML"),
    ],
)
def test_what_is_no_listing(body, after, problem):
    with pytest.raises(BadAnswer, match=problem):
        parse_list(body, "p/", after)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_document_is_parsed_or_refused(data):
    body = bytearray(listing("p/1", "p/2", extra="<EncodingType>url</EncodingType>"))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(body)))
        stop = data.draw(st.integers(start, min(len(body), start + 30)))
        body[start:stop] = data.draw(st.binary(max_size=8))
    parse_fault(bytes(body))
    try:
        page = parse_list(bytes(body), "p/", "")
    except BadAnswer:
        return
    assert all(entry.key.startswith("p/") for entry in page.entries)


# ── deleting many ────────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(fits_xml), max_size=10))
def test_every_key_that_xml_can_carry_arrives(keys):
    found = ElementTree.fromstring(deletion(keys))
    assert [element.findtext("Key") for element in found.findall("Object")] == keys
    assert found.findtext("Quiet") == "true"


@pytest.mark.parametrize("key", ["\x01", "a\x1f", "\ufffe", "a\x0b"])
def test_keys_that_xml_cannot_carry(key):
    assert not fits_xml(key)


def test_what_was_not_deleted():
    text = (
        "<DeleteResult><Error><Key>a&amp;b</Key><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>"
    )
    assert parse_deleted(text.encode(), {"a&b", "c"}) == {"a&b": Fault("AccessDenied", "no")}
    assert parse_deleted(b"<DeleteResult/>", {"c"}) == {}
    for body in (b"", b"<html/>", b"<DeleteResult><Error><Key>x</Key></Error></DeleteResult>", b"<DeleteResult>"):
        with pytest.raises(BadAnswer):
            parse_deleted(body, {"c"})


# ── headers ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_facts_of_an_object():
    headers = {
        "etag": "x",
        "content-type": "t",
        "content-encoding": "e",
        "x-amz-meta-s3backer-size": "1",
        "x-amz-meta-b": "2",
    }
    info = object_info("k", Answer(200, headers, b""), 7)
    assert (info.key, info.size, info.etag, info.content_type, info.content_encoding) == ("k", 7, '"x"', "t", "e")
    assert info.metadata == {"s3backer-size": "1", "b": "2"}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (answer(ETag=f'"{MD5}"'), MD5),
        (answer(ETag=MD5), MD5),
        (answer(ETag=f'"{MD5}"', x_amz_server_side_encryption="AES256"), MD5),
        (answer(ETag=f'"{MD5}"', x_amz_server_side_encryption="aws:kms"), None),
        (answer(ETag=f'"{MD5}"', x_amz_server_side_encryption="aws:kms:dsse"), None),
        (answer(ETag=f'"{MD5}"', x_amz_server_side_encryption_customer_algorithm="AES256"), None),
        (answer(ETag=f'"{MD5}-2"'), None),
        (answer(ETag=f'"{MD5[:-1]}g"'), None),
        (answer(ETag=f'"{MD5[:-1]}"'), None),
        (answer(), None),
    ],
)
def test_which_etags_may_be_md5s(found, expected):
    assert md5_of_etag(found) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Thu, 01 Jan 1970 00:01:00 GMT", 60.0),
        ("", None),
        ("yesterday", None),
        ("Thu, 99 Jan 1970 00:01:00 GMT", None),
        ("Thu, 01 Jan 1970 00:01:00 +99999999999999999", None),
        ("Thu, 01 Jan 1970 99999999999999999999:01:00 GMT", None),
    ],
)
def test_the_clock_of_the_server(text, expected):
    assert server_time(answer(Date=text)) == expected
    assert server_time(answer()) is None


def test_a_document_however_deep_does_no_harm():
    depth = 200_000
    with pytest.raises(BadAnswer, match="in place of a listing"):
        parse_list(b"<a>" * depth + b"</a>" * depth, "", "")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_a_document_type_is_not_hidden_by_an_encoding(encoding):
    text = "<!DOCTYPE x [<!ENTITY a 'b'>]><ListBucketResult>&a;</ListBucketResult>"
    with pytest.raises(BadAnswer, match="document type"):
        parse_list(text.encode(encoding), "", "")
