"""The request engine: from a request to its one final answer, whatever the network and the server do in between.

    request ─► place among those under way ─► signature ─► connection ─► answer ─► verified?
        ▲                                                                  │
        └── pause ◄── worth another attempt? (s3/retries.py) ◄── failure ◄─┘

Guarantees
  * What comes out as an error was tried as long as ``StoreOptions.patience`` allows, writes and everything before the
    first answer for at most SHORT_PATIENCE; ``close`` ends such waiting.
  * A GET that is much slower than others is asked for twice (s3/hedging.py); a write never while the first may arrive.
  * Writes are signed with an expiry: one whose head comes more than ``expiry`` seconds after it was signed is refused
    by the server, however late it arrives. Those whose answers were lost are remembered for so long (s3/unsettled.py).
  * The server's clock is followed, and so is the region in which it says the bucket is, unless one was asked for.
  * LostAnswer says that a condition failed, or an upload is gone, but perhaps by our own earlier attempt: who asked
    has to look.
  * No key, token or signature is in any message or log line.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from functools import partial

from s3backer.clocks import boot_time
from s3backer.errors import AccessDenied, PreconditionFailed, S3backerError, StoreError
from s3backer.failpoints import reach
from s3backer.logs import warned_when_late
from s3backer.s3 import messages
from s3backer.s3.concurrency import Limiter, Pace, Turn
from s3backer.s3.credentials import Environment
from s3backer.s3.hedging import Aside, Hedging
from s3backer.s3.http1 import Answer, Exchange, LongAnswer
from s3backer.s3.messages import Place
from s3backer.s3.proxies import find_proxy
from s3backer.s3.refusals import refusal
from s3backer.s3.request import Request
from s3backer.s3.responses import Fault, is_from_s3, parse_fault, unmasked
from s3backer.s3.retries import MAX_ALTERED, Failure, RetryPolicy, is_slow_down
from s3backer.s3.server_clock import DOUBT, ServerClock, steady_clock
from s3backer.s3.signing import UNSIGNED_PAYLOAD, Keys, Signer, encode_path, encode_query, payload_hash
from s3backer.s3.transport import Transport, closed, tls_context
from s3backer.s3.unsettled import Unsettled
from s3backer.stores.checks import too_large
from s3backer.stores.fence import Fence
from s3backer.stores.options import StoreOptions
from s3backer.telemetry.requests import RequestCounters, failure_of_status

#: Seconds for which the signature of a PUT or DELETE is good. Source: DESIGN, "Writers, requests and time".
EXPIRY = 60
#: Seconds for which writes are tried again here, and everything before the service has answered for the first time.
SHORT_PATIENCE = 30.0
#: Seconds after which who waits for the first answer of all is told: longer than a command tries in vain.
_LATE = 8.0
#: Statuses that do not count as failed attempts.
_EXPECTED = frozenset({200, 204, 206, 304, 404, 412, 416})
#: What is answered to a signature that has ended.
_REFUSED = frozenset({400, 401, 403})
#: Seconds for which a signature is good at least, while a lease lasts.
_SHORTEST = 20
#: How often one request follows the server's clock, its region or new credentials, or is signed anew.
_MOST_CORRECTIONS = 3
#: Seconds in which a kept connection has sent a GET, and between two looks whether a new one has.
_AT_ONCE = 0.001
_LOOK = 0.01
_EXPIRED_KEYS = frozenset({"ExpiredToken", "TokenRefreshRequired"})
#: What is answered to keys that were replaced by others, and to wrong ones.
_REFUSED_KEYS = frozenset({"InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"})

log = logging.getLogger(__name__)


class LostAnswer(Exception):
    """A condition failed, or an upload is not there any more, but perhaps by our own earlier attempt."""


class Engine:
    """Requests to one bucket.

    ``clock`` in seconds since 1970, never set; ``sleep(seconds)`` makes the pauses between attempts.
    """

    def __init__(
        self,
        bucket: str,
        options: StoreOptions,
        counters: RequestCounters,
        *,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], object] | None = None,
        random_source: random.Random | None = None,
        expiry: int = EXPIRY,
    ) -> None:
        self._environment = Environment(options)
        self._bucket = bucket
        self._options = options
        self._counters = counters
        self._closed = threading.Event()
        self._sleep = sleep or self._closed.wait
        self._random = random_source or random.SystemRandom()
        self.policy = RetryPolicy(first_pause=options.first_pause)
        #: Whether the service has ever answered: one that has not is rather a mistaken URL than an outage.
        self._known = False
        #: Whether a request has ever succeeded: keys that are refused before that are wrong rather than replaced.
        self._accepted = False
        self.limiter = Limiter(options.connections, timeout=options.timeout)
        self._hedging = Hedging(time.monotonic)
        self._upload = Pace(options.upload_limit, time.monotonic)
        self._download = Pace(options.download_limit, time.monotonic)
        self._expiry = expiry
        #: Its clock does not stand still while the computer sleeps, and neither does a request on its way.
        self.arriving = 3 * options.timeout + DOUBT
        self.unsettled = Unsettled(boot_time, expiry + self.arriving)
        self._lock = threading.Lock()
        #: Second attempts that are begun.
        self._aside: list[Aside] = []
        self._connect(self._environment.region)
        self._server_clock = ServerClock(clock or steady_clock(), self.place.endpoint)
        self.fence = Fence(self._server_clock.unpaused)

    def _connect(self, region: str) -> None:
        """Direct requests to the bucket in this region."""
        options, bucket = self._options, self._bucket
        endpoint = self._environment.endpoint_in(region)
        in_host = options.virtual_host
        if in_host is None:
            in_host = endpoint.is_aws and "." not in bucket
        in_host = in_host and not endpoint.is_address
        self.place = Place(bucket, str(endpoint), region)
        self._signer = Signer(region)
        self._host = endpoint.netloc(bucket if in_host else "")
        self._root = endpoint.path if in_host else f"{endpoint.path}/{bucket}"
        self._secure = endpoint.scheme == "https"
        host = f"{bucket}.{endpoint.host}" if in_host else endpoint.host
        self._transport = Transport(
            self.place,
            scheme=endpoint.scheme,
            host=host,
            port=endpoint.port,
            timeout=options.timeout,
            type_of_service=options.type_of_service,
            tls=tls_context(
                verify=options.verify_tls,
                ca_bundle=self._environment.ca_bundle,
                spare_bundle=self._environment.spare_bundle,
            )
            if self._secure
            else None,
            proxy=find_proxy(endpoint.scheme, host, endpoint.port),
            on_connect=self._counters.add_connection,
        )

    def perform(
        self,
        request: Request,
        success: tuple[int, ...] = (200,),
        verify: Callable[[Answer], S3backerError | None] | None = None,
    ) -> Answer:
        """Send a request, again where that may help, and return its successful answer or raise what went wrong.

        ``verify`` returns what is wrong with a successful answer, which is then asked for again. Raises LostAnswer
        where a condition failed, or an upload is gone, after an attempt that may have taken effect.
        """
        if self._known:
            return self._perform(request, success, verify)
        late = f"no answer from {self.place.endpoint} yet; still trying"
        with warned_when_late(log, _LATE, late):
            return self._perform(request, success, verify)

    def _perform(
        self, request: Request, success: tuple[int, ...], verify: Callable[[Answer], S3backerError | None] | None
    ) -> Answer:
        waited, attempt, altered, corrections, unsettled = 0.0, 1, 0, 0, False
        while True:
            if self._closed.is_set():
                raise closed(self.place)
            sent_at, region = boot_time(), self.place.region
            try:
                self._ask_fence(request, wait=True)
                turn = self._take_turn(request)
                # Once more: it may have waited for its place for longer than a signature lasts.
                sent_at, region = boot_time(), self.place.region
                answer = self._attempt(request, turn)
                if answer.status not in success:
                    raise self._failure(request, answer, boot_time() - sent_at, region)
                problem = verify(answer) if verify else None
                if problem is None:
                    self._accepted = True
                    return answer
                altered += 1
                raise Failure(problem, retried=altered < MAX_ALTERED)
            except Failure as failure:
                if isinstance(failure.error, (PreconditionFailed, messages.NoUpload)) and unsettled:
                    raise LostAnswer from None
                if failure.unsettled and request.writes and request.accepts is not None:
                    unsettled = True
                    # A server looks at the signature when the head comes: the body may take longer than that lasts.
                    sent_at = max(sent_at, boot_time() - self._expiry)
                    for key in request.keys or (request.resource,):
                        self.unsettled.add(key, request.accepts, sent_at)
                if failure.at_once and request.writes and self._is_outside(request):
                    # What it was meant to replace may be another's by now: who keeps it looks, and tries again.
                    raise StoreError(failure.error.message, hint=failure.error.hint) from None
                pause = None
                if failure.retried:
                    patience = self._patience(request)
                    pause = self.policy.pause(attempt, waited, patience, self._random, failure.retry_after)
                corrections += failure.at_once
                if pause is None and not (failure.at_once and corrections <= _MOST_CORRECTIONS):
                    raise failure.error from None
                log.debug("%s; attempt %d in %.1f s", failure.error, attempt + 1, pause or 0.0)
            if pause is not None:
                self._sleep(pause)
                waited += pause
            attempt += 1
            self._counters.add_retry(pause or 0.0)

    def _patience(self, request: Request) -> float:
        """Return for how long a request is tried again: writes have whoever wrote to try again."""
        patience = self._options.patience
        if self._is_outside(request):
            # Who keeps the mount token tries again, and has to know when it sent what.
            return 0.0
        return min(patience, SHORT_PATIENCE) if request.writes or not self._known else patience

    def wait(self, seconds: float) -> None:
        """Wait, or raise StoreError if the store is closed meanwhile."""
        if seconds > 0:
            log.info("a write waits %.0f s for an earlier one whose answer was lost", seconds)
            if self._closed.wait(seconds):
                raise closed(self.place)

    def close(self) -> None:
        """Release connections and end what waits for another attempt."""
        self._closed.set()
        self.limiter.close()
        self._transport.close()
        with self._lock:
            aside = self._aside
        for second in aside:
            second.join()

    def refuses_expired(self, key: str) -> bool | None:
        """Return whether the service refuses a write whose signature has ended; None if it does not say.

        ``key`` is that of an object there.
        """
        if self._options.anonymous:
            return False
        # Where it does not, the condition does not hold.
        request = Request("put", "PUT", key, headers={"If-None-Match": "*"}, body=b"", conditional=True, signed_ago=10)
        for _ in range(_MOST_CORRECTIONS):
            try:
                status = self._attempt(request, Turn(write=True, apart=True)).status
            except Failure:
                status = 0
            if status in _REFUSED:
                return True
            if 200 <= status < 300 or status == 412:
                return False
            self._sleep(self.policy.first_pause)
        return None

    # ── one attempt ──────────────────────────────────────────────────────────────────────────────────

    def _is_outside(self, request: Request) -> bool:
        """Whether it reads or changes the mount token while that is held: it must wait for nothing."""
        return bool(request.resource) and request.resource == self.fence.outside

    def _ask_fence(self, request: Request, *, wait: bool) -> float:
        """Return for how many seconds a request may be signed."""
        if not request.writes:
            return math.inf
        try:
            return min(self.fence.check(key, wait=wait) for key in request.keys or (request.resource,))
        except StoreError as error:
            raise Failure(error, retried=True, unsettled=False) from None

    def _take_turn(self, request: Request) -> Turn:
        """Wait until the request may begin; ``_attempt`` has to follow, which ends its turn."""
        if self._is_outside(request):
            return Turn(write=request.writes, apart=True)
        self._last_at_least(self._upload.take(request.size) if request.writes else 0.0)
        turn = self.limiter.begin(write=request.writes)
        if turn is None:
            raise closed(self.place)
        return turn

    def _attempt(self, request: Request, turn: Turn) -> Answer:
        started, asked = time.perf_counter(), self._server_clock.ours()
        answer: Answer | None = None
        timed_out = False
        try:
            send = self._hedged if request.hedged else self._once
            try:
                answer = send(request)
            except Failure as failure:
                # A kept connection had ended: no pause is needed, and asking twice does no harm.
                if not failure.stale or request.writes:
                    raise
                answer = send(request)
            if request.method == "POST":
                answer = unmasked(answer)
            if not request.signed_ago:
                self._counters.add_failure(failure_of_status(answer.status))
        except Failure as failure:
            self._counters.add_failure(failure.counted_as)
            timed_out = failure.timed_out
            raise
        except LongAnswer as long:
            if "Range" in request.headers:
                raise messages.no_ranges(self.place, request.resource, long.at_most) from None
            if request.kind == "get":
                raise too_large(f"s3://{self._bucket}", request.resource, long.at_most) from None
            problem = f"it has more than {long.at_most} bytes"
            raise messages.bad_answer(self.place, request.resource, problem) from None
        finally:
            seconds = time.perf_counter() - started
            told = answer is not None and answer.status < 300
            slow = answer is not None and is_slow_down(answer.status)
            self.limiter.end(turn, seconds=seconds if told else None, slow_down=slow, timed_out=timed_out)
            self._counters.add(
                request.kind,
                sent=request.size,
                received=len(answer.body) if answer else 0,
                seconds=seconds,
                failed=answer is None or not (answer.status in _EXPECTED or request.signed_ago),
            )
        if not turn.apart:
            self._last_at_least(self._download.take(len(answer.body)))
        self._known = self._known or answer.status < 500
        # A portal or a proxy on the way has a clock of its own.
        off = is_from_s3(answer) and self._server_clock.observe(answer, asked) and not self._options.anonymous
        if off and not 200 <= answer.status < 300:
            raise Failure(self._clock_off(), retried=False, unsettled=False, at_once=True)
        return answer

    def _last_at_least(self, seconds: float) -> None:
        if seconds > 0:
            self._sleep(seconds)

    def _once(self, request: Request) -> Answer:
        transport = self._transport
        return transport.finish(self._start(transport, request))

    def _hedged(self, request: Request) -> Answer:
        transport, hedging = self._transport, self._hedging
        ticket = hedging.begin()
        answer: Answer | None = None
        try:
            exchange = self._start(transport, request)
            while (patience := hedging.patience(ticket)) is not None:
                if transport.wait(exchange, patience):
                    answer = transport.done(exchange)
                    return answer
                if hedging.allowed(ticket):
                    answer = self._race(transport, request, exchange)
                    return answer
            answer = transport.finish(exchange)
            return answer
        finally:
            hedging.end(ticket, answered=answer is not None)

    def _race(self, transport: Transport, request: Request, first: Exchange) -> Answer:
        def begin() -> Exchange:
            exchange = self._start(transport, request)
            self._counters.add(request.kind)
            return exchange

        second, failure = Aside(begin), None
        with self._lock:
            self._aside = [other for other in self._aside if other.is_alive()] + [second]
        try:
            second.join(_AT_ONCE)
            while second.is_alive() and not transport.wait(first, _LOOK):
                pass
        except Failure as error:
            # Then it is up to the second.
            second.join()
            failure = error
        finally:
            other = second.take()
            if other is not None and first.answer is not None:
                other.connection.close()
        if other is None or first.answer is not None:
            self._counters.add_hedge(won=False)
            if failure is not None:
                raise failure
            return transport.finish(first)
        winner = transport.race([other] if failure else [first, other])
        self._counters.add_hedge(won=winner is not first)
        return transport.done(winner)

    def _start(self, transport: Transport, request: Request) -> Exchange:
        path = encode_path(f"{self._root}/{request.resource}")
        target, headers = self._signed(request, path)
        if request.writes and not self._is_outside(request):
            reach("signed")
        return transport.start(
            request.method,
            target,
            headers,
            request.body,
            leave=partial(self._ask_fence, request, wait=False),
            at_most=request.at_most,
        )

    def _signed(self, request: Request, path: str) -> tuple[str, dict[str, str]]:
        """Return the target and the headers of a request with its signature."""
        # "identity": a proxy that compresses on the way would change the length.
        headers = {"Host": self._host, "User-Agent": "s3backer", "Accept-Encoding": "identity", **request.headers}
        query = encode_query(request.query)
        if self._options.anonymous:
            return (f"{path}?{query}" if query else path), headers
        keys = self._keys()
        now = self._server_clock.now()
        # TLS keeps the body whole and its checksum is signed; on plain http the signature has to cover it.
        payload = UNSIGNED_PAYLOAD if self._secure else payload_hash(request.body or b"")
        if request.writes:
            expiry = 1 if request.signed_ago else max(1, int(min(self._expiry, self._ask_fence(request, wait=False))))
            now -= request.signed_ago
            target = self._signer.sign_until(request.method, path, query, headers, payload, keys, now, expiry)
            return target, headers
        headers = self._signer.sign(request.method, path, query, headers, payload, keys, now)
        return (f"{path}?{query}" if query else path), headers

    def _keys(self) -> Keys:
        try:
            keys = self._environment.keys()
        except AccessDenied as error:
            # Where there were some before, their source is away rather than wrong.
            raise Failure(error, retried=self._known, unsettled=False) from None
        if keys is None:
            raise messages.no_credentials(self.place)
        return keys

    # ── what an answer means that is no success ──────────────────────────────────────────────────────

    def _failure(self, request: Request, answer: Answer, age: float, asked: str) -> Failure:
        """Return what to do about an answer to an attempt that began ``age`` seconds ago in the region ``asked``."""
        fault = parse_fault(answer.body)
        correction = self._correct(request.resource, answer, fault, asked)
        if correction is not None:
            return correction
        # The time in a signature has whole seconds.
        expired = answer.status == 403 and request.writes and age >= min(self._expiry, _SHORTEST) - 1
        return refusal(self.place, request, answer, fault, expired=expired)

    def _correct(self, key: str, answer: Answer, fault: Fault | None, asked: str) -> Failure | None:
        """Use other credentials, the server's clock, or the bucket's region, where the answer says that ours is wrong.

        None where there is nothing to correct, or no way to.
        """
        code = fault.code if fault else ""
        if code in _EXPIRED_KEYS or (code in _REFUSED_KEYS and self._accepted):
            return self._renew(messages.explain_fault(self.place, key, answer, fault))
        if code == "RequestTimeTooSkewed":
            return Failure(self._clock_off(), retried=False)
        region = messages.region_of(answer, fault)
        if region and region != asked and not self._environment.region_given:
            with self._lock:
                # Another request may have been told before.
                if region != self.place.region:
                    log.info("bucket %r is in region %s", self._bucket, region)
                    old = self._transport
                    self._connect(region)
                    old.close()
            return Failure(
                messages.explain_fault(self.place, "", answer, fault), retried=False, unsettled=False, at_once=True
            )
        return None

    def _renew(self, error: S3backerError) -> Failure | None:
        """Look for other credentials, because the server refuses these; None if there are none."""
        if self._options.anonymous:
            return None
        try:
            found = self._environment.renew()
        except AccessDenied as why:
            return Failure(why, retried=True, unsettled=False)
        if not found:
            return None
        log.info("the service refuses the credentials in use; there are others now")
        return Failure(error, retried=False, unsettled=False, at_once=True)

    def _clock_off(self) -> S3backerError:
        return messages.clock_off(self.place, self._server_clock.ahead or None)
