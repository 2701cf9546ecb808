"""``s3backer create``: make an empty volume."""

from __future__ import annotations

import sys
from typing import Any

import click

from s3backer.admin import create_volume
from s3backer.cli.common import Target, options, with_password
from s3backer.cli.directories import make_directory, remove_made
from s3backer.config import BLOCK_SIZE, ENCODING, HASH, SIZE, encoding_options
from s3backer.geometry import check_geometry
from s3backer.opening import VolumeOptions
from s3backer.units import exact_size, format_size

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
        made = make_directory(target.url.path) if target.url.scheme == "file" else []
        try:
            memory = create_volume(
                target.store,
                target.url.prefix,
                size=size,
                block_size=block_size,
                block_hash_prefix=bool(values["block_hash_prefix"]),
                encoding=encoding_options(with_password(values)),
            )
        except BaseException:
            remove_made(made)
            raise
    print(f"created {target.url}: {format_size(size)} in blocks of {format_size(block_size)}")
    usual = VolumeOptions().memory
    if memory > usual:
        print(
            f"s3backer: the {exact_size(usual)} of memory that a mount takes by default are too small for such blocks\n"
            f"  Mount it with --memory {exact_size(memory)} or more.",
            file=sys.stderr,
        )
