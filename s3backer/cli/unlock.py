"""``s3backer unlock``: remove the mark of a mount that has died."""

from __future__ import annotations

from typing import Any

import click

from s3backer.admin import unlock_volume
from s3backer.cli.common import Target, options


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
    token = unlock_volume(target.store, target.url.prefix)
    print(
        f"{target.url} was not locked"
        if token is None
        else f"unlocked {target.url}, which was mounted {token.describe()}"
    )
