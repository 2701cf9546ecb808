"""``s3backer advise``: what a workload would cost with each block size and layout."""

from __future__ import annotations

import json
from typing import Any

import click

from s3backer.cli.common import options
from s3backer.config import PRICES, Option, positive_size, seconds
from s3backer.errors import UsageError
from s3backer.telemetry.advice import BLOCK_SIZES, Estimate, Workload, estimate, make_workload, read_trace
from s3backer.telemetry.prices import CURRENT, Prices, dollars
from s3backer.units import format_size

_OPTIONS = (
    Option("--written", "written", "Bytes that are written in all.", positive_size, "SIZE"),
    Option(
        "--size",
        "size",
        "Bytes that they are written to: if fewer, again and again. [--written]",
        positive_size,
        "SIZE",
    ),
    Option("--random", "random", "They are written in random order. [one after the other]"),
    Option("--write-size", "write_size", "Size of one write. [4KiB random, 1MiB in order]", positive_size, "SIZE"),
    Option("--flush-every", "flush_every", "A flush after so many bytes. [at the end]", positive_size, "SIZE"),
    Option("--read", "read", "Bytes that are read.", positive_size, "SIZE"),
    Option("--trace", "trace", "Replay this file: lines of seconds, offset, length, and r, w or f.", str, "FILE"),
    Option("--write-delay", "delay", "Longest time a written block waits, for a trace. [5]", seconds, "SECONDS"),
    PRICES,
    Option("--json", "as_json", "Print JSON."),
)


@click.command("advise")
@options(*_OPTIONS)
def command(**values: Any) -> None:
    """Tell what a workload would cost with each block size, and how much it would write.

    The workload is described by its sizes, or recorded in a file. The log layout is not there yet.

    Example: s3backer advise --written 50GiB --random --write-size 16KiB --flush-every 1MiB
    """
    prices: Prices = values["prices"] or CURRENT
    workload = _workload(values)
    if not any(step.kind in "rw" and step.length for step in workload.steps):
        raise UsageError("nothing is written or read in this workload", hint="Give --written or --trace.")
    delay = 5.0 if values["delay"] is None else values["delay"]
    found = [estimate(workload, size, delay=delay) for size in (*BLOCK_SIZES, None)]
    print(json.dumps([_facts(one, prices) for one in found], indent=2) if values["as_json"] else _table(found, prices))


def _workload(values: dict[str, Any]) -> Workload:
    if values["trace"] is not None:
        given = [name for name in ("written", "size", "random", "write_size", "flush_every", "read") if values[name]]
        if given:
            raise UsageError(f"--trace and --{given[0].replace('_', '-')} exclude each other", hint="Give one of them.")
        try:
            with open(values["trace"], encoding="utf-8") as file:
                return read_trace(file, values["trace"])
        except OSError as error:
            raise UsageError(f"{values['trace']} cannot be read: {error.strerror}", hint="Give a trace.") from None
        except UnicodeDecodeError:
            raise UsageError(f"{values['trace']} is no text", hint="Give a trace.") from None
    sequential = not values["random"]
    written = values["written"] or 0
    size = values["size"] or written or 1
    write_size = values["write_size"] or (1 << 20 if sequential else 4096)
    if write_size > size and written:
        write_size = size
    return make_workload(
        written=written,
        size=size,
        write_size=write_size,
        sequential=sequential,
        flush_every=values["flush_every"],
        read=values["read"] or 0,
    )


def _facts(one: Estimate, prices: Prices) -> dict[str, Any]:
    return {
        "layout": "log" if one.block_size is None else "classic",
        "block_size": one.block_size,
        "puts": round(one.puts),
        "gets": round(one.gets),
        "sent_bytes": round(one.sent),
        "amplification": round(one.amplification, 3),
        "requests_cost": one.requests_cost(prices),
        "storage_cost_per_month": one.storage_cost(prices),
        "prices_as_of": prices.as_of,
    }


def _table(found: list[Estimate], prices: Prices) -> str:
    rows = [("blocks", "PUTs", "GETs", "requests cost", "written", "a month's storage")]
    for one in found:
        rows.append(
            (
                "log, planned" if one.block_size is None else format_size(one.block_size),
                f"{one.puts:,.0f}",
                f"{one.gets:,.0f}",
                dollars(one.requests_cost(prices)),
                f"{one.amplification:.2f} times",
                dollars(one.storage_cost(prices)),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([*lines, f"By prices of {prices.as_of}. Reads are counted as if nothing of them was cached."])
