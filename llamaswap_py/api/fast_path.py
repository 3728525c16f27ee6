"""The short way of a request that repeats a head, for a model that is ready.

Nothing is awaited: the request goes to the child in the call that brought it, and its answer to the
client as it comes. Whatever ends otherwise than well goes on where every other request begins.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from llamaswap_py.api.body import name_in
from llamaswap_py.api.inference import NO_FILTERS
from llamaswap_py.api.media_urls import may_hold
from llamaswap_py.api.request import Call, Meaning
from llamaswap_py.api.sending import DROPPED, cut, note_answer
from llamaswap_py.config.forms import SUBSTITUTE
from llamaswap_py.proxy.messages import Outcome
from llamaswap_py.proxy.upstream import ONE_WRITE

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamaswap_py.api.request import Services
    from llamaswap_py.proxy.exchange import Exchange
    from llamaswap_py.proxy.messages import RelayResult
    from llamaswap_py.supervisor.leases import Lease
    from llamaswap_py.supervisor.names import Names

_HEAD: Final = b"%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n"


class Express:
    """Begins requests; `ended` is told of each that has come to its end here."""

    def __init__(
        self, services: Services, new_id: Callable[[], str], ended: Callable[[Call], None]
    ) -> None:
        self._services = services
        self._new_id = new_id
        self._ended = ended
        self._names: Names | None = None
        self._presets: dict[str, str] = {}

    def begin(self, exchange: Exchange, body: bytes) -> bool:
        """Start to answer; False: nothing has happened, and `App.handle` has to."""
        services = self._services
        meaning = exchange.head.memo
        if (
            not isinstance(meaning, Meaning)
            or not meaning.express
            or meaning.config is not services.supervisor.config
            or meaning.keys is not services.access.keys
            or services.captures is not None
            or len(body) > ONE_WRITE
            or len(body) > meaning.config.limits.body
            or (not meaning.config.allow_media_urls and may_hold(body))
        ):
            return False
        preset = self._preset(body)
        if preset is None:
            return False
        id = self._new_id()
        client = meaning.principal
        if meaning.key is not None and not exchange.connection.claim(client):
            return False
        in_flight = services.access.in_flight
        open_now = in_flight.get(client, 0)
        if meaning.most and open_now >= meaning.most:
            return False
        route = meaning.route
        assert route is not None
        slot = route.slot
        found = services.supervisor.lease_at_once(preset, client=client, request_id=id, slot=slot)
        if found is None:
            return False
        call = Call(services, exchange, id, route, meaning)
        call.family, call.key = meaning.family, meaning.key
        call.ticket, lease = found
        call.early = call.ticket
        in_flight[client] = open_now + 1
        call.counted = client
        try:
            self._start(call, lease, body)
        except Exception:
            if call.early is not None:
                call.early.give_back(well=False)
                call.early = exchange.begun = None
                self._ended(call)
            raise
        return True

    def _start(self, call: Call, lease: Lease, body: bytes) -> None:
        """Send the request under its lease."""
        services, exchange, id = self._services, call.exchange, call.id
        services.calls[id] = exchange.begun = call
        call.granted(lease)
        lease.answer = exchange
        lease.on_revoke(partial(cut, call))
        head = _HEAD % (call.meaning.start(exchange, DROPPED), id.encode("ascii"), len(body))
        exchange.relay_at_once(
            services.supervisor.pool,
            lease.endpoint,
            head + body,
            error_event=call.failure_event,
            done=self._done,
        )

    def _preset(self, body: bytes) -> str | None:
        """Return the preset that a body names, if requests for it are relayed as they are."""
        name = name_in(body)
        supervisor = self._services.supervisor
        if supervisor.names is not self._names:
            self._names, self._presets = supervisor.names, {}
        preset = self._presets.get(name) if name is not None else None
        if name is None or preset is not None:
            return preset
        preset = supervisor.names.fixed(name)
        if preset is None:
            return None
        about = supervisor.config.models[preset]
        if about.request is not NO_FILTERS or about.when_full.startswith(SUBSTITUTE):
            return None
        self._presets[name] = preset
        return preset

    def _done(self, exchange: Exchange, result: RelayResult) -> None:
        """The answer has ended well, or its client has left."""
        call = exchange.begun
        assert isinstance(call, Call)
        assert call.early is not None
        if result.outcome is Outcome.COMPLETE:
            note_answer(call, result)
        else:
            call.outcome = "client_gone"
        call.early.give_back(well=result.outcome is Outcome.COMPLETE)
        call.early = exchange.begun = None  # no cycle is left to the collector
        self._ended(call)
