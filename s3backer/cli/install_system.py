"""``s3backer install-system``: put what mount(8), systemd, man and the shells need in place."""

from __future__ import annotations

import os

import click

from s3backer.errors import UsageError
from s3backer.system.install import install, remove


@click.command("install-system")
@click.option("--root", default="/", metavar="DIR", help="Directory that stands for '/'. [/]")
@click.option("--remove", "removing", is_flag=True, help="Remove what was installed.")
@click.option("--no-command", "no_command", is_flag=True, help="Leave the name 's3backer' to another program.")
@click.option("--debug", is_flag=True, help="Say everything that happens.")
def command(root: str, removing: bool, no_command: bool, debug: bool) -> None:
    """Install mount helpers, a systemd unit, man pages and completions for this environment.

    A package of Python cannot write outside its environment, so this is done once after installing it, as root, and
    again after moving it. A file that this program has not installed is never touched.
    """
    if not os.path.isdir(root):
        raise UsageError(f"{root} is not a directory", hint="Name an existing one with --root.")
    if removing:
        remove(root, tell=print)
    else:
        install(root, command=not no_command, tell=print)
    if os.path.realpath(root) == "/" and os.path.isdir("/run/systemd/system"):
        print("Now run: systemctl daemon-reload")
