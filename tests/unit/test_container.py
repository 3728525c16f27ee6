"""The Dockerfile and what goes with it, as far as they can be judged without Docker."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from llamaswap_py.api import routes
from llamaswap_py.cli.app import app
from llamaswap_py.config.parse import load_config
from llamaswap_py.config.sections import Config
from llamaswap_py.units import parse_duration

ROOT = Path(__file__).resolve().parents[2]


def instructions(name: str) -> list[tuple[str, str]]:
    """Return (instruction, arguments) in their order; continued lines are joined."""
    text = (ROOT / name).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = []
    for line in filter(str.strip, joined.splitlines()):
        word, _, rest = line.partition(" ")
        found.append((word, rest.strip()))
    return found


STEPS = instructions("Dockerfile")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]["lswap"]


def all_of(word: str) -> list[str]:
    return [rest for name, rest in STEPS if name == word]


@pytest.fixture(scope="module")
def config() -> Config:
    path = ROOT / "configs" / "docker.yaml"
    text = path.read_text(encoding="utf-8")
    return load_config(text, path=path, base_dir="/config", env={}, home="/data")


def test_only_known_instructions() -> None:
    known = {"ARG", "FROM", "RUN", "COPY", "WORKDIR", "ENV", "USER", "VOLUME", "EXPOSE"}
    known |= {"STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in STEPS} <= known
    assert STEPS[0] == ("ARG", "BACKEND=cpu")


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_every_stage_stands_on_one_that_is_there(backend: str) -> None:
    arguments = dict(each.partition("=")[::2] for each in all_of("ARG")) | {"BACKEND": backend}
    stages: set[str] = set()
    for line in all_of("FROM"):
        words = re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], line).split()
        image = words[0]
        assert image in stages or ":" in image, f"{image} is not a stage and names no tag"
        assert "latest" not in image
        stages.update(words[2:])
    for line in all_of("COPY"):
        if stage := re.match(r"--from=(\S+)", line):
            assert stage[1] in stages


def test_what_is_copied_is_there_and_not_ignored() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    sources = {
        word
        for line in all_of("COPY")
        if not line.startswith("--from")
        for word in shlex.split(line)[:-1]
    }
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] in kept, source
    assert kept <= {source.split("/")[0] for source in sources}, "nothing is sent for nothing"


def test_the_wheel_needs_nothing_else() -> None:
    """pyproject.toml names files of the tree: they have to be copied, too."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    copied = " ".join(all_of("COPY"))
    named = set(re.findall(r'(?:readme = |license-files = \[)"([^"]+)"', text))
    assert named == {"README.md", "LICENSE"}
    for name in named:
        assert name in copied
    assert '"scripts/build_llama_cpp.sh"' in text
    assert "[tool.hatch.build.hooks.custom]" in text
    assert "hatch_build.py" in copied
    assert '"configs/demo.yaml"' in text
    assert "configs/demo.yaml configs/demo.yaml" in copied
    assert "COPY scripts scripts" in (ROOT / "Dockerfile").read_text(encoding="utf-8")


@pytest.mark.parametrize("script", all_of("RUN"), ids=lambda script: script[:30])
def test_shell_lines_are_valid(script: str) -> None:
    done = subprocess.run(["sh", "-n", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_engine_is_built_with_options_that_exist(tmp_path: Path) -> None:
    (line,) = [each for each in all_of("RUN") if "build_llama_cpp.sh" in each]
    options = shlex.split(line[line.index("--backend") : line.index("&&")])
    words = [{"$BACKEND": "cpu", "/opt/llama": str(tmp_path)}.get(word, word) for word in options]
    words = [word for word in words if "LLAMA_CPP_REF" not in word]
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "build_llama_cpp.sh", "--dry-run", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout
    assert "--allow-shlib-undefined" in done.stdout


def test_it_does_not_run_as_root_and_keeps_its_state() -> None:
    assert all_of("USER") == ["lswap"]
    assert STEPS.index(("USER", "lswap")) < [name for name, _ in STEPS].index("ENTRYPOINT")
    assert all_of("VOLUME") == ["/data"]
    (env,) = all_of("ENV")
    values = dict(word.partition("=")[::2] for word in shlex.split(env))
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME"):
        assert values[name].startswith("/data/")


def test_health_is_asked_of_a_path_that_needs_no_key(config: Config) -> None:
    (line,) = all_of("HEALTHCHECK")
    command = json.loads(line[line.index("CMD ") + 4 :])
    assert command[:2] == ["python3", "-c"]
    compile(command[2], "healthcheck", "exec")
    method, path = re.search(r"request\('(\w+)', '([^']+)'\)", command[2]).groups()  # type: ignore[union-attr]
    methods, _ = routes.look_up(path)
    assert methods is not None
    route = routes.pick(methods, method)
    assert route is not None
    assert route.public
    assert f"'127.0.0.1', {config.listen[0].port}" in command[2]


def test_what_it_runs_exists() -> None:
    entry, command = (json.loads(all_of(word)[0]) for word in ("ENTRYPOINT", "CMD"))
    assert entry == ["lswap"]
    assert command[0] in {each.callback.__name__ for each in app.registered_commands}  # type: ignore[union-attr]


def test_compose_fits_the_image_and_the_configuration(config: Config) -> None:
    (port,) = COMPOSE["ports"]
    published, container = port.rsplit(":", 1)
    assert published.startswith("127.0.0.1:")
    assert [container] == all_of("EXPOSE") == [str(config.listen[0].port)]
    assert config.allow_unauthenticated, "only this machine can connect"
    targets = {volume.split(":", 1)[1].removesuffix(":ro") for volume in COMPOSE["volumes"][:1]}
    assert targets == {json.loads(all_of("CMD")[0])[1]}
    assert "data:/data" in COMPOSE["volumes"]
    stops = max(preset.stop_timeout for preset in config.models.values())
    grace = parse_duration(COMPOSE["stop_grace_period"])
    assert grace >= config.policy.shutdown_timeout + stops
    assert set(COMPOSE["build"]["args"]) <= {each.partition("=")[0] for each in all_of("ARG")}
    for preset in config.models.values():
        assert preset.hf or preset.model.startswith("/models/")
