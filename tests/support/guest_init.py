"""What a virtual machine of tests/support/guest.py runs as its only program: a writer that is told by network.

The kernel's command line names it, and with ``peer=PORT`` where to ask on the host. Nothing but Python is there.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path

#: QEMU's user networking: the guest's address, and that behind which the host's 127.0.0.1 is.
GUEST, HOST = "10.0.2.15", "10.0.2.2"
_SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFFLAGS, _IFF_UP = 0x8916, 0x891C, 0x8914, 1
_FINIT_MODULE = 313
_libc = ctypes.CDLL(None, use_errno=True)


def _called(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _mount(kind: str, where: str) -> None:
    Path(where).mkdir(exist_ok=True)
    _called(_libc.mount(kind.encode(), where.encode(), kind.encode(), 0, None))


def _load(module: Path) -> None:
    with module.open("rb") as file:
        _called(_libc.syscall(_FINIT_MODULE, file.fileno(), b"", 0))


def _bring_up(name: str, address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for call, text in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, "255.255.255.0")):
            given = struct.pack("16sHH4s8x", name.encode(), socket.AF_INET, 0, socket.inet_aton(text))
            fcntl.ioctl(sock, call, given)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", name.encode(), _IFF_UP))


def main() -> None:
    """Prepare the machine, and serve until the host ends it."""
    for kind, where in (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")):
        _mount(kind, where)
    # Nothing is mounted over it: s3backer itself may lie there.
    Path("/tmp").mkdir(exist_ok=True)
    for module in sorted(Path("/modules").iterdir()):
        _load(module)
    _bring_up("lo", "127.0.0.1")
    _bring_up("eth0", GUEST)
    words = dict(word.partition("=")[::2] for word in Path("/proc/cmdline").read_text().split())
    sys.path[:0] = Path("/paths").read_text().splitlines()
    from tests.support.writer import serve

    with socket.create_connection((HOST, int(words["peer"])), timeout=60) as peer:
        peer.settimeout(None)
        with peer.makefile("r") as lines, peer.makefile("w") as answers:
            serve(lines, answers)


if __name__ == "__main__":
    main()
