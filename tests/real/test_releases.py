"""Upgrade from the last release, go back, upgrade again: each serves on what the other left."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.real.harness import Lswap, command_line, poll

if TYPE_CHECKING:
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio

ROOT: Final = Path(__file__).resolve().parents[2]
LAST_RELEASE: Final = "f3f26f75ebe9d3744c6b12c1d66c87814e8d28ff"
"""The commit of 0.1.0; each release puts its own here."""


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of the last release, taken from the repository's history."""
    command = ["git", "-C", str(ROOT), "archive", LAST_RELEASE, "llamaswap_py"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("missing: the history of the repository (a full git clone)")
    folder = tmp_path_factory.mktemp("released")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


class Machine:
    """A person's machine: one file, one set of state folders, and the release that is installed."""

    def __init__(self, lab: Lab, released: Path, **keys: Any) -> None:
        # Without `memory`, so that what a model takes is measured, and learned for the next start.
        models = {name: {"model": lab.preset(name)["model"]} for name in ("alpha", "beta")}
        self.lab = lab
        self.config = lab.write_config(models, **keys)
        self.paths = {"old": str(released), "new": str(ROOT)}

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

    async def sources(self, lswap: Lswap) -> set[str]:
        """Return where the models' figures come from, as the release that runs says it."""
        state = (await lswap.client.get("/lswap/v1/state")).json()
        return {model["footprint_source"] for model in state["models"]}

    async def measured(self, lswap: Lswap) -> bool:
        """Return whether each model was measured, which is what a release learns."""
        return await self.sources(lswap) == {"measured"}


def complaints(lswap: Lswap) -> list[str]:
    words = (" WARNING ", " ERROR ", "Traceback", "damaged", ".broken")
    return [line for line in lswap.log if any(word in line for word in words)]


async def test_upgrade_downgrade_upgrade(lab: Lab, released: Path) -> None:
    machine = Machine(lab, released)
    for turn, release in enumerate(("old", "new", "old", "new")):
        lswap = machine.server(release)
        async with lswap.running():
            assert machine.runs(release)
            if turn == 1:  # measured figures have another meaning since, so they are taken anew
                assert await machine.sources(lswap) == {"dry-run"}
            if turn > 1:
                assert await machine.sources(lswap) == {"measured"}, "what was learned is kept"
            for name in ("alpha", "beta", "alpha"):
                assert await lswap.chat(name) == lab.sentence(name)
            await poll(partial(machine.measured, lswap))
            await lswap.stop()
        assert not complaints(lswap), complaints(lswap)
    assert not list(lab.folder.rglob("*.broken"))


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
