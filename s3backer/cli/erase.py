"""``s3backer erase``: destroy a volume."""

from __future__ import annotations

import sys
from typing import Any

import click

from s3backer.admin import erase_volume, inspect_volume
from s3backer.cli.common import Target, options, progress
from s3backer.config import Option
from s3backer.errors import UsageError, VolumeNotFound
from s3backer.hints import unmount_command
from s3backer.layouts.token import read_token
from s3backer.units import format_size

_YES = Option("--yes", "yes", "Do not ask.")
_FORCE = Option("--force", "force", "Erase it although it is marked as mounted.")


@click.command("erase")
@click.argument("url")
@options(_YES, _FORCE)
def command(url: str, **values: Any) -> None:
    """Destroy the volume at URL: all its blocks, for ever."""
    with Target(url, values) as target:
        erase(target, yes=bool(values["yes"]), force=bool(values["force"]))


def erase(target: Target, *, yes: bool, force: bool) -> None:
    """Erase a volume after asking; shared with the original's form."""
    target.refuse_if_served(f"Unmount it first: {unmount_command(str(target.url))}")
    if not yes:
        _confirm(target)
    # An unfinished copy may be nothing but its mark.
    marked = read_token(target.store, target.url.prefix) is not None
    with progress("erasing blocks") as show:
        erased = erase_volume(target.store, target.url.prefix, force=force, progress=lambda done: show(done, None))
    if not erased and not marked:
        raise VolumeNotFound(f"there is no volume at {target.url}", hint="Check the URL; nothing was erased.")
    print(f"erased {target.url}: {erased} blocks")


def _confirm(target: Target) -> None:
    if not sys.stdin.isatty():
        raise UsageError(f"erasing {target.url} needs a confirmation", hint="Use --yes where nobody can be asked.")
    try:
        facts = inspect_volume(target.store, target.url.prefix)
        what = f"{target.url}, a volume of {format_size(facts.size)}"
    except VolumeNotFound:
        # Without metadata there may still be blocks.
        what = f"all blocks at {target.url}"
    if input(f"Erase {what}, for ever? Type yes: ").strip() != "yes":
        raise UsageError("nothing was erased", hint="Type yes in full to erase it.")
