"""What a file means, and what is said about a file that means nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import structs

from llamaswap_py.config.forms import EXACT, EngineChoice, Fit, PerDevice
from llamaswap_py.config.parse import load_config, parse_listen
from llamaswap_py.config.preset import variant_preset, variant_presets
from llamaswap_py.config.sections import Config, Preset, PresetGroup, groups_of
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.errors import ConfigError
from llamaswap_py.importing.command import read_command
from llamaswap_py.importing.draft import Draft
from llamaswap_py.units import GIB

MODELS = "models: {a: {model: a.gguf}}\n"


def load(text: str) -> Config:
    return load_config(
        text, path=Path("config.yaml"), base_dir="/etc/lswap", env={}, home="/home/me"
    )


def one(text: str) -> Preset:
    """Return the preset of a file that says `text` inside one preset's braces."""
    return load(f"models: {{a: {{model: a.gguf, {text}}}}}").models["a"]


def errors(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text)
    return str(caught.value).splitlines()


def test_the_smallest_file() -> None:
    config = load("models:\n  qwen3-8b:\n    model: ~/models/Qwen3-8B-Q4_K_M.gguf\n")
    assert config.listen == (Endpoint(host="127.0.0.1", port=8080),)
    assert config.models["qwen3-8b"] == Preset(
        id="qwen3-8b", model="/home/me/models/Qwen3-8B-Q4_K_M.gguf"
    )


def test_paths_start_at_the_file() -> None:
    args = "mmproj: ~/p.gguf, lora: [a.gguf, ~/b.gguf], lora-scaled: 'a.gguf:0.5,/b.gguf:1'"
    preset = one(f"args: {{{args}, chat-template-file: ./t.jinja}}")
    assert preset.model == "/etc/lswap/a.gguf"
    assert preset.args == {
        "mmproj": "/home/me/p.gguf",
        "lora": ("/etc/lswap/a.gguf", "/home/me/b.gguf"),
        "lora-scaled": "/etc/lswap/a.gguf:0.5,/b.gguf:1",
        "chat-template-file": "/etc/lswap/t.jinja",
    }


def test_defaults_are_merged_key_by_key() -> None:
    config = load("""
engine: {build: b11434}
env: {A: 1, B: 1, C: 1}
defaults: {ttl: 30m, pin: true, args: {c: 9, np: 2, jinja: true}, env: {B: 2, C: 2}, extra: [x]}
models:
  a: {model: a.gguf, ttl: never, pin: false, args: {ctx_size: 8192, top-k: 3}, env: {C: 3}}
  b: {model: b.gguf, extra: [], engine: {backend: cpu}}
""")
    a, b = config.models["a"], config.models["b"]
    assert list(a.args.items()) == [
        ("parallel", 2),
        ("jinja", True),
        ("ctx-size", 8192),
        ("top-k", 3),
    ]
    assert a.env == {"A": "1", "B": "2", "C": "3"}
    assert (a.ttl, a.pin, a.extra, a.engine) == (None, False, ("x",), EngineChoice(build=11434))
    assert (b.ttl, b.pin, b.extra, b.engine) == (1800, True, (), EngineChoice(backend="cpu"))


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("127.0.0.1:0", Endpoint(host="127.0.0.1", port=0)),
        ("localhost:80", Endpoint(host="localhost", port=80)),
        ("'[::1]:8080'", Endpoint(host="::1", port=8080)),
        ("unix:run/s.sock", Endpoint(path="/etc/lswap/run/s.sock")),
        ("unix:~/s.sock", Endpoint(path="/home/me/s.sock")),
        ("unix:///run/s.sock", Endpoint(path="/run/s.sock")),
    ],
)
def test_listen(text: str, endpoint: Endpoint) -> None:
    assert load(f"listen: {text}\n{MODELS}").listen == (endpoint,)
    plain = text.strip("'")
    assert parse_listen(plain, base_dir="/etc/lswap", home="/home/me") == endpoint


def test_several_listeners() -> None:
    config = load(f"listen: ['127.0.0.1:1', unix:/s]\n{MODELS}")
    assert config.listen == (Endpoint(host="127.0.0.1", port=1), Endpoint(path="/s"))


@pytest.mark.parametrize(
    "text", [":8080", "'*:8080'", "0.0.0.0:8080", "gpubox.lan:8080", "'[::]:1'"]
)
def test_an_open_listener_must_be_meant(text: str) -> None:
    (message,) = errors(f"{MODELS}listen: {text}")
    assert message.startswith("config.yaml:2: listen: ")
    assert "allow_unauthenticated: true" in message
    assert load(f"{MODELS}listen: {text}\nallow_unauthenticated: true").listen


def test_words_and_mappings() -> None:
    preset = one("device: [CUDA0, CUDA1], memory: {CUDA0: 9.5GiB}, concurrency: 3, ttl: 0")
    assert preset.device == ("CUDA0", "CUDA1")
    assert preset.memory == {"CUDA0": 9 * GIB + GIB // 2}
    assert (preset.concurrency, preset.ttl) == (3, 0)
    preset = one("device: auto, memory: null, concurrency: auto, ttl: never, pin: yes")
    assert (preset.device, preset.memory, preset.concurrency, preset.ttl) == (
        "auto",
        None,
        None,
        None,
    )
    assert preset.pin is True
    memory = load(f"memory: {{margin: {{host: 4GiB}}, devices: {{host: 64GiB}}}}\n{MODELS}").memory
    assert memory.margin == PerDevice(GIB, {"host": 4 * GIB})
    assert (memory.margin.of("host"), memory.margin.of("CUDA0")) == (4 * GIB, GIB)
    assert memory.devices == {"host": 64 * GIB}


def test_empty_sections_are_no_mistake() -> None:
    config = load(f"policy:\ndefaults:\nlog:\n{MODELS}")
    assert structs.replace(config, lines={}) == structs.replace(load(MODELS), lines={})


def test_names_lead_to_presets() -> None:
    config = load(
        "models: {7: {model: a, aliases: [x, y/z:q4]}, b/c:q8: {model: b}}\ndefault_model: x"
    )
    assert config.default_model == "x"
    assert [
        getattr(config.find(name), "id", None) for name in ("7", "x", "y/z:q4", "b/c:q8", "no")
    ] == [
        "7",
        "7",
        "7",
        "b/c:q8",
        None,
    ]


def test_a_file_says_where_things_are() -> None:
    config = load("models:\n  a:\n    model: x\n    args: {\n      c: 3}\n")
    assert config.where("models.a.args.ctx-size") == "config.yaml:5: models.a.args.ctx-size"
    assert config.where("policy.queue") == "config.yaml: policy.queue"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: {model: x, tll: 1m}", "models.a.tll: unknown key - did you mean ttl?"),
        (
            "a: {model: x, drainTimeout: 1m}",
            "models.a.drainTimeout: unknown key - did you mean drain_timeout?",
        ),
        ("a: {model: x, ctx-size: 1}", "args: {ctx-size: …}"),
        ("a: {model: x, ngl: 1}", "args: {n-gpu-layers: …}"),
        ("a: {model: x, xyz: 1}", "unknown key - known here: model, aliases, args"),
        ("a: {model: x, ttl: 30}", "models.a.ttl: 30 has no unit - write 30s, 30m or 30h"),
        ("a: {model: x, ttl: '30'}", "models.a.ttl: '30' is not a duration"),
        ("a: {model: x, ttl: 1:30}", "models.a.ttl: '1:30' is not a duration"),
        ("a: {model: x, ttl: }", "models.a.ttl: there is no value - write a duration like 30s"),
        ("a: {model: x, ttl: [1s]}", "models.a.ttl: a list is not a duration"),
        ("a: {model: x, load_stall: 0}", "models.a.load_stall: must be more than 0"),
        ("a: {model: x, pin: maybe}", "models.a.pin: 'maybe' is not true or false"),
        ("a: {model: x, pin: 'yes'}", "models.a.pin: 'yes' is not true or false"),
        (
            "a: {model: x, concurrency: 0}",
            "models.a.concurrency: 0 is not a whole number from 1 on, or auto",
        ),
        ("a: {model: x, concurrency: 1.5}", "1.5 is not a whole number"),
        ("a: {model: x, on_drain_deadline: kill}", "'kill' is not cancel or wait"),
        ("a: {model: x, aliases: y}", "models.a.aliases: 'y' is not a list - write [y]"),
        ("a: {model: x, aliases: [y, y]}", "models.a.aliases: 'y' is here twice"),
        ("a: {model: x, device: [CUDA0, host]}", "host stands alone"),
        ("a: {model: x, device: CPU}", "main memory is called host"),
        ("a: {model: x, device: [CUDA0, CUDA0]}", "name each device once"),
        ("a: {model: x, device: []}", "the list is empty"),
        ("a: {model: x, memory: 3GiB}", "models.a.memory: '3GiB' is not a mapping like"),
        (
            "a: {model: x, memory: {CUDA0: 3}}",
            "models.a.memory.CUDA0: 3 has no unit - write 3MiB or 3GiB",
        ),
        ("a: {model: x, args: [-c, 3]}", "models.a.args: a list is not a mapping like"),
        (
            "a: {model: x, args: {c: 1, ctx-size: 2}}",
            "models.a.args.ctx-size: the same option as c",
        ),
        ("a: {model: x, args: {jinja: }}", "models.a.args.jinja: there is no value"),
        ("a: {model: x, args: {chat-template-kwargs: {x: 1}}}", "write JSON between single quotes"),
        ("a: {model: x, args: {lora: [[a]]}}", "an option takes no list of lists"),
        ("a: {model: x, args: {'a b': 1}}", "this is not an option name"),
        ("a: {model: x, args: {mmproj: ~bob/x}}", "only ~/ is known"),
        ("a: {model: x, extra: -c 3}", "models.a.extra: '-c 3' is not a list"),
        (
            "a: {model: x, extra: [true]}",
            "models.a.extra: true is not a word of a command line - quote it",
        ),
        ("a: {model: x, env: {LLAMA_ARG_CTX_SIZE: 3}}", "models.a.env.LLAMA_ARG_CTX_SIZE: "),
        ("a: {model: x, env: {A: }}", "models.a.env.A: there is no value"),
        ("a: {model: x, metadata: {n: [1]}}", "models.a.metadata.n: a list is not a text"),
        ("a: {model: x, engine: cuda}", "'cuda' is not an engine - write auto, a path (./cuda)"),
        ("a: {model: x, engine: {build: new}}", "models.a.engine.build: 'new' is not a build"),
        ("a: {model: x, engine: {backend: metall}}", "one of cpu, cuda, rocm, vulkan, metal"),
        ("a: {model: x, engine: {}}", "the choice is empty"),
        ("a: {model: x, engine: {path: y}}", "models.a.engine.path: unknown key"),
        ("a: {model: '${root}/x'}", "models.a.model: there is no variable ${root}"),
        ("a: {model: ''}", "models.a.model: '' is not a path"),
        ("a: {model: ~}", "models.a.model: there is no value - write a path"),
        ("a: {ttl: 1m}", "models.a: the preset names no file - add model: PATH"),
        ("a: ", "models.a: the preset names no file"),
        ("a: {file: x, model: y}", "models.a.file: unknown key - did you mean model?"),
        ("a: {model: x, args: [-c 1]}", "models.a.args: a list is not a mapping like {ctx-size: 8"),
        ("a: {model: x, args: -c 1}", "write each option as NAME: VALUE; put whole words of"),
        ("a: {hf: 'https://huggingface.co/q/R-GGUF/tree/main'}", "repository - write q/R-GGUF"),
        ("a: {model: 'https://huggingface.co/q/R/resolve/main/x.gguf'}", "write hf: q/R instead"),
        ("a: x.gguf", "models.a: 'x.gguf' is not a mapping of keys - write model: PATH below"),
        ("'a,b': {model: x}", "models.a,b: a name cannot contain a comma"),
        ("' a': {model: x}", "this is not a name"),
    ],
)
def test_mistakes_in_a_preset(text: str, expected: str) -> None:
    (message,) = errors(f"models: {{{text}}}")
    assert message.startswith("config.yaml:1: ")
    assert expected in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "listen: 8080",
            "listen: 8080 is only a port - write 127.0.0.1:8080 for this machine alone",
        ),
        ("listen: localhost", "'localhost' is not a listen address"),
        ("listen: http://localhost:80", "is not a listen address"),
        ("listen: ::1:80", "is not a listen address"),
        ("listen: 1.2.3:80", "is not a listen address"),
        ("listen: 127.0.0.1:99999", "is not a listen address"),
        ("listen: []", "write at least one address"),
        ("listen: ['127.0.0.1:1', '127.0.0.1:1']", "127.0.0.1:1 is here twice"),
        (f"listen: unix:/{'x' * 107}", "a socket path has 1 to 107 bytes, this one 108"),
        ("memory: 3", "memory: 3 is not a mapping of keys"),
        ("memory: {margin: -1GiB}", "memory.margin: '-1GiB' is not a size"),
        ("policy: {queue: {limit: 0}}", "policy.queue.limit: 0 is not a whole number from 1 on"),
        ("policy: {max_loaded: two}", "policy.max_loaded: 'two' is not a whole number"),
        ("limits: {body: 0}", "limits.body: must be more than 0"),
        ("log: {level: trace}", "log.level: 'trace' is not debug, info, warning or error"),
        ("allowed_hosts: ['http://x']", "write the name alone"),
        ("default_model: b", "default_model: there is no preset 'b' - known are a"),
        ("polcy: {}", "polcy: unknown key - did you mean policy?"),
        ("max_loaded: 2", "max_loaded: unknown key - write it below `policy`"),
        ("port: 80", "port: unknown key - write listen: HOST:PORT"),
        ("model: x", "model: unknown key - did you mean models?"),
        ("ttl: 5m", "ttl: unknown key - write it below `defaults`"),
        ("hf: a/b", "hf: unknown key - write it in a preset below `models`"),
        ("defaults: {model: x}", "defaults.model: model belongs to one preset"),
        ("defaults: {aliases: [x]}", "defaults.aliases: aliases belongs to one preset"),
    ],
)
def test_mistakes_at_the_top(text: str, expected: str) -> None:
    (message,) = errors(f"{MODELS}{text}")
    assert message.startswith("config.yaml:2: ")
    assert expected in message


def test_all_mistakes_of_a_file_are_named_in_its_order() -> None:
    places = [
        message.split(": ")[:2]
        for message in errors("""
memory: {margin: 2, devices: {cpu: 3GiB}}
policy:
  max_wiat: 3s
  queue: {limit: many}
models:
  qwen:
    model: x.gguf
    tll: 30m
  gemma:
    model: y.gguf
    aliases: [qwen]
    args: {x: }
default_model: gema
""")
    ]
    assert places == [
        ["config.yaml:2", "memory.margin"],
        ["config.yaml:2", "memory.devices"],
        ["config.yaml:4", "policy.max_wiat"],
        ["config.yaml:5", "policy.queue.limit"],
        ["config.yaml:9", "models.qwen.tll"],
        ["config.yaml:12", "models.gemma.aliases"],
        ["config.yaml:13", "models.gemma.args.x"],
        ["config.yaml:14", "default_model"],
    ]


@pytest.mark.parametrize("text", ["", "# nothing\n", "null", "~"])
def test_an_empty_file(text: str) -> None:
    message = "\n".join(errors(text))
    assert "the file is empty" in message
    assert "models:" in message


@pytest.mark.parametrize("text", ["listen: 127.0.0.1:1", "models:", "models: []"])
def test_no_models(text: str) -> None:
    assert "models: " in errors(text)[0]


@pytest.mark.parametrize("text", ["[1]", "hello", "3"])
def test_a_file_that_is_no_mapping(text: str) -> None:
    assert "not a mapping of keys" in errors(text)[0]


def test_a_preset_named_like_a_key_of_another() -> None:
    (message,) = errors("models:\n  a.model: {model: x}\n  a: {pin: true}\n")
    assert message.startswith("config.yaml:3: models.a: the preset names no file")


def test_aliases_of_two_presets_clash() -> None:
    (message,) = errors("models:\n  a: {model: x, aliases: [z]}\n  b: {model: y, aliases: [z]}\n")
    assert message.startswith(
        "config.yaml:3: models.b.aliases: 'z' already names models.a (line 2)"
    )


THREE = """
models:
  a: {model: a, aliases: [x]}
  b: {model: b, aliases: [y]}
  c: {model: c}
"""


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("wait", "wait"),
        ("refuse", "refuse"),
        ("'substitute: b'", "substitute:b"),
        ("substitute:y", "substitute:b"),
        ("{substitute: y}", "substitute:b"),
        ("{substitute: loaded}", "substitute:loaded"),
        ("substitute:loaded", "substitute:loaded"),
    ],
)
def test_when_full(written: str, meant: str) -> None:
    text = f"models: {{a: {{model: a, when_full: {written}}}, b: {{model: b, aliases: [y]}}}}"
    assert load(text).models["a"].when_full == meant


def test_when_full_is_inherited_and_nobody_stands_in_for_itself() -> None:
    def said(text: str) -> list[str]:
        return [preset.when_full for preset in load(THREE + text).models.values()]

    assert said("") == ["wait"] * 3
    assert said("policy: {when_full: refuse}") == ["refuse"] * 3
    assert said("policy: {when_full: {substitute: y}}") == ["substitute:b", "wait", "substitute:b"]
    both = "policy: {when_full: refuse}\ndefaults: {when_full: {substitute: x}}"
    assert said(both) == ["wait", "substitute:a", "substitute:a"]
    assert load(f"{THREE}policy: {{when_full: {{substitute: y}}}}").policy.when_full == (
        "substitute:b"
    )


def test_scheduling_keys() -> None:
    config = load("""
defaults: {priority: 3, fit: shrink, sleep: 5m, prefer: first}
models: {a: {model: a}, b: {model: b, priority: -4, fit: exact, sleep: never, prefer: fit}}
""")
    a, b = config.models.values()
    assert (a.priority, a.fit, a.sleep, a.prefer) == (3, Fit(), 300, "first")
    assert (b.priority, b.fit, b.sleep, b.prefer) == (-4, EXACT, None, "fit")


def kept(text: str) -> tuple[bool, bool, float | None]:
    preset = load(text).models["a"]
    return preset.preload, preset.pin, preset.ttl


def test_keep_always_is_three_keys_in_one() -> None:
    model = "models: {a: {model: /a.gguf, "
    always = True, True, None
    assert kept(f"defaults: {{ttl: 30m}}\n{model}keep: always}}}}") == always
    assert kept(f"{model}keep: always, ttl: never, pin: true, preload: true}}}}") == always
    assert kept(f"{model}keep: auto, ttl: 5m}}}}") == (False, False, 300)
    defaults = "defaults: {keep: always, preload: true}\n"
    assert kept(f"{defaults}{model[:-2]}}}}}") == always
    assert kept(f"{defaults}{model}ttl: 5m}}}}") == (True, True, 300)  # its own key wins
    assert kept(f"{defaults}{model}keep: auto}}}}") == (True, False, None)


@pytest.mark.parametrize("other", ["ttl: 5m", "pin: false", "preload: false"])
def test_what_contradicts_keep_always_is_named_with_both_lines(other: str) -> None:
    name = other.partition(":")[0]
    (said,) = errors(f"models:\n  a:\n    model: /a.gguf\n    keep: always\n    {other}\n")
    assert f":5: models.a.{name}: this contradicts `keep: always` (" in said
    assert ":4)" in said
    (said,) = errors(f"defaults:\n  {other}\n  keep: always\nmodels: {{a: {{model: /a.gguf}}}}")
    assert f":2: defaults.{name}: this contradicts `keep: always` (" in said
    assert ":3)" in said


def test_a_variant_is_the_preset_with_its_own_keys() -> None:
    preset = load("""
defaults: {args: {jinja: true, c: 1}, extra: [x], memory: {CUDA0: 9GiB}}
models:
  a:
    model: a
    args: {ctx_size: 2, ncmoe: 0}
    device: CUDA0
    variants:
      - name: full
      - {name: lean, args: {n-cpu-moe: 20}, extra: [], memory: {host: 1GiB}, device: auto}
""").models["a"]
    full, lean = variant_presets(preset)
    assert full == structs.replace(preset, variant="full")
    assert lean == structs.replace(
        preset,
        variant="lean",
        args={"jinja": True, "ctx-size": 2, "n-cpu-moe": 20},
        extra=(),
        memory={"host": GIB},
        device="auto",
    )
    assert variant_preset(preset, preset.variants[1]) == lean
    assert lean.id == "a"


def test_a_preset_without_variants_is_its_only_way() -> None:
    preset = one("pin: true")
    assert variant_presets(preset) == (preset,)


def test_groups() -> None:
    config = load(f"{THREE}groups: {{big: {{exclusive: [x, b]}}, all: {{exclusive: [c, y, a]}}}}")
    assert config.groups == {"big": PresetGroup(("a", "b")), "all": PresetGroup(("c", "b", "a"))}
    assert [groups_of(config, name) for name in "abc"] == [("big", "all"), ("big", "all"), ("all",)]
    assert groups_of(load(THREE), "a") == ()
    assert load(f"{THREE}groups: {{}}").groups == load(f"{THREE}groups:").groups == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("when_full: queue", "when_full: 'queue' is not wait, refuse or {substitute: NAME}"),
        ("when_full: substitute", "when_full: 'substitute' is not wait, refuse or"),
        ("when_full: 'substitute: '", "is not wait, refuse or"),
        ("when_full: [wait]", "when_full: a list is not wait, refuse or"),
        ("when_full: {}", "when_full: the mapping is empty - write wait, refuse or {substitute"),
        ("when_full: {substitut: b}", "when_full.substitut: unknown key - known here: substitute"),
        ("when_full: {substitute: }", "when_full.substitute: there is no value"),
        ("when_full: {substitute: a}", "when_full: 'a' is the preset itself - name another preset"),
        ("aliases: [z], when_full: 'substitute:z'", "when_full: 'z' is the preset itself"),
        ("when_full: {substitute: bet}", "there is no preset 'bet' - did you mean beta?"),
        ("when_full: {substitute: q}", "there is no preset 'q' - known are a, beta"),
        ("priority: high", "models.a.priority: 'high' is not a whole number"),
        ("priority: 101", "models.a.priority: 101 is not a whole number from -100 to 100"),
        ("priority: 1.5", "models.a.priority: 1.5 is not a whole number"),
        ("fit: loose", "models.a.fit: 'loose' is not auto, exact, shrink, or a mapping"),
        ("fit: {ctx: 1}", "models.a.fit.ctx: unknown key - known here: context, favor, margin"),
        ("fit: {favor: x}", "models.a.fit.favor: 'x' is not speed or context"),
        ("fit: {context: 8k}", "models.a.fit.context: '8k' is not a mapping like {least: 8k"),
        ("fit: {context: {most: 1}}", "models.a.fit.context.most: unknown key"),
        ("fit: {context: {least: 8kb}}", "models.a.fit.context.least: '8kb' is not a number of"),
        ("fit: {context: {want: 0}}", "models.a.fit.context.want: '0' is not a number of tokens"),
        ("fit: {context: {least: 9k, want: 8k}}", "models.a.fit.context: least is more than want"),
        ("fit: {margin: {gpu 0: 1GiB}}", "models.a.fit.margin: 'gpu 0' is not a device"),
        ("prefer: last", "models.a.prefer: 'last' is not fit or first"),
        ("sleep: 0", "models.a.sleep: must be more than 0"),
        ("sleep: 5", "models.a.sleep: 5 has no unit"),
        ("variants: []", "models.a.variants: the list is empty - write [{name: …}, …]"),
        (
            "variants: {name: y}",
            "models.a.variants: a mapping is not a list - write [{name: …}, …]",
        ),
        ("variants: [lean]", "models.a.variants[0]: 'lean' is not a mapping of keys"),
        ("variants: [{device: host}]", "models.a.variants[0]: name is missing - add name: …"),
        ("variants: [{name: }]", "models.a.variants[0].name: there is no value"),
        ("variants: [{name: y}, {name: y}]", "models.a.variants: two variants are called 'y'"),
        ("variants: [{name: y, arg: {}}]", "variants[0].arg: unknown key - did you mean args?"),
        ("variants: [{name: y, ttl: 1m}]", "variants[0].ttl: unknown key - known here: name, args"),
        ("variants: [{name: y, ngl: 1}]", "variants[0].ngl: unknown key - llama-server's options"),
        ("variants: [{name: y, args: {c: }}]", "variants[0].args.c: there is no value"),
        ("prio: 1", "models.a.prio: unknown key - did you mean priority?"),
    ],
)
def test_mistakes_in_scheduling_keys(text: str, expected: str) -> None:
    (message,) = errors(f"models: {{a: {{model: x, {text}}}, beta: {{model: x}}}}")
    assert message.startswith("config.yaml:1: ")
    assert expected in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("policy: {when_full: {substitute: d}}", "policy.when_full: there is no preset 'd'"),
        ("defaults: {when_full: {substitute: d}}", "defaults.when_full: there is no preset 'd'"),
        ("policy: {when_full: null}", "policy.when_full: there is no value"),
        ("defaults: {variants: [{name: x}]}", "variants: variants belongs to one preset - write"),
        ("groups: []", "groups: a list is not a mapping of keys"),
        ("groups: {g: [a, b]}", "groups.g: a list is not a mapping of keys"),
        ("groups: {g: {}}", "groups.g: exclusive is missing - add exclusive: …"),
        ("groups: {g: {exclusive: [a]}}", "groups.g.exclusive: a group needs at least two presets"),
        ("groups: {g: {exclusive: []}}", "groups.g.exclusive: a group needs at least two presets"),
        ("groups: {g: {exclusive: [a, a]}}", "groups.g.exclusive: 'a' is here twice"),
        ("groups: {g: {exclusive: [a, x]}}", "'x' is the same preset as another name here"),
        ("groups: {g: {exclusive: [a, d]}}", "groups.g.exclusive: there is no preset 'd'"),
        ("groups: {g: {exclusiv: [a, b]}}", "groups.g.exclusiv: unknown key - did you mean excl"),
        ("groups: {' g': {exclusive: [a, b]}}", "groups. g: this is not a name"),
    ],
)
def test_mistakes_in_names_at_the_top(text: str, expected: str) -> None:
    messages = errors(f"{THREE}{text}")
    assert messages[0].startswith("config.yaml:6: ")
    assert any(expected in message for message in messages)


def test_a_problem_of_a_variant_has_its_line() -> None:
    (message,) = errors(
        "models:\n  a:\n    model: x\n    variants:\n    - name: y\n      args: 3\n"
    )
    assert message.startswith("config.yaml:6: models.a.variants[0].args: 3 is not a mapping")


def test_ten_thousand_presets() -> None:
    lines = [
        f"  preset-{n}: {{model: m/{n}.gguf, args: {{c: 8192, np: 2}}, memory: {{CUDA0: 9GiB}}, "
        f"aliases: [alias-{n}], when_full: {{substitute: alias-{n + 1}}}, ttl: 30m}}"
        for n in range(10_000)
    ]
    text = "\n".join(["models:", *lines, "  preset-10000: {model: x, aliases: [alias-10000]}"])
    config = load(text)
    assert config.models["preset-9999"].when_full == "substitute:preset-10000"
    for n in range(10_000):
        assert config.find(f"alias-{n}") is config.models[f"preset-{n}"]
    renamed = {"z": structs.replace(config.models["preset-0"], id="z", aliases=("w",))}
    other = structs.replace(config, models=renamed)
    assert other.find("w") is renamed["z"]
    assert other.find("alias-0") is None


def test_many_mistakes_are_all_named() -> None:
    lines = [f"  p{n}: {{model: x, when_full: {{substitute: q{n}}}}}" for n in range(3_000)]
    assert len(errors("\n".join(["models:", *lines]))) == 3_000


def test_a_typo_in_models_is_said_once() -> None:
    said = "config.yaml:1: modles: unknown key - did you mean models?"
    assert errors("modles: {a: {model: x}}") == [said]
    (missing,) = errors("log: {level: debug}")
    assert "there are no models - add at least one: `models: {my-model: {model: " in missing
    (missing,) = errors("model_dirs: []")
    assert "there are no models" in missing, "a key that is known is not a typo of it"


def test_a_file_in_a_folder_of_a_repository_can_be_named() -> None:
    words = ["llama-server", "--hf-repo", "a/b", "--hf-file", "UD/b-UD-Q4_K_XL-00001-of-00002.gguf"]
    preset = read_command(words, {}, Draft(), "")
    found = load(f"models: {{b: {{hf: '{preset['hf']}'}}}}").models["b"]
    assert found.hf == "a/b:UD/b-UD-Q4_K_XL-00001-of-00002.gguf"
    assert "is not a repository" in errors("models: {b: {hf: 'a/b:UD/Q4'}}")[0]
