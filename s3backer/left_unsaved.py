"""What is told of blocks that were written here and are not in the bucket when a volume is closed, or is lost.

damaged, so that they cannot be stored    the journal works     mount here again, write those blocks anew
it has failed         write it to a file, give it up, write them anew
the volume was lost to another mount      there is a journal    write it to a file
there is none         they are gone
"""

from __future__ import annotations

from s3backer.errors import S3backerError, StoreError, VolumeInUse
from s3backer.hints import recover_command
from s3backer.journal.keeper import Keeper


def not_storable(name: str, blocks: int, keeper: Keeper, place: str, stuck: S3backerError) -> StoreError:
    """Return what to tell of ``blocks`` that cannot be stored because of ``stuck``.

    ``name``: of the volume; ``place``: the directory in which its journal's is.
    """
    path = keeper.journal.path
    if keeper.failure is None:
        hint = (
            f"They are in the journal in {path}, with which the next mount here goes on. "
            f"There write those blocks anew, as a whole. {stuck.hint}"
        )
    else:
        hint = (
            f"What there is of them is in the journal in {path}, which has failed. All that was written since is in "
            "the bucket, and the next mount with that journal would put it back to what it was before. So write what "
            f"is in it to a file: {recover_command(name, place, '--to', 'FILE')}. Then give it up: "
            f"{recover_command(name, place, '--discard')}. Then mount, and write those blocks anew, as a whole."
        )
    return StoreError(f"{blocks} blocks of {name} cannot be stored: {stuck.message}", hint=hint)


def lost(name: str, blocks: int, keeper: Keeper | None, place: str) -> VolumeInUse:
    """Return what to tell of ``blocks`` of a volume that was lost; arguments as of ``not_storable``."""
    what = f"{blocks} blocks that were written here are not in the bucket of {name}, which was lost"
    if keeper is None:
        return VolumeInUse(what, hint="They are gone: without a journal they were in memory only.")
    return VolumeInUse(f"{what}; they are in the journal in {keeper.journal.path}", hint=way_out(name, place))


def way_out(name: str, place: str) -> str:
    """Return what to do with a journal that is kept beside what another mount has."""
    return f"This writes them to a file: {recover_command(name, place, '--to', 'FILE')}"
