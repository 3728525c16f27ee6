"""Random events, failures and time jumps: the invariants hold after every step, and twice alike."""

from __future__ import annotations

from dataclasses import replace
from zlib import crc32

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from llamaswap_py.scheduler import Policy, Pool, Scheduler
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Spawn, Stop
from llamaswap_py.scheduler.recording import (
    Hiding,
    RecordHead,
    encode_end,
    encode_head,
    encode_step,
    read_steps,
)
from llamaswap_py.scheduler.types import RPC_LOST, Failure, InstanceKey, PresetId, RequestId
from llamaswap_py.simulator.replay import replay
from tests.scheduler.play import HOST, Play, plan

NAMES = "abcdef"
CLIENTS = ("client-x", "client-y", "client-z")


class Machine(RuleBasedStateMachine):
    """Drives a Play: it checks invariants 1, 3, 6, 10 and the state's consistency at each event."""

    play: Play

    @initialize(
        sizes=st.lists(st.one_of(st.none(), st.integers(1, 120)), min_size=2, max_size=6),
        margin=st.integers(0, 10),
        max_loaded=st.sampled_from([0, 0, 1, 2]),
        ttl=st.sampled_from([None, 5.0]),
        cancel=st.booleans(),
        load=st.sampled_from([0.05, 1.0, 30.0]),
        slots=st.integers(1, 3),
        grouped=st.booleans(),
        persistent=st.booleans(),
        absent=st.booleans(),
        at_once=st.booleans(),
        lent=st.booleans(),
    )
    def begin(
        self,
        sizes: list[int | None],
        margin: int,
        max_loaded: int,
        ttl: float | None,
        cancel: bool,
        load: float,
        slots: int,
        grouped: bool,
        persistent: bool,
        absent: bool,
        at_once: bool,
        lent: bool,
    ) -> None:
        plans = [
            plan(
                name,
                size,
                ttl=ttl,
                drain_timeout=20.0,
                cancel_at_drain_deadline=cancel,
                groups=("vowels",) if grouped and name in "ae" else (),
                persistent=("vowels",) if grouped and persistent and name in "ae" else (),
                absent=absent and name in "bc",
                endpoints=("box:1", "box:2")[: "cde".index(name)] if lent and name in "de" else (),
                kind="embedding" if name == "d" else "chat",
            )
            for name, size in zip(NAMES, sizes, strict=False)
        ]
        self.plans = plans
        self.play = Play(
            *plans,
            margin=margin,
            load_seconds=load,
            max_loaded=max_loaded,
            queue_limit=6,
            queue_timeout=100.0,
            max_wait=10.0,
        )
        self.play.slots = slots
        self.play.wakes = True
        # The run is repeated with `handle` alone at its end: the same must come of it.
        self.play.at_once = at_once
        self.closed = False

    @rule(
        preset=st.sampled_from(NAMES),
        client=st.sampled_from(CLIENTS),
        slot=st.sampled_from([True, True, True, False]),
        autoload=st.sampled_from([True, True, True, False]),
        hot=st.booleans(),
    )
    def ask(self, preset: str, client: str, slot: bool, autoload: bool, hot: bool) -> None:
        weight = 2 if client == CLIENTS[-1] else 1
        if hot:
            self.play.keep_busy(PresetId(preset), service=0.7, client=f"{client}!")
        else:
            self.play.ask(PresetId(preset), client, slot=slot, autoload=autoload, weight=weight)

    @rule(
        preset=st.sampled_from(NAMES),
        client=st.sampled_from(CLIENTS),
        priority=st.integers(-1, 2),
        patience=st.sampled_from([None, 1.0, 30.0]),
        when_full=st.sampled_from(["", "refuse", "substitute:a", "substitute:loaded"]),
        data=st.data(),
    )
    def ask_specially(
        self,
        preset: str,
        client: str,
        priority: int,
        patience: float | None,
        when_full: str,
        data: st.DataObject,
    ) -> None:
        parents = st.sampled_from([None, *sorted(self.play.audit.holders)])
        self.play.ask(
            PresetId(preset),
            f"{client}{priority}",
            priority=priority,
            patience=patience,
            when_full=when_full,
            parent=data.draw(parents),
        )

    @rule(strangers=st.integers(0, 120), watched=st.booleans())
    def measure(self, strangers: int, watched: bool) -> None:
        pool = Pool(100, self.play.margin, strangers, watched)
        self.play.feed(ev.PoolsMeasured({HOST: pool}))

    @precondition(lambda self: self.play.audit.holders)
    @rule(data=st.data(), outcome=st.sampled_from(list(ev.Outcome)))
    def finish(self, data: st.DataObject, outcome: ev.Outcome) -> None:
        request = data.draw(st.sampled_from(sorted(self.play.audit.holders)))
        self.play.finish(request, outcome)

    @precondition(lambda self: self.play.audit.holders)
    @rule(data=st.data(), reads=st.booleans())
    def detach(self, data: st.DataObject, reads: bool) -> None:
        """The client of a lease leaves its answer behind, or somebody reads it again."""
        request = data.draw(st.sampled_from(sorted(self.play.audit.holders)))
        self.play.feed(ev.LeaseAttached(request) if reads else ev.LeaseDetached(request))

    @precondition(lambda self: self.play.audit.holders)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        """A revoked, unused lease: the request waits again with its old arrival time."""
        request = data.draw(st.sampled_from(sorted(self.play.audit.holders)))
        asked, since = self.play.asked[request], self.play.audit.since[request]
        self.play.finish(request, ev.Outcome.CANCELLED)
        self.play.ask(asked.preset, asked.client, slot=asked.slot, since=since)

    @precondition(lambda self: self.play.audit.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.play.audit.waiting)))
        self.play.feed(ev.RequestLeft(request))

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.5, 3.0, 40.0, 120.0]))
    def wait(self, seconds: float) -> None:
        self.play.pass_time(seconds)

    @rule(server=st.sampled_from(["box:1", "box:2"]), gone=st.booleans())
    def server(self, server: str, gone: bool) -> None:
        """An RPC server goes, or comes back."""
        (self.play.gone.add if gone else self.play.gone.discard)(server)

    @precondition(lambda self: self.play.scheduler.state.instances)
    @rule(
        data=st.data(),
        kind=st.sampled_from(["crashed", "out_of_memory", "out_of_memory", RPC_LOST, ""]),
    )
    def exit(self, data: st.DataObject, kind: str) -> None:
        key = data.draw(st.sampled_from(sorted(self.play.scheduler.state.instances)))
        self.play.feed(ev.InstanceExited(key, Failure(kind, "it died", 1) if kind else None))

    @precondition(lambda self: self.play.scheduler.state.instances)
    @rule(data=st.data())
    def hang(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.play.scheduler.state.instances)))
        self.play.feed(ev.InstanceHung(key, Failure("timeout", "no token")))

    @precondition(lambda self: self.play.scheduler.state.instances)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.play.scheduler.state.instances)))
        self.play.feed(ev.InstanceLost(key))
        self.play.later(0.1, ev.InstanceExited(key, Failure("killed", "killed by signal 9")))

    @precondition(lambda self: self.play.scheduler.state.instances)
    @rule(data=st.data(), ends=st.booleans(), exits=st.booleans())
    def refuse(self, data: st.DataObject, ends: bool, exits: bool) -> None:
        """It ends by itself, or only when it is told to."""
        key = data.draw(st.sampled_from(sorted(self.play.scheduler.state.instances)))
        self.play.feed(ev.InstanceRefused(key, ends))
        if exits:
            self.play.later(0.1, ev.InstanceExited(key, None))

    @precondition(lambda self: self.play.scheduler.state.instances)
    @rule(data=st.data(), fraction=st.one_of(st.none(), st.floats(0, 1)))
    def progress(self, data: st.DataObject, fraction: float | None) -> None:
        key = data.draw(st.sampled_from(sorted(self.play.scheduler.state.instances)))
        self.play.feed(ev.InstanceProgressed(key, fraction))

    @precondition(lambda self: self.play.scheduler.state.instances)
    @rule(data=st.data())
    def stall(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.play.scheduler.state.instances)))
        self.play.feed(ev.InstanceStalled(key, Failure("timeout", "no progress")))

    @rule(preset=st.sampled_from(NAMES), evict=st.booleans())
    def load(self, preset: str, evict: bool) -> None:
        self.play.feed(ev.LoadAsked(PresetId(preset), evict))

    @rule(preset=st.sampled_from(NAMES), force=st.booleans())
    def unload(self, preset: str, force: bool) -> None:
        self.play.feed(ev.UnloadAsked(PresetId(preset), force))

    @rule(preset=st.sampled_from(NAMES), ttl=st.sampled_from([None, 0.0, 3.0]))
    def keep_alive(self, preset: str, ttl: float | None) -> None:
        self.play.feed(ev.TtlChanged(PresetId(preset), ttl))

    @rule(preset=st.sampled_from(NAMES), pin=st.booleans())
    def pin(self, preset: str, pin: bool) -> None:
        self.play.feed(ev.PinChanged(PresetId(preset), pin))

    @rule(preset=st.sampled_from(NAMES), epoch=st.integers(1, 5))
    def late(self, preset: str, epoch: int) -> None:
        """An event of an instance that is not there (any more)."""
        key = InstanceKey(PresetId(preset), epoch)
        if key not in self.play.scheduler.state.instances:
            assert self.play.feed(ev.InstanceReady(key, 1)) == []
            assert self.play.feed(ev.RequestFinished(RequestId("nobody"))) == []

    @rule(name=st.sampled_from(["r1", "r2"]), size=st.integers(0, 110), evict=st.booleans())
    def reserve(self, name: str, size: int, evict: bool) -> None:
        self.play.feed(ev.ReservationAsked(name, {HOST: size}, evict))

    @rule(name=st.sampled_from(["r1", "r2", "a"]))
    def release(self, name: str) -> None:
        self.play.feed(ev.ReservationReleased(name))

    @rule(preset=st.sampled_from(NAMES), fraction=st.floats(-1, 2))
    def download(self, preset: str, fraction: float) -> None:
        self.play.feed(ev.DownloadProgressed(PresetId(preset), fraction))

    @rule(preset=st.sampled_from(NAMES), works=st.booleans())
    def download_ends(self, preset: str, works: bool) -> None:
        """Also when there was none: such an end must do no harm."""
        known = self.play.scheduler.state.presets.get(PresetId(preset))
        if known is None or not known.plan.absent:
            return
        if works:
            there = replace(known.plan, absent=False)
            self.play.feed(ev.DownloadFinished(PresetId(preset), there))
        else:
            failure = Failure("download", "the hub cannot be reached")
            self.play.feed(ev.DownloadFailed(PresetId(preset), failure))

    @precondition(lambda self: self.play.scheduler.state.instances)
    @rule(data=st.data())
    def sleep_or_wake(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.play.scheduler.state.instances)))
        slept = data.draw(st.booleans())
        self.play.feed(ev.InstanceSlept(key) if slept else ev.InstanceWoke(key))

    @rule(age=st.floats(0, 1e5))
    def recall(self, age: float) -> None:
        self.play.feed(ev.TrafficRecalled(self.play.scheduler.traffic(), age))

    @rule(keep=st.integers(0, 63))
    def reconfigure(self, keep: int) -> None:
        plans = tuple(one for bit, one in enumerate(self.plans) if keep & (1 << bit))
        self.play.feed(ev.PresetsChanged(plans))

    @rule(force=st.booleans(), rarely=st.integers(0, 9))
    def shut_down(self, force: bool, rarely: int) -> None:
        if rarely == 0:
            self.play.feed(ev.ShutdownAsked(10.0, force))

    @invariant()
    def no_deadline_in_the_past_stays(self) -> None:
        if hasattr(self, "play"):
            self.play.pass_time(0.0)

    def teardown(self) -> None:
        if not hasattr(self, "play"):
            return
        self._everyone_is_answered_in_the_end()
        self._replays_alike()
        self._its_record_replays_alike()

    def _everyone_is_answered_in_the_end(self) -> None:
        """Invariant 3: when leases end and time passes, nobody waits for ever."""
        play = self.play
        play.stop_asking()
        play.feed(ev.PoolsMeasured({HOST: Pool(100, play.margin)}))
        for name in ("r1", "r2"):
            play.feed(ev.ReservationReleased(name))
        for _ in range(400):
            for preset in NAMES:
                self.download_ends(preset, works=True)
            if not play.audit.waiting:
                break
            for request in sorted(play.audit.holders):
                play.finish(request)
            play.pass_time(1.0)
        assert not play.audit.waiting, f"3: still waiting: {play.audit.waiting}"

    def _replays_alike(self) -> None:
        """Invariant 9: the same events give the same actions, bit for bit."""
        play = self.play
        again = Scheduler(self.plans, {HOST: Pool(100, play.margin)}, play.scheduler.policy)
        for event, now, actions in play.history:
            assert again.handle(event, now) == actions, f"9: {event} at {now} went another way"

    def _its_record_replays_alike(self) -> None:
        """Written down and read back, too, with other names of clients and requests."""
        play, hiding = self.play, Hiding(lambda kind, name: f"{kind[0]}{crc32(name.encode())}")
        head = RecordHead(
            lswap="",
            at=0.0,
            began=0.0,
            plans=tuple(self.plans),
            pools={HOST: Pool(100, play.margin)},
            policy=play.scheduler.policy,
        )
        lines = [encode_head(head, hiding)]
        for event, now, actions in play.history:
            lines.append(encode_step(len(lines) + 1, event, now, actions, hiding))
        lines.append(encode_end(len(lines) + 1, "the test ended"))
        text = b"".join(lines).decode()
        assert "client-" not in text
        assert "request-" not in text
        for one in replay(head, read_steps(lines[1:], "record"), "record"):
            assert one.difference is None, f"line {one.line}: {one.difference}"
            assert not one.broken


TestScheduler = Machine.TestCase
TestScheduler.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


def test_the_audit_can_fail() -> None:
    """The checks above are worth something: a forbidden stop is caught."""
    import pytest

    from llamaswap_py.scheduler.actions import StopReason
    from tests.scheduler.play import Audit

    audit = Audit()
    key = InstanceKey(PresetId("a"), 1)
    audit.saw(ev.TimePassed(), 0.0, [Spawn(key)])
    with pytest.raises(AssertionError, match="was interrupted"):
        audit.saw(ev.TimePassed(), 0.0, [Stop(key, StopReason.EVICTED)])
    assert Policy().residency == 4.0
