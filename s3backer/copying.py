"""Copying a volume into another bucket, prefix, encoding or block size.

    note in the token ─► list both ─► every block: read, write, read back ─► did the source change? ─►
    are exactly these objects there? ─► is the token ours? ─► block 0, read back ─► token removed: a volume

Guarantees
  * What has the mount token or lacks block 0 is no complete copy, and both hold from the first write to the last. The
    token says that it is a copy; no mount takes it over, not even by force. The original refuses it too: it sees the
    token, and without block 0 it asks for a size.
  * Each block of the copy is read back from the store, decoded and compared with what was read from the source. A run
    that goes on with an unfinished copy trusts nothing that it finds: a block is kept if it is read, decoded and equal,
    and written again if not; what the source does not have any more is deleted.
  * Holes stay holes. A source block without an object is never asked for, zeros never become an object.
  * A source that was mounted or changed meanwhile is an error (its token, block 0's ETag, and keys, sizes and ETags in
    its listing; the listing of a directory has no ETags, because telling them means reading everything once more).
  * Memory is bounded by ``CopyOptions.memory``, or by one unit where that is larger, and a bit for each block.

What a crash or a failed request leaves, and what a second run does with ``resume``

    before the token                   nothing
    from the token to block 0          token and some blocks: compared, completed
    block 0 put, token there           compared, token removed
    token removed                      a volume: VolumeExists

A copy is made from the bucket only. The journal of a mount that has the source, or has died, may have more, which is
said with what brings it there.

Two runs at once: the later one replaces the token, which ends the earlier one within ``_TOKEN_SECONDS`` and the
requests under way. That is why ``resume`` has to be said: the earlier run should be dead.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

from s3backer import _fast
from s3backer.admin import volume_objects
from s3backer.codec.block import BlockCodec
from s3backer.codec.choice import AS_THE_VOLUME, EncodingOptions, choose_codec
from s3backer.copy_source import Source, naming, place
from s3backer.errors import (
    CorruptObject,
    ObjectNotFound,
    PreconditionFailed,
    S3backerError,
    StoreError,
    UsageError,
    VolumeExists,
    VolumeInUse,
    WrongPassword,
)
from s3backer.geometry import MIB, check_geometry
from s3backer.journal.named import if_died
from s3backer.layouts.block_set import BlockSet
from s3backer.layouts.classic import MAX_BLOCKS, ClassicLayout, parse_metadata
from s3backer.layouts.copy_note import CopyNote
from s3backer.layouts.token import MountToken, in_use, new_token, read_token, remove_token, settle, write_token
from s3backer.opening import VolumeOptions, volume_name
from s3backer.stores.base import ObjectStore

log = logging.getLogger(__name__)

#: How often a run looks whether the token is still its own, in seconds.
_TOKEN_SECONDS = 10.0
#: Copies of a unit that exist at most while it is copied: read, decoded, joined, encoded, read back, decoded again.
_COPIES = 6
#: Seconds between two reports of progress.
_LOOK = 0.2

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class CopyOptions:
    """What becomes of a copy. Sizes in bytes; what is None is as in the source.

    ``plain``: not encrypted, even if the source is. ``resume``: go on with an unfinished copy. ``force``: copy a
    source that is mounted, although what comes out may be torn.
    """

    block_size: int | None = None
    block_hash_prefix: bool = False
    encoding: EncodingOptions = AS_THE_VOLUME
    plain: bool = False
    threads: int = 16
    memory: int = 256 * MIB
    resume: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True)
class CopyResult:
    """What a copy has become. Sizes in bytes; ``written`` and ``kept`` count the copy's blocks."""

    size: int
    block_size: int
    written: int
    kept: int


def copy_volume(
    source: ObjectStore,
    source_prefix: str,
    target: ObjectStore,
    target_prefix: str,
    *,
    source_options: VolumeOptions | None = None,
    options: CopyOptions | None = None,
    progress: Progress | None = None,
) -> CopyResult:
    """Copy a volume; when it returns, the copy is complete, read back and compared.

    ``progress`` is called with (units copied, units), a unit being a block of the larger size. Raises VolumeNotFound,
    VolumeInUse, VolumeExists, UsageError, WrongPassword, StoreError or CorruptObject. The source is never written.
    """
    options = options or CopyOptions()
    # No cache is made, so that no memory has to suffice for one; so few blocks stand for as little as works.
    source_options = replace(source_options or VolumeOptions(), read_only=True, cache_blocks=1)
    if place(source, source_prefix) == place(target, target_prefix):
        raise UsageError(
            f"{volume_name(source, source_prefix)} would be copied onto itself", hint="Give another bucket or prefix."
        )
    token = read_token(source, source_prefix)
    if token is not None:
        _refuse_mounted(source, source_prefix, token, force=options.force)
    reader = Source(source, source_prefix, source_options, force=options.force)
    layout = _target_layout(reader, target, target_prefix, source_options.encoding, options)
    return _Copy(reader, target, layout, options).run(progress or (lambda done, total: None))


def _refuse_mounted(source: ObjectStore, prefix: str, token: MountToken, *, force: bool) -> None:
    """Raise VolumeInUse for a source with a token; with ``force`` only if it is itself an unfinished copy."""
    url = volume_name(source, prefix)
    error = in_use(url, token, died=if_died(source, prefix, url, token) if token.journal else "")
    if token.copy is not None:
        raise error
    if not force:
        error.hint = f"{error.hint.rstrip('.')}. With --force it is copied as it is, perhaps torn."
        raise error
    if token.journal:
        log.warning("%s: what it flushed may be in that only, and is not copied", error.message)


def _target_layout(
    source: Source, store: ObjectStore, prefix: str, secrets: EncodingOptions, options: CopyOptions
) -> ClassicLayout:
    """Return the layout of the copy. Raises UsageError where geometry or encoding cannot be had."""
    block_size = options.block_size or source.layout.block_size
    check_geometry(source.layout.size, block_size)
    return ClassicLayout(
        store,
        prefix,
        block_size=block_size,
        size=source.layout.size,
        codec=choose_codec(
            _encoding(source, secrets, options),
            None,
            bucket=store.bucket,
            prefix=prefix,
            block=f"block 0 of {volume_name(store, prefix)}",
        ),
        hash_prefix=options.block_hash_prefix,
    )


def _encoding(source: Source, secrets: EncodingOptions, options: CopyOptions) -> EncodingOptions:
    """Return how the copy's blocks are stored: what was asked for, and the rest as the source's are.

    What is encrypted stays so, with the same cipher and password, unless ``plain`` was said.
    """
    asked, cipher = options.encoding, source.layout.codec.cipher
    compress = source.encoding() if asked.compress is None else asked.compress
    if options.plain and asked.secret:
        raise UsageError(
            "a copy cannot be plain and encrypted", hint="Leave out --to-plain, or the new cipher and password."
        )
    if cipher is None and asked.password is not None and asked.encrypt is None:
        raise UsageError(
            f"{source.name} is not encrypted, and a password alone does not say how its copy shall be",
            hint="Give --to-encrypt too, for example AES-256-CBC.",
        )
    if options.plain or (cipher is None and asked.encrypt is None):
        return EncodingOptions(compress=compress, compress_level=asked.compress_level)
    encrypt = asked.encrypt or (cipher.kind.name if cipher is not None else None)
    same = cipher is not None and cipher.kind.name == encrypt
    return EncodingOptions(
        compress=compress,
        compress_level=asked.compress_level,
        encrypt=encrypt,
        password=secrets.password if asked.password is None else asked.password,
        key_length=asked.key_length or (cipher.key_length if same and cipher is not None else 0),
    )


def _note(source: Source, layout: ClassicLayout) -> CopyNote:
    codec: BlockCodec = layout.codec
    return CopyNote(
        source=source.place,
        size=layout.size,
        block_size=layout.block_size,
        block_hash_prefix=layout.hash_prefix,
        encoding=codec.content_encoding,
        key_length=0 if codec.cipher is None else codec.cipher.key_length,
        # No block has this number: what it signs can be put in no block's place.
        password_check="" if codec.cipher is None else codec.cipher.encrypt(MAX_BLOCKS, b"")[1],
    )


class _Copy:
    """One run."""

    def __init__(self, source: Source, store: ObjectStore, layout: ClassicLayout, options: CopyOptions) -> None:
        self._source = source
        self._store = store
        self._layout = layout
        self._options = options
        self._name = volume_name(store, layout.prefix)
        # Divides the size, because both block sizes do.
        self._unit = max(source.layout.block_size, layout.block_size)
        #: The copy's blocks that were there at the beginning, and those that must be there at the end, without block 0.
        self._there = BlockSet()
        self._expected = BlockSet()
        self._written = self._kept = self._done = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._error: BaseException | None = None

    def run(self, progress: Progress) -> CopyResult:
        """Copy; see ``copy_volume``."""
        token = self._take_token()
        self._copy_blocks(token, progress)
        self._finish(token)
        return CopyResult(self._layout.size, self._layout.block_size, self._written, self._kept)

    # ── the mark ─────────────────────────────────────────────────────────────────────────────────────

    def _take_token(self) -> MountToken:
        """Mark the target as our unfinished copy. Raises VolumeExists, VolumeInUse, WrongPassword or UsageError."""
        prefix = self._layout.prefix
        note = _note(self._source, self._layout)
        found = read_token(self._store, prefix)
        if found is not None:
            self._require_ours(found, note)
        elif next(volume_objects(self._store, prefix), None) is not None:
            raise self._exists()
        token = write_token(self._store, prefix, self._name, new_token(random.SystemRandom(), copy=note), former=found)
        for entry, block in volume_objects(self._store, prefix):
            if block is None:
                continue
            if found is None:
                # Made between the two listings, by somebody who did not see our token.
                remove_token(self._store, prefix, token)
                raise self._exists()
            if entry.key != self._layout.key(block) or block >= self._layout.block_count:
                raise VolumeExists(
                    f"object {entry.key!r} in {self._store.name} belongs to no copy",
                    hint="Give the copy up with 's3backer erase --force', and use another prefix.",
                )
            self._there.add(block)
        return token

    def _require_ours(self, found: MountToken, note: CopyNote) -> None:
        if found.copy is None or not self._options.resume:
            raise in_use(self._name, found)
        difference = found.copy.difference(note)
        if difference is not None:
            only_password = replace(found.copy, password_check=note.password_check) == note
            raise (WrongPassword if only_password else UsageError)(
                f"the unfinished copy at {self._name} {difference}",
                hint="Give the options with which it was begun, or give it up with 's3backer erase --force'.",
            )

    def _exists(self) -> VolumeExists:
        return VolumeExists(
            f"there is a volume at {self._name} already",
            hint="Use another prefix, or 's3backer erase' to destroy what is there.",
        )

    def _require_token(self, token: MountToken) -> None:
        found = read_token(self._store, self._layout.prefix)
        if found is None or found.value != token.value:
            raise VolumeInUse(
                f"the mark of the unfinished copy at {self._name} "
                + ("has gone" if found is None else f"was replaced {found.describe()}"),
                hint="Another run goes on with it, or somebody removed it. Find out which.",
            )

    # ── the blocks ───────────────────────────────────────────────────────────────────────────────────

    def _copy_blocks(self, token: MountToken, progress: Progress) -> None:
        """Copy all units but for the copy's block 0. The first error ends it and is raised."""
        units = BlockSet()
        for size, blocks in (
            (self._source.layout.block_size, self._source.present),
            (self._layout.block_size, self._there),
        ):
            for block in blocks:
                units.add(block * size // self._unit)
        total, waiting = len(units), iter(units)
        threads = max(1, min(self._options.threads, self._options.memory // (_COPIES * self._unit)))
        with ThreadPoolExecutor(threads, thread_name_prefix="s3backer-copy") as pool:
            try:
                workers = self._start(pool, threads, waiting)
                looked = time.monotonic()
                while wait(workers, _LOOK).not_done:
                    progress(self._done, total)
                    if time.monotonic() - looked > _TOKEN_SECONDS:
                        self._require_token(token)
                        looked = time.monotonic()
            finally:
                self._stop.set()
        if self._error is not None:
            raise self._error
        progress(self._done, total)

    def _start(self, pool: ThreadPoolExecutor, threads: int, waiting: Iterator[int]) -> list[Future[None]]:
        """Start so many threads, or as many as the system allows."""
        workers: list[Future[None]] = []
        try:
            for _ in range(threads):
                workers.append(pool.submit(self._work, waiting))
        except RuntimeError as error:
            if not workers:
                raise S3backerError(
                    f"no thread can be started: {error}",
                    hint="Raise the limit of processes (ulimit -u), then run the same with --resume.",
                ) from None
        return workers

    def _work(self, waiting: Iterator[int]) -> None:
        while not self._stop.is_set():
            with self._lock:
                unit = next(waiting, None)
            if unit is None:
                return
            try:
                self._copy_unit(unit)
            except BaseException as error:
                with self._lock:
                    self._error = self._error or error
                self._stop.set()
                return
            with self._lock:
                self._done += 1

    def _copy_unit(self, unit: int) -> None:
        start, size = unit * self._unit, self._layout.block_size
        data = self._source.read(start, self._unit)
        for offset in range(0, self._unit, size):
            block = (start + offset) // size
            if block:
                part = None if data is None else bytes(data[offset : offset + size])
                with naming(self._layout.key(block), self._name):
                    self._settle(block, part)

    def _settle(self, block: int, data: bytes | None) -> None:
        """Make the copy's block what the source has; None: zeros."""
        if data is None or _fast.is_zero(data):
            if block in self._there:
                self._layout.write(block, None)
            return
        kept = block in self._there and self._holds(block, data)
        if not kept:
            self._layout.write(block, data)
            if not self._holds(block, data):
                raise self._not_as_written(block)
        with self._lock:
            self._expected.add(block)
            self._kept += kept
            self._written += not kept

    def _holds(self, block: int, data: bytes) -> bool:
        """Return whether the block's object, read from the store, is what would be written."""
        try:
            found = self._layout.fetch(block)
            if found.info.content_encoding != self._layout.codec.content_encoding:
                return False
            if block == 0:
                said = parse_metadata(found.info)
                if said is None or (said.size, said.block_size) != (self._layout.size, self._layout.block_size):
                    return False
            return self._layout.decode(block, found) == data
        except (ObjectNotFound, CorruptObject):
            return False

    def _not_as_written(self, block: int) -> CorruptObject:
        return CorruptObject(
            f"object {self._layout.key(block)!r} in {self._store.name} is not what was written there a moment ago",
            hint="The store or something on the way to it alters data: do not trust it. The source is as it was.",
        )

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────

    def _finish(self, token: MountToken) -> None:
        """Make the copy a volume, once everything else is seen to be right."""
        data = self._source.read(0, self._layout.block_size)
        self._source.require_unchanged()
        self._require_listing()
        self._require_token(token)
        self._put_zero(bytes(self._layout.block_size) if data is None else bytes(data))
        settle(self._store, self._name)
        try:
            other = remove_token(self._store, self._layout.prefix, token)
        except StoreError:
            # Perhaps only its answer was lost.
            if read_token(self._store, self._layout.prefix) is not None:
                raise
            other = None
        if other is not None:
            raise in_use(self._name, other)
        settle(self._store, self._name)

    def _require_listing(self) -> None:
        """Raise StoreError unless exactly the blocks of the copy are there, block 0 apart."""
        found = BlockSet()
        for entry, block in volume_objects(self._store, self._layout.prefix):
            if not block:
                continue
            if entry.key != self._layout.key(block) or block not in self._expected:
                raise StoreError(
                    f"object {entry.key!r} in {self._store.name} is not part of the copy",
                    hint="Somebody else writes there. Find out who, then run the same 's3backer copy' with --resume.",
                )
            found.add(block)
        if len(found) != len(self._expected):
            missing = next(block for block in self._expected if block not in found)
            raise StoreError(
                f"object {self._layout.key(missing)!r} was written and is not in the listing of {self._store.name}",
                hint="Somebody deleted it, or the store lost it. Run the same 's3backer copy' with --resume.",
            )

    def _put_zero(self, data: bytes) -> None:
        """Put block 0, which makes the copy a volume, and read it back."""
        if 0 in self._there and self._holds(0, data):
            self._kept += 1
            return
        try:
            old = self._store.head(self._layout.key(0)).etag if 0 in self._there else None
            self._layout.create(data, replace=old)
        except (PreconditionFailed, ObjectNotFound):
            raise self._exists() from None
        if not self._holds(0, data):
            raise self._not_as_written(0)
        self._written += 1
