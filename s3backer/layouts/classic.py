"""The classic layout: the original's bucket format, one object a block.

    key            PREFIX [HASH8 "-"] BLOCK8       8 lower-case hex digits each
    body           the block's ``block_size`` bytes, as codec/block.py makes an object of them
    zero block     no object; block 0 alone is always one, because it carries the metadata
    block 0        metadata s3backer-blocksize and s3backer-filesize, decimal bytes
    mount token    layouts/token.py

Guarantees
  * A missing object is zeros only while nothing speaks against it: a block that is known to be present
    and answers "not there" is an error, and so is a missing bucket.
  * What is known about absence comes from our own requests and from the survey, a listing that runs beside the
    work. A listing page says nothing about a block that was being written while the page was fetched. Of a block whose
    last write failed nothing is believed until one succeeds: what failed may still arrive.
  * Nor of a block that is ``left`` to the journal, before it was written here, as it is not what the bucket has; nor
    of one that an earlier mount may have been writing when it ended (``doubted``), while its requests may arrive.
  * A read never returns anything but exactly one block, decoded as its object says and the volume allows.
  * Where a request may arrive late (``ObjectStore.delayed``) every write has a condition: If-Match with the ETag that
    the object is known to have, If-None-Match where there is none. What is not known is asked for first.
  * A copy that is kept elsewhere (layouts/copies.py) is read without a request only where its ETag is the one that the
    object is known to have: on a volume that is ours, and of a block that nobody is writing. Otherwise the store is
    asked whether it has that ETag still. What a write overtook is not kept, and a copy that cannot be decoded is
    dropped and fetched.
  * A condition that fails although we knew better means that somebody else wrote: the volume has to be confirmed as
    ours (``confirm``) before the write is tried again with what is there now.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from s3backer.codec.block import PLAIN, BadBlock, BlockCodec, Encoded, parse_encoding
from s3backer.errors import CorruptObject, ObjectNotFound, ObjectVanished, PreconditionFailed
from s3backer.layouts.copies import Copies, Copy, is_strong
from s3backer.layouts.etags import ETags
from s3backer.layouts.listing import POSITIONS, Claim, is_in, walk
from s3backer.layouts.presence import PresenceMap
from s3backer.stores.base import ListPage, ObjectInfo, ObjectStore, StoredObject

BLOCK_CONTENT_TYPE = "application/x-s3backer-block"
META_BLOCK_SIZE = "s3backer-blocksize"
META_SIZE = "s3backer-filesize"
MAX_BLOCKS = 2**32 - 1
_LONGEST_OVERHEAD = 1 << 16
#: Bytes by which a block becomes longer when it is encrypted, at most.
_MOST_PADDING = 64
#: How often a write meets an object that is not what it was a moment ago before that is an error.
_MOST_CONFLICTS = 4
_KEY = re.compile(r"(?:([0-9a-f]{8})-)?([0-9a-f]{8})")


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Metadata:
    """What block 0 says about the volume: sizes in bytes, and how the block itself is encoded."""

    size: int
    block_size: int
    content_encoding: str


def block_hash(block: int) -> int:
    """Return the 32-bit hash by which ``blockHashPrefix`` spreads the keys."""
    value = block
    for step in range(12, 0, -1):
        value = ((value ^ (value >> 8)) * 107 + step) & 0xFFFFFFFF
    return value


def block_name(block: int, *, hash_prefix: bool = False) -> str:
    """Return the key of a block, without the volume's prefix."""
    return f"{block_hash(block):08x}-{block:08x}" if hash_prefix else f"{block:08x}"


def parse_block_name(name: str, *, hash_prefix: bool = False) -> int | None:
    """Return the block that a key (without prefix) stands for, None for a foreign object."""
    match = _KEY.fullmatch(name)
    if match is None or (match[1] is not None) != hash_prefix:
        return None
    block = int(match[2], 16)
    if block >= MAX_BLOCKS or (hash_prefix and int(match[1], 16) != block_hash(block)):
        return None
    return block


def read_metadata(store: ObjectStore, prefix: str, *, hash_prefix: bool = False) -> Metadata | None:
    """Return what block 0 says, or None where it is absent or says nothing."""
    try:
        return parse_metadata(store.head(prefix + block_name(0, hash_prefix=hash_prefix)))
    except ObjectNotFound:
        return None


def parse_metadata(info: ObjectInfo) -> Metadata | None:
    """Return what the facts of block 0's object say about the volume, None if nothing."""
    size, block_size = _decimal(info, META_SIZE), _decimal(info, META_BLOCK_SIZE)
    if not size or not block_size:
        return None
    return Metadata(size, block_size, info.content_encoding)


def stated_block_size(info: ObjectInfo) -> int | None:
    """Return the block size that block 0's object states, also where its size was lost (the original's 1.6.0)."""
    return _decimal(info, META_BLOCK_SIZE) or None


def _decimal(info: ObjectInfo, name: str) -> int:
    text = info.metadata.get(name, "").strip()
    return int(text) if re.fullmatch(r"[0-9]{1,20}", text) else 0


@dataclass(slots=True, eq=False)
class _Read:
    """A GET under way. ``expected``: the object was there when it began. ``overtaken``: a write began meanwhile.

    ``unclear``: what it is, or will be, is not for the bucket alone to say, so that nothing is learned from it.
    ``etag``: the one that the object is known to have, None if it is not, or if a write is under way.
    """

    expected: bool
    overtaken: bool
    unclear: bool
    etag: str | None


class Left(Protocol):
    """Which blocks are left to the journal. May be called from any thread, and answers at once."""

    def is_left(self, block: int) -> bool:
        """Return whether something of the block is, and the block was not written since."""

    def next_left(self, block: int, stop: int) -> int:
        """Return the first block in [block, stop) that is left, else stop."""


class ClassicLayout:
    """Blocks of one volume as objects of a store; see the module for what it guarantees."""

    def __init__(
        self,
        store: ObjectStore,
        prefix: str,
        *,
        block_size: int,
        size: int,
        codec: BlockCodec = PLAIN,
        hash_prefix: bool = False,
        exclusive: bool = True,
        knowledge: int = 2 << 20,
        with_copies: bool = False,
    ) -> None:
        self.block_size = block_size
        self.prefix = prefix
        self.hash_prefix = hash_prefix
        self.codec = codec
        self._store = store
        self._size = size
        self._exclusive = exclusive
        #: Whether writes have conditions.
        self._conditional = store.delayed and exclusive
        self._etags = ETags(knowledge // 2) if exclusive and (store.delayed or with_copies) else None
        self._presence = PresenceMap(knowledge if self._etags is None else knowledge // 2)
        #: Who keeps copies of the blocks, given ``with_copies``.
        self.copies: Copies | None = None
        #: Raises VolumeInUse unless this volume is still ours to write to.
        self.confirm: Callable[[], None] = lambda: None
        #: Which blocks only the journal has.
        self.left: Left | None = None
        #: Blocks that requests of an earlier mount may still change.
        self.doubted: Container[int] = ()
        #: Whether it was not when it was last asked: then nothing is written before it has been asked again.
        self._lost = False
        #: Blocks whose last write failed: it may still arrive, so that nothing seen of them holds.
        self._doubtful: set[int] = set()
        self._lock = threading.Lock()
        self._writing: set[int] = set()
        self._reading: dict[int, list[_Read]] = {}
        #: For each page that is being listed, the blocks that were being written meanwhile.
        self._listings: list[set[int]] = []
        #: During a survey with hashed names: blocks of which a page may say nothing, and which are not known since.
        self._unclear: set[int] | None = None

    @property
    def size(self) -> int:
        """Size of the volume in bytes."""
        return self._size

    @size.setter
    def size(self, value: int) -> None:
        self._size = value

    @property
    def block_count(self) -> int:
        """Number of blocks."""
        return self._size // self.block_size

    @property
    def most_stored(self) -> int:
        """Bytes that no object of a block exceeds: neither compressing nor encrypting makes it this much longer."""
        return 2 * self.block_size + _LONGEST_OVERHEAD

    @property
    def presence(self) -> PresenceMap:
        """What is known about which blocks have an object."""
        return self._presence

    def key(self, block: int) -> str:
        """Return the object key of a block."""
        return self.prefix + block_name(block, hash_prefix=self.hash_prefix)

    def read(self, block: int) -> bytes | None:
        """Fetch one block; None where there is no object."""
        copy = None if self.copies is None else self.copies.find(block)
        found, copied = self._read(block, copy)
        try:
            return None if found is None else self.decode(block, found)
        except CorruptObject:
            if self.copies is None:
                raise
            if not copied:
                self.copies.drop(block)
                raise
            self.copies.damaged(block)
        found, _ = self._read(block, None)
        return None if found is None else self.decode(block, found)

    def _read(self, block: int, copy: Copy | None) -> tuple[StoredObject | None, bool]:
        """Return a block's object, None where there is none, and whether it is the copy, which is current then."""
        key = self.key(block)
        this = self._begin_read(block)
        try:
            if copy is None:
                found: StoredObject | None = self.fetch(block)
            elif this.etag == copy.etag:
                found = None
            else:
                found = self._store.get_unless(key, copy.etag, at_most=self.most_stored)
        except ObjectNotFound:
            if self._end_read(block, this, present=False) and this.expected:
                raise ObjectVanished(
                    f"object {key!r} was in {self._store.name} and has vanished",
                    hint="Somebody deleted it, or the store lost it; its data is not zeros.",
                ) from None
            return None, False
        except BaseException:
            self._end_read(block, this, present=None)
            raise
        if found is not None:
            self._end_read(block, this, present=True, etag=found.info.etag, found=found)
            return found, False
        assert copy is not None and self.copies is not None
        self._end_read(block, this, present=True, etag=copy.etag)
        self.copies.used(block, verified=this.etag != copy.etag)
        info = ObjectInfo(key, len(copy.body), copy.etag, "", copy.content_encoding, copy.metadata)
        return StoredObject(info, copy.body), True

    def fetch(self, block: int) -> StoredObject:
        """Return a block's object as it is stored. Raises ObjectNotFound, StoreError or CorruptObject."""
        return self._store.get(self.key(block), at_most=self.most_stored)

    def decode(self, block: int, found: StoredObject) -> bytes:
        """Return a block's bytes from its object; CorruptObject, naming it, if it cannot be what was written."""
        info = found.info
        try:
            return self.codec.decode(block, self.block_size, found.body, info.content_encoding, info.metadata)
        except BadBlock as error:
            raise CorruptObject(f"object {info.key!r} in {self._store.name}: {error}", hint=error.hint) from None

    def write(self, block: int, body: bytes | None) -> str:
        """Store one block and return its ETag, or remove its object where the body is None (block 0: zeros)."""
        key = self.key(block)
        present = body is not None or block == 0
        with self._lock:
            self._writing.add(block)
            for read in self._reading.get(block, ()):
                read.overtaken = True
            for written in self._listings:
                written.add(block)
        # What a failed request did is unknown: it may have taken effect although its answer was lost.
        outcome: bool | None = None
        stored: Copy | None = None
        try:
            encoded = self.codec.encode(block, body or bytes(self.block_size)) if present else None
            if self._conditional:
                stored = self._write_if(block, encoded)
            elif encoded is not None:
                stored = self._put(block, encoded)
            else:
                self._store.delete(key)
            outcome = present
            return stored.etag if stored else ""
        finally:
            with self._lock:
                self._presence.set(block, outcome)
                if self._etags is not None:
                    self._etags.set(block, stored.etag if stored else None)
                self._keep_copy(block, stored)
                self._writing.discard(block)
                if outcome is None:
                    self._doubtful.add(block)
                else:
                    self._doubtful.discard(block)
                if self._unclear is not None and outcome is None:
                    self._unclear.add(block)

    def _write_if(self, block: int, encoded: Encoded | None) -> Copy | None:
        """Put a block, or delete it, if its object is what it is known to be, and return what was put."""
        assert self._etags is not None
        if self._lost:
            self._confirm()
            self._lost = False
        known, etag = self._presence.get(block), self._etags.get(block)
        # What is seen now of a doubtful block may be changed by what has failed; the store waits for that.
        unseen = known is None and block not in self._doubtful and self._is_left(block)
        if unseen or (known and etag is None):
            known, etag = self._ask(block)
        for attempt in range(_MOST_CONFLICTS):
            try:
                if encoded is not None:
                    return self._put(block, encoded, if_match=etag, if_none_match=etag is None)
                if known is not False:
                    self._store.delete(self.key(block), if_match=etag)
                return None
            except PreconditionFailed:
                if attempt == _MOST_CONFLICTS - 1:
                    raise
                if known is not None or block in self._doubtful:
                    self._confirm()
                if known is not None:
                    log.warning(
                        "object %r in %s was changed by somebody else and is replaced",
                        self.key(block),
                        self._store.name,
                    )
            known, etag = self._ask(block)
        raise AssertionError

    def _confirm(self) -> None:
        try:
            self.confirm()
        except BaseException:
            self._lost = True
            raise

    def _ask(self, block: int) -> tuple[bool, str | None]:
        """Return whether a block has an object, and its ETag."""
        try:
            return True, self._store.head(self.key(block)).etag
        except ObjectNotFound:
            return False, None

    def _begin_read(self, block: int) -> _Read:
        with self._lock:
            present = self._presence.get(block)
            overtaken = block in self._writing or block in self._doubtful
            unclear = block in self.doubted or self._is_left(block)
            known = self._etags is not None and present is not False and not (overtaken or unclear or self._lost)
            this = _Read(
                expected=self._exclusive and present is True,
                overtaken=overtaken,
                unclear=unclear,
                etag=self._etags.get(block) if self._etags is not None and known else None,
            )
            self._reading.setdefault(block, []).append(this)
        return this

    def _end_read(
        self,
        block: int,
        this: _Read,
        *,
        present: bool | None,
        etag: str | None = None,
        found: StoredObject | None = None,
    ) -> bool:
        """Learn from a read's answer (None: it had none), and keep a copy of what was ``found``.

        False if a write overtook it, so that it says nothing.
        """
        with self._lock:
            others = self._reading[block]
            others.remove(this)
            if not others:
                del self._reading[block]
            if this.overtaken:
                return False
            if this.unclear:
                return True
            # An object that vanished stays expected: reading it again is an error again, not zeros.
            if present is not None and not (this.expected and not present):
                self._presence.set(block, present)
                if self._etags is not None:
                    self._etags.set(block, etag)
            if found is not None:
                info = found.info
                self._keep_copy(block, Copy(info.etag, found.body, info.content_encoding, info.metadata))
            elif present is False:
                self._keep_copy(block, None)
            return True

    def _keep_copy(self, block: int, copy: Copy | None) -> None:
        """Let a copy of the block's object as it is now take the place of any other; None: there is none."""
        if self.copies is None:
            return
        if copy is not None and is_strong(copy.etag) and not self._is_ambiguous(copy):
            self.copies.keep(block, copy)
        else:
            self.copies.drop(block)

    def _is_ambiguous(self, copy: Copy) -> bool:
        """Return whether the body may be a block as it is as well as a compressed one: ETags do not tell which."""
        try:
            compressed = parse_encoding(copy.content_encoding).compression
        except BadBlock:
            return True
        return bool(compressed) and self.block_size <= len(copy.body) <= self.block_size + _MOST_PADDING

    def create(self, body: bytes | None = None, *, replace: str | None = None) -> None:
        """Put block 0, zeros unless ``body`` says otherwise, with the volume's metadata.

        PreconditionFailed if there is one, or another than the one whose ETag ``replace`` is.
        """
        encoded = self.codec.encode(0, bytes(self.block_size) if body is None else body)
        self._put(0, encoded, if_none_match=replace is None, if_match=replace)

    def _put(self, block: int, encoded: Encoded, *, if_none_match: bool = False, if_match: str | None = None) -> Copy:
        volume = {META_BLOCK_SIZE: str(self.block_size), META_SIZE: str(self._size)} if block == 0 else {}
        etag = self._store.put(
            self.key(block),
            encoded.body,
            content_type=BLOCK_CONTENT_TYPE,
            content_encoding=encoded.content_encoding,
            metadata={**volume, **encoded.metadata},
            if_none_match=if_none_match,
            if_match=if_match,
        )
        return Copy(etag, bytes(encoded.body), encoded.content_encoding, encoded.metadata)

    def known_absent(self, block: int) -> bool:
        """True only if it is certain that the block has no object."""
        return self._exclusive and block != 0 and self._presence.get(block) is False and not self._is_left(block)

    def next_possibly_present(self, block: int, stop: int) -> int:
        """Return the first block in [block, stop) that may have an object, else stop."""
        if not self._exclusive or block == 0:
            return block
        stop = self._presence.next_possibly_present(block, stop)
        return stop if self.left is None else self.left.next_left(block, stop)

    def _is_left(self, block: int) -> bool:
        return self.left is not None and self.left.is_left(block)

    def survey(self, stop_asked: Callable[[], bool], *, threads: int = 1) -> bool:
        """List the whole volume, page by page, and learn which blocks are there and which are not.

        Returns False if it was stopped. Only one survey may run at a time.
        """
        # Of what is added while it runs nothing was asked.
        count = self.block_count
        forgotten = self._presence.forgotten_pages
        with self._lock:
            self._unclear = self._writing | self._doubtful
        try:
            whole = walk(
                self.prefix,
                partial(self._survey_page, count),
                end=POSITIONS if self.hash_prefix else count,
                exact=not self.hash_prefix,
                threads=threads,
                stop_asked=stop_asked,
            )
            if whole and self.hash_prefix:
                # Hashed keys tell about absence only at the end.
                with self._lock:
                    unclear = self._unclear | self._writing
                    self._presence.learn(0, count, (), unclear, unless_forgotten=forgotten)
            return whole
        finally:
            with self._lock:
                self._unclear = None

    def _survey_page(self, count: int, after: str, claim: Claim) -> ListPage:
        """List one page and learn from it, except about blocks that are written meanwhile."""
        with self._lock:
            written = self._writing | self._doubtful
            self._listings.append(written)
        try:
            page = self._store.list(self.prefix, start_after=after)
            places = claim(page)
            with self._lock:
                present = []
                for entry in page.entries:
                    name = entry.key[len(self.prefix) :]
                    block = self._parse(entry.key)
                    if block is None or block >= count or not is_in(name, places):
                        continue
                    present.append(block)
                    if block in written:
                        continue
                    # A directory would have to read the block for its ETag.
                    if self._etags is not None and self._conditional:
                        self._etags.set(block, entry.etag)
                    if self.hash_prefix and self._presence.get(block) is None:
                        self._presence.set(block, True)
                if not self.hash_prefix:
                    for some in places:
                        inside = [block for block in present if block in some]
                        self._presence.learn(some.start, some.stop, inside, written)
            return page
        finally:
            with self._lock:
                self._listings = [other for other in self._listings if other is not written]

    def _parse(self, key: str) -> int | None:
        return parse_block_name(key[len(self.prefix) :], hash_prefix=self.hash_prefix)
