"""Requests come in, leases go out: who waits for an instance, and who holds one."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llamaswap_py import guarding
from llamaswap_py.errors import ApiError
from llamaswap_py.leases import NO_WISHES, Lease, Notice, Ticket, Wishes, new_request_id, open_under
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Reject
from llamaswap_py.scheduler.records import ClientId, PresetId, RequestId
from llamaswap_py.views import as_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llamaswap_py.scheduler import InstanceKey
    from llamaswap_py.supervisor import Supervisor


class Desk:
    """Makes tickets and settles them as the scheduler says."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.tickets: dict[RequestId, Ticket] = {}
        """Of every request that waits or holds a lease."""
        self.granted = 0
        """How many leases there ever were."""

    def lease(
        self,
        preset: str,
        *,
        client: str,
        request_id: str,
        slot: bool = True,
        autoload: bool = True,
        since: float | None = None,
        wishes: Wishes = NO_WISHES,
        notice: Notice | None = None,
    ) -> Ticket:
        """Return a context manager that waits for a lease and gives it back at its end.

        Entering raises ApiError when the scheduler refuses. `since` (monotonic seconds) keeps the
        place of a request that comes back; `slot` False is for what generates nothing.
        """
        event = ev.RequestArrived(
            request=new_request_id(request_id),
            preset=PresetId(preset),
            client=ClientId(client),
            slot=slot,
            autoload=autoload,
            since=since,
            priority=wishes.priority,
            patience=wishes.patience,
            when_full=self._supervisor.names.resolve_substitute(wishes.when_full),
            substitutable=wishes.substitutable,
            parent=open_under(self._supervisor.scheduler.world.leases, wishes.parent),
            allowed=wishes.allowed,
            weight=wishes.weight,
        )
        return Ticket(self, event, notice)

    def lease_at_once(
        self, preset: str, *, client: str, request_id: str, slot: bool
    ) -> tuple[Ticket, Lease] | None:
        """Return a lease that nobody has to wait for, and its ticket, to be entered or released.

        None where a request without wishes would have to wait, or be refused: nothing has happened
        then. No other request may have the id now.
        """
        event = ev.RequestArrived(
            # Ids of requests that may wait have a number behind the slash (`new_request_id`).
            request=RequestId(f"{request_id}/"),
            preset=PresetId(preset),
            client=ClientId(client),
            slot=slot,
            substitutable=False,
        )
        now = time.monotonic()
        try:
            instance = self._supervisor.scheduler.grant_at_once(event, now)
        except Exception as error:
            guarding.report("scheduler", error)
            self._supervisor.feed(ev.RequestFinished(event.request, ev.Outcome.CANCELLED))
            return None
        if instance is None:
            return None
        ticket = self.tickets[event.request] = Ticket(self, event, None)
        lease = self._lease(instance.key)
        if lease is None:
            self.finish(ticket, ev.Outcome.UPSTREAM_ERROR)
            return None
        self.granted += 1
        lease.arrived = now
        ticket.hold(lease)
        return ticket, lease

    @contextmanager
    def reading(self, preset: str, *, wakes: bool) -> Iterator[Lease]:
        """Give a lease of an instance that is there, for a request that only reads.

        The scheduler knows nothing of it: the instance stays as idle as it is, and whoever reads is
        cut off when it leaves. `wakes`: a child that sleeps would wake to answer. Raises ApiError
        where no instance answers.
        """
        now = time.monotonic()
        found = self._supervisor.scheduler.look(PresetId(preset), now, wakes=wakes)
        if isinstance(found, Reject):
            raise as_error(found)
        lease = self._lease(found)
        if lease is None:
            raise ApiError("upstream_failed", f"{found} ended before it could answer")
        lease.began(now)
        lease.held.readers.add(lease)
        try:
            yield lease
        finally:
            lease.held.readers.discard(lease)

    def turn_away(self, client: str, may_use: Callable[[str], bool], error: ApiError) -> None:
        """Let a client's requests not wait any more for presets that it may not use."""
        for ticket in list(self.tickets.values()):
            if ticket.event.client == client and not may_use(ticket.event.preset):
                ticket.give_up(error)

    # For tickets

    def arrive(self, ticket: Ticket) -> None:
        """Hand a request to the scheduler; the ticket is settled when it decides."""
        self.tickets[ticket.event.request] = ticket
        supervisor = self._supervisor
        supervisor.estimating.hurry(ticket.event.preset)
        if (other := ticket.event.when_full.removeprefix("substitute:")) in supervisor.prepared:
            supervisor.estimating.hurry(other)
        supervisor.feed(ticket.event)

    def leave(self, ticket: Ticket) -> None:
        """The client of a waiting request is gone."""
        self.tickets.pop(ticket.event.request, None)
        self._supervisor.feed(ev.RequestLeft(ticket.event.request))

    def finish(self, ticket: Ticket, outcome: ev.Outcome) -> None:
        """A lease ended."""
        self.tickets.pop(ticket.event.request, None)
        self._supervisor.feed(ev.RequestFinished(ticket.event.request, outcome))

    # What the scheduler decided

    def grant(self, request: RequestId, key: InstanceKey) -> None:
        """A request has its instance."""
        ticket, lease = self.tickets.get(request), self._lease(key)
        if ticket is None:
            return
        if lease is None:
            self.tickets.pop(request)
            ticket.refuse(ApiError("model_failed", f"{key} ended before it could answer"))
            self._supervisor.feed(ev.RequestFinished(request, ev.Outcome.UPSTREAM_ERROR))
            return
        self.granted += 1
        ticket.grant(lease)

    def refuse(self, action: Reject) -> None:
        """A request is not served."""
        if ticket := self.tickets.pop(action.request, None):
            ticket.refuse(as_error(action))

    def fail(self, request: RequestId) -> None:
        """What was decided for a request could not be done."""
        if ticket := self.tickets.pop(request, None):
            ticket.refuse(
                ApiError("internal", "lswap failed to carry out what it decided for this request")
            )
        self._supervisor.feed(ev.RequestFinished(request, ev.Outcome.UPSTREAM_ERROR))

    def revoke(self, request: RequestId, reason: str) -> None:
        """A lease is taken back."""
        if ticket := self.tickets.get(request):
            ticket.revoke(reason)

    def _lease(self, key: InstanceKey) -> Lease | None:
        """Return a lease of an instance, None where it died in this very moment."""
        running = self._supervisor.running.get(key)
        if running is None or running.endpoint is None:
            return None
        instance = self._supervisor.scheduler.world.instances[key]
        ready_at = instance.ready_at or instance.spawned_at
        return Lease(running.endpoint, key, instance.spawned_at, ready_at, running.held)
