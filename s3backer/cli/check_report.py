"""What a check found, as text and as JSON.

The JSON document is written as it is made: however many findings there are, one is in memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from s3backer.checking.findings import KINDS, MEANS, Finding
from s3backer.checking.run import Check
from s3backer.telemetry.prices import Prices, dollars
from s3backer.units import format_size

#: Findings of one kind that are printed in full as text.
_MOST = 100


@dataclass(slots=True)
class Repairs:
    """What became of a plan. ``done`` by kind of finding; ``failed``: why, by key."""

    planned: int = 0
    performed: bool = False
    done: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)


def print_text(url: str, check: Check, prices: Prices) -> None:
    """Print findings, problems first, and the summary."""
    counts, block_size = check.state.counts, check.subject.layout.block_size
    for kind, facts in sorted(KINDS.items(), key=lambda item: not item[1].problem):
        if not counts.kinds[kind]:
            continue
        print(f"\n{'problem' if facts.problem else 'note'}: {kind} ({counts.kinds[kind]})")
        for finding in _first(check.state.findings(), kind):
            print(f"  {readable(finding.key) + ': ' if finding.key else ''}{finding.what}")
            print(f"    {finding.means(block_size)}")
        if counts.kinds[kind] > _MOST:
            print(f"  and {counts.kinds[kind] - _MOST} more; --json names them")
    print()
    for name, value in _summary(url, check, prices):
        print(f"{name:<14}{value}")


def readable(key: str) -> str:
    """Return a key fit for a terminal: what would move the cursor, or look like another line, is escaped."""
    return key if key.isprintable() else repr(key)


def _first(findings: Iterable[Finding], kind: str) -> Iterator[Finding]:
    left = _MOST
    for finding in findings:
        if finding.kind == kind:
            yield finding
            left -= 1
        if not left:
            return


def _summary(url: str, check: Check, prices: Prices) -> Iterator[tuple[str, str]]:
    counts, subject = check.state.counts, check.subject
    yield "checked", f"{url}, from {check.state.begun} to {check.state.ended}"
    yield "objects", f"{counts.objects} with {format_size(counts.stored)}"
    for means, text in MEANS.items():
        if counts.verified[means]:
            yield "verified", f"{counts.verified[means]} blocks by {text}"
    if subject.locked is not None:
        yield "", f"no signature could be verified: that needs the password ({subject.locked.name})"
    for encoding, count in sorted(counts.encodings.items()):
        yield "encoding", f"{encoding or 'plain'}: {count} blocks"
    requests = counts.request_counts()
    yield "requests", ", ".join(f"{one.requests} {kind}" for kind, one in requests.items() if one.requests)
    name = "cost in a bucket" if url.startswith("file:") else "cost"
    yield "", f"{name}: {dollars(sum(prices.of_requests(requests).values()))}, by prices of {prices.as_of}"
    problems = [f"{count} {kind}" for kind, count in counts.kinds.items() if count and KINDS[kind].problem]
    yield "problems", f"{counts.problems}: {', '.join(problems)}" if problems else "none"


def print_json(url: str, check: Check, prices: Prices, repairs: Repairs | None) -> None:
    """Print one document with everything."""
    state, layout = check.state, check.subject.layout
    token = check.subject.token
    requests = state.counts.request_counts()
    known: dict[str, Any] = {
        "url": url,
        "size": layout.size,
        "block_size": layout.block_size,
        "content_encoding": check.subject.encoding,
        "signatures_verified": check.subject.codec.cipher is not None,
        "mounted": token is not None,
        **({"mounted_by": token.host, "mounted_at": token.time} if token is not None else {}),
        "began": state.begun,
        "ended": state.ended,
        "problems": state.counts.problems,
        **state.counts.facts(),
        "requests": {kind: one.requests for kind, one in requests.items()},
        "cost": sum(prices.of_requests(requests).values()),
        "prices_as_of": prices.as_of,
    }
    if repairs is not None:
        known["repairs"] = {
            "planned": repairs.planned,
            "performed": repairs.performed,
            "done": repairs.done,
            "failed": repairs.failed,
        }
    print(json.dumps(known, indent=2).removesuffix("\n}") + ',\n  "findings": [', end="")
    separator = "\n"
    for finding in state.findings():
        print(f"{separator}    {json.dumps(finding.facts(layout.block_size))}", end="")
        separator = ",\n"
    print("\n  ]\n}")
