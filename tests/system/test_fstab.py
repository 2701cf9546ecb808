"""mount(8) itself, with lines of fstab, runs the installed helpers, while the original is installed beside them.

Each test has a mount namespace of its own, in which overlays catch what is installed: the machine stays as it is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounts import PATIENCE, ROOT, end_process, needs_mounts
from tests.support.workbench import Workbench

pytestmark = needs_mounts

#: $1 is the test's directory. What is installed goes to overlays on /usr/sbin and /usr/local.
PREPARE = f"""
set -e
mkdir -p "$1/over" "$1/mnt" "$1/files"
mount -t tmpfs overlays "$1/over"
for place in sbin local; do
    mkdir "$1/over/$place" "$1/over/$place-work"
    mount -t overlay overlay -o "lowerdir=/usr/$place,upperdir=$1/over/$place,workdir=$1/over/$place-work" "/usr/$place"
done
# A failing test leaves no mount behind, without which the daemon ends.
trap 'umount -l "$1/files" "$1/mnt" 2>/dev/null || :' EXIT
ours="{sys.executable} -P -m s3backer"
$ours install-system >/dev/null
seen() {{ findmnt --noheadings --output FSTYPE,SOURCE,OPTIONS "$1"; }}
"""


def running(directory: Path) -> list[int]:
    """Return the processes that name this test's directory, apart from this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            # A daemon has the command line of what started it.
            if f"{directory}/".encode() in command and b"s3backer" in command:
                found.append(int(entry.name))
    return found


class Machine:
    """Runs scripts where the files are installed."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.directory = bench.directory
        self.fstab = bench.directory / "fstab"

    def run(self, script: str, *lines: str) -> subprocess.CompletedProcess[str]:
        self.fstab.write_text("".join(f"{line} 0 0\n" for line in lines))
        return subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "bash", "-c", PREPARE + script, "bash", self.directory],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
        )


@pytest.fixture
def machine(volume: Workbench) -> Iterator[Machine]:
    yield Machine(volume)
    for pid in running(volume.directory):
        end_process(pid)


#: Mounts, shows what is mounted and by whom, mounts all again, and unmounts.
ONCE = """
mount -T "$1/fstab" "$1/mnt"
seen "$1/mnt"
$ours info --json "file://$1/bucket" | tr -d '\\n'; echo
mount -a -T "$1/fstab" && echo again: $(grep -c " $1/mnt " /proc/mounts)
$ours unmount "file://$1/bucket"
"""
WORDS = "_netdev,nofail,x-systemd.requires=network-online.target,x-systemd.automount,comment=x"


KINDS = ("s3backer", "fuse.s3backer")
SPECS = ("file://{}", "s3backer#file://{}", "s3backer#{}", "{}")
ACCESSES = ("rw", "ro")


# Half of all combinations has every pair of two of their parts; the others are for make soak.
@pytest.mark.parametrize(
    ("kind", "spec", "access"),
    [
        pytest.param(kind, spec, access, marks=[pytest.mark.soak] if (k + s + a) % 2 else [])
        for k, kind in enumerate(KINDS)
        for s, spec in enumerate(SPECS)
        for a, access in enumerate(ACCESSES)
    ],
)
def test_lines_of_fstab(machine: Machine, kind: str, spec: str, access: str) -> None:
    place = spec.format(machine.bench.bucket)
    test = "" if "://" in spec else ",test"
    line = f"{place} {machine.bench.mountpoint} {kind} {access},defaults,{WORDS},blockCacheThreads=3{test}"
    done = machine.run(ONCE, line)
    assert done.returncode == 0, done.stderr
    seen, facts, again = done.stdout.splitlines()
    kind, source, options = seen.split()
    assert (kind, options.split(",")[0]) == ("fuse.s3backer", access)
    assert source == place
    assert json.loads(facts)["mountpoint"] == str(machine.bench.mountpoint)
    assert again == "again: 1"
    machine.bench.wait_for_nothing()


def test_the_type_fuse_finds_this_program_before_the_originals(machine: Machine) -> None:
    line = f"s3backer#{machine.bench.bucket} {machine.bench.mountpoint} fuse test,{WORDS},ro"
    done = machine.run(ONCE.replace("mount -a", ": mount -a"), line)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[1])["mountpoint"] == str(machine.bench.mountpoint)
    machine.bench.wait_for_nothing()


def test_read_only_takes_no_token(machine: Machine) -> None:
    script = 'mount -T "$1/fstab" "$1/mnt"; ls "$1/bucket"; ! true 2>/dev/null >>"$1/mnt/file"; $ours unmount "file://$1/bucket"'
    line = f"file://{machine.bench.bucket} {machine.bench.mountpoint} s3backer ro"
    done = machine.run(script, line)
    assert done.returncode == 0, done.stderr
    assert machine.bench.token.name not in done.stdout
    done = machine.run(script.replace("! true", "true"), line.replace(" ro", " rw"))
    assert done.returncode == 0, done.stderr
    assert machine.bench.token.name in done.stdout


def test_a_second_line_mounts_the_filesystem_on_the_disk(machine: Machine) -> None:
    directory = machine.directory
    options = f"loop,_netdev,nofail,x-systemd.requires-mounts-for={directory}/mnt"
    lines = (
        f"file://{machine.bench.bucket} {directory}/mnt s3backer _netdev,nofail",
        f"{directory}/mnt/file {directory}/files ext4 {options}",
    )
    script = """
mount -T "$1/fstab" "$1/mnt"
mkfs.ext4 -q "$1/mnt/file"
$ours unmount "file://$1/bucket"
for round in first second; do
    mount -a -T "$1/fstab"
    seen "$1/files"
    cat "$1/files/word" 2>/dev/null || :
    echo $round >"$1/files/word"
    umount "$1/files"
    # The kernel lets go of the loop device a moment later.
    for attempt in $(seq 100); do $ours unmount "file://$1/bucket" 2>/dev/null && break || sleep 0.1; done
done
"""
    done = machine.run(script, *lines)
    assert done.returncode == 0, done.stderr
    first, second, word = done.stdout.splitlines()
    assert first.split()[0] == second.split()[0] == "ext4"
    assert first.split()[1].startswith("/dev/loop")
    assert word == "first"
    machine.bench.wait_for_nothing()


@pytest.mark.parametrize(
    ("spec", "options", "code", "said"),
    [
        ("file:///nonexistent/volume", "rw", 32, "mount.s3backer: "),
        ("file://{}", "rw,nonsense=1", 1, "nonsense"),
        ("file://{}", "rw,memory=plenty", 1, "memory"),
        ("file://{}", "rw,encrypt", 1, "encrypt"),
        ("{}", "test,encrypt", 1, "encrypt"),
    ],
)
def test_failures_have_mounts_exit_codes(machine: Machine, spec: str, options: str, code: int, said: str) -> None:
    line = f"{spec.format(machine.bench.bucket)} {machine.bench.mountpoint} s3backer {options}"
    done = machine.run('mount -T "$1/fstab" "$1/mnt"', line)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    machine.bench.wait_for_nothing()


def test_fake_and_sloppy(machine: Machine) -> None:
    line = f"file://{machine.bench.bucket} {machine.bench.mountpoint} s3backer rw,nonsense=1"
    done = machine.run('mount -f -T "$1/fstab" "$1/mnt"; ! seen "$1/mnt"', line)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    done = machine.run('mount -s -T "$1/fstab" "$1/mnt"; seen "$1/mnt"; $ours unmount "file://$1/bucket"', line)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("fuse.s3backer")
    done = machine.run('mount -s -T "$1/fstab" "$1/mnt"', f"{line},encrypt")
    assert done.returncode == 1, done.stderr


#: Whether Debian's package of the original is there.
ORIGINAL = Path("/usr/bin/s3backer")
#: Mounts by type, shows by whom, and unmounts.
BY_TYPE = """
mount -t fuse.s3backer -o test,size=1m,blockSize=4k "$1/bucket" "$1/mnt"
seen "$1/mnt" | grep -q fuse
test "$($ours info --json "file://$1/bucket" | grep -c '"mountpoint"')" = "$2" || echo "served by another than expected"
umount "$1/mnt"
# Whoever serves it: when the token is gone, so is all else.
for attempt in $(seq 100); do test -e "$1/bucket/s3backer-mounted" || break; sleep 0.1; done
"""


@pytest.mark.skipif(not ORIGINAL.exists(), reason="the original is not installed")
def test_the_type_is_ours_while_installed_and_the_originals_afterwards(machine: Machine) -> None:
    paths = "/sbin/mount.s3backer /sbin/mount.fuse.s3backer /usr/local/bin/s3backer"
    script = f"""
ls {paths}
set -- "$1" 1; {BY_TYPE}
$ours install-system --remove >/dev/null
! ls {paths} 2>/dev/null
set -- "$1" 0; {BY_TYPE}
"""
    done = machine.run(script)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == set(paths.split())
    machine.bench.wait_for_nothing()
