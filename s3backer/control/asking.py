"""The side of the commands: asking the daemons of a volume.

Guarantees
  * No call lasts for ever: who says nothing for SILENCE seconds is DaemonSilent, and what it was asked for is not done
    any more when it goes on.
  * The socket of a dead daemon is in nobody's way: ``call`` removes it.
  * Of several daemons of a volume ``ask`` means the one that has it: one that has lost it is asked only where there is
    no other.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from s3backer.clocks import boot_time
from s3backer.control.messages import VERSION, Progress, clock_name, decode, encode, lines, result
from s3backer.control.sockets import connect, control_path, is_heard, peer, socket_names
from s3backer.errors import DaemonSilent, S3backerError

#: Longest silence of a daemon in seconds that a client bears. Handlers report progress more often than that.
SILENCE = 10.0
#: Of that: after which share nothing is begun any more for who asked.
_MOST = 0.9
#: Seconds for a daemon that listens no more to take its socket away, and between two looks at that.
_LEAVE_SECONDS, _LOOK = 2.0, 0.05


def call(
    name: str,
    command: str,
    arguments: Mapping[str, object] | None = None,
    on_progress: Progress | None = None,
    *,
    path: Path | None = None,
    silence: float | None = None,
    keep: bool = False,
) -> dict[str, object] | None:
    """Ask the daemon of a volume and return its result, or None where no daemon listens.

    ``silence``: how long it may say nothing, in seconds. ``keep``: a dead daemon's socket is left for ``has_died``.
    Raises S3backerError with the daemon's message, hint and exit code, or if it breaks off, and DaemonSilent if it
    lives and says nothing.
    """
    where = path or control_path(name)
    silence = SILENCE if silence is None else silence
    connection = connect(where, keep=keep)
    if connection is None:
        return None
    with connection:
        try:
            connection.settimeout(silence)
            # Who has told its user that there was no answer must not be obeyed later, when the daemon goes on.
            until = boot_time() + silence * _MOST
            request = {
                "version": VERSION,
                "command": command,
                "until": until,
                "clock": clock_name(),
                **(arguments or {}),
            }
            connection.sendall(encode(request))
            for line in lines(connection):
                answer = decode(line)
                progress = answer.get("progress")
                if isinstance(progress, dict):
                    if on_progress:
                        on_progress(progress)
                    continue
                return result(answer)
        except TimeoutError:
            pid = peer(connection)[0]
            raise stopped(pid) or DaemonSilent(
                _process(pid),
                f"does not answer: it has said nothing for {silence:.0f} s",
                hint="Its machine may be busy: try again. If it stays so, see its log.",
            ) from None
        except OSError as error:
            raise _broken_off(where, command, error.strerror or str(error)) from None
        except ValueError as error:
            raise _broken_off(where, command, f"it sent {error}") from None
    raise _broken_off(where, command, "it closed the connection")


def has_died(name: str, *, ended: bool = False) -> bool:
    """Return whether a daemon is gone and has left its socket; one that ends when everything is stored removes it.

    ``ended``: its process is known to be gone, so nothing is waited for, in which others may find it and remove it.
    """
    until = time.monotonic() + (0.0 if ended else _LEAVE_SECONDS)
    # Of one that is about to take it away nobody hears any more either.
    while is_heard(control_path(name)) is False:
        if time.monotonic() >= until:
            return True
        time.sleep(_LOOK)
    return False


def listens(name: str) -> bool:
    """Return whether some daemon listens there, however busy it is."""
    return is_heard(control_path(name)) is True


@dataclass(frozen=True, slots=True)
class Found:
    """A daemon that answers: by what name its socket is called, and what it says of its mount."""

    name: str
    facts: dict[str, object]

    @property
    def owns(self) -> bool:
        """Whether it has the volume: it writes, and no other mount has taken the volume from it."""
        return not self.facts.get("lost") and not self.facts.get("read_only")

    @property
    def process(self) -> dict[str, object]:
        """What tells it from other daemons: the number of its process, and the namespace in which that means it."""
        return {name: self.facts.get(name) for name in ("pid", "processes")}

    def describe(self) -> str:
        """Return where it has mounted the volume, for messages."""
        why = ", which has lost the volume" * bool(self.facts.get("lost"))
        return f"here on {self.facts.get('mountpoint')} by process {self.facts.get('pid')}{why}"


def find_daemons(name: str, *, silence: float | None = None) -> list[Found]:
    """Return the daemons of a volume that answer on this host, the one that has the volume first.

    Raises the error of one that does not answer, where that may be the one that has the volume.
    """
    found: list[Found] = []
    trouble: S3backerError | None = None
    for each in socket_names(name):
        try:
            facts = call(each, "info", silence=silence)
        except S3backerError as error:
            trouble = trouble or error
            continue
        if facts is not None:
            found.append(Found(each, facts))
    found.sort(key=_order)
    if trouble is not None and not (found and found[0].owns):
        raise trouble
    return found


def _order(found: Found) -> tuple[bool, bool, bool, float]:
    """Return by what daemons of a volume are sorted: one that serves before one that ends, for example."""
    facts, opened = found.facts, found.facts.get("opened")
    # Of two writers the later one has taken it from the other, which may not have seen that yet.
    since = -opened if isinstance(opened, int | float) else 0.0
    return bool(facts.get("lost")), bool(facts.get("read_only")), bool(facts.get("ending")), since


def ask(
    name: str,
    command: str,
    arguments: Mapping[str, object] | None = None,
    on_progress: Progress | None = None,
    *,
    silence: float | None = None,
) -> dict[str, object] | None:
    """Do what ``call`` does, with the daemon that has the volume where there are several."""
    if len(socket_names(name)) > 1:
        found = find_daemons(name, silence=silence)
        if not found:
            return None
        name = found[0].name
    return call(name, command, arguments, on_progress, silence=silence)


def stopped(pid: int) -> DaemonSilent | None:
    """Return what to say of a daemon that does not go on because somebody has stopped it; None where it does."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state = file.read().rpartition(b")")[2].split()[0]
    except OSError:
        return None
    if state not in (b"T", b"t"):
        return None
    return DaemonSilent(_process(pid), "does not answer: it is stopped", hint=f"Let it go on: kill -CONT {pid}")


def _process(pid: int) -> str:
    # 0: it is in another namespace of processes.
    return f"process {pid}" if pid else "a process that is not seen from here"


def _broken_off(where: Path, command: str, reason: str) -> S3backerError:
    return S3backerError(
        f"the daemon at {where} did not answer {command!r}: {reason}",
        hint="It may have ended meanwhile; see its log and ask again.",
    )
