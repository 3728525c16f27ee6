"""A real llama-fit-params and a real llama-server: the estimate, the process, what is learned."""

from __future__ import annotations

import re
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from llamaswap_py.devices.process_memory import read_host_use, read_process_use
from llamaswap_py.estimate import Estimate, Estimator, Source, Wanted
from llamaswap_py.estimate.files import cpu_flags
from llamaswap_py.estimate.formula import repackable_kinds
from llamaswap_py.estimate.types import EstimateError
from llamaswap_py.llamacpp.probe import probe_engine
from llamaswap_py.storage import LearnedFacts, RecordFolder
from llamaswap_py.units import HOST, MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import TinyModel

pytestmark = pytest.mark.anyio

ARGS = ("--fit", "off", "--cache-ram", "0", "-c", "2048", "-np", "2", "--threads", "1")


@contextmanager
def serve(binary: str, wanted: Wanted) -> Iterator[tuple[int, str]]:
    """Run a server; yields its pid and URL."""
    with subprocess.Popen(
        [binary, *wanted.args, "--host", "127.0.0.1", "--port", "0", "--offline"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if listening := re.search(r"listening on (http://[\w.]+:\d+)", line):
                    yield process.pid, listening[1]
                    return
            pytest.fail("llama-server ended: " + "".join(said))
        finally:
            process.kill()


def wanted_for(llama_server: str, model: Path, *more: str) -> Wanted:
    engine = probe_engine(Path(llama_server), "test")
    if engine.fit_params is None:
        pytest.skip("missing: llama-fit-params")
    return Wanted(
        preset="alpha",
        model=str(model),
        args=("--model", str(model), *ARGS, *more),
        files=(str(model),),
        engine=engine.label,
        fit_params=engine.fit_params,
    )


@pytest.fixture
def estimator(tmp_path: Path) -> Estimator:
    return Estimator(
        LearnedFacts(tmp_path / "learned"), RecordFolder(tmp_path / "cache", Estimate, version=1)
    )


async def test_estimates_meet_reality_and_learn_from_it(
    llama_server: str, tiny_model: TinyModel, estimator: Estimator
) -> None:
    """A padded model of 160 MiB; at least the worst error that the targets allow, and 4 MiB."""
    model = tiny_model("padded-160", "heavy is the crown", pad_bytes=160 * MIB)
    wanted = wanted_for(llama_server, model)
    dry, formula = await estimator.estimate(wanted), await estimator.analytic(wanted)
    assert dry.source is Source.DRY_RUN
    with serve(llama_server, wanted) as (pid, url):
        ready = read_host_use(pid, wanted.files)
        async with httpx.AsyncClient(base_url=url, timeout=90, trust_env=False) as client:
            for slot in range(2):
                body = {"prompt": [100 + at % 100 for at in range(1000)], "id_slot": slot}
                answer = await client.post("/completion", json=body)
                assert answer.status_code == 200
        full = read_host_use(pid, wanted.files)
    assert ready is not None
    assert full is not None
    allowed = 0.08 * full.total + 4 * MIB
    assert abs(dry.footprint[HOST] - full.total) < allowed
    assert abs(formula.footprint[HOST] - full.total) < allowed
    assert full.own_files > 159 * MIB
    await estimator.learn_ready(wanted, dry, {HOST: ready.total}, 0.1)
    await estimator.learn_peak(wanted, {HOST: full.total})
    second = await estimator.estimate(wanted)
    assert second.source is Source.MEASURED
    assert full.total <= second.footprint[HOST] < full.total + allowed


@pytest.mark.skipif(
    "Q4_0" not in repackable_kinds(cpu_flags()), reason="this CPU rearranges no weights"
)
async def test_a_rearranged_model_is_charged_once(
    llama_server: str, tiny_model: TinyModel, estimator: Estimator
) -> None:
    """Its file stays mapped beside the copy: measured and estimated figures leave that out."""
    model = tiny_model(
        "charged-once", "heavy is the crown", layers=8, pad_bytes=640 * MIB, quantized=True
    )
    size = model.stat().st_size
    wanted = wanted_for(llama_server, model)
    dry, formula = await estimator.estimate(wanted), await estimator.analytic(wanted)
    in_place = await estimator.in_place(wanted)
    assert in_place is not None
    with serve(llama_server, wanted) as (pid, _):
        use = read_host_use(pid, wanted.files)
        measured = read_process_use([pid], wanted.files, [], in_place).devices[HOST]
    assert use is not None
    assert use.own_files > 0.8 * size  # almost all of it is resident, and needed no more
    assert in_place < 0.1 * size
    allowed = 0.08 * size + 4 * MIB
    for estimate in (dry, formula):
        ready = estimate.footprint[HOST] - estimate.growth[HOST]
        assert abs(ready - measured) < allowed, estimate
        assert any("page cache, not counted" in note for note in estimate.notes)
    said = await estimator.learn_ready(wanted, dry, {HOST: measured}, 0.1)
    assert said == ""


async def test_server_options_and_a_draft_do_not_disturb_the_dry_run(
    llama_server: str, tiny_model: TinyModel, estimator: Estimator
) -> None:
    model, draft = tiny_model("target", "one two three"), tiny_model("drafted", "one", layers=8)
    wanted = wanted_for(
        llama_server,
        model,
        *("--alias", "x", "--jinja", "--metrics", "--slots", "--threads-http", "20"),
        *("-ctk", "q8_0", "-ctv", "q8_0"),
    )
    alone = await estimator.dry_run(wanted)
    more = ("--model-draft", str(draft), "--cache-type-k-draft", "f16")
    both = await estimator.dry_run(
        Wanted(
            preset="both",
            model=wanted.model,
            args=(*wanted.args, *more),
            files=(*wanted.files, str(draft)),
            engine=wanted.engine,
            fit_params=wanted.fit_params,
        )
    )
    # Eight layers of one head: 2048 tokens x 32 floats x K and V x 2 bytes x 8 layers.
    added = both.footprint[HOST] - alone.footprint[HOST]
    assert added > 2 * MIB
    assert added < 24 * MIB


async def test_a_file_that_is_no_model(
    llama_server: str, tmp_path: Path, estimator: Estimator
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(200))
    wanted = wanted_for(llama_server, broken)
    with pytest.raises(EstimateError, match="llama-fit-params failed with status"):
        await estimator.dry_run(wanted)
    with pytest.raises(EstimateError, match="GGUF version 0"):
        await estimator.estimate(wanted)
