"""What ``info`` says of a mounted volume's journal."""

from __future__ import annotations

from s3backer.cli.info import _journal_text

FACTS = {"fill": 0.125, "bytes": 256 << 20, "limit": 256 << 20, "directory": "/var/j", "failure": None, "left": 0}


def test_the_journal() -> None:
    assert _journal_text(None) == "none"
    assert _journal_text(FACTS) == "12% of 256 MiB in use, /var/j"
    assert _journal_text({**FACTS, "limit": 48 << 20}) == "12% of 256 MiB in use, room for 48 MiB, /var/j"
    assert _journal_text({**FACTS, "left": 7}).endswith(", /var/j; 7 blocks are in it only")
    assert _journal_text({**FACTS, "failure": "no room"}) == "has failed: no room"
