"""What requests and storage cost, by dated tables: Amazon's now, Amazon's of 2010, or one of the user's own.

Source: the public price lists of Amazon S3, Standard class, us-east-1 (US Standard), smallest amounts. Traffic out of
AWS costs more ($0.09 a GB now, $0.15 in 2010); it is 0 here because it costs nothing inside a region, and a table
of one's own can say otherwise. A table is a TOML file with any of the fields of ``Prices``:

    as_of = "2026-11"
    put = 0.0055          # dollars per 1000 requests; also list, get, head, delete
    storage = 0.024       # dollars per GB (10**9 bytes) and month; also sent, received: per GB
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from s3backer.errors import UsageError
from s3backer.telemetry.requests import KINDS, RequestCount

GB = 10**9
MONTH = 30.4375 * 86400


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars: per 1000 requests of each kind, per GB and month stored, per GB sent to S3 and received from it."""

    as_of: str
    put: float = 0.0
    list: float = 0.0
    get: float = 0.0
    head: float = 0.0
    delete: float = 0.0
    storage: float = 0.0
    sent: float = 0.0
    received: float = 0.0

    def of_requests(self, counts: Mapping[str, RequestCount]) -> dict[str, float]:
        """Return what the counted requests of each kind cost, and ``traffic``."""
        cost = {kind: counts[kind].requests * float(getattr(self, kind)) / 1000 for kind in KINDS}
        sent = sum(count.bytes_sent for count in counts.values())
        received = sum(count.bytes_received for count in counts.values())
        return {**cost, "traffic": (sent * self.sent + received * self.received) / GB}


CURRENT = Prices("2026-11", put=0.005, list=0.005, get=0.0004, head=0.0004, storage=0.023)
TABLES = {
    "current": CURRENT,
    "2010": Prices("2010", put=0.01, list=0.01, get=0.001, head=0.001, storage=0.15),
}


def find_prices(text: str) -> Prices:
    """Return the table of a name or a file; UsageError if it is none."""
    if text in TABLES:
        return TABLES[text]
    try:
        with open(text, "rb") as file:
            found = tomllib.load(file)
    except OSError as error:
        raise UsageError(
            f"the price table {text} cannot be read: {error.strerror}",
            hint=f"Give a file, or one of {', '.join(TABLES)}.",
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the price table {text} is no TOML: {error}", hint="A line looks like 'put = 0.005'."
        ) from None
    return _checked(text, found)


def _checked(text: str, found: dict[str, Any]) -> Prices:
    names = {field.name for field in fields(Prices)}
    for name, value in found.items():
        if name not in names:
            raise UsageError(
                f"the price table {text} has {name!r}, which nothing is priced by",
                hint=f"There are {', '.join(sorted(names))}.",
            )
        if name != "as_of" and (isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e6):
            raise UsageError(f"the price table {text} has no price for {name!r}", hint="Give a number of dollars.")
    return Prices(**{**found, "as_of": str(found.get("as_of", text))})


def dollars(amount: float) -> str:
    """Return an amount with as many digits as say something."""
    return f"${amount:,.2f}" if amount >= 1 else f"${amount:.4f}"
