"""What a check finds: kinds, and what each means for the disk.

A *problem* makes the check fail: the disk cannot be read there, or shows something else than what was stored. A *note*
is told and harmless.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self

from s3backer.telemetry.requests import RequestCount


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of finding. ``means``: for the disk, with ``{place}`` for the bytes of the block."""

    problem: bool
    means: str


_EIO = "Reading {place} is an I/O error, and so is writing a part of them; writing all of them replaces the object."
KINDS = {
    "altered": Kind(True, _EIO),
    "signature": Kind(True, _EIO),
    "compression": Kind(True, _EIO),
    "length": Kind(True, _EIO),
    "encoding": Kind(True, _EIO),
    "unreadable": Kind(True, "Reading {place} is an I/O error as long as the store does not give the object."),
    "vanished": Kind(True, "Reading {place} is an I/O error while the listing has the object, and zeros after that."),
    "metadata": Kind(True, "The volume is opened with another size than it has, or not at all."),
    "no-first-block": Kind(
        True,
        "{place} read as zeros, and the volume is opened only with its size and block size. "
        "The C program leaves it so where they are zeros; otherwise their data is lost.",
    ),
    "beyond-end": Kind(True, "It lies behind the end of the disk. A larger size would show it."),
    "misnamed": Kind(True, "Nothing reads it, whatever it holds."),
    "unfinished-copy": Kind(True, "Nothing mounts it before the copy is complete."),
    "no-metadata": Kind(False, "The volume is opened only with its size and block size."),
    "zeros": Kind(False, "{place} read as zeros, as without the object, which only costs its storage."),
    "foreign": Kind(False, "It is ignored."),
    "mounted": Kind(False, "Blocks may be written and removed while they are checked."),
    "changed": Kind(False, "Somebody writes to the volume. What was checked before that may have changed too."),
}
#: Of each kind of note so many are told one by one; the others are counted. Problems are all told.
MOST_NOTES = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found. ``block`` None: it is no block's; ``key`` empty: it is about the volume.

    ``etag``: of the object that was judged, empty where it is not known.
    """

    kind: str
    key: str
    what: str
    block: int | None = None
    etag: str = ""

    @property
    def problem(self) -> bool:
        """Whether it makes the check fail."""
        return KINDS[self.kind].problem

    def means(self, block_size: int) -> str:
        """Return what it means for the disk."""
        start = (self.block or 0) * block_size
        return KINDS[self.kind].means.format(place=f"bytes {start} to {start + block_size - 1} of the disk")

    def facts(self, block_size: int) -> dict[str, Any]:
        """Return it as JSON has it."""
        found = {"kind": self.kind, "problem": self.problem, "key": self.key, "what": self.what}
        if self.block is not None:
            found |= {"block": self.block, "offset": self.block * block_size}
        return {**found, "means": self.means(block_size)}


#: By what blocks were verified, strongest first: in ``Counts.verified`` each block stands once.
MEANS = {
    "hmac": "their signatures",
    "checksum": "the server's checksums",
    "md5": "the MD5 in their ETags",
    "adler32": "deflate's own checksums",
    "nothing": "nothing",
}


@dataclass(slots=True)
class Counts:
    """What was counted. ``objects``: blocks that were read; ``stored``: their bytes in the store.

    ``verified``: sound blocks by the names of ``MEANS``; ``encodings``: by their Content-Encoding; ``kinds``: findings.
    ``requests`` by kind of request: how many, bytes sent, bytes received.
    """

    objects: int = 0
    stored: int = 0
    verified: Counter[str] = field(default_factory=Counter)
    encodings: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    requests: dict[str, list[int]] = field(default_factory=dict)

    @property
    def problems(self) -> int:
        """Findings that make the check fail."""
        return sum(count for kind, count in self.kinds.items() if KINDS[kind].problem)

    def request_counts(self) -> dict[str, RequestCount]:
        """Return the requests as a price table takes them."""
        return {
            kind: RequestCount(requests=requests, bytes_sent=sent, bytes_received=received)
            for kind, (requests, sent, received) in self.requests.items()
        }

    def facts(self) -> dict[str, Any]:
        """Return it for JSON and for ``parse``."""
        return {
            "objects": self.objects,
            "stored": self.stored,
            "verified": dict(self.verified),
            "encodings": dict(self.encodings),
            "kinds": dict(self.kinds),
            "requests": self.requests,
        }

    @classmethod
    def parse(cls, found: dict[str, Any]) -> Self:
        """Return what ``facts`` gave; ValueError or another of Python's errors for anything else."""
        counters = {name: Counter(found[name]) for name in ("verified", "encodings", "kinds")}
        return cls(int(found["objects"]), int(found["stored"]), **counters, requests=dict(found["requests"]))
