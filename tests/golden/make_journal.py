"""Makes the sample of the journal's format version 1; it was run once, and the sample stays as it is.

python -m tests.golden.make_journal
"""

from __future__ import annotations

import random
from pathlib import Path

GOLDEN = Path(__file__).parent / "journal-1"
#: What is written in it: (offset, data, or the length of zeros).
WRITES: list[tuple[int, bytes | int]] = [
    (0, b"first".ljust(512, b".")),
    (8192, b"\xff" * 2048),
    (2048 + 100, bytes(range(100)) * 7),
    (4096, 4096),
    (8192, b"again".ljust(512, b".")),
]


def main() -> None:
    """Write the sample."""
    from tests.support.journals import SmallJournal

    source = random.Random(1)
    with SmallJournal(GOLDEN, files=2, clock=lambda: 1700000000.0, random_bytes=source.randbytes) as small:
        for number, (offset, data) in enumerate(WRITES):
            if isinstance(data, int):
                small.core.write_zeros(offset, data, 0.0)
            else:
                small.write(offset, data)
            if number == 2:
                small.core.sync()
        small.journal.intend(1, 3, "*", "crc64nvme:AAAA")
        small.journal.done(4, 5, '"abc"')
    (GOLDEN / "lock").unlink()
    # The second one is a spare.
    (GOLDEN / "00000002.journal").unlink()


if __name__ == "__main__":
    main()
