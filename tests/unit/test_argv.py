"""Golden command lines, and the arguments that are refused."""

from __future__ import annotations

import subprocess
from collections.abc import ValuesView

import pytest

from llamaswap_py.config.argv import build_args, check_args, check_preset
from llamaswap_py.config.parse import load_config
from llamaswap_py.config.preset import variant_presets
from llamaswap_py.config.sections import Config
from llamaswap_py.llamacpp.features import Option
from llamaswap_py.llamacpp.options import LONG_NAMES, OWNED, long_name
from llamaswap_py.llamacpp.path_options import PATH_LISTS, PATH_OPTIONS

REMOVED = "the argument has been removed"
HELP = [
    Option(("-m", "--model"), hint="FNAME", values=1),
    Option(("-a", "--alias"), hint="STRING", values=1),
    Option(("--host",), hint="HOST", values=1),
    Option(("--port",), hint="PORT", values=1),
    Option(("--metrics",)),
    Option(("--slots",), ("--no-slots",)),
    Option(("--offline",)),
    Option(("--log-jsonl",), ("--no-log-jsonl",)),
    Option(("--log-colors",), hint="[on|off|auto]", values=1),
    Option(("--cors-origins",), hint="ORIGINS", values=1),
    Option(("-cram", "--cache-ram"), hint="N", values=1),
    Option(("--threads-http",), hint="N", values=1),
    Option(("-fit", "--fit"), hint="[on|off]", values=1),
    Option(("-fitt", "--fit-target"), hint="MiB0,MiB1,MiB2,...", values=1),
    Option(("--sleep-idle-seconds",), hint="SECONDS", values=1),
    Option(("-c", "--ctx-size"), hint="N", values=1),
    Option(("-np", "--parallel"), hint="N", values=1),
    Option(("-fa", "--flash-attn"), hint="[on|off|auto]", values=1),
    Option(("--jinja",), ("--no-jinja",)),
    Option(("--warmup",), ("--no-warmup",)),
    Option(("-kvu", "--kv-unified"), ("-no-kvu", "--no-kv-unified")),
    Option(("--embedding", "--embeddings")),
    Option(("--no-host",)),
    Option(("--lora",), hint="FNAME", values=1),
    Option(("--temp", "--temperature"), hint="N", values=1),
    Option(("--control-vector-layer-range",), hint="START END", values=2),
    Option(
        ("--draft-max",),
        hint="N",
        values=1,
        description="the argument has been removed. use --n-max",
    ),
    Option(("-x", "--new-name", "--api-key"), hint="KEY", values=1),
]
TABLE: dict[str, Option] = {name: each for each in HELP for name in (*each.names, *each.negated)}

ALWAYS = (
    *("--model", "/etc/x.gguf", "--alias", "a", "--metrics", "--slots", "--offline"),
    *("--log-jsonl", "--log-colors", "off", "--cors-origins", "localhost"),
    *("--cache-ram", "1024"),
)
FIT_OFF = ("--fit", "off")


def load(text: str) -> Config:
    return load_config(text, path=None, base_dir="/etc", env={}, home="/home/me")


def preset(args: str, rest: str = "") -> Config:
    return load(f"models:\n  a:\n    model: x.gguf\n    args: {{{args}}}\n    {rest}\n")


def words(config: Config, options: dict[str, Option] | None = TABLE) -> tuple[str, ...]:
    return build_args(config.models["a"], config, options)


def problems(config: Config, options: dict[str, Option] | None = TABLE) -> list[str]:
    return [str(each) for each in check_args(config.models["a"], config, options)]


def test_what_is_always_passed() -> None:
    assert words(preset("")) == (*ALWAYS, "--threads-http", "20", *FIT_OFF)
    assert words(preset(""), None) == words(preset(""))


def test_what_an_older_binary_does_not_know_is_left_out() -> None:
    newer = ("--log-jsonl", "--no-log-jsonl", "--offline", "--fit", "-fit")
    older = {name: option for name, option in TABLE.items() if name not in newer}
    left = [word for word in ALWAYS if word not in newer]
    assert words(preset(""), older) == (*left, "--threads-http", "20")


def test_cache_and_threads() -> None:
    config = load("memory: {cache_ram: 0}\nmodels: {a: {model: x, args: {np: 8}, concurrency: 2}}")
    found = words(config)
    assert found[found.index("--cache-ram") + 1] == "0"
    assert found[found.index("--threads-http") + 1] == "24"
    found = build_args(config.models["a"], config, TABLE, cache_ram=3 << 20)
    assert found[found.index("--cache-ram") + 1] == "3"
    config = load("models: {a: {model: x, args: {np: 1}, concurrency: 32}}")
    assert words(config)[words(config).index("--threads-http") + 1] == "48"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("c: 4096", ("--ctx-size", "4096")),
        ("ctx_size: 4096", ("--ctx-size", "4096")),
        ("--ctx-size: 4096", ("--ctx-size", "4096")),
        ("temp: 0.70", ("--temp", "0.7")),
        ("temp: 1e-5", ("--temp", "1e-05")),
        ("temperature: '0.70'", ("--temperature", "0.70")),
        ("jinja: true", ("--jinja",)),
        ("jinja: false", ("--no-jinja",)),
        ("jinja: off", ("--no-jinja",)),
        ("no-warmup: true", ("--no-warmup",)),
        ("no-warmup: false", ("--warmup",)),
        ("no-kvu: true", ("--no-kv-unified",)),
        ("no-host: true", ("--no-host",)),
        ("no-host: false", ()),
        ("embedding: true", ("--embedding",)),
        ("embedding: false", ()),
        ("flash-attn: on", ("--flash-attn", "on")),
        ("fa: true", ("--flash-attn", "on")),
        ("fa: false", ("--flash-attn", "off")),
        ("fa: auto", ("--flash-attn", "auto")),
        ("lora: [a.gguf, ~/b.gguf]", ("--lora", "/etc/a.gguf", "--lora", "/home/me/b.gguf")),
        ("lora: []", ()),
        ("control-vector-layer-range: 3 9", ("--control-vector-layer-range", "3", "9")),
    ],
)
def test_arguments(args: str, expected: tuple[str, ...]) -> None:
    config = preset(args)
    assert problems(config) == []
    assert words(config)[words(preset("")).index("--fit") + 2 :] == expected


def test_extra_comes_last_as_it_is() -> None:
    found = words(preset("c: 1", "extra: [--top-k, 3, -ngl, -1, ~/x]"))
    assert found[-7:] == ("--ctx-size", "1", "--top-k", "3", "-ngl", "-1", "~/x")[-7:]


def test_the_preset_wins_over_the_defaults_in_any_spelling() -> None:
    config = load("""
defaults: {args: {c: 1, kv-unified: true, new-thing: 1, temp: 1}}
models: {a: {model: x.gguf, args: {ctx-size: 2, no-kv-unified: true, newer-thing: 2}}}
""")
    renamed = Option(("--new-thing", "--newer-thing"), hint="N", values=1)
    table = TABLE | dict.fromkeys(renamed.names, renamed)
    found = words(config, table)
    tail = ("--temp", "1", "--ctx-size", "2", "--no-kv-unified", "--newer-thing", "2")
    assert found[-len(tail) :] == tail


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (
            "ctx-sise: 1",
            "args.ctx-sise: this llama-server has no such option - did you mean ctx-size?",
        ),
        ("num_ctx: 1", "this llama-server has no such option - did you mean ctx-size?"),
        ("context-length: 1", "did you mean ctx-size?"),
        ("qqqq: 1", "this llama-server has no such option - see llama-server --help"),
        ("c: true", "models.a.args.ctx-size: this option takes a value - write ctx-size: N"),
        ("jinja: 3", "this option takes no value - write true or false"),
        ("jinja: [true]", "this option takes no value - write true or false"),
        (
            "control-vector-layer-range: 3",
            "takes 2 values - write control-vector-layer-range: START END",
        ),
        ("draft-max: 3", f"{REMOVED}. use --n-max - see llama-server --help"),
        ("port: 8081", "lswap sets --port itself: "),
        ("m: y.gguf", "set the preset's key `model`"),
        ("no-slots: true", "lswap sets --no-slots itself"),
        ("new-name: secret", "clients' keys are lswap's business"),
    ],
)
def test_arguments_that_are_refused(args: str, expected: str) -> None:
    (message,) = problems(preset(args))
    assert message.startswith("config:4: models.a.args.")
    assert expected in message
    assert words(preset(args)) == words(preset(""))


@pytest.mark.parametrize(
    "word",
    [
        "--host",
        "--host=0.0.0.0",
        "-a",
        "-m",
        "--cache_ram",
        "-hf",
        "--no-slots",
        "--api-key",
        "-fit",
    ],
)
@pytest.mark.parametrize("options", [TABLE, None], ids=["table", "no table"])
def test_owned_options_are_refused_in_extra(word: str, options: dict[str, Option] | None) -> None:
    (message,) = problems(preset("", f"extra: ['{word}', x]"), options)
    assert message.startswith("config:5: models.a.extra: lswap sets ")
    assert f"{word.split('=', maxsplit=1)[0]} itself" in message


def test_every_owned_option_is_refused_with_a_remedy() -> None:
    for name in OWNED:
        (message,) = problems(preset(f"{name}: x"), None)
        assert " itself: " in message
        assert " - " in message


@pytest.mark.parametrize(
    "fit",
    [
        "auto",
        "exact",
        "shrink",
        "{context: {least: 4k, want: 64k}, favor: context}",
        "{margin: {CUDA0: 2GiB, host: 4GiB}}",
    ],
)
def test_llama_server_never_fits_because_lswap_chooses(fit: str) -> None:
    config = load(f"models: {{a: {{model: x, fit: {fit}}}}}")
    found = build_args(config.models["a"], config, TABLE)
    assert found[-2:] == FIT_OFF
    assert "--fit-target" not in found


def test_sleep_is_whole_seconds() -> None:
    assert words(preset("", "sleep: 5m"))[-2:] == ("--sleep-idle-seconds", "300")
    assert words(preset("", "sleep: 200ms"))[-2:] == ("--sleep-idle-seconds", "1")
    assert "--sleep-idle-seconds" not in words(preset("", "sleep: never"))


def test_an_older_binary_that_cannot_do_what_a_key_says() -> None:
    gone = ("--fit", "-fit", "--fit-target", "-fitt", "--sleep-idle-seconds")
    older = {name: option for name, option in TABLE.items() if name not in gone}
    config = load("defaults: {sleep: 5m}\nmodels:\n  a:\n    model: x\n    fit: shrink\n")
    (on_sleep,) = problems(config, older)
    assert "--fit" not in build_args(config.models["a"], config, older)
    assert on_sleep.startswith("config:1: defaults.sleep: this llama-server has no --sleep-idle-")
    assert problems(config, None) == []


VARIANTS = """
defaults: {args: {jinja: true, bad-default: 1}}
models:
  a:
    model: x.gguf
    args: {c: 4096, np: 2, port: 1}
    extra: [--top-k, 3]
    variants:
      - name: full
      - name: lean
        args: {ctx-size: 1024, np: true}
        extra: [--host, x]
"""


def test_each_variant_has_its_command_line() -> None:
    config = load(VARIANTS)
    full, lean = variant_presets(config.models["a"])
    head = (*ALWAYS, "--threads-http", "18", *FIT_OFF, "--jinja")
    tail = ("--ctx-size", "4096", "--parallel", "2", "--top-k", "3")
    assert build_args(full, config, TABLE) == head + tail
    head = (*ALWAYS, "--threads-http", "20", *FIT_OFF, "--jinja")
    assert build_args(lean, config, TABLE) == (*head, "--ctx-size", "1024", "--host", "x")


def test_mistakes_of_variants_are_named_where_they_are_and_once() -> None:
    config = load(VARIANTS)
    found = [str(each).partition(": ") for each in check_preset(config.models["a"], config, TABLE)]
    assert [(place, rest.split(": ")[0]) for place, _, rest in found] == [
        ("config:2", "defaults.args.bad-default"),
        ("config:6", "models.a.args.port"),
        ("config:11", "models.a.variants[1].args.parallel"),
        ("config:12", "models.a.variants[1].extra"),
    ]
    plain = preset("port: 1")
    assert check_preset(plain.models["a"], plain, TABLE) == check_args(
        plain.models["a"], plain, TABLE
    )


def test_an_inherited_problem_names_the_defaults() -> None:
    config = load("defaults:\n  args:\n    port: 3\nmodels: {a: {model: x}}")
    (message,) = problems(config)
    assert message.startswith("config:3: defaults.args.port: ")


def test_without_a_table_only_owned_options_are_refused() -> None:
    config = preset("whatever: 1, thing: true, other: false, list: [1, 2]")
    assert problems(config, None) == []
    expected = ("--whatever", "1", "--thing", "--no-other", "--list", "1", "--list", "2")
    assert words(config, None)[-8:] == expected


def test_the_built_in_names_are_long_names() -> None:
    for name in (*OWNED, *PATH_OPTIONS, *PATH_LISTS, *LONG_NAMES.values()):
        assert long_name(name) == name


def test_the_built_in_names_agree_with_a_real_binary(llama_server: str) -> None:
    from llamaswap_py.llamacpp.features import parse_options

    done = subprocess.run([llama_server, "--help"], capture_output=True, text=True, check=True)
    table = parse_options(done.stdout)
    known = {name.lstrip("-"): option for name, option in table.items()}
    assert {"ctx-size", "c", "parallel", "threads-http", "cache-ram"} <= known.keys()
    for name, long in LONG_NAMES.items():
        if name in known and long in known:
            assert known[name] is known[long], name
    config = preset("c: 512, np: 2, flash-attn: on, jinja: true, no-warmup: true, temp: 0.5")
    options: dict[str, Option] = dict(table)
    assert problems(config, options) == []
    assert {word for word in words(config, options) if word.startswith("--")} <= table.keys()


@pytest.mark.parametrize(
    "keys", ["fit: exact", "fit: auto", "fit: shrink", "sleep: 200ms", "sleep: 5m"]
)
def test_a_real_binary_takes_what_the_keys_become(llama_server: str, keys: str) -> None:
    config = load(
        "memory: {margin: {CUDA0: 2GiB}}\n"
        f"models: {{a: {{model: missing.gguf, device: [CUDA0, CUDA1], {keys}}}}}"
    )
    done = subprocess.run(
        [llama_server, "--port", "0", *build_args(config.models["a"], config, None)],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    said = done.stdout + done.stderr
    assert "error while handling argument" not in said
    assert "invalid argument" not in said
    assert "missing.gguf" in said  # it got as far as the file


def test_a_binary_is_looked_through_once_for_all_presets() -> None:
    """Not for each of ten thousand: that was five of the six seconds of such a start."""

    class Table(dict[str, Option]):
        looks = 0

        def values(self) -> ValuesView[Option]:  # type: ignore[override]
            Table.looks += 1
            return super().values()

    table = Table({option.name: option for option in HELP})
    config = load("models: {a: {model: /a}, b: {model: /b, args: {c: 512}}}")
    for preset in config.models.values():
        assert "--metrics" in build_args(preset, config, table)
        assert not check_args(preset, config, table)
    assert Table.looks == 1
    other = {"--model": HELP[0]}
    assert "--metrics" not in build_args(config.models["a"], config, other)
