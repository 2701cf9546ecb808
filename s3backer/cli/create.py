"""``s3backer create``: make an empty volume."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import Any

import click

from s3backer.admin import create_volume
from s3backer.cli.common import Target, options, with_password
from s3backer.config import BLOCK_SIZE, ENCODING, HASH, SIZE, encoding_options
from s3backer.errors import AccessDenied, StoreError
from s3backer.geometry import check_geometry
from s3backer.stores.directory import PRIVATE
from s3backer.units import format_size

_DEFAULT_BLOCK_SIZE = 128 << 10


@click.command("create")
@click.argument("url")
@options(SIZE, BLOCK_SIZE, HASH, *ENCODING, required=("size",))
def command(url: str, **values: Any) -> None:
    """Create an empty volume at URL. Blocks are 128KiB unless --block-size says otherwise.

    Example: s3backer create s3://my-bucket/disk --size 10GiB
    """
    size, block_size = values["size"], values["block_size"] or _DEFAULT_BLOCK_SIZE
    check_geometry(size, block_size)
    with Target(url, values) as target:
        made = _make_directory(target.url.path) if target.url.scheme == "file" else []
        try:
            create_volume(
                target.store,
                target.url.prefix,
                size=size,
                block_size=block_size,
                block_hash_prefix=bool(values["block_hash_prefix"]),
                encoding=encoding_options(with_password(values)),
            )
        except BaseException:
            _remove_made(made)
            raise
    print(f"created {target.url}: {format_size(size)} in blocks of {format_size(block_size)}")


def _make_directory(path: str) -> list[str]:
    """Make a directory and what is missing above it; return what was made, innermost first."""
    missing = []
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    made: list[str] = []
    try:
        for directory in reversed(missing):
            os.mkdir(directory, 0o700)
            made.insert(0, directory)
            _sync(os.path.dirname(directory))
    except OSError as error:
        _remove_made(made)
        kind = AccessDenied if isinstance(error, PermissionError) else StoreError
        raise kind(
            f"directory {missing[0]} cannot be made: {error.strerror}", hint="Make it yourself, or use another."
        ) from None
    return made


def _remove_made(made: list[str]) -> None:
    """Remove directories that were made here, unless somebody has put something there meanwhile."""
    if made:
        # What the store keeps for itself, which it may have begun.
        shutil.rmtree(os.path.join(made[0], PRIVATE), ignore_errors=True)
    with contextlib.suppress(OSError):
        for directory in made:
            os.rmdir(directory)


def _sync(directory: str) -> None:
    """Make a new entry of a directory survive a loss of power."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
