"""Types of the fast lane; what each piece guarantees stands in ``_lane.pyx``."""

from collections.abc import Callable

from s3backer._fast import Slab
from s3backer._journal import Journal
from s3backer._parking import Parking
from s3backer._readahead import ReadAhead
from s3backer.stores.base import Buffer

class Lane:
    @property
    def parking(self) -> Parking: ...
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
        journal: Journal | None = None,
        slow_writes: bool = False,
        direct_io: bool = False,
        lazy_fsync: bool = False,
        reach: Callable[[str], None] | None = None,
    ) -> None: ...
    def serve(self) -> int: ...
    def finish(self, number: int, error: int, body: Buffer | None = None, taken: int = 0) -> None: ...
    def set_end(self, end: int) -> None: ...
    def slow_down(self) -> None: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...
    def forward(self) -> None: ...
    @property
    def wrote_at(self) -> int: ...
    @property
    def answered(self) -> int: ...
    @property
    def passed_on(self) -> int: ...
