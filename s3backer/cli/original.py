"""The original's form: ``s3backer [options] BUCKET[/PREFIX] MOUNTPOINT``.

The words are read in cli/original_words.py, and what each option means stands in original_options.py. Here they are
checked against each other and become a mount, an erase or a reset. Every failure exits with 1.
"""

from __future__ import annotations

import difflib
import os
import sys
from typing import Any

from s3backer import __version__
from s3backer.cache_file import CacheFile
from s3backer.cli import COMMANDS
from s3backer.cli.common import Target, with_password
from s3backer.cli.erase import erase
from s3backer.cli.original_words import FORM, Words, parse
from s3backer.cli.unlock import unlock
from s3backer.config import password_file, store_options
from s3backer.errors import S3backerError, UsageError
from s3backer.hints import import_command, note_store
from s3backer.original_options import ORIGINAL
from s3backer.url import VolumeURL, check_bucket, checked_prefix

#: That of a journal too: there is no word for it.
_DEFAULTS = {"default_block_size": 4096, "write_delay": 0.25, "list_blocks": False, "patience": 30.0, "journal": 0}
_ACCESS_FILE = "~/.s3backer_passwd"


def run(words: list[str]) -> int:
    """Run the original's form and return the exit code."""
    try:
        return _run(words)
    except S3backerError as error:
        error.exit_code = 1
        near = _near_command(words[0])
        if near is not None and near not in error.hint:
            error.hint += f" Or did you mean 's3backer {near}'?"
        raise


def _run(words: list[str]) -> int:
    said = parse(words)
    values = said.values
    if values.get("show") == "version":
        print(f"s3backer {__version__}")
        return 0
    if values.get("show") == "help":
        _print_help()
        return 0
    whole = [name for name in ("erase", "reset") if values.get(name)]
    if len(whole) > 1:
        raise UsageError("--erase and --reset-mounted-flag exclude each other", hint="Give one of them.")
    expected = 1 if whole else 2
    _check_for_command(said.places, expected)
    if len(said.places) != expected:
        raise UsageError(
            f"{'a bucket and no mount point' if whole else 'a bucket and a mount point'} are needed, "
            f"not {len(said.places)} argument{'s' * (len(said.places) != 1)}",
            hint=FORM,
        )
    _check_together(said)
    url = _url(said.places[0], values)
    settle_credentials(values)
    if whole:
        with Target(str(url), values) as target:
            target.url = url
            if whole == ["erase"]:
                erase(target, yes=bool(values.get("force")), force=bool(values.get("force")))
            else:
                unlock(target)
        return 0
    _settle_encoding(said, url)
    # No store is opened before the cache file is looked at.
    note_store(str(url), store_options(values).named())
    _check_cache_file(values.get("cache_file"), str(url))
    from s3backer.cli.mount import mount_request
    from s3backer.daemon import run_mount

    return run_mount(mount_request(url, said.places[1], _DEFAULTS | values, said.fuse))


def _near_command(word: str) -> str | None:
    """Return the command that a word may be a slip of; None too for what can only be an option or a bucket."""
    if word.startswith("-") or "/" in word:
        return None
    return next(iter(difflib.get_close_matches(word, COMMANDS, 1)), None)


def _check_for_command(places: list[str], expected: int) -> None:
    """Raise UsageError where the words look like one of our commands rather than the original's form."""
    if places and "://" in places[0]:
        raise UsageError(f"{places[0]!r} is no command", hint=f"Did you mean 's3backer mount {' '.join(places)}'?")
    near = _near_command(places[0]) if places else None
    if not any("://" in word for word in places[1:]) and (near is None or len(places) == expected):
        return
    if places[0] in COMMANDS:
        raise UsageError(
            f"the command {places[0]!r} has to come first",
            hint=f"Put the options behind it: s3backer {places[0]} ...",
        )
    raise UsageError(
        f"there is no command {places[0]!r}",
        hint=f"Did you mean 's3backer {near}'?" if near else "See 's3backer --help'.",
    )


def _check_together(said: Words) -> None:
    """Raise UsageError for options that contradict each other."""
    values, given = said.values, said.given
    for first, second in (("accessKey", "accessKeyEnv"), ("password", "passwordFile"), ("accessId", "accessEC2IAM")):
        if {first, second} <= given:
            raise UsageError(f"--{first} and --{second} exclude each other", hint="Give one of them.")
    if values.get("encryption") == "aws:kms" and not values.get("encryption_key"):
        raise UsageError("--sse=aws:kms needs a key", hint="Give it with --sse-key-id.")
    if values.get("patience", 30.0) < values.get("first_pause", 0.2):
        raise UsageError("--maxRetryPause is less than --initialRetryPause", hint="Change one of them.")
    if values.get("write_through") and values.get("write_delay") != 0:
        raise UsageError("--blockCacheSync needs --blockCacheWriteDelay=0", hint="Give that too.")
    if "blockCacheRecoverDirtyBlocks" in given and "blockCacheFile" not in given:
        raise UsageError("--blockCacheRecoverDirtyBlocks needs --blockCacheFile", hint="Name the file.")
    if "compress-level" in given and not given & {"compress", "encrypt"}:
        raise UsageError("--compress-level needs --compress", hint="Give that too.")
    if given & {"password", "passwordFile", "keyLength"} and "encrypt" not in given:
        print("s3backer: a password or key length without --encrypt is for a volume that is encrypted", file=sys.stderr)


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
        try:
            values["secret_key"] = os.environ[variable]
        except KeyError:
            raise UsageError(f"the environment has no variable {variable}", hint="Set it, or use another.") from None
    file = values.pop("access_file", None)
    if values.get("access_key") == "":
        del values["access_key"]
        values["anonymous"] = True
    elif "secret_key" not in values and not values.get("instance_role"):
        found = _read_access_file(os.path.expanduser(file or _ACCESS_FILE), values.get("access_key"))
        if found is not None:
            values["access_key"], values["secret_key"] = found
    if values.pop("ssl", False) and values.get("endpoint_url", "").startswith("http:"):
        raise UsageError("--ssl does not go with a baseURL of http://", hint="Leave out --ssl, or write https://.")


def _read_access_file(path: str, wanted: str | None) -> tuple[str, str] | None:
    """Return the first ID and key, or those of ``wanted``; None if there are none. A file that is absent has none."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read(1 << 20).splitlines()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(
            f"access file {path} cannot be read: {error.strerror}", hint="Check who may read it."
        ) from None
    for line in lines:
        name, colon, key = line.rstrip().partition(":")
        if colon and name and not line.startswith("#") and not line[0].isspace() and wanted in (None, name):
            return name, key
    return None


def settle_values(values: dict[str, Any]) -> None:
    """Turn what the original says with one option, and we with another, into ours."""
    if "password_file" in values:
        values["password"] = password_file(values.pop("password_file"))
    chosen = values.get("compress")
    if isinstance(chosen, int):
        values["compress"], values["compress_level"] = "deflate", chosen


def _settle_encoding(said: Words, url: VolumeURL) -> None:
    """Turn the original's words on compression and encryption into ours."""
    values = said.values
    settle_values(values)
    if url.scheme == "file" and "encrypt" in said.given:
        raise UsageError(
            "--encrypt does not go with --test, which stores plain blocks",
            hint="For an encrypted directory: s3backer create file:///DIR --encrypt ...",
        )
    if url.scheme == "file":
        # Plain whatever was said: the original's test mode compresses nothing either.
        values["compress"] = "none"
        values.pop("compress_level", None)
    elif "encrypt" in values:
        values.setdefault("compress", "deflate")
        values |= with_password(values)
    elif "password" not in values:
        values.setdefault("compress", "none")


def _check_cache_file(path: str | None, url: str) -> None:
    """Raise UsageError where the original's cache file still holds what the bucket does not have."""
    if not path or not os.path.lexists(path):
        return
    with CacheFile(path) as cache:
        if cache.dirty_blocks:
            raise UsageError(
                f"{path} has {len(cache.dirty_blocks)} blocks that are not in the bucket",
                hint=f"Bring them there first: {import_command(path, url)}",
            )


def _print_help() -> None:
    print("Usage: s3backer [options] BUCKET[/PREFIX] MOUNTPOINT\n")
    print("The original's options, as --NAME[=VALUE] or -o NAME[=VALUE],...; docs/original-options.md says more\n")
    for option in ORIGINAL.values():
        value = f"[={option.metavar}]" if option.bare is not None else f"={option.metavar}" if option.convert else ""
        text = {"accepted": "No effect: ", "refused": "Not done here: "}.get(option.treatment, "")
        print(f"  --{option.flag + value:<30} {text + option.note + '.' if text else option.help}")
    for left, text in (
        ("-F FILE", "The same as --configFile=FILE."),
        ("-f", "Stay in the foreground."),
        ("-d", "The same as -f --debug."),
        ("-s", "Accepted; requests are served in parallel all the same."),
        ("-o OPTIONS", "More of these, and FUSE's."),
    ):
        print(f"  {left:<32} {text}")
