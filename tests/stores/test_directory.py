"""The directory store: what is on the disk, in which order it gets there, and what others may do to it."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

import s3backer
from s3backer.admin import create_volume
from s3backer.copying import copy_volume
from s3backer.errors import (
    AccessDenied,
    BucketNotFound,
    CorruptObject,
    ObjectNotFound,
    PreconditionFailed,
    StoreError,
    StoreFull,
    UsageError,
)
from s3backer.stores.directory import DirectoryStore
from s3backer.stores.memory import MemoryStore

BLOCK = "application/x-s3backer-block"
#: Everything by which a put or delete changes the disk, or makes a change last.
STEPS = ("mkdir", "writev", "fsync", "link", "rename", "unlink")


class PowerCut(BaseException):
    """The process ends here: nothing may catch it and tidy up."""


@pytest.fixture
def bucket(tmp_path):
    path = tmp_path / "bucket"
    path.mkdir()
    return path


@pytest.fixture
def store(bucket):
    return DirectoryStore(bucket)


def peak_of(call) -> int:
    """Return the most bytes that were allocated at once during a call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def files_of(path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file() and p.parts[-2] != "locks")


def record(monkeypatch, steps: list[str], cut: int | None = None) -> None:
    """Write down each step as text; before step number ``cut`` the power goes off."""

    def name_of(descriptor: int) -> str:
        kind = "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        return f"{kind} {os.path.basename(os.path.dirname(os.readlink(f'/proc/self/fd/{descriptor}')))}/" + (
            os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")) if kind == "directory" else "…"
        )

    def wrap(name: str):
        real = getattr(os, name)

        def step(*arguments, **options):
            if cut is not None and len(steps) >= cut:
                raise PowerCut
            if name in ("writev", "fsync"):
                steps.append(f"{name} {name_of(arguments[0])}")
            elif name in ("link", "rename"):
                steps.append(f"{name} to {arguments[1]}")
            else:
                steps.append(f"{name} {'temporary' if len(arguments[0]) == 16 else arguments[0]}")
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, step)

    for name in STEPS:
        wrap(name)


# ── layout ───────────────────────────────────────────────────────────────────────────────────────────────


def test_blocks_are_the_plain_files_of_the_original(bucket, store):
    store.put("00000007", b"\1" * 4096, content_type=BLOCK)
    store.put("pre/fix/0000000a", b"\2" * 4096, content_type=BLOCK)
    assert (bucket / "00000007").read_bytes() == b"\1" * 4096
    assert (bucket / "pre" / "fix" / "0000000a").read_bytes() == b"\2" * 4096
    assert sorted(p.name for p in bucket.iterdir()) == [".s3backer", "00000007", "pre"]
    assert files_of(bucket) == ["00000007", "pre/fix/0000000a"]
    assert stat.S_IMODE((bucket / "00000007").stat().st_mode) == 0o600
    assert stat.S_IMODE((bucket / ".s3backer").stat().st_mode) == 0o700


def test_files_of_the_original_are_objects(bucket, store):
    (bucket / "0000000b").write_bytes(b"theirs")
    found = store.get("0000000b")
    assert found.body == b"theirs"
    assert found.info.content_type == BLOCK
    assert found.info.etag == f'"{hashlib.md5(b"theirs").hexdigest()}"'
    assert not found.info.metadata
    assert [(entry.key, entry.size) for entry in store.list("").entries] == [("0000000b", 6)]


def test_only_an_object_with_more_than_a_body_has_a_sidecar(bucket, store):
    store.put("pre/00000000", b"0", content_type=BLOCK, metadata={"a": "1"})
    assert files_of(bucket) == [".s3backer/objects/pre%2F00000000.sidecar", "pre/00000000"]
    store.put("pre/00000000", b"1", content_type=BLOCK)
    assert files_of(bucket) == ["pre/00000000"]
    store.put("pre/00000000", b"2", content_type=BLOCK, metadata={"a": "2"})
    store.delete("pre/00000000")
    assert files_of(bucket) == []


def test_nothing_is_made_by_reading(bucket, store):
    for call in (store.get, store.head):
        with pytest.raises(ObjectNotFound):
            call("a/b")
    store.list("")
    store.delete("a/b")
    assert list(bucket.iterdir()) == []


def test_long_keys_with_metadata(bucket, store):
    keys = ["/".join(["d" * 200] * 4) + f"/{n}" for n in range(2)]
    for key in keys:
        store.put(key, b"x", metadata={"k": key[-1]})
    assert [store.head(key).metadata for key in keys] == [{"k": "0"}, {"k": "1"}]


@pytest.mark.parametrize("key", ["../x", "a/../b", "./a", "a//b", "/a", "a/", ".s3backer/x", "a/.s3backer/b"])
def test_keys_that_would_lead_elsewhere(store, key):
    for call in (store.get, store.head, store.delete, lambda key: store.put(key, b"")):
        with pytest.raises(UsageError, match="cannot be an object"):
            call(key)


def test_a_key_below_another_key(store):
    store.put("a", b"")
    with pytest.raises(StoreError) as caught:
        store.put("a/b", b"")
    assert "same name" in caught.value.hint
    store.put("d/e", b"")
    with pytest.raises(StoreError):
        store.put("d", b"")
    for call in (store.get, store.head):
        with pytest.raises(ObjectNotFound):
            call("a/b")
        with pytest.raises(ObjectNotFound):
            call("d")
    store.delete("a/b")
    store.delete("d")
    assert [entry.key for entry in store.list("").entries] == ["a", "d/e"]


# ── durability ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_put_is_synced_before_and_after_its_rename(store, monkeypatch):
    store.put("warm", b"", content_type=BLOCK)
    steps: list[str] = []
    with monkeypatch.context() as patch:
        record(patch, steps)
        store.put("key", b"x" * 9, content_type=BLOCK)
    changes = [step for step in steps if not step.startswith("mkdir")]
    assert changes[:3] == ["writev file tmp/…", "fsync file tmp/…", "rename to key"]
    assert [change.rpartition("/")[2] for change in changes[3:]] == ["bucket"]


def test_a_new_object_is_synced_before_and_after_its_link(store, monkeypatch):
    store.put("warm", b"")
    steps: list[str] = []
    with monkeypatch.context() as patch:
        record(patch, steps)
        store.put("key", b"x" * 9, content_type=BLOCK, if_none_match=True)
    changes = [step.split(" ")[0] for step in steps if not step.startswith("mkdir")]
    assert changes == ["writev", "fsync", "link", "unlink", "fsync"]


def test_new_directories_are_synced_into_their_parents(store, monkeypatch):
    store.put("warm", b"")
    steps: list[str] = []
    with monkeypatch.context() as patch:
        record(patch, steps)
        store.put("a/b/key", b"", content_type=BLOCK)
    made = [i for i, step in enumerate(steps) if step in ("mkdir a", "mkdir b")]
    assert [steps[i + 1].split("/")[-1] for i in made] == ["bucket", "a"]
    assert steps[-1] == "fsync directory a/b"


def test_metadata_is_on_the_disk_before_the_body(store, monkeypatch):
    store.put("warm", b"", metadata={"a": "1"})
    steps: list[str] = []
    with monkeypatch.context() as patch:
        record(patch, steps)
        store.put("key", b"x", metadata={"a": "1"})
    names = [step for step in steps if not step.startswith("mkdir")]
    assert [name.split(" ")[-1].split("/")[-1] for name in names] == [
        *("…", "…", "key.sidecar", "objects"),
        *("…", "…", "key", "bucket"),
    ]


def test_a_delete_is_synced(store, monkeypatch):
    store.put("key", b"x", content_type=BLOCK)
    steps: list[str] = []
    with monkeypatch.context() as patch:
        record(patch, steps)
        store.delete("key")
    assert [step.split("/")[-1] for step in steps if not step.startswith("mkdir")][-2:] == ["unlink key", "bucket"]


OLD = {"content_type": BLOCK, "metadata": {"v": "old"}, "content_encoding": "deflate"}
CHANGES = {
    "plain over nothing": (None, lambda s: s.put("d/key", b"new", content_type=BLOCK)),
    "plain over plain": ((b"old", {"content_type": BLOCK}), lambda s: s.put("d/key", b"new", content_type=BLOCK)),
    "facts over plain": ((b"old", {"content_type": BLOCK}), lambda s: s.put("d/key", b"new", metadata={"v": "new"})),
    "plain over facts": ((b"old", OLD), lambda s: s.put("d/key", b"new", content_type=BLOCK)),
    "facts over facts": ((b"old", OLD), lambda s: s.put("d/key", b"new", metadata={"v": "new"})),
    "facts over the same body": ((b"old", OLD), lambda s: s.put("d/key", b"old", metadata={"v": "new"})),
    "new only": (None, lambda s: s.put("d/key", b"new", metadata={"v": "new"}, if_none_match=True)),
    "delete": ((b"old", OLD), lambda s: s.delete("d/key")),
}


def state(bucket):
    """Return what a new process finds."""
    store = DirectoryStore(bucket)
    try:
        found = store.get("d/key")
    except ObjectNotFound:
        return None
    return found.body, found.info


@pytest.mark.parametrize("change", CHANGES)
def test_a_crash_between_any_two_steps_leaves_the_old_or_the_new_object(change, tmp_path, monkeypatch):
    before, act = CHANGES[change]
    seen, cut, finished = [], 0, False
    while not finished:
        bucket = tmp_path / str(cut)
        bucket.mkdir()
        store = DirectoryStore(bucket)
        if before is not None:
            store.put("d/key", before[0], **before[1])
        old = state(bucket)
        with monkeypatch.context() as patch:
            record(patch, [], cut)
            try:
                act(DirectoryStore(bucket))
                finished = True
            except PowerCut:
                pass
        seen.append(state(bucket))
        assert all(not entry.key.startswith(".") for entry in DirectoryStore(bucket).list("").entries)
        # Whatever was left behind, the next put works and the next but one sweeps nothing that is alive.
        DirectoryStore(bucket).put("d/key", b"after", metadata={"v": "after"})
        assert DirectoryStore(bucket).get("d/key").info.metadata == {"v": "after"}
        assert os.listdir(bucket / ".s3backer" / "tmp") == []
        cut += 1
    assert cut > 5 or change == "delete"
    new = seen[-1]
    assert new != old
    assert all(found in (old, new) for found in seen)
    # Once there it stays.
    assert seen == [old] * seen.count(old) + [new] * seen.count(new)


@pytest.mark.parametrize(
    ("number", "kind", "hint"),
    [
        (errno.ENOSPC, StoreFull, "Free some space on that filesystem. What a mount has not stored yet waits"),
        (errno.EIO, StoreError, "kernel's log"),
        (errno.EROFS, AccessDenied, "writable"),
        (errno.EACCES, AccessDenied, "right to read and write"),
        (errno.EMFILE, StoreError, "ulimit"),
    ],
)
def test_errors_of_the_system_are_explained_and_leave_nothing(bucket, store, monkeypatch, number, kind, hint):
    store.put("key", b"old", content_type=BLOCK)

    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(kind) as caught:
            store.put("key", b"new", content_type=BLOCK)
    assert type(caught.value) is kind
    assert caught.value.message == f"{bucket}/key: {os.strerror(number)}"
    assert hint in caught.value.hint
    assert store.get("key").body == b"old"
    assert files_of(bucket) == ["key"]
    assert store.counters.snapshot()["put"].failures == 1


@pytest.mark.parametrize("change", ["put", "put if absent", "delete"])
def test_the_fence_is_asked_again_right_before_the_change(bucket, store, change):
    """Between the first look and that moment a process may have been stopped for as long as a lease."""
    if change != "put if absent":
        store.put("key", b"theirs", content_type=BLOCK)
    before, asked = files_of(bucket), []

    def ask(wait):
        asked.append(wait)
        if not wait:
            raise StoreError("the lease has ended", hint="Wait.")
        return 1.0

    store.fence.put_up("token", ask)
    with pytest.raises(StoreError, match="the lease has ended"):
        if change == "delete":
            store.delete("key")
        else:
            store.put("key", b"ours", content_type=BLOCK, if_none_match=change != "put")
    assert asked == [True, False]
    assert files_of(bucket) == before
    assert not before or store.get("key").body == b"theirs"
    assert not list((bucket / ".s3backer" / "tmp").iterdir())
    store.put("token", b"outside")
    store.delete("token")


def test_without_hard_links_the_lock_has_to_do(store, monkeypatch):
    def link(*arguments, **options):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", link)
    with ThreadPoolExecutor(4) as pool:
        races = [pool.submit(store.put, "key", b"%d" % n, if_none_match=True) for n in range(4)]
        errors = [race.exception() for race in races]
    assert errors.count(None) == 1
    assert sum(isinstance(error, PreconditionFailed) for error in errors) == 3


def test_every_descriptor_is_closed(store):
    before = len(os.listdir("/proc/self/fd"))
    store.put("a/b", b"", metadata={"a": "1"})
    store.get("a/b")
    store.list("", limit=1)
    with pytest.raises(ObjectNotFound):
        store.get("a/c")
    store.delete("a/b")
    assert len(os.listdir("/proc/self/fd")) == before


# ── others ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_rewritten_by_a_program_without_sidecars(bucket, store):
    store.put("key", b"compressed", content_type=BLOCK, content_encoding="deflate", metadata={"a": "1"})
    (bucket / "key").write_bytes(b"theirs")
    info = store.head("key")
    assert (info.size, info.content_encoding, info.metadata) == (6, "", {"a": "1"})
    assert info.etag == f'"{hashlib.md5(b"theirs").hexdigest()}"'
    store.put("key", b"ours", if_match=info.etag, metadata={"a": "2"})
    assert store.head("key").metadata == {"a": "2"}


def test_a_file_removed_by_a_program_without_sidecars(bucket, store):
    store.put("key", b"x", metadata={"a": "1"})
    (bucket / "key").unlink()
    with pytest.raises(ObjectNotFound):
        store.get("key")
    assert store.list("").entries == ()
    store.put("key", b"y", content_type=BLOCK, if_none_match=True)
    assert not store.head("key").metadata


def test_a_file_created_by_another_program_during_a_put(bucket, store, monkeypatch):
    link = os.link

    def late(*arguments, **options):
        (bucket / "key").write_bytes(b"theirs")
        return link(*arguments, **options)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(PreconditionFailed):
        store.put("key", b"ours", content_type=BLOCK, if_none_match=True)
    assert (bucket / "key").read_bytes() == b"theirs"
    assert files_of(bucket) == ["key"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", CorruptObject),
        (b"s3backer-sidecar 1 0 0\n{", CorruptObject),
        (b's3backer-sidecar 1 0 0\n{"key": "other", "entries": []}\n', CorruptObject),
        (b's3backer-sidecar 1 0 0\n{"key": "key", "entries": []}\n', CorruptObject),
        (b's3backer-sidecar 1 0 0\n{"key": "key", "entries": [{"etag": 1}]}\n', CorruptObject),
        (b"s3backer-sidecar 1 0 0\n[]\n", CorruptObject),
        (b"s3backer-sidecar 2 0 0\n", StoreError),
        (b"s3backer-sidecar 1 4 0\n", StoreError),
        (b"x" * ((1 << 20) + 1), StoreError),
    ],
)
def test_a_damaged_sidecar_is_an_error_and_never_a_guess(bucket, store, content, kind):
    store.put("key", b"x", metadata={"a": "1"})
    path = bucket / ".s3backer" / "objects" / "key.sidecar"
    path.write_bytes(content)
    for call in (store.get, store.head, lambda key: store.put(key, b"y")):
        with pytest.raises(kind) as caught:
            call("key")
        assert type(caught.value) is kind
        assert caught.value.hint
    path.unlink()
    assert store.get("key").body == b"x"


def test_leftovers_are_swept_but_not_what_is_being_written(bucket):
    store = DirectoryStore(bucket)
    store.put("warm", b"")
    temporaries = bucket / ".s3backer" / "tmp"
    (temporaries / "dead").write_bytes(b"x")
    with open(temporaries / "alive", "wb") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        DirectoryStore(bucket).put("key", b"")
        assert os.listdir(temporaries) == ["alive"]
    DirectoryStore(bucket).put("key", b"")
    assert os.listdir(temporaries) == []


def test_symbolic_links_are_not_followed(tmp_path, bucket, store):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_bytes(b"secret")
    (bucket / "link").symlink_to(secret / "file")
    (bucket / "directory").symlink_to(secret)
    for key in ("link", "directory/file"):
        for call in (store.get, store.head):
            with pytest.raises(StoreError) as caught:
                call(key)
            assert "not followed" in caught.value.hint
    with pytest.raises(StoreError):
        store.put("directory/new", b"x")
    with pytest.raises(StoreError):
        store.delete("directory/file")
    # Listed: what cannot be read must not be taken for absent. What is behind a link is nobody's.
    assert [entry.key for entry in store.list("").entries] == ["directory", "link"]
    store.put("link", b"ours", content_type=BLOCK)
    assert (secret / "file").read_bytes() == b"secret"
    assert store.get("link").body == b"ours"
    assert os.listdir(secret) == ["file"]


def test_a_private_directory_that_is_a_link(tmp_path, bucket, store):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (bucket / ".s3backer").symlink_to(elsewhere)
    with pytest.raises(StoreError):
        store.put("key", b"x")
    assert os.listdir(elsewhere) == []


@pytest.mark.timeout(20)
def test_a_pipe_is_no_object_and_nobody_waits_for_it(bucket, store):
    os.mkfifo(bucket / "pipe")
    with pytest.raises(StoreError):
        store.get("pipe")
    assert [entry.key for entry in store.list("").entries] == ["pipe"]


def test_names_that_are_no_text_are_no_objects(bucket, store):
    (bucket / "ok").write_bytes(b"")
    with open(os.path.join(os.fsencode(bucket), b"bad\xff"), "wb"):
        pass
    assert [entry.key for entry in store.list("").entries] == ["ok"]


CALLS = {
    "get": lambda store: store.get("key"),
    "head": lambda store: store.head("key"),
    "put": lambda store: store.put("key", b"x"),
    "delete": lambda store: store.delete("key"),
    "list": lambda store: store.list(""),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_directory_that_is_removed_or_replaced_is_a_missing_bucket(bucket, store, call):
    store.put("key", b"x")
    bucket.rename(bucket.with_name("moved"))
    with pytest.raises(BucketNotFound):
        call(store)
    bucket.mkdir()
    with pytest.raises(BucketNotFound, match="not the directory any more"):
        call(store)
    assert list(bucket.iterdir()) == []


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_directory_removed_during_a_call_is_a_missing_bucket(bucket, store, call, monkeypatch):
    store.list("")
    real = store._open_root

    def removed_after(stack):
        root = real(stack)
        bucket.rmdir()
        return root

    monkeypatch.setattr(store, "_open_root", removed_after)
    with pytest.raises(BucketNotFound):
        call(store)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_file_is_no_bucket(tmp_path, call):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BucketNotFound, match="no directory"):
        call(DirectoryStore(tmp_path / "file"))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", [lambda path: path.symlink_to(path.with_name("elsewhere")), os.mkfifo])
def test_a_block_that_is_no_file_is_never_zeros(bucket, store, make):
    create_volume(store, "", size=1 << 20, block_size=4096)
    with s3backer.open(f"file://{bucket}", memory=1 << 20) as volume:
        volume.write(3 * 4096, b"data")
    (bucket / "00000003").rename(bucket / "elsewhere")
    make(bucket / "00000003")
    with s3backer.open(f"file://{bucket}", memory=1 << 20) as volume:
        while not volume.facts()["surveyed"]:
            time.sleep(0.01)
        with pytest.raises(StoreError, match="00000003"):
            volume.read(3 * 4096, 4)
        assert volume.read(4 * 4096, 4) == bytes(4)
    target = MemoryStore()
    with pytest.raises(StoreError, match="00000003"):
        copy_volume(DirectoryStore(bucket), "", target, "")
    assert "00000000" not in [entry.key for entry in target.list("").entries]


def test_facts_of_a_large_object_take_little_memory(bucket, store):
    """What is no block may be larger than the memory: neither its facts nor replacing it read it whole."""
    size = 64 << 20
    store.put("00000000", b"x", metadata={"a": "b"})
    os.truncate(bucket / "00000000", size)
    assert peak_of(lambda: store.head("00000000")) < size / 8
    info = store.head("00000000")
    body = (bucket / "00000000").read_bytes()
    assert (info.size, info.etag) == (size, f'"{hashlib.md5(body).hexdigest()}"')
    assert peak_of(lambda: store.list("").entries[0].etag) < size / 8
    assert peak_of(lambda: store.put("00000000", b"y", metadata={"a": "c"}, if_match=info.etag)) < size / 8
    assert store.get("00000000").body == b"y"


def test_a_file_that_shrinks_while_a_range_of_it_is_read(store, monkeypatch):
    store.put("key", b"0123456789")
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda file, count, at: real(file, min(count, 2), at) if at < 6 else b"")
    assert store.get_range("key", 1, 5).body == b"12345"
    with pytest.raises(StoreError, match="another program changed it while it was read"):
        store.get_range("key", 1, 7)
