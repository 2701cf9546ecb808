"""A pytest plugin that writes what happens to a file as it happens, one JSON array a line.

    ["start", test]
    ["passed"|"failed"|"skipped", test, seconds, reason]

It is written line by line so that a run that is killed still tells which test it was in. Used by tools/run_tests.py:
``-p tools.report_plugin --report-lines FILE``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

import pytest

#: Characters of a failure's message.
_MOST = 400


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names the file."""
    parser.addoption("--report-lines", type=Path, metavar="FILE", help="write what happens to FILE")


def pytest_configure(config: pytest.Config) -> None:
    """Start writing if a file was named."""
    path: Path | None = config.getoption("--report-lines")
    # Of several processes the one that hands the tests out writes.
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Lines(path.open("w", encoding="utf-8", buffering=1)), "report-lines")


class _Lines:
    """Writes the lines of one run."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        #: Of each test that runs: its seconds, outcome and reason.
        self._running: dict[str, tuple[float, str, str]] = {}

    def _write(self, *line: object) -> None:
        self._file.write(json.dumps(line) + "\n")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._running[nodeid] = (0.0, "passed", "")
        self._write("start", nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # One that took its process with it is reported without having begun.
        seconds, outcome, reason = self._running.get(report.nodeid, (0.0, "passed", ""))
        if report.failed:
            outcome, reason = "failed", f"in {report.when}{_failure(report)}"
        elif report.skipped and outcome == "passed":
            outcome, reason = "skipped", _skip_reason(report)
        self._running[report.nodeid] = (seconds + report.duration, outcome, reason)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        seconds, outcome, reason = self._running.pop(nodeid)
        self._write(outcome, nodeid, seconds, reason)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write("failed", report.nodeid, 0.0, "in collection")
        elif report.skipped:
            self._write("skipped", report.nodeid, 0.0, _skip_reason(report))

    def pytest_unconfigure(self) -> None:
        self._file.close()


def _failure(report: pytest.TestReport) -> str:
    """Return where a test failed and with what, in a line or two: of a long run often only the end is kept."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is None:
        return ""
    entries = getattr(getattr(report.longrepr, "reprtraceback", None), "reprentries", [])
    places = [place for entry in entries if (place := getattr(entry, "reprfileloc", None)) is not None]
    line = places[0].lineno if places else crash.lineno
    message = " ".join(crash.message.split())
    return f", line {line}: {message[:_MOST]}{'…' if len(message) > _MOST else ''}"


def _skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    expected_failure = getattr(report, "wasxfail", None)
    if expected_failure is not None:
        return f"expected to fail: {expected_failure}"
    place = report.longrepr
    return place[2].removeprefix("Skipped: ") if isinstance(place, tuple) else str(place)
