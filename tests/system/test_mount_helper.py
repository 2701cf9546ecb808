"""How calls by mount(8) become mounts; none is made here."""

from __future__ import annotations

import pytest

from s3backer import daemon
from s3backer.cli import main as s3backer_main
from s3backer.frontends.fuse_options import has_no_effect
from s3backer.mount_request import MountRequest
from s3backer.system.mount_helper import NOT_MOUNTED, OK, WRONG_CALL, main


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[MountRequest]:
    """Return the list of mounts that were asked for."""
    asked: list[MountRequest] = []

    def note(request: MountRequest) -> int:
        asked.append(request)
        return 0

    monkeypatch.setattr(daemon, "run_mount", note)
    return asked


def test_a_url_takes_our_options_and_the_originals(requests: list[MountRequest]) -> None:
    options = (
        "rw,noatime,_netdev,nofail,size=1g,blockSize=64k,memory=64MiB,write-delay=2,blockCacheThreads=8,"
        "accessId=me,accessKey=secret,region=r,filename=disk,max_read=65536,user,x-systemd.requires=a.service"
    )
    assert main(["s3://bucket/sub", "/mnt/disk", "-o", options]) == OK
    (request,) = requests
    assert (str(request.url), request.mountpoint, request.file_name) == ("s3://bucket/sub", "/mnt/disk", "disk")
    volume, store = request.volume_options, request.store_options
    assert (volume.size, volume.block_size, volume.memory) == (1 << 30, 65536, 64 << 20)
    assert (volume.write_delay, volume.threads, volume.read_only) == (2, 8, False)
    assert (store.access_key, store.secret_key, store.region, store.virtual_host) == ("me", "secret", "r", None)
    assert request.fuse_options == ("rw", "noatime", "max_read=65536", "fsname=s3://bucket/sub")


def test_a_bucket_takes_the_originals_form_and_its_defaults(requests: list[MountRequest]) -> None:
    assert main(["s3backer#bucket", "/mnt/disk", "-o", "ro,_netdev,prefix=a/,blockCacheWriteDelay=500,dev"]) == OK
    (request,) = requests
    assert str(request.url) == "s3://bucket/a"
    assert request.volume_options.read_only
    assert request.volume_options.default_block_size == 4096
    assert request.volume_options.write_delay == 0.5
    assert request.fuse_options == ("ro", "dev", "fsname=s3backer#bucket")


@pytest.mark.parametrize("words", [["-r"], ["-o", "ro"], ["-o", "rw", "-o", "ro"]])
def test_read_only_means_the_volume_too(requests: list[MountRequest], words: list[str]) -> None:
    assert main(["s3://bucket", "/mnt/disk", *words]) == OK
    assert requests[0].volume_options.read_only


def test_flags_come_before_and_behind_and_together(requests: list[MountRequest]) -> None:
    for words in (
        ["-n", "-v", "s3://bucket", "/mnt/disk", "-t", "fuse.s3backer", "-o", "rw"],
        ["s3://bucket", "/mnt/disk", "-nvw", "-tfuse.s3backer", "-orw"],
    ):
        assert main(words) == OK
    assert len(requests) == 2
    assert main(["s3://bucket", "/mnt/disk", "-sfnv", "-o", "rw,nonsense"]) == OK
    assert len(requests) == 2


def test_a_comma_in_a_value_is_kept(requests: list[MountRequest]) -> None:
    assert main(["bucket", "/mnt/disk", "-o", "filename=a\\,b"]) == OK
    assert main(["s3://bucket", "/mnt/disk", "-o", "filename=a\\,b"]) == OK
    assert [request.file_name for request in requests] == ["a,b", "a,b"]


def test_the_name_in_the_mount_table_can_be_chosen(requests: list[MountRequest]) -> None:
    assert main(["s3://bucket", "/mnt/disk", "-o", "fsname=mine"]) == OK
    assert requests[0].fuse_options == ("fsname=mine",)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["s3://bucket"],
        ["s3://bucket", "/mnt", "/more"],
        ["s3://bucket", "/mnt", "-x"],
        ["s3://bucket", "/mnt", "-o"],
        ["s3://bucket", "/mnt", "-N", "/proc/1/ns/mnt"],
        ["s3://bucket", "/mnt", "-o", "test"],
        ["s3://bucket", "/mnt", "-o", "erase"],
        ["s3://bucket", "/mnt", "-o", "prefix=a"],
        ["s3://bucket", "/mnt", "-s", "-o", "encrypt"],
        ["s3://bucket", "/mnt", "-o", "size"],
        ["s3://bucket", "/mnt", "-o", "force=1"],
        ["s4://bucket", "/mnt"],
        ["bucket", "/mnt", "-s", "-o", "sharedDiskMode"],
        ["bucket", "/mnt", "-o", "erase"],
        ["b", "/mnt"],
    ],
)
def test_wrong_calls(words: list[str], requests: list[MountRequest], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(words) == WRONG_CALL
    said = capfd.readouterr().err
    assert said.startswith("mount.s3backer: ") and "Traceback" not in said
    assert len(said.splitlines()) == 2
    assert not requests


def test_a_defect_is_no_mount_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(request: MountRequest) -> int:
        raise ValueError("a defect")

    monkeypatch.setattr(daemon, "run_mount", fail)
    assert main(["s3://bucket", "/mnt"]) == NOT_MOUNTED
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "option", ["_netdev", "nofail", "noauto", "users", "user=joe", "x-foo", "X-b.c=d", "comment=a b"]
)
def test_options_for_others_are_ignored_by_the_command_line_too(option: str, requests: list[MountRequest]) -> None:
    assert has_no_effect(option)
    assert s3backer_main(["bucket", "/mnt/disk", "-o", f"{option},noatime"]) == 0
    assert requests[0].fuse_options == ("noatime",)


@pytest.mark.parametrize("option", ["ro", "dev", "username", "x", "noatime", "comment", "allow_other"])
def test_other_options_are_not(option: str) -> None:
    assert not has_no_effect(option)
