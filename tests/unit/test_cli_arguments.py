"""What people type after `lswap up` does what they meant, or is answered with the right command."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from llamaswap_py.cli import up
from llamaswap_py.cli.app import app
from llamaswap_py.cli.arguments import options_said, origin_of
from llamaswap_py.config.load import Origin
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.errors import ConfigError
from llamaswap_py.server.addresses import asked_listeners, typeable
from llamaswap_py.supervisor.reload import Reloader
from tests.unit.supervisors import make_supervisor


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Begin in an empty home, with a folder of models and one of files."""
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "LLAMA_CACHE", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in (
        *("a.gguf", "b.gguf", "models/c.gguf", "models/deep/d.gguf", "v/v-Q8_0.gguf"),
        *("v/mmproj-v-F16.gguf", "big-00001-of-00002.gguf", "big-00002-of-00002.gguf"),
        *("half-00002-of-00002.gguf", "blob", "mixed/e.gguf"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"GGUF....")
    (tmp_path / "empty").mkdir()
    for name in ("c.yaml", "conf.d/c.yaml", "mixed/c.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("models: {x: {model: x.gguf}}\n")
    (tmp_path / "router.ini").write_text("[a]\n")
    (tmp_path / "w.safetensors").write_bytes(b"\0\0\0\0")
    return tmp_path


def ids(*words: str) -> set[str]:
    return set(origin_of(words).read().models)


@pytest.mark.parametrize(
    ("words", "models"),
    [
        (["a.gguf"], {"a"}),
        (["~/a.gguf"], {"a"}),
        (["a.gguf", "b.gguf"], {"a", "b"}),
        (["models"], {"c", "deep"}),
        (["models", "a.gguf"], {"c", "deep", "a"}),
        (["big-00001-of-00002.gguf"], {"big"}),
        (["big-00002-of-00002.gguf"], {"big"}),
        (["blob"], {"blob"}),
        (["c.yaml"], {"x"}),
        (["conf.d"], {"x"}),
        (["mixed"], {"x"}),
        (["c.yaml", "a.gguf"], {"x", "a"}),
        (["hf:org/Some-7B-GGUF"], {"some-7b"}),
        (["org/Some-7B-GGUF:Q4_K_M", "a.gguf"], {"some-7b", "a"}),
        (["org/x-GGUF:Q4_K_M", "org/x-GGUF:Q8_0"], {"x", "x-Q8_0"}),
        (["c.yaml", "org/y-GGUF"], {"x", "y"}),
    ],
    ids=lambda value: " ".join(sorted(value) if isinstance(value, set) else value),
)
def test_what_is_named_is_served(words: list[str], models: set[str]) -> None:
    assert ids(*words) == models


def test_a_single_model_has_what_belongs_to_it() -> None:
    (preset,) = origin_of(["v/v-Q8_0.gguf"]).read().models.values()
    assert preset.args["mmproj"] == str(Path("v/mmproj-v-F16.gguf").absolute())
    (preset,) = origin_of(["big-00002-of-00002.gguf"]).read().models.values()
    assert preset.model == str(Path("big-00001-of-00002.gguf").absolute())


def test_the_file_may_name_single_models_too() -> None:
    Path("one.yaml").write_text("model_dirs: [a.gguf]\n")
    assert ids("one.yaml") == {"a"}


@pytest.mark.parametrize(
    ("address", "hf"),
    [
        ("https://huggingface.co/org/x-GGUF", "org/x-GGUF"),
        ("https://huggingface.co/org/x-GGUF/tree/main", "org/x-GGUF"),
        (
            "https://huggingface.co/org/x-GGUF/resolve/main/x-Q4_K_M.gguf?download=true",
            "org/x-GGUF:x-Q4_K_M.gguf",
        ),
        ("https://hf.co/org/x-GGUF/blob/main/sub/x.gguf", "org/x-GGUF:sub/x.gguf"),
        ("hf.co/org/x-GGUF:Q8_0", "org/x-GGUF:Q8_0"),
        ("org/x-GGUF:sub/x.gguf", "org/x-GGUF:sub/x.gguf"),
    ],
)
def test_an_address_of_hugging_face_is_its_repository(address: str, hf: str) -> None:
    (preset,) = origin_of([address]).read().models.values()
    assert preset.hf == hf


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nope.gguf"], "nope.gguf: there is no such file or folder - name a *.gguf"),
        (
            ["qwen3:8b"],
            "no such file or folder - this looks like a name of Ollama, but models come",
        ),
        (["qwen3"], "`lswap import ollama` takes Ollama's models"),
        (["org/nope.gguf"], "org/nope.gguf: there is no such file or folder"),
        (["models/nope"], "models/nope: there is no such file or folder"),
        (["/nowhere/at/all"], "/nowhere/at/all: there is no such file or folder"),
        (["empty"], "the folder has no *.gguf and no *.yaml file - put models there"),
        (["router.ini"], "lswap import llama-cpp router.ini -o lswap.yaml"),
        (["w.safetensors"], "llama-server reads models in the GGUF format only"),
        (["v/mmproj-v-F16.gguf"], "this is only a part of a model"),
        (["half-00002-of-00002.gguf"], "this is only a part of a model"),
        (["c.yaml", "conf.d/c.yaml"], "two configuration files are given: c.yaml and this"),
        (["conf.d", "mixed"], "two configuration folders are given"),
        (
            ["https://example.org/x.gguf"],
            "lswap does not download models from there - download the file",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_what_is_none_of_these_is_one_line_with_a_remedy(words: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        origin_of(words)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


def test_a_missing_file_is_said_when_it_is_read() -> None:
    with pytest.raises(ConfigError, match="there is no such file - check the path"):
        origin_of(["nope.yaml"]).read()


def test_what_options_say_goes_over_the_file() -> None:
    Path("c.yaml").write_text("listen: 0.0.0.0:8080\nmodels: {x: {model: x.gguf}}\n")
    with pytest.raises(ConfigError, match=r"--keys keys.yaml.*--allow-unauthenticated"):
        origin_of(["c.yaml"]).read()
    assert origin_of(["c.yaml"], allow_unauthenticated=True).read().allow_unauthenticated
    config = origin_of(["c.yaml"], keys=Path("${k}.yaml")).read()
    assert config.keys.file == str(Path("${k}.yaml").absolute())
    bare = origin_of(["a.gguf"], context=4096).read()
    assert bare.models["a"].args["ctx-size"] == 4096
    with pytest.raises(ConfigError, match=r"c\.yaml: -c does not set the context here - write it"):
        origin_of(["c.yaml"], context=4096)


def test_c_is_a_file_or_a_context() -> None:
    assert options_said(["c.yaml", "4096"]) == (["c.yaml"], 4096)
    assert options_said(["8k"]) == ([], 8192)
    assert options_said([], 8192) == ([], 8192)


@pytest.mark.parametrize(
    ("typed", "tokens"), [("0", 0), ("8192", 8192), ("64k", 65536)], ids=["all", "plain", "short"]
)
def test_up_takes_a_context_as_people_write_it(
    monkeypatch: pytest.MonkeyPatch, typed: str, tokens: int
) -> None:
    origins: list[Origin] = []
    monkeypatch.setattr(up, "run", lambda origin, **_: origins.append(origin))
    Path("a.gguf").write_bytes(b"")
    assert CliRunner().invoke(app, ["up", "a.gguf", "--ctx-size", typed]).exit_code == 0
    (origin,) = origins
    assert origin.read().models["a"].args["ctx-size"] == tokens


def test_up_says_what_a_context_looks_like() -> None:
    done = CliRunner().invoke(app, ["up", "a.gguf", "--ctx-size", "much"])
    assert done.exit_code == 2
    assert "'much' is not a number of tokens like 16384 or 16k" in done.output


def test_without_words_the_usual_file_counts() -> None:
    Path("lswap.yaml").write_text("models: {x: {model: x.gguf}}\n")
    assert origin_of([]) == Origin(Path("lswap.yaml"))


# --- where it listens


@pytest.mark.parametrize(
    ("given", "host", "port", "wanted"),
    [
        ("127.0.0.1:8080", None, 9000, "127.0.0.1:9000"),
        ("127.0.0.1:8080", "0.0.0.0", None, "0.0.0.0:8080"),
        ("127.0.0.1:8080 192.168.1.2:8080", None, 9000, "127.0.0.1:9000 192.168.1.2:9000"),
        ("127.0.0.1:8080 192.168.1.2:8080", "::1", 9000, "[::1]:9000"),
        ("127.0.0.1:8080", "*", 0, "0.0.0.0:0"),
        ("unix:/x", None, 9000, "127.0.0.1:9000 unix:/x"),
    ],
)
def test_host_and_port_change_their_part(
    given: str, host: str | None, port: int | None, wanted: str
) -> None:
    found = asked_listeners(endpoints(given), (), host, port)
    assert found is not None
    assert " ".join(map(str, found)) == wanted


def test_listen_says_all_of_it() -> None:
    assert asked_listeners((), (), None, None) is None
    assert asked_listeners((), ("127.0.0.1:1", "unix:x"), None, None) == (
        Endpoint(port=1),
        Endpoint(path=str(Path("x").absolute())),
    )
    with pytest.raises(ConfigError, match="leave out --host and --port"):
        asked_listeners((), ("127.0.0.1:1",), None, 9000)


def test_addresses_can_be_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "box")
    for every, own in (("0.0.0.0", "http://127.0.0.1:8080"), ("::", "http://[::1]:8080")):
        urls = typeable([Endpoint(host=every, port=8080)])
        assert urls[0] == own
        assert not any(bad in url for url in urls for bad in ("0.0.0.0", "[::]", "fe80"))
    assert "http://box:8080" in typeable([Endpoint(host="0.0.0.0", port=8080)])
    plain = [Endpoint(host="192.168.1.2", port=80), Endpoint(path="/x"), Endpoint(port=1)]
    assert typeable(plain) == ("http://192.168.1.2:80", "unix:/x", "http://127.0.0.1:1")


def endpoints(text: str) -> list[Endpoint]:
    from llamaswap_py.config.listen import parse_endpoint

    return list(map(parse_endpoint, text.split()))


def test_a_model_of_the_command_line_is_in_no_file(short_dir: Path) -> None:
    origin = origin_of(["org/x-GGUF"])
    config = origin.read()
    supervisor = make_supervisor(short_dir, config, Endpoint(port=1))
    with pytest.raises(ConfigError, match="no file names x: it was named on the command line"):
        Reloader(supervisor, origin).remove("x")
