"""The Python library as the README shows it."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import s3backer
from s3backer.admin import create_volume
from s3backer.codec.choice import EncodingOptions
from s3backer.errors import UsageError, VolumeInUse, VolumeNotFound
from s3backer.layouts.token import MountToken, in_use
from s3backer.opening import VolumeOptions
from s3backer.stores.directory import DirectoryStore
from s3backer.stores.options import StoreOptions

ROOT = Path(__file__).resolve().parent.parent


def make(directory: Path) -> str:
    directory.mkdir()
    create_volume(DirectoryStore(directory), "", size=1 << 20, block_size=4096)
    return f"file://{directory}"


def test_the_readme_example_runs(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    match = re.search(r"<!-- example -->\n```python\n(.*?)```", text, re.DOTALL)
    assert match
    url = make(tmp_path / "disk")
    code = match[1].replace("file:///tmp/disk", url)
    assert url in code
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=60)
    with s3backer.open(url) as volume:
        assert volume.read(4096, 5) == b"hello"


def in_use_now(url: str, token: MountToken) -> None:
    raise in_use(url, token)


def test_it_is_one_disk_of_bytes_for_one_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Another process would look for up to 20 s.
    monkeypatch.setattr("s3backer.holder.watch_token", lambda store, prefix, url, token, looks: in_use_now(url, token))
    url = make(tmp_path / "disk")
    with s3backer.open(url, memory=8 << 20, threads=2) as volume:
        assert (volume.size, volume.block_size) == (1 << 20, 4096)
        assert volume.write(5000, b"abc") == 3
        volume.flush()
        volume.discard(4096, 4096)
        assert volume.read(5000, 3) == bytes(3)
        with pytest.raises(VolumeInUse):
            s3backer.open(url)
        with s3backer.open(url, read_only=True) as reader:
            assert reader.read(0, 10) == bytes(10)
        volume.resize(2 << 20)
        assert volume.size == 2 << 20
    with s3backer.open(url) as volume:
        assert volume.size == 2 << 20


def test_errors_are_ours_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        s3backer.open("nonsense")
    (tmp_path / "empty").mkdir()
    with pytest.raises(VolumeNotFound):
        s3backer.open(f"file://{tmp_path / 'empty'}")
    assert not list((tmp_path / "empty").iterdir())


def test_parameters_have_the_defaults_of_the_options() -> None:
    """The signature repeats the dataclasses for the sake of help(); it must not drift from them."""
    defaults = {
        field.name: field.default for kind in (VolumeOptions, StoreOptions, EncodingOptions) for field in fields(kind)
    }
    for name, parameter in inspect.signature(s3backer.open).parameters.items():
        if name != "url":
            assert parameter.default == defaults[name], name


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, s3backer; print([m for m in ('botocore', 'llfuse', 'urllib3', 'click') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"
