"""One typed description of every option: the commands, the original's form, the library and the help read it.

``name`` is the field of StoreOptions, VolumeOptions or MountRequest that an option sets, or the command's own
parameter. An option that was not given is None and leaves the default of that field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from s3backer.errors import UsageError
from s3backer.opening import VolumeOptions
from s3backer.stores.options import StoreOptions
from s3backer.units import parse_size

Convert = Callable[[str], Any]


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


def positive_size(text: str) -> int:
    """Convert a size of a volume, a block or memory, none of which can be nothing."""
    size = parse_size(text)
    if not size:
        raise UsageError(f"{text!r} is no size for it", hint="Write for example 10GiB, 128KiB or 4096.")
    return size


def permissions(text: str) -> int:
    """Convert permission bits."""
    if not re.fullmatch(r"[0-7]{1,4}", text):
        raise UsageError(f"{text!r} are no permissions", hint="Write them in octal, for example 0600.")
    return int(text, 8)


@dataclass(frozen=True, slots=True)
class Option:
    """One option. ``convert`` None: a flag. ``value``: what a flag sets. ``alias``: the original's name for it."""

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
    Option("--timeout", "timeout", "Limit for each attempt of a request. [30]", seconds, "SECONDS"),
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

#: How a volume is opened and shown: ``mount``.
MOUNT: tuple[Option, ...] = (
    Option("--foreground", "foreground", "Stay in the foreground and log to standard error.", alias="-f"),
    Option("--memory", "memory", "Budget for cache, blocks under way and bookkeeping. [256MiB]", positive_size, "SIZE"),
    Option("--threads", "threads", "Requests at once. [16]", whole(1, 1000), "N", alias="--blockCacheThreads"),
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
    Option("--quiet", "quiet", "Log only warnings and errors."),
)


def milliseconds(text: str) -> float:
    """Convert milliseconds to seconds."""
    number: int = whole(0, 10**9 - 1)(text)
    return number / 1000


def base_url(text: str) -> str:
    """Convert the original's baseURL, which ends in a slash, to an endpoint."""
    if not re.fullmatch(r"https?://[^/]+/(?:.*/)?", text):
        raise UsageError(f"{text!r} is no baseURL", hint="It looks like https://s3.example.com/ and ends in a slash.")
    return text.rstrip("/")


#: The original's options by its names. The names on the right that no dataclass has belong to cli/original.py.
ORIGINAL: Mapping[str, Option] = {
    option.flag: option
    for option in (
        Option("accessId", "access_key", "S3 access ID; empty: anonymous.", str, "ID"),
        Option("accessKey", "secret_key", "S3 secret key.", str, "KEY"),
        Option("accessKeyEnv", "secret_variable", "Environment variable that holds the secret key.", str, "VAR"),
        Option("baseURL", "endpoint_url", "The S3 service.", base_url, "URL"),
        Option("region", "region", "Region; also puts the bucket into the host name.", str, "NAME"),
        Option("ssl", "ssl", "Use https, which is the default here."),
        Option("vhost", "virtual_host", "Put the bucket into the host name."),
        Option("no-vhost", "virtual_host", "Put the bucket into the path.", value=False),
        Option("cacert", "ca_bundle", "Certificates to trust.", str, "FILE"),
        Option("insecure", "verify_tls", "Trust any certificate.", value=False),
        Option("timeout", "timeout", "Limit for one attempt of a request.", seconds, "SECONDS"),
        Option("maxRetryPause", "patience", "Sum of the pauses between attempts.", milliseconds, "MS"),
        Option("size", "size", "Size of the volume.", positive_size, "SIZE"),
        Option("blockSize", "block_size", "Size of a block. [what the volume says, else 4096]", positive_size, "SIZE"),
        Option("noAutoDetect", "detect", "Do not read the volume's metadata.", value=False),
        Option("force", "force", "Go on although marked as mounted, or sizes differ."),
        Option("prefix", "prefix", "Prefix of all keys.", str, "TEXT"),
        Option("blockHashPrefix", "block_hash_prefix", "Keys begin with a hash."),
        Option("filename", "file_name", "Name of the file that is the disk.", str, "NAME"),
        Option("fileMode", "file_mode", "Its permissions, octal.", permissions, "MODE"),
        Option("readOnly", "read_only", "Refuse writes."),
        Option("statsFilename", "stats_name", "Name of the statistics file; empty: none.", str, "NAME"),
        Option("blockCacheThreads", "threads", "Requests at once.", whole(1, 1000), "N"),
        Option("blockCacheWriteDelay", "write_delay", "Longest time a written block waits. [250]", milliseconds, "MS"),
        Option("listBlocks", "list_blocks", "List the blocks at the start, which is the default here."),
        Option("test", "test", "The bucket is a local directory."),
        Option("erase", "erase", "Erase the volume; takes no mount point."),
        Option("reset-mounted-flag", "reset", "Remove the mark of a mount that died; takes no mount point."),
        Option("quiet", "quiet", "Log only warnings and errors."),
        Option("debug", "debug", "Say everything that happens."),
    )
}

#: Options of the original that this version does not have; they are refused by name.
NOT_YET = frozenset(
    [
        "accessFile",
        "accessType",
        "accessEC2IAM",
        "accessEC2IAM-IMDSv2",
        "authVersion",
        "http11",
        "noCurlCache",
        "ipTOS",
        "initialRetryPause",
        "maxUploadSpeed",
        "maxDownloadSpeed",
        "sse",
        "sse-key-id",
        "storageClass",
        "defaultContentEncoding",
        "directIO",
        "statsFileMirror",
        "statsFileMirrorInterval",
        "blockCacheSize",
        "blockCacheTimeout",
        "blockCacheMaxDirty",
        "blockCacheSync",
        "blockCacheNumProtected",
        "blockCacheFile",
        "blockCacheNoVerify",
        "blockCacheRecoverDirtyBlocks",
        "blockCacheFileAdvise",
        "readAhead",
        "readAheadTrigger",
        "md5CacheSize",
        "md5CacheTime",
        "minWriteDelay",
        "listBlocksThreads",
        "sharedDiskMode",
        "compress",
        "compress-level",
        "encrypt",
        "keyLength",
        "password",
        "passwordFile",
        "configFile",
        "nbd",
        "nbd-flag",
        "nbd-param",
        "debug-http",
        "test-errors",
        "test-delays",
        "test-discard",
        "assumeEmpty",
        "rrs",
        "access",
        "cacheSize",
        "cacheTime",
        "connectTimeout",
        "ioTimeout",
        "maxRetry",
        "retryPause",
    ]
)


#: What fstab says to mount(8), systemd and others, in the same field as what it says to us.
_FOR_OTHERS = re.compile(
    r"(auto|noauto|user|nouser|users|owner|group|_netdev|nofail|defaults|relatime|norelatime|strictatime|nostrictatime"
    r"|lazytime|nolazytime|diratime|nodiratime|silent|loud)|user=.*|comment=.*|[xX]-.*",
    re.DOTALL,
)


def is_for_others(option: str) -> bool:
    """Whether a mount option is addressed to somebody else, who may leave it in the list for us to ignore."""
    return _FOR_OTHERS.fullmatch(option) is not None


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


def volume_options(values: Mapping[str, Any]) -> VolumeOptions:
    """Return the volume's options."""
    return VolumeOptions(**pick(VolumeOptions, values))
