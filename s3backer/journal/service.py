"""A volume's journal, open: the hot part, its files, and what makes the next ones ready.

    with JournalDirectory(journals_directory() / volume_id(store.place, prefix).hex()) as directory:
        found = scan(directory, volume)                  what an unclean end has left; decide() whether to replay it
        journal = WriteJournal(directory, slab, mount, budget=…, capacity=…, recovered=found)
        journal.core.write(…)                            in place of slab.write, from any thread, also the fast lane's
        journal.core.sync()
        journal.end(settled=True)                        when everything is in the bucket
        journal.close()                                  always: what is not in the bucket stays in the directory

One thread, owned elsewhere, calls ``wait`` and ``prepare`` in turn.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import itemgetter

from s3backer._fast import Slab
from s3backer._journal import Journal, least_file_bytes
from s3backer.clocks import Unchanged
from s3backer.errors import JournalDamaged, JournalError, JournalFull, JournalGone, UsageError
from s3backer.journal.cipher import FileKey, crypto, key_of
from s3backer.journal.files import FILE_BYTES, JournalDirectory
from s3backer.journal.format import ENCRYPTED, PAGE, Header, pack_texts
from s3backer.journal.replay import Recovered
from s3backer.stores.base import Buffer
from s3backer.units import exact_size, told_size

#: Files that are ready to be used. The last one is left to what is carried until there is another one; a third lets
#: a writer that is faster than the disk's zeros go on.
_SPARES = 3
#: And those before a new journal serves.
_AT_FIRST = 2
#: Files with which it can go on: while one is written another one can be given up.
_FEWEST = 2
#: Seconds until the disk is asked again, once it had no room.
_RETRY = 5.0
#: Seconds after which what keeps the oldest file is carried into a newer one, and how full the journal is then.
_STUCK, _CARRY_FILL = 1.0, 0.5
#: Blocks that have to fit into a file, so that little of it stays empty.
_LEAST_BLOCKS = 16
#: Files that there are at least, where their size is not given, and of a journal that is not small.
_LEAST_FILES, _FILES = 4, 16
#: What to do when it has failed because of its directory.
_MOUNT_AGAIN = (
    "Look at that directory. What was acknowledged waits in memory and goes to the bucket; unmount, then mount again "
    "with a journal where it can be written to."
)
#: Files that the hot part can number, with some to spare, and the largest that it can write, a page less than 4 GiB.
_MOST_FILES, _LARGEST_FILE = 32_000, (1 << 32) - PAGE

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mount:
    """Whose journal it is. ``volume``: see ``url.volume_id``; ``session``: 16 random bytes; ``token``: the bucket's."""

    volume: bytes
    session: bytes
    token: int
    url: str


def file_bytes_for(block_size: int, budget: int) -> int:
    """Return the size of the files for blocks of this size, in bytes. UsageError where none goes with the budget."""
    least = max(_LEAST_BLOCKS * block_size, least_file_bytes(block_size))
    if least > _LARGEST_FILE:
        largest = 1 << (_LARGEST_FILE // _LEAST_BLOCKS).bit_length() - 1
        raise UsageError(
            f"no journal goes with blocks of {exact_size(block_size)}, at most with blocks of {exact_size(largest)}",
            hint="Use --journal none.",
        )
    if budget < _LEAST_FILES * least:
        raise UsageError(
            f"a journal of {told_size(budget)} is too small for blocks of {told_size(block_size)}",
            hint=f"Use --journal {exact_size(_LEAST_FILES * least)} or more, or --journal none.",
        )
    if budget // _MOST_FILES > _LARGEST_FILE:
        raise UsageError(
            f"a journal of {told_size(budget)} is too large",
            hint=f"Use --journal {_MOST_FILES * _LARGEST_FILE >> 40}TiB or less.",
        )
    return max(least, min(FILE_BYTES, budget // _FILES), budget // _MOST_FILES) // PAGE * PAGE


def joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return what ranges [start, stop) cover together, ordered and apart from each other."""
    found: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return found


@dataclass(frozen=True, slots=True)
class Part:
    """What a journal has of a block: ``ranges`` [start, stop) in bytes, ordered and apart. Else ``body`` is zeros."""

    body: Buffer
    ranges: list[tuple[int, int]]

    def covers(self, start: int, stop: int) -> bool:
        """Return whether it has all bytes of [start, stop)."""
        at = bisect_right(self.ranges, start, key=itemgetter(0)) - 1
        return at >= 0 and stop <= self.ranges[at][1]


class WriteJournal:
    """The journal of one mount.

    ``budget``: bytes on the disk, two files at least; ``capacity``: entries of the map, see ``map_bytes``. With
    ``recovered`` it goes on from there: the blocks in it are pending, its files stay until they are stored, and the map
    has room for all of it. With a ``key`` (any bytes; what the volume is encrypted with) data is encrypted. It is the
    same as in what was recovered.
    When it is made, a file is ready and all that was recovered is on the disk. Raises JournalError.
    """

    def __init__(
        self,
        directory: JournalDirectory,
        slab: Slab,
        mount: Mount,
        *,
        budget: int,
        capacity: int,
        file_bytes: int = 0,
        key: bytes | None = None,
        recovered: Recovered | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._directory, self._mount = directory, mount
        self._block_size = slab.block_size
        #: Size of each file in bytes.
        self.file_bytes = file_bytes or file_bytes_for(slab.block_size, budget)
        self._clock, self._monotonic, self._random_bytes = clock, monotonic, random_bytes
        self._key = key
        self._open: dict[int, int] = {}
        #: The sequence of a note of a resize that is needed.
        self._resizing: int | None = None
        #: The file that is being given up, and what its header will be when it is used again.
        self._freed: int | None = None
        self._next_use: Header | None = None
        #: When the disk may have room again, and what was said of that since a file could be made last.
        self._retry_at: float | None = None
        self._complaints: set[str] = set()
        #: The oldest file and what is needed of it.
        self._oldest = Unchanged()
        #: How often something was carried since something was last written or stored.
        self._carried_as_of, self._rounds = (0, 0), 0
        #: Blocks whose records went bad, as was said; whether it was said that the journal is full.
        self._damaged: set[int] = set()
        self._said_full = False
        #: As the core counts those, when that was last looked at.
        self._refused = 0
        self._next = 1
        kept, needed = (len(recovered.files), recovered.written) if recovered else (0, 0)
        if recovered is not None and needed > capacity:
            # Exactly, then: that takes another reading.
            needed = recovered.entries()
        #: The hot part: see ``s3backer._journal``.
        self.core = Journal(slab, self.file_bytes, max(2 + kept, budget // self.file_bytes), max(capacity, needed))
        try:
            if key is not None:
                self.core.encrypt_with(crypto())
            if recovered is not None:
                self._adopt(recovered)
            # The file that is written is never given up, so that one alone would be full for ever.
            least = 1 if kept else _AT_FIRST
            try:
                # That a file is not needed is written in another one.
                self._make_spares(least)
                self._give_up_files()
            except JournalError as error:
                if self.core.spares < least or self.core.failed:
                    raise
                log.warning("%s", error)
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> str:
        """Where it is."""
        return self._directory.path

    @property
    def limit(self) -> int:
        """Bytes that it can have now: as many as it may, if its disk has room for them."""
        files = self.core.files + self.core.spares
        # Not to be known any more, once the directory is closed.
        with contextlib.suppress(OSError):
            files += self._directory.room() // self.file_bytes
        return min(files, self.core.most_files) * self.file_bytes

    def _adopt(self, recovered: Recovered) -> None:
        for file in recovered.files:
            if file.header.block_size != self._block_size:
                raise JournalError(
                    f"the journal in {self._directory.path} was written with blocks of {file.header.block_size} bytes, "
                    f"the volume has blocks of {self._block_size}",
                    hint="Mount it with that block size.",
                )
            if file.header.encrypted != (self._key is not None):
                raise JournalError(
                    f"the journal in {self._directory.path} is {'' if file.header.encrypted else 'not '}encrypted, the "
                    "volume is mounted otherwise",
                    hint="Mount it as it was mounted last.",
                )
            key_of(file.header, self._key)
        for number in reversed(recovered.unused):
            self._directory.remove(number)
        right = True
        for file in recovered.files:
            key = key_of(file.header, self._key)
            fd = self._open[file.number] = self._directory.open(file.number, writable=True)
            self.core.adopt_file(fd, file.number, file.header.seed, file.first, key)
            right = right and all(self.core.adopt_records(facts) for facts in recovered.facts(file))
            file.kept = None
        if not right or self.core.number != recovered.last_number:
            raise JournalDamaged(
                f"the journal in {self._directory.path} does not hold what it held a moment ago",
                hint="Look at that disk (dmesg, SMART). Keep the directory.",
            )
        self.core.resume()
        if recovered.files:
            self._next = recovered.files[-1].number + 1
            # Of what the last mount did not sync it is not known whether the disk has it.
            self.core.sync()

    def wait(self, seconds: float) -> bool:
        """Wait until there is something to prepare; False if there was nothing in that time, or never will be.

        Also True when the disk, after it had no room, is to be tried again.
        """
        if self._retry_at is None and self.core.no_room:
            self._retry_at = self._monotonic() + _RETRY
            self._complain(
                f"the disk under the journal in {self.path} has no room: writers wait. Free some space there."
            )
        if self._retry_at is not None and self._monotonic() >= self._retry_at:
            self._retry_at = None
            self.core.lift_limits()
            return self.core.failure is None
        return self.core.wait_for_work(seconds, _SPARES) and self.core.failure is None

    def prepare(self) -> None:
        """Make files ready for use, of those that were freed or new ones, and give up what is not needed.

        Takes up to a second or so for each. Where there is no room for a new one the journal goes on in what it has.
        Raises JournalError where a file cannot be given up, and once the journal has failed: also where the directory
        cannot be changed any more, so that no file would ever be freed.
        """
        self._give_up_files()
        try:
            # Nothing newer before that is done.
            if self._freed is None:
                self._make_spares(_SPARES)
        except JournalError as error:
            if self.core.failed:
                raise
            self._complain(f"{error.message}; it goes on in what it has. {error.hint}")

    def check(self) -> None:
        """Let the journal fail if somebody has removed a file of it. To be called now and then. Raises JournalError."""
        for number, fd in self._open.items():
            # That one may be gone already, by us.
            if number != self._freed:
                try:
                    self._directory.check(number, fd)
                except JournalGone as error:
                    self._fail(error)
                    raise

    def carry(self) -> int:
        """Write blocks that keep the oldest file once more, if nothing was stored of it for a while; return how many.

        Else a block that cannot be stored would keep all files, as they go in their order, and writers would wait for
        it. To be called now and then. Raises JournalError where the journal fails.
        """
        oldest, now, fill = self.core.oldest, self._monotonic(), self.core.fill
        lasting = self._oldest.lasts(oldest, now)
        if fill < _CARRY_FILL:
            self._said_full, self._refused = False, self.core.refused
            return 0
        if oldest is None or lasting < _STUCK:
            return 0
        self._oldest.restart(now)
        state = (self.core.slab.sequence, self.core.blocks)
        if state != self._carried_as_of:
            self._carried_as_of, self._rounds = state, 0
        # Once all of it was carried, and nothing was written or stored since, it does not help.
        blocks = self.core.keepers() if self._rounds < self.core.most_files else []
        refused, self._refused = self.core.refused > self._refused, self.core.refused
        if refused and not blocks and self.core.blocks and not self._said_full:
            self._said_full = True
            log.warning(
                "the journal in %s is full: writers wait until some of the %d blocks in it are stored",
                self.path,
                self.core.blocks,
            )
        carried = self.carry_blocks(blocks)
        self._rounds += carried > 0
        return carried

    def carry_blocks(self, blocks: Iterable[int]) -> int:
        """Write blocks once more, and forget where they stood; return of how many that was possible.

        What stood before is what counts until the disk has the copy.
        """
        carried = []
        for block in blocks:
            body = bytearray(self._block_size)
            try:
                found, first, last = self.core.load(block, body)
            except JournalDamaged as error:
                if block not in self._damaged:
                    log.error("%s. Writers may wait for that block, until all of it is written anew", error.message)
                self._damaged.add(block)
                continue
            ranges = joined(found)
            places = self.core.append_again(block, body, ranges, first, last)
            if places is not None:
                carried.append((block, ranges, first, last, places))
        if carried:
            self.core.sync()
        return sum(self.core.replace(*facts) for facts in carried)

    def _complain(self, text: str) -> None:
        if text not in self._complaints:
            log.warning("%s", text)
        self._complaints.add(text)

    def _give_up_files(self) -> None:
        failure = self.core.failure
        if failure is not None:
            # What is in the files is all that there is until everything is in the bucket.
            raise failure
        while self._freed is not None or self._take_freed():
            assert self._freed is not None
            few = self.core.files + self.core.spares < _FEWEST
            # None may stay behind while a newer one goes: what is left has to be the end of the journal.
            fits = os.fstat(self._open[self._freed]).st_size == self.file_bytes
            again = fits and (few or self.core.wants_spare(_SPARES))
            try:
                used = again and self._use_again(self._freed)
            except JournalFull as error:
                if few:
                    # With one file alone nothing would ever be given up. It waits for its next use until there is room.
                    self._put_off()
                    self._complain(f"{error.message}: writers wait. {error.hint}")
                    return
                used = False
            if not used:
                self._remove(self._freed)
            self._freed = self._next_use = None

    def _use_again(self, number: int) -> bool:
        """Make a file ready for its next use; False where that is impossible. JournalFull: it can be tried again."""
        if self._next_use is None:
            self._next_use = self._header()
        try:
            self._directory.use_again(number, self._open[number], self._next_use)
        except JournalFull:
            raise
        except JournalGone as error:
            self._fail(error)
            raise
        except JournalError as error:
            self._complain(f"{error.message}. {error.hint}")
            return False
        self._take(self._next_use, self._open.pop(number))
        return True

    def _remove(self, number: int) -> None:
        try:
            self._directory.remove(number)
        except JournalFull:
            raise
        except JournalError as error:
            # Nor any that comes after it, so that writers would wait for ever.
            self._fail(error)
            raise
        os.close(self._open.pop(number))

    def _fail(self, error: JournalError) -> None:
        """Let the journal take nothing any more, for a reason that its hot part does not see."""
        self.core.fail_for(JournalError(error.message, hint=_MOUNT_AGAIN))

    def _put_off(self) -> None:
        """Wait before the disk is asked for room again."""
        # Else writers would wait for a file, instead of for blocks to be stored and a file to be freed.
        self.core.limit_files()
        self._retry_at = self._monotonic() + _RETRY

    def _make_spares(self, count: int) -> None:
        while self.core.wants_spare(count):
            header = self._header()
            try:
                fd = self._directory.make(header)
            except JournalFull:
                self._put_off()
                raise
            except JournalError as error:
                if isinstance(error, JournalGone) or self.core.files + self.core.spares < _FEWEST:
                    self._fail(error)
                self._put_off()
                raise
            self._take(header, fd)
            self._complaints.clear()

    def _take_freed(self) -> bool:
        freed = self.core.take_freed()
        if freed is not None:
            self._freed = freed[0]
        return freed is not None

    def _header(self) -> Header:
        mount, salt = self._mount, self._random_bytes(16)
        check = FileKey.derive(self._key, salt).check if self._key is not None else bytes(16)
        header = Header(
            block_size=self._block_size,
            number=self._next,
            size=self.file_bytes,
            salt=salt,
            session=mount.session,
            volume=mount.volume,
            token=mount.token,
            url=mount.url,
            created=int(self._clock()),
            features=ENCRYPTED if self._key is not None else 0,
            key_check=check,
        )
        self._next += 1
        return header

    def _take(self, header: Header, fd: int) -> None:
        self._open[header.number] = fd
        self.core.add_spare(fd, header.number, header.seed, key_of(header, self._key))

    def intend(self, block: int, sequence: int, condition: str, checksum: str) -> bool:
        """Note that a block's PUT or DELETE begins; False where there is no room for notes.

        ``sequence``: see ``done``. ``condition``: the ETag it has to have, "*" if there is to be no object, "" for
        none. ``checksum``: by which the object can be recognised.
        """
        return self.core.intend(block, sequence, pack_texts(condition.encode(), checksum.encode()))

    def note_resize(self, sequence: int) -> bool:
        """Note, on the disk, that a PUT of block 0 begins that changes the size; False where there is no room for it.

        ``sequence``: up to which stores of the block that began before may have come. The note stays until a later one
        has ended.
        """
        if not self.intend(0, sequence, "", ""):
            return False
        self._resizing = sequence
        self.core.hold(True)
        self.core.sync()
        return True

    def done(self, block: int, sequence: int, etag: str) -> bool:
        """Note what a block's object is now ("" where there is none), and forget what it holds; False without room.

        ``sequence`` is that as of which the body was copied, the second one that ``begin_store`` returns.
        """
        if block == 0 and self._resizing is not None and sequence > self._resizing:
            self._resizing = None
            self.core.hold(False)
        try:
            note = pack_texts(etag.encode("utf-8", "surrogateescape"))
        except ValueError:
            # No store has ETags of so many bytes.
            self.core.stored(block, sequence)
            return False
        return self.core.done(block, sequence, note)

    def part(self, block: int) -> Part:
        """Return what it has of a block. Raises JournalError."""
        body = bytearray(self._block_size)
        ranges, _, _ = self.core.load(block, body)
        return Part(body, joined(ranges))

    def over(self, block: int, fetch: Callable[[], Buffer | None]) -> Buffer:
        """Return a block as the journal has it, over what the bucket has of it, if something of that is needed.

        ``fetch`` returns that (None: zeros). Raises what it raises, and JournalError.
        """
        part, gaps, position = self.part(block), [], 0
        for start, stop in [*part.ranges, (self._block_size, self._block_size)]:
            if start > position:
                gaps.append(slice(position, start))
            position = stop
        if gaps and (found := fetch()) is not None:
            body = memoryview(part.body)
            for gap in gaps:
                body[gap] = memoryview(found)[gap]
        return part.body

    def end(self, *, settled: bool) -> None:
        """Remove the journal: everything is in the bucket. Nothing may be written any more. Raises JournalError.

        ``settled``: see ``JournalDirectory.remove_all``.
        """
        self._directory.remove_all(settled=settled)

    def close(self) -> None:
        """Close the files; nobody may use the hot part any more, and no thread may be in it."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()
