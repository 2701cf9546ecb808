"""Writing what a journal holds: into the bucket, or to a file."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO

from s3backer import _fast
from s3backer.cache_calls import Done
from s3backer.driver import Driver, Waiter
from s3backer.errors import AccessDenied, BucketNotFound, S3backerError, UsageError, VolumeInUse, is_full
from s3backer.failpoints import reach
from s3backer.journal.replay import Recovered
from s3backer.layouts.classic import ClassicLayout
from s3backer.opening import VolumeOptions
from s3backer.stores.base import Buffer, ObjectStore

#: Told (bytes of data written, of so many); with zeros while something is waited for.
Progress = Callable[[int, int], None]
#: Pieces of zeros in a file.
_ZEROS = bytes(1 << 20)
#: Seconds for which stores may fail before a replay is given up, and between two looks.
_PATIENCE, _LOOK = 60.0, 0.25
#: What asking again would not change.
_FINAL = (AccessDenied, BucketNotFound, VolumeInUse)


class Replayer:
    """What was ``found`` in a journal, to be written once."""

    def __init__(self, found: Recovered, progress: Progress, begins: Callable[[], None] = lambda: None) -> None:
        self._found, self._progress, self._begins = found, progress, begins
        self._shown = (0, found.data_bytes)
        self._failing_since: float | None = None
        #: Whether something of it may be in the bucket.
        self.began = False

    def store(self, store: ObjectStore, layout: ClassicLayout, options: VolumeOptions) -> int:
        """Write all of it to the volume, and return how many bytes lay beyond its end.

        Raises what storing raises when that is final, or has lasted for a minute; if it had begun the store is closed.
        """
        plan = options.plan(layout.block_size, layout.codec.copies)
        slab = _fast.Slab(layout.block_size, plan.slots, plan.dirty_limit)
        driver = Driver(slab, layout, threads=plan.threads, write_delay=0.0)
        beyond = 0
        try:
            for offset, data, length in self._pieces(layout.codec.secret):
                reach("replay-write")
                if not self.began:
                    self._begins()
                self.began = True
                fitting = max(0, min(length, layout.size - offset))
                beyond += length - fitting
                if fitting and data is not None:
                    piece = memoryview(data)[:fitting]
                    self._wait(driver, lambda done: driver.begin_write(offset, piece, done))  # noqa: B023
                for start in range(offset, offset + fitting, driver.zero_step) if data is None else ():
                    part = min(driver.zero_step, offset + fitting - start)
                    self._wait(driver, lambda done: driver.begin_zero(start, part, done))  # noqa: B023
            self._wait(driver, driver.begin_flush)
        except BaseException:
            if self.began:
                # Whatever waits for another attempt ends now.
                store.close()
            raise
        finally:
            driver.abandon()
        return beyond

    def save(self, path: str, key: bytes | None) -> None:
        """Write it to a new file, each byte at its place on the volume; ``key``: what that is encrypted with.

        What is missing of it is zeros there. However this fails or is interrupted, it leaves no file.
        """
        try:
            # Of a volume that only its owner may read.
            with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                try:
                    self._write(file, key)
                except BaseException:
                    # A part of it looks like all of it.
                    with contextlib.suppress(OSError):
                        os.unlink(path)
                    raise
        except OSError as error:
            larger = "Free some space, or name a file on a larger disk."
            hint = larger if is_full(error) else "Name another file."
            raise UsageError(f"{path} cannot be written: {error.strerror}", hint=hint) from None

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────

    def _write(self, file: BinaryIO, key: bytes | None) -> None:
        for offset, data, length in self._pieces(key):
            _write_at(file, offset, data, length)
        for start, stop in (*self._found.missing, *self._found.elsewhere):
            # What stands there is older.
            _write_at(file, start, None, stop - start)
        file.flush()
        os.fsync(file.fileno())

    def _wait(self, driver: Driver, begin: Callable[[Done], object]) -> None:
        """Do one thing; raise when what it needs fails for good, or for too long."""
        while True:
            waiter = Waiter()
            begin(waiter.done)
            while not waiter.ended(_LOOK):
                self._progress(*self._shown)
                failure = driver.failure
                if failure is None:
                    self._failing_since = None
                else:
                    self._look_at(failure)
            try:
                waiter.wait()
            except S3backerError as error:
                self._look_at(error)
                time.sleep(_LOOK)
            else:
                self._failing_since = None
                return

    def _look_at(self, failure: S3backerError) -> None:
        if self._failing_since is None:
            self._failing_since = time.monotonic()
        if isinstance(failure, _FINAL) or time.monotonic() - self._failing_since > _PATIENCE:
            raise failure

    def _pieces(self, key: bytes | None) -> Iterator[tuple[int, Buffer | None, int]]:
        """Yield (offset, data or None for zeros, length) of every write to a block that is not in the bucket."""
        found, done = self._found, 0
        size = found.header.block_size if found.files else 0
        for record, data in found.writes(key):
            self._shown = (done, found.data_bytes)
            self._progress(*self._shown)
            done += record.length
            end = record.offset + record.length
            for block in range(record.offset // size, (end - 1) // size + 1):
                if found.needs(block, record.sequence):
                    start, stop = max(record.offset, block * size), min(end, (block + 1) * size)
                    yield start, data, stop - start
        self._progress(found.data_bytes, found.data_bytes)


def _write_at(file: BinaryIO, offset: int, data: Buffer | None, length: int) -> None:
    """Write data, or None for zeros, to a place in a file."""
    file.seek(offset)
    if data is not None:
        file.write(data)
        return
    for start in range(0, length, len(_ZEROS)):
        file.write(_ZEROS[: length - start])
