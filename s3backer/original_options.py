"""The original's options, one by one, and what each means here.

    same       it does what it does there
    better     what it is for is done here in another way, or without it; the option is accepted
    accepted   it has no effect, for the reason given; nothing that is stored depends on it
    refused    it would store or show something else than what it says, so it is an error

``docs/original-options.md`` is made from this table. ``name`` is a field of StoreOptions, EncodingOptions,
VolumeOptions or MountRequest, or belongs to cli/original.py; empty: the value is checked and then dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from s3backer.config import cipher, level, permissions, positive_size, time_limit, whole
from s3backer.errors import UsageError

Treatment = Literal["same", "better", "accepted", "refused"]
STORAGE_CLASSES = (
    "STANDARD",
    "STANDARD_IA",
    "ONEZONE_IA",
    "REDUCED_REDUNDANCY",
    "INTELLIGENT_TIERING",
    "GLACIER",
    "DEEP_ARCHIVE",
    "OUTPOSTS",
)
_SERVICE_TYPES = {"lowdelay": 0x10, "throughput": 0x08, "reliability": 0x04, "lowcost": 0x02, "mincost": 0x02}
_COUNT = whole(0, 999_999_999)


@dataclass(frozen=True, slots=True)
class OriginalOption:
    """One option. ``convert`` None: a flag, which sets ``value``. ``bare``: what it sets without a value, if it may."""

    flag: str
    name: str
    treatment: Treatment
    help: str
    convert: Callable[[str], Any] | None = None
    metavar: str = ""
    value: object = True
    bare: object = None
    note: str = ""


def _same(flag: str, name: str, text: str, *more: Any, **named: Any) -> OriginalOption:
    return OriginalOption(flag, name, "same", text, *more, **named)


def _better(flag: str, name: str, text: str, *more: Any, **named: Any) -> OriginalOption:
    return OriginalOption(flag, name, "better", text, *more, **named)


def _accepted(flag: str, text: str, *more: Any, **named: Any) -> OriginalOption:
    return OriginalOption(flag, "", "accepted", text, *more, **named)


def _refused(flag: str, text: str, *more: Any, **named: Any) -> OriginalOption:
    return OriginalOption(flag, "", "refused", text, *more, **named)


def milliseconds(text: str) -> float:
    """Convert milliseconds to seconds."""
    number: int = _COUNT(text)
    return number / 1000


def base_url(text: str) -> str:
    """Convert a baseURL, which ends in a slash, to an endpoint."""
    if not re.fullmatch(r"https?://[^/]+/(?:.*/)?", text):
        raise UsageError(f"{text!r} is no baseURL", hint="It looks like https://s3.example.com/ and ends in a slash.")
    return text.rstrip("/")


def one_of(*values: str) -> Callable[[str], str]:
    """Return a converter that takes these values and no other."""

    def convert(text: str) -> str:
        if text not in values:
            raise UsageError(f"{text!r} is none of its values", hint=f"They are {', '.join(values)}.")
        return text

    return convert


def service_type(text: str) -> int:
    """Convert a name or a number from 0 to 255, as C writes it."""
    if text.lower() in _SERVICE_TYPES:
        return _SERVICE_TYPES[text.lower()]
    if re.fullmatch(r"0[xX][0-9a-fA-F]{1,2}|0[0-7]{0,3}|[1-9][0-9]{0,2}", text):
        digits = text.lower().removeprefix("0x")
        number = int(digits, 16 if digits != text.lower() else 8 if text.startswith("0") else 10)
        if number <= 255:
            return number
    raise UsageError(f"{text!r} is no type of service", hint=f"Give 0 to 255 or one of {', '.join(_SERVICE_TYPES)}.")


def compression(text: str) -> str | int:
    """Convert an algorithm's name, or deflate's level."""
    if re.fullmatch(r"-?[0-9]{1,6}", text):
        return level(text)
    return one_of("deflate", "zstd")(text.lower())


_CACHE = "blocks are kept in memory within one byte budget"
_CONSISTENT = "S3 has been consistent since 2020, so that what was written is what is read"

_TABLE: tuple[OriginalOption, ...] = (
    # ── who and where ──
    _same("accessFile", "access_file", "File of ID:KEY lines.", str, "FILE"),
    _same("accessId", "access_key", "S3 access ID; empty: anonymous.", str, "ID"),
    _same("accessKey", "secret_key", "S3 secret key.", str, "KEY"),
    _same("accessKeyEnv", "secret_variable", "Environment variable that holds the secret key.", str, "VAR"),
    _same(
        "accessType",
        "acl",
        "Access control of what is stored.",
        one_of("private", "public-read", "public-read-write", "authenticated-read"),
        "TYPE",
        note="x-amz-acl is sent only if this is given: new AWS buckets refuse every ACL",
    ),
    _better(
        "accessEC2IAM",
        "instance_role",
        "Credentials of this machine's role.",
        lambda text: True,
        "ROLE",
        note="an instance has one role, which is found by itself; IMDSv2 is used where there is one",
    ),
    _accepted("accessEC2IAM-IMDSv2", "Use IMDSv2 for it.", note="it always is"),
    _better(
        "authVersion",
        "",
        "Version of the signature.",
        one_of("aws2", "aws4"),
        "VERSION",
        note="always aws4, which every S3 service takes today; the old one is not sent any more",
    ),
    _same("baseURL", "endpoint_url", "The S3 service.", base_url, "URL", note="the default is https"),
    _same("region", "region", "Region; also puts the bucket into the host name.", str, "NAME"),
    _better("ssl", "ssl", "Use https.", note="the default"),
    _same("vhost", "virtual_host", "Put the bucket into the host name."),
    _same("no-vhost", "virtual_host", "Put the bucket into the path.", value=False),
    _same("cacert", "ca_bundle", "Certificates to trust.", str, "FILE"),
    _same("insecure", "verify_tls", "Trust any certificate.", value=False, note="nor is the host's name checked"),
    _accepted("http11", "No HTTP/2.", note="HTTP/1.1 is what is spoken"),
    _accepted("noCurlCache", "A new connection for each request.", note="a means of debugging libcurl"),
    _same("ipTOS", "type_of_service", "Type of service of the IP packets.", service_type, "TOS"),
    _same("timeout", "timeout", "Limit for one attempt of a request.", time_limit, "SECONDS"),
    _same(
        "initialRetryPause",
        "first_pause",
        "Longest first pause between attempts. [200]",
        milliseconds,
        "MS",
        note="pauses are drawn at random below what doubles, so that many clients do not come back at once",
    ),
    _same("maxRetryPause", "patience", "Sum of the pauses between attempts. [30000]", milliseconds, "MS"),
    _same("maxUploadSpeed", "upload_limit", "Bits per second of all uploads together.", positive_size, "SPEED"),
    _same("maxDownloadSpeed", "download_limit", "Bits per second of all downloads together.", positive_size, "SPEED"),
    _same("sse", "encryption", "Encryption by the server.", one_of("AES256", "aws:kms"), "TYPE"),
    _same("sse-key-id", "encryption_key", "Its key, for aws:kms.", str, "ID"),
    _same(
        "storageClass",
        "storage_class",
        "Storage class of what is stored.",
        one_of(*STORAGE_CLASSES),
        "CLASS",
        note="not sent with a DELETE, where it means nothing",
    ),
    _same("rrs", "storage_class", "The old name of REDUCED_REDUNDANCY.", value="REDUCED_REDUNDANCY"),
    # ── the volume ──
    _same("defaultContentEncoding", "default_content_encoding", "What blocks are that do not say so.", str, "NAMES"),
    _same("blockSize", "block_size", "Size of a block. [what the volume says, else 4096]", positive_size, "SIZE"),
    _same("size", "size", "Size of the volume.", positive_size, "SIZE"),
    _same("noAutoDetect", "detect", "Do not take sizes from the volume's metadata.", value=False),
    _same("force", "force", "Go on although marked as mounted, or sizes differ."),
    _same("prefix", "prefix", "Prefix of all keys.", str, "TEXT"),
    _same("blockHashPrefix", "block_hash_prefix", "Keys begin with a hash."),
    _same(
        "compress",
        "compress",
        "Compress: deflate, zstd, or a level of deflate.",
        compression,
        "ALGORITHM|LEVEL",
        bare="deflate",
    ),
    _same("compress-level", "compress_level", "The algorithm's level.", level, "N"),
    _same(
        "encrypt",
        "encrypt",
        "Encrypt. [AES-128-CBC]",
        cipher,
        "CIPHER",
        bare="AES-128-CBC",
        note="the password is tried on a block that is there, before anything is written",
    ),
    _same("keyLength", "key_length", "Bytes of the keys; 64 for volumes before 1.3.6.", whole(0, 64), "N"),
    _same("password", "password", "The password.", str, "TEXT"),
    _same("passwordFile", "password_file", "File with the password in its first line.", str, "FILE"),
    _refused(
        "sharedDiskMode",
        "Several hosts use one volume.",
        note="it needs a mount that the kernel caches nothing of, which this version does not have",
    ),
    # ── what is shown ──
    _same("filename", "file_name", "Name of the file that is the disk.", str, "NAME"),
    _same("fileMode", "file_mode", "Its permissions, octal.", permissions, "MODE"),
    _better(
        "readOnly", "read_only", "Refuse writes.", note="possible beside a writer, with a warning that it may be behind"
    ),
    _same("directIO", "direct_io", "No kernel cache for the file."),
    _same("statsFilename", "stats_name", "Name of the statistics file; empty: none.", str, "NAME"),
    _same("statsFileMirror", "stats_mirror", "File that gets a copy of the statistics.", str, "FILE"),
    _same("statsFileMirrorInterval", "stats_interval", "How often. [1000]", milliseconds, "MS"),
    # ── the cache ──
    _same(
        "blockCacheSize",
        "cache_blocks",
        "Blocks in memory.",
        _COUNT,
        "BLOCKS",
        note=f"{_CACHE}, N times the block size and never less than what works; without it the budget is 256 MiB",
    ),
    _same("blockCacheThreads", "threads", "Most requests at once. [64]", whole(1, 1000), "N"),
    _accepted("blockCacheTimeout", "Drop clean blocks after this.", _COUNT, "MS", note="they go when room is needed"),
    _same("blockCacheWriteDelay", "write_delay", "Longest time a written block waits. [250]", milliseconds, "MS"),
    _same("blockCacheMaxDirty", "max_dirty", "Blocks not stored yet at which writers wait.", _COUNT, "BLOCKS"),
    _same("blockCacheSync", "write_through", "A write returns when it is stored."),
    _accepted(
        "blockCacheNumProtected", "Keep the first blocks.", _COUNT, "BLOCKS", note=f"{_CACHE}, the least used go"
    ),
    _better(
        "blockCacheFile",
        "cache_file",
        "Cache on a local disk.",
        str,
        "FILE",
        note=f"{_CACHE} instead; 's3backer mount' has --disk-cache. "
        "A file that holds blocks which are not stored yet stops the mount: "
        "see 's3backer import-cache'",
    ),
    _accepted("blockCacheNoVerify", "Trust its blocks.", note="there is no such file"),
    _better(
        "blockCacheRecoverDirtyBlocks",
        "",
        "Store its unsaved blocks.",
        note="'s3backer import-cache' does that, and checks what it stored",
    ),
    _accepted("blockCacheFileAdvise", "Keep it out of the kernel's cache.", note="there is no such file"),
    _accepted("readAhead", "Blocks to read ahead.", _COUNT, "BLOCKS", note="the kernel reads up to 2 MiB ahead"),
    _accepted("readAheadTrigger", "When to begin with that.", _COUNT, "BLOCKS", note="the kernel decides"),
    _accepted("md5CacheSize", "Blocks watched for old answers.", _COUNT, "BLOCKS", note=_CONSISTENT),
    _accepted("md5CacheTime", "How long.", _COUNT, "MS", note=_CONSISTENT),
    _accepted("minWriteDelay", "Pause between two writes of a block.", _COUNT, "MS", note=_CONSISTENT),
    _same("listBlocks", "list_blocks", "List the blocks at the start.", note="while the volume is in use already"),
    _accepted("listBlocksThreads", "Threads for that.", whole(1, 1000), "N", note="nothing waits for the listing"),
    # ── how it runs ──
    _same("configFile", "config_file", "File of arguments, one a line.", str, "FILE"),
    _same("test", "test", "The bucket is a local directory."),
    _accepted("test-errors", "Random errors.", note="it has no effect there either"),
    _accepted("test-delays", "Random delays.", note="only for testing the original"),
    _refused("test-discard", "Store nothing.", note="it throws away what is written"),
    _same("erase", "erase", "Erase the volume; takes no mount point."),
    _same("reset-mounted-flag", "reset", "Remove the mark of a mount that died; takes no mount point."),
    _refused("nbd", "Serve a network block device.", note="this version has no NBD server"),
    _refused("nbd-flag", "Its options.", str, "TEXT", note="this version has no NBD server"),
    _refused("nbd-param", "Its parameters.", str, "TEXT", note="this version has no NBD server"),
    _same("quiet", "quiet", "Log only warnings and errors."),
    _same("debug", "debug", "Say everything that happens."),
    _same(
        "debug-http", "debug", "Say what is sent and received.", note="without keys and signatures; the same as debug"
    ),
    # ── gone from the original, but still in old lines of /etc/fstab ──
    _better("assumeEmpty", "list_blocks", "Take it that there is no block.", note="the blocks are listed instead"),
    _accepted("access", "The old name of accessType.", str, "TYPE", note="give accessType if an ACL is wanted"),
    _accepted("cacheSize", "The old name of md5CacheSize.", _COUNT, "BLOCKS", note=_CONSISTENT),
    _accepted("cacheTime", "The old name of md5CacheTime.", _COUNT, "MS", note=_CONSISTENT),
    _accepted("connectTimeout", "Limit for connecting.", _COUNT, "SECONDS", note="give timeout"),
    _accepted("ioTimeout", "Limit for a transfer.", _COUNT, "SECONDS", note="give timeout"),
    _accepted("maxRetry", "Number of attempts.", _COUNT, "N", note="give maxRetryPause"),
    _accepted("retryPause", "Pause between attempts.", _COUNT, "MS", note="give initialRetryPause"),
)
#: The options by name.
ORIGINAL: Mapping[str, OriginalOption] = {option.flag: option for option in _TABLE}
