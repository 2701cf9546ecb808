import pytest
from tests.journal.test_carrying import *
@pytest.mark.parametrize("limit", [2, 3])
def test_few(tmp_path, clock, limit):
    with SmallJournal(tmp_path / "j", files=16, capacity=4000, monotonic=clock, system=FullDisk(limit)) as small:
        case = Case(small, clock, 1)
        assert case.write(0, case.source.randbytes(100))
        case.go_on(400)
