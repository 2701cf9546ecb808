"""How the options of ``mount`` reach the daemon, and that both forms read one table."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from s3backer.cli import mount as mount_module
from s3backer.codec.choice import EncodingOptions
from s3backer.config import MOUNT, STORE
from s3backer.mount_request import MountRequest
from s3backer.opening import VolumeOptions
from s3backer.original_options import ORIGINAL
from s3backer.stores.options import StoreOptions
from s3backer.telemetry.prices import TABLES
from tests.support.commands import Run

FIELDS = {field.name for kind in (MountRequest, StoreOptions, VolumeOptions, EncodingOptions) for field in fields(kind)}


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[MountRequest]:
    """Return the list of mounts that were asked for; none is made."""
    asked: list[MountRequest] = []

    def note(request: MountRequest) -> int:
        asked.append(request)
        return 0

    monkeypatch.setattr(mount_module, "run_mount", note)
    return asked


def test_what_was_not_given_has_the_default_of_its_field(run: Run, requests: list[MountRequest]) -> None:
    assert run("mount", "s3://bucket/disk", "/mnt/disk").code == 0
    (request,) = requests
    assert request == MountRequest(request.url, "/mnt/disk", StoreOptions(), VolumeOptions(), default_journal=True)


def test_every_option(run: Run, requests: list[MountRequest], tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    words = (
        "mount s3://bucket/disk /mnt/disk -f --memory 64MiB --threads 8 --write-delay 0.5 --read-only --force "
        "--size 1GiB --block-size 4k --block-hash-prefix --file-name disk --file-mode 640 --stats-name= "
        "-o ro,max_read=65536 -o allow_root --quiet --debug --endpoint-url https://host --region r --profile p "
        "--no-sign-request --ca-bundle /ca --no-verify-tls --virtual-host --timeout 7 "
        f"--compress ZSTD --compress-level -5 --encrypt aes256 --password-file {tmp_path}/password --key-length 40 "
        "--default-content-encoding deflate --upload-limit 1MiB --download-limit 2MiB --retry-time 99 --prices 2010 "
        "--budget 5/month --fsync lazy --direct-io --no-fast-lane --disk-cache 20GiB --disk-cache-directory /ssd "
        "--journal 1GiB --journal-directory /journals"
    )
    answer = run(*words.split())
    assert (answer.code, answer.err) == (0, "")
    assert requests == [
        MountRequest(
            url=requests[0].url,
            mountpoint="/mnt/disk",
            store_options=StoreOptions(
                endpoint_url="https://host",
                region="r",
                profile="p",
                anonymous=True,
                virtual_host=True,
                ca_bundle="/ca",
                verify_tls=False,
                timeout=7,
                connections=8,
                upload_limit=8 << 20,
                download_limit=16 << 20,
                patience=99,
            ),
            volume_options=VolumeOptions(
                memory=64 << 20,
                threads=8,
                write_delay=0.5,
                read_only=True,
                force=True,
                size=1 << 30,
                block_size=4096,
                block_hash_prefix=True,
                prices=TABLES["2010"],
                monthly_budget=5,
                disk_cache=20 << 30,
                disk_cache_directory="/ssd",
                journal=1 << 30,
                journal_directory="/journals",
                encoding=EncodingOptions(
                    compress="zstd",
                    compress_level=-5,
                    encrypt="AES-256-CBC",
                    password="secret",
                    key_length=40,
                    default_content_encoding="deflate",
                ),
            ),
            foreground=True,
            file_name="disk",
            file_mode=0o640,
            stats_name=None,
            direct_io=True,
            lazy_fsync=True,
            fast_lane=False,
            fuse_options=("ro", "max_read=65536", "allow_root"),
            quiet=True,
            debug=True,
        )
    ]
    requests.clear()
    assert run("mount", "s3://bucket/disk", "/mnt/disk", "--journal-size", "1GiB").code == 0
    assert requests[0].volume_options.journal == 1 << 30
    given = {word.partition("=")[0] for word in words.split() if word.startswith("--")}
    assert given >= {option.flag for option in (*MOUNT, *STORE)} - {"--foreground", "--path-style"}


@pytest.mark.parametrize(("flag", "value"), [("--virtual-host", True), ("--path-style", False)])
def test_the_two_styles_of_addresses(run: Run, requests: list[MountRequest], flag: str, value: bool) -> None:
    assert run("mount", "s3://bucket", "/mnt", flag).code == 0
    assert requests[0].store_options.virtual_host is value


def test_the_originals_names_are_accepted_too(run: Run, requests: list[MountRequest]) -> None:
    words = (
        "--blockCacheThreads 3 --readOnly --blockSize 4k --blockHashPrefix "
        "--filename d --fileMode 400 --statsFilename s"
    )
    assert run("mount", "s3://bucket", "/mnt", *words.split()).code == 0
    volume = requests[0].volume_options
    assert (volume.threads, volume.read_only, volume.block_size, volume.block_hash_prefix) == (3, True, 4096, True)
    assert (requests[0].file_name, requests[0].file_mode, requests[0].stats_name) == ("d", 0o400, "s")


def test_every_option_of_the_table_sets_something() -> None:
    """A name that no dataclass has would be dropped without a word."""
    for option in (*MOUNT, *STORE):
        assert option.name in FIELDS | {"debug"}, option.flag
    own = {
        "secret_variable",
        "access_file",
        "ssl",
        "prefix",
        "test",
        "erase",
        "reset",
        "config_file",
        "password_file",
        "",
        "cache_file",
    }
    for original in ORIGINAL.values():
        assert original.name in FIELDS | own, original.flag
    for option in MOUNT:
        if option.alias.startswith("--") and option.name != "journal":
            assert ORIGINAL[option.alias[2:]].name == option.name
