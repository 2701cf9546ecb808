"""Sizes as people write them: 10GiB, 512k, 4096."""

from __future__ import annotations

import re

from s3backer.errors import UsageError

_SUFFIXES = "kmgtpe"
_SIZE = re.compile(rf"([0-9]{{1,20}})(?:\.([0-9]{{1,6}}))?(?:([{_SUFFIXES}])(i?b)?)?", re.IGNORECASE | re.ASCII)


def parse_size(text: str, *, hint: str = "Write for example 10GiB, 512k or 4096.") -> int:
    """Return a size in bytes. Suffixes k, m, g, t, p, e, and KiB, MiB, … are powers of 1024.

    UsageError, with the ``hint``, for anything else, and for parts of a byte and for kB, MB, …, which mean two things.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is no size", hint=hint)
    whole, fraction, suffix, unit = match[1], match[2] or "", (match[3] or "").lower(), (match[4] or "").lower()
    if unit == "b":
        raise UsageError(
            f"{text!r} may mean powers of 1000 or of 1024",
            hint=f"Write {match[1]}{suffix.upper()}iB, or the bytes in full.",
        )
    factor = 1024 ** (_SUFFIXES.index(suffix) + 1) if suffix else 1
    scaled = int(whole + fraction) * factor
    tenths: int = 10 ** len(fraction)
    if scaled % tenths:
        raise UsageError(f"{text!r} is not a whole number of bytes", hint="Write it in a smaller unit.")
    return scaled // tenths


def exact_size(size: int) -> str:
    """Return a size as an option takes it, in the largest unit in which it is whole: 128KiB, 1500MiB, 1000000."""
    power = 0
    while size and size % 1024 == 0 and power < len(_SUFFIXES):
        size //= 1024
        power += 1
    return f"{size}{_SUFFIXES[power - 1].upper()}iB" if power else str(size)


def told_size(size: int) -> str:
    """Return an ``exact_size`` for a sentence, where bytes need their name."""
    text = exact_size(size)
    return text if text.endswith("iB") else f"{text} bytes"


def blocks_text(count: int) -> str:
    """Return how many blocks, in words."""
    return "1 block" if count == 1 else f"{count} blocks"


def format_size(size: int) -> str:
    """Return a size for people to read; ``parse_size`` of it is the same where it is exact, else it says "about"."""
    value, power = float(size), 0
    while value >= 1024 and power < len(_SUFFIXES):
        value /= 1024
        power += 1
    if not power:
        return f"{size} bytes"
    suffix = f"{_SUFFIXES[power - 1].upper()}iB"
    return f"{size >> 10 * power} {suffix}" if size % (1 << 10 * power) == 0 else f"about {value:.1f} {suffix}"
