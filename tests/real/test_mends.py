"""What makes a model fit is written into the file by the command that the refusal names."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any

import pytest

from tests.real.answers import error_of
from tests.real.harness import Lswap

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio
SAID = "I fit if you let me."
COMMAND = re.compile(r"`lswap (estimate [^`]+ --write)`")
HEAD = """\
# of the whole team
engine: {engine}
memory: {{devices: {{host: {host}}}, margin: 128MiB, cache_ram: 0}}
defaults: {{args: {{threads: 1, parallel: 1}}}}

models:
"""


def written(lab: Lab, models: str, host: str = "1GiB") -> Path:
    path = lab.folder / "team file.yaml"
    path.write_text(HEAD.format(engine=lab.engine, host=host) + models)
    return path


def long_context(lab: Lab, name: str = "long-context", **knobs: Any) -> Path:
    """Return a small model whose context takes 32 KiB a token."""
    return lab.write_model(name, SAID, layers=256, width=64, n_ctx_train=1048576, **knobs)


async def test_the_command_that_a_refusal_names_makes_the_model_run(lab: Lab) -> None:
    """As it is printed; the running lswap takes the file over, and the model answers."""
    models = f"  big:   # ours\n    model: {long_context(lab)}\n    args:\n"
    models += "      ctx-size: 1024k  # all of it\n\n  # not ready yet\n  # other: {}\n"
    path = written(lab, models)
    server = Lswap(path, lab.environment(), args=(str(path),))
    async with server.running():
        refused = error_of(await server.post_chat("big"), 400)["message"]
        command = COMMAND.search(refused)
        assert command, refused
        done = await lab.cli(*shlex.split(command[1]), "--yes")
        assert done.code == 0, done.out
        await server.says("the file is taken over: changed big")
        assert await server.chat("big") == SAID
        await server.stop()
    text = path.read_text()
    context = re.search(r"ctx-size: (\d+)  # all of it", text)
    assert context
    before = HEAD.format(engine=lab.engine, host="1GiB") + models
    assert text.replace(context[1], "1024k") == before, "all else stays as it was written"
    assert "-      ctx-size: 1024k  # all of it\n" in done.out
    assert f"+      ctx-size: {context[1]}  # all of it\n" in done.out


async def test_check_and_estimate_name_the_same_command(lab: Lab) -> None:
    path = written(lab, f"  big: {{model: {long_context(lab)}, args: {{ctx-size: 1024k}}}}\n")
    said = {COMMAND.search((await lab.cli(one, str(path))).out) for one in ("check", "estimate")}
    assert len({one and one[1] for one in said}) == 1
    assert None not in said
    assert (await lab.cli("check", str(path))).code == 1
    assert (await lab.cli("estimate", str(path), "big", "--write", "--yes")).code == 0
    done = await lab.cli("check", str(path))
    assert done.code == 0, done.out
    again = await lab.cli("estimate", str(path), "big", "--write", "--yes")
    assert again.out == "big fits as it is: nothing to write\n"


async def test_a_smaller_file_of_the_same_model_is_written(lab: Lab) -> None:
    """Where no setting helps; a file of another model beside it is not taken."""
    big = long_context(lab, "tiny-F16", pad_bytes=900 << 20)
    long_context(lab, "tiny-Q4_0", pad_bytes=900 << 20, quantized=True)
    long_context(lab, "tiny-Q5_K_M", pad_bytes=500 << 20)  # it only has such a name
    long_context(lab, "other-Q8_0", pad_bytes=900 << 20, quantized=True)
    path = written(lab, f"  big:\n    model: {big}\n")
    done = await lab.cli("check", str(path))
    command = COMMAND.search(done.out)
    assert command, done.out
    assert "take tiny-Q4_0.gguf" in done.out
    done = await lab.cli(*shlex.split(command[1]), "--yes")
    assert done.code == 0, done.out
    smaller = big.with_name("tiny-Q4_0.gguf")
    assert path.read_text().endswith(f"  big:\n    model: {smaller}\n")
    server = Lswap(path, lab.environment(), args=(str(path),))
    async with server.running():
        assert await server.chat("big") == SAID
        await server.stop()


async def test_nothing_is_written_unasked_or_unproven(lab: Lab) -> None:
    model = long_context(lab)
    path = written(lab, f"  big: {{model: {model}, args: {{ctx-size: 1024k}}}}\n")
    before = path.read_text()
    done = await lab.cli("estimate", str(path), "big", "--write")
    assert done.code == 1
    assert path.read_text() == before
    assert "+  big: {" in done.out
    assert done.out.endswith("nothing was written: --yes writes it\n")
    shared = f"  big: {{model: {model}, args: &all {{ctx-size: 1024k}}}}\n"
    shared += f"  same: {{model: {model}, args: *all}}\n"
    path = written(lab, shared)
    before = path.read_text()
    done = await lab.cli("estimate", str(path), "big", "--write", "--yes")
    assert done.code == 1, "it would change the other model, too"
    assert "nothing was written" in done.out
    assert path.read_text() == before


async def test_a_model_beside_pinned_ones_gets_what_they_leave(lab: Lab) -> None:
    model = long_context(lab)
    models = f"  first: {{model: {model}, args: {{ctx-size: 16k}}, pin: true}}\n"
    models += f"  second: {{model: {model}, args: {{ctx-size: 16k}}}}\n"
    path = written(lab, models)
    done = await lab.cli("check", str(path))
    assert done.code == 1
    assert "it can never be loaded while first stays" in done.out
    command = COMMAND.search(done.out)
    assert command, done.out
    assert (await lab.cli(*shlex.split(command[1]), "--yes")).code == 0
    assert (await lab.cli("check", str(path))).code == 0
