"""The metrics of the children that are ready; none is woken or loaded for them."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from llamaswap_py.children.probe import ask
from llamaswap_py.scheduler.states import State

if TYPE_CHECKING:
    from llamaswap_py.endpoint import Endpoint
    from llamaswap_py.supervisor import Supervisor

_PATIENCE: Final = 1.0
"""Seconds; a busy child answers between two batches."""


async def scrape_children(supervisor: Supervisor) -> dict[str, str]:
    """Return each ready child's `GET /metrics` by preset; one that does not answer is left out."""
    children = {}
    for key, one in supervisor.scheduler.world.instances.items():
        running = supervisor.running.get(key)
        if one.state is State.READY and running is not None and running.endpoint is not None:
            children[str(key.preset)] = running.endpoint
    texts = await asyncio.gather(*map(_scrape, children.values()))
    return {name: text for name, text in zip(children, texts, strict=True) if text}


async def _scrape(endpoint: Endpoint) -> str:
    try:
        answer = await ask(endpoint, "GET", "/metrics", timeout=_PATIENCE)
    except OSError:
        return ""
    return answer.body.decode("utf-8", "replace") if answer.status == HTTPStatus.OK else ""
