"""What comes before a volume is open: what it is, whether it is free, and the mark that it is ours.

    block 0 ─► geometry, codec ─► can its blocks be decoded? ─► mount token ─► does block 0 still say so? ─► layout

A password is tried on a block that is there before anything is written: block 0, else the first of a listing. So is
its absence. Only a volume without any block takes every password.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from s3backer.codec.block import WrongSignature
from s3backer.codec.choice import AS_THE_VOLUME, EncodingOptions, choose_codec
from s3backer.errors import (
    CorruptObject,
    ObjectNotFound,
    UsageError,
    VolumeInUse,
    VolumeNotFound,
    WrongPassword,
)
from s3backer.geometry import MIB, MemoryPlan, check_geometry, knowledge_budget, plan_memory, smallest_budget
from s3backer.holder import Holder, Looks, take
from s3backer.journal.files import JournalDirectory
from s3backer.journal.service import file_bytes_for
from s3backer.layouts.classic import (
    ClassicLayout,
    Metadata,
    block_name,
    parse_block_name,
    parse_metadata,
    read_metadata,
    stated_block_size,
)
from s3backer.layouts.token import MountToken, in_use, read_token
from s3backer.lease import TERM
from s3backer.stores.base import ObjectInfo, ObjectStore, StoredObject
from s3backer.telemetry.prices import CURRENT, Prices
from s3backer.units import exact_size

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VolumeOptions:
    """How a volume is opened. Sizes in bytes, times in seconds.

    ``prices`` are those of the bill, ``monthly_budget`` is in dollars.
    ``cache_blocks`` sets the memory budget in blocks instead of bytes. ``max_dirty``: blocks not stored yet at which
    writers wait; 0 leaves it to the memory. ``write_through``: a write returns when it is in the bucket.
    ``disk_cache``: bytes that copies of blocks may take in ``disk_cache_directory``, None: there are none.
    ``journal``: bytes of the journal, 0: there is none; ``journal_directory``: in which those of all volumes are. Where
    that is given there is a note of a mount without a journal, too, so that the next one on this host knows that it has
    died. ``lease``: the term for which the volume is ours without renewing it.
    """

    memory: int = 256 * MIB
    cache_blocks: int | None = None
    max_dirty: int = 0
    write_through: bool = False
    threads: int = 64
    write_delay: float = 5.0
    read_only: bool = False
    force: bool = False
    list_blocks: bool = True
    size: int | None = None
    block_size: int | None = None
    block_hash_prefix: bool = False
    #: Used where neither the volume nor ``block_size`` says one.
    default_block_size: int | None = None
    #: Whether block 0's metadata is asked for (the original's noAutoDetect turns it off).
    detect: bool = True
    encoding: EncodingOptions = AS_THE_VOLUME
    prices: Prices = CURRENT
    monthly_budget: float | None = None
    disk_cache: int | None = None
    disk_cache_directory: str | None = None
    journal: int = 0
    journal_directory: str | None = None
    lease: float = TERM

    @property
    def journaled(self) -> bool:
        """Whether there is a journal: where each write is in the bucket when it returns, none is needed."""
        return self.journal > 0 and not self.write_through

    def budget(self, block_size: int) -> int:
        """Return the memory budget in bytes for blocks of that size."""
        if self.cache_blocks is None:
            return self.memory
        return max(self.cache_blocks * block_size, smallest_budget(block_size))

    def plan(self, block_size: int, copies: int) -> MemoryPlan:
        """Return how the memory is divided; UsageError if it is too little."""
        if self.journal:
            # Before the bucket is written to: whether there can be one.
            file_bytes_for(block_size, self.journal)
        return plan_memory(
            self.budget(block_size),
            block_size,
            self.threads,
            copies=copies,
            disk_cache=self.disk_cache is not None,
            journal=self.journal > 0,
        )


def prepare(
    store: ObjectStore,
    prefix: str,
    options: VolumeOptions,
    directory: JournalDirectory | None = None,
    looks: Looks | None = None,
    holder: Holder | None = None,
) -> tuple[ClassicLayout, Holder | None]:
    """Return the layout of the volume in ``store`` under ``prefix`` and our token on it (None: read-only).

    ``directory``, of the journal, is told of the token before it is put. ``looks``: see ``holder.take``. ``holder``: of
    a token that is ours already, because the journal was taken over; it stays, whatever comes. Raises
    VolumeNotFound, VolumeInUse, UsageError, WrongPassword, StoreError or CorruptObject, and leaves the bucket as it
    was.
    """
    layout, metadata = find_layout(store, prefix, options)
    # Seen before the bucket is written to.
    options.plan(layout.block_size, layout.codec.copies)
    if holder is not None:
        layout.confirm = holder.confirm
        return layout, holder
    holder = _take_token(
        store, prefix, options, directory, looks, lambda: refuse_if_changed(store, prefix, options, metadata)
    )
    if holder is not None:
        layout.confirm = holder.confirm
    return layout, holder


def find_layout(store: ObjectStore, prefix: str, options: VolumeOptions) -> tuple[ClassicLayout, Metadata | None]:
    """Return the layout of a volume, and what block 0 said about it, without looking at who has it mounted.

    Raises VolumeNotFound, UsageError, StoreError or CorruptObject.
    """
    info = _block_zero(store, prefix, options)
    if info is None:
        # Said before anybody is asked for a size: the mark of an unfinished copy, which gets its block 0 last.
        _refuse_unfinished(store, prefix, read_token(store, prefix))
    metadata = parse_metadata(info) if info is not None and options.detect else None
    stated = stated_block_size(info) if info is not None and options.detect else None
    size, block_size = _geometry(volume_name(store, prefix), metadata.size if metadata else None, stated, options)
    layout = ClassicLayout(
        store,
        prefix,
        block_size=block_size,
        size=size,
        hash_prefix=options.block_hash_prefix,
        exclusive=not options.read_only,
        knowledge=knowledge_budget(options.budget(block_size)),
        with_copies=options.disk_cache is not None,
    )
    block, first = 0, None
    if info is not None and options.encoding.secret:
        # Only now is it known how large it can rightly be.
        try:
            first = layout.fetch(0)
        except ObjectNotFound:
            raise _changed(store, prefix) from None
        info = first.info
    elif info is None:
        # Whatever else is there tells as well how blocks are stored.
        found = first_object(store, layout, 0)
        if found is not None:
            block, first = found, layout.fetch(found)
            info = first.info
        else:
            _refuse_other_naming(store, layout)
    layout.codec = choose_codec(
        options.encoding,
        None if info is None else info.content_encoding,
        bucket=store.bucket,
        prefix=prefix,
        block=f"block {block} of {volume_name(store, prefix)}",
    )
    if layout.codec.cipher is not None and first is not None:
        _try_password(layout, block, first)
    return layout, metadata


def refuse_if_changed(store: ObjectStore, prefix: str, options: VolumeOptions, metadata: Metadata | None) -> None:
    """Raise VolumeInUse if block 0 says something else than before the token was ours: somebody else had the volume."""
    if options.detect and read_metadata(store, prefix, hash_prefix=options.block_hash_prefix) != metadata:
        raise _changed(store, prefix)


def _changed(store: ObjectStore, prefix: str) -> VolumeInUse:
    return VolumeInUse(f"{volume_name(store, prefix)} was changed by somebody else just now", hint="Try again.")


def _refuse_unfinished(store: ObjectStore, prefix: str, token: MountToken | None) -> None:
    if token is not None and token.copy is not None:
        raise in_use(volume_name(store, prefix), token)


def _refuse_other_naming(store: ObjectStore, layout: ClassicLayout) -> None:
    """Raise UsageError where the blocks have keys of the other naming: what is there would be taken for zeros."""
    hashed = not layout.hash_prefix
    other = ClassicLayout(
        store, layout.prefix, block_size=layout.block_size, size=layout.size, hash_prefix=hashed, exclusive=False
    )
    if first_object(store, other, 0) is not None:
        raise UsageError(
            f"the keys of the blocks at {volume_name(store, layout.prefix)} {'begin' if hashed else 'do not begin'} "
            "with a hash",
            hint=f"{'Give' if hashed else 'Leave out'} --block-hash-prefix.",
        )


def _block_zero(store: ObjectStore, prefix: str, options: VolumeOptions) -> ObjectInfo | None:
    """Return the facts of block 0; None if it is absent."""
    try:
        return store.head(prefix + block_name(0, hash_prefix=options.block_hash_prefix))
    except ObjectNotFound:
        return None


def _try_password(layout: ClassicLayout, block: int, found: StoredObject) -> None:
    """Raise WrongPassword, or CorruptObject, if a block that is there cannot be decoded."""
    try:
        layout.decode(block, found)
    except CorruptObject as error:
        if isinstance(error.__context__, WrongSignature):
            raise WrongPassword(
                f"the password is wrong, or object {found.info.key!r} was altered",
                hint="Check the password, the cipher's key length, and the names of bucket and prefix, which belong "
                "to the key. Nothing was written.",
            ) from None
        raise


def volume_name(store: ObjectStore, prefix: str) -> str:
    """Return how messages name a volume."""
    return f"{store.name}/{prefix}".rstrip("/")


def first_object(store: ObjectStore, layout: ClassicLayout, block: int) -> int | None:
    """Return a block at or after ``block`` inside the volume that has an object, None if there is none."""
    after = layout.key(block - 1) if block and not layout.hash_prefix else ""
    while True:
        page = store.list(layout.prefix, start_after=after)
        for entry in page.entries:
            found = parse_block_name(entry.key[len(layout.prefix) :], hash_prefix=layout.hash_prefix)
            if found is not None and block <= found < layout.block_count:
                return found
        if not page.truncated:
            return None
        after = page.entries[-1].key


def _geometry(
    url: str, found_size: int | None, found_block_size: int | None, options: VolumeOptions
) -> tuple[int, int]:
    """Return (size, block size) from what the volume says and what was asked for."""
    for what, asked, found in (
        ("size", options.size, found_size),
        ("block size", options.block_size, found_block_size),
    ):
        if asked is not None and found is not None and asked != found and not options.force:
            raise UsageError(
                f"{url} has a {what} of {exact_size(found)}, not {exact_size(asked)}",
                hint=f"Leave the {what} out."
                + (" To change it, use 's3backer resize'." if what == "size" else " It cannot be changed."),
            )
    size = options.size or found_size
    block_size = options.block_size or found_block_size or options.default_block_size
    if size is None or block_size is None:
        if found_block_size is not None:
            raise VolumeNotFound(
                f"the size of the volume at {url} is not stored with it, only that of its blocks, "
                f"{exact_size(found_block_size)}",
                hint="Give the size; it is stored with the next write to the first block.",
            )
        raise VolumeNotFound(
            f"there is no volume at {url}",
            hint="Create one with 's3backer create', or give its size and block size if it has no metadata.",
        )
    check_geometry(size, block_size)
    return size, block_size


def _take_token(
    store: ObjectStore,
    prefix: str,
    options: VolumeOptions,
    directory: JournalDirectory | None,
    looks: Looks | None,
    check: Callable[[], None],
) -> Holder | None:
    """Return our token, None for who only reads; ``check``: see ``holder.take``."""
    found = read_token(store, prefix)
    url = volume_name(store, prefix)
    _refuse_unfinished(store, prefix, found)
    if options.read_only:
        if found is not None:
            log.warning("%s is mounted %s: what is read here may be older or torn", url, found.describe())
        check()
        return None
    if found is not None and options.force:
        given_up = f"; what it flushed may be in its journal, {found.journal} there, only" if found.journal else ""
        log.warning("%s was mounted %s; taking it over by force%s", url, found.describe(), given_up)
    return take(
        store,
        prefix,
        url,
        found,
        force=options.force,
        lease=options.lease,
        journal=directory.place if directory and options.journaled else "",
        directory=directory,
        looks=looks,
        check=check,
    )
