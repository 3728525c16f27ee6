"""llama-fit-params: what it is asked, what its answers mean, and what happens when it fails."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from llamaswap_py.estimate.dry_run import (
    as_does_not_run,
    dry_parts,
    parse_answer,
    window_correction,
)
from llamaswap_py.estimate.formula import context_of, is_recurrent, lay_out, page_cache_notes
from llamaswap_py.estimate.types import LOCKED, MOVED, WEIGHTS, EstimateError, Part, total
from llamaswap_py.llamacpp.fit_params import (
    DryRuns,
    FitParamsAbortError,
    FitParamsError,
    Refusal,
    draft_args,
    fit_args,
)
from llamaswap_py.llamacpp.memory_settings import Settings, read_settings
from llamaswap_py.units import HOST, MIB, format_size
from tests.estimate.models import model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Script = Callable[[str], Path]

KNOWN = {"-m": 1, "-c": 1, "--ctx-size": 1, "-ctk": 1, "--cache-type-k": 1, "--cache-type-v": 1}
KNOWN |= {
    "--log-jsonl": 0,
    "--log-verbosity": 1,
    "--no-mmap": 0,
    "-md": 1,
    "--model-draft": 1,
    "--n-gpu-layers": 1,
    "-ngl": 1,
    "-np": 1,
}
HALF = MIB // 2


def row(kind: str, name: str, weights: int, context: int, compute: int) -> dict[str, Any]:
    return {"kind": kind, "name": name, "model": weights, "context": context, "compute": compute}


def answer(*rows: dict[str, Any], unit: str = "MiB") -> str:
    line = {"type": "fit_memory_breakdown", "data": {"unit": unit, "rows": list(rows)}}
    return "some log line\n0.01 I " + json.dumps(line, separators=(",", ":")) + "\nHost 1 2 3\n"


HOST_ROW = row("host", "Host", 3, 2, 5)


# --- what it is asked -------------------------------------------------------------------------


def asked(words: str, header: Any = None) -> str:
    args = words.split()
    per_slot = is_recurrent(header or model())
    found = fit_args("m.gguf", args, read_settings(args), KNOWN, per_slot=per_slot)
    rest = " ".join(found).removeprefix("--model m.gguf --fit off --fit-print on --log-jsonl ")
    return rest.removeprefix("--log-verbosity 1 ")


def test_options_that_only_the_server_knows_are_left_out() -> None:
    words = "--alias x --metrics -ctk q8_0 --jinja --threads-http 20 --mmproj p -c 4096 -np 1"
    assert asked(words) == "-ctk q8_0 --parallel 1 --ctx-size 4096"


def test_an_older_program_is_not_asked_for_a_json_log() -> None:
    """b9093, b9840 and b10456 have no --log-jsonl: with it they print an error and no figures."""
    args = ("-c", "4096")
    older = {name: count for name, count in KNOWN.items() if name != "--log-jsonl"}
    found = fit_args("m.gguf", args, read_settings(args), older, per_slot=False)
    assert found[:8] == (
        *("--model", "m.gguf", "--fit", "off", "--fit-print", "on"),
        *("--log-verbosity", "1"),
    )
    assert "--log-jsonl" not in found


def test_slots_that_share_a_cache_are_asked_for_as_one() -> None:
    assert asked("-c 4096") == "--parallel 1 --ctx-size 4096"
    assert asked("-c 4096 -np 4") == "--parallel 4 --ctx-size 4096"
    assert asked("-c 4096 -np 4 -kvu") == "--parallel 1 --ctx-size 4096"
    assert asked("-c 1500 -np 4") == "--parallel 4 --ctx-size 2048"
    assert asked("-c 0") == "--parallel 1"


def test_recurrent_models_are_asked_for_with_all_slots() -> None:
    header = model("mamba", layers=1, ssm__inner_size=64, ssm__state_size=16)
    assert asked("-c 4096", header) == "--parallel 4 --ctx-size 4096"


def test_the_draft_model_has_its_own_command_line() -> None:
    line = "-md d.gguf -ctkd q4_0 -ngld 5 -ctk q8_0 -ngl 99 --n-cpu-moe 3 --cpu-moe -c 4096"
    args = line.split()
    words = draft_args(read_settings(args), args)
    found = fit_args("d.gguf", words, read_settings(args), KNOWN, per_slot=False)
    assert " ".join(found).endswith(
        "--cache-type-k q4_0 --cache-type-v f16 --n-gpu-layers 5 --parallel 1 --ctx-size 4096"
    )
    assert "-md" not in found
    assert "q8_0" not in found


# --- what is made of its answers -----------------------------------------------------------------


def test_rows_become_parts() -> None:
    found = parse_answer(
        answer(
            row("device", "CUDA0", 100, 20, 30),
            HOST_ROW,
            row("buffer_type", "CPU_REPACK", 40, 0, 0),
        )
    )
    assert found == [
        Part("CUDA0", "weights", 100 * MIB + HALF),
        Part("CUDA0", "context", 20 * MIB + HALF),
        Part("CUDA0", "compute", 30 * MIB + HALF),
        Part(HOST, "weights", 3 * MIB + HALF),
        Part(HOST, "context", 2 * MIB + HALF),
        Part(HOST, "compute", 5 * MIB + HALF, grows=True),
        Part(HOST, MOVED, 40 * MIB + HALF),
    ]


def test_the_plain_lines_where_the_table_was_lost() -> None:
    assert total(parse_answer("log\nCUDA0 10 2 3\nHost 4 0 1 \n")) == {
        "CUDA0": 15 * MIB + 3 * HALF,
        HOST: 5 * MIB + 2 * HALF,
    }
    # They do not tell what is rearranged: the formulas do.
    header, settings = model(layers=4), read_settings(["--load-mode", "none", "-np", "1"])
    layout = lay_out([header], settings, (), ("Q4_K",))
    parts = dry_parts("Host 4 0 1 \n", [header], settings, (), ("Q4_K",))
    assert Part(HOST, MOVED, layout.repacked) in parts


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("", "printed no figures"),
        ("Host 3 2\n", "printed no figures"),
        ('{"type":"fit_memory_breakdown","data":{"unit":"MiB"}}', "another form"),
        ('{"type":"fit_memory_breakdown","data":', "another form"),
        (answer(HOST_ROW, unit="GiB"), "counts in GiB"),
        (answer(row("host", "Host", -1, 0, 0)), "-1 MiB of model"),
        (answer(), "nothing at all"),
    ],
)
def test_nonsense_is_refused(output: str, message: str) -> None:
    with pytest.raises(FitParamsError, match=message):
        parse_answer(output)


def test_a_childs_devices_get_their_own_names() -> None:
    output = answer(row("device", "CUDA0", 10, 0, 0), row("device", "CUDA1", 20, 0, 0))
    parts = dry_parts(output, (), Settings(), ("CUDA2", "CUDA0"), ())
    assert total(parts) == {"CUDA2": 10 * MIB + HALF, "CUDA0": 20 * MIB + HALF}


@pytest.mark.parametrize(
    ("name", "gpus", "expected"),
    [
        ("CUDA0", ("CUDA1",), "CUDA1"),
        ("CUDA1", ("CUDA10", "CUDA0"), "CUDA0"),
        ("CUDA1", ("CUDA1",), ""),
        ("CUDA0", (), ""),
        ("CUDA2", ("CUDA0", "CUDA1", "CUDA10"), "CUDA10"),
        ("Vulkan1", ("Vulkan0", "Vulkan1"), "Vulkan1"),
        ("Vulkan0", ("Vulkan1",), "Vulkan1"),
        *((name, ("CUDA1",), "") for name in ("CPU", "CPU_Mapped", "AMX", "CUDA_Host")),
        ("CUDA_Split", ("CUDA1",), ""),
    ],
)
def test_without_a_list_a_child_numbers_the_devices_that_it_sees(
    name: str, gpus: tuple[str, ...], expected: str
) -> None:
    assert as_does_not_run("why", Refusal("cache_k_l0", name), gpus).device == expected
    output = answer(row("device", name, 10, 0, 0))
    if expected:
        assert total(dry_parts(output, (), Settings(), gpus, ())) == {expected: 10 * MIB + HALF}
    else:
        with pytest.raises(EstimateError, match=f"counts on {name}"):
            dry_parts(output, (), Settings(), gpus, ())


@pytest.mark.parametrize("name", ["CPU_Mapped", "CPU_REPACK", "AMX", "CUDA_Host", "Host"])
def test_buffers_in_main_memory_are_the_hosts(name: str) -> None:
    for kind in ("host", "buffer_type"):
        parts = parse_answer(answer(HOST_ROW, row(kind, name, 10, 0, 0)))
        assert set(total(parts)) == {HOST}


@pytest.mark.parametrize("gpus", [(), ("CUDA0",), ("ROCm0", "ROCm1")])
def test_an_unknown_device_makes_the_dry_run_useless(gpus: tuple[str, ...]) -> None:
    output = answer(row("device", "CUDA1", 10, 0, 0))
    with pytest.raises(EstimateError, match="counts on CUDA1"):
        dry_parts(output, (), Settings(), gpus, ())


def test_spare_logits_leave_the_device_of_the_output() -> None:
    header, settings = model(), read_settings(["-c", "8192", "-np", "1"])
    rows = row("device", "CUDA0", 100, 1024, 299), row("host", "Host", 100, 0, 299)
    parts = dry_parts(answer(*rows), [header], settings, ("CUDA0",), ())
    compute = {part.device: part.size for part in parts if part.what == "compute"}
    assert compute[HOST] == 299 * MIB + HALF
    assert compute["CUDA0"] == 299 * MIB + HALF - 512 * 4 * (128256 - 3 * 14336)


def test_pages_beside_rearranged_weights_count_only_if_they_are_locked() -> None:
    header, settings = model(layers=4), read_settings(["-c", "256", "-np", "1"])
    again = lay_out([header], settings, (), ("Q4_K",)).unused_pages
    moved = row("buffer_type", "CPU_REPACK", again // MIB, 0, 0)

    def parts_of(words: str, kinds: tuple[str, ...]) -> tuple[int, int, list[str]]:
        """Return what is charged as locked, and as weights, and what is noted."""
        chosen = read_settings(words.split())
        parts = dry_parts(answer(HOST_ROW, moved), [header], chosen, (), kinds)
        sizes = {
            what: sum(one.size for one in parts if one.what == what)
            for what in (LOCKED, WEIGHTS, MOVED)
        }
        weights = sizes[WEIGHTS] + sizes[MOVED]
        layout = lay_out([header], chosen, (), kinds)
        return sizes[LOCKED], weights, page_cache_notes(parts, layout, chosen)

    told = again // MIB * MIB + HALF
    once = told + 3 * MIB + HALF

    def noted(size: int) -> list[str]:
        where = "beside the weights that were rearranged or moved"
        return [f"{format_size(size)} of its file stay mapped {where}: page cache, not counted"]

    assert parts_of("-np 1", ("Q4_K",)) == (0, once, noted(again))
    # Where the engine moved more than expected of this CPU, its figure is taken.
    assert parts_of("-np 1", ()) == (0, once, noted(told))
    assert parts_of("-np 1 --load-mode none", ("Q4_K",)) == (0, once, [])
    assert parts_of("-np 1 --load-mode mmap+mlock", ("Q4_K",)) == (again, once, [])
    assert parts_of("-np 1 --mlock", ()) == (told, once, [])


def test_windows_of_slots_that_share_a_cache_are_added() -> None:
    header = model("gemma3", layers=6, attention__sliding_window=1024)
    token = 5 * 8 * 128 * 2 * 2  # of the five layers with a window

    def added(words: str) -> int:
        settings = read_settings(words.split())
        return window_correction(settings, header, context_of(header, settings))

    assert added("-c 16384 -np 4 -kvu") == 3 * 1024 * token
    assert added("-c 16384 -np 4") == 0
    assert added("-c 16384 -np 1") == 0
    assert added("-c 16384 -np 4 -kvu --swa-full") == 0


# --- running it --------------------------------------------------------------------------------


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Write a stand-in for llama-fit-params."""

    def write(body: str) -> Path:
        path = tmp_path / "llama-fit-params"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path

    return write


@pytest.mark.anyio
async def test_what_it_prints_is_returned(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "7")
    path = script('echo "out $1 $GIVEN [$LLAMA_ARG_CTX_SIZE]"; echo err >&2')
    printed = await DryRuns().answer(path, ["word"], {"GIVEN": "this"})
    assert printed == "out word this []\nerr\n"


@pytest.mark.anyio
async def test_its_options_are_asked_once(script: Script, tmp_path: Path) -> None:
    lines = (
        "-c,    --ctx-size N                     size",
        "--no-mmap                               x",
    )
    path = script(f"echo x >> {tmp_path}/asked; cat <<'END'\n" + "\n".join(lines) + "\nEND")
    runs = DryRuns()
    known = await runs.options(path)
    assert known == {"-c": 1, "--ctx-size": 1, "--no-mmap": 0}
    assert await runs.options(path) is known
    assert (tmp_path / "asked").read_text() == "x\n"


@pytest.mark.anyio
async def test_failures_carry_what_it_said(script: Script) -> None:
    path = script("echo 'failed to load model'; kill -ABRT $$")
    with pytest.raises(FitParamsError, match=r"status -6: .*failed to load model"):
        await DryRuns().answer(path, [], {})
    with pytest.raises(FitParamsError, match="cannot be run"):
        await DryRuns().answer(path.with_name("absent"), [], {})


@pytest.mark.parametrize("tensor", ["cache_k_l0", "cache_k_l0 (view)"])
@pytest.mark.anyio
async def test_an_abort_tells_the_tensor_that_a_device_refused(script: Script, tensor: str) -> None:
    """The line of b11434 with Mesa's software driver and a K tensor of 256 MiB."""
    said = (
        f"pre-allocated tensor ({tensor}) in a buffer (Vulkan0) that cannot run the operation "
        "(NONE)"
    )
    path = script(f"echo '/b/ggml/src/ggml-backend.cpp:1081: {said}' >&2; kill -ABRT $$")
    with pytest.raises(FitParamsAbortError) as caught:
        await DryRuns().answer(path, [], {})
    assert caught.value.refusal == Refusal("cache_k_l0", "Vulkan0")
    assert caught.value.message == f"llama-fit-params aborted: {said}"


@pytest.mark.anyio
async def test_an_abort_for_another_reason_has_no_refused_tensor(script: Script) -> None:
    path = script("echo '/b/src/llama-context.cpp:7: GGML_ASSERT(n > 0) failed'; kill -ABRT $$")
    with pytest.raises(FitParamsAbortError, match=r"GGML_ASSERT\(n > 0\) failed") as caught:
        await DryRuns().answer(path, [], {})
    assert caught.value.refusal is None


@pytest.mark.parametrize(
    "line",
    [
        "/b/ggml-cuda.cu:98: CUDA error: out of memory",
        "/b/ggml-cuda.cu:98: ROCm error",
        "failed to load model",
    ],
)
@pytest.mark.anyio
async def test_an_abort_on_a_full_device_says_nothing_of_the_options(
    script: Script, line: str
) -> None:
    path = script(f"echo '{line}'; kill -ABRT $$")
    with pytest.raises(FitParamsError) as caught:
        await DryRuns().answer(path, [], {})
    assert not isinstance(caught.value, FitParamsAbortError)


@pytest.mark.anyio
async def test_a_program_that_aborts_starts_no_debugger(script: Script) -> None:
    path = script('echo "[$GGML_NO_BACKTRACE]"')
    assert await DryRuns().answer(path, [], {}) == "[1]\n"


def test_a_refused_device_has_the_name_that_lswap_gives_it() -> None:
    error = as_does_not_run("why", Refusal("cache_k_l0", "Vulkan0"), ("Vulkan2",))
    assert (error.message, error.tensor, error.device) == ("why", "cache_k_l0", "Vulkan2")
    other = as_does_not_run("why", Refusal("cache_k_l0", "BLAS"), ("Vulkan2",))
    assert (other.tensor, other.device) == ("", "")
    assert as_does_not_run("why", None, ("Vulkan2",)).device == ""


@pytest.mark.anyio
async def test_one_that_hangs_is_ended(script: Script, tmp_path: Path) -> None:
    path = script(f"echo $$ > {tmp_path}/pid; exec sleep 600")
    with pytest.raises(FitParamsError, match="did not end within"):
        await DryRuns(timeout=0.5).answer(path, [], {})
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.anyio
async def test_one_that_prints_without_end_is_ended(script: Script) -> None:
    with pytest.raises(FitParamsError, match="prints more than 8 MiB"):
        await DryRuns().answer(script("exec yes"), [], {})


@pytest.mark.anyio
async def test_one_at_a_time(script: Script, tmp_path: Path) -> None:
    """A run that finds another one's mark says so."""
    mark = tmp_path / "mark"
    path = script(f"mkdir {mark} || exit 9; ls / > /dev/null; rmdir {mark}")
    runs = DryRuns()
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(runs.answer, path, [], {})
