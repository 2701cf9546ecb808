"""The sidecar: what a plain file cannot say about the object it holds.

    first line   s3backer-sidecar VERSION INCOMPATIBLE COMPATIBLE      decimal, then two hex feature words
    the rest     JSON {"key": …, "entries": [ENTRY, ENTRY?]}           older first
    ENTRY        {"etag": …, "content_type": …, "content_encoding": …, "metadata": {…}}

A body and its sidecar cannot be renamed in one step, so a sidecar may describe two bodies, each named by its
ETag: the one that is there and the one about to replace it. ``describe`` picks the entry of the body that is
found, the newer one where both have the same body. A body that no entry names was rewritten by a program that
knows nothing of sidecars: the newest metadata still holds for it, the content encoding does not, since such a
program writes raw blocks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from s3backer.errors import CorruptObject, StoreError

MAX_BYTES = 1 << 20
#: What a file without a sidecar is.
PLAIN_CONTENT_TYPE = "application/x-s3backer-block"
_VERSION = 1
_FIRST_LINE = re.compile(rb"s3backer-sidecar ([0-9]{1,9}) ([0-9a-f]{1,16}) ([0-9a-f]{1,16})")


@dataclass(frozen=True, slots=True)
class Entry:
    """The facts of the body that has this ETag. ``recorded``: its writer wrote down the ETag."""

    etag: str
    content_type: str = PLAIN_CONTENT_TYPE
    content_encoding: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    recorded: bool = field(default=False, compare=False)

    @property
    def plain(self) -> bool:
        """True if a file without a sidecar says the same."""
        return self.content_type == PLAIN_CONTENT_TYPE and not self.content_encoding and not self.metadata


def describe(entries: Sequence[Entry], etag: str) -> Entry:
    """Return the facts of the body with this ETag, given its sidecar's entries (none: no sidecar)."""
    for entry in reversed(entries):
        if entry.etag == etag:
            return entry
    return replace(entries[-1], etag=etag, content_encoding="", recorded=False) if entries else Entry(etag)


def encode(key: str, entries: Sequence[Entry]) -> bytes:
    """Return a sidecar's bytes."""
    content = {
        "key": key,
        "entries": [
            {
                "etag": entry.etag,
                "content_type": entry.content_type,
                "content_encoding": entry.content_encoding,
                "metadata": dict(entry.metadata),
            }
            for entry in entries
        ],
    }
    return f"s3backer-sidecar {_VERSION} 0 0\n{json.dumps(content, indent=1)}\n".encode()


def decode(data: bytes, path: str, key: str) -> tuple[Entry, ...]:
    """Return a sidecar's entries; CorruptObject or StoreError naming ``path`` where it cannot be used."""
    first, _, rest = data.partition(b"\n")
    match = _FIRST_LINE.fullmatch(first)
    if match is not None and (int(match[1]) != _VERSION or int(match[2], 16)):
        raise StoreError(f"{path} was written by a newer s3backer", hint="Use that version for this volume.")
    try:
        if match is None:
            raise ValueError
        content = json.loads(rest)
        if content["key"] != key:
            raise ValueError
        entries = tuple(_entry(found) for found in content["entries"])
        if not entries:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise CorruptObject(
            f"{path} does not hold the facts of object {key!r}",
            hint="It is damaged. Removing it loses the object's metadata: for block 0 the volume's size.",
        ) from None
    return entries


def _entry(found: Mapping[str, object]) -> Entry:
    texts = [found[name] for name in ("etag", "content_type", "content_encoding")]
    metadata = found["metadata"]
    if not isinstance(metadata, dict):
        raise ValueError
    if not all(isinstance(text, str) for text in (*texts, *metadata, *metadata.values())):
        raise ValueError
    etag, content_type, content_encoding = map(str, texts)
    return Entry(etag, content_type, content_encoding, metadata, recorded=True)
