"""Types of the place where requests wait; what each piece guarantees stands in ``_parking.pyx``."""

from typing import Final

READ: Final[int]
WRITE: Final[int]
FLUSH: Final[int]
ZERO: Final[int]
SYNC_WRITE: Final[int]
INTERRUPT: Final[int]
AHEAD: Final[int]
PRESSURE: Final[int]

class Parking:
    def wait(self, milliseconds: int) -> list[tuple[int, int, int, int, int]] | None: ...
    def payload(self, number: int) -> memoryview: ...
    @property
    def waited(self) -> int: ...
    @property
    def waiting(self) -> int: ...
