"""One typed description of every option: the commands, the original's form, the library and the help read it.

``name`` is the field of StoreOptions, VolumeOptions or MountRequest that an option sets, or the command's own
parameter. An option that was not given is None and leaves the default of that field.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from s3backer.codec.choice import NONE, EncodingOptions
from s3backer.codec.compression import Compression
from s3backer.codec.encryption import cipher_kind
from s3backer.errors import UsageError
from s3backer.opening import VolumeOptions
from s3backer.stores.options import StoreOptions
from s3backer.telemetry.bill import parse_budget
from s3backer.telemetry.prices import find_prices
from s3backer.units import parse_size

Convert = Callable[[str], Any]
#: Bytes; the original's limit.
_LONGEST_PASSWORD = 1023


def whole(lowest: int, highest: int) -> Convert:
    """Return a converter to an integer of that range."""

    def convert(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not lowest <= int(text) <= highest:
            raise UsageError(f"{text!r} is not a whole number from {lowest} to {highest}", hint="Change the value.")
        return int(text)

    return convert


def seconds(text: str) -> float:
    """Convert a number of seconds."""
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        raise UsageError(f"{text!r} is not a number of seconds", hint="Write for example 5 or 0.25.")
    return float(text)


def time_limit(text: str) -> float:
    """Convert a limit in seconds: with none at all no request would ever be answered."""
    limit = seconds(text)
    if not limit:
        raise UsageError("without any time no request is ever answered", hint="Write for example 5 or 30.")
    return limit


def positive_size(text: str, *, hint: str = "Write for example 10GiB, 128KiB or 4096.") -> int:
    """Convert a size of a volume or a block, neither of which can be nothing."""
    size = parse_size(text, hint=hint)
    if not size:
        raise UsageError(f"{text!r} is no size for it", hint=hint)
    return size


def memory_size(text: str) -> int:
    """Convert a size of memory, or of a local cache: what is small for a volume is too small for those."""
    return positive_size(text, hint="Write for example 256MiB or 2GiB.")


def speed(text: str) -> int:
    """Convert bytes a second to the bits a second that a store is limited to."""
    return 8 * positive_size(text)


def permissions(text: str) -> int:
    """Convert permission bits."""
    if not re.fullmatch(r"[0-7]{1,4}", text):
        raise UsageError(f"{text!r} are no permissions", hint="Write them in octal, for example 0600.")
    return int(text, 8)


def compression(text: str) -> str:
    """Convert the name of a compression, or "none"."""
    name = text.lower()
    if name != NONE:
        Compression(name)
    return name


def lazy_fsync(text: str) -> bool:
    """Convert how fsync is answered to whether that is at once."""
    if text not in ("honest", "lazy"):
        raise UsageError(
            f"{text!r} is no way to answer fsync",
            hint="Give 'honest', or 'lazy' where what was not stored yet may be lost.",
        )
    return text == "lazy"


def journal_size(text: str) -> int:
    """Convert the size of the journal; "none" is 0."""
    if text == NONE:
        return 0
    hint = f"Write for example 10GiB or 512MiB, or {NONE} where there is to be no journal."
    size = parse_size(text, hint=hint)
    if not size:
        raise UsageError(f"{text!r} is no size for it", hint=hint)
    return size


def level(text: str) -> int:
    """Convert a compression level, which may be below zero."""
    if not re.fullmatch(r"-?[0-9]{1,6}", text):
        raise UsageError(f"{text!r} is no level", hint="Give a number, for example 6.")
    return int(text)


def cipher(text: str) -> str:
    """Convert the name of a cipher."""
    return cipher_kind(text).name


def password_file(text: str) -> str:
    """Convert a file's name to the password in its first line."""
    try:
        with open(os.path.expanduser(text), "rb") as file:
            line = file.readline(_LONGEST_PASSWORD + 2)
    except OSError as error:
        raise UsageError(f"{text} cannot be read: {error.strerror}", hint="Name a file of yours.") from None
    # As the original does: of the end of the line only the newline, and nothing more than this long.
    line = line.removesuffix(b"\n")
    if not line:
        raise UsageError(f"{text} has no password in its first line", hint="Write it there.")
    if len(line) > _LONGEST_PASSWORD:
        raise UsageError(f"the first line of {text} is longer than a password may be", hint="Use a shorter one.")
    return line.decode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Option:
    """One option. ``convert`` None: a flag. ``value``: what a flag sets. ``alias``: another name, the original's."""

    flag: str
    name: str
    help: str
    convert: Convert | None = None
    metavar: str = ""
    value: object = True
    alias: str = ""


#: How to reach the store: every command has these.
STORE: tuple[Option, ...] = (
    Option("--endpoint-url", "endpoint_url", "S3 service, such as https://s3.example.com.", str, "URL"),
    Option("--region", "region", "Region of the bucket.", str, "NAME"),
    Option("--profile", "profile", "Profile of the AWS configuration.", str, "NAME"),
    Option("--no-sign-request", "anonymous", "Send no credentials: a public bucket."),
    Option("--ca-bundle", "ca_bundle", "Certificates to trust in place of the system's.", str, "FILE"),
    Option("--no-verify-tls", "verify_tls", "Trust any certificate. Only for trying things out.", value=False),
    Option("--virtual-host", "virtual_host", "Put the bucket into the host name."),
    Option("--path-style", "virtual_host", "Put the bucket into the path.", value=False),
    Option("--timeout", "timeout", "Limit for each attempt of a request. [30]", time_limit, "SECONDS"),
)
DEBUG = Option("--debug", "debug", "Say everything that happens.")
FORCE_OPEN = Option(
    "--force", "force", "Go on although the volume is marked as mounted: the other writer must be dead."
)
HASH = Option(
    "--block-hash-prefix", "block_hash_prefix", "The volume's keys begin with a hash.", alias="--blockHashPrefix"
)
SIZE = Option("--size", "size", "Size of the volume.", positive_size, "SIZE")
BLOCK_SIZE = Option(
    "--block-size", "block_size", "Size of a block, a power of two.", positive_size, "SIZE", alias="--blockSize"
)

PRICES = Option("--prices", "prices", "Price table: current, 2010 or a TOML file. [current]", find_prices, "NAME|FILE")

JOURNAL_DIRECTORY = Option(
    "--journal-directory",
    "journal_directory",
    "Where journals are. [~/.local/state/s3backer/journals, for root /var/lib/s3backer/journals]",
    str,
    "DIRECTORY",
)

#: How blocks are stored: what makes, opens or changes a volume.
ENCODING: tuple[Option, ...] = (
    Option("--compress", "compress", "Compression: deflate, zstd or none. [as the volume is]", compression, "NAME"),
    Option("--compress-level", "compress_level", "Its level. [the algorithm's own]", level, "N"),
    Option("--encrypt", "encrypt", "Cipher, such as AES-256-CBC. [as the volume is]", cipher, "CIPHER"),
    Option("--password-file", "password", "File with the password in its first line.", password_file, "FILE"),
    Option("--key-length", "key_length", "Length of its keys in bytes. [the cipher's]", whole(0, 64), "N"),
    Option(
        "--default-content-encoding",
        "default_content_encoding",
        "What objects are encoded with that do not say so.",
        str,
        "NAMES",
    ),
)

#: How a volume is opened and shown: ``mount``.
MOUNT: tuple[Option, ...] = (
    Option("--foreground", "foreground", "Stay in the foreground and log to standard error.", alias="-f"),
    Option("--memory", "memory", "Budget for cache, blocks under way and bookkeeping. [256MiB]", memory_size, "SIZE"),
    Option("--threads", "threads", "Most requests at once. [64]", whole(1, 1000), "N", alias="--blockCacheThreads"),
    Option("--write-delay", "write_delay", "Longest time a written block waits. [5]", seconds, "SECONDS"),
    Option("--read-only", "read_only", "Refuse writes, and leave the mount token alone.", alias="--readOnly"),
    FORCE_OPEN,
    Option("--size", "size", "Size of a volume that has no metadata.", positive_size, "SIZE"),
    Option(
        "--block-size",
        "block_size",
        "Block size of a volume that has no metadata.",
        positive_size,
        "SIZE",
        alias="--blockSize",
    ),
    HASH,
    *ENCODING,
    Option("--file-name", "file_name", "Name of the file that is the disk. [file]", str, "NAME", alias="--filename"),
    Option(
        "--file-mode", "file_mode", "Its permissions, octal. [0600, or 0400]", permissions, "MODE", alias="--fileMode"
    ),
    Option(
        "--stats-name",
        "stats_name",
        "Name of the statistics file; empty: none. [stats]",
        str,
        "NAME",
        alias="--statsFilename",
    ),
    Option("--upload-limit", "upload_limit", "Bytes a second sent by the whole mount.", speed, "SIZE"),
    Option("--download-limit", "download_limit", "Bytes a second received by the whole mount.", speed, "SIZE"),
    Option("--retry-time", "patience", "Pauses between the attempts of a read, in all. [300]", seconds, "SECONDS"),
    PRICES,
    Option(
        "--budget",
        "monthly_budget",
        "Dollars for requests; above it write-back slows down.",
        parse_budget,
        "N/month",
    ),
    Option("--fsync", "lazy_fsync", "honest, or lazy: fsync says yes and does nothing. [honest]", lazy_fsync, "HOW"),
    Option(
        "--journal",
        "journal",
        "Bytes of a local disk for what was written, or none. [256MiB, none on a disk with less than 1GiB free]",
        journal_size,
        "SIZE",
        # Not the original's, which has none.
        alias="--journal-size",
    ),
    JOURNAL_DIRECTORY,
    Option("--disk-cache", "disk_cache", "Bytes of a local disk for copies of blocks. [none]", memory_size, "SIZE"),
    Option(
        "--disk-cache-directory",
        "disk_cache_directory",
        "Where they are kept. [~/.cache/s3backer, for root /var/cache/s3backer]",
        str,
        "DIRECTORY",
    ),
    Option("--direct-io", "direct_io", "Let the kernel keep nothing of the disk.", alias="--directIO"),
    Option("--no-fast-lane", "fast_lane", "Let llfuse answer everything: slower.", value=False),
    Option("--quiet", "quiet", "Log only warnings and errors."),
)


def pick(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the values that were given and are fields of a dataclass."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in values.items() if name in names and value is not None}


def store_options(values: Mapping[str, Any]) -> StoreOptions:
    """Return the store's options; as many connections as there are threads."""
    chosen = pick(StoreOptions, values)
    if values.get("threads"):
        chosen["connections"] = values["threads"]
    return StoreOptions(**chosen)


def encoding_options(values: Mapping[str, Any]) -> EncodingOptions:
    """Return how blocks are stored."""
    return EncodingOptions(**pick(EncodingOptions, values))


def volume_options(values: Mapping[str, Any]) -> VolumeOptions:
    """Return the volume's options."""
    return VolumeOptions(encoding=encoding_options(values), **pick(VolumeOptions, values))
