"""Checking a volume: every object is listed, read and verified; nothing is written to the bucket.

    listing, in key order ─► a window of objects ─► threads: read, verify ─► in key order again: findings, counts, state

Guarantees
  * Whatever is under the prefix is either a sound block or a finding, and no sound block is one.
  * Findings come in the order of the keys, and what is known up to a key is in the state file, at the latest a second
    after that. Interrupted anywhere and resumed, the findings are the same.
  * An object that cannot be read does not end the check. A store that cannot be read does, and then nothing of what it
    failed to give is called unreadable: that is read again when the check is resumed.
  * A volume that is written to meanwhile gives no finding for that: what matters is the object that was read, and one
    that is gone when it should be read is none.
  * Memory is bounded by ``CheckOptions.memory``, or by one block where that is larger, and a window of keys.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from s3backer.admin import count_objects
from s3backer.checking.findings import MOST_NOTES, Counts, Finding
from s3backer.checking.objects import Examined, Examiner
from s3backer.checking.state import CheckState
from s3backer.checking.subject import Subject
from s3backer.errors import BucketNotFound, CorruptObject, ObjectNotFound, StoreError
from s3backer.geometry import MIB
from s3backer.layouts import stored_note
from s3backer.layouts.classic import parse_block_name, parse_metadata
from s3backer.layouts.token import TOKEN_NAME
from s3backer.stores.base import ListEntry

#: Copies of a block that exist at most while it is examined: read (which may be twice as long), decrypted, decoded.
_COPIES = 4
#: Objects between the one that is listed and the one that is told: a page, so that threads work while one is listed.
_WINDOW = 1000
#: Seconds between two marks in the state file.
_MARK_SECONDS = 1.0
#: So many objects that cannot be read one after the other raise the question whether it is the store; and so much
#: else waits at most for the answer.
_STREAK = 64
_MOST_HELD = 1000
#: Seconds between two reports of progress.
_LOOK = 0.2
_GO_ON = "What was checked so far is kept: go on with --resume."
_HASHED = re.compile("[0-9a-f]{8}-([0-9a-f]{8})")
_UNFINISHED = re.compile("(?:[0-9a-f]{8}-)?[0-9a-f]{8}[.][A-Za-z0-9]{6}")

Progress = Callable[[int, int], None]
#: The key of an object, the block that it is (None: none of the disk's), and what was seen of it.
_Told = tuple[str, int | None, Examined]


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """How a check goes about it. ``memory`` in bytes. ``state``: the file to go on with later; None: none.

    ``resume``: go on with what an interrupted check left there; with ``ended_too`` also take over one that is complete.
    """

    threads: int = 16
    memory: int = 256 * MIB
    state: Path | None = None
    resume: bool = False
    ended_too: bool = False


class Check:
    """A check of one volume; a context manager that closes its state.

    ``count``, then ``run``; what was found is in ``state``.
    """

    def __init__(self, subject: Subject, options: CheckOptions) -> None:
        self.subject = subject
        self._options = options
        self._prefix = subject.layout.prefix
        #: Told as soon as it is clear that the store works.
        self._held: list[_Told] = []
        self._unreadable = 0
        #: A block for which the store had an answer.
        self._readable: int | None = None
        #: Requests before this run, by kind.
        self._before = self._requests()
        self._marked = time.monotonic()
        self.state = CheckState(options.state, subject.about(), resume=options.resume, ended_too=options.ended_too)
        self.resumed = self.state.objects is not None
        self._former = dict(self.state.counts.requests)
        self._done = self.state.after

    def count(self) -> int:
        """Return how many objects there are to read, counted unless a former run did. Raises StoreError."""
        if self.state.objects is None:
            self.state.expect(count_objects(self.subject.store, self._prefix)[0])
            for finding in self.subject.findings:
                self._found(finding)
            self._mark()
        assert self.state.objects is not None
        return self.state.objects

    def run(self, progress: Progress | None = None) -> Counts:
        """Check what is not checked yet, and return the counts. Raises StoreError where the store fails as a whole."""
        if self.state.ended is not None:
            return self._counts
        total = self.count()
        looked = 0.0
        for key, block, seen in self._examined():
            self._hold(key, block, seen)
            if time.monotonic() - self._marked > _MARK_SECONDS:
                self._mark()
            if progress and time.monotonic() - looked > _LOOK:
                looked = time.monotonic()
                progress(self._counts.objects, max(total, self._counts.objects))
        if self._unreadable and self._readable is not None:
            self._require_store()
        self._tell()
        self._mark()
        self.state.end()
        return self._counts

    @property
    def _counts(self) -> Counts:
        return self.state.counts

    # ── looking ──────────────────────────────────────────────────────────────────────────────────────

    def _examined(self) -> Iterator[_Told]:
        """Yield what is seen of every object behind those that were checked before, in the order of the keys."""
        examiner = Examiner(self.subject)
        block_size = self.subject.layout.block_size
        threads = max(1, min(self._options.threads, self._options.memory // (_COPIES * block_size)))
        window: deque[tuple[str, int | None, Future[Examined]]] = deque()
        with ThreadPoolExecutor(threads, thread_name_prefix="s3backer-check") as pool:
            try:
                for entry in self._entries():
                    block = self._own_block(entry.key)
                    if block is None:
                        future: Future[Examined] = Future()
                        future.set_result(Examined(finding=self._of_no_block(entry)))
                    else:
                        future = pool.submit(examiner.examine, block)
                    window.append((entry.key, block, future))
                    if len(window) > _WINDOW:
                        key, block, future = window.popleft()
                        yield key, block, future.result()
                while window:
                    key, block, future = window.popleft()
                    yield key, block, future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _entries(self) -> Iterator[ListEntry]:
        after = self.state.after
        while True:
            page = self.subject.store.list(self._prefix, start_after=after)
            yield from page.entries
            if not page.truncated:
                return
            after = page.entries[-1].key

    def _own_block(self, key: str) -> int | None:
        """Return the block that an object is, None where it is none of the disk's."""
        layout = self.subject.layout
        block = parse_block_name(key[len(self._prefix) :], hash_prefix=layout.hash_prefix)
        if block is not None and block >= layout.block_count and self.subject.token is not None:
            # Whoever has it mounted may have made it larger.
            with contextlib.suppress(StoreError):
                said = parse_metadata(self.subject.store.head(layout.key(0)))
                if said is not None and said.block_size == layout.block_size:
                    layout.size = max(layout.size, said.size)
        return None if block is None or block >= layout.block_count else block

    def _of_no_block(self, entry: ListEntry) -> Finding | None:
        """Return what is to be said about an object that is no block of the disk."""
        name, hashed = entry.key[len(self._prefix) :], self.subject.layout.hash_prefix
        if name == TOKEN_NAME or name.startswith(stored_note.PREFIX):
            return None
        block = parse_block_name(name, hash_prefix=hashed)
        if block is not None:
            what = f"it would be block {block}, and the last one is {self.subject.layout.block_count - 1}"
            # A directory's entries are of another class: their ETags are not known before they are asked for.
            etag = entry.etag if type(entry) is ListEntry else ""
            return Finding("beyond-end", entry.key, f"{what}; it has {entry.size} bytes", block, etag)
        if parse_block_name(name, hash_prefix=not hashed) is not None:
            return Finding("misnamed", entry.key, f"its name does {'not ' if hashed else ''}begin with a hash")
        if match := _HASHED.fullmatch(name):
            return Finding("misnamed", entry.key, f"its hash is not that of block {int(match[1], 16)}")
        what = f"it is not named like a block; it has {entry.size} bytes"
        if _UNFINISHED.fullmatch(name):
            what = f"it looks like an unfinished write of the C program's --test mode; it has {entry.size} bytes"
        return Finding("foreign", entry.key, what)

    # ── telling ──────────────────────────────────────────────────────────────────────────────────────

    def _hold(self, key: str, block: int | None, seen: Examined) -> None:
        """Tell what was seen, once it is clear that it is not the store that fails."""
        self._held.append((key, block, seen))
        if seen.finding is not None and seen.finding.kind == "unreadable":
            self._unreadable += 1
        elif block is not None and not seen.gone:
            self._readable, self._unreadable = block, 0
        if self._unreadable >= _STREAK or (self._unreadable and len(self._held) >= _MOST_HELD):
            self._require_store()
            self._unreadable = 0
        if not self._unreadable:
            self._tell()

    def _tell(self) -> None:
        for key, block, seen in self._held:
            if block is not None and not seen.gone:
                self._counts.objects += 1
                self._counts.stored += seen.stored
            if seen.verified:
                self._counts.verified[seen.verified] += 1
                self._counts.encodings[seen.encoding] += 1
            if seen.finding is not None:
                self._found(seen.finding)
            if seen.gone and self.subject.token is None:
                self._found(Finding("changed", key, "it was removed while the volume was checked", block))
            self._done = key
        self._held.clear()

    def _found(self, finding: Finding) -> None:
        self._counts.kinds[finding.kind] += 1
        # What can be repaired is kept, however much it is: it stands in the file, not in memory.
        if finding.problem or finding.kind == "zeros" or self._counts.kinds[finding.kind] <= MOST_NOTES:
            self.state.found(finding)

    def _require_store(self) -> None:
        """Raise StoreError unless the store still gives what it gave before."""
        if self._readable is None:
            last = next(seen.finding for _, _, seen in reversed(self._held) if seen.finding is not None)
            raise StoreError(f"no object can be read. The last one: {last.what}", hint=_GO_ON)
        try:
            self.subject.layout.fetch(self._readable)
        except (ObjectNotFound, CorruptObject):
            # It was removed meanwhile, or is damaged: says a store that works.
            return
        except BucketNotFound:
            raise
        except StoreError as error:
            raise StoreError(f"the store fails: {error.message}", hint=f"{error.hint} {_GO_ON}".strip()) from None

    def _mark(self) -> None:
        """Write down what is told, and the requests that it took."""
        self._marked = time.monotonic()
        for kind, count in self._requests().items():
            former = self._former.get(kind, [0, 0, 0])
            self._counts.requests[kind] = [
                now - before + earlier for now, before, earlier in zip(count, self._before[kind], former, strict=True)
            ]
        self.state.mark(self._done)

    def _requests(self) -> dict[str, list[int]]:
        """Return the store's requests so far by kind: how many, bytes sent, bytes received."""
        return {
            kind: [count.requests, count.bytes_sent, count.bytes_received]
            for kind, count in self.subject.store.counters.snapshot().items()
        }

    def __enter__(self) -> Check:
        return self

    def __exit__(self, *_: object) -> None:
        self.state.__exit__()
