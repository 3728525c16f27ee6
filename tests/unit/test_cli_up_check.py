"""`check` and `up`, as far as they need no llama-server."""

from __future__ import annotations

import json
import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llamaswap_py.cli import check as check_module
from llamaswap_py.cli import up
from llamaswap_py.cli.app import exit_code
from llamaswap_py.cli.check import Checked, Report, check, run
from llamaswap_py.cli.load_progress import progress_line
from llamaswap_py.cli.show import ps_rows, state_text
from llamaswap_py.cli.tables import plain_table
from llamaswap_py.cli.version import lswap_text
from llamaswap_py.config.load import Origin
from llamaswap_py.config.sections import Log
from llamaswap_py.demo.tiny_gguf import write_tiny_model
from llamaswap_py.errors import ConfigError, EngineError, StateError
from llamaswap_py.server import logging as cli_log
from llamaswap_py.snapshot import ReadAheadView
from tests.estimate.gguf_bytes import header
from tests.unit.api_fakes import (
    failure_view,
    instance_view,
    make_snapshot,
    model_view,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let no llama-server be found."""
    monkeypatch.setenv("LSWAP_LLAMA_SERVER", str(tmp_path / "absent"))


def write_model(path: Path) -> None:
    write_tiny_model(path, "Hello.")


def write(folder: Path, text: str) -> Path:
    path = folder / "c.yaml"
    path.write_text(text)
    return path


def test_check_reports_a_broken_file(tmp_path: Path) -> None:
    report = check(Origin(write(tmp_path, "modls: {}\nlisten: 8080\n")))
    assert not report.ok
    assert any("c.yaml:1" in line and "models" in line for line in report.problems)
    assert any("c.yaml:2" in line for line in report.problems)


@pytest.mark.usefixtures("no_engine")
def test_check_reports_everything_at_once(tmp_path: Path) -> None:
    write_model(tmp_path / "there.gguf")
    text = """
memory: {devices: {host: 4GiB}, margin: 1GiB, cache_ram: 0}
models:
  fine: {model: there.gguf, memory: {host: 1GiB}}
  gone: {model: absent.gguf, memory: {host: 1GiB}}
  huge: {model: there.gguf, memory: {host: 4GiB}}
  split: {model: there.gguf, memory: {host: 1GiB}, args: {ctx-size: 8192, parallel: 4}}
"""
    report = check(Origin(write(tmp_path, text)))
    assert not report.ok
    (engine,) = report.problems
    assert "absent" in engine
    models = {model.id: model for model in report.models}
    assert models["fine"].problems == []
    assert "no such file" in models["gone"].problems[0]
    assert models["split"].context_per_request == 2048
    assert any("models.split" in line for line in report.warnings)


_PINNED = """
memory: {devices: {host: 8GiB}, margin: 1GiB}
policy: {max_loaded: MAX}
defaults: {memory: {host: 3GiB}}
models:
  a: {cmd: [sleep, "{port}"], pin: true}
  b: {cmd: [sleep, "{port}"], pin: PIN}
  c: {cmd: [sleep, "{port}"], memory: {host: SIZE}}
  d: {cmd: [sleep, "{port}"], memory: {host: 1GiB}}
groups: {g: {exclusive: [d, GROUP], persistent: true}}
"""


@pytest.mark.parametrize(
    ("words", "never"),
    [
        ({}, {}),
        ({"GROUP": "a"}, {"d": "group g"}),
        ({"GROUP": "b", "PIN": "true"}, {"c": "host", "d": "group g"}),
        ({"PIN": "true", "SIZE": "512MiB"}, {}),
        ({"PIN": "true", "SIZE": "2GiB"}, {"c": "host"}),
        ({"PIN": "true", "MAX": "1"}, {"b": "max_loaded", "c": "max_loaded", "d": "max_loaded"}),
    ],
)
def test_check_finds_what_the_pinned_ones_leave_no_room_for(
    tmp_path: Path, words: dict[str, str], never: dict[str, str]
) -> None:
    text = _PINNED
    for word, usual in {"PIN": "false", "MAX": "0", "SIZE": "3GiB", "GROUP": "c"}.items():
        text = text.replace(word, words.get(word, usual))
    report = check(Origin(write(tmp_path, text)))
    assert report.ok == (not never)
    assert len(report.problems) == len(never)
    for line, (name, pool) in zip(report.problems, never.items(), strict=True):
        assert f"models.{name}:" in line
        assert pool in line


_PERSISTENT = """
memory: {devices: {host: 4GiB}, margin: 1GiB}
defaults: {memory: {host: 2GiB}}
models:
  a: {cmd: [sleep, "{port}"]}
  b: {cmd: [sleep, "{port}"], memory: {host: 1GiB}}
  c: {cmd: [sleep, "{port}"], memory: {host: SIZE}}
groups: {g: {exclusive: [a, b], persistent: PERSISTENT}}
"""


@pytest.mark.parametrize(
    ("size", "persistent", "names"),
    [
        ("1GiB", "true", None),
        ("2GiB", "true", "a"),
        ("3GiB", "true", "a or b"),
        ("3GiB", "false", None),
    ],
)
def test_check_warns_of_what_a_persistent_group_shuts_out(
    tmp_path: Path, size: str, persistent: str, names: str | None
) -> None:
    text = _PERSISTENT.replace("SIZE", size).replace("PERSISTENT", persistent)
    report = check(Origin(write(tmp_path, text)))
    assert report.ok
    found = [line for line in report.warnings if "persistent" in line]
    assert len(found) == (names is not None)
    if names is not None:
        assert f"models.c: it can never be loaded once {names} is loaded, because" in found[0]
        assert "beside a: host: needs" in found[0]
        assert "`persistent: false` in `groups.g` lets it leave" in found[0]


def test_check_with_an_engine(tmp_path: Path, llama_server: str) -> None:
    write_model(tmp_path / "there.gguf")
    text = f"""
engine: {llama_server}
memory: {{devices: {{host: 4GiB}}, margin: 1GiB, cache_ram: 0}}
models:
  fine: {{model: there.gguf, memory: {{host: 1GiB}}}}
  typo: {{model: there.gguf, memory: {{host: 1GiB}}, args: {{ctx-sise: 1}}}}
  huge: {{model: there.gguf, memory: {{host: 4GiB}}}}
"""
    report = check(Origin(write(tmp_path, text)))
    models = {model.id: model for model in report.models}
    assert models["fine"].problems == []
    assert "did you mean ctx-size?" in models["typo"].problems[0]
    assert "can never fit" in models["huge"].problems[0]
    assert report.engine is not None
    assert llama_server in report.engine


def test_a_mistake_in_the_defaults_is_said_once(
    tmp_path: Path, llama_server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "there.gguf")
    models = "".join(f"  m{number}: {{model: there.gguf}}\n" for number in range(5))
    text = f"engine: {llama_server}\ndefaults: {{args: {{c: 8x}}}}\nmodels:\n{models}"
    assert not run(Origin(write(tmp_path, text)), as_json=False)
    said = capsys.readouterr().out
    assert said.count("problem: ") == 1
    assert "c.yaml:2: defaults.args.ctx-size: '8x' is not a whole number" in said


@pytest.mark.parametrize("top", ["", "limits: {bodi: 1MiB}"], ids=["a preset", "the file"])
def test_mistakes_of_every_kind_are_said_in_one_run(
    tmp_path: Path, llama_server: str, top: str
) -> None:
    """Structure, options, values, paths and devices; of one preset and of several."""
    write_model(tmp_path / "there.gguf")
    text = f"""engine: {llama_server}
{top}
memory: {{devices: {{host: 4GiB}}}}
models:
  fine: {{model: there.gguf}}
  other: {{model: absent.gguf, args: {{ctx-sise: 1}}}}
  bad:
    model: absent.gguf
    ttl: 30
    concurrency: none
    device: CUDA7
    args:
      ctx-size: 8kB
      port: 1
      lora: {{a: 1}}
      jinja: [[1]]
      mmproj: gone.gguf
    env: {{LLAMA_ARG_X: 1, "": 2, Y: 3}}
"""
    report = check(Origin(write(tmp_path, text)))
    said = [*report.problems, *(each for model in report.models for each in model.problems)]
    for place, words in (
        ("c.yaml:6: models.other.model", "absent.gguf: there is no such file"),
        ("c.yaml:6: models.other.args.ctx-sise", "did you mean ctx-size?"),
        ("c.yaml:8: models.bad.model", "absent.gguf: there is no such file"),
        ("c.yaml:9: models.bad.ttl", "no unit"),
        ("c.yaml:10: models.bad.concurrency", ""),
        ("c.yaml:11: models.bad.device", "no device CUDA7"),
        ("c.yaml:13: models.bad.args.ctx-size", "write ctx-size: 8192"),
        ("c.yaml:14: models.bad.args.port", "lswap sets --port itself"),
        ("c.yaml:15: models.bad.args.lora", "takes no mapping"),
        ("c.yaml:16: models.bad.args.jinja", "no list of lists"),
        ("c.yaml:17: models.bad.args.mmproj", "gone.gguf: there is no such file"),
        ("c.yaml:18: models.bad.env.LLAMA_ARG_X", "use `args`"),
        ("c.yaml:18: models.bad.env", "not the name of a variable"),
        *([("c.yaml:2: limits.bodi", "body")] if top else []),
    ):
        assert any(place in each and words in each for each in said), (place, said)
    assert len(said) == (14 if top else 13)
    if not top:
        assert [each.id for each in report.models if not each.problems] == ["fine"]


@pytest.mark.parametrize(
    ("problems", "verdict"),
    [
        (((), ()), "fine"),
        (((), ("too large",)), "1 of 2 models not usable: see the problems above"),
        ((("a typo",), ("too large",)), "not usable: see the problems above"),
    ],
)
def test_the_last_line_says_whether_the_other_models_can_be_served(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    problems: tuple[tuple[str, ...], ...],
    verdict: str,
) -> None:
    models = [Checked(f"m{at}", 4096, None, list(them)) for at, them in enumerate(problems)]
    report = Report(ok=not any(problems), models=models)
    monkeypatch.setattr(check_module, "check", lambda _: report)
    assert run(Origin(Path("c.yaml")), as_json=False) is report.ok
    assert capsys.readouterr().out.splitlines()[-1] == f"c.yaml: {verdict}"


def test_each_file_of_a_list_is_looked_for(tmp_path: Path, llama_server: str) -> None:
    write_model(tmp_path / "there.gguf")
    (tmp_path / "eye.gguf").write_bytes(header({"general.architecture": "clip"}))
    adapter = {"general.architecture": "llama", "general.type": "adapter"}
    for name in ("a b.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(header(adapter))
    text = f"""engine: {llama_server}
defaults: {{args: {{mmproj: gone.gguf}}}}
models:
  fine: {{model: there.gguf, args: {{lora: "a b.gguf,b.gguf", mmproj: eye.gguf}}}}
  scaled: {{model: there.gguf, args: {{lora-scaled: "b.gguf:0.5,c.gguf:1", mmproj: eye.gguf}}}}
  inherits: {{model: there.gguf, args: {{media-path: nowhere}}}}
"""
    report = check(Origin(write(tmp_path, text)))
    said = {each.id: each.problems for each in report.models}
    assert said["fine"] == []
    (gone,) = said["scaled"]
    assert f"c.yaml:5: models.scaled.args.lora-scaled: {tmp_path}/c.gguf: there is no such" in gone
    inherited, folder = said["inherits"]
    assert (
        f"c.yaml:2: defaults.args.mmproj: {tmp_path}/gone.gguf: there is no such file" in inherited
    )
    assert "models.inherits.args.media-path" in folder


def test_up_refuses_a_broken_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        up.run(Origin(write(tmp_path, "nothing")), name=None, listen=(), verbose=False)
    assert exit_code(caught.value) == 2


@pytest.mark.usefixtures("no_engine", "quiet")
def test_up_without_an_engine(tmp_path: Path) -> None:
    path = write(tmp_path, "models: {a: {model: a.gguf}}")
    with pytest.raises(EngineError) as caught:
        up.run(Origin(path), name=None, listen=(), verbose=False)
    assert exit_code(caught.value) == 1


@pytest.mark.usefixtures("quiet")
def test_up_names_the_port_that_is_taken(
    tmp_path: Path, short_dir: Path, llama_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_dir))
    path = write(tmp_path, f"engine: {llama_server}\nmodels: {{a: {{model: a.gguf}}}}")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StateError, match=f"127.0.0.1:{port}: the address is in use"):
            up.run(Origin(path), name=None, listen=(f"127.0.0.1:{port}",), verbose=False)


@pytest.mark.usefixtures("quiet")
def test_up_refuses_an_open_listener_with_both_remedies(tmp_path: Path) -> None:
    path = write(tmp_path, "models: {a: {model: a.gguf}}")
    with pytest.raises(ConfigError, match="allow_unauthenticated: true") as caught:
        up.run(Origin(path), name=None, listen=("0.0.0.0:0",), verbose=False)
    assert "lswap key new" in str(caught.value)
    assert "keys: {file: keys.yaml}" in str(caught.value)


def test_banner() -> None:
    models = [model_view("alpha"), model_view("beta", failure=failure_view())]
    text = up.banner(make_snapshot([*models, *(model_view(f"m{n}") for n in range(30))]))
    assert text.startswith(f"{lswap_text()} with llama-server b11434-cpu (")
    assert "there is no such file" in text
    assert "and 12 more" in text
    assert text.endswith("ready on http://127.0.0.1:8080 (Ctrl-C drains and stops)")
    assert "and 9,980 more" in up.banner(make_snapshot(models), 10_000)


# --- tables


def test_plain_tables_cut_nothing() -> None:
    assert plain_table(("a", "b"), [("x" * 200, "1")]) == f"A{' ' * 199}  B\n{'x' * 200}  1"


def test_ps_rows_tell_the_two_instances_of_a_preset_apart() -> None:
    instances = [
        instance_view("alpha", state="draining", leases=2, claimed_by="beta"),
        instance_view("alpha", epoch=2, state="loading", progress=0.431, last_used_at=None),
    ]
    rows = ps_rows(make_snapshot([model_view("alpha", waiting=3)], instances), every=False)
    assert [row[1] for row in rows] == ["draining, beta is next", "loading 43%"]
    assert rows[0][2] == "2/2"
    assert rows[0][6] == "-"  # busy
    assert rows[1][5] == "1 m"


def test_a_waiting_model_is_shown_before_it_is_loaded() -> None:
    (row,) = ps_rows(make_snapshot([model_view("alpha", waiting=2)]), every=False)
    assert row[:4] == ("alpha", "unloaded", "0", "2")
    assert ps_rows(make_snapshot([model_view("alpha")]), every=False) == []
    ahead = ReadAheadView(there=3 << 29, size=4 << 30, read=1 << 30)
    waits = model_view("alpha", waiting=1, reason="drain: because", read_ahead=ahead)
    (row,) = ps_rows(make_snapshot([waits]), every=False)
    assert row[-1] == "1.5 GiB of 4 GiB read ahead; drain: because"


def test_progress_line() -> None:
    model = model_view("alpha", state="loading", aliases=("first",))
    loading = instance_view("alpha", state="loading", progress=0.5)
    assert progress_line(make_snapshot([model], [loading]), "first") == (
        "alpha: loading [############            ] 50%"
    )
    assert (
        progress_line(make_snapshot([model_view("alpha")]), "alpha") == "alpha: waiting for memory"
    )
    assert state_text(loading) == "loading 50%"


# --- lswap's own log


@pytest.fixture
def quiet() -> Iterator[None]:
    """Undo what set_up_logging() does to the process."""
    loggers = [logging.getLogger(name) for name in ("lswap", "lswap.access", "llamaswap_py")]
    before = [(one.handlers, one.level, one.propagate) for one in loggers]
    yield
    for one, (handlers, level, propagate) in zip(loggers, before, strict=True):
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)


@pytest.mark.usefixtures("quiet")
def test_logging(capsys: pytest.CaptureFixture[str]) -> None:
    cli_log.set_up_logging(Log(format="json"), verbose=False)
    logging.getLogger("lswap").info("über %d", 1)
    logging.getLogger("lswap.access").info("hidden")
    logging.getLogger("lswap.access").warning("a 502")
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("llamaswap_py.proxy").exception("failed")
    first, second, third = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["level"], first["logger"], first["message"]) == ("info", "lswap", "über 1")
    assert second["message"] == "a 502"
    assert "ValueError: boom" in third["traceback"]
    cli_log.set_up_logging(Log(level="error"), verbose=True)
    logging.getLogger("lswap.access").info("shown")
    assert capsys.readouterr().err.endswith("INFO    shown\n")


WRONG = {
    "nothing": ("", "names no file"),
    "no_mapping": ("model.gguf", "is not a mapping"),
    "no_port": ("{cmd: [docker, compose, up]}", "told where to listen"),
    "no_words": ("{cmd: []}", "the list is empty"),
    "two_sources": ("{model: a.gguf, cmd: [x, '{port}']}", "but the preset has cmd"),
    "no_repository": ("{hf: gemma}", "is not a repository"),
    "bad_value": ("{model: a.gguf, ttl: soon}", "ttl"),
    "out_of_range": ("{model: a.gguf, priority: 1000}", "priority"),
    "no_variable": ("{model: '${env.LSWAP_NEVER_SET}/a.gguf'}", "LSWAP_NEVER_SET"),
    "taken": ("{model: a.gguf, aliases: [good]}", "already names models.good"),
    "taken_alias": ("{model: a.gguf, aliases: [other, free]}", "already names models.good"),
    "no_substitute": ("{model: a.gguf, when_full: {substitute: nobody}}", "nobody"),
    "twins": ("{model: a.gguf, variants: [{name: a}, {name: a}]}", "two variants"),
    "a,comma": ("{model: a.gguf}", "cannot contain a comma"),
    "with.dots": ("{cmd: [x], ttl: 5}", "told where to listen"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_of_one_preset_is_that_presets_alone(tmp_path: Path, name: str) -> None:
    entry, said = WRONG[name]
    text = f"models:\n  good: {{cmd: [sleep, '{{port}}'], aliases: [other]}}\n  {name}: {entry}\n"
    report = check(Origin(write(tmp_path, text)))
    assert report.problems == []
    good, wrong = report.models
    assert good.problems == []
    assert not report.ok
    assert said in "\n".join(wrong.problems)
    assert all(line.count(f"c.yaml:3: models.{name}") == 1 for line in wrong.problems)
    config = Origin(tmp_path / "c.yaml").read()
    assert set(config.broken) == {name}
    for free in ("free", "other", "good"):
        if (found := config.find(free)) is not None:
            assert found.id == (name if free == "free" else "good")


def test_every_mistake_of_every_preset_is_said_at_once(tmp_path: Path) -> None:
    rows = "".join(f"  {name}: {entry}\n" for name, (entry, _) in WRONG.items())
    text = f"models:\n  good: {{cmd: [sleep, '{{port}}'], aliases: [other]}}\n{rows}"
    report = check(Origin(write(tmp_path, text)))
    assert {one.id: bool(one.problems) for one in report.models} == {"good": False} | dict.fromkeys(
        WRONG, True
    )


@pytest.mark.parametrize(
    "text",
    [
        "models: {good: {cmd: [sleep, '{port}']}, bad: {modle: a.gguf}}",
        "models: {good: {cmd: [sleep, '{port}']}, bad: {cmd: [x, '{port}'], ready: {htp: /}}}",
        "models: {bad: {cmd: [docker, compose, up]}}",
        "models: {good: {cmd: [sleep, '{port}']}}\ndefaults: {ttl: soon}",
    ],
)
def test_what_concerns_the_whole_file_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        Origin(write(tmp_path, text)).read()
