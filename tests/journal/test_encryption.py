"""An encrypted volume's journal: nothing of the data can be read in it, and nothing else comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from s3backer._checksum import crc32c
from s3backer.errors import JournalDamaged, JournalError, WrongPassword
from s3backer.journal.cipher import FileKey
from tests.support.journal_twin import decode, plain_scan, salt_of
from tests.support.journals import BLOCK, SmallJournal, files_of, scan_path

KEY = b"the volume's key"
SECRET = b"nobody may read this"


def write_some(path: Path) -> None:
    with SmallJournal(path, key=KEY) as small:
        small.write(100, SECRET * 200)
        small.core.write_zeros(4 * BLOCK, 512, 0.0)
        small.core.sync()


def test_the_key_is_hkdf() -> None:
    derived = HKDF(hashes.SHA256(), 48, b"salt", b"s3backer journal").derive(KEY)
    assert FileKey.derive(KEY, b"salt") == FileKey(derived[:32], derived[32:])


def test_back_and_forth(tmp_path: Path) -> None:
    write_some(tmp_path / "j")
    writes = scan_path(tmp_path / "j", key=KEY)[1]
    assert b"".join(data for _, data in writes if data) == SECRET * 200
    for content in files_of(tmp_path / "j").values():
        assert SECRET[:8] not in content
    with SmallJournal(tmp_path / "j", key=KEY) as small:
        out = bytearray(BLOCK)
        assert small.core.load(0, out)[0] == [(100, BLOCK)]
        assert out[100:] == (SECRET * 200)[: BLOCK - 100]


def test_no_key_or_another(tmp_path: Path) -> None:
    write_some(tmp_path / "j")
    for key in (None, b"another"):
        with pytest.raises(WrongPassword):
            scan_path(tmp_path / "j", key=key)
    with pytest.raises(WrongPassword):
        SmallJournal(tmp_path / "j", key=b"another")
    with pytest.raises(JournalError, match="is encrypted, the volume is mounted otherwise"):
        SmallJournal(tmp_path / "j")


def test_a_plain_journal_with_a_key(tmp_path: Path) -> None:
    with SmallJournal(tmp_path / "j") as small:
        small.write(0, b"x")
    with pytest.raises(JournalError, match="not encrypted"):
        SmallJournal(tmp_path / "j", key=KEY)


def test_the_same_data_twice_looks_different(tmp_path: Path) -> None:
    with SmallJournal(tmp_path / "j", key=KEY) as small:
        small.write(0, SECRET)
        small.write(0, SECRET)
    one, other = (r for r in plain_scan(files_of(tmp_path / "j"), 16) if r.kind == 2)
    assert one.data != other.data
    assert len(one.data) == len(SECRET) + 16


@pytest.mark.parametrize("byte", [32, 64, 64 + 100, 64 + BLOCK - 100 + 15])
def test_who_forges_the_crcs_does_not_get_past_the_tag(tmp_path: Path, byte: int) -> None:
    write_some(tmp_path / "j")
    file = tmp_path / "j" / "00000001.journal"
    content = bytearray(file.read_bytes())
    start = 4096 + 64
    record = decode(bytes(content), start, 16)
    assert record is not None
    content[start + byte] ^= 1
    seed = crc32c(salt_of(bytes(content)))
    payload = content[start + 64 : start + 64 + len(record.data)]
    content[start + 56 : start + 60] = crc32c(payload, seed).to_bytes(4, "little")
    content[start + 60 : start + 64] = crc32c(content[start : start + 60], seed).to_bytes(4, "little")
    file.write_bytes(content)
    with pytest.raises(JournalDamaged, match="not what was encrypted"):
        scan_path(tmp_path / "j", key=KEY)
    with SmallJournal(tmp_path / "j", key=KEY) as small, pytest.raises(JournalDamaged):
        small.core.load(0, bytearray(BLOCK))
