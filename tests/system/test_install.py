"""What ``install-system`` puts below a root, and takes away again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3backer.cli import COMMANDS, main
from s3backer.config import MOUNT
from s3backer.original_options import ORIGINAL
from s3backer.system import manual
from s3backer.system.install import COMMAND, MARKER
from s3backer.system.install import files as all_files
from tests.support.commands import tree
from tests.support.mounts import ROOT
from tests.support.tools import run

UNIT = "usr/local/lib/systemd/system/s3backer@.service"
BASH = "usr/local/share/bash-completion/completions/s3backer"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    found = tmp_path / "root"
    found.mkdir()
    return found


@pytest.fixture
def open_umask() -> Iterator[None]:
    """Install as somebody whose files nobody else may read."""
    old = os.umask(0o077)
    yield
    os.umask(old)


def install(root: Path, *more: str) -> int:
    return main(["install-system", "--root", str(root), *more])


@pytest.mark.usefixtures("open_umask")
def test_files_are_there_once_and_for_everybody(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert install(root) == 0
    said = capfd.readouterr().out.splitlines()
    expected = {file.path for file in all_files(sys.executable)}
    files = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
    assert set(files) == expected
    assert {"sbin/mount.s3backer", "sbin/mount.fuse.s3backer", UNIT, COMMAND, BASH} < expected
    assert sorted(said) == sorted(f"installed {path}" for path in files.values())
    for name, path in files.items():
        assert path.stat().st_mode & 0o777 == (0o755 if "bin/" in name else 0o644), name
        above = [root / parent for parent in path.relative_to(root).parents if parent.name]
        assert all(parent.stat().st_mode & 0o055 == 0o055 for parent in above)
    before = {path: path.stat().st_ino for path in files.values()}
    assert install(root) == 0
    assert {line.split()[0] for line in capfd.readouterr().out.splitlines()} == {"unchanged"}
    assert {path: path.stat().st_ino for path in files.values()} == before


def test_an_old_file_of_ours_is_replaced_and_its_mode_put_right(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    install(root)
    wanted = tree(root)
    (root / UNIT).write_text(f"# {MARKER}\n[Unit]\n")
    (root / COMMAND).chmod(0o600)
    capfd.readouterr()
    assert install(root) == 0
    said = capfd.readouterr().out
    assert said.count("updated ") == 2
    assert tree(root) == wanted
    assert (root / COMMAND).stat().st_mode & 0o777 == 0o755


def test_removing_leaves_no_file(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    install(root)
    (root / "sbin" / "mount.other").write_text("theirs")
    assert install(root, "--remove") == 0
    assert [path.name for path in root.rglob("*") if not path.is_dir()] == ["mount.other"]
    capfd.readouterr()
    assert install(root, "--remove") == 0
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_what_is_not_ours_is_left_alone(root: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    place = root / UNIT
    place.parent.mkdir(parents=True)
    if kind == "file":
        place.write_text("theirs")
    elif kind == "link":
        (root / "theirs").write_text(MARKER)
        place.symlink_to(root / "theirs")
    else:
        place.mkdir()
    before = tree(root)
    assert install(root) == 1
    said = capfd.readouterr().err
    assert f"{place} is not a file of this program" in said and "Traceback" not in said
    assert tree(root) == before
    assert install(root, "--remove") == 0
    assert "left " in capfd.readouterr().out
    assert tree(root) == before


def test_the_command_can_be_left_to_another_program(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (root / COMMAND).parent.mkdir(parents=True)
    (root / COMMAND).write_text("theirs")
    assert install(root) == 1
    assert "--no-command" in capfd.readouterr().err
    assert install(root, "--no-command") == 0
    assert (root / COMMAND).read_text() == "theirs"


def test_links_do_not_lead_out_of_the_root(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "outside").mkdir()
    (root / "sbin").symlink_to(tmp_path / "outside")
    assert install(root) == 1
    assert "leads out of" in capfd.readouterr().err
    assert not list((tmp_path / "outside").iterdir())
    (root / "sbin").unlink()
    (root / "usr/sbin").mkdir(parents=True)
    (root / "sbin").symlink_to("usr/sbin")
    assert install(root) == 0
    assert (root / "usr/sbin/mount.s3backer").is_file()


def test_a_link_out_of_the_root_is_seen_before_anything_is_removed(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert install(root) == 0
    capfd.readouterr()
    shutil.move(root / "usr/local/share", tmp_path / "share")
    (root / "usr/local/share").symlink_to(tmp_path / "share")
    before = tree(root)
    assert install(root, "--remove") == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert "leads out of" in err
    assert tree(root) == before


def test_a_file_in_place_of_a_directory_is_seen_before_anything_is_written(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (root / "usr/local/share").mkdir(parents=True)
    (root / "usr/local/share/man").write_text("somebody's")
    before = tree(root)
    assert install(root) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert f"{root}/usr/local/share/man is not a directory" in err
    assert tree(root) == before


def test_a_root_that_cannot_be_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert install(tmp_path / "missing") == 2
    assert "is not a directory" in capfd.readouterr().err
    assert install(Path("/proc")) == 1
    assert "cannot be written" in capfd.readouterr().err


# ── what the files hold ──────────────────────────────────────────────────────────────────────────────────────────


def test_scripts_run_this_environment_and_nothing_from_the_working_directory(root: Path, tmp_path: Path) -> None:
    install(root)
    (tmp_path / "s3backer.py").write_text("raise SystemExit(99)")
    for words in ([str(root / COMMAND), "--version"], [str(root / "sbin/mount.s3backer"), "spec", "/mnt", "-f"]):
        done = subprocess.run(
            words, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr


def test_the_unit_is_correct_and_never_kills_data(root: Path, tmp_path: Path) -> None:
    install(root)
    text = (root / UNIT).read_text()
    for line in ("Type=notify", "KillMode=mixed", "SendSIGKILL=no", "TimeoutStopSec=2min", "Before=remote-fs.target"):
        assert f"\n{line}\n" in text
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze to ask")
    unit = tmp_path / "s3backer@disk.service"
    # The manual is not installed where it would be found.
    unit.write_text(re.sub(r"Documentation=.*\n", "", text))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_man_pages_say_what_help_says(root: Path) -> None:
    install(root)
    man = root / "usr/local/share/man"
    assert {page.name for page in (man / "man1").iterdir()} == {
        "s3backer.1",
        *(f"s3backer-{name}.1" for name in COMMANDS),
    }
    assert {page.name for page in (man / "man8").iterdir()} == {"mount.s3backer.8"}
    if shutil.which("man") is None or shutil.which("groff") is None:
        pytest.skip("there is no man to show pages with")
    texts = {}
    for page in man.rglob("*.?"):
        done = subprocess.run(
            ["man", "--warnings", "-E", "ascii", "-l", str(page)],
            env={**os.environ, "MANWIDTH": "200"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, ""), page
        texts[page.name] = " ".join(done.stdout.split())
    for option in MOUNT:
        assert f"{option.flag} {option.metavar}".strip() in texts["s3backer-mount.1"].replace(f", {option.alias}", "")
        assert option.help in texts["s3backer-mount.1"]
    for name, original in ORIGINAL.items():
        assert f"--{name}" in texts["s3backer.1"] and original.help in texts["s3backer.1"]
    for name in COMMANDS:
        assert f"s3backer-{name}(1)" in texts["s3backer.1"]


def test_nothing_in_a_text_is_taken_for_markup(tmp_path: Path) -> None:
    if shutil.which("man") is None or shutil.which("groff") is None:
        pytest.skip("there is no man to show pages with")
    texts = (".SH no heading", "'no request", "a \\\\, kept", "--flag 'quoted' `too`")
    page = tmp_path / "page.1"
    lines = [line for text in texts for line in manual._prose(text)]
    page.write_text("\n".join([*manual._title("page", 1, "what"), ".SH TEXT", *lines, ""]))
    shown = run("man", "--warnings", "-E", "ascii", "-l", str(page))
    for text in texts:
        assert f"\n       {text}\n" in shown


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("s3backer er", {"erase"}),
        ("s3backer install-", {"install-system"}),
        ("s3backer mount --mem", {"--memory"}),
        ("s3backer create --s", {"--size"}),
        ("s3backer mount s3", set()),
    ],
)
def test_bash_completes(root: Path, line: str, expected: set[str]) -> None:
    install(root)
    script = f"""
    source {root / BASH}
    COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _s3backer; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert set(done.stdout.split()) == expected


@pytest.mark.parametrize(
    ("shell", "path"),
    [
        ("zsh", "usr/local/share/zsh/site-functions/_s3backer"),
        ("fish", "usr/local/share/fish/vendor_completions.d/s3backer.fish"),
    ],
)
def test_other_shells_know_every_command_and_option(root: Path, shell: str, path: str) -> None:
    install(root)
    text = (root / path).read_text()
    for name in COMMANDS:
        assert re.search(rf"\b{name}\b", text)
    assert "write-delay" in text and "Longest time a written block waits" in text
    if shell == "zsh":
        assert text.startswith("#compdef s3backer\n")
    if shutil.which(shell) is not None:
        subprocess.run([shell, "-n", str(root / path)], check=True, timeout=60)
