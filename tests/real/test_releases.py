"""Upgrade from an earlier release, go back, upgrade again: each serves on what the other left."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.real.harness import Lswap, command_line, poll
from tests.releases import RELEASES, ROOT, unpack_release

if TYPE_CHECKING:
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio

KEPT: Final = (
    "learned/[0-9a-f]*.json",
    "traffic/load-rate-cpu.json",
    "traffic/traffic-*.json",
    "traffic/strangers-[0-9a-f]*.json",
    "estimates/[0-9a-f]*.json",
    "probes/*.json",
    "captures/*.jsonl",
    "[0-9a-f]*/lswap.pid",
)
"""What lswap leaves for its next start, below `lswap` in the folders of state and cache, and of
what runs."""


@pytest.fixture(scope="module", params=list(RELEASES))
def released(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of a release."""
    return unpack_release(request.param, tmp_path_factory.mktemp("released"))


class Machine:
    """A person's machine: one file, one set of state folders, and the release that is installed."""

    def __init__(self, lab: Lab, released: Path, **keys: Any) -> None:
        # Without `memory`, so that what a model takes is measured, and learned for the next start.
        models = {name: {"model": str(self.model(lab, name))} for name in ("alpha", "beta")}
        self.lab = lab
        self.config = lab.write_config(models, **keys)
        self.paths = {"old": str(released), "new": str(ROOT)}

    def model(self, lab: Lab, name: str) -> Path:
        """Write a model of 80 MiB, which is enough to learn from how long its load took."""
        return lab.write_model(f"{name}-heavy", lab.sentence(name), layers=4, pad_bytes=80 << 20)

    def server(self, release: str) -> Lswap:
        return self.lab.server(self.config, PYTHONPATH=self.paths[release])

    def cli(self, release: str, *words: str) -> str:
        environment = self.lab.environment({"PYTHONPATH": self.paths[release]})
        done = subprocess.run(
            command_line(*words),
            cwd=self.config.parent,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def runs(self, release: str) -> bool:
        """Return whether it is really that release which is imported where a server starts."""
        command = [sys.executable, "-c", "import llamaswap_py; print(llamaswap_py.__file__)"]
        env, folder = self.server(release).env, self.config.parent
        done = subprocess.run(command, cwd=folder, env=env, stdout=subprocess.PIPE, check=True)
        return Path(done.stdout.decode()).is_relative_to(self.paths[release])

    async def use(self, lswap: Lswap) -> None:
        """Let the models take turns, until each is measured."""
        for name in ("alpha", "beta", "alpha"):
            assert await lswap.chat(name) == self.lab.sentence(name)
        await poll(partial(self.measured, lswap))

    def kept(self) -> set[str]:
        """Return which of `KEPT` is there, and each file that is none of them."""
        base = self.lab.folder / "lswap"
        files = [path for path in base.rglob("*") if path.is_file()]
        return {
            next((one for one in KEPT if path.match(f"lswap/{one}")), str(path.relative_to(base)))
            for path in files
        }

    async def sources(self, lswap: Lswap) -> set[str]:
        """Return where the models' figures come from, as the release that runs says it."""
        state = (await lswap.client.get("/lswap/v1/state")).json()
        return {model["footprint_source"] for model in state["models"]}

    async def measured(self, lswap: Lswap) -> bool:
        """Return whether each model was measured, which is what a release learns."""
        return await self.sources(lswap) == {"measured"}


def complaints(lswap: Lswap) -> list[str]:
    words = (" WARNING ", " ERROR ", "Traceback", "damaged", ".broken")
    lines = [line for line in lswap.log if "capture is on" not in line]
    return [line for line in lines if any(word in line for word in words)]


async def test_upgrade_downgrade_upgrade(lab: Lab, released: Path) -> None:
    machine = Machine(lab, released, capture="on", defaults={"keep_kv": True})
    for turn, release in enumerate(("old", "new", "old", "new")):
        lswap = machine.server(release)
        async with lswap.running():
            assert machine.runs(release)
            if turn == 1:  # measured figures have another meaning since, so they are taken anew
                assert await machine.sources(lswap) == {"dry-run"}
            if turn > 1:
                assert await machine.sources(lswap) == {"measured"}, "what was learned is kept"
            await machine.use(lswap)
            await lswap.stop()
        assert not complaints(lswap), complaints(lswap)
    assert not list(lab.folder.rglob("*.broken"))
    assert machine.kept() == set(KEPT), "a new file gets a version, and a row in test_state_formats"


async def test_files_of_a_later_release_are_set_aside(lab: Lab) -> None:
    machine = Machine(lab, ROOT)
    lswap = machine.server("new")
    async with lswap.running():
        await machine.use(lswap)
        await lswap.stop()
    later = {path: raise_version(path) for path in sorted(lab.folder.rglob("lswap/*/*.json"))}
    assert {path.parent.name for path in later} == {"learned", "traffic", "estimates", "probes"}
    lswap = machine.server("new")
    async with lswap.running():
        assert await machine.sources(lswap) == {"dry-run"}
        await machine.use(lswap)
        await lswap.stop()
    assert not complaints(lswap), complaints(lswap)
    for path, content in later.items():
        if path.parent.name != "probes":  # an engine is asked again
            assert path.with_name(f"{path.name}.v{version_of(content)}").read_bytes() == content
        assert version_of(path.read_bytes()) == version_of(content) - 1


def version_of(content: bytes) -> int:
    record = json.loads(content)
    version: int = record.get("schema", record.get("version"))
    return version


def raise_version(path: Path) -> bytes:
    record = json.loads(path.read_bytes())
    member = "schema" if "schema" in record else "version"
    path.write_text(json.dumps(record | {member: record[member] + 1, "added": []}))
    return path.read_bytes()


@pytest.mark.parametrize(("first", "second"), [("old", "new"), ("new", "old")])
async def test_a_killed_one_is_followed_by_the_other(
    lab: Lab, released: Path, first: str, second: str
) -> None:
    machine = Machine(lab, released)
    killed = machine.server(first)
    async with killed.running():
        assert await killed.chat("alpha") == lab.sentence("alpha")
        killed.signal(signal.SIGKILL)
        await killed.exited()
    follower = machine.server(second)
    async with follower.running():
        assert await follower.chat("beta") == lab.sentence("beta")
        await follower.stop()
    assert not complaints(follower), complaints(follower)


@pytest.mark.parametrize(("serving", "asking"), [("old", "new"), ("new", "old")])
async def test_commands_talk_to_a_server_of_the_other_release(
    lab: Lab, released: Path, serving: str, asking: str
) -> None:
    """A package is upgraded while its service still runs."""
    machine = Machine(lab, released)
    lswap = machine.server(serving)
    async with lswap.running():
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        url = ("--url", lswap.url)
        assert "alpha" in machine.cli(asking, "ps", *url)
        assert "beta" in machine.cli(asking, "models", *url)
        assert "alpha" in machine.cli(asking, "why", "alpha", *url)
        machine.cli(asking, "load", "beta", *url)
        machine.cli(asking, "unload", "beta", *url)
        await lswap.stop()


@pytest.mark.parametrize(("writer", "reader"), [("old", "new"), ("new", "old")])
async def test_keys_of_one_release_open_the_other(
    lab: Lab, released: Path, writer: str, reader: str
) -> None:
    machine = Machine(lab, released, keys={"file": "keys.yaml"})
    said = machine.cli(writer, "key", "new", "ann", "--file", str(lab.folder / "keys.yaml"))
    secret = next(word for word in said.split() if word.startswith("lsk-"))
    lswap = machine.server(reader)
    async with lswap.running():
        lswap.client.headers["authorization"] = f"Bearer {secret}"
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        await lswap.stop()
