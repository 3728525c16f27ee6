"""The commands: what they print, and how they fail."""

from __future__ import annotations

import json
import logging
import re
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import jsonschema  # type: ignore[import-untyped]
import msgspec
import pytest

from llamaswap_py import __version__
from llamaswap_py.children.logs import ChildLog
from llamaswap_py.cli.app import main
from llamaswap_py.client.address import base_of
from llamaswap_py.config.api_keys import ApiKey, KeyRing, hash_secret
from llamaswap_py.errors import ApiError
from llamaswap_py.server.logging import OwnLog
from llamaswap_py.snapshot import Snapshot
from tests.unit.api_fakes import (
    FakeSupervisor,
    failure_view,
    instance_view,
    make_snapshot,
    model_view,
)
from tests.unit.cli_fakes import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def supervisor() -> FakeSupervisor:
    log = ChildLog()
    log.extend(["loading", "listening"])
    picture = make_snapshot(
        [
            model_view("alpha", state="ready", aliases=("first",), ttl=1800.0),
            model_view("org/beta:8b", state="failed", failure=failure_view(log=("oh no",))),
            model_view("gamma"),
        ],
        [instance_view("alpha", leases=1, evict_at=1100.0)],
    )
    return FakeSupervisor(picture=picture, log=log)


@pytest.fixture
def url(supervisor: FakeSupervisor, short_dir: Path) -> Iterator[str]:
    with serving(supervisor, short_dir / "l.sock") as url:
        yield url


class Lswap:
    """Run a command as the shell would; keeps its output and exit code."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *words: str, url: str | None = None) -> tuple[int, str, str]:
        if url is not None:
            self._monkeypatch.setenv("LSWAP_URL", url)
        self._monkeypatch.setattr(sys, "argv", ["lswap", *words])
        with pytest.raises(SystemExit) as end:
            main()
        code = end.value.code
        out, err = self._capsys.readouterr()
        return (code if isinstance(code, int) else 0), out, err


@pytest.fixture
def lswap(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lswap:
    monkeypatch.delenv("LSWAP_URL", raising=False)
    return Lswap(monkeypatch, capsys)


# --- commands that talk to a running lswap


def test_ps(lswap: Lswap, url: str) -> None:
    code, out, _ = lswap("ps", url=url)
    assert code == 0
    assert "alpha" in out
    assert "1/2" in out
    assert "there is no such file" in out
    assert "RAM: 8 GiB (declared) – models 2 GiB, kept free 1 GiB, available" in out
    assert "gamma" not in out
    assert "gamma" in lswap("ps", "--all")[1]


def test_ps_json_is_the_snapshot(lswap: Lswap, url: str, supervisor: FakeSupervisor) -> None:
    _, out, _ = lswap("ps", "--json", "--url", url)
    assert msgspec.json.decode(out, type=Snapshot) == supervisor.snapshot()


def test_what_is_pinned_shows(lswap: Lswap, url: str, supervisor: FakeSupervisor) -> None:
    assert "(pinned)" not in lswap("ps", "--all", url=url)[1]
    pinned = [model_view("alpha", pinned=True), model_view("gamma", pinned=True)]
    supervisor.picture = make_snapshot(pinned, [instance_view("alpha")])
    first, second = lswap("ps", "--all")[1].splitlines()[1:3]
    assert (first[:14], second[:14]) == ("alpha (pinned)", "gamma (pinned)")


def test_models(lswap: Lswap, url: str) -> None:
    _, out, _ = lswap("models", url=url)
    assert [line.split()[0] for line in out.splitlines()] == [
        "MODEL",
        "alpha",
        "org/beta:8b",
        "gamma",
    ]
    assert [model["id"] for model in json.loads(lswap("models", "--json")[1])] == [
        "alpha",
        "org/beta:8b",
        "gamma",
    ]


def test_load(lswap: Lswap, url: str, supervisor: FakeSupervisor) -> None:
    code, out, _ = lswap("load", "org/beta:8b", url=url)
    assert code == 0
    assert out.startswith("org/beta:8b is ready (")
    code, out, _ = lswap("load", "first", "--no-wait")
    assert "lswap ps" in out
    assert json.loads(lswap("load", "alpha", "--json")[1])["state"] == "ready"
    assert supervisor.loaded == ["org/beta:8b", "alpha, later", "alpha"]


def test_a_load_that_fails(lswap: Lswap, url: str, supervisor: FakeSupervisor) -> None:
    supervisor.refuse = ApiError("model_failed", "alpha does not fit", remedy="buy memory")
    code, out, err = lswap("load", "alpha", url=url)
    assert (code, out) == (1, "")
    assert err == "lswap: alpha does not fit - buy memory\n"


def test_unload(lswap: Lswap, url: str, supervisor: FakeSupervisor) -> None:
    assert lswap("unload", "alpha", "--force", url=url)[1] == "alpha is unloaded\n"
    assert lswap("unload", "org/beta:8b")[1] == "org/beta:8b was not loaded\n"
    assert json.loads(lswap("unload", "alpha", "--json")[1])["unloaded"] is True
    assert supervisor.unloads[0] == ("alpha", True)


def test_an_unload_that_did_not_go_well_is_not_called_done(
    lswap: Lswap, url: str, supervisor: FakeSupervisor
) -> None:
    supervisor.unload_problem = "stop_cmd failed: exit code 3"
    code, out, _ = lswap("unload", "alpha", url=url)
    assert (code, out) == (0, "alpha is unloaded, but stop_cmd failed: exit code 3\n")
    supervisor.unload_problem = "process 7 (vllm) still runs"
    supervisor.picture = make_snapshot(
        [model_view("alpha", state="stopping"), model_view("org/beta:8b")]
    )
    code, out, err = lswap("unload", "alpha", "org/beta:8b", url=url)
    assert (code, out) == (1, "org/beta:8b was not loaded\n")
    assert err == "lswap: alpha is not unloaded: process 7 (vllm) still runs\n"
    code, out, _ = lswap("unload", "alpha", "--json", url=url)
    assert code == 1
    assert json.loads(out)["problem"] == "process 7 (vllm) still runs"


def test_logs(lswap: Lswap, url: str) -> None:
    assert lswap("logs", "alpha", url=url)[1] == "loading\nlistening\n"
    assert lswap("logs", "alpha", "-n", "1")[1] == "listening\n"
    lines = [json.loads(line) for line in lswap("logs", "alpha", "--json")[1].splitlines()]
    assert lines[1] == {"model": "alpha", "line": "listening"}


def test_a_model_that_wrote_nothing_is_told_so(
    lswap: Lswap, url: str, supervisor: FakeSupervisor
) -> None:
    supervisor.log = None
    code, out, err = lswap("logs", "alpha", url=url)
    assert (code, out) == (0, "")
    assert err.startswith("lswap: alpha has no log: it was never started - `lswap why ")
    assert err.count("\n") == 1


def test_followed_logs_end_with_the_log(lswap: Lswap, url: str, supervisor: FakeSupervisor) -> None:
    assert supervisor.log is not None
    supervisor.log.close()
    assert lswap("logs", "alpha", "-f", url=url)[1] == "loading\nlistening\n"


def test_why(lswap: Lswap, url: str) -> None:
    code, out, _ = lswap("why", "org/beta:8b", url=url)
    assert code == 0
    assert "org/beta:8b is failed" in out
    assert "failure: there is no such file\n  | oh no" in out
    assert "limit 20" in out
    assert json.loads(lswap("why", "first", "--json", "-n", "3")[1])[0]["reason"] == "limit 3"


@pytest.mark.parametrize("command", ["load", "unload", "logs", "why"])
def test_unknown_models(lswap: Lswap, url: str, command: str) -> None:
    code, out, err = lswap(command, "alpa", url=url)
    assert (code, out) == (1, "")
    assert "did you mean alpha?" in err
    assert err.count("\n") == 1


# --- when nothing, or something else, answers


@pytest.mark.parametrize(
    "command", [["ps"], ["models"], ["load", "x"], ["logs", "x"], ["why", "x"]]
)
def test_nobody_answers(lswap: Lswap, short_dir: Path, command: list[str]) -> None:
    code, out, err = lswap(*command, url=f"unix:{short_dir}/none.sock")
    assert (code, out) == (3, "")
    assert "no lswap answers at unix:" in err
    assert "lswap up CONFIG" in err
    assert err.count("\n") == 1


def test_a_closed_port(lswap: Lswap) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, never listening: refused, and nobody else gets it
        code, _, err = lswap("ps", url=f"127.0.0.1:{taken.getsockname()[1]}")
    assert code == 3
    assert "refused" in err


def test_a_stranger_answers(lswap: Lswap, short_dir: Path) -> None:
    class Stranger(FakeSupervisor):
        def snapshot(self) -> Any:
            return {"some": "thing"}

    with serving(Stranger(), short_dir / "s.sock") as url:
        code, _, err = lswap("ps", url=url)
    assert code == 3
    assert "is not lswap" in err


@pytest.mark.parametrize(
    ("typed", "base"),
    [
        ("http://gpu:8080/v1", "http://gpu:8080"),
        (" http://gpu:8080/v1/ ", "http://gpu:8080"),
        ("http://gpu:8080/", "http://gpu:8080"),
        ("HTTPS://gpu/models/v1/chat/completions", "https://gpu/models"),
        ("https://gpu/v1x", "https://gpu/v1x"),
        ("http://gpu/lswap/v1/state", "http://gpu"),
        ("gpu:9000/v1", "http://gpu:9000"),
        ("gpu", "http://gpu:8080"),
        (":9000", "http://127.0.0.1:9000"),
        ("9000", "http://127.0.0.1:9000"),
        ("http://0.0.0.0:9000", "http://127.0.0.1:9000"),
        ("[::]:9000", "http://[::1]:9000"),
        ("[::1]", "http://[::1]:8080"),
    ],
)
def test_an_address_is_taken_as_people_have_it(typed: str, base: str) -> None:
    assert base_of(typed) == (base, None)


def test_a_socket_is_taken_as_it_is() -> None:
    assert base_of(" unix:/run/v1/l.sock") == ("http://localhost", "/run/v1/l.sock")


@pytest.mark.parametrize("command", [["ps"], ["logs", "alpha"]])
def test_a_missing_key_is_told_in_the_words_of_the_commands(
    lswap: Lswap, supervisor: FakeSupervisor, short_dir: Path, command: list[str]
) -> None:
    keys = KeyRing((ApiKey(name="me", hash=hash_secret(b"lswap-secret"), kind="admin"),))
    with serving(supervisor, short_dir / "k.sock", keys) as url:
        code, out, err = lswap(*command, url=url)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "wants an API key - pass one with --key or LSWAP_KEY" in err
        assert "Authorization" not in err
        assert "does not know this key" in lswap(*command, "--key", "wrong")[2]
        assert lswap(*command, "--key", "lswap-secret")[0] == 0


def test_a_bad_url(lswap: Lswap) -> None:
    code, _, err = lswap("ps", url="http://[::1")
    assert code in (1, 3)
    assert err.count("\n") == 1


# --- commands that need no server


def test_version(lswap: Lswap) -> None:
    said = lswap("version")[1]
    assert lswap("--version")[1] == said
    assert re.fullmatch(rf"lswap {__version__} \(commit \w+, (no )?llama-server.*\)\n", said)
    record = json.loads(lswap("version", "--json")[1])
    assert record["version"] == __version__
    assert set(record) == {"version", "commit", "engine"}


def test_schema(lswap: Lswap) -> None:
    schema = json.loads(lswap("schema")[1])
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate({"models": {"a": {"model": "a.gguf"}}}, schema)


def test_usage_errors(lswap: Lswap) -> None:
    assert lswap("nonsense")[0] == 2
    assert lswap("up")[0] == 2
    code, _, err = lswap("ps", "--nonsense")
    assert code == 2
    assert "--nonsense" in err


def test_engine_has_its_own_commands(lswap: Lswap) -> None:
    code, out, _ = lswap("engine", "build", "--help")
    assert code == 0
    assert "--backend" in out
    assert "doctor" in lswap("engine")[1]
    assert lswap("engine", "nonsense")[0] == 2


def test_help_is_quick() -> None:
    """What makes a start slow must stay out of it: --help has 150 ms of CPU
    (docs/design/targets.md).
    """
    code = "import sys, llamaswap_py.cli.app; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"httpx", "rich", "msgspec", "yaml", "asyncio", "uvloop", "psutil", "pydantic"}
    assert not heavy & set(done.stdout.split())


# --- command lines that are wrong


def test_pin_prints_json_when_asked(lswap: Lswap, url: str) -> None:
    code, out, _ = lswap("pin", "alpha", "--json", url=url)
    report = {"model": "alpha", "pinned": True, "impossible": ["gamma"]}
    assert (code, json.loads(out)) == (0, report)
    code, out, _ = lswap("unpin", "alpha", "--json", url=url)
    assert (code, json.loads(out)) == (0, {"model": "alpha", "pinned": False})


def test_pin_names_the_models_that_it_makes_impossible(lswap: Lswap, url: str) -> None:
    code, out, _ = lswap("pin", "alpha", url=url)
    warning = "warning: beside it these can never be loaded: gamma - `lswap unpin alpha`"
    assert (code, out.splitlines()) == (0, ["alpha is pinned", warning])


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["frob"], ["'frob'", " - see `lswap --help`\n"]),
        (["why"], ["'model'", " - see `lswap why --help`\n"]),
        (["logs", "-n", "x", "m"], ["'--tail'", "'x'", " - see `lswap logs --help`\n"]),
    ],
)
def test_a_wrong_command_line_is_one_line(lswap: Lswap, words: list[str], names: list[str]) -> None:
    """What is wrong is said by typer, whose words may change; what it concerns is named."""
    code, out, err = lswap(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("lswap: ")
    assert all(name in err for name in names), err
    assert err.endswith(names[-1])


def test_help_starts_fast(lswap: Lswap) -> None:
    """Heavy imports stay inside the commands that need them."""
    command = [sys.executable, "-X", "importtime", "-m", "llamaswap_py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=90)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    heavy = {"httpx", "yaml", "msgspec", "rich", "textual", "asyncio", "psutil", "huggingface_hub"}
    assert not loaded & heavy
    code, out, _ = lswap("--help")
    assert code == 0
    assert "Exit codes" in out


def _commands() -> Iterator[tuple[str, ...]]:
    from typer.main import get_command

    from llamaswap_py.cli import completion, engine, importing, key, service
    from llamaswap_py.cli.app import app

    yield ()
    for name in get_command(app).commands:  # type: ignore[attr-defined]
        yield (name,)
    groups = {"engine": engine, "import": importing, "key": key, "service": service}
    for name, module in {**groups, "completion": completion}.items():
        for command in get_command(module.app).commands:  # type: ignore[attr-defined]
            yield name, command


@pytest.mark.parametrize("words", [*_commands()], ids=" ".join)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_all_help_looks_the_same(lswap: Lswap, words: tuple[str, ...], option: str) -> None:
    code, out, err = lswap(*words, option)
    assert (code, err) == (0, "")
    assert out.startswith(" ".join(("Usage: lswap", *words, "")))
    assert "  -h, --help" in out
    assert "╭" not in out
    assert ("--install-completion" in out) == (words == ())


def test_every_command_of_a_server_takes_its_address_and_prints_json() -> None:
    from typer.main import get_command

    from llamaswap_py.cli.app import app

    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        options = {word for parameter in command.params for word in parameter.opts}
        if "--url" in options:
            assert "--key" in options, name
            assert name in ("reserve", "report") or "--json" in options, name


# --- what people type who come from elsewhere


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "qwen"], "start `lswap up`, then send a request"),
        (["start"], "`lswap service install --now` keeps it running"),
        (["restart"], "`lswap stop`, then `lswap up`"),
        (["pss"], "did you mean `lswap ps`?"),
        (["x.gguf"], "`lswap up x.gguf` serves it"),
        (["org/repo:Q4_K_M"], "`lswap up org/repo:Q4_K_M` serves it"),
        (["9000"], "`lswap up --port 9000` serves there"),
        (["--config", "c.yaml", "up"], "options follow their command: `lswap up --config …`"),
        (["up", "x", "--threads", "4"], "`defaults: {args: {threads: …}}`"),
        (["up", "x", "-d"], "`lswap service install --now` keeps it running"),
        (["ps", "--port", "9000"], "--url http://HOST:PORT"),
        (["check", "--config", "c.yaml"], "name the file without an option: `lswap check FILE`"),
        (["stop", "qwen"], "`lswap unload qwen` takes a model out of memory"),
        (["status", "qwen"], "`lswap ps qwen` shows a model"),
        (["key", "laptop"], "`lswap key new laptop` makes a key of that name"),
        (["import", "models.ini"], "`lswap import llama-cpp models.ini -o lswap.yaml`"),
        (["import", "config.yaml"], "`lswap import llama-swap config.yaml -o lswap.yaml`"),
        (["import", "llama-server -m x"], "`lswap import command 'llama-server -m x'`"),
        (["service", "c.yaml"], "`lswap service install c.yaml`"),
        (["service", "start"], "systemctl does that"),
        (["engine", "remove"], "`lswap engine list` prints its folder"),
        (["upgrade"], "`lswap engine update` installs a newer"),
        (["unload"], "name a model, or use --all"),
        (["up", "nothing.gguf"], "there is no such file or folder"),
        (["up", "x.gguf", "--listen", "127.0.0.1:1", "--port", "2"], "no such file"),
        (["check", "nothing"], "there is no such file or folder"),
        (["estimate", "nothing.gguf"], "there is no such file or folder"),
        (["init", "m.gguf", "--force"], "lswap init --models-dir m.gguf writes lswap.yaml with it"),
        (["init", "."], "this is a folder, not the file to write"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_the_right_command_is_said(
    lswap: Lswap, words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = lswap(*words, url="unix:/nowhere")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "usage"),
    [
        (["serve"], "lswap up"),
        (["list"], "lswap models"),
        (["ls"], "lswap models"),
        (["down"], "lswap stop"),
        (["key", "create"], "lswap key new"),
        (["engine", "ls"], "lswap engine list"),
    ],
    ids=" ".join,
)
def test_another_word_for_a_command_is_the_command(
    lswap: Lswap, words: list[str], usage: str
) -> None:
    code, out, _ = lswap(*words, "--help")
    assert code == 0
    assert out.startswith(f"Usage: {usage} ")


def test_advice_names_commands_that_exist() -> None:
    """Every command line in the tables is one that can be typed."""
    from typer.main import get_command

    from llamaswap_py.cli import advice
    from llamaswap_py.cli.app import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    for path, words in advice._SAME.items():
        assert path != "lswap" or set(words.values()) <= known
        assert path != "lswap" or not set(words) & known
    told = [text for words in advice._INSTEAD.values() for text in words.values()]
    named = {name for text in told for name in re.findall(r"`lswap ([a-z]+)", text)}
    assert named <= known
    assert not set(advice._INSTEAD["lswap"]) & known


def test_one_model_is_shown_by_its_name(lswap: Lswap, url: str) -> None:
    _, out, _ = lswap("ps", "first", url=url)
    assert out.splitlines()[1].startswith("alpha ")
    assert "beta" not in out
    assert "gamma" in lswap("ps", "gamma")[1]
    assert [one["id"] for one in json.loads(lswap("models", "gamma", "--json")[1])] == ["gamma"]
    code, _, err = lswap("ps", "alpa")
    assert (code, err) == (1, "lswap: there is no model 'alpa' - did you mean alpha?\n")


def test_all_that_is_loaded_is_unloaded(lswap: Lswap, url: str, supervisor: FakeSupervisor) -> None:
    assert lswap("unload", "--all", url=url)[1] == "alpha is unloaded\n"
    out = lswap("unload", "alpha", "org/beta:8b", "--json")[1]
    assert [json.loads(line)["model"] for line in out.splitlines()] == ["alpha", "org/beta:8b"]
    supervisor.picture = make_snapshot([model_view("alpha")])
    assert lswap("unload", "--all")[1] == "nothing is loaded\n"


def test_lswaps_own_log(lswap: Lswap, supervisor: FakeSupervisor, short_dir: Path) -> None:
    own = OwnLog(logging.Formatter("%(message)s"))
    own.emit(logging.makeLogRecord({"msg": "one\ntwo"}))
    with serving(supervisor, short_dir / "o.sock", own_log=own.lines) as url:
        assert lswap("logs", url=url) == (0, "one\ntwo\n", "")
        assert json.loads(lswap("logs", "-n", "1", "--json")[1]) == {"line": "two"}


def test_status_and_stop_ask_the_one_at_an_address(lswap: Lswap, url: str) -> None:
    code, out, _ = lswap("status", url=url)
    assert code == 0
    assert out.startswith(f"lswap {__version__} is serving on {url}\n")
    assert "1 of 3 models loaded: alpha (ready)" in out
    code, _, err = lswap("stop", url=url)
    assert code == 1
    assert "is not one of yours on this machine - stop it where it runs" in err
    assert lswap("stop", url="unix:/nowhere")[0] == 3
