"""The state of a check: a file by which one that was interrupted goes on.

    s3backer-check VERSION INCOMPATIBLE COMPATIBLE       decimal, then two hex feature words
    CRC8 JSON                                            one line a record; CRC8 is the CRC-32C of the JSON in hex
      {"about": {…}, "begun": TIME, "objects": N}        the first: the volume and how it is checked
      {"found": [KIND, KEY, WHAT, BLOCK, ETAG]}
      {"done": KEY, "counts": {…}}                       everything up to this key is checked and told above
      {"end": TIME}                                      and there is nothing after it

Guarantees
  * Records are only appended. What follows the last "done" or "end" that can be read, or is torn, is cut off when a
    check goes on, and checked again: interrupted at any point, the findings are those of a check that was not.
  * One process at a time has the file (flock). It is 0600, in a directory that is made 0700; no link is followed.
  * Memory: one line. Findings are read from the file when they are told.

Times are UTC, YYYYMMDDTHHMMSSZ. Where no file can be made, a nameless one takes its place, which ends with the process.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from s3backer import _checksum
from s3backer.checking.findings import KINDS, Counts, Finding
from s3backer.errors import S3backerError, UsageError, VolumeInUse
from s3backer.units import exact_size

_VERSION = 1
_FIRST_LINE = re.compile(rb"s3backer-check ([0-9]{1,9}) ([0-9a-f]{1,16}) ([0-9a-f]{1,16})\n")
#: Bytes of the longest record that is believed: keys have 1 KiB, what is said of them not much more.
_LONGEST = 1 << 16
_ANEW = "Leave out --resume to begin anew."
#: What the interrupted check was about, in words: as it was, and as it is asked for now.
_WORDS = {
    "place": "was of {}, not of {}",
    "said": "was of a volume whose first block said {}, not {}",
    "size": "was of a volume of {}, not {}",
    "block_size": "was of a volume with blocks of {}, not {}",
    "block_hash_prefix": "was of a volume with hashed keys: {}, not {}",
    "encoding": "took objects that do not say it for {!r}, not for {!r}",
    "cipher": "was of a volume encrypted with {!r}, not {!r}",
    "password_check": "was made with another password, or without one",
}

log = logging.getLogger(__name__)


def now() -> str:
    """Return the time as the state and reports have it."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


class CheckState:
    """An open state file. A context manager that closes it; ``about`` has the names of ``_WORDS``.

    ``resume``: go on with what is there, if it is a check that did not end, or ``ended_too``. Raises UsageError where
    that is another check, VolumeInUse where another process has it.
    ``after``: the key up to which everything is checked. ``ended``: when the check was complete, None before that.
    """

    def __init__(self, path: Path | None, about: dict[str, Any], *, resume: bool, ended_too: bool = False) -> None:
        self.path = path
        self.begun, self.after = "", ""
        #: How many objects there are to check; None until ``expect``.
        self.objects: int | None = None
        self.ended: str | None = None
        self.counts = Counts()
        self._about = about
        self._waiting: list[bytes] = []
        self._file = self._open()
        try:
            if not (resume and self._load() and (self.ended is None or ended_too)):
                self._begin()
        except BaseException:
            self._file.close()
            raise

    # ── opening ──────────────────────────────────────────────────────────────────────────────────────

    def _open(self) -> BinaryIO:
        if self.path is not None:
            try:
                self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                return self._open_locked(self.path)
            except OSError as error:
                log.warning("this check cannot be resumed if it is interrupted: %s: %s", self.path, error.strerror)
                self.path = None
        return tempfile.TemporaryFile()

    def _open_locked(self, path: Path) -> BinaryIO:
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = os.fdopen(os.open(path, flags, 0o600), "r+b")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Whoever was first removes the file when it is done.
                if os.fstat(file.fileno()).st_nlink:
                    os.fchmod(file.fileno(), 0o600)
                    return file
            except BlockingIOError:
                file.close()
                raise VolumeInUse(
                    f"{self._about['place']} is being checked by another process of this host",
                    hint="Wait until it is done.",
                ) from None
            except BaseException:
                file.close()
                raise
            file.close()

    def _begin(self) -> None:
        self.begun, self.objects, self.after, self.ended = now(), None, "", None
        self.counts = Counts()
        self._file.seek(0)
        self._file.truncate()
        self._end = self._write(f"s3backer-check {_VERSION} 0 0\n".encode())
        self._findings = self._end

    def expect(self, objects: int) -> None:
        """Write down what is to be checked, once it is known how many objects that are."""
        self.objects = objects
        self._append([_line({"about": self._about, "begun": self.begun, "objects": objects})])
        self._findings = self._end

    def _load(self) -> bool:
        """Read what a former check has left; False where there is nothing. Raises UsageError where it is another's."""
        first = self._file.readline(_LONGEST)
        if not first:
            return False
        match = _FIRST_LINE.fullmatch(first)
        if match is None:
            raise UsageError(f"{self.path} is no state of a check", hint=_ANEW)
        if int(match[1]) != _VERSION or int(match[2], 16):
            raise UsageError(f"{self.path} was written by a newer s3backer", hint=f"Use that version. {_ANEW}")
        records = self._records()
        about = next(records, (None, 0))[0]
        if not isinstance(about, dict) or not isinstance(about.get("about"), dict):
            return False
        self._require_same(about["about"])
        self._findings = self._end = self._file.tell()
        marked = False
        for record, end in records:
            if "done" in record:
                marked = True
                self.after, self.counts, self._end = record["done"], Counts.parse(record["counts"]), end
            elif "end" in record:
                self.ended, self._end = record["end"], end
        self._file.seek(self._end)
        self._file.truncate()
        self.begun, self.objects = str(about["begun"]), int(about["objects"])
        return marked

    def _records(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield the records from here on with the offsets of their ends, as far as they can be read."""
        while (line := self._file.readline(_LONGEST)).endswith(b"\n"):
            crc, _, text = line[:-1].partition(b" ")
            if crc != _crc(text):
                return
            yield json.loads(text), self._file.tell()

    def _require_same(self, former: dict[str, Any]) -> None:
        for name, words in _WORDS.items():
            mine, other = former.get(name), self._about[name]
            if mine != other:
                said = (exact_size(int(mine or 0)), exact_size(other)) if name.endswith("size") else (mine, other)
                raise UsageError(f"the interrupted check {words.format(*said)}", hint=_ANEW)

    # ── while it runs ────────────────────────────────────────────────────────────────────────────────

    def found(self, finding: Finding) -> None:
        """Keep a finding; it is in the file with the next ``mark``."""
        record = [finding.kind, finding.key, finding.what, finding.block, finding.etag]
        self._waiting.append(_line({"found": record}))

    def mark(self, after: str) -> None:
        """Write down that everything up to a key is checked, counted and found."""
        self.after = after
        self._append([*self._waiting, _line({"done": after, "counts": self.counts.facts()})])
        self._waiting.clear()

    def end(self) -> None:
        """Write down that the check is complete."""
        self.ended = now()
        self._append([_line({"end": self.ended})])

    def findings(self) -> Iterator[Finding]:
        """Yield what was found up to the last ``mark``, in the order of the keys."""
        self._file.seek(self._findings)
        for record, _ in self._records():
            if "found" in record:
                kind, key, what, block, etag = record["found"]
                if kind in KINDS:
                    yield Finding(kind, key, what, block, etag)

    def discard(self) -> None:
        """Remove the file: there is nothing to go on with."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            self.path = None

    def _append(self, lines: list[bytes]) -> None:
        self._file.seek(self._end)
        self._end += self._write(b"".join(lines))

    def _write(self, data: bytes) -> int:
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise S3backerError(
                f"the state of the check cannot be written to {self.path or tempfile.gettempdir()}: {error.strerror}",
                hint="Make room there, then go on with --resume.",
            ) from None
        return len(data)

    def __enter__(self) -> CheckState:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _line(record: dict[str, Any]) -> bytes:
    text = json.dumps(record).encode()
    return b"%s %s\n" % (_crc(text), text)


def _crc(text: bytes) -> bytes:
    return b"%08x" % _checksum.crc32c(text)
