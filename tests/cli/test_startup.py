"""Start-up stays quick: what a command does not need is not imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

import s3backer

HEAVY = {"botocore", "llfuse", "urllib3", "rich", "cryptography", "zstandard"}


def modules_after(*words: str) -> tuple[str, set[str]]:
    """Return what a command says and the packages that it has imported."""
    code = (
        "import sys\nfrom s3backer.cli import main\n"
        "try:\n    code = main(sys.argv[1:])\nfinally:\n"
        "    print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout, set(done.stderr.split())


@pytest.mark.parametrize("word", ["--version", "-v"])
def test_the_version_imports_next_to_nothing(word: str) -> None:
    said, modules = modules_after(word)
    assert said == f"s3backer {s3backer.__version__}\n"
    assert not modules & (HEAVY | {"click", "json", "dataclasses", "subprocess"})


@pytest.mark.parametrize("word", ["--help", "-h", "-?"])
def test_help_imports_next_to_nothing(word: str) -> None:
    said, modules = modules_after(word)
    assert "s3backer COMMAND" in said
    assert not modules & (HEAVY | {"click"})


@pytest.mark.parametrize("words", [("create", "--help"), ("--help-original",)])
def test_explanations_import_neither_the_kernels_nor_the_networks_side(words: tuple[str, ...]) -> None:
    _, modules = modules_after(*words)
    assert not modules & HEAVY


def test_a_local_volume_needs_no_network(tmp_path: object) -> None:
    _, modules = modules_after("create", f"file://{tmp_path}/v", "--size", "1m")
    assert not modules & HEAVY
