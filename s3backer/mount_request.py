"""What a mount is asked for, and what can be said of it before the store is asked anything."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace

from s3backer.control.sockets import control_directory
from s3backer.disk_cache import cache_directory
from s3backer.errors import MountError, UsageError
from s3backer.journal.default import default_size, journals_directory
from s3backer.logs import state_directory
from s3backer.mountpoint import check_fuse, check_mountpoint, check_outside, resolve_mountpoint
from s3backer.opening import VolumeOptions
from s3backer.process import raise_open_files
from s3backer.stores.options import StoreOptions
from s3backer.url import VolumeURL

_PATH_VARIABLES = (
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CA_BUNDLE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
)


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What ``mount`` was asked for. Modes are permission bits; None is 0600, or 0400 if read-only.

    ``lazy_fsync``: fsync and close are answered at once, as by the original. ``uid`` and ``gid`` own the files, None:
    who mounts. ``default_journal``: have one, where there is room for it; ``no_journal``: why there is none;
    ``journal_missed``: although a directory was named for it. ``stats_mirror``: a file that gets a copy of the
    statistics every ``stats_interval`` seconds.
    """

    url: VolumeURL
    mountpoint: str
    store_options: StoreOptions
    volume_options: VolumeOptions
    foreground: bool = False
    file_name: str = "file"
    file_mode: int | None = None
    stats_name: str | None = "stats"
    fuse_options: tuple[str, ...] = ()
    fast_lane: bool = True
    direct_io: bool = False
    lazy_fsync: bool = False
    uid: int | None = None
    gid: int | None = None
    default_journal: bool = False
    no_journal: str = ""
    journal_missed: bool = False
    stats_mirror: str | None = None
    stats_interval: float = 1.0
    quiet: bool = False
    debug: bool = False


def absolute(request: MountRequest) -> MountRequest:
    """Make every path independent of the working directory, which a daemon leaves."""
    for name in _PATH_VARIABLES:
        value = os.environ.get(name, "")
        if value and not value.startswith("~"):
            os.environ[name] = os.path.abspath(value)
    bundle = request.store_options.ca_bundle
    copies, journals = request.volume_options.disk_cache_directory, request.volume_options.journal_directory
    if journals is None:
        # Without a journal, too: after a crash the next mount here knows that this one has died.
        with contextlib.suppress(UsageError):
            journals = str(journals_directory())
    return replace(
        request,
        mountpoint=resolve_mountpoint(request.mountpoint),
        stats_mirror=os.path.abspath(request.stats_mirror) if request.stats_mirror else None,
        store_options=replace(request.store_options, ca_bundle=os.path.abspath(bundle) if bundle else None),
        volume_options=replace(
            request.volume_options,
            disk_cache_directory=os.path.realpath(copies) if copies else None,
            journal_directory=os.path.realpath(journals) if journals else None,
        ),
    )


def with_default_journal(request: MountRequest, *, named: bool = False) -> MountRequest:
    """Give the mount a journal where nothing was said of one, it is of use, and there is room; else say why not.

    ``named``: its directory was.
    """
    options = request.volume_options
    if why := _no_journal(request):
        return replace(request, no_journal=why)
    if options.journal:
        return request
    try:
        wanted = replace(options, journal=default_size(options.journal_directory or journals_directory()))
    except UsageError as error:
        return replace(request, no_journal=error.message, journal_missed=named)
    return replace(request, volume_options=wanted)


def _no_journal(request: MountRequest) -> str:
    """Return why a journal is not wanted or of no use; an empty text where it is."""
    options = request.volume_options
    if options.read_only:
        return "it is read-only"
    if options.write_through:
        return "each write is in the bucket when it returns"
    if not (options.journal or request.default_journal):
        return "none was asked for"
    return "fsync is lazy" if request.lazy_fsync and not options.journal else ""


def _own_places(request: MountRequest) -> list[tuple[str, str | os.PathLike[str], str]]:
    """Return where the mount keeps files of its own: what that is, the path, and how to have it elsewhere."""
    options = request.volume_options
    socket_elsewhere = "Set XDG_RUNTIME_DIR to another directory, or use another one for the volume"
    if os.geteuid() == 0:
        socket_elsewhere = "It is always that for root, so use another directory for the volume"
    places: list[tuple[str, str | os.PathLike[str], str]] = [
        ("the directory of control sockets", control_directory(), socket_elsewhere)
    ]
    with contextlib.suppress(UsageError):
        # Journals and notes, unless they are elsewhere, and the log where the system has none.
        places.append(("the directory of local state", state_directory(), "Set XDG_STATE_HOME to another directory"))
    if options.journal_directory is not None:
        journals = options.journal_directory
        places.append(("--journal-directory", journals, "Name another one with --journal-directory"))
    if options.disk_cache is not None:
        copies = options.disk_cache_directory or cache_directory()
        places.append(("--disk-cache", copies, "Name another directory with --disk-cache-directory"))
    if request.stats_mirror is not None:
        places.append(("--statsFileMirror", request.stats_mirror, "Name another file"))
    return places


def check_places(request: MountRequest) -> None:
    """Raise UsageError where the mount would keep files of its own on its volume, in an ``absolute`` request."""
    for what, path, remedy in _own_places(request):
        resolved = os.path.realpath(path)
        check_outside(what, resolved, request.mountpoint, "on the volume's own mount point", remedy)
        if request.url.scheme == "file":
            bucket = os.path.realpath(request.url.path)
            check_outside(what, resolved, bucket, "in the volume's own directory", remedy)


def check(request: MountRequest) -> set[str]:
    """Raise for all that can be seen to fail without asking the store; return llfuse's mount options."""
    names = [request.file_name] if request.stats_name is None else [request.file_name, request.stats_name]
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\0" in name or len(os.fsencode(name)) > 255:
            raise UsageError(f"{name!r} cannot be the name of a file", hint="Use a name without '/'.")
    if len(set(names)) < len(names):
        raise UsageError("the file and the statistics file have the same name", hint="Name one differently.")
    check_mountpoint(
        request.mountpoint,
        allow_nonempty="nonempty" in request.fuse_options,
        volume_directory=request.url.path if request.url.scheme == "file" else None,
    )
    check_places(request)
    check_fuse()
    raise_open_files(request.volume_options.threads)
    try:
        from s3backer.frontends.fuse_mount import mount_options
    except ImportError as error:
        raise MountError(
            f"llfuse, which speaks to the kernel, cannot be loaded: {error}",
            hint="It is built from source: apt install gcc python3-dev pkg-config libfuse-dev fuse, "
            "then pip install llfuse.",
        ) from None
    return mount_options(
        str(request.url),
        read_only=request.volume_options.read_only,
        threads=request.volume_options.threads,
        user=request.fuse_options,
    )
