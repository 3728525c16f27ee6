"""No file needed: every GGUF of a folder is served, and those that come later, too."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.real.harness import Lswap

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio


def put(lab: Lab, name: str, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(lab.write_model(name, lab.sentence(name)), place)


async def test_a_folder_is_all_it_takes(lab: Lab) -> None:
    models = lab.folder / "models"
    put(lab, "alpha", models / "alpha.gguf")
    put(lab, "beta", models / "beta" / "whatever-Q8_0.gguf")
    env = lab.environment({"LSWAP_LLAMA_SERVER": lab.engine})
    args = ("--models-dir", str(models), "--listen", "127.0.0.1:0")
    server = Lswap(lab.folder / "none.yaml", env, args)
    async with server.running():
        assert await server.chat("alpha") == lab.sentence("alpha")
        assert await server.chat("beta") == lab.sentence("beta")
        before = (await server.model("alpha")).loads
        put(lab, "gamma", models / "gamma.gguf")
        await server.until(lambda now: "gamma" in {one.id for one in now.models})
        assert await server.chat("gamma") == lab.sentence("gamma")
        (models / "beta" / "whatever-Q8_0.gguf").unlink()
        done = await lab.cli("reload", "--url", server.url)
        assert done.out.splitlines() == ["removed: beta"]
        assert (await server.model("alpha")).loads == before
        await server.stop()


async def test_a_folder_of_files_is_watched_whole(lab: Lab) -> None:
    folder = lab.folder / "conf.d"
    folder.mkdir()
    config = lab.config({"alpha": lab.preset("alpha", size="50MiB")})
    (folder / "10-base.yaml").write_text(yaml.safe_dump(config))
    server = Lswap(folder, lab.environment(), ("--config-dir", str(folder)))
    async with server.running():
        assert await server.chat("alpha") == lab.sentence("alpha")
        beta = {"models": {"beta": lab.preset("beta", size="50MiB")}}
        (folder / "20-beta.yaml").write_text(yaml.safe_dump(beta))
        await server.until(lambda now: {one.id for one in now.models} == {"alpha", "beta"})
        assert await server.chat("beta") == lab.sentence("beta")
        (folder / "30-again.yaml").write_text("models:\n  beta: {model: x}\n")
        said = await server.says("the file is not taken over")
        assert "30-again.yaml:2: models.beta: 'beta' is already in" in said
        await server.stop()
