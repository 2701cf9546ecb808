"""The wheel and the sdist: what they hold, and that each, installed in a clean environment, mounts a volume.

Everything is built once a session. The clean environments are filled from one directory of wheels, because llfuse
and s3backer's other dependencies need to be built or fetched only once for both.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from s3backer.mountpoint import find_mount, unmount
from tests.support.mounts import is_alive, wait_for_end, why_no_mounts
from tests.support.tools import run
from tools.build_wheel import ROOT, build

KINDS = ("wheel", "sdist")
#: Instructions that not every x86-64 has, by the beginning of their names: SSE3 to SSE4.2, popcnt, BMI, AES and all
#: of AVX. tzcnt is left out: older processors execute it as bsf, which compilers rely on.
BEYOND_BASELINE = re.compile(
    r"v(?!err|erw|mcall|mlaunch)[a-z0-9]+|lddqu|movddup|movs[hl]dup|h(add|sub)p[sd]|addsubp[sd]|ph(add|sub)\w+"
    r"|pshufb|palignr|psign[bwd]|pabs[bwd]|pmulhrsw|pmaddubsw|ptest|p?blend\w+|pm(in|ax)(sb|sd|uw|ud)|pmulld|pmuldq"
    r"|pextr[bdq]|pinsr[bdq]|pmov[sz]x\w+|packusdw|pcmp(eqq|gtq|[ei]str[im])|round[ps][sd]|dpp[sd]|mpsadbw|movntdqa"
    r"|crc32\w?|popcnt\w?|lzcnt\w?|andn|bextr|bls(i|r|msk)|bzhi|mulx|pdep|pext|rorx|sarx|shlx|shrx|aes\w+|pclmul\w+"
)

pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class Built:
    """The files under test, and the directory with the wheels of everything that they need."""

    wheel: Path
    sdist: Path
    wheels: Path


@dataclass(frozen=True)
class Installed:
    """A clean environment outside the source tree, and an empty directory to work in."""

    python: Path
    command: Path
    work: Path

    def run(self, *command: str | Path, timeout: float = 300) -> str:
        """Run a program of the environment away from the source tree."""
        return _run_in(self.work, *command, timeout=timeout)

    def s3backer(self, *arguments: str | Path) -> str:
        """Run the installed command."""
        return self.run(self.command, *arguments)


def _run_in(directory: Path, *command: str | Path, timeout: float = 300) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "AWS_"))}
    result = subprocess.run(
        [str(word) for word in command],
        cwd=directory,
        env={**environment, "XDG_STATE_HOME": str(directory), "XDG_RUNTIME_DIR": str(directory)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, f"{' '.join(map(str, command))} exited {result.returncode}:\n{result.stdout}"
    return result.stdout


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    directory = tmp_path_factory.mktemp("dist")
    wheel, sdist = build(directory)
    return Built(wheel, sdist, directory / "wheels")


@pytest.fixture(scope="session")
def unpacked(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of the wheel's files."""
    directory = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(built.wheel) as archive:
        archive.extractall(directory)
    return directory


@pytest.fixture(scope="session")
def environments(built: Built, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Installed]:
    """Return a clean environment with the wheel, and one with what the sdist gives."""
    directory = tmp_path_factory.mktemp("clean")

    def make(kind: str) -> Installed:
        home = directory / kind
        venv.create(home, with_pip=True)
        (home / "work").mkdir()
        return Installed(home / "bin" / "python", home / "bin" / "s3backer", home / "work")

    def install(kind: str) -> None:
        # From the directory of wheels alone: what it lacks is missing in the package's own requirements.
        offline = ("--no-index", "--find-links", str(built.wheels))
        made[kind].run(made[kind].python, "-m", "pip", "install", "-q", *offline, getattr(built, kind))

    with ThreadPoolExecutor(2) as pool:
        ready = pool.map(make, KINDS)
        requires = re.search(r"^requires = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        assert requires is not None
        backend = re.findall(r'"([^"]+)"', requires[1])
        _run_in(directory, sys.executable, "-m", "pip", "wheel", "-q", "-w", built.wheels, *backend, built.wheel)
        # The sdist is to be built, not found.
        (built.wheels / built.wheel.name).unlink()
        made = dict(zip(KINDS, ready, strict=True))
        list(pool.map(install, KINDS))
    return made


@pytest.fixture(params=KINDS)
def installed(request: pytest.FixtureRequest, environments: dict[str, Installed]) -> Installed:
    return environments[request.param]


# ── what the files hold ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_wheel_is_tagged_manylinux(built: Built) -> None:
    assert re.fullmatch(r"s3backer-[\d.]+\w*-cp3\d+-cp3\d+-manylinux\w+(\.manylinux\w+)*\.whl", built.wheel.name)


def test_the_wheel_holds_types_and_compiled_modules_but_no_sources_of_them(unpacked: Path) -> None:
    files = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert {"s3backer/py.typed", "s3backer/_fast.pyi"} <= files
    assert any(re.fullmatch(r"s3backer/_fast\..*\.so", name) for name in files)
    assert not [name for name in files if name.endswith((".c", ".h", ".pyx", ".pxd", ".pxi"))]
    assert {name.split("/")[0] for name in files if ".dist-info/" not in name} == {"s3backer"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in files)


def test_the_wheel_holds_every_module(unpacked: Path) -> None:
    for path in (ROOT / "s3backer").rglob("*.py*"):
        if path.suffix in (".py", ".pyi"):
            assert (unpacked / path.relative_to(ROOT)).read_bytes() == path.read_bytes(), path


def test_compiled_modules_link_nothing_but_the_c_library(unpacked: Path) -> None:
    """Above all not libfuse, which is llfuse's matter."""
    for module in unpacked.rglob("*.so"):
        needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "--dynamic", "--wide", str(module))))
        assert needed <= {"libc.so.6", "libpthread.so.0"}, module


def wide_functions(module: Path) -> dict[str, set[str]]:
    """Return the functions with instructions beyond baseline x86-64, and these instructions."""
    found: dict[str, set[str]] = {}
    function = ""
    for line in run("objdump", "--disassemble", "--no-show-raw-insn", str(module)).splitlines():
        if name := re.match(r"[0-9a-f]+ <(.+)>:$", line):
            function = name[1]
            continue
        instruction = re.match(r"\s*[0-9a-f]+:\t(?:(?:lock|rep\w*|bnd|notrack|data16) )*(\w+)", line)
        if instruction and BEYOND_BASELINE.fullmatch(instruction[1]):
            found.setdefault(function, set()).add(instruction[1])
    return found


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the instruction sets are those of x86-64")
def test_code_is_baseline_x86_64_but_for_functions_chosen_at_run_time(unpacked: Path) -> None:
    """A function that needs more than every processor has says so in its name; whoever calls it asks cpuid first."""
    modules = list(unpacked.rglob("*.so"))
    assert modules
    for module in modules:
        wide = wide_functions(module)
        assert not {name: used for name, used in wide.items() if not re.search(r"avx2|avx512|sse4", name)}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the instruction sets are those of x86-64")
def test_wide_instructions_are_noticed(tmp_path: Path) -> None:
    source = tmp_path / "wide.c"
    source.write_text("int count(unsigned long word) { return __builtin_popcountl(word); }\n")
    for flags, expected in ((["-mpopcnt"], {"count": {"popcnt"}}), ([], {})):
        run("gcc", "-O2", "-shared", "-fPIC", *flags, "-o", str(tmp_path / "wide.so"), str(source))
        assert wide_functions(tmp_path / "wide.so") == expected


def test_the_sdist_holds_the_sources_and_nothing_built(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    for path in (ROOT / "s3backer").rglob("*"):
        if path.suffix in (".py", ".pyi", ".pyx", ".pxd", ".pxi", ".h") or path.name == "py.typed":
            assert str(path.relative_to(ROOT)) in files
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"} <= files
    assert not [name for name in files if name.endswith((".c", ".so", ".pyc"))]


# ── what is installed ────────────────────────────────────────────────────────────────────────────────────────────


def test_it_runs_from_where_it_was_installed(installed: Installed) -> None:
    where = installed.run(installed.python, "-c", "import s3backer._fast; print(s3backer._fast.__file__)")
    assert Path(where.strip()).is_relative_to(installed.python.parent.parent)
    assert re.search(r"\d+\.\d+", installed.s3backer("--version"))


@contextlib.contextmanager
def mounted(installed: Installed, url: str) -> Iterator[Path]:
    """Mount with the installed command; unmount with it, or by force when the test failed."""
    mountpoint = installed.work / "mnt"
    mountpoint.mkdir(exist_ok=True)
    installed.s3backer("mount", url, mountpoint)
    try:
        yield mountpoint / "file"
        installed.s3backer("unmount", mountpoint)
    finally:
        with contextlib.suppress(OSError):
            while find_mount(str(mountpoint)):
                unmount(str(mountpoint), lazy=True)


@pytest.mark.skipif(bool(why_no_mounts()), reason=why_no_mounts() or "mounts work")
def test_it_mounts_a_volume(installed: Installed) -> None:
    bucket = installed.work / "bucket"
    bucket.mkdir()
    url = f"file://{bucket}"
    data = os.urandom(300_000)
    installed.s3backer("create", url, "--size", "1GiB")
    for round_ in range(2):
        with mounted(installed, url) as file:
            info = installed.s3backer("info", "--json", url)
            pid = int(re.findall(r'"pid": *(\d+)', info)[0])
            with file.open("r+b", buffering=0) as disk:
                if round_ == 0:
                    os.pwrite(disk.fileno(), data, 12_345)
                assert os.pread(disk.fileno(), len(data), 12_345) == data
        assert not find_mount(str(installed.work / "mnt"))
        wait_for_end(pid)
        assert not is_alive(pid)


def test_without_llfuse_it_names_what_to_install(installed: Installed) -> None:
    """A compiler, pkg-config or libfuse-dev that is missing shows as an llfuse that is not there."""
    (installed.work / "hidden").mkdir(exist_ok=True)
    (installed.work / "hidden" / "llfuse.py").write_text("raise ImportError('No module named llfuse')\n")
    bucket, mountpoint = installed.work / "other", installed.work / "empty"
    bucket.mkdir(exist_ok=True)
    mountpoint.mkdir(exist_ok=True)
    result = subprocess.run(
        [installed.python, "-m", "s3backer", "mount", f"file://{bucket}", mountpoint],
        cwd=installed.work,
        env={**os.environ, "PYTHONPATH": str(installed.work / "hidden")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 7
    assert "Traceback" not in result.stderr
    for package in ("gcc", "pkg-config", "libfuse-dev", "llfuse"):
        assert package in result.stderr
        assert package in (ROOT / "README.md").read_text()
