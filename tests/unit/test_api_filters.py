"""Changes of requests, aliases that choose, pages of other origins."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaswap_py.api.auth import Cors
from llamaswap_py.api.body import filter_body
from llamaswap_py.config.forms import Filters
from llamaswap_py.config.parse import load_config
from llamaswap_py.config.sections import Config
from llamaswap_py.errors import ApiError, ConfigError
from llamaswap_py.proxy.messages import RequestHead
from llamaswap_py.scheduler.types import InstanceKey
from llamaswap_py.supervisor.names import Names
from tests.scheduler.play import A, B, C, Play, plan

MODELS = "models:\n  a: {model: a.gguf}\n  b: {model: b.gguf}\n"


def load(text: str) -> Config:
    return load_config(text, path=None, base_dir="/", env={}, home="/home/me")


FILTERS = Filters(
    set={"temperature": 0.7, "kwargs": {"deep": [1, True]}},
    default={"top_p": 0.9, "seed": 3},
    strip=("seed", "user"),
    per_name={"a:high": Filters(set={"effort": "high"}, strip=("top_p",))},
)


@pytest.mark.parametrize(
    ("name", "body", "want"),
    [
        ("a", {"model": "a"}, {"model": "a", "temperature": 0.7, "top_p": 0.9, "seed": 3}),
        ("a", {"temperature": 2, "seed": 9, "user": "me"}, {"temperature": 0.7, "seed": 3}),
        ("a", {"top_p": 0.1}, {"top_p": 0.1}),
        ("a:high", {"top_p": 0.1}, {"effort": "high"}),
    ],
)
def test_what_a_filter_does(name: str, body: dict[str, Any], want: dict[str, Any]) -> None:
    made = json.loads(filter_body(json.dumps(body).encode(), FILTERS, name))
    assert {key: made[key] for key in want} == want
    assert made["kwargs"] == {"deep": [1, True]}
    assert "user" not in made
    assert ("top_p" in made) is (name == "a")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), JSON), st.integers(0, 3))
def test_what_is_not_named_stays_as_it_came(members: dict[str, Any], indent: int) -> None:
    body = json.dumps(members, indent=indent or None, ensure_ascii=bool(indent % 2))
    made = filter_body(body.encode("utf-8", "surrogatepass"), Filters(set={"x\0": 1}), "a")
    assert json.loads(made) == {**members, "x\0": 1}


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b'{"a": \xff}', b"null", b"[" * 100_000])
def test_what_is_no_object_stays_as_it_is(body: bytes) -> None:
    assert filter_body(body, FILTERS, "a") == body


def test_filters_are_read_from_the_file_and_their_names_mean_the_preset() -> None:
    config = load(
        "models:\n  a:\n    model: a.gguf\n    request:\n      set: {temperature: 0.5, on: yes}\n"
        "      per_name: {'a:high': {set: {effort: high}}}\n"
    )
    request = config.models["a"].request
    assert request.set == {"temperature": 0.5, "on": "yes"}
    assert request.per_name["a:high"].set == {"effort": "high"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("request: {default: {model: x}}", "`model` cannot be changed"),
        ("request: {set: {stream: true}}", "`stream` cannot be changed"),
        ("request: {strip: [stream]}", "`stream` cannot be changed"),
        ("request: {sett: {}}", "unknown key"),
        ("request: {per_name: {x: {per_name: {}}}}", "unknown key"),
        ("request: {per_name: {b: {}}}", "already names models.b"),
        ("request: [a]", "is not a mapping"),
    ],
)
def test_a_wrong_filter_is_named(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load(f"models:\n  b: {{model: b.gguf}}\n  a:\n    model: a.gguf\n    {text}\n")
    assert "models.a.request" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("best: {first: [a, gone]}", "there is no preset 'gone'"),
        ("best: {first: [a], split: {a: 1}}", "either split or first"),
        ("best: {}", "either split or first"),
        ("best: {first: []}", "names no preset"),
        ("best: {split: {a: 0}}", "no share is above 0"),
        ("best: {split: {a: much}}", "a share must be a whole number"),
        ("a: {first: [b]}", "'a' already names models.a"),
    ],
)
def test_a_wrong_alias_is_named(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(f"{MODELS}aliases:\n  {text}\n")


def test_shares_are_kept_and_one_request_always_gets_the_same() -> None:
    config = load(f"{MODELS}aliases: {{prod: {{split: {{a: 90, b: 10}}}}}}\n")
    names = Names({"a": ("a",), "b": ("b",)}, config.aliases, Play().scheduler.state)
    drawn = Counter(names.resolve("prod", f"request-{number}") for number in range(2_000))
    assert 1_700 < drawn["a"] < 1_900
    assert drawn["a"] + drawn["b"] == 2_000
    assert len({names.resolve("prod", "one") for _ in range(9)}) == 1
    assert names.nearest("prodd") == ["prod"]


def test_the_first_that_is_ready_else_that_fits_else_the_first() -> None:
    config = load(f"{MODELS}  c: {{model: c.gguf}}\naliases: {{best: {{first: [a, b, c]}}}}\n")
    play = Play(plan("a", 80), plan("b", 30), plan("c", 15))
    names = Names({}, config.aliases, play.scheduler.state)
    assert names.resolve("best") == "a", "everything fits: the first"
    busy = play.ask(B)
    play.pass_time(5)
    assert names.resolve("best") == "b", "it is ready"
    play.ask(C)
    play.pass_time(5)
    assert InstanceKey(C, 2) in play.scheduler.state.instances
    assert names.resolve("best") == "b"
    play.finish(busy)
    assert A in play.scheduler.state.presets


def head(method: str = "GET", **headers: str) -> RequestHead:
    listed = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return RequestHead(method, "/", "/", "", "1.1", listed, keep_alive=True)


def test_pages_of_other_origins_only_as_configured() -> None:
    assert Cors(()).headers(head(origin="https://x.lan")) == []
    cors = Cors(["https://chat.lan/"])
    assert cors.headers(head()) == []
    assert cors.headers(head(origin="https://evil.example")) == [(b"vary", b"Origin")]
    allowed = dict(cors.headers(head(origin="https://chat.lan")))
    assert allowed[b"access-control-allow-origin"] == b"https://chat.lan"
    asked = {"access_control_request_method": "POST", "access_control_request_headers": "x-a"}
    answer = cors.preflight(head("OPTIONS", origin="https://chat.lan", **asked))
    assert answer is not None
    assert dict(answer)[b"access-control-allow-headers"] == b"x-a"
    with pytest.raises(ApiError, match=r"https://evil\.example"):
        cors.preflight(head("OPTIONS", origin="https://evil.example", **asked))
    assert cors.preflight(head("OPTIONS", origin="https://chat.lan")) is None
