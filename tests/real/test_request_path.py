"""Nothing is found out while a request waits: no probe, no dry run, no look into a model file."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.real.answers import chat_body

if TYPE_CHECKING:
    from pathlib import Path

    from llamaswap_py.snapshot import Snapshot
    from tests.real.harness import Lswap
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio

_AUDIT = """
import os, sys
_log = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
_busy = False

def _note(event, args):
    global _busy
    if _busy or event not in ("subprocess.Popen", "open", "os.exec", "os.posix_spawn"):
        return
    _busy = True
    try:
        words = args[1] if event == "subprocess.Popen" else args[:1]
        os.write(_log, (event + " " + " ".join(map(str, words)) + "\\n").encode())
    finally:
        _busy = False

sys.addaudithook(_note)
"""


class Audit:
    """What a server opens and starts, noted by its own interpreter."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._log = lab.folder / "audit.log"
        (lab.folder / "sitecustomize.py").write_text(_AUDIT.format(log=str(self._log)))

    def server(self, config: Path) -> Lswap:
        path = self._lab.environment().get("PYTHONPATH", "")
        return self._lab.server(config, PYTHONPATH=f"{self._lab.folder}:{path}")

    def lines(self) -> list[str]:
        return self._log.read_text().splitlines()


def _is_measured(now: Snapshot, *, name: str) -> bool:
    """Tell whether what its first life took is known: that is found out beside its requests."""
    return any(one.id == name and one.footprint_source == "measured" for one in now.models)


async def test_a_first_request_finds_everything_known(lab: Lab) -> None:
    """All caches are empty at the start, and neither preset says what it takes."""
    models = {name: {"model": lab.preset(name)["model"]} for name in ("alpha", "beta")}
    audit = Audit(lab)
    server = audit.server(lab.write_config(models, policy={"max_loaded": 1}))
    async with server.running():
        await server.until(lambda now: all(one.footprint is not None for one in now.models))
        assert any("--help" in line for line in audit.lines()), "the hook sees everything"
        for model in ("alpha", "beta", "alpha"):
            before = len(audit.lines())
            answer = await server.client.post("/v1/chat/completions", json=chat_body(model))
            assert answer.status_code == 200
            since = audit.lines()[before:]
            spawns = [line for line in since if not line.startswith("open ")]
            assert len(spawns) == 1, spawns
            assert spawns[0].startswith("subprocess.Popen ")
            assert f" --alias {model} " in spawns[0]
            until_spawn = since[: since.index(spawns[0])]
            assert not [line for line in until_spawn if ".gguf" in line]
            await server.until(partial(_is_measured, name=model))
        await server.stop()
