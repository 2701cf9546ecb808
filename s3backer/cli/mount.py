"""``s3backer mount``: show a volume as a file."""

from __future__ import annotations

from typing import Any

import click

from s3backer.cli.common import options, with_password
from s3backer.config import MOUNT, pick, store_options, volume_options
from s3backer.daemon import run_mount
from s3backer.frontends.fuse_options import FuseWords, sort_out
from s3backer.mount_request import MountRequest
from s3backer.url import VolumeURL


@click.command("mount")
@click.argument("url")
@click.argument("mountpoint")
@click.option("-o", "fuse_options", multiple=True, metavar="OPTIONS", help="Options for FUSE, separated by commas.")
@options(*MOUNT)
def command(url: str, mountpoint: str, fuse_options: tuple[str, ...], **values: Any) -> int:
    """Mount the volume at URL on MOUNTPOINT, an empty directory, and return when it can be read and written.

    A daemon serves it until it is unmounted, with umount, fusermount -u or 's3backer unmount'.

    Example: s3backer mount s3://my-bucket/disk /mnt/disk
    """
    return run_mount(
        mount_request(
            VolumeURL.parse(url),
            mountpoint,
            values,
            sort_out([o for text in fuse_options for o in text.split(",") if o]),
        )
    )


def mount_request(url: VolumeURL, mountpoint: str, values: dict[str, Any], fuse: FuseWords) -> MountRequest:
    """Return the request for a mount from options by their names."""
    values = with_password(values)
    chosen = pick(MountRequest, values)
    if fuse.read_only:
        # Not only the kernel: the volume too refuses writes then, and takes no token.
        values = {**values, "read_only": True}
    if values.get("stats_name") == "":
        chosen["stats_name"] = None
    return MountRequest(
        url=url,
        mountpoint=mountpoint,
        store_options=store_options(values),
        volume_options=volume_options(values),
        default_journal=values.get("journal") is None,
        fuse_options=fuse.options,
        uid=fuse.uid,
        gid=fuse.gid,
        **chosen,
    )
