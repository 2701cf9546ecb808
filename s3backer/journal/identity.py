"""Whether a journal may be replayed into a bucket, where what it was written on may not be there any more.

token in the bucket            blocks that are not in it            answer
the journal's session's        any                                  Ours: nobody mounted since
none, or another's             none                                 NeedsETags of nothing: there is nothing to replay
none, or another's             an object is known of each           NeedsETags: only by force; what changed can be said
none, or another's             of one nothing is known              Refuse: only by force

That all of its blocks are as the journal knows them is no leave to replay it: others may have been changed.
"""

from __future__ import annotations

from dataclasses import dataclass

from s3backer.journal.replay import Known, Recovered
from s3backer.units import blocks_text


@dataclass(frozen=True, slots=True)
class Ours:
    """Replay all of it, and take over what the bucket has."""


@dataclass(frozen=True, slots=True)
class NeedsETags:
    """Do not replay it unasked. ``blocks``: what it knows of their objects, so that it can be said which changed."""

    blocks: dict[int, Known]


@dataclass(frozen=True, slots=True)
class Refuse:
    """Do not replay it. ``reason`` is for the user."""

    reason: str


def decide(token: int | None, journal: Recovered) -> Ours | NeedsETags | Refuse:
    """Decide by the mount token that is in the bucket (None: there is none)."""
    # Who was killed before the first write has left no record, whether or not its token was in the bucket already.
    last = max((i for i, session in enumerate(journal.sessions) if session.records), default=0)
    if token is not None and token in {session.token for session in journal.sessions[last:]}:
        return Ours()
    known = {block: _object(journal.known.get(block)) for block in journal.pending}
    if all(known.values()):
        return NeedsETags({block: found for block, found in known.items() if found})
    missing = sum(found is None for found in known.values())
    which = blocks_text(missing) if missing == len(known) else f"{missing} of {len(known)} blocks"
    there = "no token" if token is None else f"the token {token:08x}"
    return Refuse(
        f"the journal in {journal.directory.path} belongs to the mount with token {journal.header.token:08x}, and the "
        f"bucket of {journal.header.url} has {there}: somebody else may have written to it since, and of {which} in it "
        "the journal does not know what was there",
    )


def _object(known: Known | None) -> Known | None:
    """Return what is known of a block's object, None if that is nothing: of an intent its condition is known too."""
    if known is None:
        return None
    if known.etag is None and known.intent is not None and known.intent.condition:
        absent = known.intent.condition == "*"
        return Known("" if absent else known.intent.condition, known.intent)
    return known if known.etag is not None else None
