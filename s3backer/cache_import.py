"""Bringing the dirty blocks of the original's cache file into the bucket.

    file's token   bucket's token   what it means                             what is done
    T              T                that mount died, nobody came since        import
    T              none             unlocked or mounted since, or imported    refuse; done if the bucket has them all
    T              another          mounted by somebody else since            refuse
    0              any              cleanly unmounted: nothing is dirty       nothing; refuse if something is
``force`` imports in place of each refusal.

The order, and what stands where it ends early; the cache file is never changed:

    1  the token object is replaced, only if unchanged, by one of the same value T    before: as found
    2  block 0 still says the same? the blocks are written                            T: the same command again
    3  each is read back and compared with the file                                   T: the same command again
    4  the file and the token are still as they were? the token is removed            T: the same command again
       after that                                                                     no token; a repeat compares

With force over another token or none, T is put there too, so that a repeat needs no force. A file that names no token
gets a random one, and a repeat needs force again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from s3backer import _fast
from s3backer.cache_file import CacheFile
from s3backer.errors import CorruptObject, S3backerError, UsageError, VolumeInUse
from s3backer.holder import quiet_in, wait_until_quiet
from s3backer.layouts.classic import ClassicLayout, Metadata
from s3backer.layouts.token import MountToken, claim_token, in_use, new_token, read_token, remove_token, settle
from s3backer.opening import VolumeOptions, find_layout, refuse_if_changed, volume_name
from s3backer.stores.base import ObjectStore
from s3backer.units import exact_size

#: Called with (text, blocks done, blocks in all).
Progress = Callable[[str, int, int], None]
_THREADS = 16
#: Bytes of blocks under way; each block counts twice, as it is read and as it is sent.
_UNDER_WAY = 128 << 20
_REPEAT = "Nothing is lost: the cache file is unchanged, and the same command can be run again."


@dataclass(frozen=True, slots=True)
class CacheImport:
    """What is to be imported, and where. Made by ``plan_import``."""

    file: CacheFile
    store: ObjectStore
    layout: ClassicLayout
    options: VolumeOptions
    metadata: Metadata | None
    found: MountToken | None

    @property
    def url(self) -> str:
        """How messages name the volume."""
        return volume_name(self.store, self.layout.prefix)

    def refusal(self) -> VolumeInUse | None:
        """Return why this needs force, None if it does not."""
        token, found, name = self.file.header.token, self.found, self.file.path
        if found is not None and found.value == token:
            return None
        if not token:
            return VolumeInUse(
                f"{name} says that it was cleanly unmounted, and yet has {len(self.file.dirty_blocks)} dirty blocks",
                hint="Look at the volume first. --force writes these blocks over what is in the bucket.",
            )
        if found is None:
            return VolumeInUse(
                f"{name} was left by the mount with token {token:08x}, and {self.url} is marked as mounted by nobody",
                hint="The mark was removed, or the volume was mounted since and may have changed. --force writes the "
                "blocks over what is there, which destroys a file system that was written to since.",
            )
        return VolumeInUse(
            f"{name} was left by the mount with token {token:08x}, but {self.url} is mounted {found.describe()}",
            hint="Somebody mounted it since and may have changed it. --force takes it from that mount and writes the "
            "blocks over what is there, which destroys a file system that was written to since.",
        )

    def differing(self, progress: Progress) -> int:
        """Return how many dirty blocks are not in the bucket as the file has them. Changes nothing."""
        fresh = self._fresh_layout()
        different: list[int] = []

        def compare(block: int) -> None:
            if not _same(fresh.read(block), self.file.read(block)):
                different.append(block)

        self._for_all("comparing blocks", compare, progress)
        return len(different)

    def run(self, progress: Progress) -> None:
        """Write the blocks, see that they are in the bucket, and remove the token.

        Whatever is raised, the same can be done again; the module says with which token.
        """
        try:
            self._run(progress)
        except S3backerError as error:
            error.hint = f"{error.hint} {_REPEAT}".strip()
            raise

    def _run(self, progress: Progress) -> None:
        prefix = self.layout.prefix
        self.file.check_unchanged()
        token = new_token(random.SystemRandom(), value=self.file.header.token)
        token = claim_token(self.store, prefix, self.url, token, former=self.found)
        if self.found is not None:
            # By force: a mount that lives has to notice it first.
            wait_until_quiet(self.store, self.url, quiet_in(self.store, self.found, ended=False))
            now = read_token(self.store, prefix)
            if now is None or not now.is_put_of(token):
                raise in_use(self.url, now)
        refuse_if_changed(self.store, prefix, self.options, self.metadata)
        self._for_all("storing blocks", self._write, progress)
        fresh = self._fresh_layout()

        def verify(block: int) -> None:
            if not _same(fresh.read(block), self.file.read(block)):
                raise CorruptObject(
                    f"block {block} was stored, but {self.url} does not give back what {self.file.path} has",
                    hint="The store does not keep what it takes, or somebody else writes there.",
                )

        self._for_all("reading blocks back", verify, progress)
        self.file.check_unchanged()
        settle(self.store, self.url)
        now = read_token(self.store, prefix)
        if now is None or now.etag != token.etag:
            raise VolumeInUse(
                f"{self.url} was taken by somebody else during the import"
                + (f": mounted {now.describe()}" if now is not None else ": its mount token is gone"),
                hint="Two writers at once destroy the data: find out who that was.",
            )
        remove_token(self.store, prefix, token)
        settle(self.store, self.url)

    def _write(self, block: int) -> None:
        data = self.file.read(block)
        self.layout.write(block, None if _fast.is_zero(data) else data)

    def _fresh_layout(self) -> ClassicLayout:
        """Return a layout that knows nothing, and so asks the store about everything."""
        known = self.layout
        return ClassicLayout(
            self.store,
            known.prefix,
            block_size=known.block_size,
            size=known.size,
            codec=known.codec,
            hash_prefix=known.hash_prefix,
            exclusive=False,
        )

    def _for_all(self, text: str, task: Callable[[int], None], progress: Progress) -> None:
        """Run a task for every dirty block; the first error ends it, when the tasks under way have ended."""
        blocks = self.file.dirty_blocks
        threads = max(1, min(_THREADS, _UNDER_WAY // (2 * self.layout.block_size)))
        under_way: set[Future[None]] = set()
        done = 0
        progress(text, 0, len(blocks))
        with ThreadPoolExecutor(threads, thread_name_prefix="s3backer-import") as pool:
            for block in blocks:
                under_way.add(pool.submit(task, block))
                if len(under_way) >= threads:
                    finished, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                    done += _results(finished)
                    progress(text, done, len(blocks))
        done += _results(under_way)
        progress(text, done, len(blocks))


def plan_import(file: CacheFile, store: ObjectStore, prefix: str, options: VolumeOptions) -> CacheImport:
    """See that the file's dirty blocks belong into this volume. Changes nothing.

    ``options.force`` must be off. Raises UsageError where block size or block numbers do not fit, VolumeInUse
    for an unfinished copy, VolumeNotFound, StoreError or CorruptObject.
    """
    layout, metadata = find_layout(store, prefix, options)
    url = volume_name(store, prefix)
    if layout.block_size != file.header.block_size:
        raise UsageError(
            f"{file.path} has blocks of {exact_size(file.header.block_size)}, "
            f"{url} has blocks of {exact_size(layout.block_size)}",
            hint="It belongs to another volume, or a wrong block size was given.",
        )
    beyond = [block for block in file.dirty_blocks if block >= layout.block_count]
    if beyond:
        need = (beyond[-1] + 1) * layout.block_size
        raise UsageError(
            f"{file.path} has dirty blocks beyond the end of {url} ({layout.block_count} blocks): {_some(beyond)}",
            hint="It belongs to another volume, or that mount had made the volume larger. If so: 's3backer resize' to "
            f"its size (at least {need}) with --force, then import with --force.",
        )
    found = read_token(store, prefix)
    if found is not None and found.copy is not None:
        raise in_use(url, found)
    return CacheImport(file, store, layout, options, metadata, found)


def _results(futures: Iterable[Future[None]]) -> int:
    count = 0
    for future in futures:
        future.result()
        count += 1
    return count


def _same(stored: bytes | None, wanted: bytes) -> bool:
    return _fast.is_zero(wanted) if stored is None else stored == wanted


def _some(blocks: list[int]) -> str:
    return ", ".join(map(str, blocks[:5])) + (f" and {len(blocks) - 5} more" if len(blocks) > 5 else "")
