"""``s3backer advise``: the table, JSON, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import Run


def test_the_table_of_the_published_figure(run: Run) -> None:
    done = run("advise", "--written", "50GiB", "--prices", "2010")
    assert done.code == 0
    first = next(line for line in done.out.splitlines() if line.split()[:1] == ["4"])
    assert "13,107,200" in first and "$131.07" in first and "1.00 times" in first and "$8.05" in first
    assert "log, planned" in done.out and "By prices of 2010." in done.out


def test_the_example_of_its_help(run: Run) -> None:
    words = run("advise", "--help").out.partition("Example: s3backer ")[2].partition("\n\n")[0].split()
    assert words[:2] == ["advise", "--written"]
    assert run(*words).code == 0


def test_json_and_a_table_of_ones_own(run: Run, tmp_path: Path) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text('as_of = "x"\nput = 1000\n')
    trace = tmp_path / "trace"
    trace.write_text("0 0 8192 w\n")
    done = run("advise", "--trace", str(trace), "--prices", str(prices), "--json")
    facts = json.loads(done.out)
    assert facts[0]["block_size"] == 4096
    assert (facts[0]["puts"], facts[0]["requests_cost"], facts[0]["prices_as_of"]) == (2, 2.0, "x")
    assert facts[-1]["layout"] == "log"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "nothing is written or read"),
        (["--written", "much"], "much"),
        (["--written", "1GiB", "--prices", "1999"], "1999 cannot be read"),
        (["--trace", "/none"], "/none cannot be read"),
        (["--trace", "/none", "--random"], "--trace and --random exclude each other"),
        (["--written", "1GiB", "--flush-every", "0"], "'0'"),
        (["--written", "1PiB", "--size", "1MiB"], "more than 1,000,000 writes"),
        (["--written", "100TiB", "--flush-every", "1MiB"], "more than 1,000,000 writes"),
    ],
)
def test_what_is_refused(run: Run, words: list[str], problem: str) -> None:
    done = run("advise", *words)
    assert done.code == 2
    assert problem in done.err and "Traceback" not in done.err
    assert len(done.err.splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--budget", "5"], "is no budget"),
        (["--prices", "/none"], "cannot be read"),
        (["--upload-limit", "0"], "is no size"),
        (["--retry-time", "soon"], "seconds"),
    ],
)
def test_what_mount_refuses(run: Run, tmp_path: Path, words: list[str], problem: str) -> None:
    done = run("mount", f"file://{tmp_path}", str(tmp_path), *words)
    assert done.code == 2
    assert problem in done.err and "Traceback" not in done.err
