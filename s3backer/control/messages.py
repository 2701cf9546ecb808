"""What is sent over a control socket.

wire       one JSON object per line, at most 64 KiB, UTF-8
request    {"version": 1, "command": "info", "until": seconds, "clock": "...", ...arguments}
           until: when its client gives up, of boot_time on the clock of that name
answer     any number of  {"version": 1, "progress": {...}}
           then one of    {"version": 1, "ok": true, "result": {...}}
                          {"version": 1, "ok": false, "error": "...", "hint": "...", "exit_code": N}
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping

from s3backer.errors import S3backerError, UsageError

VERSION = 1
MAX_LINE = 64 * 1024

#: Told what a command that takes long has to say meanwhile.
Progress = Callable[[dict[str, object]], None]


def clock_name() -> str:
    """Return what names the clock of ``boot_time``, which each namespace of times has for itself."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/time")
    return ""


def processes() -> str:
    """Return what names the namespace of processes in which this one's number means it."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def success(result: Mapping[str, object]) -> dict[str, object]:
    """Return how a result is told."""
    return {"version": VERSION, "ok": True, "result": dict(result)}


def failure(message: str, hint: str, exit_code: int) -> dict[str, object]:
    """Return how an error is told."""
    return {"version": VERSION, "ok": False, "error": message, "hint": hint, "exit_code": exit_code}


def result(answer: Mapping[str, object]) -> dict[str, object]:
    """Return what an answer has to say, or raise the error that it tells."""
    found = answer.get("result")
    if answer.get("ok") is True and isinstance(found, dict):
        return found
    error = S3backerError(
        str(answer.get("error") or "the daemon's answer was not understood"), hint=str(answer.get("hint") or "")
    )
    code = answer.get("exit_code")
    if isinstance(code, int) and 0 < code < 126:
        error.exit_code = code
    raise error


def encode(message: Mapping[str, object]) -> bytes:
    """Return the line of a message."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> dict[str, object]:
    """Return the message of a line; UsageError where it is none."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise UsageError("the line is not a JSON object", hint="Send one JSON object per line.")
    return message


def lines(connection: socket.socket) -> Iterator[bytes]:
    """Yield the lines that arrive; ValueError for one that is too long."""
    pending = bytearray()
    while True:
        end = pending.find(b"\n")
        if end >= 0:
            line = bytes(pending[:end])
            del pending[: end + 1]
            if line.strip():
                yield line
            continue
        if len(pending) > MAX_LINE:
            raise ValueError(f"a line of more than {MAX_LINE} bytes")
        data = connection.recv(MAX_LINE)
        if not data:
            return
        pending += data
