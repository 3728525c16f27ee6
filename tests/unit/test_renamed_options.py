"""Options that were renamed or merged: what one engine is told of what people wrote for another."""

from __future__ import annotations

import subprocess

import pytest

from llamaswap_py.config.argv import build_args, check_args
from llamaswap_py.config.parse import load_config
from llamaswap_py.config.sections import Config
from llamaswap_py.llamacpp.features import parse_options
from llamaswap_py.llamacpp.options import LONG_NAMES, Option, table_of

TODAY = """\
-m,    --model FNAME                    model path to load
-lm,   --load-mode MODE                 model loading mode (default: auto)
--temp, --temperature N                 temperature (default: 0.80)
--spec-type none,draft-simple,ngram-simple,ngram-mod
                                        types of speculative decoding (default: none)
--spec-draft-n-max N                    number of tokens to draft (default: 3)
--spec-draft-n-min N                    minimum number of draft tokens (default: 0)
--spec-ngram-simple-size-n N            ngram size N (default: 12)
--spec-ngram-mod-n-match N              ngram-mod lookup length (default: 24)
--spec-ngram-mod-n-max N                maximum number of ngram tokens (default: 64)
--draft, --draft-n, --draft-max N       the argument has been removed. use --spec-draft-n-max or
                                        --spec-ngram-mod-n-max
--spec-ngram-size-n N                   the argument has been removed. use the respective
                                        --spec-ngram-*-size-n
--context-shift, --no-context-shift     whether to use context shift (default: disabled)
--ui,  --webui, --no-ui, --no-webui     whether to enable the Web UI (default: enabled)
--embedding, --embeddings               restrict to embeddings (default: disabled)
"""
BEFORE = """\
-m,    --model FNAME                    model path to load
--mlock                                 force system to keep model in RAM
--mmap, --no-mmap                       whether to memory-map model (default: enabled)
-dio,  --direct-io, -ndio, --no-direct-io
                                        use DirectIO if available (default: disabled)
--temp N                                temperature (default: 0.80)
--draft, --draft-n, --draft-max N       number of tokens to draft (default: 16)
--no-context-shift                      disables context shift (default: disabled)
--embedding                             restrict to embeddings (default: disabled)
"""


def config_of(args: str, defaults: str = "") -> Config:
    text = f"defaults: {{args: {{{defaults}}}}}\nmodels: {{a: {{model: x, args: {{{args}}}}}}}"
    return load_config(text, path=None, base_dir="/etc", env={}, home="/")


def told(config: Config, help_text: str) -> tuple[str, ...]:
    """Return what the engine is told of `args`; nothing of it may be wrong."""
    options: dict[str, Option] = dict(parse_options(help_text))
    preset = config.models["a"]
    assert [str(one) for one in check_args(preset, config, options)] == []
    return build_args(preset, config, options)[2:]


@pytest.mark.parametrize(
    ("args", "today"),
    [
        ("no-mmap: true", ("--load-mode", "none")),
        ("mmap: off", ("--load-mode", "none")),
        ("no-mmap: false", ("--load-mode", "mmap")),
        ("mmap: on", ("--load-mode", "mmap")),
        ("mlock: true", ("--load-mode", "mmap+mlock")),
        ("mlock: true, no-mmap: true", ("--load-mode", "mlock")),
        ("mlock: off", ("--load-mode", "auto")),
        ("direct-io: true", ("--load-mode", "dio")),
        ("dio: true", ("--load-mode", "dio")),
        ("load-mode: mlock", ("--load-mode", "mlock")),
        ("temp: 0.7", ("--temp", "0.7")),
        ("temperature: 0.7", ("--temperature", "0.7")),
        ("draft-max: 16", ("--spec-draft-n-max", "16")),
        ("draft: 16", ("--spec-draft-n-max", "16")),
        ("draft-min: 1", ("--spec-draft-n-min", "1")),
        (
            "draft-max: 16, spec-type: ngram-mod",
            ("--spec-ngram-mod-n-max", "16", "--spec-type", "ngram-mod"),
        ),
        (
            "spec-type: 'ngram-simple,ngram-mod', spec-ngram-size-n: 8",
            (
                *("--spec-type", "ngram-simple,ngram-mod"),
                *("--spec-ngram-simple-size-n", "8", "--spec-ngram-mod-n-match", "8"),
            ),
        ),
        ("no-webui: true", ("--no-webui",)),
    ],
)
def test_what_an_earlier_engine_had_is_said_in_today_s_words(
    args: str, today: tuple[str, ...]
) -> None:
    assert told(config_of(args), TODAY) == today


@pytest.mark.parametrize(
    ("args", "before"),
    [
        ("load-mode: none", ("--no-mmap",)),
        ("load-mode: mmap", ("--mmap",)),
        ("load-mode: mlock", ("--no-mmap", "--mlock")),
        ("load-mode: mmap+mlock", ("--mlock",)),
        ("load-mode: dio", ("--direct-io",)),
        ("load-mode: auto", ()),
        ("no-mmap: true, mlock: true", ("--no-mmap", "--mlock")),
        ("temp: 0.7", ("--temp", "0.7")),
        ("temperature: 0.7", ("--temp", "0.7")),
        ("spec-draft-n-max: 8", ("--draft-max", "8")),
        ("context-shift: false", ("--no-context-shift",)),
        ("context-shift: true", ()),
        ("embeddings: true", ("--embedding",)),
    ],
)
def test_what_came_later_is_said_in_an_earlier_engine_s_words(
    args: str, before: tuple[str, ...]
) -> None:
    assert told(config_of(args), BEFORE) == before


def test_the_preset_wins_over_the_defaults_in_either_words() -> None:
    assert told(config_of("load-mode: mmap", "no-mmap: true"), TODAY) == ("--load-mode", "mmap")
    assert told(config_of("mmap: true", "load-mode: none"), TODAY) == ("--load-mode", "mmap")
    assert told(config_of("mlock: true", "load-mode: none"), TODAY) == ("--load-mode", "mlock")
    assert told(config_of("draft-max: 2", "spec-draft-n-max: 9"), TODAY)[1] == "2"


def test_what_nothing_replaces_is_named_as_it_was_written() -> None:
    options: dict[str, Option] = dict(parse_options(TODAY))
    for args, says in (
        ("mmap: perhaps", "args.mmap: this llama-server has no such option"),
        ("spec-ngram-size-n: 3", "args.spec-ngram-size-n: the argument has been removed."),
        ("ctx-size-draft: 3", "args.ctx-size-draft: this llama-server has no such option"),
    ):
        config = config_of(args)
        (message,) = check_args(config.models["a"], config, options)
        assert says in str(message)


def test_every_switch_of_the_past_has_its_words_in_a_real_engine(llama_server: str) -> None:
    """None is unknown to the engine in use: it would not start with one."""
    done = subprocess.run([llama_server, "--help"], capture_output=True, text=True, check=True)
    options: dict[str, Option] = dict(parse_options(done.stdout))
    past = ("no-mmap: true", "mlock: true", "direct-io: true", "draft-max: 3", "draft-n-min: 1")
    for args in (*past, "spec-type: ngram-mod, spec-ngram-size-n: 8"):
        words = told(config_of(args), done.stdout)
        assert {word for word in words if word.startswith("--")} <= options.keys()


def test_each_spelling_of_an_option_finds_the_one_that_an_engine_has(llama_server: str) -> None:
    """An engine that has just one of the names, whichever, takes all of them."""
    done = subprocess.run([llama_server, "--help"], capture_output=True, text=True, check=True)
    whole = parse_options(done.stdout)
    for name, long in LONG_NAMES.items():
        option = whole.get(f"--{long}")
        if option is None or option.removed or name == long:
            continue
        for only, asked in ((name, long), (long, name)):
            table = table_of({f"--{only}": Option((f"--{only}",), hint="N", values=1)})
            found = table.usable(asked)
            assert found is not None, (only, asked)
            assert found[0].name == f"--{only}"
