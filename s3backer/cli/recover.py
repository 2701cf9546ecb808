"""``s3backer recover``: bring home what a mount that has died left in its journal."""

from __future__ import annotations

import os
from typing import Any

import click

from s3backer.cli.common import Target, options, progress, with_password
from s3backer.config import BLOCK_SIZE, ENCODING, HASH, JOURNAL_DIRECTORY, SIZE, Option, volume_options
from s3backer.errors import JournalError, UsageError
from s3backer.hints import unlock_command, unmount_command
from s3backer.inheriting import open_journal
from s3backer.journal.marks import has_files
from s3backer.journal.named import has_not_begun, is_missing, named_path, under_another_name
from s3backer.layouts.token import MountToken, in_use, read_token, way_on
from s3backer.left_journal import place_of_journal
from s3backer.recovery import Recoverer
from s3backer.units import blocks_text

_DISCARD = Option("--discard", "discard", "Give the journal up: what is not in the bucket is lost.")
_TO = Option("--to", "to", "Write it to a new file instead, each byte at its place.", str, "FILE")
_FORCE = Option(
    "--force",
    "force",
    "Replay it although the volume may have been changed by somebody else since: also over newer data.",
)
_LOOK_ELSEWHERE = "If its mount had another --journal-directory, give that."


@click.command("recover")
@click.argument("url")
@options(_DISCARD, _TO, _FORCE, JOURNAL_DIRECTORY, SIZE, BLOCK_SIZE, HASH, *ENCODING)
def command(url: str, **values: Any) -> None:
    """Write what the journal of URL on this host holds to the volume, and unlock it.

    The next mount goes on with it by itself. Interrupted, this can be run again. --to changes nothing but the new file.

    Example: s3backer recover s3://my-bucket/disk
    """
    if sum(values[name] not in (None, False) for name in ("discard", "to", "force")) > 1:
        raise UsageError("--discard, --to and --force exclude each other", hint="Give one of them.")
    discard, to, force = bool(values.pop("discard")), values.pop("to"), bool(values.pop("force"))
    with Target(url, values) as target:
        target.refuse_if_served(f"That mount is alive. End it with: {unmount_command(str(target.url))}")
        opening = volume_options(with_password(values))
        place = place_of_journal(target.store, target.url.prefix, opening)
        if to is not None:
            _check_outside(target, to, place)
        if not has_files(place):
            token = _find_token(target, place)
            why = in_use(str(target.url), token).message if token else "it has no mount token either"
            said = f"{target.url} has no journal on this host, in {place}: {why}"
            if to is not None:
                raise JournalError(f"{said}; nothing was written to {to}", hint=_LOOK_ELSEWHERE)
            print(said)
            return
        with open_journal(target.store, target.url.prefix, place) as directory:
            recoverer = Recoverer(target.store, target.url.prefix, opening, directory)
            if discard:
                _discard(recoverer, place)
            elif to is not None:
                _save(recoverer, place, to)
            else:
                with progress("replaying the journal") as show:
                    recovery = recoverer.replay(show, force=force)
                print(f"{target.url}: {recovery}")


def _discard(recoverer: Recoverer, place: str) -> None:
    with progress("giving the journal up") as show:
        blocks = recoverer.discard(show)
    lost = "it was damaged" if blocks is None else f"{blocks} blocks in it were not in the bucket"
    print(f"{place} was given up, {lost}")


def _save(recoverer: Recoverer, place: str, file: str) -> None:
    """Write what is right of the journal to a file. Raises JournalDamaged, after that, if it is not all."""
    with progress("reading the journal") as show:
        found, damage = recoverer.save(file, show)
    print(f"{blocks_text(len(found.pending))} of {place} written to {file}; nothing was changed")
    if recoverer.left.stored:
        print(f"All of it is in the bucket, or something newer, as {recoverer.left.witness} says")
    for start, stop in found.missing:
        where = f"byte {start}, in block {start // found.header.block_size}"
        print(f"missing there: {stop - start} bytes from {where}", flush=True)
    if damage is not None:
        raise damage


def _check_outside(target: Target, file: str, place: str) -> None:
    """Raise UsageError where a file would lie among the volume's blocks, or in its journal."""
    own = [("journal's", place)]
    if target.url.scheme == "file":
        own.append(("volume's", target.url.path))
    for whose, directory in own:
        resolved = os.path.realpath(directory)
        if os.path.commonpath((os.path.realpath(file), resolved)) == resolved:
            raise UsageError(
                f"--to {file} lies in the {whose} own directory, {directory}", hint="Name a file elsewhere."
            )


def _find_token(target: Target, place: str) -> MountToken | None:
    """Return the mount token, of a volume that has no journal in this place and need not have one.

    Raises UsageError where there may be one, but not in this place, or not for this user, and JournalError where the
    token names one of this host that is not there.
    """
    try:
        os.listdir(place)
    except PermissionError:
        raise UsageError(f"{place} cannot be read", hint="Run it as the user who mounted the volume.") from None
    except OSError:
        pass
    store, prefix = target.store, target.url.prefix
    token = read_token(store, prefix)
    if token is None or not token.journal:
        return token
    if not is_missing(store, prefix, token):
        raise UsageError(
            f"{target.url} has no journal in {place}; its mount token names {token.journal} on {token.host}",
            hint=f"Run there, as the user who mounted the volume: {way_on(str(target.url), token)}",
        )
    other = under_another_name(store, prefix, token)
    if other is not None:
        raise JournalError(
            f"the journal of {target.url} is {other.described(str(target.url))}",
            hint=other.hint(str(target.url), token),
        )
    if has_not_begun(store, prefix, token):
        raise JournalError(
            f"{target.url} was taken by force by a mount of this host that waits still, or has ended before it wrote "
            "anything: it has no journal yet, and what the mount before it flushed may be in that one's only",
            hint=f"If it has ended, this gives that up: {unlock_command(str(target.url), '--force')}",
        )
    raise JournalError(
        f"the mount token of {target.url} says that its journal is in {named_path(store, prefix, token)}, and it is "
        "not there: what was flushed and not stored is lost with it",
        hint="Bring that directory or its disk back, and run this again. Where that cannot be: "
        f"{unlock_command(str(target.url), '--force')}",
    )
