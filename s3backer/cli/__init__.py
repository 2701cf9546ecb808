"""The ``s3backer`` command.

    s3backer COMMAND …                                   one module per command, below
    s3backer [options] BUCKET[/PREFIX] MOUNTPOINT        the original's form: a first word that is no command

A bucket that is named like a command is written ``./NAME`` or after ``--``. Errors are one sentence and a line that
says what to try, on standard error; the exit codes stand in ``s3backer.errors``. Start-up is quick: a command's module,
and all that it needs, is imported only when that command runs.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence

from s3backer import __version__
from s3backer.errors import S3backerError, out_of_memory

COMMANDS = (
    "create",
    "mount",
    "unmount",
    "info",
    "resize",
    "copy",
    "check",
    "erase",
    "unlock",
    "recover",
    "import-cache",
    "advise",
    "install-system",
)

_HELP = """\
Usage: s3backer COMMAND ...                              see 's3backer COMMAND --help'
       s3backer [options] BUCKET[/PREFIX] MOUNTPOINT     the original's form, see 's3backer --help-original'

Makes a bucket a disk: one big file, on which any filesystem goes.

Commands:
  create URL --size SIZE   make a volume
  mount URL MOUNTPOINT     show it as a file
  unmount MOUNTPOINT|URL   write everything back and end the mount
  info URL                 what is known about a volume
  resize URL SIZE          make it larger or smaller, mounted or not
  copy URL NEW-URL         copy it, also into another encryption, compression or block size
  check URL                read and verify every object; --repair
  erase URL                destroy it
  unlock URL               remove the mark of a mount that has died
  recover URL              bring home what a mount that has died left in its journal
  import-cache FILE URL    bring home what a crashed mount of the original left in its cache file
  advise                   what a workload would cost, for each block size
  install-system           put mount helper, systemd unit, man pages and completions in place

A URL is s3://BUCKET[/PREFIX] or file:///DIRECTORY. Credentials, region and endpoint come from the AWS environment
variables and files, as for the AWS command line.
"""


def module_of(command: str) -> str:
    """Return the name of a command's module."""
    return f"{__name__}.{command.replace('-', '_')}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A directory's name may be bytes that are no text; it is shown as it is. What is printed is written in one
        # place, even with PYTHONUNBUFFERED, where an error in that can be told from all others.
        sys.stdout.reconfigure(errors="surrogateescape", write_through=False)
    try:
        code = _run(words)
        _flush()
        return code
    except S3backerError as error:
        return _tell(error)
    except KeyboardInterrupt:
        print("s3backer: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has seen enough.
        _drop_output()
        return 1
    except MemoryError:
        print("s3backer: there is not enough memory for this", file=sys.stderr)
        print("  Use smaller blocks, or a machine with more memory.", file=sys.stderr)
        return 1
    except Exception as error:
        if debug:
            raise
        if (known := out_of_memory(error)) is not None:
            return _tell(known)
        print(f"s3backer: unexpected {type(error).__name__}: {error}", file=sys.stderr)
        print("  This is a defect. Run it again with --debug and report what it shows.", file=sys.stderr)
        return 1


def _tell(error: S3backerError) -> int:
    """Print an error and return its exit code."""
    print(f"s3backer: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"  {error.hint}", file=sys.stderr)
    return error.exit_code


def _open_closed_streams() -> None:
    """Let what is printed go nowhere where the caller has closed standard output or error."""
    if None in (sys.stdin, sys.stdout, sys.stderr):
        from s3backer.process import open_standard_descriptors

        open_standard_descriptors()
        sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 - as long as the process
        sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _flush() -> None:
    """Write out what was printed, so that an error in that is seen and told."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _drop_output()
        raise S3backerError(
            f"the output cannot be written: {error.strerror}", hint="The command itself was carried out."
        ) from None


def _drop_output() -> None:
    # Python would complain once more when it flushes at the end.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _run(words: list[str]) -> int:
    first = words[0] if words else "--help"
    if first in ("--version", "-v"):
        print(f"s3backer {__version__}")
        return 0
    if first in ("--help", "-h", "-?"):
        print(_HELP, end="")
        return 0
    if first in COMMANDS:
        from s3backer.cli.common import run_command

        return run_command(importlib.import_module(module_of(first)).command, words[1:])
    from s3backer.cli import original

    return original.run(words)
