"""``s3backer unlock``: remove the mark of a mount that has died."""

from __future__ import annotations

from typing import Any

import click

from s3backer.admin import unlock_volume
from s3backer.cli.common import Target, options
from s3backer.config import Option
from s3backer.hints import unmount_command

_FORCE = Option("--force", "force", "Give up what the dead mount has left in a journal.")


@click.command("unlock")
@click.argument("url")
@options(_FORCE)
def command(url: str, **values: Any) -> None:
    """Remove the mount token of the volume at URL.

    Only for a mount that has died: two writers at once destroy the data. If it was a mount of the original with a
    blockCacheFile, use import-cache instead: that file can hold blocks that are nowhere else.
    """
    force = bool(values.pop("force"))
    with Target(url, values) as target:
        unlock(target, force=force)


def unlock(target: Target, *, force: bool = False) -> None:
    """Remove the token and say whose it was; shared with the original's form."""
    target.refuse_if_served(f"That mount is alive. End it with: {unmount_command(str(target.url))}")
    token = unlock_volume(target.store, target.url.prefix, force=force)
    print(
        f"{target.url} was not locked"
        if token is None
        else f"unlocked {target.url}, which was mounted {token.describe()}"
    )
