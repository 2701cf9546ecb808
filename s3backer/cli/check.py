"""``s3backer check``: read and verify a whole volume, and repair what can be repaired."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import click

from s3backer.checking.findings import KINDS
from s3backer.checking.repair import OF_METADATA, Repair, not_repaired, perform, repairs
from s3backer.checking.run import Check, CheckOptions
from s3backer.checking.subject import find_subject
from s3backer.cli.check_report import Repairs, print_json, print_text
from s3backer.cli.common import Target, options, progress, with_password
from s3backer.config import BLOCK_SIZE, ENCODING, HASH, PRICES, SIZE, Option, volume_options, whole
from s3backer.errors import CorruptObject, StoreError, UsageError
from s3backer.hints import check_command, unmount_command
from s3backer.logs import state_directory
from s3backer.telemetry.prices import CURRENT, Prices, dollars
from s3backer.units import format_size

_RESUME = Option("--resume", "resume", "Go on with a check that was interrupted.")
_REPAIR = Option("--repair", "repair", "Repair what can be repaired, after saying what that is and asking.")
_YES = Option("--yes", "yes", "Repair without asking.")
_THREADS = Option("--threads", "threads", "Objects at once. [16]", whole(1, 1000), "N")
_JSON = Option("--json", "as_json", "Print JSON.")
_DEFAULT_THREADS = 16
#: What reading needs; the rest says how blocks are written.
_READING = tuple(option for option in ENCODING if option.name not in ("compress", "compress_level"))


@click.command("check")
@click.argument("url")
@options(_RESUME, _REPAIR, _YES, _THREADS, _JSON, SIZE, BLOCK_SIZE, HASH, *_READING, PRICES)
def command(url: str, **values: Any) -> int:
    """Read every object of the volume at URL, verify it, and tell what is wrong.

    Nothing is written to the bucket, and the volume may be mounted. The exit code is 0 where there is no problem, 8
    where there is one, 3 where the only one is that objects cannot be read. Interrupted, it goes on with --resume.

    With --repair it says after that exactly what it would do, asks, and does it; not to a volume that is mounted.
    Damaged blocks are never replaced.

    Example: s3backer check s3://my-bucket/disk --password-file secret
    """
    if values["yes"] and not values["repair"]:
        raise UsageError("--yes is about repairing", hint="Give --repair too, or leave it out.")
    with Target(url, values) as target:
        if values["repair"]:
            target.refuse_if_served(f"Unmount it first: {unmount_command(str(target.url))}")
        daemon = target.ask("info")
        subject = find_subject(
            target.store,
            target.url.prefix,
            volume_options(with_password(values)),
            served_here=str(daemon["mountpoint"]) if daemon else "",
        )
        if values["repair"] and subject.token is not None:
            raise subject.in_use(subject.token)
        wanted = CheckOptions(
            threads=values["threads"] or _DEFAULT_THREADS,
            state=state_directory() / f"check-{target.id}",
            resume=bool(values["resume"]),
            ended_too=bool(values["repair"]),
        )
        with Check(subject, wanted) as check:
            return _Command(target, check, values).run()


class _Command:
    """What is said and asked around a check."""

    def __init__(self, target: Target, check: Check, values: dict[str, Any]) -> None:
        self._url = str(target.url)
        self._check = check
        self._values = values
        self._prices: Prices = values["prices"] or CURRENT
        self._out = sys.stderr if values["as_json"] else sys.stdout

    def run(self) -> int:
        """Check, tell, repair; return the exit code."""
        self._read()
        state = self._check.state
        if not self._values["as_json"]:
            print_text(self._url, self._check, self._prices)
        done = self._repair() if self._values["repair"] else None
        if self._values["as_json"]:
            print_json(self._url, self._check, self._prices, done)
        left = {kind for kind, count in state.counts.kinds.items() if count and KINDS[kind].problem}
        if done is not None:
            left = {kind for kind in left if state.counts.kinds[kind] > done.done[kind]}
        if done is None and next(self._planned(), None) is not None:
            if state.path is not None and not self._values["as_json"]:
                print(f"some of it can be repaired: {check_command(self._url, '--repair', '--resume')}")
        elif done is None or done.performed or not done.planned:
            state.discard()
        if left == {"unreadable"}:
            return StoreError.exit_code
        return CorruptObject.exit_code if left else 0

    def _read(self) -> None:
        check = self._check
        if check.state.ended is not None:
            print(f"taking over the check that ended at {check.state.ended}", file=self._out)
            return
        try:
            with progress("listing objects"):
                objects = check.count()
            self._announce(objects)
            with progress("checking") as show:
                check.run(show)
        except KeyboardInterrupt:
            if check.state.path is not None:
                print(f"go on with: {check_command(self._url, '--resume')}", file=sys.stderr)
            raise

    def _announce(self, objects: int) -> None:
        """Say what it takes, before it is done."""
        check, layout = self._check, self._check.subject.layout
        if check.resumed:
            done = check.state.counts.objects
            print(f"going on with the check that began at {check.state.begun}: {done} are read", file=self._out)
        what = f"{format_size(layout.size)} in blocks of {format_size(layout.block_size)}"
        cost = dollars(objects * self._prices.get / 1000)
        place = "in a bucket " if self._url.startswith("file:") else ""
        reading = f"{objects} objects to read, {place}about {cost}"
        print(f"checking {self._url}: {what}, {reading}", file=self._out, flush=True)

    def _planned(self) -> Iterator[Repair]:
        return repairs(self._check.subject, self._check.state.findings(), size_said=self._values["size"] is not None)

    def _repair(self) -> Repairs:
        """Say what would be done, and do it if that is wanted."""
        result = Repairs()
        for repair in self._planned():
            if not result.planned:
                print("what would be done:", file=self._out)
            result.planned += 1
            print(f"  {repair.text}", file=self._out)
        kinds = (kind for kind, count in self._check.state.counts.kinds.items() if count)
        for text in not_repaired(self._check.subject, kinds, size_said=self._values["size"] is not None):
            print(f"not repaired: {text}", file=self._out)
        if not result.planned:
            print("there is nothing to repair", file=self._out)
            return result
        if not self._confirmed():
            return result
        result.performed = True

        def done(repair: Repair, why: str) -> None:
            if why:
                result.failed[repair.key] = why
                print(f"not done: {repair.text}: {why}", file=self._out)
            elif repair.finding.kind in OF_METADATA:
                # One object, whatever was wrong with it.
                for kind in OF_METADATA:
                    result.done[kind] = self._check.state.counts.kinds[kind]
            else:
                result.done[repair.finding.kind] += 1

        perform(self._check.subject, self._planned(), done)
        print(f"repaired: {result.planned - len(result.failed)} of {result.planned}", file=self._out)
        return result

    def _confirmed(self) -> bool:
        if self._values["yes"]:
            return True
        if self._values["as_json"] or not sys.stdin.isatty():
            print("nothing was changed: to do this, run it with --repair --resume --yes", file=self._out)
            return False
        if input("Do this? [y/N] ").strip().lower() in ("y", "yes"):
            return True
        print("nothing was changed", file=self._out)
        return False
