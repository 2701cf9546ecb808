"""The volume that is copied: which blocks it has, their bytes, and whether it stays as it is."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator

from s3backer.codec.block import BadBlock, parse_encoding
from s3backer.codec.choice import NONE
from s3backer.errors import CorruptObject, ObjectNotFound, S3backerError, VolumeInUse
from s3backer.layouts.block_set import BlockSet
from s3backer.layouts.classic import parse_block_name
from s3backer.layouts.token import read_token
from s3backer.opening import VolumeOptions, prepare, volume_name
from s3backer.stores.base import ListEntry, ObjectStore

log = logging.getLogger(__name__)


def place(store: ObjectStore, prefix: str) -> str:
    """Return what tells volumes apart: the same bucket's name means different things on different servers."""
    endpoint = getattr(store, "endpoint", "") if store.name.startswith("s3:") else ""
    return volume_name(store, prefix) + (f" at {endpoint}" if endpoint else "")


class Source:
    """An open volume that is only read. With ``force`` it may change meanwhile."""

    def __init__(self, store: ObjectStore, prefix: str, options: VolumeOptions, *, force: bool) -> None:
        self.store = store
        self.name = volume_name(store, prefix)
        self.place = place(store, prefix)
        self._force = force
        self.layout, _ = prepare(store, prefix, options)
        self.present = BlockSet()
        self._zero = self._zero_etag()
        self._listing = self._list(self.present)

    def encoding(self) -> str:
        """Return the compression of a block that is there, "none" where it or there is none."""
        for block in self.present:
            try:
                info = self.store.head(self.layout.key(block))
                return parse_encoding(info.content_encoding or self.layout.codec.assumed).compression or NONE
            except ObjectNotFound:
                break
            except BadBlock as error:
                what = f"object {self.layout.key(block)!r} in {self.store.name}"
                raise CorruptObject(f"{what}: {error}", hint=error.hint) from None
        return NONE if self.layout.codec.compression is None else self.layout.codec.compression.name

    def read(self, start: int, length: int) -> bytes | bytearray | None:
        """Return the bytes of whole blocks or of a part of one; None if no object holds any of it."""
        size = self.layout.block_size
        blocks = [b for b in range(start // size, -(-(start + length) // size)) if b in self.present]
        if not blocks:
            return None
        if length <= size:
            found = self._block(blocks[0])
            return None if found is None else found[start % size : start % size + length]
        joined = bytearray(length)
        for block in blocks:
            found = self._block(block)
            if found is not None:
                joined[block * size - start : block * size - start + size] = found
        return joined

    def _block(self, block: int) -> bytes | None:
        with naming(self.layout.key(block), self.name):
            found = self.layout.read(block)
        if found is None and not self._force:
            raise self._changed(f"object {self.layout.key(block)!r} has gone")
        return found

    def require_unchanged(self) -> None:
        """Raise VolumeInUse if the source is not as it was, or only say so where it was mounted from the start."""
        token = read_token(self.store, self.layout.prefix)
        problem = ""
        if token is not None:
            problem = f"it was mounted {token.describe()}"
        elif self._zero_etag() != self._zero:
            problem = f"object {self.layout.key(0)!r} has changed"
        elif self._list(None) != self._listing:
            problem = "its listing has changed"
        if problem and not self._force:
            raise self._changed(problem)
        if problem:
            log.warning("%s may have changed while it was copied: %s", self.name, problem)

    def _changed(self, problem: str) -> VolumeInUse:
        return VolumeInUse(
            f"{self.name} changed while it was copied: {problem}",
            hint="Leave it unmounted, and run the same 's3backer copy' with --resume.",
        )

    def _zero_etag(self) -> str | None:
        try:
            return self.store.head(self.layout.key(0)).etag
        except ObjectNotFound:
            return None

    def _list(self, present: BlockSet | None) -> bytes:
        """Return a digest of the listing; with ``present`` put its blocks there."""
        digest = hashlib.sha256()
        prefix = self.layout.prefix
        beyond, last = 0, ""
        for entry in _entries(self.store, prefix):
            block = parse_block_name(entry.key[len(prefix) :], hash_prefix=self.layout.hash_prefix)
            if block is None:
                continue
            if block >= self.layout.block_count:
                beyond, last = beyond + 1, entry.key
                continue
            if present is not None:
                present.add(block)
            # A directory's entries are of another class: their ETags are not known before they are asked for.
            etag = entry.etag if type(entry) is ListEntry else ""
            digest.update(f"{entry.key}\0{entry.size}\0{etag}\n".encode("utf-8", "surrogateescape"))
        if present is not None and beyond:
            log.warning("%s: %d blocks beyond its end, such as object %r, are not copied", self.name, beyond, last)
        return digest.digest()


def _entries(store: ObjectStore, prefix: str) -> Iterator[ListEntry]:
    after = ""
    while True:
        page = store.list(prefix, start_after=after)
        yield from page.entries
        if not page.truncated:
            return
        after = page.entries[-1].key


class naming:
    """Adds to an error which object was being copied, unless it says so itself."""

    def __init__(self, key: str, where: str) -> None:
        self._key, self._where = key, where

    def __enter__(self) -> None:
        """Do nothing yet."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, S3backerError) and self._key not in error.message:
            error.message = f"copying object {self._key!r} of {self._where}: {error.message}"
