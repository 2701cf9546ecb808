"""Runs the test suite in parts, each in a process of its own, and says what it cost and what was left out.

Guarantees
  * The last line is ``N passed, N failed, N skipped``; the exit code is 0 only if something ran and nothing failed.
    Where the environment has a true ``CI``, what is skipped has failed, but for what the machine does
    not give: MinIO where it could not be built, QEMU with a kernel, CAP_SYS_RESOURCE.
  * Nothing outlives it: a part that hangs, crashes or is interrupted loses its processes (also daemons, which come
    back to this process as their reaper), its mounts and its loop devices. A part that passes and leaves any behind
    has failed.

Arguments that are not its own go to pytest; paths among them run as the only part.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
#: Seconds in which a part has to report something. Above pytest's own time limit for a test, which names the line
#: where the test hangs but cannot end one that hangs in the kernel.
SILENCE = 360.0
#: Seconds that what a part started may take to end by itself.
GRACE = 15.0
#: Seconds that an interrupted part may take to clean up.
CLEAN_UP = 60.0
SLOWEST = 10
#: How the reasons begin with which a test may be skipped in CI: what the machine does not give
#: (tests/support/minio_program.py, tests/support/guest.py, tests/support/memory.py).
_NOT_HERE = ("MinIO was not built", "without QEMU", "without CAP_SYS_RESOURCE")
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Part:
    """Tests that run together. ``budget`` in minutes; ``workers``: how many of them run at a time."""

    name: str
    budget: float
    paths: tuple[str, ...] = ()
    workers: int = 1


#: Lint and types.
LINT = Part("lint", 1)
PARTS = (
    Part("unit", 1, ("tests",), workers=3),
    Part(
        "worlds",
        2,
        (
            "tests/test_cache_simulation.py",
            "tests/crashes/test_worlds.py",
            "tests/crashes/test_hard_worlds.py",
            "tests/crashes/test_forced.py",
        ),
        workers=3,
    ),
    Part(
        "crashes",
        3,
        (
            "tests/crashes/test_kills.py",
            "tests/crashes/test_adoption.py",
            "tests/crashes/test_adoption_races.py",
            "tests/crashes/test_backlog_steps.py",
            "tests/crashes/test_spill.py",
            "tests/crashes/test_carry.py",
            "tests/crashes/test_volume_journal.py",
            "tests/crashes/test_long_run.py",
            "tests/journal",
        ),
        workers=2,
    ),
    Part("stores", 4, ("tests/stores", "tests/s3"), workers=2),
    Part("mount", 4.5, ("tests/mount", "tests/cli", "tests/system"), workers=2),
    Part("filesystems", 5.5, ("tests/filesystems", "tests/interop")),
    Part("guests", 2, ("tests/guests",)),
    Part("packaging", 2, ("tests/packaging",)),
)
CHECKS = (
    ("ruff check", ("-m", "ruff", "check", ".")),
    ("mypy", ("-m", "mypy")),
    ("cython-lint", ("-m", "cython_lint.cython_lint", "s3backer")),
)


@dataclass
class Result:
    """One test's outcome: passed, failed or skipped."""

    test: str
    outcome: str
    seconds: float = 0.0
    reason: str = ""


@dataclass
class Outcome:
    """What became of one part."""

    part: Part
    seconds: float = 0.0
    results: list[Result] = field(default_factory=list)


class Interrupted(BaseException):
    """A signal asked for the end."""


def stop_on_signals() -> None:
    """Turn the first SIGINT, SIGTERM or SIGHUP into Interrupted; the next ones are ignored while it cleans up."""

    def stop(number: int, _: FrameType | None) -> None:
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, signal.SIG_IGN)
        raise Interrupted(signal.Signals(number).name)

    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, stop)


# ── what a part leaves behind ────────────────────────────────────────────────────────────────────────────────────


def descendants() -> dict[int, str]:
    """Return this process's descendants and their command lines; orphans among them have come back to it."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    parents[int(entry.name)] = int(parent)
    found: dict[int, str] = {}
    added = {os.getpid()}
    while added:
        added = {pid for pid, parent in parents.items() if parent in added}
        for pid in added:
            with contextlib.suppress(OSError):
                found[pid] = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip()
    return found


def reap() -> None:
    """Collect the children that have ended, so that none stays a zombie."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def mounts_below(directory: Path) -> list[str]:
    """Return the mount points below a directory, the innermost first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        point = line.split()[4].encode(errors="surrogateescape").decode("unicode_escape")
        if point.startswith(f"{directory}/"):
            found.append(point)
    return found[::-1]


def loop_devices_below(directory: Path) -> list[str]:
    """Return the loop devices whose file lies below a directory."""
    found = []
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if file.read_text(errors="surrogateescape").startswith(f"{directory}/"):
                found.append(f"/dev/{file.parts[3]}")
    return found


def end_leftovers(directory: Path, grace: float) -> list[str]:
    """End the processes, mounts and loop devices of a part that is over; return what had to be ended."""
    deadline = time.monotonic() + grace
    while time.monotonic() < deadline:
        reap()
        if not (descendants() or mounts_below(directory) or loop_devices_below(directory)):
            return []
        time.sleep(0.1)
    left = []
    # Filesystems first, then what they lie on; lazily, because whoever serves them may hang.
    for mount in mounts_below(directory):
        left.append(f"mount {mount}")
        subprocess.run(["umount", "--lazy", mount], stderr=subprocess.DEVNULL, check=False)
    for device in loop_devices_below(directory):
        left.append(f"loop device {device}")
        subprocess.run(["losetup", "--detach", device], stderr=subprocess.DEVNULL, check=False)
    while remaining := descendants():
        for pid, command in remaining.items():
            left.append(f"process {pid}: {command}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
        reap()
        if time.monotonic() > deadline + GRACE:
            break
    return list(dict.fromkeys(left))


@contextlib.contextmanager
def work_directory() -> Iterator[Path]:
    """Make a temporary directory, and remove it unless something that could not be unmounted is below it."""
    # A short name: paths of sockets are limited.
    directory = Path(tempfile.mkdtemp(prefix="s3b-")).resolve()
    try:
        yield directory
    finally:
        if not mounts_below(directory):
            shutil.rmtree(directory, ignore_errors=True)


# ── running ──────────────────────────────────────────────────────────────────────────────────────────────────────


def environment() -> dict[str, str]:
    """Return the environment of what is run: programs installed beside this Python are found."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}


def run_lint() -> list[Result]:
    """Run the checks of the sources."""
    results = []
    for name, arguments in CHECKS:
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            code = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
        outcome = "failed" if code else "passed"
        results.append(Result(name, outcome, time.monotonic() - started))
    return results


def read_results(lines: Path) -> list[Result]:
    """Return what a part reported; the test that it was in when it ended has failed."""
    results: dict[str, Result] = {}
    if lines.exists():
        for line in lines.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                outcome, test, *rest = json.loads(line)
                if outcome == "start":
                    results[test] = Result(test, "failed", 0.0, "it did not end: it hung or took its process with it")
                else:
                    results[test] = Result(test, outcome, *rest)
    return list(results.values())


def wait_for(process: subprocess.Popen[bytes], lines: Path, silence: float) -> bool:
    """Wait for a part that reports to ``lines``; False if it was silent for so many seconds."""
    size, since = -1, time.monotonic()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
            return True
        now = lines.stat().st_size if lines.exists() else 0
        if now != size:
            size, since = now, time.monotonic()
        elif time.monotonic() - since > silence:
            return False


def stop(process: subprocess.Popen[bytes]) -> None:
    """Let pytest undo its fixtures; whatever remains is killed by end_leftovers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            process.send_signal(number)
            process.wait(CLEAN_UP)
            return


def run_tests(part: Part, arguments: Sequence[str], soak: bool) -> list[Result]:
    """Run a part's tests with these arguments of pytest: only those that run long, or all others."""
    # Without the limits of pyproject.toml.
    marked = ["-m", "soak", "--timeout=0", "-o", "faulthandler_timeout=0"] if soak else ["-m", "not soak"]
    if part.workers > 1 and not soak:
        marked.append(f"--numprocesses={part.workers}")
    others = [path for other in PARTS if other is not part for path in other.paths if path.startswith("tests/")]
    ignored = [f"--ignore={path}" for path in others if part.paths == ("tests",)]
    with work_directory() as directory:
        lines = directory / "lines"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "tools.report_plugin", "--report-lines", str(lines)]
        process = subprocess.Popen(
            [*command, *ignored, *marked, *arguments, *(path for path in part.paths if exists(path))],
            cwd=ROOT,
            env={**environment(), "TMPDIR": str(directory)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            reported = wait_for(process, lines, math.inf if soak else SILENCE)
        except BaseException:
            stop(process)
            end_leftovers(directory, 1)
            raise
        if not reported:
            # faulthandler then shows where each thread is.
            process.send_signal(signal.SIGABRT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        left = end_leftovers(directory, GRACE if reported else 0)
        results = read_results(lines)
    code = process.returncode
    if not reported:
        results.append(Result(f"{part.name}: the part", "failed", 0.0, f"nothing happened for {SILENCE:.0f} s"))
    elif left:
        results.append(Result(f"{part.name}: the part", "failed", 0.0, f"it left behind {'; '.join(left)}"))
    # 5: nothing was selected, which is as it should be only when somebody selects.
    if code and not any(result.outcome == "failed" for result in results) and not (code == 5 and (arguments or soak)):
        results.append(Result(f"{part.name}: the part", "failed", 0.0, f"pytest ended with {code}"))
    return results


def exists(path: str) -> bool:
    """Whether a path of the tree, perhaps with ``::test`` behind it, holds tests or is one."""
    found = ROOT / path.partition("::")[0]
    return found.is_file() or any(found.rglob("test_*.py"))


# ── telling ──────────────────────────────────────────────────────────────────────────────────────────────────────


def tell(outcomes: Sequence[Outcome]) -> int:
    """Print what happened; return the exit code."""
    results = [result for outcome in outcomes for result in outcome.results]
    by_outcome = {name: [r for r in results if r.outcome == name] for name in ("passed", "failed", "skipped")}
    print("\n── minutes ──")
    for outcome in outcomes:
        used = outcome.seconds / 60
        over = "  OVER ITS BUDGET" if used > outcome.part.budget else ""
        print(f"{outcome.part.name:16} {used:5.1f} of {outcome.part.budget:g}{over}")
    print(f"{'together':16} {sum(outcome.seconds for outcome in outcomes) / 60:5.1f}")
    print(f"\n── the {SLOWEST} slowest ──")
    for result in sorted(results, key=lambda result: -result.seconds)[:SLOWEST]:
        print(f"{result.seconds:7.1f} s  {result.test}")
    for name in ("skipped", "failed"):
        if by_outcome[name]:
            print(f"\n── {name} ──")
        for result in by_outcome[name]:
            print(f"{result.test}" + (f": {result.reason}" if result.reason else ""))
    strict = os.environ.get("CI", "").lower() not in ("", "0", "false")
    failed = bool(by_outcome["failed"])
    if strict and any(not result.reason.startswith(_NOT_HERE) for result in by_outcome["skipped"]):
        print("\nHere nothing else may be skipped (CI is set): this run has failed.")
        failed = True
    if not by_outcome["passed"] and not failed:
        print("\nNo test ran: this run has failed.")
        failed = True
    print("\n" + ", ".join(f"{len(found)} {name}" for name, found in by_outcome.items()))
    return int(failed)


def chosen_parts(names: Sequence[str] | None, arguments: list[str]) -> tuple[list[Part], list[str]]:
    """Return the parts to run and what is left of pytest's arguments."""
    paths = tuple(word for word in arguments if not word.startswith("-") and (ROOT / word.partition("::")[0]).exists())
    if paths:
        return [Part("chosen", 60, paths)], [word for word in arguments if word not in paths]
    # Who selects tests does not mean lint.
    parts = [part for part in (LINT, *PARTS) if (part.name in names if names else part is not LINT or not arguments)]
    return [part for part in parts if part is LINT or any(map(exists, part.paths))], arguments


def main() -> int:
    """Run what was asked for; return the exit code."""
    parser = argparse.ArgumentParser(description="Run the tests; other arguments go to pytest.", allow_abbrev=False)
    names = [part.name for part in (LINT, *PARTS)]
    parser.add_argument("--part", action="append", choices=names, help="only this part; may be repeated")
    parser.add_argument("--soak", action="store_true", help="only the tests that are marked as running long")
    options, rest = parser.parse_known_args()
    parts, arguments = chosen_parts(options.part, rest)
    if options.soak:
        parts = [part for part in parts if part is not LINT]
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    stop_on_signals()
    outcomes = []
    try:
        for part in parts:
            print(f"\n══ {part.name} ══", flush=True)
            outcome = Outcome(part)
            outcomes.append(outcome)
            started = time.monotonic()
            try:
                outcome.results = run_lint() if part is LINT else run_tests(part, arguments, options.soak)
            finally:
                outcome.seconds = time.monotonic() - started
    except Interrupted as interrupted:
        print(f"\nStopped by {interrupted}; what was started has ended.")
        tell(outcomes)
        return 130
    return tell(outcomes)


if __name__ == "__main__":
    sys.exit(main())
