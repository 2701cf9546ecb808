"""Where a mount keeps files of its own: not on the volume itself, which would wait for itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3backer.errors import MountError, UsageError
from s3backer.mount_request import MountRequest, absolute, check_places
from s3backer.mountpoint import check_mountpoint
from s3backer.opening import VolumeOptions
from s3backer.stores.options import StoreOptions
from s3backer.url import VolumeURL
from tests.support.mounts import needs_mounts, umount
from tests.support.tools import run
from tests.support.workbench import Workbench, without_lane

#: Each place, how it is asked for, by what messages call it, and what they say to try.
PLACES = {
    "state": (lambda place: {"state": place}, "the directory of local state:", "XDG_STATE_HOME"),
    "journal": (
        lambda place: {"volume": {"journal": 4 << 20, "journal_directory": str(place)}},
        "--journal-directory:",
        "--journal-directory",
    ),
    "notes": (
        lambda place: {"volume": {"journal_directory": str(place)}},
        "--journal-directory:",
        "--journal-directory",
    ),
    "default": (
        lambda place: {"volume": {"journal_directory": str(place)}, "request": {"default_journal": True}},
        "--journal-directory:",
        "--journal-directory",
    ),
    "cache": (
        lambda place: {"volume": {"disk_cache": 1 << 20, "disk_cache_directory": str(place)}},
        "--disk-cache:",
        "--disk-cache-directory",
    ),
    "mirror": (lambda place: {"request": {"stats_mirror": str(place / "stats")}}, "--statsFileMirror:", "another file"),
}


@needs_mounts
@without_lane
@pytest.mark.parametrize("below", [".", "below/it", "link"])
@pytest.mark.parametrize("where", ["the volume's own mount point", "the volume's own directory"])
@pytest.mark.parametrize("kind", PLACES)
def test_a_place_on_the_volume_itself_is_refused(volume: Workbench, kind: str, where: str, below: str) -> None:
    asked, name, hint = PLACES[kind]
    root = volume.mountpoint if "mount" in where else volume.bucket
    place = root / below
    if below == "link":
        place = volume.directory / "link"
        place.symlink_to(root)
    what = asked(place)
    if "state" in what:
        (volume.directory / "state").symlink_to(what.pop("state"))
    before = volume.tree()
    code, said = volume.run(**what)
    assert code == 2, said
    assert said.startswith(f"{name} {root}") and where in said
    assert hint in said.splitlines()[1]
    assert volume.tree() == before
    assert not list(volume.mountpoint.iterdir())
    volume.wait_for_nothing()


@needs_mounts
@pytest.mark.parametrize("bound", ["bucket", "bucket/below"])
def test_a_bind_mount_of_the_volumes_own_directory(tmp_path: Path, bound: str) -> None:
    """Under another name it is the same."""
    (tmp_path / "bucket" / "below").mkdir(parents=True)
    other = tmp_path / "other"
    (other / "mnt").mkdir(parents=True)
    bucket = str(tmp_path / "bucket")
    run("mount", "--bind", str(tmp_path / bound), str(other))
    try:
        (other / "mnt").mkdir()
        asked = MountRequest(
            VolumeURL.parse(f"file://{bucket}"),
            "/mnt",
            StoreOptions(),
            VolumeOptions(journal_directory=str(other / "journals")),
        )
        with pytest.raises(UsageError, match=f"--journal-directory: {other}/journals lies in the volume's own"):
            check_places(absolute(asked))
        with pytest.raises(MountError, match="lie in each other"):
            check_mountpoint(str(other / "mnt"), volume_directory=bucket)
    finally:
        umount(other)
    check_places(absolute(asked))
    check_mountpoint(str(other / "mnt"), volume_directory=bucket)


def request(mountpoint: str, url: str = "s3://bucket/disk") -> MountRequest:
    return absolute(MountRequest(VolumeURL.parse(url), mountpoint, StoreOptions(), VolumeOptions()))


@pytest.mark.parametrize(
    ("user", "runtime", "mountpoint", "hint"),
    [
        (0, "/elsewhere", "/run/s3backer", "for root"),
        (0, "/elsewhere", "/run", "for root"),
        (4711, "/run/user/4711", "/run/user/4711", "XDG_RUNTIME_DIR"),
        (4711, "", "/tmp", "XDG_RUNTIME_DIR"),
    ],
)
def test_the_control_socket_is_no_file_of_the_volume(
    monkeypatch: pytest.MonkeyPatch, user: int, runtime: str, mountpoint: str, hint: str
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    monkeypatch.setattr("os.geteuid", lambda: user)
    for refused in (request(mountpoint), request("/mnt", f"file://{mountpoint}")):
        with pytest.raises(UsageError, match="the directory of control sockets: ") as caught:
            check_places(refused)
        assert hint in caught.value.hint
    check_places(request("/mnt", "file:///bucket"))


@pytest.mark.parametrize("variable", ["XDG_STATE_HOME", "HOME"])
def test_the_directory_of_local_state(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """Also where nothing of it is said, and for a mount that has neither journal nor notes: there is its log."""
    monkeypatch.setattr("os.geteuid", lambda: 4711)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv(variable, "/here")
    with pytest.raises(UsageError, match="the directory of local state: /here") as caught:
        check_places(request("/here"))
    assert "XDG_STATE_HOME" in caught.value.hint


def test_the_volume_may_lie_where_the_state_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    check_places(request(f"{tmp_path}/s3backer/mnt", f"file://{tmp_path}/s3backer/bucket"))
