"""The original's form of the command line: its spelling, its defaults, and 1 for every failure."""

from __future__ import annotations

import random
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from s3backer import __version__
from s3backer.cli import COMMANDS
from s3backer.cli.original_words import parse
from s3backer.errors import UsageError
from s3backer.layouts.token import TOKEN_NAME, new_token, write_token
from s3backer.mount_request import MountRequest
from s3backer.original_options import ORIGINAL
from s3backer.stores.directory import DirectoryStore
from tests.support.cache_files import Slot, put_cache_file
from tests.support.commands import Run, tree


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[MountRequest]:
    """Return the list of mounts that were asked for; none is made."""
    asked: list[MountRequest] = []

    def note(request: MountRequest) -> int:
        asked.append(request)
        return 0

    monkeypatch.setattr("s3backer.daemon.run_mount", note)
    return asked


def test_defaults(run: Run, requests: list[MountRequest]) -> None:
    assert run("bucket/sub", "/mnt/disk").code == 0
    (request,) = requests
    assert (str(request.url), request.mountpoint) == ("s3://bucket/sub", "/mnt/disk")
    assert request.volume_options.default_block_size == 4096
    assert request.volume_options.write_delay == 0.25
    assert request.volume_options.memory == 256 << 20
    assert (request.file_name, request.stats_name, request.file_mode) == ("file", "stats", None)
    assert request.store_options.virtual_host is None
    assert request.fuse_options == ()


def test_options_in_every_spelling(run: Run, requests: list[MountRequest]) -> None:
    words = (
        "--size=10g -o blockSize=64k,readOnly,allow_other,ro bucket --accessId=ID -oprefix=a-,fileMode=0440 "
        "--accessKey=KEY --baseURL=https://s3.example.com/ -f --blockCacheThreads=7 -d /mnt/disk "
        "--blockCacheWriteDelay=1500 --statsFilename= --filename=disk --timeout=90 --blockHashPrefix --noAutoDetect"
    )
    answer = run(*words.split())
    assert (answer.code, answer.err) == (0, "")
    (request,) = requests
    volume, store = request.volume_options, request.store_options
    assert (volume.size, volume.block_size, volume.threads, volume.write_delay) == (10 << 30, 64 << 10, 7, 1.5)
    assert (volume.read_only, volume.block_hash_prefix, volume.detect) == (True, True, False)
    assert (store.access_key, store.secret_key, store.timeout, store.connections) == ("ID", "KEY", 90, 7)
    assert store.endpoint_url == "https://s3.example.com"
    assert (request.url.bucket, request.url.prefix) == ("bucket", "a-")
    assert (request.file_name, request.stats_name, request.file_mode) == ("disk", None, 0o440)
    assert (request.foreground, request.debug) == (True, True)
    assert request.fuse_options == ("allow_other", "ro")


@pytest.mark.parametrize("size", ["4096", "8m", "8M"])
def test_a_size_needs_no_suffix(run: Run, requests: list[MountRequest], size: str) -> None:
    assert run(f"--size={size}", "bucket", "/mnt").code == 0
    assert requests[0].volume_options.size == (4096 if size == "4096" else 8 << 20)


def test_the_last_of_several_wins(run: Run, requests: list[MountRequest]) -> None:
    assert run("--size=1m", "bucket", "/mnt", "-o", "size=2m,size=3m").code == 0
    assert requests[0].volume_options.size == 3 << 20


def test_a_backslash_keeps_a_comma(run: Run, requests: list[MountRequest]) -> None:
    assert run("bucket", "/mnt", "-o", r"filename=a\,b,ro").code == 0
    assert (requests[0].file_name, requests[0].fuse_options) == ("a,b", ("ro",))


def test_what_ends_a_line_of_a_configuration_file(run: Run, requests: list[MountRequest], tmp_path: Path) -> None:
    """Neither Unicode's ends of lines nor its blanks: they may belong to a password."""
    file = tmp_path / "file"
    for value in ("a\u2028b", "a\x0cb", "a\x85", "a\xa0"):
        file.write_bytes(f"\t bucket \r\n--filename={value} \n".encode())
        assert run(f"--configFile={file}", "/mnt").code == 0
        assert requests.pop().file_name == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # Observed with the original, whose errors show the value that it was given.
        (r"a\061\060x", "a10x"),
        (r"a\0611", "a11"),
        (r"a\054b", "a,b"),
        (r"a\\054b", r"a\054b"),
        (r"a\400", "a400"),
        (r"a\303\274", "aü"),
        ("a\\", "a\\"),
    ],
)
def test_what_a_backslash_does_behind_o(
    run: Run, requests: list[MountRequest], tmp_path: Path, text: str, value: str
) -> None:
    """A password that is read otherwise than the original reads it is another password."""
    empty = tmp_path / "empty"
    empty.touch()
    for words in (f"filename={text}", f"configFile={empty},filename={text}"):
        assert run("-o", words, "bucket", "/mnt").code == 0
        assert requests.pop().file_name == value


def test_a_nul_is_refused(run: Run, requests: list[MountRequest], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"--passwordFile=a\0b\n")
    for words in (f"--configFile={file}",), ("-o", r"configFile=a\000b"), ("-o", r"passwordFile=\000,encrypt"):
        answer = run(*words, "bucket", "/mnt")
        assert answer.code == 1 and ("NUL" in answer.sentence() or r"\000" in answer.sentence())
    assert not requests


def test_a_region_puts_the_bucket_into_the_host_name(run: Run, requests: list[MountRequest]) -> None:
    for words in (["--region=eu-west-1"], ["--region=eu-west-1", "--no-vhost"], ["--no-vhost", "--region=eu-west-1"]):
        assert run(*words, "bucket", "/mnt").code == 0
    assert [request.store_options.virtual_host for request in requests] == [True, False, False]


def test_where_keys_come_from(run: Run, requests: list[MountRequest], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", "from the environment")
    assert run("--accessId=ID", "--accessKeyEnv=MY_SECRET", "bucket", "/mnt").code == 0
    assert run("--accessId=", "bucket", "/mnt").code == 0
    assert requests[0].store_options.secret_key == "from the environment"
    assert (requests[1].store_options.anonymous, requests[1].store_options.access_key) == (True, None)
    assert run("--accessKey=a", "--accessKeyEnv=MY_SECRET", "bucket", "/mnt").code == 1
    assert run("--accessKeyEnv=NO_SUCH_VARIABLE", "bucket", "/mnt").code == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_buckets_that_are_named_like_commands(run: Run, requests: list[MountRequest], command: str) -> None:
    assert run("--", command, "/mnt").code == 0
    assert run(f"./{command}/sub", "/mnt").code == 0
    assert [str(request.url) for request in requests] == [f"s3://{command}", f"s3://{command}/sub"]


def test_a_directory_as_a_bucket(run: Run, requests: list[MountRequest], tmp_path: Path) -> None:
    assert run("--test", str(tmp_path), "/mnt").code == 0
    assert str(requests[0].url) == f"file://{tmp_path}"


def test_erase_and_reset(run: Run, volume: Path) -> None:
    def lock() -> None:
        write_token(DirectoryStore(volume), "", "", new_token(random.Random(1)), former=None)

    lock()
    assert run("--test", "--reset-mounted-flag", str(volume)).code == 0
    assert not (volume / TOKEN_NAME).exists()
    lock()
    assert run("--test", "--erase", "--force", str(volume)).code == 0
    assert not (volume / TOKEN_NAME).exists() and not (volume / "00000000").exists()


@pytest.mark.parametrize(
    ("words", "sentence", "hint"),
    [
        (("bucket",), "a bucket and a mount point are needed, not 1 argument", "[options] BUCKET"),
        (("bucket", "/a", "/b"), "not 3 arguments", "[options] BUCKET"),
        (("--erase", "--test", "/d", "/mnt"), "no mount point", "[options] BUCKET"),
        (("--erase", "--reset-mounted-flag", "bucket"), "exclude each other", "one"),
        (("--erase", "--test", "{}/volume"), "confirmation", "--yes"),
        (("", "/mnt"), "'' cannot be the name of a bucket", "3 to 63"),
        (("/bucket", "/mnt"), "'' cannot be the name of a bucket", "3 to 63"),
        (("bucket/", "/mnt"), "part", "single slashes"),
        (("bucket//x", "/mnt"), "part", "single slashes"),
        (("bucket/x/", "/mnt"), "part", "single slashes"),
        (("bucket/x", "/mnt", "--prefix=y"), "exclude each other", "one"),
        (("bucket", "/mnt", "--prefix=a%b"), "character", "%"),
        (("bucket", "/mnt", "--encrypt"), "encryption needs a password", "--password-file"),
        (("bucket", "/mnt", "--encrypt=AES-128-CTR"), "not in CBC mode", "AES-256-CBC"),
        (("bucket", "/mnt", "--encrypt=AES-129-CBC"), "no cipher 'AES-129-CBC'", "AES-1"),
        (("--test", "/d", "/mnt", "--encrypt", "--password=x"), "does not go with --test", "create file:"),
        (("bucket", "/mnt", "--password=x", "--passwordFile=y"), "exclude each other", "one"),
        (("bucket", "/mnt", "--encrypt", "--passwordFile=/no/such"), "/no/such cannot be read", "file"),
        (("bucket", "/mnt", "--compress=lzma"), "compress: 'lzma'", "deflate, zstd"),
        (("bucket", "/mnt", "--compress-level=3"), "needs --compress", "too"),
        (("bucket", "/mnt", "--accessKey=a", "--accessKeyEnv=b"), "exclude each other", "one"),
        (("bucket", "/mnt", "--accessKeyEnv=NO_SUCH_VARIABLE"), "no variable NO_SUCH_VARIABLE", "Set it"),
        (("bucket", "/mnt", "--accessType=mine"), "accessType: 'mine'", "public-read"),
        (("bucket", "/mnt", "--authVersion=aws3"), "authVersion: 'aws3'", "aws4"),
        (("bucket", "/mnt", "--storageClass=WARM"), "storageClass: 'WARM'", "GLACIER"),
        (("bucket", "/mnt", "--sse=rot13"), "sse: 'rot13'", "aws:kms"),
        (("bucket", "/mnt", "--sse=aws:kms"), "needs a key", "--sse-key-id"),
        (("bucket", "/mnt", "--maxRetryPause=10", "--initialRetryPause=20"), "less than", "one"),
        (("bucket", "/mnt", "--maxRetryPause=10"), "less than", "one"),
        (("bucket", "/mnt", "--blockCacheSync"), "needs --blockCacheWriteDelay=0", "too"),
        (("bucket", "/mnt", "--blockCacheRecoverDirtyBlocks"), "needs --blockCacheFile", "Name"),
        (("bucket", "/mnt", "--blockCacheThreads=0"), "blockCacheThreads: '0'", "Change"),
        (("bucket", "/mnt", "--listBlocksThreads=0"), "listBlocksThreads: '0'", "Change"),
        (("bucket", "/mnt", "--keyLength=65"), "keyLength: '65'", "Change"),
        (("bucket", "/mnt", "--ipTOS=256"), "ipTOS: '256'", "lowdelay"),
        (("--nbd", "bucket", "/dev/nbd0"), "nbd is not done here: this version has no NBD server", "original"),
        (("bucket", "/mnt", "--sharedDiskMode"), "sharedDiskMode is not done here", "original"),
        (("bucket", "/mnt", "--test-discard"), "throws away what is written", "original"),
        (("bucket", "/mnt", "--configFile=/no/such"), "/no/such cannot be read", "name"),
        (("bucket", "/mnt", "-F"), "-F needs a file", "-F FILE"),
        (("bucket", "/mnt", "--accessFile=/proc/1/mem/x"), "cannot be read", "who"),
        (("bucket", "/mnt", "-o", "blockCashSize=3"), "no mount option 'blockCashSize'", "blockCacheSize"),
        (("bucket", "/mnt", "-o", "alow_other"), "no mount option 'alow_other'", "allow_other"),
        (("bucket", "/mnt", "-o", "uid=root"), "'uid=root' cannot be used", "Change"),
        (("bucket", "/mnt", "--blokSize=4k"), "no option --blokSize", "--blockSize"),
        (("bucket", "/mnt", "--size"), "size needs a value", "--size="),
        (("bucket", "/mnt", "--size=ten"), "size: 'ten' is no size", "10GiB"),
        (("bucket", "/mnt", "--size=0"), "size: '0'", "10GiB"),
        (("bucket", "/mnt", "--readOnly=yes"), "readOnly takes no value", "--readOnly"),
        (("bucket", "/mnt", "--baseURL=s3.example.com"), "baseURL", "slash"),
        (("bucket", "/mnt", "--ssl", "--baseURL=http://host/"), "--ssl", "https"),
        (("bucket", "/mnt", "-x"), "no option -x", "[options] BUCKET"),
        (("bucket", "/mnt", "-o"), "-o needs", "-o size"),
        (("bucket", "{}/missing"), "does not exist", "mkdir"),
        (("--test", "{}/volume", "{}/missing"), "does not exist", "mkdir"),
    ],
)
def test_every_failure_is_1(run: Run, volume: Path, words: tuple[str, ...], sentence: str, hint: str) -> None:
    before = tree(volume.parent)
    answer = run(*(word.replace("{}", str(volume.parent)) for word in words))
    assert answer.code == 1, answer.err
    assert answer.out == ""
    assert sentence in answer.sentence()
    assert hint in answer.hint()
    assert tree(volume.parent) == before


def test_help_and_version(run: Run) -> None:
    answer = run("--help-original")
    assert answer.code == 0
    for name in ORIGINAL:
        assert f"  --{name}" in answer.out
    assert run("bucket", "--version").out == f"s3backer {__version__}\n"


OPTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "accessId": ("", {"anonymous": True}),
    "accessKey": ("", {"secret_key": ""}),
    "accessType": ("public-read", {"acl": "public-read"}),
    "accessEC2IAM": ("role", {"instance_role": True}),
    "baseURL": ("https://host:8/path/", {"endpoint_url": "https://host:8/path"}),
    "region": ("eu-central-1", {"region": "eu-central-1", "virtual_host": True}),
    "ssl": (None, {"endpoint_url": None}),
    "vhost": (None, {"virtual_host": True}),
    "no-vhost": (None, {"virtual_host": False}),
    "cacert": ("/ca", {"ca_bundle": "/ca"}),
    "insecure": (None, {"verify_tls": False}),
    "ipTOS": ("0x10", {"type_of_service": 16}),
    "timeout": ("12", {"timeout": 12.0}),
    "initialRetryPause": ("100", {"first_pause": 0.1}),
    "maxRetryPause": ("5000", {"patience": 5.0}),
    "maxUploadSpeed": ("8m", {"upload_limit": 8 << 20}),
    "maxDownloadSpeed": ("1000", {"download_limit": 1000}),
    "sse": ("AES256", {"encryption": "AES256"}),
    "sse-key-id": ("k", {"encryption_key": "k"}),
    "storageClass": ("STANDARD_IA", {"storage_class": "STANDARD_IA"}),
    "rrs": (None, {"storage_class": "REDUCED_REDUNDANCY"}),
    "defaultContentEncoding": ("deflate", {"default_content_encoding": "deflate"}),
    "blockSize": ("4096", {"block_size": 4096}),
    "size": ("1G", {"size": 1 << 30}),
    "noAutoDetect": (None, {"detect": False}),
    "force": (None, {"force": True}),
    "blockHashPrefix": (None, {"block_hash_prefix": True}),
    "compress": ("9", {"compress": "deflate", "compress_level": 9}),
    "keyLength": ("64", {"key_length": 64}),
    "password": ("pw", {"password": "pw", "compress": None}),
    "filename": ("disk", {"file_name": "disk"}),
    "fileMode": ("0640", {"file_mode": 0o640}),
    "readOnly": (None, {"read_only": True}),
    "directIO": (None, {"direct_io": True}),
    "statsFilename": ("", {"stats_name": None}),
    "statsFileMirror": ("/m", {"stats_mirror": "/m"}),
    "statsFileMirrorInterval": ("500", {"stats_interval": 0.5}),
    "blockCacheSize": ("1000", {"cache_blocks": 1000}),
    "blockCacheThreads": ("20", {"threads": 20}),
    "blockCacheWriteDelay": ("15000", {"write_delay": 15.0}),
    "blockCacheMaxDirty": ("7", {"max_dirty": 7}),
    "listBlocks": (None, {"list_blocks": True}),
    "assumeEmpty": (None, {"list_blocks": True}),
    "quiet": (None, {"quiet": True}),
    "debug": (None, {"debug": True}),
    "debug-http": (None, {"debug": True}),
}
#: Those that need others or are tested on their own.
APART = {
    "accessFile", "blockCacheRecoverDirtyBlocks",
    "accessKeyEnv", "prefix", "encrypt", "compress-level", "passwordFile", "blockCacheSync", "blockCacheFile",
    "configFile", "test", "erase", "reset-mounted-flag",
}  # fmt: skip


def everything(request: MountRequest) -> dict[str, object]:
    """Return all settings of a mount by name."""
    parts = (request, request.store_options, request.volume_options, request.volume_options.encoding)
    return {field.name: getattr(part, field.name) for part in parts for field in fields(part)}


@pytest.mark.parametrize("spelling", ["--{}", "-o{}", "-o allow_other,{}"])
@pytest.mark.parametrize("name", sorted(ORIGINAL))
def test_every_option_by_the_originals_name(
    name: str, spelling: str, run: Run, requests: list[MountRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not "same" or "better" changes nothing, or is refused by name."""
    option = ORIGINAL[name]
    value, wanted = OPTIONS.get(name, ("aws2" if name == "authVersion" else "3" if option.convert else None, {}))
    if name in APART:
        return
    word = name if value is None else f"{name}={value}"
    words = spelling.format(word).split(" ", 1)
    assert run("bucket", "/mnt").code == 0
    answer = run("bucket", *words, "/mnt")
    if option.treatment == "refused":
        assert (answer.code, len(requests)) == (1, 1)
        assert answer.sentence().startswith(f"{name} is not done here")
        return
    assert answer.code == 0, answer
    usual, changed = map(everything, requests)
    differences = {key: changed[key] for key in changed if changed[key] != usual[key] and key not in PARTS}
    assert differences == {key: value for key, value in wanted.items() if usual[key] != value}
    if option.treatment == "accepted":
        assert not wanted
    else:
        assert wanted or name == "authVersion", name
    assert option.treatment in ("same", "better") or option.note, name


#: Settings that hold others.
PARTS = {"store_options", "volume_options", "encoding", "connections", "fuse_options"}


def test_encryption_takes_a_cipher_or_none_and_implies_compression(
    run: Run, requests: list[MountRequest], tmp_path: Path
) -> None:
    (tmp_path / "pw").write_text("first line\r\nsecond")
    for words in (
        ["--encrypt"],
        ["--encrypt=aes-256-cbc"],
        ["-o", "encrypt=AES192,compress=zstd,compress-level=7"],
        ["--encrypt", "--compress"],
        ["--encrypt", "--compress", "--compress-level=1"],
    ):
        assert run("bucket", "/mnt", *words, f"--passwordFile={tmp_path}/pw").code == 0
    chosen = [request.volume_options.encoding for request in requests]
    assert {encoding.password for encoding in chosen} == {"first line\r"}
    assert [(e.encrypt, e.compress, e.compress_level) for e in chosen] == [
        ("AES-128-CBC", "deflate", None),
        ("AES-256-CBC", "deflate", None),
        ("AES-192-CBC", "zstd", 7),
        ("AES-128-CBC", "deflate", None),
        ("AES-128-CBC", "deflate", 1),
    ]


def test_writing_through(run: Run, requests: list[MountRequest]) -> None:
    assert run("bucket", "/mnt", "--blockCacheSync", "--blockCacheWriteDelay=0").code == 0
    assert requests[0].volume_options.write_through


def test_configuration_files_stand_where_they_are_named(run: Run, requests: list[MountRequest], tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner.conf", tmp_path / "outer.conf"
    inner.write_text("--size=2m\n\n   # a comment\n  --prefix=a b\n".replace("a b", "ab"))
    outer.write_text(f"bucket\n--size=1m\n--configFile={inner}\n/mnt\n")
    assert run(f"--configFile={outer}").code == 0
    assert run("-F", str(outer), "--size=3m").code == 0
    assert run("bucket", "/mnt", "-o", f"size=4m,configFile={inner},blockSize=64k").code == 0
    assert [request.volume_options.size for request in requests] == [2 << 20, 3 << 20, 2 << 20]
    assert requests[2].volume_options.block_size == 64 << 10
    assert {str(request.url) for request in requests} == {"s3://bucket/ab"}
    outer.write_text(f"--configFile={outer}\n")
    answer = run(f"--configFile={outer}")
    assert (answer.code, answer.sentence()) == (1, "more than 100 configuration files")


ACCESS = """\
# comment:no
 indented:no
nothing here
first:key:with:colons \t
second:other
"""


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        ([], ("first", "key:with:colons")),
        (["--accessId=second"], ("second", "other")),
        (["--accessId=second", "--accessKey=mine"], ("second", "mine")),
        (["--accessId="], (None, None)),
    ],
)
@pytest.mark.parametrize("where", ["named", "home"])
def test_access_files(
    words: list[str],
    keys: tuple[str | None, str | None],
    where: str,
    run: Run,
    requests: list[MountRequest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / (".s3backer_passwd" if where == "home" else "keys")
    file.write_text(ACCESS)
    named = [] if where == "home" else [f"--accessFile={file}"]
    assert run("bucket", "/mnt", *words, *named).code == 0
    options = requests[0].store_options
    assert (options.access_key, options.secret_key) == keys


def test_options_of_mount_and_systemd_are_put_up_with(run: Run, requests: list[MountRequest]) -> None:
    words = (
        "rw,noatime,nodev,_netdev,nofail,noauto,x-systemd.requires=a,x-initrd.mount,comment=b,uid=7,gid=8,kernel_cache"
    )
    assert run("bucket", "/mnt", "-o", words).code == 0
    (request,) = requests
    assert request.fuse_options == ("rw", "noatime", "nodev")
    assert (request.uid, request.gid, request.volume_options.read_only) == (7, 8, False)
    assert run("bucket", "/mnt", "-o", "rw,ro").code == 0
    assert requests[1].volume_options.read_only


@example(["-F", "\0"])
@given(
    words=st.lists(
        st.one_of(
            st.text(max_size=20),
            st.sampled_from(["-o", "-F", "--", "-f", "bucket", "/mnt", "--configFile=/dev/null"]),
            st.builds(
                "{}{}{}{}".format,
                st.sampled_from(["--", "-o", ""]),
                st.sampled_from(sorted(ORIGINAL)),
                st.sampled_from(["", "=", ","]),
                st.text(max_size=8),
            ),
        ),
        max_size=6,
    )
)
def test_any_words_are_understood_or_refused(words: list[str]) -> None:
    try:
        said = parse(words)
    except UsageError as error:
        assert error.message and error.hint
    else:
        assert set(said.values) <= {option.name for option in ORIGINAL.values()} | {
            "show",
            "foreground",
            "virtual_host",
        }


def test_a_cache_file_with_unsaved_blocks_stops_the_mount(
    run: Run, requests: list[MountRequest], tmp_path: Path
) -> None:
    """The original would go on and, without RecoverDirtyBlocks or with another token, throw them away."""
    words = ("bucket", "/mnt", f"--blockCacheFile={tmp_path}/cache", "--blockCacheRecoverDirtyBlocks")
    assert run(*words).code == 0
    slots = [Slot(3, b"x" * 4096, dirty=False)]
    put_cache_file(tmp_path / "cache", slots, block_size=4096, token=5)
    assert run(*words).code == 0
    put_cache_file(tmp_path / "cache", [*slots, Slot(4, b"y" * 4096, dirty=True)], block_size=4096, token=5)
    answer = run(*words)
    assert (answer.code, answer.sentence()) == (1, f"{tmp_path}/cache has 1 blocks that are not in the bucket")
    assert answer.hint().endswith(f"s3backer import-cache {tmp_path}/cache s3://bucket")
    answer = run(*words, "--baseURL=https://s3.example.com/", "--region=eu-north-1")
    assert answer.hint().endswith(
        "s3://bucket --endpoint-url https://s3.example.com --region eu-north-1 --virtual-host"
    )
    assert len(requests) == 2
