"""How one answer on its way from a child to a client ends: well, cut, or because a side is gone."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from llamaswap_py.proxy.messages import Outcome, RelayResult
from llamaswap_py.proxy.parsers import Framing
from llamaswap_py.proxy.websocket import close_frame, ends_a_frame
from llamaswap_py.units import KIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamaswap_py.proxy.exchange import Exchange
    from llamaswap_py.proxy.upstream import UpstreamConnection

#: How long a cut waits for the end of a chunk before the client is aborted instead.
_CUT_PATIENCE: Final = 2.0
TAIL: Final = 2 * KIB


class Ending:
    """What a relay holds of both sides, and how it lets go of them, once."""

    #: bytes of the answer passed to the client
    passed = 0
    tunnelling = _is_websocket = False
    #: it has let go of both sides
    ended = False
    _verbatim = _translated = False
    _last = _before = b""
    #: what `run` waits for
    done: asyncio.Future[None] | None = None
    _cut_timer: asyncio.TimerHandle | None = None

    def __init__(
        self,
        upstream: UpstreamConnection,
        exchange: Exchange,
        error_event: Callable[[str], bytes] | None,
    ) -> None:
        self.upstream = upstream
        self.exchange = exchange
        self.client = exchange.connection
        self.result = RelayResult(Outcome.COMPLETE)
        self._error_event = error_event
        self._watch = upstream.watch

    def cut(self) -> None:
        """End now, or at the next boundary where the client's framing allows."""
        exchange = self.exchange
        if self.tunnelling and self._is_websocket and ends_a_frame(self._last):
            self.client.write(close_frame(exchange.cut_close))
            exchange.finished = True  # the connection is closed once that is written
            self._end(Outcome.CUT, exchange.cut_reason)
        elif not exchange.response_started or exchange.padded:
            self._end(Outcome.CUT, exchange.cut_reason)
        elif self._at_boundary() or not (self._verbatim and exchange.event_stream):
            self._stop(Outcome.CUT, exchange.cut_reason, exchange.cut_event)
        else:
            self.upstream.on_bytes = self._on_cutting
            self._cut_timer = asyncio.get_running_loop().call_later(
                _CUT_PATIENCE, self._stop, Outcome.CUT, exchange.cut_reason, None
            )

    def client_lost(self) -> None:
        """The client is gone: forget it in this very call, and stop the child."""
        if self.tunnelling:
            self._complete()
        self._end(Outcome.CUT, "the client went away")

    def upstream_finished(self) -> bool:
        """The child has sent its last byte; tell whether its connection stays open for ours."""
        return self.tunnelling and self.client.finish_writing()

    def upstream_lost(self, error: Exception | None) -> None:
        """The child's connection is gone."""
        watch = self._watch
        if self.tunnelling:
            self._complete()
        elif not watch.head_complete:
            reason = "the child closed the connection before it answered"
            self._end(Outcome.DIED_BEFORE_HEAD, reason + (f": {error}" if error else ""))
        elif watch.framing is Framing.CLOSE and error is None:
            self._complete()
        else:
            self._fail("the child closed the connection in the middle of its answer")

    def _at_boundary(self) -> bool:
        """Tell whether an event can be put into the client's stream here."""
        if not self.exchange.event_stream or self._watch.framing is Framing.LENGTH:
            return False
        if not self._verbatim:
            return True
        # Between two chunks; the newline tells a begun size line from the end of a chunk.
        return not self._watch.in_chunk and (not self._last or self._last.endswith(b"\n"))

    def _fail(self, reason: str) -> None:
        exchange = self.exchange
        if exchange.cut_event is not None:  # it was about to end: its child has only been quicker
            self._stop(Outcome.CUT, exchange.cut_reason, exchange.cut_event)
            return
        if not exchange.response_started or exchange.padded:  # the client can have another answer
            self.result.status = 0
            self._end(Outcome.BAD_UPSTREAM, reason)
            return
        event = self._error_event(reason) if self._error_event is not None else None
        self._stop(Outcome.DIED_MIDSTREAM, reason, event)

    def _stop(self, outcome: Outcome, reason: str, event: bytes | None) -> None:
        """End the client's answer before its time: with an event, or abruptly."""
        if event and self._at_boundary():
            event_end = b"\n\n\r\n" if self._verbatim else b"\n\n"
            whole = self._translated or not self._last or self._last.endswith(event_end)
            self.exchange.end_stream(event if whole else b"\n\n" + event)
            self._end(outcome, reason)
        else:
            self._end(outcome, reason)
            self.client.abort()

    def _end(self, outcome: Outcome, error: str = "", *, over: bool = False) -> None:
        """Let go of both sides, once; `over`: the parser need not be asked for the answer's end."""
        if self.ended:
            return
        self.ended = True
        if self._cut_timer is not None:
            self._cut_timer.cancel()
        self.exchange.relay_ended(self.passed)
        result = self.result
        result.outcome, result.error = outcome, error
        result.started = self.exchange.response_started
        result.finished_at = time.monotonic()
        if outcome is Outcome.COMPLETE and not self.tunnelling:
            last = self._last
            if len(last) < TAIL and self._before:
                last = self._before + last
            result.tail = last[-TAIL:]
            over = over or self._watch.is_over
        self.upstream.end(over=over)
        done, self.done = self.done, None
        if done is not None and not done.done():
            done.set_result(None)
            # After any other end something else may be done to the client in this very call.
            self.client.woken(at_once=outcome is Outcome.COMPLETE)

    def _complete(self) -> None:
        """The answer has ended well."""
        raise NotImplementedError

    def _on_cutting(self, data: bytes) -> None:
        """Pass on what comes up to the next boundary, and end there."""
        raise NotImplementedError
