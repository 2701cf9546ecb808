"""The original's form of the command line: its spelling, its defaults, and 1 for every failure."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from s3backer import __version__
from s3backer.cli import COMMANDS
from s3backer.config import NOT_YET, ORIGINAL
from s3backer.daemon import MountRequest
from s3backer.layouts.token import TOKEN_NAME, write_token
from s3backer.stores.directory import DirectoryStore
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
        write_token(DirectoryStore(volume), "", "", replace=None, random_source=random.Random(1))

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
        (("bucket", "/mnt", "--encrypt"), "encrypt is an option of the original that this version does not", "out"),
        (("bucket", "/mnt", "-o", "compress=9,encrypt"), "compress is an option of the original", "out"),
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


def test_an_option_is_either_there_or_refused_by_name(run: Run) -> None:
    assert not NOT_YET & set(ORIGINAL)
    for name in NOT_YET:
        answer = run("bucket", "/mnt", f"--{name}")
        assert answer.code == 1
        assert answer.sentence().startswith(f"{name} is an option of the original")


def test_help_and_version(run: Run) -> None:
    answer = run("--help-original")
    assert answer.code == 0
    for name in ORIGINAL:
        assert f"  --{name}" in answer.out
    assert run("bucket", "--version").out == f"s3backer {__version__}\n"
