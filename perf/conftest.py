"""What the benchmarks share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from perf.side_by_side import Report


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Iterator[Report]:
    collected = Report()
    yield collected
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        collected.write()
