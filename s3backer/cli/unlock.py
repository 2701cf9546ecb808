"""``s3backer unlock``: remove the mark of a mount that has died."""

from __future__ import annotations

from typing import Any

import click

from s3backer.admin import unlock_volume
from s3backer.cli.common import Target, options
from s3backer.errors import VolumeInUse
from s3backer.journal.files import has_files
from s3backer.opening import VolumeOptions
from s3backer.recovery import place_of_journal


@click.command("unlock")
@click.argument("url")
@options()
def command(url: str, **values: Any) -> None:
    """Remove the mount token of the volume at URL.

    Only for a mount that has died: two writers at once destroy the data. If it was a mount of the original with a
    blockCacheFile, use import-cache instead: that file can hold blocks that are nowhere else.
    """
    with Target(url, values) as target:
        unlock(target)


def unlock(target: Target) -> None:
    """Remove the token and say whose it was; shared with the original's form."""
    target.refuse_if_served(f"That mount is alive. End it with: s3backer unmount {target.url}")
    place = place_of_journal(target.store, target.url.prefix, VolumeOptions())
    if has_files(place):
        raise VolumeInUse(
            f"the mount of {target.url} that died has left a journal, {place}, with what is not in the bucket yet",
            hint=f"Bring it there, which unlocks it too: s3backer recover {target.url} (or give it up: --discard)",
        )
    token = unlock_volume(target.store, target.url.prefix)
    print(
        f"{target.url} was not locked"
        if token is None
        else f"unlocked {target.url}, which was mounted {token.describe()}"
    )
