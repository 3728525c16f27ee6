"""The option table and the features, from texts as old and new binaries print them."""

from __future__ import annotations

import pytest

from llamaswap_py.llamacpp.features import (
    EngineFeatures,
    Option,
    detect_features,
    parse_build,
    parse_options,
)

HELP = """\
----- common params -----

-h,    --help, --usage                  print usage and exit
-c,    --ctx-size N                     size of the prompt context (0 = loaded from model)
                                        (env: LLAMA_ARG_CTX_SIZE)
--perf, --no-perf                       whether to enable internal performance timings
                                        (default: false)
                                        (env: LLAMA_ARG_PERF)
-kvo,  --kv-offload, -nkvo, --no-kv-offload
                                        whether to enable KV cache offloading (default: enabled)
                                        (env: LLAMA_ARG_KV_OFFLOAD)
--repack, -nr, --no-repack              whether to enable weight repacking (default: enabled)
--no-host                               bypass host buffer allowing extra buffers to be used
-ot,   --override-tensor <tensor name pattern>=<buffer type>,...
                                        override tensor buffer type
-fa,   --flash-attn [on|off|auto]       set Flash Attention use ('on', 'off', or 'auto')
--control-vector-layer-range START END
                                        layer range to apply the control vector(s) to
-md,   --spec-draft-model, --model-draft FNAME
                                        draft model
--draft, --draft-n, --draft-max N       the argument has been removed. use --spec-draft-n-max or
                                        --spec-ngram-mod-n-max
--fim-qwen-1.5b-default                 use default Qwen 2.5 Coder 1.5B

----- example-specific params -----
--host HOST                             IP addresses to listen on, or bind to a UNIX socket if
                                        the address ends with .sock (default: 127.0.0.1)
"""


@pytest.fixture(scope="module")
def options() -> dict[str, Option]:
    return parse_options(HELP)


def test_every_name_leads_to_its_option(options: dict[str, Option]) -> None:
    assert options["-c"] is options["--ctx-size"]
    assert options["-c"] == Option(
        names=("-c", "--ctx-size"),
        hint="N",
        values=1,
        env="LLAMA_ARG_CTX_SIZE",
        description="size of the prompt context (0 = loaded from model)",
    )
    assert options["-h"].names == ("-h", "--help", "--usage")
    assert options["--fim-qwen-1.5b-default"].values == 0


@pytest.mark.parametrize(
    ("name", "names", "negated"),
    [
        ("--perf", ("--perf",), ("--no-perf",)),
        ("--no-perf", ("--perf",), ("--no-perf",)),
        ("-nkvo", ("-kvo", "--kv-offload"), ("-nkvo", "--no-kv-offload")),
        ("-nr", ("--repack",), ("-nr", "--no-repack")),
        ("--no-host", ("--no-host",), ()),
        ("-md", ("-md", "--spec-draft-model", "--model-draft"), ()),
    ],
)
def test_negated_forms(
    options: dict[str, Option], name: str, names: tuple[str, ...], negated: tuple[str, ...]
) -> None:
    assert (options[name].names, options[name].negated) == (names, negated)


@pytest.mark.parametrize(
    ("name", "values", "hint"),
    [
        ("-ot", 1, "<tensor name pattern>=<buffer type>,..."),
        ("-fa", 1, "[on|off|auto]"),
        ("--control-vector-layer-range", 2, "START END"),
        ("--perf", 0, ""),
    ],
)
def test_values(options: dict[str, Option], name: str, values: int, hint: str) -> None:
    assert (options[name].values, options[name].hint) == (values, hint)


def test_canonical_name_and_removed_options(options: dict[str, Option]) -> None:
    assert options["-md"].name == "--model-draft"
    assert options["--draft"].removed
    assert not options["-c"].removed


def test_text_that_is_no_help_has_no_options() -> None:
    assert parse_options("usage: something else\n  --port in the middle of a line\n") == {}


@pytest.mark.parametrize(
    ("text", "build"),
    [
        ("version: 6789 (abcdef12)\nbuilt with cc (Debian) for x86_64-linux-gnu\n", 6789),
        ("version: 0.6.0-dev (build 11434, commit abcdef1)\nbuilt with GNU 12.2.0\n", 11434),
        ("ggml_cuda_init: found 1 CUDA devices\nversion: 6789 (abcdef12)\n", 6789),
        ("version: 0 (unknown)\n", None),
        ("hello\n", None),
    ],
)
def test_build_number(text: str, build: int | None) -> None:
    assert parse_build(text) == build


def test_features_come_from_the_table(options: dict[str, Option]) -> None:
    found = detect_features(options, child_mode=False)
    assert found == EngineFeatures(unix_socket=True)
    assert detect_features({}, child_mode=True) == EngineFeatures(child_mode=True)


def test_features_of_an_older_build() -> None:
    old = detect_features({}, child_mode=True, stream_in_path=True)
    assert old == EngineFeatures(child_mode=True, stream_in_path=True)
