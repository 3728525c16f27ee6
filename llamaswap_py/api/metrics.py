"""GET /metrics: lswap's counts and its snapshot in Prometheus' text format.

The answer also has the metrics of children that are ready; no child is woken or loaded for it.
"""

from __future__ import annotations

import asyncio
import sys
from http import HTTPStatus
from itertools import chain, islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from llamaswap_py.children.ask import ask
from llamaswap_py.llamacpp.slots import METRICS_PREFIX
from llamaswap_py.scheduler.lifecycle import State
from llamaswap_py.tasks.guard import failures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client.metrics_core import Metric

    from llamaswap_py.api.counters import Counters, Histogram
    from llamaswap_py.api.request import Call
    from llamaswap_py.endpoint import Endpoint
    from llamaswap_py.proxy.bodies import Bodies
    from llamaswap_py.proxy.places import Places
    from llamaswap_py.snapshot import Snapshot
    from llamaswap_py.supervisor.supervisor import Supervisor
    from llamaswap_py.tasks.loop_lag import Turns

_T = TypeVar("_T")
_PART: Final = 100
"""Rows of a metric in one turn of the event loop: with the buckets of a histogram some 8 ms."""
_PATIENCE: Final = 1.0
"""Seconds to wait for a child's metrics; a busy child answers between two batches."""
STATES: Final = (
    *("unloaded", "downloading", "loading", "ready", "sleeping", "draining", "stopping"),
    "failed",
)


async def scrape(call: Call) -> None:
    """GET /metrics without a model: lswap's own figures, and those of its ready children."""
    log = call.supervisor.event_log
    kept = call.supervisor.kv_cache.counts
    happened = {"stops": log.stops, "failures": log.failures, "kept_slots": kept}
    happened["task_failures"] = failures
    children = await scrape_children(call.supervisor)
    services = call.services
    more = [*_places(services.places), *_bodies(services.bodies), *_turns(services.turns)]
    snapshot = await call.supervisor.snapshot_in_steps()
    texts = []
    for text in in_parts(services.counters, snapshot, happened, children, call.may_use, more):
        texts.append(text)
        await asyncio.sleep(0)
    call.status = 200
    call.exchange.respond(200, b"".join(texts), CONTENT_TYPE_LATEST)


def in_parts(
    counters: Counters,
    snapshot: Snapshot,
    happened: Mapping[str, Mapping[str, int]],
    children: Mapping[str, str] = MappingProxyType({}),
    shows: Callable[[str], bool] = lambda _: True,
    more: Iterable[Metric] = (),
) -> Iterator[bytes]:
    """Yield the exposition in parts, each of which takes some milliseconds.

    `happened` counts `stops`, `failures` and `kept_slots`. `children` are the expositions of
    children, by model. `shows` says which models are shown. `more` are further metrics.
    """
    families = chain(
        _counters(counters),
        _models(snapshot),
        _devices(snapshot),
        _happened(happened),
        more,
        _python(),
        _merged(children),
    )
    name = ""
    for family in families:
        family.samples = [
            one for one in family.samples if "model" not in one.labels or shows(one.labels["model"])
        ]
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Once([family]))
        text = generate_latest(registry)
        if family.name == name:  # a further part: the first one has the description
            lines = text.splitlines(keepends=True)
            text = b"".join(line for line in lines if not line.startswith(b"#"))
        name = family.name
        yield text
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    yield generate_latest(registry)


def _python() -> Iterator[Metric]:
    yield GaugeMetricFamily("lswap_tasks", "Tasks of lswap's event loop.", value=_tasks())
    blocks = "Memory blocks of lswap's Python objects; steady growth over days means a leak."
    yield GaugeMetricFamily("lswap_python_blocks", blocks, value=sys.getallocatedblocks())


def _tasks() -> int:
    """Return how many tasks run: one for each connection and each child, and a few more."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:  # no event loop runs in this thread
        return 0


class _Once:
    """A collector that returns given metrics."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _sliced(rows: Iterable[_T]) -> Iterator[tuple[_T, ...]]:
    """Yield the rows of a metric in slices; if there are none, one empty slice."""
    left = iter(tuple(rows))
    yield tuple(islice(left, _PART))
    while piece := tuple(islice(left, _PART)):
        yield piece


def _counters(counters: Counters) -> Iterator[Metric]:
    text = "Requests that have ended; status 0: the client disconnected before its answer ended."
    for counted in _sliced(counters.requests.items()):
        labels = ("model", "route", "status")
        requests = CounterMetricFamily("lswap_requests", text, labels=labels)
        for (model, route, status), count in counted:
            requests.add_metric((model, route, str(status)), count)
        yield requests
    refusals = CounterMetricFamily(
        "lswap_refusals",
        "Requests that were refused for now (429, 503), by reason and name of the key.",
        labels=("reason", "key"),
    )
    for (reason, key), count in counters.refusals.items():
        refusals.add_metric((reason, key), count)
    yield refusals
    for name, text in (
        ("tokens_in", "Tokens of prompts, as reported by the answers."),
        ("tokens_out", "Tokens of answers, as reported by the answers."),
    ):
        for models in _sliced(counters.models.items()):
            tokens = CounterMetricFamily(f"lswap_{name}", text, labels=("model",))
            for model, one in models:
                if total := getattr(one, name):
                    tokens.add_metric((model,), total)
            yield tokens
    yield from _times(counters)


def _times(counters: Counters) -> Iterator[Metric]:
    for name, kept, text in (
        ("queue", "queue", "Time a request waited for its turn."),
        ("load", "load", "Time a request waited for its model to load."),
        ("first_byte", "first_byte", "Time from a request's head to its answer's."),
        ("request", "total", "Time from a request's head to the end of its answer."),
    ):
        for models in _sliced(counters.models.items()):
            family = HistogramMetricFamily(f"lswap_{name}_seconds", text, labels=("model",))
            for model, one in models:
                times: Histogram = getattr(one, kept)
                if any(times.counts):
                    family.add_metric((model,), times.buckets(), times.total)
            yield family


def _models(snapshot: Snapshot) -> Iterator[Metric]:
    yield CounterMetricFamily("lswap_loads", "Loads begun.", value=snapshot.loads_total)
    yield CounterMetricFamily("lswap_evictions", "Evictions.", value=snapshot.evictions_total)
    yield CounterMetricFamily(
        "lswap_read_ahead_bytes",
        "Bytes of model files read into the page cache before their load.",
        value=snapshot.read_ahead_bytes_total,
    )
    text = "Saved conversations of models that are not loaded (keep_kv)."
    yield GaugeMetricFamily("lswap_kept_kv_bytes", text, value=snapshot.kept_kv)
    text = "1 for the present state of a model."
    for models in _sliced(snapshot.models):
        state = GaugeMetricFamily("lswap_model_state", text, labels=("model", "state"))
        for one in models:
            for name in STATES:
                state.add_metric((one.id, name), float(one.state == name))
        yield state
    for name, text in (
        ("leases", "Requests that a model is answering."),
        ("waiting", "Requests that wait for a model."),
    ):
        for models in _sliced(snapshot.models):
            family = GaugeMetricFamily(f"lswap_model_{name}", text, labels=("model",))
            for one in models:
                family.add_metric((one.id,), getattr(one, name))
            yield family


def _happened(happened: Mapping[str, Mapping[str, int]]) -> Iterator[Metric]:
    for name, label, text in (
        ("stops", "reason", "Children stopped, by reason."),
        ("failures", "class", "Loads, children and downloads that failed, by class."),
        (
            "task_failures",
            "task",
            "Failures of lswap's background work, which then continued; each of them is a bug.",
        ),
        ("kept_slots", "result", "Slots saved at unloads (keep_kv), by the result."),
    ):
        family = CounterMetricFamily(f"lswap_{name}", text, labels=(label,))
        for kind, count in happened.get(name, {}).items():
            family.add_metric((kind,), count)
        yield family


def _places(places: Places) -> Iterator[Metric]:
    yield GaugeMetricFamily("lswap_connections", "Open connections of clients.", value=places.count)
    text = "The most connections that clients may have open."
    yield GaugeMetricFamily("lswap_connections_limit", text, value=places.most)
    text = "Connections closed for the sake of new ones, while they waited for their client."
    yield CounterMetricFamily("lswap_connections_gave_way", text, value=places.gave_way)
    text = "Connections refused because all of them, or those of one key, were in use."
    yield CounterMetricFamily("lswap_connections_refused", text, value=places.refused)


def _bodies(bodies: Bodies) -> Iterator[Metric]:
    text = "Bytes of large request bodies in memory."
    yield GaugeMetricFamily("lswap_bodies_bytes", text, value=bodies.taken)
    text = "The most bytes of large request bodies in memory."
    yield GaugeMetricFamily("lswap_bodies_limit_bytes", text, value=bodies.most)
    text = "Requests refused because their body did not fit into this limit."
    yield CounterMetricFamily("lswap_bodies_refused", text, value=bodies.refused)


def _turns(turns: Turns) -> Iterator[Metric]:
    text = "Turns of lswap's event loop above 20 ms, by the function that ran."
    family = CounterMetricFamily("lswap_slow_turns", text, labels=("what",))
    for name, count in turns.slow.items():
        family.add_metric((name,), count)
    yield family
    text = "The longest turn of lswap's event loop, by the function that ran."
    longest = GaugeMetricFamily("lswap_slow_turn_seconds_max", text, labels=("what",))
    for name, seconds in turns.longest.items():
        longest.add_metric((name,), seconds)
    yield longest


def _merged(children: Mapping[str, str]) -> list[Metric]:
    """Return the metrics of all children, each sample with its model; invalid ones are left out."""
    merged: dict[str, Metric] = {}
    for model, text in children.items():
        try:
            families = list(text_string_to_metric_families(text))
        except ValueError:
            continue
        for family in families:
            if not family.name.startswith(METRICS_PREFIX):
                continue  # a child must not use the names of lswap's own metrics
            known = merged.setdefault(family.name, family)
            samples = [
                one._replace(labels={**one.labels, "model": model}) for one in family.samples
            ]
            known.samples = [*(known.samples if known is not family else []), *samples]
    return list(merged.values())


def _devices(snapshot: Snapshot) -> Iterator[Metric]:

    for name, text in (
        ("total", "Memory of a device."),
        ("used", "Memory of lswap's models, estimated or measured."),
        ("margin", "Memory that lswap keeps free."),
        ("strangers", "Memory that other programs hold, as last measured."),
        ("reserved", "Memory that is reserved for other programs."),
        ("free", "Memory left for models; below 0 if other programs use the margin."),
    ):
        family = GaugeMetricFamily(f"lswap_device_{name}_bytes", text, labels=("device",))
        for device in snapshot.devices:
            if (size := getattr(device, name)) is not None:
                family.add_metric((device.id,), size)
        yield family
    labels = ("device", "source", "within")
    info = GaugeMetricFamily("lswap_device_info", "How a device's memory is known.", labels=labels)
    for device in snapshot.devices:
        info.add_metric((device.id, device.source, device.within or ""), 1)
    yield info


async def scrape_children(supervisor: Supervisor) -> dict[str, str]:
    """Return `GET /metrics` of each ready child, by preset; a child without answer is left out."""
    children = {}
    for key, one in supervisor.scheduler.state.instances.items():
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
