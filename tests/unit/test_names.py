"""One rule of names: every route that takes one, every list, whatever is in the name."""

from __future__ import annotations

import json
from typing import Any, cast
from urllib.parse import quote, urlencode

import pytest

from llamaswap_py.api import App
from llamaswap_py.api.model_lists import list_models, names_of_model
from llamaswap_py.api.request import Call, Route
from llamaswap_py.api.routes import PATTERNS, ROUTES
from llamaswap_py.cli.show import find_model, print_models
from llamaswap_py.cli.tables import plain_table
from llamaswap_py.client.address import path_of
from llamaswap_py.config.api_keys import ApiKey, KeyRing, hash_secret
from llamaswap_py.config.preset_names import spelled
from tests.unit.api_fakes import FakeExchange, FakeSupervisor, ask, make_config

pytestmark = pytest.mark.anyio

NAMES = [
    *("plain", "tagged:8b", "both", "both:latest", "only:latest", "latest", ":latest", "org/model"),
    *("org/deep/model:q4", "with space", "ünï-模型-🦙", "100%", "50%2F", "a+b", "x&y=z", "q?u#e"),
    *(".", "..", "...", "a/../b", "./c", "load", "a/load", "semi;colon", "back\\slash", '"quoted"'),
    *("n" * 255, "模" * 80, "[v]{e}", "a//b", "tail/", "~", "$HOME", "'", "v1/models", "a:b:c"),
]
_FILE = {"ui": "none", "models": {name: {"model": "/m.gguf"} for name in NAMES}}
CONFIG = make_config(json.dumps(_FILE, ensure_ascii=False))

BODY = "the member `model`, else the query"
QUERY = "the query"
PATH = "the path"
NONE = "takes no name"
WAYS = {
    **{(path, method): NONE for path, methods in ROUTES.items() for method in methods},
    **{
        (path, "POST"): BODY
        for path in (
            *("/v1/chat/completions", "/chat/completions", "/v1/completions", "/v1/responses"),
            *("/responses", "/v1/embeddings", "/v1/audio/speech", "/v1/audio/transcriptions"),
            *("/audio/transcriptions", "/v1/audio/translations", "/v1/images/generations"),
            *(
                "/v1/images/edits",
                "/v1/chat/completions/input_tokens",
                "/v1/responses/input_tokens",
            ),
            *("/chat/completions/input_tokens", "/responses/input_tokens", "/v1/messages"),
            *("/v1/chat/completions/control", "/v1/messages/count_tokens", "/completion"),
            *("/completions", "/infill", "/embedding", "/embeddings", "/rerank", "/reranking"),
            *(
                "/v1/rerank",
                "/v1/reranking",
                "/v1/systemone",
                "/tokenize",
                "/detokenize",
                "/apply-template",
            ),
            *("/props", "/lora-adapters", "/models/load", "/models/unload", "/api/show"),
            *("/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/pull"),
        )
    },
    ("/api/delete", "DELETE"): BODY,
    **{(path, "GET"): QUERY for path in ("/props", "/slots", "/metrics", "/lora-adapters")},
    ("/models", "DELETE"): QUERY,
    ("/lswap/v1/decisions", "GET"): QUERY,
    **{
        (f"{start}*{end}", method): PATH
        for start, end, method in (
            ("/upstream/", "", "GET"),
            ("/v1/models/", "", "GET"),
            ("/lswap/v1/models/", "/load", "POST"),
            ("/lswap/v1/models/", "/unload", "POST"),
            ("/lswap/v1/models/", "/pin", "POST"),
            ("/lswap/v1/models/", "/unpin", "POST"),
            ("/lswap/v1/logs/", "", "GET"),
        )
    },
    ("/slots/*", "POST"): QUERY,
}
NAMELESS = {
    *("/models", "/v1/models", "/v1/streams/lookup", "/v1/stream", "/models/sse", "/tools", "/"),
    "/cors-proxy",
    *("/api/version", "/api/tags", "/api/ps", "/api/create", "/api/copy", "/api/push", "/health"),
    *("/v1/health", "/livez", "/readyz", "/openapi.json", "/lswap/v1/state", "/lswap/v1/logs"),
    *("/lswap/v1/events", "/lswap/v1/requests", "/lswap/v1/reload", "/lswap/v1/reservations"),
}
NAMELESS_PATTERNS = {
    *("/lswap/v1/reservations/", "/lswap/v1/requests/", "/api/blobs/", "/api/experimental/"),
    "/v1/stream/",
}
TAKING = [(way, kind) for way, kind in WAYS.items() if kind is not NONE]


def spellings(name: str) -> list[str]:
    """Return what clients may write for a name of the file."""
    if name.endswith(":latest"):
        bare = name.removesuffix(":latest")
        return [name] if bare in NAMES or not bare else [name, bare]
    return [name] if f"{name}:latest" in NAMES else [name, f"{name}:latest"]


def requests_for(path: str, method: str, kind: str, name: str) -> list[FakeExchange]:
    """Return one request for each way in which a route can be told a name."""
    body: dict[str, Any] = {"model": name, "messages": [{"role": "user", "content": "x"}]}
    body |= {"prompt": "x", "input": "x", "stream": False}
    if kind is PATH:
        return [FakeExchange(method, path.replace("*", path_of(name)))]
    query = path.replace("*", "0") + "?" + urlencode({"model": name})
    if kind is QUERY:
        return [FakeExchange(method, query)]
    texts = [json.dumps(body, ensure_ascii=plain) for plain in (True, False)]
    made = [FakeExchange(method, path, text.encode()) for text in texts]
    if path.startswith(("/api/", "/models/")):
        return made
    form = {"content-type": "application/x-www-form-urlencoded"}
    made.append(FakeExchange(method, path, urlencode({"model": name}).encode(), form))
    parts = f'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\n{name}\r\n--B--\r\n'
    multipart = {"content-type": "multipart/form-data; boundary=B"}
    made.append(FakeExchange(method, path, parts.encode(), multipart))
    return [*made, FakeExchange(method, query)]


async def meant(exchange: FakeExchange) -> str:
    """Return the preset that a request turned out to be for."""
    app = App(cast("Any", FakeSupervisor(config=CONFIG)))
    await app.handle(cast("Any", exchange))
    return next(iter(app.services.counters.requests))[0]


def test_the_table_knows_every_route() -> None:
    named = {path for (path, _), kind in WAYS.items() if kind is not NONE}
    assert ROUTES.keys() - named <= NAMELESS
    patterns = {f"{start}*{end}" for start, end, _ in PATTERNS if start not in NAMELESS_PATTERNS}
    assert patterns == {path for path in named if "*" in path}


@pytest.mark.parametrize(("way", "kind"), TAKING, ids=[f"{m} {p}" for (p, m), _ in TAKING])
async def test_every_route_understands_every_name(way: tuple[str, str], kind: str) -> None:
    path, method = way
    for name in NAMES:
        for written in spellings(name):
            for exchange in requests_for(path, method, kind, written):
                assert await meant(exchange) == name, (written, exchange.head.target)


@pytest.mark.parametrize("name", [name for name in NAMES if name.strip(".") and "//" not in name])
async def test_slashes_need_not_be_encoded(name: str) -> None:
    segment = quote(name, safe="/")
    assert await meant(FakeExchange("GET", f"/v1/models/{segment}")) == name
    assert await meant(FakeExchange("POST", f"/lswap/v1/models/{segment}/load")) == name
    assert await meant(FakeExchange("GET", f"/upstream/{segment}/health")) == name


@pytest.mark.parametrize("name", NAMES)
async def test_a_path_below_upstream_keeps_what_follows_the_name(name: str) -> None:
    exchange = FakeExchange("GET", f"/upstream/{path_of(name)}/some/path?x=1")
    assert await meant(exchange) == name
    assert exchange.relayed[0].target == "/some/path?x=1"


@pytest.mark.parametrize("name", NAMES)
async def test_a_header_names_a_substitute(name: str) -> None:
    names = FakeSupervisor(config=CONFIG).names
    for written in spellings(name):
        assert names.resolve_substitute(f"substitute:{written}") == f"substitute:{name}"
        assert names.resolve_substitute(f"substitute:{quote(written)}") == f"substitute:{name}"


async def test_every_list_has_each_name_once_as_the_file_spells_it() -> None:
    supervisor = FakeSupervisor(config=CONFIG)
    for path in ("/v1/models", "/models"):
        exchange = FakeExchange("GET", path)
        await App(cast("Any", supervisor)).handle(cast("Any", exchange))
        assert [one["id"] for one in exchange.json["data"]] == NAMES
    exchange = FakeExchange("GET", "/api/tags")
    await App(cast("Any", supervisor)).handle(cast("Any", exchange))
    assert [one["name"] for one in exchange.json["models"]] == NAMES


def test_commands_follow_the_same_rule() -> None:
    snapshot = FakeSupervisor(config=CONFIG).snapshot()
    for name in NAMES:
        for written in spellings(name):
            found, read = find_model(snapshot, written), CONFIG.find(written)
            assert found is not None
            assert read is not None
            assert found.id == read.id == name
    assert find_model(snapshot, "nothing") is None
    assert plain_table(("model",), [(name,) for name in NAMES]).count("\n") == len(NAMES)


@pytest.mark.parametrize(
    ("name", "known", "means"),
    [
        ("a:latest", {"a"}, "a"),
        ("a", {"a:latest"}, "a:latest"),
        ("a", {"a", "a:latest"}, "a"),
        ("a:latest", {"a", "a:latest"}, "a:latest"),
        ("a:latest:latest", {"a"}, None),
        ("a:LATEST", {"a"}, None),
        ("a:8b", {"a"}, None),
        (":latest", {""}, ""),
    ],
)
def test_latest_is_the_tag_of_a_name_without_one(
    name: str, known: set[str], means: str | None
) -> None:
    assert spelled(name, known) == means


async def test_names_in_the_file_follow_it_too() -> None:
    config = make_config(
        "ui: none\ndefault_model: alpha:latest\nmodels:\n"
        "  alpha: {model: /a.gguf, request: {per_name: {'alpha:think': {set: {seed: 7}}}}}\n"
        "  beta: {model: /b.gguf, when_full: {substitute: 'alpha:latest'}}\n"
        "aliases: {best: {first: ['beta:latest', alpha]}}\n"
        "groups: {one: {exclusive: ['alpha:latest', beta]}}\n"
    )
    assert config.models["beta"].when_full == "substitute:alpha"
    assert config.aliases["best"].first == ("beta", "alpha")
    assert config.groups["one"].exclusive == ("alpha", "beta")
    for body, preset, seed in (
        (b"{}", "alpha", None),
        (b'{"model":"alpha:think:latest"}', "alpha", 7),
        (b'{"model":"best:latest"}', "beta", None),
    ):
        supervisor = FakeSupervisor(config=config)
        exchange = FakeExchange("POST", "/v1/completions", body)
        await App(cast("Any", supervisor)).handle(cast("Any", exchange))
        assert supervisor.asked[0]["preset"] == preset
        assert json.loads(exchange.relayed[0].body.join()).get("seed") == seed


LISTED = """ui: none
models:
  qwen:
    model: /q.gguf
    aliases: [coder, "gpt-4o"]
    request: {per_name: {"qwen:think": {set: {seed: 1}}, qwen: {set: {seed: 2}}}}
  hidden: {model: /h.gguf, unlisted: true, aliases: [hush]}
  small: {model: /s.gguf}
aliases:
  best: {first: [hidden, qwen]}
  any: {split: {qwen: 90, small: 10}}
"""
ALL = ["qwen", "coder", "gpt-4o", "qwen:think", "small", "best", "any"]


async def lists(text: str, key: ApiKey | None = None) -> list[list[str]]:
    """Return the names that each list of models shows."""
    found = []
    for path, data, name in (
        ("/v1/models", "data", "id"),
        ("/models", "data", "id"),
        ("/api/tags", "models", "name"),
    ):
        keys = None if key is None else KeyRing((key,))
        app = App(cast("Any", FakeSupervisor(config=make_config(text))), keys)
        exchange = FakeExchange("GET", path, headers={"authorization": "Bearer lswap-k"})
        await app.handle(cast("Any", exchange))
        found.append([one[name] for one in exchange.json[data]])
    return found


async def test_lists_have_every_name_but_those_that_are_unlisted() -> None:
    assert await lists(LISTED) == [ALL] * 3


@pytest.mark.parametrize("line", ["list_aliases: false", "compat: 0.1"])
async def test_a_switch_leaves_the_presets_alone(line: str) -> None:
    assert await lists(f"{line}\n{LISTED}") == [["qwen", "small"]] * 3
    assert await lists(f"compat: 0.1\nlist_aliases: true\n{LISTED}") == [ALL] * 3


async def test_a_key_for_some_models_sees_the_names_that_always_work_for_it() -> None:
    key = ApiKey(name="k", hash=hash_secret(b"lswap-k"), models=("qwen", "hidden"))
    assert await lists(LISTED, key) == [["qwen", "coder", "gpt-4o", "qwen:think", "best"]] * 3


async def test_an_entry_of_another_name_says_which_model_it_means() -> None:
    supervisor = FakeSupervisor(config=make_config(LISTED))
    for name, root in (("coder", "qwen"), ("qwen:think", "qwen"), ("hush", "hidden")):
        exchange = await ask("GET", f"/v1/models/{name}", supervisor=supervisor)
        assert (exchange.json["id"], exchange.json["root"]) == (name, root)
        assert exchange.json["aliases"] == []
        assert not exchange.json["can_remove"]
    exchange = await ask("GET", "/v1/models/qwen", supervisor=supervisor)
    assert "root" not in exchange.json
    assert exchange.json["aliases"] == ["coder", "gpt-4o"]


async def test_what_is_unlisted_answers_and_is_not_suggested() -> None:
    supervisor = FakeSupervisor(config=make_config(LISTED))
    for name in ("hidden", "hush"):
        body = b'{"model":"%b"}' % name.encode()
        await ask("POST", "/v1/completions", body, supervisor=supervisor)
    assert [one["preset"] for one in supervisor.asked] == ["hidden", "hidden"]
    exchange = await ask("POST", "/v1/completions", b'{"model":"hiden"}', supervisor=supervisor)
    assert "hidden" not in exchange.error["message"]


def test_the_command_shows_all_of_them_and_says_which_are_unlisted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_models(FakeSupervisor(config=make_config(LISTED)).snapshot())
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert "coder, gpt-4o, qwen:think" in rows["qwen"]
    assert "unlisted" in rows["hidden"]
    assert "first of hidden, qwen" in rows["best"]


async def test_the_entries_of_other_names_follow_the_feed_of_the_web_ui() -> None:
    config = make_config(LISTED)
    supervisor = FakeSupervisor(config=config)
    app = App(cast("Any", supervisor))
    exchange = FakeExchange("GET", "/models/sse")
    call = Call(app.services, cast("Any", exchange), "r", Route(list_models), cast("Any", None))
    assert names_of_model(call, "qwen") == ["qwen", "coder", "gpt-4o", "qwen:think", "any"]
    assert names_of_model(call, "hidden") == ["hidden", "best"]
