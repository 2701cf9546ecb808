"""``mount.s3backer``: what mount(8) runs for ``-t s3backer`` and ``-t fuse.s3backer``.

    mount.s3backer SPEC DIR [-sfnvrw] [-t TYPE.SUBTYPE] [-o OPTIONS]

    SPEC                                  what it means
    s3://BUCKET[/PREFIX], file:///DIR     's3backer mount SPEC DIR'; options by our names or the original's
    BUCKET[/PREFIX]                       the original's form, with its options and its defaults
    s3backer#SPEC                         the same as SPEC

Guarantees
  * The exit code is mount(8)'s: 0 mounted, 1 called wrongly, 32 not mounted.
  * Options that are for mount(8), systemd or the kernel are ignored. ``ro`` makes the volume read-only too.
  * With ``-s`` options that nobody knows are ignored, but never those of the original that are not done here.
  * The mount table names SPEC as it was given, by which 'mount -a' sees that it is mounted already.
"""

from __future__ import annotations

import getopt
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from s3backer.config import MOUNT, STORE, Option
from s3backer.errors import S3backerError, UsageError
from s3backer.frontends.fuse_options import has_no_effect, sort_out
from s3backer.original_options import ORIGINAL, OriginalOption

#: mount(8)'s exit codes.
OK, WRONG_CALL, NOT_MOUNTED = 0, 1, 32
#: mount(8) gives its helpers no search path; fusermount and ssh-like credential programs have to be found.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FORM = "The form is: mount.s3backer SPEC DIRECTORY [-sfnvrw] [-o OPTIONS]."
#: Our options by the names that they have on the command line, without the dashes.
_OURS = {option.flag.removeprefix("--"): option for option in (*STORE, *MOUNT) if option.name != "foreground"}
#: What the original's form does in place of mounting, or has another way to say for a URL.
_NOT_FOR_URL = frozenset(["erase", "reset", "test", "prefix", "detect", "config_file", "cache_file"])


@dataclass(frozen=True, slots=True)
class Call:
    """One call by mount(8)."""

    spec: str
    directory: str
    options: tuple[str, ...] = ()
    fake: bool = False
    sloppy: bool = False
    verbose: bool = False


def main(words: Sequence[str] | None = None) -> int:
    """Mount as mount(8) asks; return its exit code."""
    os.environ.setdefault("PATH", _PATH)
    try:
        call = parse_call(sys.argv[1:] if words is None else words)
        if call.fake:
            return OK
        return run(call)
    except S3backerError as error:
        print(f"mount.s3backer: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        return WRONG_CALL if isinstance(error, UsageError) else NOT_MOUNTED
    except KeyboardInterrupt:
        print("mount.s3backer: interrupted", file=sys.stderr)
        return NOT_MOUNTED
    except Exception as error:
        print(f"mount.s3backer: unexpected {type(error).__name__}: {error}", file=sys.stderr)
        print("  This is a defect. Mount it with 's3backer --debug' and report what it shows.", file=sys.stderr)
        return NOT_MOUNTED


def parse_call(words: Sequence[str]) -> Call:
    """Return what mount(8) asks for; UsageError where it is not what it says."""
    from s3backer.cli.original_words import split_options

    try:
        given, places = getopt.gnu_getopt(list(words), "sfnvrwN:t:o:")
    except getopt.GetoptError as error:
        raise UsageError(str(error), hint=_FORM) from None
    if len(places) != 2:
        raise UsageError(f"a volume and a directory are needed, not {len(places)} arguments", hint=_FORM)
    options: list[str] = []
    for name, value in given:
        if name == "-N":
            raise UsageError("-N is not known here", hint="Run mount itself in that namespace: nsenter --mount=FILE.")
        if name == "-o":
            options += split_options(value)
        elif name in ("-r", "-w"):
            options.append("ro" if name == "-r" else "rw")
    flags = {name for name, _ in given}
    return Call(
        spec=places[0].removeprefix("s3backer#"),
        directory=places[1],
        options=tuple(_for_us(options, places[0])),
        fake="-f" in flags,
        sloppy="-s" in flags,
        verbose="-v" in flags,
    )


def _for_us(options: Sequence[str], spec: str) -> list[str]:
    """Return the options without those for others, and with the name for the mount table."""
    found = [option for option in options if not has_no_effect(option)]
    if spec.isascii() and not set(spec) & set(",\\") and not any(option.startswith("fsname=") for option in found):
        found.append(f"fsname={spec}")
    return found


def run(call: Call) -> int:
    """Mount and return 0; raises S3backerError."""
    if call.sloppy:
        call = replace(call, options=tuple(option for option in call.options if _is_known(option, call.spec)))
    if call.verbose:
        print(f"mount.s3backer: mounting {call.spec} on {call.directory}")
    if "://" in call.spec:
        from s3backer.daemon import run_mount

        return run_mount(request(call))
    from s3backer.cli import original

    text = ",".join(option.replace("\\", "\\\\").replace(",", "\\,") for option in call.options)
    return original.run([*(["-o", text] if text else []), "--", call.spec, call.directory])


def request(call: Call) -> Any:
    """Return the MountRequest for a URL; UsageError for an option that does not go with one."""
    from s3backer.cli.mount import mount_request
    from s3backer.cli.original import settle_credentials, settle_values
    from s3backer.cli.original_words import converted
    from s3backer.url import VolumeURL

    values: dict[str, Any] = {}
    others: list[str] = []
    for text in call.options:
        name, equals, value = text.partition("=")
        option = _OURS.get(name) or ORIGINAL.get(name)
        refused = isinstance(option, OriginalOption) and option.treatment == "refused"
        if refused or (option is not None and option.name in _NOT_FOR_URL):
            raise UsageError(f"option {name} does not go with the URL {call.spec}", hint="Leave it out.")
        if option is None:
            others.append(text)
            continue
        bare = option.bare if isinstance(option, OriginalOption) and not equals else None
        if bare is None:
            _check_value(option, name, bool(equals))
        if option.name:
            values[option.name] = bare or (option.value if option.convert is None else converted(option, value))
    settle_credentials(values)
    settle_values(values)
    return mount_request(VolumeURL.parse(call.spec), call.directory, values, sort_out(others, ORIGINAL))


def _check_value(option: Option | OriginalOption, name: str, given: bool) -> None:
    if given and option.convert is None:
        raise UsageError(f"option {name} takes no value", hint=f"Write {name}.")
    if not given and option.convert is not None:
        raise UsageError(f"option {name} needs a value", hint=f"Write {name}={option.metavar}.")


def _is_known(text: str, spec: str) -> bool:
    name = text.partition("=")[0]
    if name in ORIGINAL or ("://" in spec and name in _OURS):
        return True
    try:
        sort_out([text])
    except S3backerError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
