"""``s3backer copy``: copy a volume, also into another encoding or block size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from s3backer.cli.common import Target, options, progress, with_password
from s3backer.cli.directories import make_directory, remove_made
from s3backer.config import (
    BLOCK_SIZE,
    ENCODING,
    HASH,
    SIZE,
    STORE,
    Option,
    encoding_options,
    volume_options,
    whole,
)
from s3backer.copying import CopyOptions, copy_volume
from s3backer.errors import S3backerError, UsageError
from s3backer.hints import unmount_command
from s3backer.units import format_size

_RESUME = Option("--resume", "resume", "Go on with an unfinished copy. The run that began it must have ended.")
_FORCE = Option("--force", "force", "Copy it although it is marked as mounted: what comes out may be torn.")
_THREADS = Option("--threads", "threads", "Blocks at once. [16]", whole(1, 1000), "N")
_PLAIN = Option("--to-plain", "to_plain", "Do not encrypt the copy, though the source is encrypted.")
_DEFAULT_THREADS = 16
#: What reading needs; the rest says how blocks are written.
_READING = tuple(option for option in ENCODING if option.name not in ("compress", "compress_level"))
#: Of the source's way to its store not handed on: a public bucket is read without a key, and never written so.
_NOT_HANDED_ON = "anonymous"
#: How long to wait says nothing about which store it is: given alone, it leads to no other one.
_NO_PLACE = "timeout"


def _new(option: Option, help_text: str = "") -> Option:
    """Return the option that says the same of the copy."""
    words = option.help if option.help.startswith("S3") else option.help[:1].lower() + option.help[1:]
    text = help_text or f"Copy: {words}".replace("as the volume is", "as the source is")
    return replace(option, flag=f"--to-{option.flag[2:]}", name=f"to_{option.name}", help=text, alias="")


_TO_STORE = tuple(_new(option) for option in STORE)
_TO_VOLUME = (
    _new(BLOCK_SIZE, "Copy: size of a block, a power of two. [as the source's]"),
    _new(HASH, "Copy: let the keys begin with a hash."),
    *(_new(option) for option in ENCODING if option.name != "default_content_encoding"),
)


@click.command("copy")
@click.argument("url")
@click.argument("new_url", metavar="NEW-URL")
@options(
    _RESUME,
    _FORCE,
    _THREADS,
    replace(SIZE, help="Size of a source that has no metadata."),
    replace(BLOCK_SIZE, help="Block size of a source that has no metadata."),
    HASH,
    *_READING,
    _PLAIN,
    *_TO_VOLUME,
    *_TO_STORE,
)
def command(url: str, new_url: str, **values: Any) -> None:
    """Copy the volume at URL to NEW-URL, where no volume is yet.

    Options that begin with --to- are about the copy. Without them it is as the source: the same block size,
    compression, cipher and password. Where none of them says how its store is reached, that is done as for the source
    (but never without a key). What was written is read back and compared; an unfinished copy cannot be mounted.

    Example: s3backer copy file:///srv/disk s3://my-bucket/disk --to-compress zstd
    """
    to_values = _for_the_copy(values)
    with Target(url, values) as source, Target(new_url, to_values, source) as target:
        if source.id == target.id:
            raise UsageError(f"{source.url} would be copied onto itself", hint="Give another bucket or prefix.")
        if not values["force"]:
            way = unmount_command(str(source.url))
            source.refuse_if_served(f"Unmount it first: {way}. With --force it is copied as it is, perhaps torn.")
        target.refuse_if_served("Copy to another place.")
        values = with_password(values)
        to_values = _with_password(to_values, values)
        made = make_directory(target.url.path) if target.url.scheme == "file" else []
        try:
            with progress("copying") as show:
                result = copy_volume(
                    source.store,
                    source.url.prefix,
                    target.store,
                    target.url.prefix,
                    source_options=replace(volume_options(values), force=False),
                    options=CopyOptions(
                        block_size=to_values.get("block_size"),
                        block_hash_prefix=bool(to_values.get("block_hash_prefix")),
                        encoding=encoding_options(to_values),
                        plain=bool(values["to_plain"]),
                        threads=values["threads"] or _DEFAULT_THREADS,
                        resume=bool(values["resume"]),
                        force=bool(values["force"]),
                    ),
                    progress=show,
                )
        except BaseException:
            if made and _empty(target):
                remove_made(made)
            raise
    print(
        f"copied {source.url} to {target.url}: {format_size(result.size)} in blocks of "
        f"{format_size(result.block_size)}, {result.written} written, {result.kept} there already"
    )


def _for_the_copy(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the options about the copy, by the names that they have for a volume."""
    found = {name.removeprefix("to_"): value for name, value in values.items() if name.startswith("to_")}
    names = {option.name for option in STORE}
    if all(found[name] is None for name in names - {_NO_PLACE}):
        found |= {name: values[name] for name in names - {_NOT_HANDED_ON} if found[name] is None}
    return {**found, "threads": values["threads"], "debug": values["debug"]}


def _with_password(to_values: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Ask for the copy's password where it gets a cipher and neither it nor the source has a password."""
    return to_values if values.get("password") is not None else with_password(to_values)


def _empty(target: Target) -> bool:
    """Return whether the copy has left nothing, so that its directory may go."""
    try:
        return not target.store.list(target.url.prefix, limit=1).entries
    except S3backerError:
        return False
