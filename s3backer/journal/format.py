"""The journal's files, version 1.

    STATE/journals/ID/lock              empty; locked with flock by who uses the directory
    STATE/journals/ID/00000001.journal  files of one fixed size, numbered in the order in which they are used
    STATE/journals/ID/NAME.spare        being prepared; means nothing

    file     ┌ header, one page of 4096 bytes ┬ record ┬ record ┬ … ┬ zeros, or remains of an earlier use ┐

    header   all little-endian                            record   64 bytes, then its payload, then zeros to 8 bytes
    0     8s  magic "s3b-jrnl"                            0    u32  magic 6b72a3c5
    8    u32  version: 1                                  4    u32  kind
    12   u32  incompatible features (unknown: refuse)     8    u64  number: 1, 2, 3 … through all files
    16   u32  compatible features (unknown: ignore)       16   u64  sequence of the write, or of the block's state
    20   u32  block size in bytes                         24   u64  durable: highest number known to be on the disk
    24   u64  file number, that of its name               32   u64  offset on the volume, in bytes
    32   u64  file size in bytes                          40   u64  length in bytes, on the volume or of the payload
    40   16s  salt, random                                48   u64  position of this record in its file
    56   16s  session id                                  56   u32  CRC-32C of the payload  ┐ both begin with the
    72   32s  volume id                                   60   u32  CRC-32C of bytes 0–59   ┘ CRC-32C of the salt
    104  u32  mount token
    108  u32  length of the URL
    112  u64  seconds since 1970 when it was made
    120  16s  check value of the key, zeros where nothing is encrypted
    136  …    the volume's URL, UTF-8, for messages; then zeros
    4092 u32  CRC-32C of all before it

    kind        offset    length     payload
    1 START     oldest    0          –            the first record of each file in use; sequence: the last write's
    2 DATA      bytes     bytes      the bytes    within one block; encrypted: and 16 bytes of tag
    3 ZEROS     bytes     bytes      –            any number of blocks
                                                  both also once more, in place of all that stands before of the block:
                                                  as of its last write, so that sequences need not ascend
    4 INTENT    block's   payload    two texts    a PUT or DELETE begins: its condition, its checksum
    5 DONE      block's   payload    a text       the bucket holds the block up to ``sequence``: the ETag, empty: absent
    6 MARK      oldest    0          –            says what is durable; sequence: the last write's

    oldest      number of the oldest file that is needed, 0: not said

    text        u16 length, bytes (UTF-8)

Encrypted (incompatible feature 1): DATA payloads are AES-256-GCM, key HKDF-SHA256(the volume's key, salt, "s3backer
journal"), nonce the number as 12 bytes, big-endian, associated data bytes 0–55 of the record; the CRC is over what
stands in the file.

Why it can be read back
  * A header is on the disk before its file gets its name, so that a bad one is damage. All else is judged by
    ``durable``: a bad record with a good one behind it which says that the bad one was durable is damage; without such
    a witness it is a write that never finished, and the journal ends before it.
  * A file that is used again gets a new salt, which no former record fits: of the same bytes, CRCs that begin
    differently end differently. And its records have higher numbers than all before them.
  * After a cut the next session begins a new file with the number at which the former was cut. Where a file does not go
    on and another begins with the expected number, that one follows.
  * A file is given up only when a record on the disk names a younger one as the oldest that is needed. So one that the
    last such record names, or the first record of the oldest one, must be there. Nothing tells that the youngest
    files, from some file on, are missing: their records may never have been written.
  * A sector is taken to be written as a whole or not at all: a page that holds the end of the journal is written again
    with the same beginning.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from s3backer._checksum import crc32c
from s3backer.stores.base import Buffer

MAGIC = b"s3b-jrnl"
VERSION = 1
PAGE = 4096
RECORD_BYTES = 64
RECORD_MAGIC = 0x6B72A3C5
START, DATA, ZEROS, INTENT, DONE, MARK = range(1, 7)
#: Incompatible features.
ENCRYPTED = 1
KNOWN_FEATURES = ENCRYPTED
TAG_BYTES = 16
#: Bytes of a record that are authenticated with its encrypted data.
AUTHENTICATED_BYTES = 56
#: Bytes of a note's payload: INTENT and DONE.
LARGEST_NOTE = 4096
_HEADER = struct.Struct("<8s4I2Q16s16s32s2IQ16s")
_RECORD = struct.Struct("<2I6Q2I")
_TEXT = struct.Struct("<H")
_LONGEST_URL = PAGE - _HEADER.size - 4


@dataclass(frozen=True, slots=True)
class Header:
    """What a file's header says. ``number`` and ``size`` (bytes) are the file's."""

    block_size: int
    number: int
    size: int
    salt: bytes
    session: bytes
    volume: bytes
    token: int
    url: str
    created: int
    features: int = 0
    key_check: bytes = bytes(16)

    @property
    def encrypted(self) -> bool:
        """Whether the data in its records is encrypted."""
        return bool(self.features & ENCRYPTED)

    @property
    def seed(self) -> int:
        """What the CRCs of its records begin with."""
        return crc32c(self.salt)

    def pack(self) -> bytes:
        """Return the page."""
        url = self.url.encode("utf-8", "replace")[:_LONGEST_URL]
        fields = _HEADER.pack(
            *(MAGIC, VERSION, self.features, 0, self.block_size, self.number, self.size, self.salt, self.session),
            *(self.volume, self.token, len(url), self.created, self.key_check),
        )
        page = (fields + url).ljust(PAGE - 4, b"\0")
        return page + crc32c(page).to_bytes(4, "little")


class HeaderError(ValueError):
    """A page that is no header of ours, or one that cannot be used; its text says why."""


class NewerFormat(HeaderError):
    """It was written by a newer version."""


def unpack_header(page: bytes) -> Header:
    """Return what a page says; HeaderError unless it is a whole header whose every byte is right."""
    if len(page) < PAGE or page[:8] != MAGIC:
        raise HeaderError("does not begin like one")
    _, version, features, _, block_size, number, size, salt, session, volume, token, length, created, check = (
        _HEADER.unpack_from(page)
    )
    if crc32c(page[: PAGE - 4]) != int.from_bytes(page[PAGE - 4 : PAGE], "little"):
        raise HeaderError("has a damaged header")
    if version != VERSION:
        raise NewerFormat(f"has format version {version}; this program knows {VERSION}")
    if features & ~KNOWN_FEATURES:
        raise NewerFormat(f"uses features {features & ~KNOWN_FEATURES:#x}, which this program does not know")
    if block_size < 512 or block_size & (block_size - 1) or length > _LONGEST_URL:
        raise HeaderError("has a header with impossible sizes")
    url = page[_HEADER.size : _HEADER.size + length].decode("utf-8", "replace")
    return Header(block_size, number, size, salt, session, volume, token, url, created, features, check)


#: The facts of one record: the fields of a Record.
Facts = tuple[int, int, int, int, int, int, int]


class Record(NamedTuple):
    """The facts of one record. ``offset`` and ``length`` in bytes; ``position`` is that in its file."""

    position: int
    kind: int
    number: int
    sequence: int
    durable: int
    offset: int
    length: int

    def stored_length(self, encrypted: bool) -> int:
        """Return the bytes of its payload in the file."""
        return stored_length(self.kind, self.length, encrypted)


def unpack_record(raw: bytes) -> Record:
    """Return the facts of a record whose CRC was right."""
    _, kind, number, sequence, durable, offset, length, position, _, _ = _RECORD.unpack(raw)
    return Record(position, kind, number, sequence, durable, offset, length)


def stored_length(kind: int, length: int, encrypted: bool) -> int:
    """Return the bytes of a payload in the file."""
    if kind == ZEROS:
        return 0
    return length + TAG_BYTES if kind == DATA and encrypted else length


def pack_texts(*texts: bytes) -> bytes:
    """Return the payload of a note; ValueError if it is too long."""
    payload = b"".join(_TEXT.pack(len(text)) + text for text in texts if len(text) <= LARGEST_NOTE)
    if len(payload) != sum(2 + len(text) for text in texts) or len(payload) > LARGEST_NOTE:
        raise ValueError(f"a note has at most {LARGEST_NOTE} bytes")
    return payload


def unpack_texts(payload: Buffer, count: int) -> list[bytes]:
    """Return the texts of a note's payload; ValueError if there are not so many."""
    texts, at = [], 0
    raw = bytes(payload)
    for _ in range(count):
        try:
            (length,) = _TEXT.unpack_from(raw, at)
        except struct.error:
            raise ValueError("a note is too short") from None
        texts.append(raw[at + 2 : at + 2 + length])
        at += 2 + length
    if at != len(raw):
        raise ValueError("a note has not the length it says")
    return texts
