"""``s3backer resize``: make a volume larger or smaller."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from s3backer.admin import inspect_volume, resize_volume
from s3backer.cli.common import Target, options, unsaved_progress, with_password
from s3backer.config import ENCODING, FORCE_OPEN, HASH, Option, positive_size, volume_options
from s3backer.geometry import check_geometry, smallest_budget
from s3backer.units import format_size

_DISCARD = Option("--discard", "discard", "When shrinking, destroy what lies beyond the new end.")


@click.command("resize")
@click.argument("url")
@click.argument("size")
@options(_DISCARD, FORCE_OPEN, HASH, *ENCODING)
def command(url: str, size: str, **values: Any) -> None:
    """Change the size of the volume at URL to SIZE, whether it is mounted on this host or nowhere.

    Before shrinking, shrink what is on it. Shrinking refuses while data lies beyond the new end, unless --discard.
    """
    wanted = positive_size(size)
    discard = bool(values["discard"])
    with Target(url, values) as target:
        with unsaved_progress() as report:
            answer = target.ask("resize", {"size": wanted, "discard": discard}, report)
        if answer is None:
            # Seen before the volume is opened, so that the bucket stays untouched.
            facts = inspect_volume(target.store, target.url.prefix, block_hash_prefix=bool(values["block_hash_prefix"]))
            check_geometry(wanted, facts.block_size)
            opening = volume_options(with_password(values))
            opening = replace(opening, memory=max(opening.memory, smallest_budget(facts.block_size)))
            old: object = resize_volume(target.store, target.url.prefix, wanted, discard=discard, options=opening)
        else:
            old = answer.get("old_size")
    print(f"{target.url}: {format_size(wanted)}" + (f", before {format_size(old)}" if isinstance(old, int) else ""))
    if answer is not None:
        devices = answer.get("loop_devices")
        for device in devices if isinstance(devices, list) else ():
            print(f"tell the loop device: losetup -c {device}")
