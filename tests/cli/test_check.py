"""``s3backer check``: over directories and buckets, interrupted, repairing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from s3backer.admin import create_volume
from s3backer.codec.choice import EncodingOptions
from s3backer.layouts.classic import META_BLOCK_SIZE, META_SIZE, parse_metadata
from s3backer.layouts.token import TOKEN_NAME, new_token, read_token, write_token
from s3backer.opening import VolumeOptions, prepare
from s3backer.stores.base import ObjectStore
from s3backer.stores.directory import DirectoryStore
from s3backer.stores.s3 import S3Store
from tests.support.commands import Run
from tests.support.servers import S3Server

KIB, MIB = 1 << 10, 1 << 20
ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0
BLOCK = 64 * KIB


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory in which the state of checks is kept."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "s3backer"


Place = tuple[str, ObjectStore, str]


@pytest.fixture(params=["file", "seaweed", "minio"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Return a URL with its store and prefix: in a directory, and in a bucket of each server."""
    if request.param == "file":
        directory = tmp_path / "place"
        directory.mkdir()
        return f"file://{directory}", DirectoryStore(directory), ""
    server: S3Server = request.getfixturevalue(request.param)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    bucket = server.make_bucket()
    store = S3Store(bucket, server.options())
    request.addfinalizer(store.close)
    return f"s3://{bucket}/disk", store, "disk/"


def fill(store: ObjectStore, prefix: str, *, blocks: int = 16, **values: Any) -> None:
    """Make a volume of that many blocks, every fourth of which is a hole."""
    create_volume(store, prefix, size=blocks * BLOCK, block_size=BLOCK, encoding=EncodingOptions(**values))
    reading = VolumeOptions(read_only=True, encoding=EncodingOptions(password=values.get("password")))
    layout, _ = prepare(store, prefix, reading)
    for block in range(blocks):
        if block % 4:
            layout.write(block, random.Random(block).randbytes(BLOCK // 2) + bytes(BLOCK // 2))


def lock(store: ObjectStore, prefix: str = "") -> None:
    write_token(store, prefix, "", new_token(random.Random(1)), former=None)


def facts(answer: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer.out)
    return found


def kinds(found: dict[str, Any]) -> dict[str, str]:
    return {finding["key"]: finding["kind"] for finding in found["findings"]}


def test_a_volume_as_it_should_be(run: Run, place: Place, state: Path) -> None:
    url, store, prefix = place
    fill(store, prefix)
    before = store.list(prefix).entries
    answer = run("check", url, "--json")
    assert (answer.code, "Traceback" in answer.err) == (0, False)
    found = facts(answer)
    assert (found["problems"], found["findings"], found["mounted"], found["objects"]) == (0, [], False, 13)
    # A directory knows by itself only what it has written beside the blocks.
    assert found["verified"] == ({"md5": 1, "nothing": 12} if url.startswith("file:") else {"checksum": 13})
    assert found["encodings"] == {"": 13}
    assert found["requests"]["get"] == 13 and not found["requests"]["put"] and not found["requests"]["delete"]
    assert found["stored"] == 13 * BLOCK
    assert store.list(prefix).entries == before
    assert list(state.iterdir()) == []
    answer = run("check", url)
    assert (answer.code, answer.err) == (0, "")
    for text in (f"checking {url}: 1 MiB in blocks of 64 KiB, 13 objects to read", "13 with 832 KiB", "none", "13 get"):
        assert text in answer.out


def damage(store: ObjectStore, prefix: str) -> dict[str, str]:
    """Damage a volume of ``fill``, and return the findings by key."""
    store.put(f"{prefix}00000001", b"cut short")
    store.put(f"{prefix}00000002", b"no gzip", content_encoding="gzip")
    store.put(f"{prefix}00000003", b"\x78\x9c no zlib", content_encoding="deflate")
    store.put(f"{prefix}00000005", bytes(BLOCK))
    store.put(f"{prefix}00000011", b"behind the end")
    store.put(f"{prefix}readme.txt", b"foreign")
    named = ("length", "encoding", "compression", "zeros", "beyond-end", "foreign")
    numbers = ("00000001", "00000002", "00000003", "00000005", "00000011", "readme.txt")
    return {prefix + number: kind for number, kind in zip(numbers, named, strict=True)}


def test_damage_is_told_and_what_can_be_repaired_is_repaired(run: Run, place: Place, state: Path) -> None:
    url, store, prefix = place
    fill(store, prefix)
    expected = damage(store, prefix)
    answer = run("check", url, "--json")
    found = facts(answer)
    assert (answer.code, kinds(found), found["problems"]) == (8, expected, 4)
    said = next(finding for finding in found["findings"] if finding["kind"] == "length")
    assert (said["block"], said["offset"]) == (1, BLOCK)
    assert "bytes 65536 to 131071 of the disk" in said["means"]
    answer = run("check", url)
    assert answer.code == 8
    for key, kind in expected.items():
        assert f"{kind} (1)" in answer.out and f"  {key}: " in answer.out
    assert f"s3backer check {url} --repair --resume" in answer.out

    # Without a terminal nothing is done, and what would be is told.
    keys = [entry.key for entry in store.list(prefix).entries]
    answer = run("check", url, "--repair", "--resume")
    assert answer.code == 8 and "taking over the check that ended" in answer.out
    assert f"delete object '{prefix}00000005'" in answer.out and f"delete object '{prefix}00000011'" not in answer.out
    assert "nothing was changed" in answer.out
    assert [entry.key for entry in store.list(prefix).entries] == keys

    answer = run("check", url, "--repair", "--resume", "--yes", "--size", "1m", "--json")
    found = facts(answer)
    assert answer.code == 8
    assert found["repairs"] == {"planned": 2, "performed": True, "done": {"zeros": 1, "beyond-end": 1}, "failed": {}}
    gone = {f"{prefix}00000005", f"{prefix}00000011"}
    assert [entry.key for entry in store.list(prefix).entries] == [key for key in keys if key not in gone]
    assert list(state.iterdir()) == []
    assert kinds(facts(run("check", url, "--json"))) == {k: v for k, v in expected.items() if k not in gone}
    # What is damaged is as it was.
    assert store.get(f"{prefix}00000001").body == b"cut short"


def test_metadata_is_written_again(run: Run, place: Place) -> None:
    url, store, prefix = place
    fill(store, prefix, compress="deflate")
    key = f"{prefix}00000000"
    zero = store.get(key)
    wrong = {META_SIZE: str(4 * BLOCK), META_BLOCK_SIZE: str(BLOCK)}
    for metadata, words, kind in (
        (None, ("--block-size", "64k"), "no-metadata"),
        ({META_SIZE: "0", META_BLOCK_SIZE: str(BLOCK)}, (), "no-metadata"),
        (wrong, (), "metadata"),
    ):
        store.put(key, zero.body, content_encoding="deflate", metadata=metadata)
        if kind == "no-metadata":
            answer = run("check", url)
            assert answer.code == 5 and "does not say how large" in answer.sentence() and "--size" in answer.hint()
        else:
            assert facts(run("check", url, "--json"))["kinds"] == {"beyond-end": 9}
        answer = run("check", url, "--json", "--size", "1m", *words)
        assert (kinds(facts(answer)), answer.code) == ({key: kind}, 8 if kind == "metadata" else 0)
        answer = run("check", url, "--repair", "--yes", "--size", "1m", *words)
        assert answer.code == 0 and "with the metadata: a size of 1MiB in blocks of 64KiB" in answer.out
        found = store.get(key)
        said = parse_metadata(found.info)
        assert found.body == zero.body and found.info.content_encoding == "deflate"
        assert said is not None and (said.size, said.block_size) == (MIB, BLOCK)
        assert facts(run("check", url, "--json"))["findings"] == []


def test_a_first_block_that_is_missing(run: Run, place: Place) -> None:
    url, store, prefix = place
    fill(store, prefix, compress="zstd")
    store.delete(f"{prefix}00000000")
    answer = run("check", url)
    assert answer.code == 5 and "is missing" in answer.sentence() and "--size and --block-size" in answer.hint()
    words = ("--size", "1m", "--block-size", "64k")
    answer = run("check", url, *words)
    assert answer.code == 8 and "bytes 0 to 65535 of the disk read as zeros" in answer.out
    answer = run("check", url, *words, "--repair", "--resume", "--yes")
    assert answer.code == 0 and "a block of zeros with the metadata" in answer.out
    assert store.get(f"{prefix}00000000").info.content_encoding == "zstd"
    assert facts(run("check", url, "--json"))["findings"] == []


def test_encrypted(run: Run, place: Place, tmp_path: Path) -> None:
    url, store, prefix = place
    fill(store, prefix, encrypt="AES-256-CBC", password="swordfish")
    for name in ("swordfish", "wrong"):
        (tmp_path / name).write_text(f"{name}\n")
    answer = run("check", url, "--json", "--password-file", str(tmp_path / "swordfish"))
    found = facts(answer)
    assert (answer.code, found["verified"], found["signatures_verified"]) == (0, {"hmac": 13}, True)
    answer = run("check", url, "--json")
    found = facts(answer)
    means = "md5" if url.startswith("file:") else "checksum"
    assert (answer.code, found["verified"], found["signatures_verified"]) == (0, {means: 13}, False)
    assert "no signature could be verified" in run("check", url).out
    answer = run("check", url, "--password-file", str(tmp_path / "wrong"))
    assert answer.code == 4 and "fits none of the first" in answer.sentence()
    block = store.get(f"{prefix}00000007")
    info = block.info
    store.put(f"{prefix}00000006", block.body, content_encoding=info.content_encoding, metadata=info.metadata)
    answer = run("check", url, "--json", "--password-file", str(tmp_path / "swordfish"))
    assert (answer.code, kinds(facts(answer))) == (8, {f"{prefix}00000006": "signature"})
    assert run("check", url).code == 0


def test_a_volume_that_is_mounted_is_checked_and_not_repaired(run: Run, place: Place) -> None:
    url, store, prefix = place
    fill(store, prefix)
    store.put(f"{prefix}00000005", bytes(BLOCK))
    lock(store, prefix)
    before = store.get(prefix + TOKEN_NAME)
    answer = run("check", url, "--json")
    found = facts(answer)
    assert (answer.code, found["mounted"], found["mounted_by"]) == (0, True, os.uname().nodename)
    assert kinds(found) == {"": "mounted", f"{prefix}00000005": "zeros"}
    assert "nothing of ours serves it here" in run("check", url).out
    for more in ((), ("--yes",)):
        answer = run("check", url, "--repair", *more)
        assert answer.code == 6 and "cannot be repaired" in answer.sentence()
    assert store.get(prefix + TOKEN_NAME) == before
    assert store.get(f"{prefix}00000005").body == bytes(BLOCK)


def test_an_object_behind_the_end_that_was_changed_since(run: Run, place: Place) -> None:
    url, store, prefix = place
    fill(store, prefix)
    key = f"{prefix}00000020"
    store.put(key, b"one")
    assert run("check", url, "--size", "1m").code == 8
    store.put(key, b"two")
    answer = run("check", url, "--size", "1m", "--repair", "--resume", "--yes")
    if url.startswith("file:"):
        # Its listing has no ETags, so that this is the object that was told of.
        assert answer.code == 0 and not store.list(key).entries
        return
    assert answer.code == 8 and f"not done: delete object '{key}'" in answer.out and "somebody changed it" in answer.out
    assert store.get(key).body == b"two"


def test_mounted_after_it_was_checked(run: Run, volume: Path) -> None:
    store = DirectoryStore(volume)
    store.put("00000005", bytes(BLOCK))
    url = f"file://{volume}"
    assert run("check", url, "--repair").code == 0
    lock(store)
    assert run("check", url, "--repair", "--yes", "--resume").code == 6
    assert (volume / "00000005").exists()


def test_what_was_changed_since_it_was_checked_stays(run: Run, volume: Path) -> None:
    store, url = DirectoryStore(volume), f"file://{volume}"
    store.put("00000005", bytes(BLOCK))
    store.put("00000006", bytes(BLOCK))
    store.put("00000007", bytes(BLOCK))
    assert run("check", url).code == 0
    store.put("00000005", b"1" * BLOCK)
    store.delete("00000006")
    answer = run("check", url, "--repair", "--resume", "--yes", "--json")
    done = facts(answer)["repairs"]
    assert answer.code == 0
    assert done["done"] == {"zeros": 1}
    assert done["failed"] == {"00000005": "somebody changed it since it was checked", "00000006": "it has gone"}
    assert store.get("00000005").body == b"1" * BLOCK
    assert read_token(store, "") is None


def test_a_damaged_first_block_gets_no_metadata(run: Run, volume: Path) -> None:
    store, url = DirectoryStore(volume), f"file://{volume}"
    store.put("00000000", b"short", metadata={META_SIZE: "65536", META_BLOCK_SIZE: "65536"})
    answer = run("check", url, "--size", "8m", "--repair", "--yes")
    assert answer.code == 8 and "not done: " in answer.out and "the block itself is damaged" in answer.out
    assert store.get("00000000").body == b"short"


def test_it_asks_on_a_terminal(volume: Path) -> None:
    store = DirectoryStore(volume)
    for reply, left in ((b"\n", True), (b"yes please\n", True), (b"y\n", False)):
        store.put("00000005", bytes(BLOCK))
        code, said = on_a_terminal(["check", f"file://{volume}", "--repair"], reply)
        assert code == 0, said
        assert "delete object '00000005'" in said and said.index("delete object") < said.index("Do this? [y/N]")
        assert (volume / "00000005").exists() is left


def on_a_terminal(words: list[str], reply: bytes) -> tuple[int, str]:
    """Run a command on a terminal, give it a reply, and return its exit code and what it said."""
    ours, its = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "s3backer", *words],
        stdin=its,
        stdout=its,
        stderr=its,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"},
    )
    os.close(its)
    said = b""
    os.write(ours, reply)
    try:
        while piece := os.read(ours, 4096):
            said += piece
    except OSError:
        # The other end is closed.
        pass
    finally:
        os.close(ours)
    return process.wait(PATIENCE), said.decode()


# ── interrupted ──────────────────────────────────────────────────────────────────────────────────────────────────


#: The command on a store that is slow, with its state written after each object.
_SLOW = """
import sys, time
from s3backer.checking import run
from s3backer.cli import main
examine = run.Examiner.examine
run._MARK_SECONDS = -1.0
run.Examiner.examine = lambda self, block: (time.sleep(0.005), examine(self, block))[1]
sys.exit(main(sys.argv[1:]))
"""


def start(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", _SLOW, "check", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for_progress(process: subprocess.Popen[bytes], state: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        for path in state.glob("check-*"):
            if path.read_bytes().count(b'{"done": "0') >= 1:
                return
        time.sleep(0.01)
    raise AssertionError("no progress")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_and_resumed(run: Run, volume: Path, state: Path, number: signal.Signals) -> None:
    url, words = f"file://{volume}", ("--size", "16m", "--threads", "1")
    for block in range(1, 256):
        (volume / f"{block:08x}").write_bytes(b"x" * BLOCK if block % 20 else b"")
    process = start(url, *words)
    wait_for_progress(process, state)
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    if number == signal.SIGINT:
        assert process.returncode == 130
        said = [line for line in err.decode().splitlines() if line]
        assert said == [f"go on with: s3backer check {url} --resume", "s3backer: interrupted"]
    answer = run("check", url, *words[:2], "--resume", "--json")
    found = facts(answer)
    assert "going on with the check that began at" in answer.err
    assert answer.code == 8
    assert (found["objects"], found["kinds"]) == (256, {"metadata": 1, "length": 12})
    assert [finding["block"] for finding in found["findings"]] == [0, *range(20, 256, 20)]


def test_a_second_check_at_the_same_time(run: Run, volume: Path, state: Path) -> None:
    for block in range(1, 128):
        (volume / f"{block:08x}").write_bytes(b"x" * BLOCK)
    process = start(f"file://{volume}", "--threads", "1")
    try:
        wait_for_progress(process, state)
        process.send_signal(signal.SIGSTOP)
        answer = run("check", f"file://{volume}")
    finally:
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=PATIENCE)
    assert answer.code == 6 and "another process of this host" in answer.sentence()


# ── bad input ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_cannot_be_checked(run: Run, volume: Path, tmp_path: Path) -> None:
    url = f"file://{volume}"
    answer = run("check", f"file://{tmp_path}/nowhere")
    assert answer.code == 5 and "there is no directory" in answer.sentence()
    empty = tmp_path / "empty"
    empty.mkdir()
    answer = run("check", f"file://{empty}", "--size", "1m", "--block-size", "4k")
    assert answer.code == 5 and "there is no volume" in answer.sentence()
    answer = run("check", url, "--yes")
    assert answer.code == 2 and "--repair" in answer.hint()
    answer = run("check", url, "--size", "1000")
    assert answer.code == 2 and "not a multiple" in answer.sentence()
    answer = run("check", url, "--threads", "0")
    assert answer.code == 2 and "--threads" in answer.sentence()
    answer = run("check", url, "--encrypt", "AES-256-CBC")
    assert answer.code == 2 and "needs a password" in answer.sentence()
    secret = tmp_path / "secret"
    secret.write_text("x\n")
    answer = run("check", url, "--password-file", str(secret))
    assert answer.code == 2 and "is not encrypted" in answer.sentence()


def test_the_other_naming(run: Run, volume: Path, tmp_path: Path) -> None:
    answer = run("check", f"file://{volume}", "--block-hash-prefix")
    assert answer.code == 2 and "do not begin with a hash" in answer.sentence() and "Leave out" in answer.hint()
    hashed = tmp_path / "hashed"
    hashed.mkdir()
    create_volume(DirectoryStore(hashed), "", size=MIB, block_size=BLOCK, block_hash_prefix=True)
    answer = run("check", f"file://{hashed}")
    assert answer.code == 2 and "begin with a hash" in answer.sentence()
    assert run("check", f"file://{hashed}", "--block-hash-prefix").code == 0


def test_metadata_that_no_volume_has(run: Run, volume: Path) -> None:
    store, url = DirectoryStore(volume), f"file://{volume}"
    body = store.get("00000000").body
    store.put("00000000", body, metadata={META_SIZE: "1000", META_BLOCK_SIZE: "3000"})
    answer = run("check", url)
    assert answer.code == 8 and "which cannot be" in answer.sentence() and "--block-size" in answer.hint()
    answer = run("check", url, "--size", "8m", "--block-size", "64k", "--json")
    assert answer.code == 8 and facts(answer)["kinds"] == {"metadata": 2}
    answer = run("check", url, "--size", "8m", "--block-size", "64k", "--repair", "--yes", "--json")
    assert answer.code == 0 and facts(answer)["repairs"]["planned"] == 1
    assert run("check", url).code == 0


def test_resuming_with_other_options(run: Run, volume: Path, state: Path) -> None:
    url = f"file://{volume}"
    DirectoryStore(volume).put("00000005", bytes(BLOCK))
    assert run("check", url).code == 0
    assert len(list(state.iterdir())) == 1
    answer = run("check", url, "--size", "16m", "--resume", "--repair")
    assert answer.code == 2 and "was of a volume of 8MiB, not 16MiB" in answer.sentence()
    for path in state.iterdir():
        path.write_bytes(b"something else")
    answer = run("check", url, "--resume")
    assert answer.code == 2 and "no state of a check" in answer.sentence()
    assert run("check", url).code == 0


def test_only_unreadable_objects_have_a_code_of_their_own(run: Run, volume: Path) -> None:
    for block in range(1, 5):
        (volume / f"{block:08x}").write_bytes(b"x" * BLOCK)
    (volume / "00000006").symlink_to("00000001")
    answer = run("check", f"file://{volume}", "--json")
    assert (answer.code, kinds(facts(answer))) == (3, {"00000006": "unreadable"})
    (volume / "00000004").write_bytes(b"")
    assert run("check", f"file://{volume}").code == 8


def test_a_full_pipe_and_many_findings(run: Run, volume: Path) -> None:
    for block in range(1, 121):
        (volume / f"{block:08x}").write_bytes(b"")
    answer = run("check", f"file://{volume}")
    assert answer.out.count("a block of this volume has") == 100
    assert "and 20 more; --json names them" in answer.out
    assert len(facts(run("check", f"file://{volume}", "--json"))["findings"]) == 120
