"""What is on its way into memory: blocks from the bucket, what the journal has of them, and who waits for either.

A part of the block cache, which gives the states and the guarantees; the cache calls it, and hands out its actions.
"""

from __future__ import annotations

from s3backer.cache_calls import Fetch, Hurry, Look, ReadRequest, WriteRequest
from s3backer.cache_state import Common, PendingFetch, PendingLook
from s3backer.errors import S3backerError, StoreError
from s3backer.journal.service import Part
from s3backer.stores.base import Buffer

#: Bytes of which memory knows as a whole whether it has them.
_SECTOR = 512
_ZEROS = bytes(_SECTOR)


class Fetching:
    """The fetches and looks under way, by block, and who waits for them. It fills the slab."""

    def __init__(self, common: Common) -> None:
        self._common = common
        self._slab = common.slab
        self._layout = common.layout
        self._block_size = common.slab.block_size
        self._fetches: dict[int, PendingFetch] = {}
        self._looks: dict[int, PendingLook] = {}

    def __contains__(self, block: int) -> bool:
        return block in self._fetches

    @property
    def idle(self) -> bool:
        """Whether nothing is on its way."""
        return not (self._fetches or self._looks)

    @property
    def merging(self) -> int:
        """Fetches under way because a block is to be stored."""
        return sum(fetch.stores for fetch in self._fetches.values())

    def is_merging(self, block: int) -> bool:
        """Whether a block is fetched because it is to be stored."""
        fetch = self._fetches.get(block)
        return fetch is not None and fetch.stores

    def awaited_by(self, writer: WriteRequest) -> PendingFetch | None:
        """Return the fetch for which a writer waits."""
        return next((fetch for fetch in self._fetches.values() if writer in fetch.writers), None)

    def fetch(self, block: int, *, urgent: bool) -> PendingFetch:
        """Return the fetch of a block, begun if none was; ``urgent``: somebody waits for it."""
        fetch = self._fetches.get(block)
        if fetch is None:
            fetch = self._fetches[block] = PendingFetch(self._common.flushes.asked)
            self._common.actions.append(Fetch(block, urgent))
        elif fetch.ahead and not fetch.hurried:
            fetch.hurried = True
            self._common.actions.append(Hurry(block))
        return fetch

    def hanging(self, now: float) -> list[int]:
        """Return the blocks that wait for long to be fetched, and are to be stored."""
        return [block for block, fetch in self._fetches.items() if fetch.hangs(now)]

    def overtake(self, block: int) -> None:
        """Hear that something newer than what is on its way into memory may leave it."""
        if block in self._fetches:
            self._fetches[block].stale = True
        if block in self._looks:
            self._looks[block].stale = True

    def leave(self, block: int) -> None:
        """Hear that a block was left to the journal: if it is fetched to be stored the backlog waits for that now."""
        fetch = self._fetches.get(block)
        if fetch is not None and fetch.store_sequence:
            fetch.store_sequence, fetch.left = 0, True

    # ── reads ────────────────────────────────────────────────────────────────────────────────────────

    def read(self, request: ReadRequest, missing: list[int]) -> None:
        """Go on with a read of which the slab lacked the ``missing`` blocks; a Reply follows."""
        for block in missing:
            self._read_block(request, block)
        if not request.pending and not request.failed:
            self._common.reply(request, None)

    def prefetch(self, blocks: range) -> None:
        """Fetch those of the blocks that are neither known nor under way; those beyond the end do no harm."""
        for block in blocks[: max(0, self._layout.block_count - blocks.start)]:
            if not (block in self._fetches or self._slab.contains(block) or self._layout.known_absent(block)):
                self._fetches[block] = PendingFetch(self._common.flushes.asked, ahead=True)
                self._common.actions.append(Fetch(block, urgent=False, ahead=True))

    def fetched(self, block: int, body: Buffer | None, error: S3backerError | None) -> PendingFetch:
        """Hear that a Fetch has ended: fill the slab and answer readers. Return it, for who else waited for it."""
        fetch = self._fetches.pop(block)
        if error is not None:
            self._common.counts.fetch_errors += 1
            for reader in fetch.readers:
                if fetch.for_nobody:
                    # What it lacked may have been written since.
                    self._finish_read(reader, block, stale=True, body=None)
                else:
                    self._fail_read(reader, error)
            return fetch
        self._common.counts.blocks_read += body is not None
        self._common.counts.zero_blocks_read += body is None
        if not fetch.stale:
            self._slab.fill(block, body, ahead=not (fetch.readers or fetch.writers or fetch.store_sequence))
        for reader in fetch.readers:
            self._finish_read(reader, block, fetch.stale, body)
        return fetch

    def looked(self, block: int, part: Part | None, error: S3backerError | None) -> None:
        """A Look has ended, with a part or an error."""
        look = self._looks.pop(block)
        self._common.counts.fetch_errors += error is not None
        if not look.stale and part is not None and part.covers(0, self._block_size):
            self._slab.fill(block, part.body)
        for reader in look.readers:
            if look.stale:
                self._finish_read(reader, block, stale=True, body=None)
            elif part is not None:
                self._finish_look(reader, block, part)
            elif error is not None:
                self._fail_read(reader, error)

    def _read_block(self, request: ReadRequest, block: int) -> None:
        if request.failed:
            return
        if block not in self._fetches and self._layout.known_absent(block):
            if not self._slab.contains(block):
                self._common.counts.zeros_read += 1
                return
            self._slab.fill(block, None)
        if self._slab.contains(block):
            piece = self._piece(request, block)
            if piece is None or self._slab.copy_out(block, piece[0], piece[2]):
                return
        request.pending += 1
        if self._common.is_left(block):
            self._look(block).readers.append(request)
        else:
            self.fetch(block, urgent=True).readers.append(request)

    def _finish_read(self, request: ReadRequest, block: int, stale: bool, body: Buffer | None) -> None:
        request.pending -= 1
        if request.failed or (piece := self._piece(request, block)) is None:
            return
        start, stop, view = piece
        if not self._slab.copy_out(block, start, view):
            if stale:
                self._read_block(request, block)
            elif body is not None:
                # No slot was free: the body is used without being kept.
                view[:] = memoryview(body)[start:stop]
        if not request.pending:
            self._common.reply(request, None)

    def _fail_read(self, request: ReadRequest, error: S3backerError) -> None:
        request.pending -= 1
        if not request.failed:
            request.failed = True
            self._common.reply(request, error)

    def _piece(self, request: ReadRequest, block: int) -> tuple[int, int, memoryview] | None:
        """Return (start, stop) inside the block and the part of the buffer for it; None: the read has failed."""
        base = block * self._block_size
        start = max(request.offset, base)
        stop = min(request.offset + request.length, base + self._block_size)
        try:
            buffer = memoryview(request.filled())
        except StoreError as error:
            self._common.counts.memory_errors += 1
            request.failed = True
            self._common.reply(request, error)
            return None
        return start - base, stop - base, buffer[start - request.offset : stop - request.offset]

    def _look(self, block: int) -> PendingLook:
        look = self._looks.get(block)
        if look is None:
            look = self._looks[block] = PendingLook()
            self._common.actions.append(Look(block))
        return look

    def _finish_look(self, request: ReadRequest, block: int, part: Part) -> None:
        request.pending -= 1
        if request.failed or (piece := self._piece(request, block)) is None:
            return
        start, stop, view = piece
        if not self._copy_left(block, start, stop, view, part):
            # As it was, for who finds out that there are zeros. Without memory for that many nobody would be answered.
            for at in range(0, stop - start, _SECTOR):
                view[at : at + _SECTOR] = _ZEROS[: min(_SECTOR, stop - start - at)]
            request.pending += 1
            self.fetch(block, urgent=True).readers.append(request)
        elif not request.pending:
            self._common.reply(request, None)

    def _copy_left(self, block: int, start: int, stop: int, view: memoryview, part: Part) -> bool:
        """Copy [start, stop) of a block from memory, and where that has nothing from the journal; False: in neither."""
        position = start
        while position < stop:
            count, known = self._slab.copy_run(block, position, view[position - start :])
            if not known:
                if not part.covers(position, position + count):
                    return False
                view[position - start :][:count] = memoryview(part.body)[position : position + count]
            position += count
        return True
