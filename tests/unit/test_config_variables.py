"""What `${name}` and `${env.NAME}` come to, what is said of wrong ones, and what never is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from llamaswap_py.config.parse import load_config
from llamaswap_py.config.sections import Config
from llamaswap_py.errors import ConfigError
from llamaswap_py.redaction import hide

SECRET = "hunter2-and-more-of-it"
ENV = {"HOME": "/home/env", "TOKEN": SECRET, "N": "3", "EMPTY": "", "CTX": "8192"}


def load(text: str, env: Mapping[str, str] = ENV) -> Config:
    return load_config(text, path=Path("c.yaml"), base_dir="/etc", env=env, home="/home/me")


def errors(text: str, env: Mapping[str, str] = ENV) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text, env)
    return str(caught.value).splitlines()


def test_variables_stand_for_what_they_say_in_every_value() -> None:
    config = load("""
vars: {root: ~/models, kind: Q4_K_M, file: "${root}/big-${kind}.gguf", n: 2, words: "8"}
policy: {max_loaded: "${n}", max_wait: "${n}0s"}
log: {dir: "${env.HOME}/logs"}
models:
  a:
    model: ${file}
    aliases: ["a-${kind}"]
    args: {ctx-size: "${env.CTX}", lora: ["${root}/x.gguf", y.gguf]}
    env: {TOKEN: "${env.TOKEN}", EMPTY: "${env.EMPTY}"}
    metadata: {note: "made by ${env.HOME}"}
    extra: [--top-k, "${n}"]
    request: {default: {stop: "$${not}"}}
  b-${n}: {model: "${root}/b.gguf"}
""")
    a = config.models["a"]
    assert a.model == "/home/me/models/big-Q4_K_M.gguf"
    assert (config.policy.max_loaded, config.policy.max_wait) == (2, 20)
    assert config.log.dir == "/home/env/logs"
    assert a.aliases == ("a-Q4_K_M",)
    assert a.args == {"ctx-size": 8192, "lora": ("/home/me/models/x.gguf", "/etc/y.gguf")}
    assert a.env == {"TOKEN": SECRET, "EMPTY": ""}
    assert a.metadata == {"note": "made by /home/env"}
    assert a.extra == ("--top-k", "2")
    assert a.request.default == {"stop": "${not}"}
    assert config.models["b-2"].model == "/home/me/models/b.gguf"


def test_an_unquoted_value_is_read_as_if_it_had_been_written_there() -> None:
    config = load("""
vars: {t: 5m, yes: true}
models:
  a:
    model: x
    ttl: ${t}
    pin: ${yes}
    concurrency: ${env.N}
    metadata: {n: "${env.N}", q: "${env.N} of"}
""")
    a = config.models["a"]
    assert (a.ttl, a.pin, a.concurrency) == (300, True, 3)
    assert a.metadata == {"n": 3, "q": "3 of"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "vars: {root: /m}\nmodels: {a: {model: '${rot}/x'}}",
            "c.yaml:2: models.a.model: there is no variable ${rot} - did you mean root?",
        ),
        (
            "vars: {root: /m}\nmodels: {a: {model: '${qqq}'}}",
            (
                "c.yaml:2: models.a.model: there is no variable ${qqq} - known: root; "
                "from the environment: ${env.qqq}"
            ),
        ),
        (
            "models:\n  a:\n    model: x\n    env: {T: '${env.TOKE}'}",
            "c.yaml:4: models.a.env.T: the environment has no TOKE - did you mean TOKEN?",
        ),
        (
            "models: {a: {model: '${env.QQQQ}'}}",
            (
                "c.yaml:1: models.a.model: the environment has no QQQQ - "
                "set it where lswap starts: QQQQ=…"
            ),
        ),
        (
            "models: {a: {model: 'x${y'}}",
            "c.yaml:1: models.a.model: ${y is not closed - add a }, or write $${",
        ),
        (
            "vars:\n  a: ${b}\n  b: x${a}\nmodels: {m: {model: '${a}'}}",
            "c.yaml:2: vars.a: ${b} refers to itself: b -> a -> b - write one of the values out",
        ),
        (
            "vars: {a.b: 1}\nmodels: {m: {model: '$${'}}",
            "c.yaml:1: vars.a.b: 'a.b' is not the name",
        ),
        ("vars: {a: [1]}\nmodels: {m: {model: '$${'}}", "c.yaml:1: vars.a: a list is not a text"),
        (
            "vars: {a: x}\nmodels:\n  x: {model: y}\n  '${a}': {model: z}",
            "c.yaml:4: models.${a}: this key is already on line 3",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, message: str) -> None:
    assert any(line.startswith(message) for line in errors(text)), errors(text)


def test_braces_inside_braces_need_quotes() -> None:
    (line,) = errors("models: {a: {model: ${root}/x}}")
    assert line.endswith('between { } and [ ] a value with ${…} is quoted: "${name}"')


def test_a_list_says_which_item() -> None:
    (line,) = errors("models: {a: {model: x, aliases: [ok, '${no}']}}")
    assert line.startswith("c.yaml:1: models.a.aliases[1]: there is no variable ${no}")


@pytest.mark.parametrize(
    "keys",
    [
        "ttl: ${env.TOKEN}",
        "pin: ${env.TOKEN}",
        "engine: ${env.TOKEN}",
        "device: ${env.TOKEN}!",
        "when_full: ${env.TOKEN}",
        "memory: {host: 'x${env.TOKEN}'}",
        "on_drain_deadline: ${env.TOKEN}",
        "aliases: ${env.TOKEN}",
        "concurrency: a${env.TOKEN}b",
        "priority: '${env.TOKEN}'",
    ],
)
@pytest.mark.parametrize("value", [SECRET, "x'y\\z" * 30, "a\nb" * 40])
def test_a_value_of_the_environment_is_in_no_message(keys: str, value: str) -> None:
    text = f"models:\n  a:\n    model: x\n    {keys}"
    said = "\n".join(errors(text, {"TOKEN": value}))
    assert said.startswith("c.yaml:4: models.a.")
    assert "${env.TOKEN}" in said
    assert value not in said
    assert value[:20] not in said
    assert repr(value)[1:20] not in said


def test_hide() -> None:
    config = load("models: {a: {model: x, extra: [--key, '${env.TOKEN}', '${env.N}']}}")
    words = [hide(word, config.secrets) for word in config.models["a"].extra]
    assert words == ["--key", "${env.TOKEN}", "3"]
    assert hide("nothing", {}) == "nothing"


def test_many_aliases_of_one_anchor_are_expanded_once() -> None:
    deep = "x0: &x0 {a: '${v}'}\n"
    deep += "".join(f"x{n}: &x{n} [*x{n - 1}, *x{n - 1}]\n" for n in range(1, 16))
    (line, *_) = errors(f"vars: {{v: 1}}\n{deep}models: {{a: {{model: x}}}}")
    assert "x0: unknown key" in line
