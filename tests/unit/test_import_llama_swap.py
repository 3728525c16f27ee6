"""What `lswap import llama-swap` makes of every key and of files as people publish them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from llamaswap_py.config.parse import load_files
from llamaswap_py.config.sections import Config
from llamaswap_py.config.sources import SourceText
from llamaswap_py.config.warnings import warnings
from llamaswap_py.importing.draft import Draft, render
from llamaswap_py.importing.llama_swap import read_llama_swap
from llamaswap_py.importing.notes import ImportNote, merged
from llamaswap_py.importing.usable_names import mend_names

FIELD = (Path(__file__).parents[1] / "imports" / "field").glob("*.yaml")
CARRIED, NAMED, NOTHING = "carried", "named", "nothing to say"
SERVER: Final = "llama-server --port ${PORT} -m /m/x.gguf"

# Every key that llama-swap's config.example.yaml and config-schema.json document, with a value of
# the kind shown there -> what becomes of it. `*` is the model `a`, a group, a peer.
KEYS: Final[dict[str, tuple[Any, str]]] = {
    "healthCheckTimeout": (500, CARRIED),
    "globalTTL": (600, CARRIED),
    "unloadTimeout": (20, CARRIED),
    "logLevel": ("warn", CARRIED),
    "logTimeFormat": ("rfc3339", NAMED),
    "logToStdout": ("both", NAMED),
    "metricsMaxInMemory": (1000, NAMED),
    "captureBuffer": (15, NAMED),
    "store.path": ("/var/lib/activity.db", NAMED),
    "ui.activity.session_id": (["X-Session-ID"], NAMED),
    "performance.disabled": (True, NAMED),
    "performance.every": ("15s", NAMED),
    "startPort": (10001, NAMED),
    "sendLoadingState": (True, NAMED),
    "includeAliasesInList": (True, CARRIED),
    "macros.m": ("--ctx-size 4096", CARRIED),
    "profiles.p.pins": ({"a": "b"}, NAMED),
    "selectors.s.targets": (["a", "b"], CARRIED),
    "selectors.s.strategy": ("spillover", NAMED),
    "selectors.s.settings": ({"spillover": 2}, NAMED),
    "selectors.s.name": ("Shown", NAMED),
    "selectors.s.description": ("chooses", NAMED),
    "selectors.s.unlisted": (True, NAMED),
    "selectors.s.metadata": ({"x": 1}, NAMED),
    "models.a.macros.m": ("--ctx-size 8192", CARRIED),
    "models.a.cmd": ("llama-server -m /m/y.gguf --port ${PORT}", CARRIED),
    "models.a.cmdStop": ("docker stop a", NAMED),
    "models.p.cmdStop": ("docker stop p", CARRIED),
    "models.a.name": ("Model A", CARRIED),
    "models.a.description": ("A model", CARRIED),
    "models.a.env": (["GGML_X=1"], CARRIED),
    "models.a.proxy": ("http://127.0.0.1:8999", NOTHING),
    "models.p.proxy": ("http://gpubox:8999", NAMED),
    "models.a.aliases": (["gpt-4o-mini"], CARRIED),
    "models.a.checkEndpoint": ("/custom", NOTHING),
    "models.p.checkEndpoint": ("/custom", CARRIED),
    "models.a.ttl": (60, CARRIED),
    "models.a.unloadTimeout": (30, CARRIED),
    "models.a.useModelName": ("openai/gpt", NAMED),
    "models.p.useModelName": ("openai/gpt", CARRIED),
    "models.a.filters.stripParams": ("temperature, top_p", CARRIED),
    "models.a.filters.strip_params": ("temperature", CARRIED),
    "models.a.filters.setParams": ({"top_k": 1}, CARRIED),
    "models.a.filters.setParamsByID": ({"a:high": {"top_k": 1}}, CARRIED),
    "models.a.metadata": ({"port": 1}, CARRIED),
    "models.a.concurrencyLimit": (4, CARRIED),
    "models.a.sendLoadingState": (True, NAMED),
    "models.a.unlisted": (True, CARRIED),
    "models.a.timeouts.connect": (30, NAMED),
    "models.a.timeouts.keepalive": (30, NAMED),
    "models.a.timeouts.responseHeader": (60, NAMED),
    "models.a.timeouts.tlsHandshake": (10, NAMED),
    "models.a.timeouts.expectContinue": (1, NAMED),
    "models.a.timeouts.idleConn": (90, NAMED),
    "models.a.compat.ignoreWebsockets": (True, NAMED),
    "models.a.capabilities.in": (["text"], NAMED),
    "models.a.capabilities.out": (["text"], NAMED),
    "models.a.capabilities.tools": (True, NAMED),
    "models.a.capabilities.reranker": (True, NAMED),
    "models.a.capabilities.context": (32000, NAMED),
    "groups.g.members": (["a", "b"], CARRIED),
    "groups.g.swap": (False, CARRIED),
    "groups.g.exclusive": (True, NOTHING),  # of one group; of several: see below
    "groups.g.persistent": (True, CARRIED),
    "matrix.vars": ({"x": "a"}, CARRIED),
    "matrix.evict_costs": ({"x": 50}, NAMED),
    "matrix.sets": ({"s": "x & b"}, CARRIED),
    "hooks.on_startup.preload": (["a"], CARRIED),
    "apiKeys": (["sk-hunter2"], NAMED),
    "peers.far.proxy": ("http://10.0.0.2", NAMED),
    "peers.far.apiKey": ("sk-hunter2", NAMED),
    "peers.far.models": (["big"], NAMED),
    "peers.far.filters": ({"stripParams": "x"}, NAMED),
    "peers.far.timeouts": ({"connect": 1}, NAMED),
    "upstream.ignorePaths": ([".*"], NAMED),
    "routing.scheduler.settings.fifo.priority": ({"a": 3}, CARRIED),
    "routing.scheduler.use": ("fifo", NOTHING),
    "routing.router.use": ("group", NOTHING),
    "routing.router.settings.groups": ({"g": {"members": ["a", "b"]}}, CARRIED),
    "routing.router.settings.matrix": ({"sets": {"s": "a & b"}}, CARRIED),
    "tomorrow": ("a key of a later release", NAMED),
    "models.a.tomorrow": ("a key of a later release", NAMED),
    "models.a.filters.tomorrow": ("a key of a later release", NAMED),
    "groups.g.tomorrow": ("a key of a later release", NAMED),
    "hooks.tomorrow": ("a key of a later release", NAMED),
}


def root(place: str = "", value: Any = None) -> dict[str, Any]:
    """Return a file with a value at `place`, and what that place needs around it."""
    found: dict[str, Any] = {
        "models": {
            "a": {"cmd": SERVER + " ${m}", "macros": {"m": ""}},
            "b": {"cmd": SERVER},
            "c": {"cmd": SERVER},
            "p": {"cmd": "tts --port ${PORT}"},
        }
    }
    if place == "includeAliasesInList":
        found["models"]["b"]["aliases"] = ["other"]
    if place.startswith("macros"):
        del found["models"]["a"]["macros"]
    if place.startswith("groups"):
        found["groups"] = {"g": {"members": ["a", "b", "c", "p"], "exclusive": False}}
    if place.startswith("selectors"):
        found["selectors"] = {"s": {"targets": ["a"], "strategy": "warm"}}
    if place == "matrix.evict_costs":
        found["matrix"] = {"vars": {"x": "a"}, "sets": {"s": "x & b"}}
    here = found
    *parents, last = place.split(".")
    for name in parents:
        here = here.setdefault(name, {})
    if place:
        here[last] = value
    return found


def body(draft: Draft) -> Any:
    return yaml.safe_load(render(draft, "a test"))


def config_of(draft: Draft) -> Config:
    file = SourceText("new.yaml", "/base", render(draft, "a test"))
    return load_files([file], name="new.yaml", env={}, home="/home/u", keep_broken=True)


@pytest.mark.parametrize("place", KEYS)
def test_every_documented_key_is_carried_translated_or_named(place: str) -> None:
    value, fate = KEYS[place]
    without = root(place, value)
    here: Any = without
    *parents, last = place.split(".")
    for name in parents:
        here = here[name]
    del here[last]
    draft, plain = read_llama_swap(root(place, value), {}), read_llama_swap(without, {})
    changed = body(draft) != body(plain)
    said = set(draft.lines()) - set(plain.lines())
    # What stands above a key with a name of people's own: `models.a.timeouts` for its members.
    names = [".".join(place.split(".")[:end]) for end in range(1, place.count(".") + 2)]
    named = [line for line in said if any(name in line for name in names)]
    if fate == CARRIED:
        assert changed
    elif fate == NAMED:
        assert not changed or place == "models.p.proxy"
        assert named or any(names[0] in line for line in draft.lines())
    else:
        assert not changed
        assert not said
    assert "sk-hunter2" not in render(draft, "a test")
    assert not config_of(draft).broken or place == "models.p.proxy"


def test_notes_that_are_the_same_of_many_models_are_one_line() -> None:
    models = {
        f"m{n}": {
            "cmd": f"docker run --rm --name m{n} -p ${{PORT}}:8000 vllm/vllm-openai --model m{n}",
            "cmdStop": f"docker stop m{n}",
            "concurrencyLimit": n + 1,
            "unlisted": True,
            "proxy": f"http://127.0.0.1:${{PORT}}/v{n}",
            "timeouts": {"connect": 1},
            "metadata": {"a_list": [1]},
        }
        for n in range(120)
    }
    draft = read_llama_swap({"models": models}, {})
    lines = draft.lines()
    assert len(lines) < 12
    assert len(render(draft, "a test").split("\nmodels:")[0]) < 4_000
    assert draft.models["m7"]["stop_cmd"] == ["docker", "stop", "m7"]
    (path,) = [line for line in lines if "proxy" in line]
    assert path.startswith("proxy of 120 models: m0 (/v0), m1 (/v1), ")
    assert "and 114 more: requests reach it without" in path


def test_names_with_dots_are_not_mistaken_for_keys() -> None:
    notes = [
        ImportNote("models.q2.5.x", "t"),
        ImportNote("models.q2", "t"),
        ImportNote("top", "u"),
        ImportNote("up", "u"),
    ]
    assert merged(notes, {"q2", "q2.5"}) == ["models.q2.5.x: t", "models.q2: t", "top, up: u"]
    notes = [
        ImportNote("models.q2.x", "t"),
        ImportNote("models.q2.5.x", "t", "7"),
        ImportNote("[q2.5]", "t"),
    ]
    assert merged(notes, {"q2", "q2.5"}) == ["x of 2 models: q2, q2.5 (7): t", "[q2.5]: t"]


# A command, the port or address that `proxy` says, and the command with the port put in: {port}
# stands for the number where it is replaced, 8005 where it is left.
PORTS = """
tts --port {port} --max 8005                                        | 127.0.0.1:8005
tts 127.0.0.1:{port}                                                | localhost:8005/
tts --listen=:{port} --rate 18005                                   | [::1]:8005
/opt/tts -p {port} --seed 8005                                      | 0.0.0.0:8005
docker run -p {port}:80 image --port 8005                           | localhost:8005
sudo docker run --publish=127.0.0.1:{port}:80 image                 | localhost:8005
podman run -p{port}:8005 image -p 8005                              | localhost:8005
bash -c 'exec tts --port {port}'                                    | localhost:8005
docker run --network host image --port 8005                         | localhost:8005
docker compose -f x.yml up                                          | vllm:18020
ssh box llama-server --port 8005                                    | box:8005
ssh box llama-server --port 8005                                    | 127.0.0.1:8005
bash -c 'ssh box llama-server --port 8005'                          | 127.0.0.1:8005
ssh -L {port}:127.0.0.1:8005 box llama-server --port 8005           |
kubectl port-forward svc/x {port}:8005                              |
"""


@pytest.mark.parametrize("row", PORTS.strip().splitlines())
def test_a_port_is_put_in_only_where_it_surely_is_this_machine_s(row: str) -> None:
    want, proxy = (each.strip() for each in row.split("|"))
    model = {"cmd": want.replace("{port}", "8005" if proxy else "${PORT}")}
    if proxy:
        model["proxy"] = f"http://{proxy}"
    draft = read_llama_swap({"models": {"x": model}}, {})
    assert draft.models["x"]["cmd"] == shlex.split(want)
    if "{port}" not in want:
        assert draft.failing == {"x": None}
        (line,) = [line for line in draft.lines() if "models.x.proxy" in line]
        assert f"(http://{proxy})" in line
    else:
        assert not draft.failing


@pytest.mark.parametrize(
    ("cmd", "served_by"),
    [
        ("docker run -p ${PORT}:80 image", "container"),
        ("sudo -n /usr/bin/podman run -p ${PORT}:80 image", "container"),
        ("A=1 nerdctl run -p ${PORT}:80 image", "container"),
        ("bash -c 'exec docker run -p ${PORT}:80 image'", "container"),
        ("docker-compose run -p ${PORT}:80 service", "container"),
        ("ssh -L ${PORT}:127.0.0.1:80 box serve", None),
        ("kubectl port-forward svc/x ${PORT}:80", None),
        ("python tts.py --port ${PORT} --engine docker", None),
    ],
)
def test_what_a_container_serves_may_be_served_by_it(cmd: str, served_by: str | None) -> None:
    draft = read_llama_swap({"models": {"x": {"cmd": cmd}}}, {})
    assert draft.models["x"].get("served_by") == served_by
    preset = config_of(draft).models["x"]
    assert preset.served_by == (served_by or "cmd")
    assert not [each for each in warnings(config_of(draft)) if "served_by" in each]


def test_variables_that_need_the_port_or_belong_to_lswap_are_set_by_env() -> None:
    model = {
        "cmd": "docker run --rm -e LLAMA_ARG_CTX_SIZE -p ${PORT}:80 x",
        "env": ["HOME_PORT=${PORT}", "LLAMA_ARG_CTX_SIZE=512", "CUDA_VISIBLE_DEVICES=1"],
    }
    draft = read_llama_swap({"models": {"x": model}}, {})
    preset = draft.models["x"]
    assert preset["cmd"][:4] == ["env", "HOME_PORT={port}", "LLAMA_ARG_CTX_SIZE=512", "docker"]
    assert preset["env"] == {"CUDA_VISIBLE_DEVICES": "1"}
    assert not config_of(draft).broken


def test_an_entry_that_cannot_run_is_named_once_and_stops_no_other() -> None:
    models = {
        "good": {"cmd": SERVER},
        "composed": {"cmd": "docker compose up", "proxy": "http://vllm:18020"},
        "hosted": {"proxy": "https://api.example.com/v1"},
        "empty": {},
        "quote": {"cmd": "llama-server -m 'x"},
        "bare": {"cmd": "llama-server --port ${PORT}"},
    }
    draft = read_llama_swap({"models": models}, {})
    config = config_of(draft)
    assert set(config.broken) == set(models) - {"good"} == set(draft.failing)
    text = render(draft, "a test")
    for name in config.broken:
        lines = [line for line in draft.lines() if f"models.{name}." in line or line == name]
        assert len(lines) <= 1
        assert f"models.{name}" in text
    remedies = [remedy for some in config.broken.values() for *_, remedy in some]
    assert not [remedy for remedy in remedies if "lswap knows when llama-server is ready" in remedy]


def test_groups_keep_what_they_mean() -> None:
    models = {name: {"cmd": SERVER, "ttl": 60} for name in ("a", "b", "c", "d", "e", "f")}
    groups = {
        "turns": {"swap": True, "exclusive": False, "persistent": True, "members": ["a", "b"]},
        "always": {"swap": False, "exclusive": False, "persistent": True, "members": ["c"]},
        "single": {"persistent": True, "exclusive": False, "members": ["d"]},
    }
    draft = read_llama_swap({"models": models, "groups": groups}, {})
    assert draft.settings["groups"] == {
        "turns": {"exclusive": ["a", "b"], "persistent": True},
        "default": {"exclusive": ["e", "f"]},
    }
    assert [name for name in models if draft.models[name].get("pin")] == ["c", "d"]
    said = "\n".join(draft.lines())
    assert "remove the group `default`" in said
    assert "groups: a model of an exclusive group unloaded those of other groups" in said
    assert "ttl of 2 models: c, d: does nothing" in said
    whole = {"all": {"exclusive": True, "members": list(models)}}
    alone = read_llama_swap({"models": models, "groups": whole}, {})
    assert not [line for line in alone.lines() if line.startswith("groups")]


def test_commands_are_read_as_llama_swap_reads_them() -> None:
    cmd = """
      # ${unknown} in a comment is nothing
      llama-server --port ${PORT} \\\x20
      -m "/m/with space.gguf" \\
        # between the lines
      --ctx-size ${ctx}  --alias local \\
      --chat-template-kwargs '{"enable_thinking": false}'
      -fitt 512 --no-mmap \\"""
    macros = {"ctx": 4096, "${MODEL_ID}": "no"}
    draft = read_llama_swap({"macros": macros, "models": {"x": {"cmd": cmd}}}, {})
    assert draft.models["x"] == {
        "model": "/m/with space.gguf",
        "args": {
            "ctx-size": 4096,
            "chat-template-kwargs": '{"enable_thinking": false}',
            "no-mmap": True,
        },
        "fit": {"margin": "512MiB"},
    }
    assert not [line for line in draft.lines() if "unknown" in line]


def test_names_are_listed_where_llama_swap_listed_them() -> None:
    hidden = {"cmd": SERVER, "unlisted": True}
    models = {"a": {"cmd": SERVER, "aliases": ["x"]}, "b": hidden}
    by_itself = config_of(read_llama_swap({"models": models}, {}))
    assert by_itself.list_aliases is False
    assert [one.unlisted for one in by_itself.models.values()] == [False, True]
    asked = config_of(read_llama_swap({"models": models, "includeAliasesInList": True}, {}))
    assert asked.list_aliases is True
    assert "list_aliases" not in read_llama_swap({"models": {"b": hidden}}, {}).settings


def test_filters_that_lswap_refuses_are_named_and_left_out() -> None:
    filters = {
        "setParams": {"stream": True, "model": "x", "top_k": 1},
        "stripParams": "stream, model, seed",
        "setParamsByID": {"a:fast": {"model": "y"}, "a": {"top_k": 2}},
    }
    draft = read_llama_swap({"models": {"a": {"cmd": SERVER, "filters": filters}}}, {})
    preset = config_of(draft).models["a"]
    assert preset.request.set == {"top_k": 1}
    assert preset.request.strip == ("seed",)
    assert set(preset.request.per_name) == {"a"}
    assert preset.aliases == ("a:fast",), "llama-swap answers to it without changing anything"
    assert len([line for line in draft.lines() if "`stream`" in line]) == 2


def test_names_that_lswap_does_not_take_are_mended_and_each_means_one_model() -> None:
    by_id = {"filters": {"setParamsByID": {"b": {"top_k": 1}, "x:fast": {"top_k": 2}}}}
    models = {
        "a, b": {"cmd": SERVER, "aliases": ["b", "shared", "c,d"]},
        "a- b": {"cmd": SERVER, "aliases": ["shared"]},
        "b": {"cmd": SERVER, **by_id},
        " padded ": {"cmd": SERVER, **by_id},
    }
    groups = {"one, two": {"members": ["a, b", "b"]}}
    draft = read_llama_swap({"models": models, "groups": groups}, {})
    mend_names(draft)
    config = config_of(draft)
    assert not config.broken
    assert list(config.models) == ["a- b-2", "a- b", "b", "padded"]
    assert [config.models[name].aliases for name in config.models] == [("shared",), (), (), ()]
    assert [set(one.request.per_name) for one in config.models.values()][2:] == [
        {"b", "x:fast"},
        set(),
    ]
    assert config.groups["one- two"].exclusive == ("a- b-2", "b")
    said = "\n".join(draft.lines())
    for text in (
        "a- b-2 (a, b), padded ( padded ): renamed",
        "a- b-2 (b, c,d), a- b (shared): left out",
        "padded.filters.setParamsByID (b, x:fast): left out",
    ):
        assert text in said


@pytest.mark.parametrize("name", sorted(FIELD), ids=lambda path: path.stem)
def test_files_as_people_publish_them(name: Path) -> None:
    root = yaml.safe_load(name.read_text(encoding="utf-8"))
    draft = read_llama_swap(root, {"HOME": "/home/u", "HF_TOKEN": "hf_secret"})
    config = config_of(draft)
    assert set(config.broken) == set(draft.failing) == set(root.get("x-fails", ()))
    assert len(draft.lines()) <= 12
