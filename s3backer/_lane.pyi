"""Types of the fast lane; what each piece guarantees stands in ``_lane.pyx``."""

from typing import Final

from s3backer._fast import Slab
from s3backer._readahead import ReadAhead
from s3backer.stores.base import Buffer

READ: Final[int]
WRITE: Final[int]
FLUSH: Final[int]
ZERO: Final[int]
INTERRUPT: Final[int]
AHEAD: Final[int]
PRESSURE: Final[int]

class Lane:
    def __init__(
        self,
        device: int,
        socket: int,
        slab: Slab,
        ahead: ReadAhead,
        *,
        inode: int,
        handle: int,
        end: int,
        pressure: int,
        slow_writes: bool = False,
        direct_io: bool = False,
    ) -> None: ...
    def serve(self) -> int: ...
    def wait(self, milliseconds: int) -> list[tuple[int, int, int, int, int]] | None: ...
    def payload(self, number: int) -> memoryview: ...
    def finish(self, number: int, error: int, body: Buffer | None = None, taken: int = 0) -> None: ...
    def set_end(self, end: int) -> None: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...
    def forward(self) -> None: ...
    @property
    def wrote_at(self) -> int: ...
    @property
    def answered(self) -> int: ...
    @property
    def waited(self) -> int: ...
    @property
    def passed_on(self) -> int: ...
    @property
    def parked(self) -> int: ...
