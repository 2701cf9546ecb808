"""A writer of a volume that does what it is told, line by line, and answers each line: "done", or the name of an error.

    open {"bucket": …, "store": …, "options": …}
    write OFFSET BYTE COUNT                    write that byte, so often
    discard OFFSET COUNT
    arm FAILPOINT                              stop there, as by SIGSTOP
    stored                                     wait until all is in the bucket, without asking for that
    sleep SECONDS                              have the computer sleep then, and answer at once
    flush, close, …                            any method without arguments

``python -m tests.support.writer`` takes them from its standard input; tests/support/guest_init.py has them sent.
``Told`` is the other side.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

from s3backer import failpoints
from s3backer.opening import VolumeOptions
from s3backer.stores.options import StoreOptions
from s3backer.stores.s3 import S3Store
from s3backer.volume import Volume

_GIVEN = ("endpoint_url", "region", "access_key", "secret_key", "timeout")


def serve(lines: IO[str], answers: IO[str]) -> None:
    """Do what the lines say until they end."""
    volumes: list[Volume] = []
    for line in lines:
        try:
            do, _, rest = line.partition(" ")
            if do == "open":
                volumes.append(_open(**json.loads(rest)))
            else:
                _obey(volumes[-1], *line.split())
            answer = "done"
        except Exception as error:
            answer = type(error).__name__
        answers.write(f"{answer}\n")
        answers.flush()


class Told:
    """Tells a writer what to do."""

    def __init__(self, lines: IO[str], answers: IO[str]) -> None:
        self._lines, self._answers = lines, answers

    def open(self, bucket: str, store: StoreOptions, options: VolumeOptions) -> None:
        """Have it open a volume."""
        given = {name: getattr(store, name) for name in _GIVEN}
        usual = VolumeOptions()
        names = [field.name for field in fields(usual)]
        changed = {name: getattr(options, name) for name in names if getattr(options, name) != getattr(usual, name)}
        assert self.do("open", json.dumps({"bucket": bucket, "store": given, "options": changed})) == "done"

    def begin(self, *words: object) -> None:
        """Tell it what to do."""
        self._lines.write(" ".join(map(str, words)) + "\n")
        self._lines.flush()

    def answer(self) -> str:
        """Return what it says to that."""
        return self._answers.readline().strip()

    def do(self, *words: object) -> str:
        """Do both."""
        self.begin(*words)
        return self.answer()


def _open(bucket: str, store: dict[str, Any], options: dict[str, Any]) -> Volume:
    return Volume.open(S3Store(bucket, StoreOptions(**store)), "", VolumeOptions(**options))


def _obey(volume: Volume, do: str, *words: str) -> None:
    match do:
        case "write":
            volume.write(int(words[0]), words[1].encode() * int(words[2]))
        case "discard":
            volume.discard(int(words[0]), int(words[1]))
        case "arm":
            failpoints.arm(words[0], stop=True)
        case "stored":
            while volume.unsaved:
                time.sleep(0.01)
        case "sleep":
            # Not to standby but to memory: devices are off as well.
            threading.Timer(float(words[0]), Path("/sys/power/state").write_text, ["mem"]).start()
        case _:
            getattr(volume, do)()


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout)
