"""``s3backer import-cache``: bring home what a crashed mount of the original left in its cache file."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import click

from s3backer.cache_file import CacheFile
from s3backer.cache_import import CacheImport, Progress, plan_import
from s3backer.cli.common import Target, options, progress, with_password
from s3backer.config import BLOCK_SIZE, ENCODING, HASH, SIZE, Option, volume_options
from s3backer.hints import unmount_command
from s3backer.units import format_size

log = logging.getLogger(__name__)

_DRY_RUN = Option("--dry-run", "dry_run", "Only say what would be done.")
_FORCE = Option("--force", "force", "Write the blocks although the volume may have changed since that mount died.")


@click.command("import-cache")
@click.argument("file")
@click.argument("url")
@options(_DRY_RUN, _FORCE, SIZE, BLOCK_SIZE, HASH, *ENCODING)
def command(file: str, url: str, **values: Any) -> None:
    """Write the dirty blocks in FILE to the volume at URL and unlock it.

    FILE is what a mount of the original that died had as blockCacheFile. Its blocks go to the bucket, are read back
    and compared; FILE is never changed. Interrupted, the same command can be run again.

    --size and --block-size are for a volume without metadata.
    """
    force = bool(values.pop("force"))
    with CacheFile(file) as cache, Target(url, values) as target:
        target.refuse_if_served(f"Unmount it first: {unmount_command(str(target.url))}")
        blocks = len(cache.dirty_blocks)
        opening = volume_options({**with_password(values), "default_block_size": cache.header.block_size})
        plan = plan_import(cache, target.store, target.url.prefix, opening)
        if not blocks:
            print(f"{file} has no dirty blocks: there is nothing to import")
            if plan.found is not None:
                print(f"{target.url} is marked as mounted {plan.found.describe()}; see 's3backer unlock --help'")
            return
        what = f"{blocks} dirty blocks ({format_size(blocks * cache.header.block_size)})"
        if values["dry_run"]:
            print(f"{file} has {what}, left by the mount with token {cache.header.token:08x}")
            where = f"mounted {plan.found.describe()}" if plan.found is not None else "mounted by nobody"
            print(f"{target.url} is marked as {where}")
        if not _may(plan, force=force, target=str(target.url)):
            return
        if values["dry_run"]:
            print("they would be stored, read back and compared, and the mount token be removed; nothing was changed")
            return
        with _shown(plan) as show:
            plan.run(show)
    print(f"imported {what} from {file} into {target.url}; all were read back and compared")
    print(f"{file} is not needed any more: delete it before the original is used with it again")


def _may(plan: CacheImport, *, force: bool, target: str) -> bool:
    """Whether to import; False where everything is there already. Raises VolumeInUse where force is needed."""
    refusal = plan.refusal()
    if refusal is None:
        return True
    if force:
        log.warning("%s; going on by force", refusal.message)
        return True
    if plan.found is None:
        with _shown(plan) as show:
            different = plan.differing(show)
        if not different:
            print(f"all {len(plan.file.dirty_blocks)} dirty blocks of {plan.file.path} are in {target} already")
            print(f"{plan.file.path} is not needed any more and can be deleted")
            return False
        refusal.message += f"; {different} of its {len(plan.file.dirty_blocks)} dirty blocks differ from what is there"
    raise refusal


@contextlib.contextmanager
def _shown(plan: CacheImport) -> Iterator[Progress]:
    """Show every step of an import as one bar: the blocks of the step that it is in."""
    with progress(f"importing {plan.file.path}") as show:
        yield lambda text, done, total: show(done, total)
