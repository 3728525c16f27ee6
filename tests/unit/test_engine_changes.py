"""What `lswap engine compare` makes of two helps, two logs and two lists of routes."""

from __future__ import annotations

import pytest

from llamaswap_py.cli.compare import Comparison, as_record, print_comparison
from llamaswap_py.llamacpp.features import parse_options
from llamaswap_py.llamacpp.log_changes import compare_logs, rule_of, shape_of
from llamaswap_py.llamacpp.option_changes import Gone, Respelled, Revalued, compare_options
from llamaswap_py.llamacpp.server_routes import named_in

# In the form of `llama-server --help`; `mlock` and `mmap` are those of b10456 and b11434.
EARLIER = parse_options("""\
-c,    --ctx-size N                     the context (default: 0, 0 = loaded from model)
                                        (env: LLAMA_ARG_CTX_SIZE)
--mlock                                 force system to keep model in RAM
                                        (env: LLAMA_ARG_MLOCK)
--mmap, --no-mmap                       whether to memory-map model. (default: enabled)
                                        (env: LLAMA_ARG_MMAP)
--webui, --no-webui                     whether to enable the Web UI (default: enabled)
                                        (env: LLAMA_ARG_WEBUI)
--log-disable                           Log disable
--old-name N                            a number (default: 4)
                                        (env: LLAMA_ARG_NAMED)
--checkpoint-every-n-tokens N           a number
--fit [on|off]                          fit (default: 'on')
""")
LATER = parse_options("""\
-c,    --ctx-size N                     the context (default: 4096, 0 = from model)
                                        (env: LLAMA_ARG_CTX_SIZE)
-lm,   --load-mode MODE                 how to load (default: auto)
                                        (env: LLAMA_ARG_LOAD_MODE)
--ui, --webui, --no-ui, --no-webui      whether to enable the Web UI (default: enabled)
                                        (env: LLAMA_ARG_UI)
--log-jsonl                             print JSON
--new-name N                            a number (default: 4)
                                        (env: LLAMA_ARG_NAMED)
--checkpoint-every-n-tokens N           the argument has been removed. use --checkpoint-min-step
--fit [on|off|auto]                     fit (default: 'on')
""")


REFUSED = (
    "a model with it in `args` is refused; the engine says: "
    "the argument has been removed. use --checkpoint-min-step"
)


def test_options_that_came_went_or_were_renamed() -> None:
    found = compare_options(EARLIER, LATER)
    assert found.added == ["--load-mode", "--log-jsonl"]
    assert found.gone == [
        Gone("--mlock", instead=("--load-mode mmap+mlock",)),
        Gone("--mmap", instead=("--load-mode mmap",)),
        Gone("--log-disable", passed=True),
        Gone(
            "--checkpoint-every-n-tokens",
            said="the argument has been removed. use --checkpoint-min-step",
        ),
    ]
    assert found.respelled == [
        Respelled("--webui", (), ("--ui", "--no-ui")),
        Respelled("--old-name", ("--old-name",), ("--new-name",)),
    ]
    assert found.revalued == [
        Revalued("--ctx-size", "default", "0, 0 = loaded from model", "4096, 0 = from model"),
        Revalued("--fit", "values", "[on|off]", "[on|off|auto]"),
    ]


def test_the_way_back_is_told_too() -> None:
    """A file for the later engine, with the earlier one."""
    gone = {one.name: one.instead for one in compare_options(LATER, EARLIER).gone}
    assert gone["--load-mode"] == ()  # its hint does not name a value
    assert gone["--log-jsonl"] == ()


def test_one_engine_has_no_changes() -> None:
    found = compare_options(LATER, LATER)
    assert (found.added, found.gone, found.respelled, found.revalued) == ([], [], [], [])


def test_what_differs_in_each_run_is_no_change() -> None:
    first = "0.00.004.123 I srv    load_model: loading '/tmp/a/model.gguf' at 0x7f, 12,345 3.5 MiB"
    second = "0.01.999.001 I srv    load_model: loading '/srv/b/c.gguf' at 0xff, 7 128 MiB"
    assert shape_of(first) == shape_of(second) == "loading 'PATH' at #, # MiB"
    assert shape_of("................") == ""


def test_rules_are_named() -> None:
    said = {
        "0.00.013.109 I srv  llama_server: listening on unix:///tmp/x/1.sock": "listening",
        "main: server is listening on http://127.0.0.1:8080 - starting the main loop": "listening",
        "srv    operator(): operator(): cleaning up before exit...": "ending",
        "error: invalid argument: --no-such-flag": "bad_argument",
        "load_tensors: CPU model buffer size = 1 MiB": "",
    }
    assert {line: rule_of(line) for line in said} == said


def test_log_lines_that_no_rule_reads() -> None:
    before = [
        "main: server is listening on http://127.0.0.1:8080 - starting the main loop",
        "load_tensors: CPU buffer size = 1.00 MiB",
        "main: model loaded",
    ]
    after = ["main: now serving http://127.0.0.1:8080", "load_tensors: CPU buffer size = 2.50 MiB"]
    found = compare_logs(before, after)
    assert found.added == ["main: now serving http://#"]
    assert found.gone == ["main: model loaded"]
    assert list(found.unread.values()) == ["listening"]
    assert found.same == 1
    reworded = compare_logs(before, ["0.00.013.109 I listening on http://127.0.0.1:1", *before[1:]])
    assert (reworded.unread, reworded.added, reworded.gone) == ({}, [], [])


def test_paths_in_a_binary() -> None:
    binary = b"\x7fELF\x00/tools\x00/v1/chat/completions\x00/usr/lib/libc.so.6\x00GET /y\x00"
    found = named_in(binary)
    assert {"/tools", "/v1/chat/completions", "/completions"} <= found
    assert "/y" not in found


def test_of_many_log_lines_some_are_printed_and_the_rest_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = [f"word{chr(97 + at)} {chr(97 + at) * 3}" for at in range(26)]
    found = Comparison(
        old="b1-cpu",
        new="b2-cpu",
        features={},
        options=compare_options(EARLIER, EARLIER),
        new_routes=[],
        gone_routes=[],
        trial={},
        log=compare_logs([*lines, "both"], [*reversed([f"new {one}" for one in lines]), "both"]),
    )
    print_comparison(found)
    said = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert len([line for line in said if line.startswith("- ")]) == 6
    assert "- and 21 more, which `--json` lists; no rule of lswap reads them" in said
    assert len([line for line in said if line.startswith("+ new ")]) == 26
    assert len(as_record(found)["log"]["gone"]) == 26


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    found = Comparison(
        old="b1-cpu",
        new="b2-cpu",
        features={"log_jsonl": (False, True), "fit": (True, False)},
        options=compare_options(EARLIER, LATER),
        new_routes=["POST /v1/new"],
        gone_routes=[],
        trial={"ready": ("by a line of its log", "by asking /health"), "stop": ("SIGTERM",) * 2},
        log=compare_logs(["main: server is listening on http://127.0.0.1:1"], ["main: serving"]),
    )
    print_comparison(found)
    said = capsys.readouterr().out
    for line in (
        "b1-cpu → b2-cpu",
        "  + log_jsonl",
        "  - fit",
        "  - --mlock: lswap writes --load-mode mmap+mlock",
        "  - --log-disable: lswap leaves it out",
        f"  - --checkpoint-every-n-tokens: {REFUSED}",
        "  ~ --webui: now also --ui, --no-ui",
        "  ~ --fit: values [on|off] → [on|off|auto]",
        "  + POST /v1/new",
        "  ready: by a line of its log → by asking /health",
        "  stop: SIGTERM, as before",
        "  ! no line for the rule `listening` any more: main: server is listening on http://#",
        "  + main: serving",
    ):
        assert f"{line}\n" in said, line
    record = as_record(found)
    assert record["trial"]["stop"] == {"old": "SIGTERM", "new": "SIGTERM"}
    assert record["options"]["gone"][0]["name"] == "--mlock"
