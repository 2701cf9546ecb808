"""Log lines: their form, their place, and that no secret is ever in them."""

from __future__ import annotations

import io
import logging
import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3backer import logs
from s3backer.admin import create_volume
from s3backer.disk_cache import cache_directory
from s3backer.errors import UsageError
from s3backer.logs import RateLimited, Redacting, configure_logging, state_directory
from s3backer.opening import VolumeOptions
from s3backer.stores.memory import MemoryStore
from s3backer.volume import Volume

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"


@pytest.fixture(autouse=True)
def untouched_loggers() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("s3backer")
    before, level = list(root.handlers), ours.level
    yield
    for handler in root.handlers[:]:
        if handler not in before:
            root.removeHandler(handler)
            handler.close()
    ours.setLevel(level)


def record(text: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("s3backer", logging.INFO, __file__, 1, text, arguments, None)


# ── secrets ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: AWS4-HMAC-SHA256 Credential=AKIA/x, SignedHeaders=host, Signature={SECRET}",
        f"{{'Authorization': 'AWS4-HMAC-SHA256 Credential=AKIA, Signature={SECRET}', 'Host': 'h'}}",
        f"b'authorization': b'{SECRET}'",
        f"Proxy-Authorization: Basic {SECRET}",
        f"sent Bearer {SECRET}",
        f"GET /b/k?X-Amz-Credential=A&X-Amz-Signature={SECRET}&X-Amz-Expires=60",
        f"x-amz-security-token: {SECRET}",
        f"aws_secret_access_key = {SECRET}",
        f"AWS_SECRET_ACCESS_KEY={SECRET}",
        f'"secret_key": "{SECRET}"',
        f"SecretAccessKey: {SECRET}",
        f"--password={SECRET}",
        f"passphrase: {SECRET}",
        f"cannot reach https://user:{SECRET.replace('/', '')}@host/",
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str) -> None:
    guard = Redacting()
    line = record(text)
    assert guard.filter(line)
    assert SECRET not in line.getMessage() and SECRET.replace("/", "") not in line.getMessage()
    assert "[hidden]" in line.getMessage()


def test_the_rest_of_the_line_stays() -> None:
    guard = Redacting()
    assert guard.redact("PUT s3://b/0000000a: 403, size 4096, password=x y") == (
        "PUT s3://b/0000000a: 403, size 4096, password=[hidden] y"
    )
    assert guard.redact("http://127.0.0.1:9000/b is away") == "http://127.0.0.1:9000/b is away"


def test_a_secret_of_any_bytes_is_hidden() -> None:
    """As a password file may hold one."""
    guard = Redacting()
    guard.register(b"caf\xe9 noir".decode("utf-8", "surrogateescape"))
    assert guard.redact("of caf\udce9 noir and caf%E9%20noir") == "of [hidden] and [hidden]"


def test_a_registered_secret_is_hidden_everywhere() -> None:
    guard = Redacting()
    guard.register(SECRET)
    guard.register(SECRET[:12])
    for text in (f"the key is {SECRET}.", f"?key={SECRET.replace('/', '%2F').replace('+', '%2B')}", SECRET[:12]):
        assert SECRET[:12] not in guard.redact(text)
    line = record("%s and %r", SECRET, {"k": SECRET})
    guard.filter(line)
    assert SECRET not in line.getMessage() and line.args is None


def test_none_and_short_texts_hide_nothing() -> None:
    guard = Redacting()
    for text in (None, "", "abc"):
        guard.register(text)
    assert guard.redact("abc abc") == "abc abc"


@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=4), st.text(), st.text())
def test_no_text_around_it_uncovers_a_secret(secret: str, before: str, after: str) -> None:
    guard = Redacting()
    guard.register(secret)
    hidden = guard.redact(before + secret + after)
    if secret not in "[hidden]" and not set(secret) & set("[hidden]"):
        assert secret not in hidden


def test_a_traceback_is_redacted_too(capsys: pytest.CaptureFixture[str]) -> None:
    guard = configure_logging(True, False, False)
    guard.register(SECRET)
    try:
        raise ValueError(f"bad key {SECRET}")
    except ValueError:
        logging.getLogger("s3backer.x").exception("failed with %s", SECRET, stack_info=True)
    said = capsys.readouterr().err
    assert "ValueError: bad key [hidden]" in said
    assert SECRET not in said


def test_a_record_that_cannot_be_formatted_is_kept_and_redacted() -> None:
    guard = Redacting()
    guard.register(SECRET)
    line = record("%d blocks", SECRET)
    assert guard.filter(line)
    assert "blocks" in line.getMessage() and SECRET not in line.getMessage()


def test_lines_of_other_libraries_pass_the_same_filter(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(True, True, False).register(SECRET)
    logging.getLogger("urllib3.connectionpool").warning("retry with %s", SECRET)
    logging.getLogger("botocore.auth").debug("signing with something")
    said = capsys.readouterr().err
    assert "retry with [hidden]" in said
    assert "signing" not in said


# ── form and place ───────────────────────────────────────────────────────────────────────────────────


def test_a_line_in_the_foreground(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(True, False, False)
    logging.getLogger("s3backer.daemon").info("mounted on %s", "/mnt")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INFO: mounted on /mnt\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("debug", "quiet", "shown"),
    [
        (False, False, ["INFO", "WARNING", "ERROR"]),
        (True, False, ["DEBUG", "INFO", "WARNING", "ERROR"]),
        (False, True, ["WARNING", "ERROR"]),
    ],
)
def test_levels(capsys: pytest.CaptureFixture[str], debug: bool, quiet: bool, shown: list[str]) -> None:
    configure_logging(True, debug, quiet)
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logging.getLogger("s3backer.any").log(level, "x")
    assert re.findall(r"[A-Z]{4,}", capsys.readouterr().err) == shown


def test_a_second_call_replaces_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(True, False, False)
    configure_logging(True, False, False)
    logging.getLogger("s3backer").warning("once")
    assert capsys.readouterr().err.count("once") == 1


def test_the_background_writes_to_syslog(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(10)
        monkeypatch.setattr(logs, "SYSLOG_SOCKETS", (tmp_path / "missing", path))
        configure_logging(False, False, False, ident="s3backer-test")
        logging.getLogger("s3backer").error("password=secret text")
        assert re.fullmatch(rb"<27>s3backer-test\[\d+\]: password=\[hidden\] text", listener.recv(4096))


def test_without_syslog_the_background_writes_a_private_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(logs, "SYSLOG_SOCKETS", (tmp_path / "missing",))
    monkeypatch.setattr(logs, "_FILE_BYTES", 2000)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    configure_logging(False, False, False, ident="one")
    for number in range(400):
        logging.getLogger("s3backer").info("line %d", number)
    directory = tmp_path / "state" / "s3backer"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    names = sorted(path.name for path in directory.iterdir())
    assert names == ["one.log", "one.log.1", "one.log.2", "one.log.3", "one.log.4"]
    for name in names:
        assert stat.S_IMODE((directory / name).stat().st_mode) == 0o600
        assert (directory / name).stat().st_size <= 2000
    assert (directory / "one.log").read_text().endswith(" INFO: line 399\n")


@pytest.mark.parametrize("where", ["stderr", "syslog", "file"])
def test_names_that_are_no_text_are_written_escaped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    stderr = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setattr(logs, "SYSLOG_SOCKETS", (tmp_path / "log",) if where == "syslog" else ())
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "log"))
        listener.setblocking(False)
        before = logging.getLogger().handlers[:]
        configure_logging(where == "stderr", False, False, ident="one")
        (handler,) = (one for one in logging.getLogger().handlers if one not in before)
        # Not through the logger: what collects the lines of a test has to write them, too.
        words = {"msg": "%s is mounted on /mnt/é", "args": (os.fsdecode(b"file:///b\xe9"),)}
        handler.handle(logging.makeLogRecord(words))
        stderr.flush()
        said = stderr.buffer.getvalue()
        if where != "stderr":
            assert said == b""
            said = listener.recv(4096) if where == "syslog" else (tmp_path / "s3backer" / "one.log").read_bytes()
    assert said.rstrip().endswith("file:///b\\udce9 is mounted on /mnt/é".encode())


def test_a_log_that_is_a_symbolic_link_is_not_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(logs, "SYSLOG_SOCKETS", ())
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "s3backer").mkdir()
    (tmp_path / "s3backer" / "one.log").symlink_to(tmp_path / "elsewhere")
    configure_logging(False, False, False, ident="one")
    logging.getLogger("s3backer").error("not there")
    assert not (tmp_path / "elsewhere").exists()


def test_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 4711)

    def nobody(cls: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(nobody))
    for directory in (state_directory, cache_directory):
        with pytest.raises(UsageError, match="user 4711 has no home directory") as caught:
            directory()
        assert "Set HOME, or XDG_" in caught.value.hint
    # A volume can be used all the same; only a journal has no place.
    store = MemoryStore()
    create_volume(store, "", size=1 << 20, block_size=4096)
    Volume.open(store, "", VolumeOptions(memory=1 << 20, threads=1)).close()
    with pytest.raises(UsageError, match="has no home"):
        Volume.open(store, "", VolumeOptions(memory=8 << 20, threads=1, journal=1 << 20))


def test_state_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/x/state")
    assert state_directory() == Path("/x/state/s3backer")
    for unusable in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", unusable)
        monkeypatch.setattr("os.geteuid", lambda: 0)
        assert state_directory() == Path("/var/lib/s3backer")
        monkeypatch.setattr("os.geteuid", lambda: 1000)
        monkeypatch.setenv("HOME", "/home/u")
        assert state_directory() == Path("/home/u/.local/state/s3backer")


# ── rate limits ──────────────────────────────────────────────────────────────────────────────────────


def test_a_storm_is_one_line_and_a_count(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    limited = RateLimited(logging.getLogger("s3backer.storm"), interval=30, clock=lambda: now)
    assert limited.limited("a", logging.ERROR, "failed")
    assert [limited.limited("a", logging.ERROR, "failed") for _ in range(5)] == [False] * 5
    assert limited.limited("b", logging.ERROR, "other")
    now = 30.0
    assert limited.limited("a", logging.ERROR, "failed")
    assert caplog.messages == ["failed", "other", "failed (5 more like this before)"]
    now = 60.0
    assert limited.limited("a", logging.ERROR, "failed")
    assert caplog.messages[-1] == "failed"


def test_one_line_per_change_of_state(caplog: pytest.LogCaptureFixture) -> None:
    limited = RateLimited(logging.getLogger("s3backer.state"))
    said = [limited.changed("store", state, logging.WARNING, f"{state}") for state in (1, 1, 2, 2, 1)]
    assert said == [True, False, True, False, True]
    assert limited.changed("other", 1, logging.WARNING, "1")
    assert caplog.messages == ["1", "2", "1", "1"]


def test_subjects_are_bounded() -> None:
    limited = RateLimited(logging.getLogger("s3backer.none"))
    logging.getLogger("s3backer.none").disabled = True
    for number in range(3 * RateLimited.MAX_SUBJECTS):
        limited.limited(number, logging.DEBUG, "x")
        limited.changed(number, 1, logging.DEBUG, "x")
    assert len(limited._said) <= RateLimited.MAX_SUBJECTS >= len(limited._states)
