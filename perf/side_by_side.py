"""Comparing things fairly: interleaved rounds in one run, medians, and the ratio with its spread."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
ROUNDS = 7


@dataclass(frozen=True)
class Ratio:
    """How fast ``what`` is beside ``yardstick``: above 1 is faster. ``target`` is what it should reach."""

    what: str
    yardstick: str
    ratio: float
    lowest: float
    highest: float
    target: float | None
    unit: str = "times as fast"

    def line(self) -> str:
        """Return it as a row of a Markdown table."""
        target = "" if self.target is None else f"{self.target:g}"
        return (
            f"| {self.what} | {self.yardstick} | {self.ratio:.2f} ({self.lowest:.2f} to {self.highest:.2f}) "
            f"{self.unit} | {target} |"
        )


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Run every contender once per round, after one round to warm up; return the seconds of each round."""
    for run in contenders.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        # The order changes, so that nobody always follows the same neighbour.
        names = list(contenders)[number % len(contenders) :] + list(contenders)[: number % len(contenders)]
        for name in names:
            started = clock()
            contenders[name]()
            times[name].append(clock() - started)
    return times


def compare(times: Mapping[str, list[float]], ours: str, yardsticks: list[str], target: float | None) -> Ratio:
    """Return our ratio to the fastest of the yardsticks, by medians; the spread is that of the single rounds."""
    best = min(yardsticks, key=lambda name: statistics.median(times[name]))
    rounds = [theirs / mine for theirs, mine in zip(times[best], times[ours], strict=True)]
    ratio = statistics.median(times[best]) / statistics.median(times[ours])
    return Ratio(ours, best, ratio, min(rounds), max(rounds), target)


class Report:
    """Collects results and writes them as JSON and as a Markdown table."""

    def __init__(self) -> None:
        self.ratios: list[Ratio] = []

    def add(self, ratio: Ratio) -> None:
        """Keep one result and show it."""
        self.ratios.append(ratio)
        print(ratio.line())

    def write(self, directory: Path = RESULTS) -> None:
        """Write ``ratios.json`` and ``ratios.md``."""
        if not self.ratios:
            return
        directory.mkdir(exist_ok=True)
        (directory / "ratios.json").write_text(json.dumps([asdict(ratio) for ratio in self.ratios], indent=1) + "\n")
        head = "| what | beside | measured | at least / at most |\n|---|---|---|---|\n"
        table = head + "".join(f"{ratio.line()}\n" for ratio in self.ratios)
        (directory / "ratios.md").write_text(table)
        print(f"\n{table}")
