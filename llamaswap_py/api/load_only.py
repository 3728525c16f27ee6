"""Loads a model without a prompt (`/models/load`, Ollama's empty prompt), for an inference key.

Such a load is queued like any other request, with the priority and the turns of its key. It can be
refused, and it waits while a failed model backs off. It generates nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamaswap_py.api.scheduling_headers import read_scheduling_headers

if TYPE_CHECKING:
    from llamaswap_py.api.request import Call
    from llamaswap_py.config.api_keys import ApiKey
    from llamaswap_py.supervisor.leases import Ticket


async def load_as_asked(call: Call, preset: str) -> None:
    """Load a model and wait until it is ready; raises ApiError."""
    if call.key is None or call.key.is_admin:
        await call.supervisor.load(preset)
        return
    call.ticket = _ticket(call, call.key, preset)
    async with call.ticket as lease:
        call.granted(lease)


async def begin_load(call: Call, preset: str) -> None:
    """Begin to load a model, and return at once; raises ApiError if it is refused at once."""
    if call.key is None or call.key.is_admin:
        call.supervisor.request_load(preset)
    else:
        await call.supervisor.begin_load(_ticket(call, call.key, preset))


def _ticket(call: Call, key: ApiKey, preset: str) -> Ticket:
    head = call.exchange.head
    scheduling = read_scheduling_headers(
        head,
        substitutable=False,
        highest=key.priority,
        allowed=key.models,
        is_own=call.is_own,
        weight=key.weight,
    )
    ticket: Ticket = call.supervisor.lease(
        preset, client=call.principal, request_id=call.id, slot=False, scheduling=scheduling
    )
    return ticket
