"""Draws what the suites left in ``perf/results``: ``python -m perf.charts``. Needs matplotlib; without it says so."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from perf.rivals import TUNED
from perf.side_by_side import RESULTS

#: Each program's colour, and what the legend calls it.
_PROGRAMS = {
    "ours": ("#1b6ca8", "ours"),
    "direct": ("#63a4d4", "ours, --direct-io"),
    "lazy": ("#63a4d4", "ours, --fsync=lazy"),
    "defaults": ("#c8c8c8", "the original"),
    "tuned": ("#8a8a8a", "the original, tuned"),
    "s3fs": ("#e9c46a", "s3fs"),
    "rclone": ("#f4a261", "rclone mount"),
    "juicefs": ("#8ab17d", "JuiceFS"),
}


def relative(workload: dict[str, Any], program: str) -> tuple[float, float, float]:
    """Return a program's median beside that of the tuned original, and the lowest and highest of its rounds."""
    values = {figure["program"]: figure["values"] for figure in workload["figures"]}
    yardstick = statistics.median(values[TUNED])
    mine = [value / yardstick for value in values[program]]
    return statistics.median(mine), min(mine), max(mine)


def draw(suite: dict[str, Any], path: Path) -> None:
    """Draw a suite's workloads as bars, with the targets as marks."""
    from matplotlib.figure import Figure

    workloads = suite["workloads"][::-1]
    figure = Figure(figsize=(9, 1 + 0.75 * len(workloads)), layout="constrained")
    axes = figure.subplots()
    programs = [figure["program"] for figure in workloads[0]["figures"]]
    thick = 0.8 / len(programs)
    for number, program in enumerate(programs):
        found = [relative(workload, program) for workload in workloads]
        at = [place + ((len(programs) - 1) / 2 - number) * thick for place in range(len(workloads))]
        middle = [one[0] for one in found]
        spread = [[one[0] - one[1] for one in found], [one[2] - one[0] for one in found]]
        colour, label = _PROGRAMS[program]
        axes.barh(at, middle, thick, xerr=spread, color=colour, label=label, ecolor="#404040")
    for place, workload in enumerate(workloads):
        if workload["target"] is not None:
            label = "target" if place == 0 else ""
            axes.vlines(workload["target"], place - 0.45, place + 0.45, colors="#d1495b", linestyles="--", label=label)
    axes.set_yticks(range(len(workloads)), [workload["name"] for workload in workloads])
    axes.set_xlabel("times as fast as the tuned original, median and range of the rounds")
    figure.legend(loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(path, format="svg", metadata={"Date": None})


def main(directory: Path = RESULTS) -> int:
    """Draw every suite that has results; return the exit code."""
    try:
        import matplotlib
    except ImportError:
        print("no charts: matplotlib is not installed: pip install matplotlib", file=sys.stderr)
        return 0
    matplotlib.rcParams["svg.hashsalt"] = "s3backer"
    for path in sorted(directory.glob("*.json")):
        suite = json.loads(path.read_text())
        if isinstance(suite, dict) and "workloads" in suite:
            draw(suite, path.with_suffix(".svg"))
            print(path.with_suffix(".svg"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
