"""Preset files as llama.cpp's own router reads them, against what an import makes of them.

The router of the engine in use tells the command line of each model (`/models`, `status.args`).
Every option of its `--help` is tried, with a value that fits.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from llamaswap_py.config.argv import build_args, check_preset
from llamaswap_py.config.parse import load_config, load_files
from llamaswap_py.config.scan import scan_folder
from llamaswap_py.config.sources import SourceText
from llamaswap_py.importing.command import read_command, split_command, take_environment
from llamaswap_py.importing.draft import Draft, render
from llamaswap_py.importing.engine_options import fit_to_engines
from llamaswap_py.importing.llama_cpp import read_ini
from llamaswap_py.importing.llama_swap import read_llama_swap
from llamaswap_py.llamacpp.features import parse_options
from llamaswap_py.llamacpp.option_values import choices, number_kind
from llamaswap_py.llamacpp.options import (
    OWNED,
    Option,
    is_negation,
    long_name,
    plain_name,
    table_of,
)
from llamaswap_py.llamacpp.path_options import PATH_LISTS, PATH_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from llamaswap_py.config.sections import Config

OF_ROUTER = {"host", "port", "alias", "log-colors", "api-key", "api-key-file"}
OF_ROUTER |= {"ssl-key-file", "ssl-cert-file", "models-dir", "models-max", "models-preset"}
OF_ROUTER |= {"models-autoload"}
"""What the router sets or takes away itself, whatever a preset says."""

ALWAYS = {"model", "alias", "metrics", "slots", "offline", "log-jsonl", "log-colors", "cache-ram"}
ALWAYS |= {"threads-http", "fit", "fit-target", "sleep-idle-seconds"}
"""What lswap passes by itself, or by keys of its own."""

DIFFERENT = {
    "control-vector-layer-range": "the router ends with an error: it cannot pass two values",
    "usage": "the program prints and ends",
    "version": "the router takes it for the version of the file",
    "webui": "children have no web UI of their own: lswap has the one for all",
}
"""Options that are not compared, and why."""

KEPT_AS_KEYS = {
    "model": "model",
    "hf-repo": "hf",
    "fit": "fit",
    "fit-target": "fit",
    "fit-ctx": "fit",
    "sleep-idle-seconds": "sleep",
}
"""Options that become a key of the preset."""

QUIET = {"host", "port", "metrics", "slots", "offline", "threads-http", "reuse-port", "alias"}
QUIET |= {"log-colors", "log-prefix", "log-timestamps", "log-disable", "log-jsonl", "hf-file"}
"""Owned options that lose nothing: lswap sets them, or has taken them up."""


@pytest.fixture(scope="module")
def options(llama_server: str) -> dict[str, Option]:
    done = subprocess.run([llama_server, "--help"], capture_output=True, text=True, check=True)
    return dict(parse_options(done.stdout))


def one_of_each(options: dict[str, Option]) -> list[Option]:
    found = list({id(each): each for each in options.values()}.values())
    return [
        each
        for each in found
        if not each.removed and long_name(plain_name(each.name)) not in DIFFERENT
    ]


def value_for(option: Option, folder: Path) -> str:
    """Return a value that fits what the help says."""
    if known := choices(option):
        return known[0]
    kind = number_kind(option)
    if kind is not None:
        return "0.5" if kind == "float" else "3"
    name = long_name(plain_name(option.name))
    if name in PATH_OPTIONS or name in PATH_LISTS or re.search("FNAME|FILE|PATH|DIR", option.hint):
        return str(folder / "some file.bin")
    if re.match(r"[A-Za-z]+0,", option.hint):
        return "1024,2048" if option.hint.startswith("MiB") else "3,1"
    if "JSON" in option.hint or option.hint in ("SCHEMA", "STRING"):
        return '{"a": 1}'
    if "/" in option.hint and "<user>" in option.hint:
        return "someone/some-GGUF:Q4_K_M"
    return "word"


@contextmanager
def router(llama_server: str, ini: Path, *more: str) -> Iterator[dict[str, list[str]]]:
    """Run llama.cpp's router, and give the arguments that it makes of each preset."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("LLAMA_")}
    env |= {"XDG_CONFIG_HOME": str(ini.parent), "HF_HOME": str(ini.parent / "hub")}
    env |= {"LLAMA_CACHE": str(ini.parent / "cache"), "HOME": str(ini.parent)}
    path = str(ini.parent / "r.sock")
    command = [llama_server, "--models-preset", str(ini), "--host", path, "--offline", *more]
    with (ini.parent / "router.log").open("w") as log:
        run = subprocess.Popen(command, stdout=log, stderr=log, env=env)
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=path)) as client:
            end = time.monotonic() + 60
            while True:
                said = (ini.parent / "router.log").read_text()
                assert run.poll() is None, said[-600:]
                assert time.monotonic() < end, said[-600:]
                # httpx leaves its socket open where nobody listens: it is asked when somebody does.
                if listens(path):
                    answer = client.get("http://x/models")
                    if answer.status_code == 200:
                        break
                time.sleep(0.05)
        yield {each["id"]: each["status"]["args"][1:] for each in answer.json()["data"]}
    finally:
        run.kill()
        run.wait()


def listens(path: str) -> bool:
    """Return whether somebody listens at a unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


def meaning(words: list[str], options: dict[str, Option]) -> dict[str, Any]:
    """Return a command line as what it sets: an option's long name, and on, off or a value."""
    found: dict[str, Any] = {}
    at = 0
    while at < len(words):
        option = options[words[at]]
        name = long_name(plain_name(option.name))
        if option.values:
            found[name] = _plain(words[at + 1])
        else:
            found[name] = not is_negation(option, plain_name(words[at]))
        at += 1 + option.values
    return found


def _plain(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return {"enabled": "on", "true": "on", "disabled": "off", "false": "off"}.get(text, text)


def imported(draft: Draft, options: dict[str, Option]) -> Config:
    """Return the file that an import writes, as lswap reads it; nothing in it may be wrong."""
    fit_to_engines(draft, lambda _: table_of(options))
    text = render(draft, "a test")
    config = load_config(text, path=None, base_dir="/", env={}, home="/")
    for preset in config.models.values():
        assert [str(one) for one in check_preset(preset, config, options)] == []
    return config


def passed(config: Config, name: str, options: dict[str, Option]) -> dict[str, Any]:
    """Return what our child of a model is told, besides what lswap always says."""
    words = list(build_args(config.models[name], config, options))
    told = {key: value for key, value in meaning(words, options).items() if key not in ALWAYS}
    if (
        told.get("cors-origins")
        == meaning(["--cors-origins", "localhost"], options)["cors-origins"]
    ):
        del told["cors-origins"]  # what lswap says where a preset does not
    return told


def cases(options: dict[str, Option], folder: Path) -> dict[str, tuple[Option, str, str]]:
    """Return the entries to try: the option, the key as it is written, the value."""
    found: dict[str, tuple[Option, str, str]] = {}
    for option in one_of_each(options):
        keys = [plain_name(each) for each in (*option.names, *option.negated)]
        if variable := getattr(option, "env", None):
            keys.append(variable)
        for number, key in enumerate(keys):
            values = [value_for(option, folder)]
            if not option.values:
                values = ["on", "off", "1", "0", "true", "disabled"] if number < 2 else ["1", "off"]
            for value in values:
                name = f"m{len(found)}"
                own = f"other-{name}" if option.name == "--alias" else value
                found[name] = option, key, own
    return found


def test_every_option_means_what_llama_cpp_s_router_makes_of_it(
    llama_server: str, options: dict[str, Option], tmp_path: Path
) -> None:
    tried = cases(options, tmp_path)
    assert len(tried) > 500
    text = "version = 1\n" + "".join(
        f"[{name}]\n{key} = {value}\n"
        + (
            ""
            if long_name(plain_name(option.name)) in ("model", "hf-repo")
            else "model = /m/x.gguf\n"
        )
        for name, (option, key, value) in tried.items()
    )
    ini = tmp_path / "all.ini"
    ini.write_text(text)
    with router(llama_server, ini) as theirs:
        pass
    draft = read_ini(text, "all.ini", options)
    config = imported(draft, options)
    notes = " ".join(f"{note.place} {note}" for note in draft.notes)
    different = []
    for name, (option, key, value) in tried.items():
        long = long_name(plain_name(option.name))
        if long in OWNED or long in KEPT_AS_KEYS:
            said = f"[{name}]" in notes or long in QUIET | OF_ROUTER
            is_off = not option.values and value in ("off", "0", "disabled")
            if not said and not is_off and KEPT_AS_KEYS.get(long, "-") not in draft.models[name]:
                different.append(f"{key} = {value}: lost without a word")
            continue
        want = meaning(theirs[name], options)
        want = {key: each for key, each in want.items() if key not in OF_ROUTER | ALWAYS}
        have = passed(config, name, options)
        if want != have:
            different.append(f"{key} = {value}: the router says {want}, lswap {have}")
    assert not different, "\n".join(different)


def test_every_option_of_a_command_line_comes_over(
    options: dict[str, Option], tmp_path: Path
) -> None:
    """From a command, from llama-swap's file, and written by hand in `args`."""
    different = []
    for option, key, value in cases(options, tmp_path).values():
        long = long_name(plain_name(option.name))
        if key.isupper() or long in OWNED:
            continue
        spelling = next(
            each for each in (*option.names, *option.negated) if plain_name(each) == key
        )
        words = [spelling, value] if option.values else [spelling]
        want = meaning(words, options)
        line = shlex.join(["llama-server", "-m", "/m/x.gguf", *words])
        env, split = take_environment(split_command(line))
        draft = Draft()
        draft.models["x"] = read_command(split, env, draft, "command")
        swapped = read_llama_swap({"models": {"x": {"cmd": line}}}, {})
        given: Any = value if option.values else True
        by_hand = Draft(models={"x": {"model": "/m/x.gguf", "args": {key: given}}})
        for how, one in (("command", draft), ("llama-swap", swapped), ("args", by_hand)):
            if long in KEPT_AS_KEYS and one is not by_hand:
                assert KEPT_AS_KEYS[long] in one.models["x"]
                continue
            have = passed(imported(one, options), "x", options)
            if have != want:
                different.append(f"{how}: {shlex.join(words)}: {have}")
    assert not different, "\n".join(different)


INHERITED = """\
; above every section
version = 1
[*]
c = 1024
no-mmproj = true
mmap = off
jinja = on
cache-idle-slots = off
load-on-startup = false
temp = 0.5
LLAMA_ARG_N_GPU_LAYERS = 7
[a]
model = {a}
ctx-size = 512
mmproj-auto = on
alias = a, first
no-jinja = 1 # a comment
skip-chat-parsing = 1
[b]
model = {a}
temperature = 0.9
c = 1
ctx-size = 2048
load-on-startup = true
stop-timeout = 30
[b]
model = {a}
temperature = 0.7
load-on-startup = enabled
flash-attn = on
chat-template-kwargs = {{"enable_thinking": false}}
"""


def test_sections_inherit_as_in_the_router(
    llama_server: str, options: dict[str, Option], tmp_path: Path
) -> None:
    """Negations, one option in two spellings, variables as keys, a section that stands twice."""
    today = "mmap" not in {plain_name(each) for each in options}
    text = INHERITED.format(a="/m/x.gguf")
    ini = tmp_path / "i.ini"
    ini.write_text(text.replace("mmap = off", "load-mode = none") if today else text)
    with router(llama_server, ini, "--no-models-autoload") as theirs:
        pass
    draft = read_ini(text, "i.ini", options)
    config = imported(draft, options)
    for name in ("a", "b"):
        want = meaning(theirs[name], options)
        want = {key: each for key, each in want.items() if key not in OF_ROUTER | ALWAYS}
        assert passed(config, name, options) == want
    assert config.models["a"].aliases == ("first",)
    assert (config.models["a"].preload, config.models["b"].preload) == (False, True)
    assert config.models["b"].stop_timeout == 10


def test_the_cases_that_people_reported(options: dict[str, Option]) -> None:
    text = """
[*]
spec-default = true
no-mmproj = true
mmap = off
[m1]
model = /m/x.gguf
cache-idle-slots = off
skip-chat-parsing = 1
alias = m1
"""
    draft = read_ini(text, "x.ini", options)
    config = imported(draft, options)
    written = yaml.safe_load(render(draft, "x"))
    assert written["defaults"]["args"] == {
        "load-mode": "none",
        "no-mmproj": True,
        "spec-default": True,
    }
    assert written["models"]["m1"]["args"] == {
        "cache-idle-slots": False,
        "skip-chat-parsing": True,
    }
    assert config.models["m1"].aliases == ()


def test_sections_without_a_file_are_settings_as_in_the_router(
    llama_server: str, options: dict[str, Option], tmp_path: Path
) -> None:
    """Beside --models-dir: for a file, for a folder with a projector, and where no section is."""
    models = tmp_path / "models"
    for name in ("GLM-4.5-Air/x.gguf", "GLM-4.5-Air/mmproj-F16.gguf", "Qwen3-8B.gguf", "b.gguf"):
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        (models / name).write_bytes(b"GGUF")
    ini = tmp_path / "i.ini"
    ini.write_text(
        "version = 1\n[*]\nc = 1024\n[GLM-4.5-Air]\ntemp = 0.6\nno-mmproj = 1\n"
        f"[Qwen3-8B]\nc = 512\n[own]\nmodel = {models}/b.gguf\njinja = off\n"
    )
    with router(llama_server, ini, "--models-dir", str(models)) as theirs:
        pass
    draft = read_ini(ini.read_text(), "i.ini", options, model_dirs=[str(models)])
    fit_to_engines(draft, lambda _: table_of(options))
    source = SourceText("i.yaml", str(tmp_path), render(draft, "a test"))
    config = load_files([source], name="i.yaml", env={}, home="/", scan=scan_folder)
    # A file that a preset names is not a model of its own here: it would be listed twice.
    assert theirs.keys() - config.models.keys() == {"b"}
    for name, preset in config.models.items():
        want = meaning(theirs[name], options)
        assert preset.model == want.pop("model")
        kept = {key: each for key, each in want.items() if key not in OF_ROUTER | ALWAYS}
        assert passed(config, name, options) == kept
