"""``import-cache`` on a local volume: which tokens let it go on, and what is left wherever it fails."""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import s3backer
from s3backer import cache_import
from s3backer.admin import create_volume, inspect_volume
from s3backer.codec.choice import EncodingOptions
from s3backer.errors import ObjectNotFound, StoreUnreachable
from s3backer.layouts.classic import META_BLOCK_SIZE, META_SIZE, ClassicLayout
from s3backer.layouts.copy_note import CopyNote
from s3backer.layouts.token import TOKEN_NAME, MountToken, new_token, put_token, read_token, write_token
from s3backer.stores.directory import DirectoryStore
from s3backer.volume import Volume
from tests.support.cache_files import Slot, put_cache_file
from tests.support.commands import Run, tree

BLOCK = 64 << 10
TOKEN, OTHER = 0x11223344, 0x55667788
SOURCE = random.Random(5)
NEW = {0: SOURCE.randbytes(BLOCK), 3: SOURCE.randbytes(BLOCK), 9: bytes(BLOCK), 127: SOURCE.randbytes(BLOCK)}
STALE = Slot(4, b"c" * BLOCK, dirty=False, etag=b"e" * 16)


def mark(volume: Path, value: int) -> None:
    """Mark the volume as mounted with this token, as the crashed mount did."""
    store = DirectoryStore(volume)
    put_token(store, "", new_token(random.Random(1), value=value), former=read_token(store, ""))


def token_of(volume: Path) -> MountToken | None:
    return read_token(DirectoryStore(volume), "")


def content(volume: Path, **options: Any) -> bytes:
    with s3backer.open(f"file://{volume}", read_only=True, **options) as opened:
        return opened.read(0, opened.size)


def expected(before: bytes, new: dict[int, bytes] | None = None) -> bytes:
    after = bytearray(before)
    for block, data in (NEW if new is None else new).items():
        after[block * BLOCK : (block + 1) * BLOCK] = data
    return bytes(after)


@pytest.fixture
def before(volume: Path) -> bytes:
    """Fill the volume: everything that is imported changes something."""
    with s3backer.open(f"file://{volume}") as opened:
        for block in (0, 3, 4, 9, 10):
            opened.write(block * BLOCK, random.Random(block).randbytes(BLOCK))
    return content(volume)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Return a cache file that a mount with TOKEN left."""
    slots = [Slot(3, NEW[3]), STALE, None, Slot(127, NEW[127]), Slot(0, NEW[0]), Slot(9, NEW[9])]
    return put_cache_file(tmp_path / "cache", slots, block_size=BLOCK, token=TOKEN)


def test_after_a_crash_all_dirty_blocks_are_imported(run: Run, volume: Path, cache: Path, before: bytes) -> None:
    mark(volume, TOKEN)
    file = cache.read_bytes()
    answer = run("import-cache", str(cache), f"file://{volume}")
    assert (answer.code, answer.err) == (0, "")
    assert "imported 4 dirty blocks (256 KiB)" in answer.out and "delete it" in answer.out
    assert content(volume) == expected(before)
    assert token_of(volume) is None and cache.read_bytes() == file
    assert not (volume / "00000009").exists()
    assert inspect_volume(DirectoryStore(volume), "").size == 8 << 20


def test_a_second_import_is_harmless_and_clear(run: Run, volume: Path, cache: Path, before: bytes) -> None:
    mark(volume, TOKEN)
    assert run("import-cache", str(cache), f"file://{volume}").code == 0
    seen = tree(volume)
    answer = run("import-cache", str(cache), f"file://{volume}")
    assert (answer.code, answer.err) == (0, "")
    assert "all 4 dirty blocks" in answer.out and "already" in answer.out
    assert tree(volume) == seen
    with s3backer.open(f"file://{volume}") as opened:
        opened.write(3 * BLOCK, b"written since")
    seen = tree(volume)
    answer = run("import-cache", str(cache), f"file://{volume}")
    assert answer.code == 6 and "1 of its 4 dirty blocks differ" in answer.sentence()
    assert f"{TOKEN:08x}" in answer.sentence() and "--force" in answer.hint()
    assert tree(volume) == seen


@pytest.mark.parametrize("token", [OTHER, None], ids=["somebody else's", "none"])
def test_another_token_or_none_refuses_unless_forced(
    run: Run, volume: Path, cache: Path, before: bytes, token: int | None
) -> None:
    if token:
        mark(volume, token)
    seen = tree(volume)
    for more in ([], ["--dry-run"]):
        answer = run("import-cache", str(cache), f"file://{volume}", *more)
        assert answer.code == 6
        assert f"{TOKEN:08x}" in answer.sentence() and "--force" in answer.hint()
        assert (f"{OTHER:08x}" if token else "mounted by nobody") in answer.sentence()
        assert tree(volume) == seen
    answer = run("import-cache", str(cache), f"file://{volume}", "--force")
    assert answer.code == 0 and f"{TOKEN:08x}" in answer.err and "by force" in answer.err
    assert content(volume) == expected(before)
    assert token_of(volume) is None


def test_dirty_blocks_after_a_clean_unmount_need_force(run: Run, volume: Path, before: bytes, tmp_path: Path) -> None:
    cache = put_cache_file(tmp_path / "cache", [Slot(3, NEW[3])], block_size=BLOCK, token=0)
    for marked in (False, True):
        if marked:
            mark(volume, OTHER)
        answer = run("import-cache", str(cache), f"file://{volume}")
        assert answer.code == 6 and "cleanly unmounted" in answer.sentence()
    assert content(volume) == before
    assert run("import-cache", str(cache), f"file://{volume}", "--force").code == 0
    assert content(volume) == expected(before, {3: NEW[3]})
    assert token_of(volume) is None


def test_without_dirty_blocks_nothing_is_done(run: Run, volume: Path, before: bytes, tmp_path: Path) -> None:
    mark(volume, TOKEN)
    seen = tree(volume)
    cache = put_cache_file(tmp_path / "cache", [STALE], block_size=BLOCK, token=TOKEN)
    answer = run("import-cache", str(cache), f"file://{volume}")
    assert answer.code == 0 and "nothing to import" in answer.out and "unlock" in answer.out
    assert tree(volume) == seen


def test_a_dry_run_tells_and_changes_nothing(run: Run, volume: Path, cache: Path, before: bytes) -> None:
    mark(volume, TOKEN)
    seen = tree(volume)
    answer = run("import-cache", str(cache), f"file://{volume}", "--dry-run")
    assert (answer.code, answer.err) == (0, "")
    assert "4 dirty blocks (256 KiB)" in answer.out and f"{TOKEN:08x}" in answer.out and "would be" in answer.out
    assert tree(volume) == seen


def test_another_block_size_is_refused(run: Run, volume: Path, tmp_path: Path) -> None:
    cache = put_cache_file(tmp_path / "cache", [Slot(3, b"x" * 4096)], block_size=4096, token=TOKEN)
    mark(volume, TOKEN)
    seen = tree(volume)
    answer = run("import-cache", str(cache), f"file://{volume}")
    assert answer.code == 2 and "4KiB" in answer.sentence() and "64KiB" in answer.sentence()
    assert tree(volume) == seen


def test_blocks_beyond_the_end_are_named_and_come_home_after_growing(
    run: Run, volume: Path, tmp_path: Path, before: bytes
) -> None:
    slots = [Slot(block, NEW[3]) for block in (128, 3, 255)]
    cache = put_cache_file(tmp_path / "cache", slots, block_size=BLOCK, token=TOKEN)
    mark(volume, TOKEN)
    seen = tree(volume)
    for more in ([], ["--force"]):
        answer = run("import-cache", str(cache), f"file://{volume}", *more)
        assert answer.code == 2 and "(128 blocks): 128, 255" in answer.sentence()
        assert str(16 << 20) in answer.hint() and "resize" in answer.hint()
        assert tree(volume) == seen
    assert run("resize", f"file://{volume}", "16MiB", "--force").code == 0
    assert run("import-cache", str(cache), f"file://{volume}", "--force").code == 0
    assert content(volume) == expected(before + bytes(8 << 20), dict.fromkeys((3, 128, 255), NEW[3]))


def test_a_volume_without_metadata_needs_its_size_only(run: Run, volume: Path, cache: Path, before: bytes) -> None:
    mark(volume, TOKEN)
    (volume / "00000000").unlink()
    shutil.rmtree(volume / ".s3backer")
    mark(volume, TOKEN)
    assert run("import-cache", str(cache), f"file://{volume}").code == 5
    answer = run("import-cache", str(cache), f"file://{volume}", "--size", "8MiB")
    assert (answer.code, answer.err) == (0, "")
    assert content(volume) == expected(before)


def test_keys_that_begin_with_a_hash(run: Run, tmp_path: Path, cache: Path) -> None:
    volume = tmp_path / "hashed"
    volume.mkdir()
    create_volume(DirectoryStore(volume), "", size=8 << 20, block_size=BLOCK, block_hash_prefix=True)
    mark(volume, TOKEN)
    seen = tree(volume)
    answer = run("import-cache", str(cache), f"file://{volume}", "--size", "8MiB")
    assert answer.code == 2 and "begin with a hash" in answer.sentence() and "--block-hash-prefix" in answer.hint()
    assert tree(volume) == seen
    assert run("import-cache", str(cache), f"file://{volume}", "--block-hash-prefix").code == 0
    assert content(volume, block_hash_prefix=True) == expected(bytes(8 << 20))


@pytest.mark.parametrize("zero_first", [False, True])
def test_an_encrypted_volume_gets_no_plain_blocks(run: Run, volume: Path, cache: Path, zero_first: bool) -> None:
    store = DirectoryStore(volume)
    metadata = {} if zero_first else {META_SIZE: str(8 << 20), META_BLOCK_SIZE: str(BLOCK)}
    store.delete("00000000")
    store.put("00000007" if zero_first else "00000000", b"secret", content_encoding="encrypt", metadata=metadata)
    more = ["--size", "8MiB"] if zero_first else []
    mark(volume, TOKEN)
    seen = tree(volume)
    assert run("import-cache", str(cache), f"file://{volume}", *more).code == 8
    assert tree(volume) == seen


@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_into_an_encrypted_volume(run: Run, tmp_path: Path, cache: Path, compress: str) -> None:
    volume, secret = tmp_path / "encrypted", tmp_path / "secret"
    volume.mkdir()
    secret.write_text("swordfish\n")
    encoding = EncodingOptions(compress=compress, encrypt="AES-128-CBC", password="swordfish")
    create_volume(DirectoryStore(volume), "", size=8 << 20, block_size=BLOCK, encoding=encoding)
    mark(volume, TOKEN)
    words = ("import-cache", str(cache), f"file://{volume}", "--password-file", str(secret))
    answer = run(*words)
    assert (answer.code, answer.err) == (0, "") and "all were read back and compared" in answer.out
    assert content(volume, password="swordfish") == expected(bytes(8 << 20))
    again = run(*words)
    assert (again.code, again.err) == (0, "") and "already" in again.out


def test_an_unfinished_copy_is_refused_even_by_force(run: Run, volume: Path, cache: Path) -> None:
    """Even one that has block 0: a second run may be writing what has changed in its source."""
    store = DirectoryStore(volume)
    note = CopyNote("somewhere", 8 << 20, BLOCK, False, "", 0, "")
    write_token(store, "", "", new_token(random.Random(1), copy=note), former=None)
    seen = tree(volume)
    for more in ([], ["--force"]):
        answer = run("import-cache", str(cache), f"file://{volume}", *more)
        assert answer.code == 6 and "unfinished copy of somewhere" in answer.sentence()
        assert tree(volume) == seen


def test_a_volume_that_is_mounted_here_is_refused(
    run: Run, volume: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3backer.cli.common.ask", lambda *_: {"mountpoint": "/mnt/x", "pid": 12})
    answer = run("import-cache", str(cache), f"file://{volume}", "--force")
    assert answer.code == 6 and "/mnt/x" in answer.sentence() and "unmount" in answer.hint()


def test_a_mount_that_still_lives_is_refused_even_by_force(run: Run, volume: Path, cache: Path) -> None:
    mark(volume, TOKEN)
    seen = tree(volume)
    with open(cache, "r+b"):
        answer = run("import-cache", str(cache), f"file://{volume}", "--force")
    assert answer.code == 6 and str(cache) in answer.sentence() and "alive" in answer.hint()
    assert tree(volume) == seen


class Fault:
    """Makes the n-th call of a function fail, before or after it took effect."""

    def __init__(self, function: Callable[..., Any], at: int, *, after: bool) -> None:
        self.function, self.at, self.after, self.calls = function, at, after, 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls != self.at:
            return self.function(*arguments, **options)
        if self.after:
            with contextlib.suppress(ObjectNotFound):
                self.function(*arguments, **options)
        raise StoreUnreachable("the store is away", hint="Wait.")


# Two of them are for make soak: the ways meet in each of the others.
@pytest.mark.parametrize(
    ("found", "after"),
    [
        pytest.param(TOKEN, False, id="crash-before"),
        pytest.param(TOKEN, True, id="crash-after"),
        pytest.param(OTHER, False, id="taken from another-before", marks=pytest.mark.soak),
        pytest.param(OTHER, True, id="taken from another-after"),
        pytest.param(None, False, id="put where none was-before"),
        pytest.param(None, True, id="put where none was-after", marks=pytest.mark.soak),
    ],
)
def test_wherever_a_request_fails_nothing_is_lost_and_it_can_be_repeated(
    run: Run,
    volume: Path,
    cache: Path,
    before: bytes,
    monkeypatch: pytest.MonkeyPatch,
    after: bool,
    found: int | None,
    tmp_path: Path,
) -> None:
    """Every request that changes the bucket fails once, in turn."""
    file = cache.read_bytes()
    pristine = tmp_path / "pristine"
    shutil.copytree(volume, pristine)
    failed = 0
    for name in ("put", "delete", "get"):
        for at in range(1, 20):
            shutil.rmtree(volume)
            shutil.copytree(pristine, volume)
            if found:
                mark(volume, found)
            fault = Fault(getattr(DirectoryStore, name), at, after=after)
            force = [] if found == TOKEN else ["--force"]
            with monkeypatch.context() as patch:
                patch.setattr(DirectoryStore, name, lambda *a, fault=fault, **o: fault(*a, **o))
                answer = run("import-cache", str(cache), f"file://{volume}", *force)
            if fault.calls < at:
                assert answer.code == 0
                break
            failed += 1
            assert answer.code == 3
            assert cache.read_bytes() == file
            token = token_of(volume)
            removed = name == "delete" and after and content(volume) == expected(before)
            if removed and token is None:
                again: list[str] = []
            else:
                untouched = token is None if found is None else token is not None and token.value == found
                assert untouched or (token is not None and token.value == TOKEN)
                again = [] if token is not None and token.value == TOKEN else force
            if "Nothing is lost" not in answer.err:
                # Before anything was done.
                assert name == "get" and content(volume) == before
            repeated = run("import-cache", str(cache), f"file://{volume}", *again)
            assert repeated.code == 0, repeated.err
            assert content(volume) == expected(before)
            assert token_of(volume) is None
    # Token, three blocks that are put and one that is deleted, the token's removal; and reading.
    assert failed >= 4 + 2 + 4


def test_a_store_that_does_not_keep_what_it_takes_is_found_out(
    run: Run, volume: Path, cache: Path, before: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark(volume, TOKEN)
    with monkeypatch.context() as patch:
        write = ClassicLayout.write
        patch.setattr(ClassicLayout, "write", lambda self, block, body: block == 3 or write(self, block, body))
        answer = run("import-cache", str(cache), f"file://{volume}")
    assert answer.code == 8 and "block 3 was stored" in answer.sentence() and "run again" in answer.hint()
    token = token_of(volume)
    assert token is not None and token.value == TOKEN
    assert run("import-cache", str(cache), f"file://{volume}").code == 0
    assert content(volume) == expected(before)


@pytest.mark.parametrize("value", [OTHER, TOKEN], ids=["another mount", "another import"])
def test_whoever_takes_the_volume_meanwhile_keeps_it(
    run: Run, volume: Path, cache: Path, before: bytes, monkeypatch: pytest.MonkeyPatch, value: int
) -> None:
    mark(volume, TOKEN)
    with monkeypatch.context() as patch:
        written = cache_import.CacheImport._write

        def write(self: cache_import.CacheImport, block: int) -> None:
            written(self, block)
            if block == 127:
                mark(volume, value)

        patch.setattr(cache_import.CacheImport, "_write", write)
        answer = run("import-cache", str(cache), f"file://{volume}")
    assert answer.code == 6 and "taken by somebody else" in answer.sentence()
    token = token_of(volume)
    assert token is not None and token.value == value


def test_a_token_that_changes_just_before_is_not_overwritten(
    run: Run, volume: Path, cache: Path, before: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark(volume, TOKEN)
    refusal = cache_import.CacheImport.refusal

    def late(self: cache_import.CacheImport) -> Any:
        mark(volume, OTHER)
        return refusal(self)

    monkeypatch.setattr(cache_import.CacheImport, "refusal", late)
    answer = run("import-cache", str(cache), f"file://{volume}")
    assert answer.code == 6 and f"{OTHER:08x}" in answer.sentence()
    assert content(volume) == before


def test_a_file_that_changes_meanwhile_is_not_called_imported(
    run: Run, volume: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark(volume, TOKEN)
    written = cache_import.CacheImport._write

    def write(self: cache_import.CacheImport, block: int) -> None:
        written(self, block)
        with open(cache, "ab") as file:
            file.write(b"more")

    monkeypatch.setattr(cache_import.CacheImport, "_write", write)
    answer = run("import-cache", str(cache), f"file://{volume}")
    assert answer.code == 6 and "was changed" in answer.sentence()
    assert token_of(volume) is not None


def test_an_interrupted_import_keeps_the_token(
    run: Run, volume: Path, cache: Path, before: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark(volume, TOKEN)
    with monkeypatch.context() as patch:

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(cache_import.CacheImport, "_write", interrupt)
        assert run("import-cache", str(cache), f"file://{volume}").code == 130
    assert re.search(rf"{TOKEN:08x}", (volume / TOKEN_NAME).read_text())
    assert run("import-cache", str(cache), f"file://{volume}").code == 0
    assert content(volume) == expected(before)


@pytest.mark.parametrize("damage", [b"", b"no cache file", None])
def test_a_damaged_or_missing_file_is_one_sentence(
    run: Run, volume: Path, tmp_path: Path, damage: bytes | None
) -> None:
    path = tmp_path / "broken"
    if damage is not None:
        path.write_bytes(damage)
    answer = run("import-cache", str(path), f"file://{volume}")
    assert answer.code == (2 if damage is None else 8)
    assert str(path) in answer.sentence()


def test_the_volume_can_be_mounted_at_once_afterwards(run: Run, volume: Path, cache: Path) -> None:
    mark(volume, TOKEN)
    assert run("import-cache", str(cache), f"file://{volume}").code == 0
    assert json.loads(run("info", f"file://{volume}", "--json").out)["mounted"] is False
    Volume.open(DirectoryStore(volume), "").close()
