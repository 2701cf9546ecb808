"""What can be done about findings: planned, explained, and only then done.

    zeros            the object is deleted, if it is still the one that was read and still holds zeros
    beyond-end       the object is deleted, if somebody has said the volume's size; metadata alone may be what is wrong
    no-first-block   block 0 is put, zeros with the metadata, if there is still none
    no-metadata      block 0 is put as it is, with the metadata, if it is still the one that was read
    metadata         the same

Guarantees
  * A block that is damaged is never replaced or removed.
  * The mount token is taken first and removed at the end: nobody mounts the volume meanwhile, and a volume that is
    mounted is not repaired.
  * What block 0 says of the volume is still what it said when it was checked: else nothing is done.
  * Each write has the condition that the object is still the one that was judged, and is judged again right before.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from s3backer import _fast
from s3backer.checking.findings import Finding
from s3backer.checking.objects import Examiner
from s3backer.checking.subject import Subject
from s3backer.errors import CorruptObject, ObjectNotFound, PreconditionFailed, VolumeInUse
from s3backer.layouts.classic import BLOCK_CONTENT_TYPE, META_BLOCK_SIZE, META_SIZE, parse_metadata, read_metadata
from s3backer.layouts.token import new_token, remove_token, settle, write_token
from s3backer.units import exact_size

_THREADS = 16
_BATCH = 1000
OF_METADATA = ("no-metadata", "metadata")

Outcome = tuple["Repair", str]


@dataclass(frozen=True, slots=True)
class Repair:
    """One thing that can be done about a finding; ``text`` says exactly what."""

    finding: Finding
    text: str

    @property
    def key(self) -> str:
        """The key of the object that it changes."""
        return self.finding.key


def repairs(subject: Subject, findings: Iterable[Finding], *, size_said: bool) -> Iterator[Repair]:
    """Yield what can be done, in the order of the findings. ``size_said``: somebody has said the volume's size."""
    metadata_done = False
    for finding in findings:
        if finding.kind == "zeros":
            yield Repair(finding, f"delete object {finding.key!r}: it holds zeros")
        elif finding.kind == "beyond-end" and size_said:
            yield Repair(finding, f"delete object {finding.key!r}: {finding.what}")
        elif finding.kind == "no-first-block" and subject.locked is None:
            yield Repair(finding, f"put object {finding.key!r}, a block of zeros {_with_metadata(subject)}")
        elif finding.kind in OF_METADATA and not metadata_done:
            metadata_done = True
            yield Repair(finding, f"put object {finding.key!r} again as it is, {_with_metadata(subject)}")


def _with_metadata(subject: Subject) -> str:
    size, block_size = exact_size(subject.layout.size), exact_size(subject.layout.block_size)
    return f"with the metadata: a size of {size} in blocks of {block_size}"


def not_repaired(subject: Subject, kinds: Iterable[str], *, size_said: bool) -> Iterator[str]:
    """Yield, for the kinds of problems that were found and that nothing is done about, why that is so."""
    found = set(kinds)
    damaged = sorted(found & {"altered", "signature", "compression", "length", "encoding", "vanished"})
    if damaged:
        yield (
            f"blocks with damage ({', '.join(damaged)}): their data is not known. Restore the objects from a copy, or "
            "write the blocks anew through a mount (docs/operations.md)"
        )
    if "unreadable" in found:
        yield "blocks that the store does not give: ask who runs it"
    if "misnamed" in found:
        yield "objects with a wrong name: whether they belong to this volume is not known"
    if "beyond-end" in found and not size_said:
        yield (
            "objects beyond the end: if the volume's size is wrong, they are its data. Say the right one with --size "
            f"(--size {exact_size(subject.layout.size)} if the metadata is right)"
        )
    if "no-first-block" in found and subject.locked is not None:
        yield "the first block that is missing: an encrypted one is only made with the password"
    if "unfinished-copy" in found:
        yield "the unfinished copy: run the same 's3backer copy' with --resume"


def perform(subject: Subject, planned: Iterable[Repair], done: Callable[[Repair, str], None]) -> None:
    """Do what is planned, and call ``done`` with each repair and why it was not done (empty: it was).

    Raises VolumeInUse where the volume is mounted, StoreError where the store fails; what was done by then stays.
    """
    store, prefix = subject.store, subject.layout.prefix
    token = write_token(store, prefix, subject.name, new_token(random.SystemRandom()), former=None)
    try:
        said = read_metadata(store, prefix, hash_prefix=subject.layout.hash_prefix)
        if said != subject.said:
            raise VolumeInUse(f"{subject.name} was mounted or changed since it was checked", hint="Check it again.")
        work, examiner = iter(planned), Examiner(subject)
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="s3backer-repair") as pool:
            while some := list(islice(work, _BATCH)):
                for repair, why in zip(some, pool.map(lambda one: _do(subject, examiner, one), some), strict=True):
                    done(repair, why)
    finally:
        settle(store, subject.name)
        remove_token(store, prefix, token)
        settle(store, subject.name)


def _do(subject: Subject, examiner: Examiner, repair: Repair) -> str:
    """Do one; return why it was not done, empty if it was."""
    try:
        if repair.finding.kind == "no-first-block":
            with suppress(ObjectNotFound):
                # Some servers take no notice of the condition.
                subject.store.head(repair.key)
                return _CHANGED
            subject.layout.create()
            return _written(subject)
        if repair.finding.kind in OF_METADATA:
            return _put_metadata(subject, examiner) or _written(subject)
        return _delete(subject, repair.finding)
    except (PreconditionFailed, CorruptObject):
        return _CHANGED
    except ObjectNotFound:
        return "it has gone"


_CHANGED = "somebody changed it since it was checked"


def _delete(subject: Subject, finding: Finding) -> str:
    etag = subject.store.head(finding.key).etag
    if finding.etag not in ("", etag):
        return _CHANGED
    if finding.kind == "zeros":
        assert finding.block
        read = subject.layout.fetch(finding.block)
        if read.info.etag != etag or not _fast.is_zero(subject.layout.decode(finding.block, read)):
            return _CHANGED
    subject.store.delete(finding.key, if_match=etag)
    return ""


def _put_metadata(subject: Subject, examiner: Examiner) -> str:
    layout = subject.layout
    seen = examiner.examine(0)
    if not seen.verified:
        return f"the block itself is damaged: {seen.finding.what}" if seen.finding else "it has gone"
    found = layout.fetch(0)
    said = {META_BLOCK_SIZE: str(layout.block_size), META_SIZE: str(layout.size)}
    subject.store.put(
        layout.key(0),
        found.body,
        content_type=BLOCK_CONTENT_TYPE,
        content_encoding=found.info.content_encoding,
        metadata={**found.info.metadata, **said},
        if_match=found.info.etag,
    )
    return ""


def _written(subject: Subject) -> str:
    """Return what is wrong with the metadata that was put, empty if nothing is."""
    said = parse_metadata(subject.store.head(subject.layout.key(0)))
    wanted = (subject.layout.size, subject.layout.block_size)
    if said is None or (said.size, said.block_size) != wanted:
        return "the store does not keep the metadata"
    return ""
