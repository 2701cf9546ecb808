"""Prints docs/original-options.md: the original's options, one by one, and what each means here.

python tools/option_table.py > docs/original-options.md
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from s3backer.original_options import ORIGINAL, OriginalOption  # noqa: E402 - the root has to be on the path first

_HEAD = """\
# The original's options

`s3backer [options] BUCKET[/PREFIX] MOUNTPOINT` takes every option of the original by its name, as `--NAME[=VALUE]` or
`-o NAME[=VALUE],...`, also from a configuration file and from `/etc/fstab`. `python tools/option_table.py` prints this
page from the table that the program uses.

## What differs from the start

* `x-amz-acl` is sent only if `accessType` is given: buckets without ACLs, which new ones at AWS are, refuse it.
* The default endpoint is https; for plain http say so with `baseURL`.
* An error is one sentence and a line with what to try. In this form every failure exits with 1; the commands
  (`s3backer mount` and so on) tell them apart by their [exit codes](operations.md#exit-codes).
* `--help` and `--version` go to standard output.
* Where `listBlocks` is given, the blocks are listed in the background: the mount is ready before.
* `fsync` and `close` return when the data is in the bucket.
* A size needs no suffix, and an unknown option is refused before anything is written.

## Options

| treatment | means |
|---|---|
| same | it does what it does there |
| better | what it is for is done here in another way, or without it; the option is accepted |
| accepted | it has no effect, for the reason given; nothing that is stored depends on it |
| refused | it would store or show something else than what it says, so it is an error |

| option | value | treatment | what it is for | note |
|---|---|---|---|---|
"""

_TAIL = """
Beside them: `-F FILE` (the same as `configFile`), `-f` (stay in the foreground), `-d` (that and `debug`), `-s`
(accepted; requests are served in parallel all the same), `-h`, `-v`, and the options of FUSE and mount(8).
"""


def _row(option: OriginalOption) -> str:
    value = f"[{option.metavar}]" if option.bare is not None else option.metavar
    cells = (f"`{option.flag}`", value, option.treatment, option.help, option.note)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def option_table() -> str:
    """Return the whole page."""
    return _HEAD + "".join(map(_row, ORIGINAL.values())) + _TAIL


if __name__ == "__main__":
    print(option_table(), end="")
