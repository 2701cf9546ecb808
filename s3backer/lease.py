"""Who may write to a volume, by time: the rules of the lease. No thread, no clock and no request is in here.

    holder     renewed ──────────── 1/3 renews ─────────── 2/3 stops writing ────────── 1 signatures end
    watcher    sees the token ───────────── unchanged ──────────────────────────────── 1 takes it ─── waits ─── writes

Guarantees
  * The holder counts from the moment at which it sent the request that renewed the token, a watcher from the answer
    that showed it: so the holder's term ends first, whatever their clocks say, if they run alike.
  * Writing stops a third of the term before its end, and what is sent until then is signed for no longer than the
    term. A server that heeds signatures takes nothing after that, also of a process that was stopped in between.
  * The holder's clock goes on while the computer sleeps or the process is stopped. While a virtual machine is paused it
    stands still: what is signed then is refused, by the server's clock, and its answer tells the holder how late it
    is (ServerClock.unpaused). A watcher's clock may stand still: it only waits longer then.
"""

from __future__ import annotations

from s3backer.errors import S3backerError, StoreError, VolumeInUse

#: Seconds of a term.
TERM = 60.0
#: Of a term: after which share it is renewed, at which one writing stops, and the pause after a failed attempt.
_RENEW, _STOP, _PAUSE = 1 / 3, 2 / 3, 1 / 20


class Lease:
    """The holder's side. ``term`` in seconds; ``sent_at``: when the request was sent that made it, on its clock."""

    def __init__(self, name: str, term: float, sent_at: float) -> None:
        self._name = name
        self._term = term
        self._renewed = sent_at
        self._next = sent_at + term * _RENEW
        self._lost: VolumeInUse | None = None
        #: Why the last attempt to renew it had no success, if that is so and known.
        self._failure: S3backerError | None = None

    @property
    def lost(self) -> VolumeInUse | None:
        """Why it is somebody else's now; None while it is not known to be."""
        return self._lost

    def renewed(self, sent_at: float) -> None:
        """Hear that the token was renewed by a request that was sent at ``sent_at``."""
        self._renewed = max(self._renewed, sent_at)
        self._next = self._renewed + self._term * _RENEW
        self._failure = None

    def failed(self, now: float, error: S3backerError | None = None) -> None:
        """Hear that an attempt to renew it had no success, and why."""
        self._failure = error
        self._next = now + self._term * _PAUSE

    def lose(self, error: VolumeInUse) -> None:
        """Hear that the token is not ours any more. Nothing is written from here after that."""
        self._lost = self._lost or error

    def due_in(self, now: float) -> float:
        """Return in how many seconds the token is to be renewed."""
        return max(0.0, self._next - now)

    def sign_for(self, now: float) -> float:
        """Return for how many seconds what is sent now may be signed: more than a quarter of the term.

        Raises StoreError while nothing may be sent, VolumeInUse if nothing ever will.
        """
        if self._lost is not None:
            raise self._lost
        passed = now - self._renewed
        if passed >= self._term * _STOP:
            # No seconds where the cause is known: who waits is told of it when it changes.
            failure = self._failure
            what = (
                f"was renewed {passed:.0f} s ago and not since" if failure is None else f"cannot be renewed: {failure}"
            )
            tried = "Nothing is sent to the store until it is renewed, which is tried all the time."
            raise StoreError(
                f"the mount token of {self._name} {what}",
                hint=tried if failure is None else f"{tried} {failure.hint}".rstrip(),
            )
        return self._term - passed


class Watch:
    """The side of who wants the volume: whether a token's holder is alive. ``now`` on a monotonic clock."""

    def __init__(self, etag: str, term: float, now: float) -> None:
        self._etag = etag
        self._until = now + term

    def saw(self, etag: str) -> bool:
        """Hear of the token's ETag as it is now; return whether somebody has renewed or replaced it."""
        return etag != self._etag

    def left(self, now: float) -> float:
        """Return for how many seconds it has to stay as it is until the term has ended."""
        return max(0.0, self._until - now)
