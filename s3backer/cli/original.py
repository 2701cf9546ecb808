"""The original's form: ``s3backer [options] BUCKET[/PREFIX] MOUNTPOINT``.

Options are ``--name``, ``--name=value`` and ``-o name=value,…`` under the original's names, anywhere on the line; the
last one wins. What ``-o`` names and neither the original nor we know is FUSE's. Every failure exits with 1.
"""

from __future__ import annotations

import difflib
import os
import re
from typing import Any

from s3backer import __version__
from s3backer.cli import COMMANDS
from s3backer.cli.common import Target
from s3backer.cli.erase import erase
from s3backer.cli.unlock import unlock
from s3backer.config import NOT_YET, ORIGINAL, Option
from s3backer.errors import S3backerError, UsageError
from s3backer.url import VolumeURL, check_bucket, checked_prefix

_SHORT = {"-f": ("foreground", True), "-d": ("debug", True), "-s": ("single", True)}
_DEFAULTS = {"default_block_size": 4096, "write_delay": 0.25}
_FORM = "The form is: s3backer [options] BUCKET[/PREFIX] MOUNTPOINT; see 's3backer --help-original'."


def run(words: list[str]) -> int:
    """Run the original's form and return the exit code."""
    try:
        return _run(words)
    except S3backerError as error:
        error.exit_code = 1
        raise


def _run(words: list[str]) -> int:
    values, fuse_options, places = _parse(words)
    if values.get("show") == "version":
        print(f"s3backer {__version__}")
        return 0
    if values.get("show") == "help":
        _print_help()
        return 0
    whole = [name for name in ("erase", "reset") if values.get(name)]
    if len(whole) > 1:
        raise UsageError("--erase and --reset-mounted-flag exclude each other", hint="Give one of them.")
    _check_for_command(places)
    if len(places) != (1 if whole else 2):
        raise UsageError(
            f"{'a bucket and no mount point' if whole else 'a bucket and a mount point'} are needed, "
            f"not {len(places)} argument{'s' * (len(places) != 1)}",
            hint=_FORM,
        )
    url = _url(places[0], values)
    settle_credentials(values)
    if whole:
        with Target(str(url), values) as target:
            target.url = url
            if whole == ["erase"]:
                erase(target, yes=bool(values.get("force")), force=bool(values.get("force")))
            else:
                unlock(target)
        return 0
    from s3backer.cli.mount import mount_request
    from s3backer.daemon import run_mount

    return run_mount(mount_request(url, places[1], _DEFAULTS | values, fuse_options))


def _check_for_command(places: list[str]) -> None:
    """Raise UsageError where the words look like one of our commands rather than the original's form."""
    if places and "://" in places[0]:
        raise UsageError(f"{places[0]!r} is no command", hint=f"Did you mean 's3backer mount {' '.join(places)}'?")
    if not any("://" in word for word in places[1:]):
        return
    if places[0] in COMMANDS:
        raise UsageError(
            f"the command {places[0]!r} has to come first",
            hint=f"Put the options behind it: s3backer {places[0]} ...",
        )
    near = difflib.get_close_matches(places[0], COMMANDS, 1)
    raise UsageError(
        f"there is no command {places[0]!r}",
        hint=f"Did you mean 's3backer {near[0]}'?" if near else "See 's3backer --help'.",
    )


def _parse(words: list[str]) -> tuple[dict[str, Any], list[str], list[str]]:
    """Return options by our names, FUSE's options, and the other words."""
    values: dict[str, Any] = {}
    fuse_options: list[str] = []
    places: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            places += rest
        elif word in ("--version", "-v"):
            values["show"] = "version"
        elif word in ("--help", "-h", "-?", "--help-original"):
            values["show"] = "help"
        elif word in _SHORT:
            name, value = _SHORT[word]
            values[name] = value
        elif word.startswith("-o"):
            text = word[2:] or next(rest, "")
            if not text:
                raise UsageError("-o needs options after it", hint="Write for example -o size=10g,blockSize=128k.")
            for part in split_options(text):
                _set(part, values, fuse_options)
        elif word.startswith("--"):
            _set(word[2:], values, None)
        elif word.startswith("-") and len(word) > 1:
            raise UsageError(f"there is no option {word}", hint=_FORM)
        else:
            places.append(word)
    return values, fuse_options, places


def split_options(text: str) -> list[str]:
    """Return the options of a list by libfuse's rule: a backslash keeps a comma in a value."""
    return [re.sub(r"\\(.)", r"\1", part) for part in re.findall(r"(?:\\.|[^,\\])+", text)]


def _set(text: str, values: dict[str, Any], fuse_options: list[str] | None) -> None:
    """Take one option; without ``fuse_options`` an unknown one is an error."""
    name, equals, value = text.partition("=")
    option = ORIGINAL.get(name)
    if name in NOT_YET:
        raise UsageError(
            f"{name} is an option of the original that this version does not have",
            hint="Leave it out, or use the original for this volume.",
        )
    if option is None:
        if fuse_options is not None:
            fuse_options.append(text)
            return
        near = difflib.get_close_matches(name, ORIGINAL, 1)
        raise UsageError(f"there is no option --{name}", hint=f"Did you mean --{near[0]}?" if near else _FORM)
    if option.convert is None and equals:
        raise UsageError(f"{name} takes no value", hint=f"Write --{name}.")
    if option.convert is not None and not equals:
        raise UsageError(f"{name} needs a value", hint=f"Write --{name}={option.metavar}, with the equals sign.")
    values[option.name] = converted(option, value)
    if option.flag == "region":
        values.setdefault("virtual_host", True)


def converted(option: Option, value: str) -> Any:
    """Return what an option sets; UsageError names the option."""
    if option.convert is None:
        return option.value
    try:
        return option.convert(value)
    except UsageError as error:
        raise UsageError(f"{option.flag}: {error.message}", hint=error.hint) from None


def _url(place: str, values: dict[str, Any]) -> VolumeURL:
    prefix = values.pop("prefix", "")
    if values.pop("test", False):
        if prefix:
            raise UsageError("--prefix does not go with --test", hint="Use a directory of its own for each volume.")
        return VolumeURL("file", path=os.path.abspath(place))
    bucket, slash, below = place.removeprefix("./").partition("/")
    check_bucket(bucket)
    if slash and prefix:
        raise UsageError("a prefix in the bucket's name and --prefix exclude each other", hint="Give one of them.")
    if slash:
        prefix = checked_prefix(f"{below}/")
    elif prefix:
        prefix = checked_prefix(prefix)
    return VolumeURL("s3", bucket=bucket, prefix=prefix)


def settle_credentials(values: dict[str, Any]) -> None:
    """Turn the original's options for credentials into fields of StoreOptions; UsageError if they contradict."""
    variable = values.pop("secret_variable", None)
    if variable is not None:
        if "secret_key" in values:
            raise UsageError("--accessKey and --accessKeyEnv exclude each other", hint="Give one of them.")
        try:
            values["secret_key"] = os.environ[variable]
        except KeyError:
            raise UsageError(f"the environment has no variable {variable}", hint="Set it, or use another.") from None
    if values.get("access_key") == "":
        del values["access_key"]
        values["anonymous"] = True
    if values.pop("ssl", False) and values.get("endpoint_url", "").startswith("http:"):
        raise UsageError("--ssl does not go with a baseURL of http://", hint="Leave out --ssl, or write https://.")


def _print_help() -> None:
    print("Usage: s3backer [options] BUCKET[/PREFIX] MOUNTPOINT\n")
    print("The original's options that this version has, as --NAME[=VALUE] or -o NAME[=VALUE],...\n")
    for option in ORIGINAL.values():
        left = f"--{option.flag}={option.metavar}" if option.convert else f"--{option.flag}"
        print(f"  {left:<28}{option.help}")
    for left, text in (
        ("-f", "Stay in the foreground."),
        ("-d", "The same as --debug."),
        ("-s", "Accepted; requests are served in parallel all the same."),
        ("-o OPTIONS", "More of these, and FUSE's."),
    ):
        print(f"  {left:<28}{text}")
