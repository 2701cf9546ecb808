"""What comes before a volume is open: what it is, whether it is free, and the mark that it is ours.

what block 0 says ─► geometry ─► mount token ─► does block 0 still say so? ─► layout
"""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass

from s3backer.errors import UsageError, VolumeInUse, VolumeNotFound
from s3backer.geometry import MIB, check_geometry, plan_memory
from s3backer.layouts.classic import (
    ClassicLayout,
    Metadata,
    block_name,
    parse_block_name,
    read_metadata,
    unsupported_encoding,
)
from s3backer.layouts.token import MountToken, in_use, read_token, remove_token, write_token
from s3backer.stores.base import ObjectStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VolumeOptions:
    """How a volume is opened. Sizes in bytes, times in seconds."""

    memory: int = 256 * MIB
    threads: int = 16
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


def prepare(store: ObjectStore, prefix: str, options: VolumeOptions) -> tuple[ClassicLayout, MountToken | None]:
    """Return the layout of the volume in ``store`` under ``prefix`` and our token on it (None: read-only).

    Raises VolumeNotFound, VolumeInUse, UsageError, StoreError or CorruptObject, and leaves the bucket as it was.
    """
    layout, metadata = find_layout(store, prefix, options)
    token = _take_token(store, prefix, options)
    try:
        refuse_if_changed(store, prefix, options, metadata)
    except BaseException:
        if token is not None:
            remove_token(store, prefix, token)
        raise
    return layout, token


def find_layout(store: ObjectStore, prefix: str, options: VolumeOptions) -> tuple[ClassicLayout, Metadata | None]:
    """Return the layout of a volume, and what block 0 said about it, without looking at who has it mounted.

    Raises VolumeNotFound, UsageError, StoreError or CorruptObject.
    """
    metadata = read_metadata(store, prefix, hash_prefix=options.block_hash_prefix) if options.detect else None
    size, block_size = _geometry(volume_name(store, prefix), metadata, options)
    if metadata is not None and metadata.content_encoding:
        raise unsupported_encoding(
            prefix + block_name(0, hash_prefix=options.block_hash_prefix), metadata.content_encoding
        )
    layout = ClassicLayout(
        store,
        prefix,
        block_size=block_size,
        size=size,
        hash_prefix=options.block_hash_prefix,
        exclusive=not options.read_only,
        presence_budget=plan_memory(options.memory, block_size, options.threads).presence,
    )
    return layout, metadata


def refuse_if_changed(store: ObjectStore, prefix: str, options: VolumeOptions, metadata: Metadata | None) -> None:
    """Raise VolumeInUse if block 0 says something else than before the token was ours: somebody else had the volume."""
    if options.detect and read_metadata(store, prefix, hash_prefix=options.block_hash_prefix) != metadata:
        raise VolumeInUse(f"{volume_name(store, prefix)} was changed by somebody else just now", hint="Try again.")


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


def _geometry(url: str, metadata: Metadata | None, options: VolumeOptions) -> tuple[int, int]:
    """Return (size, block size) from what the volume says and what was asked for."""
    found_size = metadata.size if metadata else None
    found_block_size = metadata.block_size if metadata else None
    for what, asked, found in (
        ("size", options.size, found_size),
        ("block size", options.block_size, found_block_size),
    ):
        if asked is not None and found is not None and asked != found and not options.force:
            raise UsageError(
                f"{url} has a {what} of {found} bytes, not {asked}",
                hint=f"Leave the {what} out."
                + (" To change it, use 's3backer resize'." if what == "size" else " It cannot be changed."),
            )
    size = options.size or found_size
    block_size = options.block_size or found_block_size or options.default_block_size
    if size is None or block_size is None:
        raise VolumeNotFound(
            f"there is no volume at {url}",
            hint="Create one with 's3backer create', or give its size and block size if it has no metadata.",
        )
    check_geometry(size, block_size)
    return size, block_size


def _take_token(store: ObjectStore, prefix: str, options: VolumeOptions) -> MountToken | None:
    found = read_token(store, prefix)
    url = volume_name(store, prefix)
    if options.read_only:
        if found is not None:
            log.warning("%s is mounted %s: what is read here may be older or torn", url, found.describe())
        return None
    if found is not None and not options.force:
        raise in_use(url, found)
    if found is not None:
        log.warning("%s was mounted %s; taking it over by force", url, found.describe())
    return write_token(store, prefix, url, replace=found, random_source=random.SystemRandom())
