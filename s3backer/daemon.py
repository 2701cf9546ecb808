"""The process that serves one mount, from the checks before it to the last block after it.

    checks ─► (fork) ─► store ─► volume: token ─► control socket ─► mount ─► serve ─► write back, token away ─► end
       │                  │            │                              │
       └── refused: bucket and mount table are as they were ──────────┘ volume closed, token removed

Guarantees
  * ``run_mount`` returns 0 in the background only after the file was opened and read through the kernel.
  * However serving ends (unmount, lazy unmount, a signal, an exception), everything written is stored and the token
    removed before the process ends. While the store is away it waits, and says so once.
  * The daemon keeps no descriptor of the process that started it, nor its directory or terminal.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, NoReturn

from s3backer.background import Parent, launch
from s3backer.closing import ClosingProgress
from s3backer.control.asking import ask
from s3backer.control.messages import Progress, failure, processes
from s3backer.control.server import ControlServer, listen
from s3backer.control.sockets import socket_name
from s3backer.errors import DaemonSilent, JournalError, MountError, S3backerError, UsageError, VolumeInUse
from s3backer.hints import unmount_command
from s3backer.journal.marks import has_files
from s3backer.left_journal import place_of_journal
from s3backer.logs import Redacting, configure_logging
from s3backer.mount_request import MountRequest, absolute, check, with_default_journal
from s3backer.mountpoint import in_the_way, loop_devices, wait_for_size
from s3backer.opening import VolumeOptions
from s3backer.process import has_memory_limit, open_standard_descriptors, prepare_process
from s3backer.signals import Signals
from s3backer.stores import open_store
from s3backer.stores.base import ObjectStore
from s3backer.system.notify import Service
from s3backer.telemetry.mirror import StatsMirror
from s3backer.units import format_size
from s3backer.volume import Volume

if TYPE_CHECKING:
    from s3backer.frontends.fuse import DiskOperations
    from s3backer.frontends.fuse_mount import FuseMount

log = logging.getLogger(__name__)

#: Bytes that the kernel may read ahead on the file.
READ_AHEAD = 2 << 20
_REPORT_SECONDS = 0.5
#: Seconds after which ending a mount is tried again.
_STOP_RETRY = 1.0
#: Longest wait in seconds for another daemon to say where it has mounted the same volume.
_ANSWER_SECONDS = 2.0
#: Longest wait in seconds for the kernel to report that a file was closed.
_RELEASE_SECONDS = 0.5
_SECTOR = 512
#: What a process ends with that was interrupted, as the command line does it.
_INTERRUPTED = 130


def run_mount(request: MountRequest) -> int:
    """Mount a volume and return 0: at once in the background, after the unmount in the foreground.

    Raises S3backerError for everything that can go wrong before the mount is ready. Must be called from the main
    thread, in the background of a process without other threads.
    """
    open_standard_descriptors()
    request = with_default_journal(absolute(request), named=request.volume_options.journal_directory is not None)
    options = check(request)
    if request.foreground:
        redacting = configure_logging(True, request.debug, request.quiet)
        service = Service.from_environment()

        def announce(_: str, journal: str) -> None:
            log.info("%s is mounted on %s", request.url, request.mountpoint)
            log.info("%s %s", request.url, journal)
            service.ready(f"{request.url} is mounted on {request.mountpoint}")

        _Daemon(request, options, redacting, service).run(announce)
        return 0
    return launch(lambda parent: _serve_in_background(request, options, parent), lambda: _verify(request, options))


def _serve_in_background(request: MountRequest, options: set[str], parent: Parent) -> None:
    # Standard error is the user's until the mount is ready; what goes well is not worth a line there.
    redacting = configure_logging(True, request.debug, quiet=not request.debug)

    def announce(ident: str, journal: str) -> None:
        configure_logging(False, request.debug, request.quiet, ident=ident, redacting=redacting)
        log.info("%s is mounted on %s by process %d", request.url, request.mountpoint, os.getpid())
        log.info("%s %s", request.url, journal)
        parent.ready()

    _Daemon(request, options, redacting, parent=parent).run(announce)


def _verify(request: MountRequest, options: set[str]) -> None:
    """Open the disk as an application would and read its first sector; MountError if that fails."""
    path = os.path.join(request.mountpoint, request.file_name)
    try:
        mode = os.stat(path).st_mode
        privileged = os.geteuid() == 0
        if not (privileged or mode & stat.S_IRUSR):
            return
        writable = "ro" not in options and (privileged or mode & stat.S_IWUSR)
        descriptor = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        try:
            os.pread(descriptor, _SECTOR, 0)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise MountError(
            f"{path} was mounted, but cannot be used: {error.strerror}",
            hint="It was unmounted again. Run it with --foreground to see why.",
        ) from None


# ── serving ──────────────────────────────────────────────────────────────────────────────────────────────────


class _Daemon:
    """Opens, serves and closes one volume in this process."""

    def __init__(
        self,
        request: MountRequest,
        options: set[str],
        redacting: Redacting,
        service: Service | None = None,
        parent: Parent | None = None,
    ) -> None:
        self._request = request
        self._service = service or Service()
        self._parent = parent
        self._options = options
        self._redacting = redacting
        self._closing = ClosingProgress(terminal=request.foreground and not request.quiet and sys.stderr.isatty())
        self._lock = threading.Lock()
        self._stop_asked = False
        self._stopper: threading.Thread | None = None
        self._mount: FuseMount | None = None
        self._store: ObjectStore | None = None
        self._volume: Volume | None = None
        self._started = time.monotonic()
        #: Set when the volume is closed, and why that was not well.
        self._closed = threading.Event()
        self._close_error: S3backerError | None = None
        #: Set when serving has ended, and held by who asks for that over the control socket.
        self._ending = threading.Event()
        self._unmounting = threading.Lock()

    def run(self, ready: Callable[[str, str], None]) -> None:
        """Serve until the end.

        ``ready`` is called once, when the mount answers, with the daemon's name and what there is to say of a journal.
        """
        if not prepare_process() and has_memory_limit():
            log.warning(
                "a control group limits the memory of this process, and without CAP_SYS_RESOURCE it cannot tell the "
                "kernel that it serves a disk: keep programs that write to the disk out of that group, or all may hang"
            )
        with Signals(self._on_signal):
            if self._parent is not None:
                self._parent.watch(self._request_stop)
            try:
                self._open_and_serve(ready)
            finally:
                if self._stopper is not None:
                    self._stopper.join()

    def _open_and_serve(self, ready: Callable[[str, str], None]) -> None:
        request = self._request
        self._redacting.register(request.store_options.secret_key)
        self._redacting.register(request.volume_options.encoding.password)
        self._store = store = open_store(request.url, request.store_options)
        ident = socket_name(store, request.url.prefix)
        try:
            volume = self._open(store, request.volume_options)
        except BaseException as error:
            store.close()
            if isinstance(error, VolumeInUse):
                raise _with_place(error, ident) from None
            raise
        self._volume = volume
        control: ControlServer | None = None
        try:
            mount, operations = self._make_mount(volume)
            control = self._start_control(ident, volume, store, mount, operations)
            self._let_stop(mount)
            with StatsMirror(request.stats_mirror, request.stats_interval, volume.stats_text, volume.reset_stats):
                self._serve(mount, operations, lambda: ready(f"s3backer-{ident[:12]}", self._about_journal(volume)))
        finally:
            # Whatever happened, nothing is given up that was acknowledged.
            self._ending.set()
            self._service.stopping(lambda: volume.unsaved, lambda: volume.settles_in)
            try:
                with self._closing:
                    volume.close(self._closing, self._closing.waits)
            except Exception as error:
                known = error if isinstance(error, S3backerError) else None
                self._close_error = known or S3backerError(f"closing failed: {error!r}", hint="See its log.")
                raise
            finally:
                self._closed.set()
                if control is not None:
                    control.stop(keep=self._close_error is not None)
            self._service.close("everything is stored")
            log.info("%s is closed, everything is stored", volume.name)

    def _open(self, store: ObjectStore, options: VolumeOptions) -> Volume:
        prefix = self._request.url.prefix
        try:
            volume = Volume.open(store, prefix, options, progress=self._replaying)
        except (UsageError, JournalError) as error:
            if not (self._request.default_journal and options.journal) or self._is_about_the_last(
                error, store, options
            ):
                raise
            # Blocks or memory may be of a size that no journal of this size goes with, or there is no place for one.
            # Where one is that has to be replayed, this raises the same.
            volume = Volume.open(store, prefix, replace(options, journal=0), progress=self._replaying)
            self._request = replace(self._request, no_journal=error.message, journal_missed=True)
        if self._request.journal_missed:
            log.warning("%s has no journal: %s", self._request.url, self._request.no_journal)
        return volume

    def _is_about_the_last(self, error: S3backerError, store: ObjectStore, options: VolumeOptions) -> bool:
        """Whether an error is about the journal that a mount has left: without one of its own it would be the same."""
        return isinstance(error, JournalError) and has_files(place_of_journal(store, self._request.url.prefix, options))

    def _about_journal(self, volume: Volume) -> str:
        facts = volume.facts().get("journal")
        if not isinstance(facts, dict):
            return f"has no journal: {self._request.no_journal}"
        return f"has a journal of {format_size(facts['bytes'])} in {facts['directory']}"

    def _replaying(self, done: int, total: int) -> None:
        """Hear that a journal is replayed, or a former mount waited for; a signal ends it."""
        if self._stop_asked:
            raise _stopped_early()
        what = f"replaying the journal, {done * 100 // total} %" if total else "waiting for the former mount to end"
        self._service.starting(what)

    def _make_mount(self, volume: Volume) -> tuple[FuseMount, DiskOperations]:
        from s3backer.frontends.fuse import DiskOperations
        from s3backer.frontends.fuse_mount import FuseMount

        if self._request.lazy_fsync:
            lost = "a crash loses writes that were synced"
            if volume.facts().get("journal"):
                lost = "a kill loses nothing that is in the journal, but a loss of power loses writes that were synced"
            log.warning("fsync of %s says yes and does nothing (--fsync=lazy): %s", volume.name, lost)
        mode = self._request.file_mode
        operations = DiskOperations(
            volume,
            file_name=self._request.file_name,
            file_mode=(0o400 if volume.read_only else 0o600) if mode is None else mode,
            stats_name=self._request.stats_name,
            lazy_fsync=self._request.lazy_fsync,
            owner=(self._request.uid, self._request.gid),
        )
        return (
            FuseMount(
                operations,
                self._request.mountpoint,
                self._options,
                port=volume.port if self._request.fast_lane else None,
                direct_io=self._request.direct_io,
                lazy_fsync=self._request.lazy_fsync,
            ),
            operations,
        )

    def _let_stop(self, mount: FuseMount) -> None:
        """From now on a signal stops this mount; one that came before is heard here."""
        with self._lock:
            if self._stop_asked:
                raise _stopped_early()
            self._mount = mount

    def _serve(self, mount: FuseMount, operations: DiskOperations, ready: Callable[[], None]) -> None:
        from s3backer.frontends.fuse_mount import worker_count

        over = threading.Event()

        def announce() -> None:
            while not operations.serving.wait(0.05):
                if over.is_set():
                    return
            try:
                # The kernel answers nobody before it has finished its negotiation, which would undo the tuning.
                os.stat(mount.mountpoint)
                mount.tune_read_ahead(READ_AHEAD)
                ready()
            except (OSError, S3backerError) as error:
                log.error("unmounting %s again: %s", mount.mountpoint, error)
                self._request_stop()

        announcer = threading.Thread(target=announce, name="s3backer-announce", daemon=True)
        announcer.start()
        try:
            mount.mount()
            mount.serve(worker_count(self._request.volume_options.threads, self._options))
        except S3backerError:
            raise
        except Exception as error:
            # Not the user's mistake, and nothing that keeps the volume from being closed.
            log.error("serving %s ended with %r", mount.mountpoint, error)
            log.debug("where it happened", exc_info=error)
            raise S3backerError(
                f"serving {mount.mountpoint} ended unexpectedly: {error}", hint="All data is stored; mount it again."
            ) from error
        finally:
            over.set()
            announcer.join()

    # ── ending ───────────────────────────────────────────────────────────────────────────────────────────────

    def _on_signal(self, number: int) -> None:
        name = signal.Signals(number).name
        if self._request_stop():
            log.info("%s: unmounting %s", name, self._request.mountpoint)
        else:
            unsaved = self._volume.unsaved if self._volume is not None else 0
            log.warning("%s again: still ending, %d blocks are not stored yet", name, unsaved)

    def _request_stop(self) -> bool:
        """Make serving end, in a thread of its own because that may wait; False if it was asked before."""
        with self._lock:
            first, self._stop_asked = not self._stop_asked, True
            if first and self._mount is not None:
                stopper = threading.Thread(target=_stop, args=(self._mount,), name="s3backer-stop", daemon=True)
                try:
                    stopper.start()
                except (RuntimeError, MemoryError):
                    # Whoever asks next can have it.
                    self._stop_asked = False
                    raise
                self._stopper = stopper
        if self._volume is None and (self._store is None or self._store.fence.shut()):
            # It may wait for a store that is away, and there is nothing to be undone.
            self._end_at_once()
        if first and (volume := self._volume) is not None:
            # Calls under way may have much to store before closing begins.
            self._service.stopping(lambda: volume.unsaved, lambda: volume.settles_in)
        return first

    def _end_at_once(self) -> NoReturn:
        """End this process, which has written nothing to the bucket: its end unlocks what it has locked."""
        error = _stopped_early()
        if self._parent is not None:
            self._parent.end(error)
        log.error("%s", error)
        logging.shutdown()
        os._exit(_INTERRUPTED)

    def _unmount(self, volume: Volume, mount: FuseMount, operations: DiskOperations) -> None:
        """Unmount if nobody uses it, and make serving end; nothing where that was done before. Raises MountError."""
        with self._unmounting:
            if self._stop_asked or self._ending.is_set():
                return
            if _stays_open(operations):
                # Storing may take long, and would be for nothing.
                if mount.detached:
                    # Where it was, programs that look for who uses it find others.
                    raise MountError(
                        f"{mount.mountpoint} was unmounted already, while files of it were open, and they still are",
                        hint="Close them: it ends then. See its log for when everything is stored.",
                    )
                raise in_the_way(mount.mountpoint, os.strerror(errno.EBUSY), dead=False)
            if not volume.lost:
                volume.flush()
            try:
                mount.unmount()
            except OSError as error:
                raise in_the_way(mount.mountpoint, error.strerror, dead=False, covered=mount.covered) from None
            self._request_stop()

    # ── the control socket ───────────────────────────────────────────────────────────────────────────────────

    def _start_control(
        self, ident: str, volume: Volume, store: ObjectStore, mount: FuseMount, operations: DiskOperations
    ) -> ControlServer | None:
        def info(_: Mapping[str, object], progress: Progress) -> dict[str, object]:
            where = mount.mountpoint
            return {
                **volume.facts(),
                **mount.facts(),
                "mountpoint": where,
                "file": os.path.join(where, self._request.file_name),
                "pid": os.getpid(),
                "processes": processes(),
                "ending": self._stop_asked or self._ending.is_set(),
                "uptime": time.monotonic() - self._started,
                "requests": {kind: asdict(count) for kind, count in store.counters.snapshot().items()},
                **volume.bill(),
            }

        def flush(_: Mapping[str, object], progress: Progress) -> dict[str, object]:
            _reporting(volume, volume.flush, progress)
            return {"unsaved_blocks": volume.unsaved}

        def resize(arguments: Mapping[str, object], progress: Progress) -> dict[str, object]:
            size, discard = arguments.get("size"), arguments.get("discard", False)
            if not isinstance(size, int) or isinstance(size, bool) or not isinstance(discard, bool):
                raise UsageError("resize needs a size in bytes", hint='Send {"size": N, "discard": true or false}.')
            old = volume.size
            try:
                _reporting(volume, lambda: volume.resize(size, discard=discard), progress)
            finally:
                # Also one that failed may have left another size.
                operations.resized()
            path = os.path.join(mount.mountpoint, self._request.file_name)
            wait_for_size(path, volume.size)
            return {"size": volume.size, "old_size": old, "loop_devices": list(loop_devices(path)), "file": path}

        def unmount(arguments: Mapping[str, object], progress: Progress) -> dict[str, object]:
            _check_meant(arguments)
            _reporting(volume, lambda: self._unmount(volume, mount, operations), progress)
            answer: dict[str, object] = {
                "pid": os.getpid(),
                "mountpoint": mount.mountpoint,
                "settles_in": volume.settles_in,
            }
            left = volume.left_unsaved()
            if volume.journal_left is not None:
                answer["journal_left"] = volume.journal_left
            return answer if left is None else answer | {"left_unsaved": _told(left)}

        def ended(arguments: Mapping[str, object], progress: Progress) -> dict[str, object]:
            """Return when the volume is closed, with the error if there was one, and why a journal is left."""
            _check_meant(arguments)
            while not self._closed.wait(_REPORT_SECONDS):
                progress(_left_to_store(volume))
            answer: dict[str, object] = {} if volume.journal_left is None else {"journal_left": volume.journal_left}
            return answer if self._close_error is None else answer | {"error": _told(self._close_error)}

        handlers = {"info": info, "flush": flush, "resize": resize, "unmount": unmount, "ended": ended}
        try:
            return listen(ident, handlers)
        except S3backerError as error:
            # A disk is worth more than its remote control.
            log.warning("no control socket: %s", error)
            return None


def _stopped_early() -> MountError:
    return MountError("stopped by a signal before the mount was ready", hint="Mount it again.")


def _check_meant(arguments: Mapping[str, object]) -> None:
    """Raise S3backerError if who asks means another daemon, which has ended and had this socket before."""
    meant = arguments.get("pid"), arguments.get("processes")
    if meant[0] is not None and meant != (os.getpid(), processes()):
        raise S3backerError(
            f"process {meant[0]} has ended, and process {os.getpid()} has mounted the volume since", hint="Ask again."
        )


def _told(error: S3backerError) -> dict[str, object]:
    return failure(error.message, error.hint, error.exit_code)


def _with_place(error: VolumeInUse, ident: str) -> VolumeInUse:
    """Return the error, saying where the volume is mounted if a daemon of this host serves it, or that it is silent."""
    with contextlib.suppress(S3backerError):
        try:
            facts = ask(ident, "info", silence=_ANSWER_SECONDS)
        except DaemonSilent as silent:
            return VolumeInUse(f"{error.message}; {silent.message}", hint=silent.hint)
        # One that has lost it, or only reads, is not the one that has it now.
        if facts is not None and not facts.get("lost") and not facts.get("read_only"):
            place = str(facts.get("mountpoint"))
            message = f"{error.message}, here on {place} by process {facts.get('pid')}"
            return VolumeInUse(message, hint=f"Unmount it first: {unmount_command(place)}")
    return error


def _stays_open(operations: DiskOperations) -> bool:
    """Whether somebody has a file open, who has not just closed it: the kernel reports that a little later."""
    deadline = time.monotonic() + _RELEASE_SECONDS
    while operations.open_files and time.monotonic() < deadline:
        time.sleep(0.02)
    return operations.open_files > 0


def _stop(mount: FuseMount) -> None:
    """Make serving end, whatever that meets: nobody would ask again."""
    while True:
        try:
            mount.stop()
            return
        except Exception:
            log.exception("ending the mount met a defect and is tried again")
            time.sleep(_STOP_RETRY)


def _left_to_store(volume: Volume) -> dict[str, object]:
    return {
        "unsaved_blocks": volume.unsaved,
        "write_back_error": volume.write_back_error,
        "lost": volume.lost,
        "stores_in": volume.stores_in,
    }


def _reporting(volume: Volume, operation: Callable[[], None], progress: Progress) -> None:
    """Run a slow operation and report what is left to store until it ends."""
    failure: list[BaseException] = []

    def work() -> None:
        try:
            operation()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work, name="s3backer-operation", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_REPORT_SECONDS)
        progress(_left_to_store(volume))
    if failure:
        raise failure[0]
