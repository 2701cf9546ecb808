"""A store in a directory: one file an object, exactly the files of the original's ``--test`` mode.

    DIR/KEY                      body, mode 0600, nothing but the object's bytes
    DIR/.s3backer/               mode 0700; the original ignores it
      objects/NAME.sidecar       what the file cannot say (stores/sidecar.py), if there is anything
      tmp/                       files being written, each flock()ed by its writer
      locks/00 … 3f              flock()ed around a change of the keys that hash to this number
    NAME                         the key, percent-encoded, or '=' and its SHA-256 where that is too long

Guarantees
  * A put is a file written and fsynced beside its place, renamed, and the directory fsynced. A crash at any
    point leaves the old or the new object, with the metadata that belongs to it.
  * The fence is asked again right before that rename, or the unlink. Whoever is stopped between the two, or waits for a
    disk that hangs, may complete it whenever it goes on: nobody's death is certain from his silence (``fenced``).
  * Changes of one key by several threads and processes happen one after the other; conditions are exact
    between them. ``if_none_match`` is a hard link: exact even against programs that ignore the locks.
  * No symbolic link below DIR is ever followed, no pipe or device opened. Listings name them, reading one is an
    error: what cannot be read is never taken for absent.
  * DIR missing, moved away, or another filesystem in its place (an unmounted disk) is BucketNotFound, never
    an empty store.

ETags are the body's MD5 and are computed when asked for.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import quote

from s3backer.errors import (
    BucketNotFound,
    ObjectNotFound,
    PreconditionFailed,
    UsageError,
)
from s3backer.stores import sidecar
from s3backer.stores.base import Body, ListEntry, ListPage, ObjectInfo, ObjectRange, StoredObject
from s3backer.stores.bodies import Unsent, pieces, size_of
from s3backer.stores.checks import check_key, check_listing, check_range, checked_metadata, too_large
from s3backer.stores.explain import explain
from s3backer.stores.fence import Fence
from s3backer.stores.files import (
    OPEN,
    create_temporary,
    digest_file,
    exists,
    open_directory,
    read_file,
    read_range,
    walk,
)
from s3backer.stores.sidecar import Entry
from s3backer.telemetry.requests import RequestCounters

_T = TypeVar("_T")

PRIVATE = ".s3backer"
_LOCKS = 64
#: What linking answers where the filesystem has no hard links.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class _Call:
    """One call: the root directory's descriptor, what to close at its end, and the bytes moved.

    ``durable`` is shared by all calls: directories that are known to survive a loss of power.
    """

    def __init__(self, root: int, stack: ExitStack, durable: set[tuple[str, ...]]) -> None:
        self.root = root
        self.stack = stack
        self.sent = 0
        self.received = 0
        self._durable = durable

    def directory(self, names: tuple[str, ...], *, create: bool = False) -> int:
        """Open a directory below the root, one name at a time, and return its descriptor."""
        current = self.root
        for depth, name in enumerate(names, 1):
            if create:
                created = True
                try:
                    os.mkdir(name, 0o700, dir_fd=current)
                except FileExistsError:
                    created = False
                # One that exists may have been made by a process that died before it could sync it.
                if created or names[:depth] not in self._durable:
                    os.fsync(current)
                    self._durable.add(names[:depth])
            below = open_directory(current, name)
            self.stack.callback(os.close, below)
            current = below
        return current


class _LazyEntry(ListEntry):
    """A line of a listing that reads the file only if somebody asks for the ETag."""

    __slots__ = ("_etag_of",)
    _etag_of: Callable[[str], str]

    def __init__(self, key: str, size: int, etag_of: Callable[[str], str]) -> None:
        object.__setattr__(self, "key", key)
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "_etag_of", etag_of)

    @property
    def etag(self) -> str:
        """The ETag of the object as it is now, empty if it has gone."""
        try:
            return self._etag_of(self.key)
        except ObjectNotFound:
            return ""


class DirectoryStore:
    """The directory ``path`` as a bucket. It must exist; nothing is created before the first put."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(os.fspath(path))
        self.name = f"file://{self.path}"
        self.place = f"file {os.path.realpath(self.path)}"
        # Not part of any key: a directory may be moved.
        self.bucket = ""
        self.delayed = False
        self.lasting = self.arriving = 0.0
        self.fence = Fence()
        self.fenced = False
        self.conditions: bool | None = True
        self.counters = RequestCounters()
        self._lock = threading.Lock()
        self._identity: tuple[int, int] | None = None
        self._swept = False
        self._durable: set[tuple[str, ...]] = set()

    # ── calls ────────────────────────────────────────────────────────────────────────────────────────

    def get(self, key: str, *, at_most: int | None = None) -> StoredObject:
        """Return the object; ObjectNotFound if absent, CorruptObject if it is larger than ``at_most`` bytes."""
        names = self._names(key)
        with self._call("get", key) as call:
            return self._get(call, key, names, at_most)

    def get_unless(self, key: str, etag: str, *, at_most: int | None = None) -> StoredObject | None:
        """Return the object, or None if it has this ETag; errors as for ``get``. Reads the body for its ETag."""
        names = self._names(key)
        with self._call("get", key) as call:
            if self._digest(call, key, names)[1] == etag:
                return None
            return self._get(call, key, names, at_most)

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> ObjectRange:
        """Return what there is of a range; ObjectNotFound, or PreconditionFailed for another ETag.

        Reads no more than the range, but all of the object for its ETag where one is asked for.
        """
        names = self._names(key)
        check_range(start, length)
        with self._call("get", key) as call:
            with self._missing_is_absent(call, key):
                place = call.directory(names[:-1])
                found = read_range(place, names[-1], start, length, with_digest=if_match is not None)
            if if_match is not None and _quoted(found.digest) != if_match:
                raise PreconditionFailed(key)
            call.received = len(found.body)
            return ObjectRange(found.body, found.size)

    def head(self, key: str) -> ObjectInfo:
        """Return the object's facts; ObjectNotFound if absent. Reads the body for its ETag, but a piece at a time."""
        names = self._names(key)
        with self._call("head", key) as call:
            (size, _), entry = self._describe(call, key, lambda: self._digest(call, key, names), lambda found: found[1])
            return _info(key, size, entry)

    def put(
        self,
        key: str,
        body: Body,
        *,
        content_type: str = "application/octet-stream",
        content_encoding: str = "",
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        if_none_match: bool = False,
    ) -> str:
        """Store the object and return its ETag; PreconditionFailed if a condition does not hold."""
        names = self._names(key)
        kept = checked_metadata(content_type, content_encoding, metadata)
        new = Entry(_etag(body), content_type, content_encoding, kept)
        with self._call("put", key) as call:
            self._sweep(call)
            parent = call.directory(names[:-1], create=True)
            self.fence.check(key)
            self._lock_key(call, key)
            current: Entry | None = None
            entries = self._sidecar(call, key)
            if entries or not new.plain or if_match is not None or if_none_match:
                with suppress(FileNotFoundError):
                    current = sidecar.describe(entries, _quoted(digest_file(parent, names[-1])[1]))
            if (if_none_match and current is not None) or (
                if_match is not None and (current is None or current.etag != if_match)
            ):
                raise PreconditionFailed(key)
            if entries or not new.plain:
                both = [new] if current is None else [current, new]
                place = call.directory((PRIVATE, "objects"), create=True)
                self._write(call, place, _sidecar_name(key), sidecar.encode(key, both))
            try:
                self._write(call, parent, names[-1], body, new_only=if_none_match, key=key)
            except FileExistsError:
                raise PreconditionFailed(key) from None
            if entries and new.plain:
                self._remove_sidecar(call, key)
            call.sent = size_of(body)
            return new.etag

    def put_large(self, key: str, body: Body, **facts: Any) -> str:
        """Do what ``put`` does: there is nothing that it would be too large for."""
        return self.put(key, body, **facts)

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        """Remove the object if it is there, first the body, then what is said about it."""
        names = self._names(key)
        with self._call("delete", key) as call:
            try:
                parent = call.directory(names[:-1])
            except (FileNotFoundError, NotADirectoryError):
                self._check_still_there(call)
                return
            present = exists(parent, names[-1])
            described = self._sidecar_exists(call, key)
            if present or described:
                self.fence.check(key)
                self._lock_key(call, key)
                with suppress(FileNotFoundError, IsADirectoryError):
                    if if_match is not None and _quoted(digest_file(parent, names[-1])[1]) != if_match:
                        raise PreconditionFailed(key)
                    self.fence.check(key, wait=False)
                    os.unlink(names[-1], dir_fd=parent)
                described = self._sidecar_exists(call, key)
            # Also for a file that is gone: whoever unlinked it may have failed before this.
            os.fsync(parent)
            if described:
                self._remove_sidecar(call, key)
            if not present:
                self._check_still_there(call)

    def delete_many(self, keys: Sequence[str]) -> None:
        """Remove these objects, one after the other."""
        for key in keys:
            self.delete(key)

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> ListPage:
        """Return the first ``limit`` entries of a prefix after a key, over all subdirectories."""
        check_listing(prefix, start_after, limit)
        with self._call("list", prefix) as call:
            keys = walk(call.root, b"", prefix.encode(), start_after.encode(), limit + 1, PRIVATE)
            with closing(keys):
                found = [_LazyEntry(key, size, self._etag_now) for key, size in islice(keys, limit + 1)]
            self._check_still_there(call)
            return ListPage(tuple(found[:limit]), len(found) > limit)

    def settles_in(self) -> float:
        """Return 0: what was written has taken effect."""
        return 0.0

    def close(self) -> None:
        """Do nothing: no descriptor outlives a call."""

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────

    def _describe(
        self, call: _Call, key: str, read: Callable[[], _T], etag_of: Callable[[_T], str]
    ) -> tuple[_T, Entry]:
        """Return what ``read`` gives of the body, and the sidecar's facts of the body of that ETag."""
        found = read()
        etag = etag_of(found)
        entries = self._sidecar(call, key)
        if entries and all(entry.etag != etag for entry in entries):
            # Replaced twice meanwhile, or rewritten by a foreign program; under the lock only that.
            with suppress(FileNotFoundError, PermissionError):
                self._lock_key(call, key, create=False)
            found = read()
            etag = etag_of(found)
            entries = self._sidecar(call, key)
        return found, sidecar.describe(entries, etag)

    def _get(self, call: _Call, key: str, names: tuple[str, ...], at_most: int | None) -> StoredObject:
        body, entry = self._describe(call, key, lambda: self._body(call, key, names, at_most), _etag)
        call.received = len(body)
        return StoredObject(_info(key, len(body), entry), body, "md5" if entry.recorded else "")

    def _body(self, call: _Call, key: str, names: tuple[str, ...], at_most: int | None) -> bytes:
        try:
            with self._missing_is_absent(call, key):
                return read_file(call.directory(names[:-1]), names[-1], at_most=at_most)
        except OSError as error:
            if at_most is not None and error.errno == errno.EFBIG:
                raise too_large(self.name, key, at_most) from None
            raise

    def _digest(self, call: _Call, key: str, names: tuple[str, ...]) -> tuple[int, str]:
        """Return a body's size in bytes and its ETag."""
        with self._missing_is_absent(call, key):
            size, digest = digest_file(call.directory(names[:-1]), names[-1])
        return size, _quoted(digest)

    @contextmanager
    def _missing_is_absent(self, call: _Call, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError):
            self._check_still_there(call)
            raise ObjectNotFound(key) from None

    def _etag_now(self, key: str) -> str:
        return self.head(key).etag

    def _sidecar_exists(self, call: _Call, key: str) -> bool:
        try:
            return exists(call.directory((PRIVATE, "objects")), _sidecar_name(key))
        except FileNotFoundError:
            return False

    def _sidecar(self, call: _Call, key: str) -> tuple[Entry, ...]:
        """Return the entries of the key's sidecar, () where there is none."""
        name = _sidecar_name(key)
        try:
            data = read_file(call.directory((PRIVATE, "objects")), name, at_most=sidecar.MAX_BYTES)
        except FileNotFoundError:
            return ()
        return sidecar.decode(data, os.path.join(self.path, PRIVATE, "objects", name), key)

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────

    def _write(
        self, call: _Call, place: int, name: str, body: Body, *, new_only: bool = False, key: str | None = None
    ) -> None:
        """Put a whole file into a directory, atomically and durably; that of the object ``key`` if the fence agrees.

        FileExistsError if it must be new and is not.
        """
        temporaries = call.directory((PRIVATE, "tmp"), create=True)
        temporary, descriptor = create_temporary(temporaries)
        there = True
        try:
            unwritten = Unsent(pieces(body))
            while unwritten:
                unwritten.take(os.writev(descriptor, unwritten.next_ones()))
            os.fsync(descriptor)
            if key is not None:
                self.fence.check(key, wait=False)
            if new_only and self._link(temporaries, temporary, place, name):
                os.unlink(temporary, dir_fd=temporaries)
            else:
                os.rename(temporary, name, src_dir_fd=temporaries, dst_dir_fd=place)
            there = False
            os.fsync(place)
        finally:
            os.close(descriptor)
            if there:
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=temporaries)

    @staticmethod
    def _link(temporaries: int, temporary: str, place: int, name: str) -> bool:
        """Give the file its name if that is free; False where there are no links (the key's lock must do)."""
        try:
            os.link(temporary, name, src_dir_fd=temporaries, dst_dir_fd=place, follow_symlinks=False)
        except OSError as error:
            if error.errno in _NO_LINKS:
                return False
            raise
        return True

    def _remove_sidecar(self, call: _Call, key: str) -> None:
        with suppress(FileNotFoundError):
            place = call.directory((PRIVATE, "objects"))
            os.unlink(_sidecar_name(key), dir_fd=place)
            os.fsync(place)

    def _lock_key(self, call: _Call, key: str, *, create: bool = True) -> None:
        """Wait for the key's lock and hold it to the end of the call."""
        place = call.directory((PRIVATE, "locks"), create=create)
        name = f"{zlib.crc32(key.encode()) % _LOCKS:02x}"
        flags = os.O_RDWR | os.O_CREAT if create else os.O_RDONLY
        descriptor = os.open(name, flags | OPEN, 0o600, dir_fd=place)
        call.stack.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX if create else fcntl.LOCK_SH)

    def _sweep(self, call: _Call) -> None:
        """Before the first put, remove temporary files whose writers are dead: nobody holds their lock."""
        with self._lock:
            if self._swept:
                return
            self._swept = True
        place = call.directory((PRIVATE, "tmp"), create=True)
        for name in os.listdir(place):
            try:
                descriptor = os.open(name, os.O_RDWR | OPEN, dir_fd=place)
            except OSError:
                continue
            try:
                # The lock outlasts the unlink, so that a writer who waits for it sees that its file has gone.
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(name, dir_fd=place)
            except OSError:
                continue
            finally:
                os.close(descriptor)

    # ── one call ─────────────────────────────────────────────────────────────────────────────────────

    def _names(self, key: str) -> tuple[str, ...]:
        """Split a key into names; UsageError where it cannot be a file below the directory."""
        check_key(key)
        names = tuple(key.split("/"))
        if any(name in ("", ".", "..", PRIVATE) for name in names):
            raise UsageError(
                f"{key!r} cannot be an object of {self.name}",
                hint=f"Each part between slashes must be a file name, and none may be {PRIVATE!r}.",
            )
        return names

    @contextmanager
    def _call(self, kind: str, key: str) -> Iterator[_Call]:
        """Open the root for one call, count the call, and explain what the system answers."""
        started = time.perf_counter()
        call: _Call | None = None
        failed = True
        try:
            with ExitStack() as stack:
                try:
                    call = _Call(self._open_root(stack), stack, self._durable)
                    yield call
                    failed = False
                except OSError as error:
                    if call is not None:
                        self._check_still_there(call)
                    raise explain(error, os.path.join(self.path, key)) from error
        except (ObjectNotFound, PreconditionFailed):
            failed = False
            raise
        finally:
            self.counters.add(
                kind,
                sent=call.sent if call else 0,
                received=call.received if call else 0,
                seconds=time.perf_counter() - started,
                failed=failed,
            )

    def _open_root(self, stack: ExitStack) -> int:
        try:
            root = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise BucketNotFound(
                f"there is no directory {self.path}", hint="Check the path, or create it with mkdir."
            ) from None
        stack.callback(os.close, root)
        facts = os.fstat(root)
        with self._lock:
            if self._identity is None:
                self._identity = (facts.st_dev, facts.st_ino)
            elif self._identity != (facts.st_dev, facts.st_ino):
                raise BucketNotFound(
                    f"{self.path} is not the directory any more that was opened",
                    hint="It was replaced, or a disk was mounted or unmounted. Bring it back and start again.",
                )
        return root

    def _check_still_there(self, call: _Call) -> None:
        """Raise BucketNotFound if "no such file" came from a directory that has been removed."""
        if os.fstat(call.root).st_nlink == 0:
            raise BucketNotFound(f"the directory {self.path} was removed", hint="Bring it back, or start again.")


def _etag(body: Body) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for piece in pieces(body):
        digest.update(piece)
    return _quoted(digest.hexdigest())


def _quoted(digest: str) -> str:
    return f'"{digest}"'


def _info(key: str, size: int, entry: Entry) -> ObjectInfo:
    return ObjectInfo(key, size, entry.etag, entry.content_type, entry.content_encoding, entry.metadata)


def _sidecar_name(key: str) -> str:
    name = quote(key, safe="")
    if len(name) > 200:
        name = "=" + hashlib.sha256(key.encode()).hexdigest()
    return name + ".sidecar"
