"""What the mount token of an unfinished copy says about the copy.

    token's fourth line     {"copy": {"source": …, "size": …, "block_size": …, "block_hash_prefix": …,
                             "encoding": …, "key_length": …, "password_check": …}}          JSON in ASCII

The note is part of the token, so that one object, put and deleted at once, both locks the volume and says why. Only a
run that would write the same objects may go on with such a copy; ``difference`` says what else it would do.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Self

from s3backer.units import exact_size

#: No note is longer, in bytes; whatever is behind that was not written here.
MAX_NOTE = 1 << 16
_WORDS = {
    "source": "is of {}, not of {}",
    "size": "has a size of {}, not {}",
    "block_size": "has blocks of {}, not {}",
    "block_hash_prefix": "has hashed keys: {}, not {}",
    "encoding": "stores blocks as {!r}, not {!r}",
    "key_length": "has keys of {} bytes, not {}",
    "password_check": "has another password",
}
_SIZES = ("size", "block_size")


@dataclass(frozen=True, slots=True)
class CopyNote:
    """Where a copy comes from and what it becomes. Sizes and lengths in bytes.

    ``encoding`` is the Content-Encoding of what is written, empty for plain. ``password_check`` is the signature of
    nothing at all: it tells as much about the password as that of any block.
    """

    source: str
    size: int
    block_size: int
    block_hash_prefix: bool
    encoding: str
    key_length: int
    password_check: str

    def text(self) -> str:
        """Return the note as a line of a token, without its end."""
        return json.dumps({"copy": asdict(self)})

    @classmethod
    def parse(cls, line: bytes) -> Self | None:
        """Return the note in a line; None for anything else."""
        try:
            found = json.loads(line[:MAX_NOTE])["copy"]
            values = {field.name: found[field.name] for field in fields(cls)}
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        kinds = (str, int, int, bool, str, int, str)
        if not all(type(value) is kind for value, kind in zip(values.values(), kinds, strict=True)):
            return None
        return cls(**values)

    def difference(self, wanted: CopyNote) -> str | None:
        """Return in words what this copy is and the wanted one is not, None if they are the same."""
        for field in fields(self):
            mine, other = getattr(self, field.name), getattr(wanted, field.name)
            if mine != other:
                said = (exact_size(mine), exact_size(other)) if field.name in _SIZES else (mine, other)
                return _WORDS[field.name].format(*said)
        return None
