"""``s3backer info``: what is known about a volume."""

from __future__ import annotations

import json
import socket
from datetime import UTC, datetime
from typing import Any

import click

from s3backer.admin import inspect_volume
from s3backer.cli.common import Target, options, why_not_stored
from s3backer.config import HASH, Option
from s3backer.control.asking import Found, find_daemons
from s3backer.layouts.token import way_on
from s3backer.telemetry.prices import dollars
from s3backer.units import format_size

_JSON = Option("--json", "as_json", "Print JSON.")
_COUNT = Option("--count", "count", "List the volume and count its objects and their bytes.")


@click.command("info")
@click.argument("url")
@options(_JSON, _COUNT, HASH)
def command(url: str, **values: Any) -> None:
    """Show what is known about the volume at URL: size, blocks, who has it mounted.

    For a volume that is mounted on this host also the requests so far and what they cost.
    """
    with Target(url, values) as target:
        daemons = find_daemons(target.id)
        daemon = daemons[0].facts if daemons else None
        # The daemon knows more than the bucket says, and answers while the store is away.
        facts = (
            inspect_volume(
                target.store,
                target.url.prefix,
                block_hash_prefix=bool(values["block_hash_prefix"]),
                count=bool(values["count"]),
            )
            if daemon is None or values["count"]
            else None
        )
    known: dict[str, Any] = {"url": str(target.url)}
    way = way_on(str(target.url), facts.token) if facts is not None and facts.token is not None else ""
    if facts is not None:
        known |= {"size": facts.size, "block_size": facts.block_size, "mounted": facts.token is not None}
        if facts.content_encoding:
            known["content_encoding"] = facts.content_encoding
        if facts.token is not None:
            known |= {"mounted_by": facts.token.host, "mounted_at": facts.token.time}
            if facts.token.journal:
                known["journal"] = {"directory": facts.token.journal}
        if facts.objects is not None:
            known |= {"objects": facts.objects, "stored_bytes": facts.stored}
    if daemon is not None:
        known |= {name: value for name, value in daemon.items() if name != "volume"}
        opened = datetime.fromtimestamp(float(str(daemon["opened"])), UTC)
        known |= {"mounted": True, "mounted_by": socket.gethostname(), "mounted_at": opened.strftime("%Y%m%dT%H%M%SZ")}
    if daemons[1:]:
        seen = ("mountpoint", "pid", "lost", "read_only")
        known["other_mounts"] = [{fact: other.facts.get(fact) for fact in seen} for other in daemons[1:]]
    print(json.dumps(known, indent=2) if values["as_json"] else _text(known, way))


def _journal_text(facts: dict[str, Any] | None) -> str:
    if facts is None:
        return "none"
    if facts["failure"]:
        return f"has failed: {facts['failure']}"
    left = f"; {facts['left']} blocks are in it only" if facts.get("left") else ""
    less = f", room for {format_size(facts['limit'])}" if facts.get("limit", facts["bytes"]) < facts["bytes"] else ""
    return f"{facts['fill']:.0%} of {format_size(facts['bytes'])} in use{less}, {facts['directory']}{left}"


def _text(known: dict[str, Any], way: str) -> str:
    """Return it in lines; ``way``: what to run if a mount that is not served here has died."""
    lines = [
        ("volume", known["url"]),
        ("size", f"{format_size(known['size'])} ({known['size']} bytes)"),
        ("block size", format_size(known["block_size"])),
    ]
    if "content_encoding" in known:
        lines.append(("encoding", known["content_encoding"]))
    if "pid" in known:
        here = f"here on {known['mountpoint']} by process {known['pid']} since {known['mounted_at']}"
        lines.append(("mounted", f"{here}, which is about to end" if known.get("ending") else here))
        for other in known.get("other_mounts", ()):
            lines.append(("another mount", Found("", other).describe()))
        lines.append(("not stored yet", f"{known['unsaved_blocks']} blocks"))
        if known.get("writers", "go on") != "go on":
            lines.append(("writers", known["writers"]))
        if (why := why_not_stored(known)) is not None:
            lines.append(why)
        lines.append(("journal", _journal_text(known.get("journal"))))
        if known.get("lazy_fsync"):
            lines.append(("fsync", "lazy: says yes and does nothing"))
        if (cache := known.get("disk_cache")) is not None:
            state = f"off: {cache['failure']}" if cache["failure"] else f"{format_size(cache['used'])} in use"
            if not cache["failure"] and cache["limit"] < cache["size"] // 100 * 99:
                state += f", room for {format_size(cache['limit'])}"
            lines.append(("disk cache", f"{state} of {format_size(cache['size'])}, {cache['path']}"))
        for kind, counts in known["requests"].items():
            if counts["requests"]:
                lines.append((f"{kind} requests", f"{counts['requests']}, of them failed {counts['failures']}"))
        if known.get("hedged_requests"):
            lines.append(("asked twice", f"{known['hedged_requests']} slow reads"))
        # In a directory requests cost nothing; the figure says what the same work would cost in a bucket.
        name = "cost in a bucket" if known["url"].startswith("file:") else "cost so far"
        lines.append((name, f"{dollars(known['cost'])} for requests, by prices of {known['prices_as_of']}"))
        if known.get("cost_per_month") is None:
            lines.append(("a month", "too early to say"))
        else:
            lines.append(("a month", f"{dollars(known['cost_per_month'])} at this rate"))
        if known.get("stored_cost_per_month") is not None:
            lines.append(("storage", f"at most {dollars(known['stored_cost_per_month'])} a month"))
        if known.get("budget") is not None:
            state = "used up, write-back is slowed down" if known["write_delay_factor"] > 1 else "kept"
            lines.append(("budget", f"{dollars(known['budget'])} a month, {state}"))
    elif known["mounted"]:
        lines.append(("mounted", f"by {known['mounted_by'] or 'an unknown host'} since {known['mounted_at'] or '?'}"))
        if "journal" in known:
            lines.append(("journal", f"in {known['journal']['directory']} there. If that mount has died: {way}"))
    else:
        lines.append(("mounted", "no"))
    if "objects" in known:
        lines.append(("objects", f"{known['objects']} with {format_size(known['stored_bytes'])}"))
    return "\n".join(f"{name + ':':<18}{value}" for name, value in lines)
