"""GET /metrics: what is counted, under which labels, in a format that Prometheus reads."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llamaswap_py.api.counters import Counters
from llamaswap_py.api.metrics import in_parts
from llamaswap_py.api.routes import template
from tests.unit.api_fakes import ask, make_snapshot, model_view

pytestmark = pytest.mark.anyio


def samples(body: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (one.name, tuple(sorted(one.labels.items()))): one.value
        for family in text_string_to_metric_families(body.decode())
        for one in family.samples
    }


def test_requests_times_and_states_are_rendered() -> None:
    counters = Counters()
    counters.count_request("alpha", "/v1/completions", 200, 0.3)
    alpha_counts = counters.count_request("alpha", "/v1/completions", 200, 700.0)
    alpha_counts.count_wait(0.0, 2.0)
    alpha_counts.count_wait(0.0, 0.0)
    alpha_counts.count_answer(0.2, b'"prompt_tokens": 3, "completion_tokens": 5')
    for _ in range(2):
        counters.count_refusal("displaced", "agents")
    snapshot = make_snapshot([model_view("alpha", state="ready", leases=2)])
    happened = {"stops": {"evicted": 2}, "failures": {"crashed": 1}}
    body = b"".join(in_parts(counters, snapshot, happened))
    assert b'lswap_stops_total{reason="evicted"} 2.0' in body
    assert b'lswap_failures_total{class="crashed"} 1.0' in body
    assert b'lswap_tokens_in_total{model="alpha"} 3.0' in body
    assert b'lswap_tokens_out_total{model="alpha"} 5.0' in body
    assert b'lswap_refusals_total{key="agents",reason="displaced"} 2.0' in body
    found = samples(body)
    labels = (("model", "alpha"), ("route", "/v1/completions"), ("status", "200"))
    assert found["lswap_requests_total", labels] == 2
    alpha = ("model", "alpha")
    assert found["lswap_request_seconds_bucket", (("le", "0.5"), alpha)] == 1
    assert found["lswap_request_seconds_bucket", (("le", "600.0"), alpha)] == 1
    assert found["lswap_request_seconds_bucket", (("le", "+Inf"), alpha)] == 2
    assert found["lswap_request_seconds_sum", (alpha,)] == 700.3
    assert found["lswap_load_seconds_sum", (alpha,)] == 2.0
    for kind_of_wait, at_once in (("queue", 2), ("load", 1)):
        name = f"lswap_{kind_of_wait}_seconds_bucket"
        assert found[name, (("le", "0.005"), alpha)] == at_once
        assert found[name, (("le", "+Inf"), alpha)] == 2
    assert found["lswap_model_state", (alpha, ("state", "ready"))] == 1
    assert found["lswap_model_state", (alpha, ("state", "unloaded"))] == 0
    assert found["lswap_model_leases", (alpha,)] == 2
    names = [line.split()[2] for line in body.decode().splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/v1/completions", "/v1/completions"),
        ("/lswap/v1/models/org/beta:8b/load", "/lswap/v1/models/{id}/load"),
        ("/v1/models/x", "/v1/models/{id}"),
        ("/no/such/path", "other"),
    ],
)
def test_a_route_label_is_a_template(path: str, label: str) -> None:
    assert template(path) == label


async def test_the_scrape_is_ours_without_a_model() -> None:
    exchange = await ask("GET", "/metrics")
    assert exchange.status == 200
    assert b"# TYPE lswap_requests_total counter" in exchange.answer
    assert exchange.headers["content-type"].startswith("text/plain")


def test_many_models_are_rendered_in_parts_that_make_one_text() -> None:
    counters, names = Counters(), [f"model-{number}" for number in range(250)]
    for name in names:
        counts = counters.count_request(name, "/v1/completions", 200, 0.3)
        counts.count_wait(0.0, 2.0)
        counts.count_answer(0.2, b'"prompt_tokens": 3, "completion_tokens": 5')
    snapshot = make_snapshot([model_view(name, state="ready") for name in names])
    parts = list(in_parts(counters, snapshot, {}, shows=lambda name: name != "model-7"))
    assert max(part.count(b"_count{") + part.count(b'state="ready"') for part in parts) == 100
    text = b"".join(parts).decode()
    said = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(said) == len(set(said))
    found = samples(text.encode())
    for name in ("lswap_requests_total", "lswap_load_seconds_count", "lswap_model_leases"):
        shown = [dict(labels)["model"] for known, labels in found if known == name]
        assert sorted(shown) == sorted(set(names) - {"model-7"})


def test_the_children_s_figures_are_merged_under_their_models() -> None:
    text = (
        "# HELP llamacpp:n_total Things.\n# TYPE llamacpp:n_total counter\nllamacpp:n_total 3\n"
        "# HELP llamacpp:busy Busy.\n# TYPE llamacpp:busy gauge\nllamacpp:busy 1\n"
        "# TYPE lswap_loads counter\nlswap_loads_total 99\n"
    )
    children = {"alpha": text, "b": text.replace("3", "4"), "broken": "{{{ no metrics"}
    body = b"".join(in_parts(Counters(), make_snapshot([]), {}, children))
    lines = body.decode().splitlines()
    assert 'llamacpp:n_total{model="alpha"} 3.0' in lines
    assert 'llamacpp:n_total{model="b"} 4.0' in lines
    assert 'llamacpp:busy{model="b"} 1.0' in lines
    assert lines.count("# TYPE llamacpp:n_total counter") == 1
    assert "lswap_loads_total 99.0" not in lines
