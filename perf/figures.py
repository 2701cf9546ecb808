"""What a suite measures of each program: every round's speed, processor time per request, peak memory.

``NAME.json`` holds the rounds, ``NAME.md`` a table of medians; ``python -m perf.charts`` draws the JSON.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from perf.fio import Done
from perf.rivals import OURS, TUNED, Rival
from perf.side_by_side import RESULTS, Ratio

ROUNDS = 5
#: MiB that the daemon may need beside its budget.
ALLOWANCE = 64


@dataclass
class Figure:
    """One program at one workload. ``values``: of each round, more is better; ``cpu``: µs of the daemon per request."""

    program: str
    values: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak: float = 0.0


@dataclass
class Workload:
    """One workload and what every program reached. ``target``: the least ratio to the tuned original of ``judged``."""

    name: str
    unit: str
    target: float | None
    figures: list[Figure]
    judged: str = OURS

    def ratio(self, rival: str, ours: str = OURS) -> Ratio:
        """Return our ratio to a rival by medians; its spread is that of the single rounds."""
        mine, theirs = (next(f.values for f in self.figures if f.program == name) for name in (ours, rival))
        rounds = [a / b for a, b in zip(mine, theirs, strict=True)]
        ratio = statistics.median(mine) / statistics.median(theirs)
        target = self.target if ours == self.judged else None
        what = self.name if ours == OURS else f"{self.name}, {ours}"
        return Ratio(what, f"the original, {rival}", ratio, min(rounds), max(rounds), target)


class Suite:
    """Collects workloads and writes them after each one, so that an interrupted run leaves something."""

    def __init__(self, name: str, directory: Path = RESULTS) -> None:
        self.name = name
        self.workloads: list[Workload] = []
        self._directory = directory

    def add(self, workload: Workload) -> None:
        """Keep a workload, show it and write everything."""
        self.workloads.append(workload)
        print("\n" + "".join(line + "\n" for line in rows(workload)))
        self._directory.mkdir(exist_ok=True)
        (self._directory / f"{self.name}.json").write_text(
            json.dumps({"suite": self.name, "workloads": [asdict(one) for one in self.workloads]}, indent=1) + "\n"
        )
        (self._directory / f"{self.name}.md").write_text(table(self.workloads))


HEAD = (
    "| workload | program | median (lowest to highest) | times the tuned original (rounds) | at least "
    "| CPU per request | peak memory |\n|---|---|---|---|---|---|---|\n"
)


def rows(workload: Workload) -> list[str]:
    """Return a workload's rows of the Markdown table."""
    lines = []
    for figure in workload.figures:
        values = figure.values
        beside = workload.ratio(TUNED, figure.program)
        spread = f"{beside.ratio:.2f} ({beside.lowest:.2f} to {beside.highest:.2f})"
        target = f"{workload.target:g}" if beside.target is not None else ""
        cpu = f"{statistics.median(figure.cpu):.1f} µs" if figure.cpu else ""
        lines.append(
            f"| {workload.name} | {figure.program} | {statistics.median(values):.0f} {workload.unit} "
            f"({min(values):.0f} to {max(values):.0f}) | {spread} | {target} | {cpu} | {figure.peak:.0f} MiB |"
        )
    return lines


def table(workloads: Sequence[Workload]) -> str:
    """Return the Markdown table."""
    return HEAD + "".join(line + "\n" for workload in workloads for line in rows(workload))


def memory(workload: Workload, budget: int) -> Ratio:
    """Return how far our peak is above the budget of ``budget`` bytes; at most 64 MiB are allowed."""
    peak = next(figure.peak for figure in workload.figures if figure.program == OURS)
    above = peak - budget / (1 << 20)
    what = f"budget of {budget >> 20} MiB"
    return Ratio(f"peak memory, {workload.name}", what, above, above, above, ALLOWANCE, unit="MiB above it")


def side_by_side(
    name: str,
    rivals: Mapping[str, Rival],
    run: Callable[[str], Done],
    *,
    target: float | None,
    unit: str,
    writes: bool,
    rounds: int = ROUNDS,
) -> Workload:
    """Let every program do ``run(program)`` once a round, in changing order.

    ``unit``: "MB/s", or requests a second. After ``writes`` the program's write-back is waited for, and its
    processor time counts.
    """
    figures = {program: Figure(program) for program in rivals}
    names = list(rivals)
    for number in range(rounds):
        for program in names[number % len(names) :] + names[: number % len(names)]:
            rival, figure = rivals[program], figures[program]
            before = rival.cpu()
            done = run(program)
            if writes:
                rival.settle()
            figure.values.append(done.bytes_per_second / 1e6 if unit == "MB/s" else done.per_second)
            figure.cpu.append((rival.cpu() - before) / max(1, done.requests) * 1e6)
    for program, rival in rivals.items():
        figures[program].peak = rival.peak()
    return Workload(name, unit, target, list(figures.values()))
