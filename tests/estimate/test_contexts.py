"""What a model takes beside its weights, by device and context."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from llamaswap_py.cli.library import CTX
from llamaswap_py.config.load import BARE
from llamaswap_py.config.sections import Memory
from llamaswap_py.estimate.contexts import Overheads, overheads_of
from llamaswap_py.estimate.fitting import COMFORTABLE
from llamaswap_py.estimate.formula import analytic_parts, process_parts
from llamaswap_py.estimate.types import EstimateError, total
from llamaswap_py.llamacpp.memory_settings import read_settings
from llamaswap_py.units import GIB, MIB
from tests.estimate.models import model

LLAMA_8B_CELL = 32 * 2 * 8 * 128 * 2
"""Bytes of one token: layers, K and V, heads, their size, F16."""


def overheads(asked: int = CTX, projector: int = 0, **keys: Any) -> Overheads:
    header = model(**{"context_length": 131072, **keys})
    return overheads_of(header, ["CUDA0", "host"], asked=asked, projector=projector)


def test_the_context_that_is_asked_for_is_one_that_is_chosen_before_layers_leave_a_device() -> None:
    assert CTX == COMFORTABLE
    args = yaml.safe_load(BARE)["defaults"]["args"]
    assert args == {"parallel": 2, "kv-unified": True}


@pytest.mark.parametrize(
    ("trained", "asked", "had", "tried"),
    [
        (131072, 16384, 16384, [4096, 8192, 16384, 32768, 65536, 131072]),
        (1048576, 16384, 16384, [4096, 8192, 16384, 32768, 65536, 131072]),
        (40960, 16384, 16384, [4096, 8192, 16384, 32768]),
        (40960, 65536, 40960, [4096, 8192, 16384, 32768, 40960]),
        (8192, 16384, 8192, [4096, 8192]),
        (2048, 16384, 2048, [2048]),
        (131072, 24576, 24576, [4096, 8192, 16384, 24576, 32768, 65536, 131072]),
        (0, 16384, 16384, [4096, 8192, 16384, 32768, 65536, 131072]),
    ],
)
def test_no_context_is_larger_than_the_model_was_trained_for(
    trained: int, asked: int, had: int, tried: list[int]
) -> None:
    found = overheads(asked, context_length=trained)
    assert found.asked == had
    assert list(found.by_device["CUDA0"]) == list(found.by_device["host"]) == tried


def test_a_card_holds_cache_buffers_and_driver() -> None:
    at = overheads().by_device["CUDA0"]
    # The masks of a batch of 512 grow with the context too.
    assert at[32768] - at[16384] == 16384 * (LLAMA_8B_CELL + 512 * 2)
    beside = at[16384] - 16384 * LLAMA_8B_CELL
    assert 450 * MIB < beside < 700 * MIB, "450 MiB of them are the driver's"


def test_the_host_holds_the_prompt_cache_and_no_driver() -> None:
    at = overheads().by_device
    cache = Memory().cache_ram
    assert cache == GIB
    assert at["host"][4096] > 4096 * LLAMA_8B_CELL + cache
    assert at["host"][4096] - cache < at["CUDA0"][4096] - 300 * MIB


def test_the_weights_of_the_header_do_not_count() -> None:
    """One header serves all quantisations, and the first shard's the others."""
    assert overheads(kind="Q8_0").by_device == overheads(kind="Q4_K").by_device
    assert overheads(tied=True).by_device == overheads(tied=False).by_device


@pytest.mark.parametrize("tied", [True, False])
def test_it_agrees_with_the_estimate_of_a_file_that_is_here(tied: bool) -> None:
    """But for the input embedding, which stays on the host unless the output is the same matrix."""
    here = model(tied=tied)
    settings = read_settings(["-c", "8192", "-np", "2", "--kv-unified", "--cache-ram", "1024"])
    parts = analytic_parts([here], settings, ["CUDA0"], ())
    parts += process_parts(settings, ["CUDA0"], projector=0, adapters=0)
    size = sum(one.size for one in here.tensors)
    need = overheads_of(here, ["CUDA0"], asked=8192).need(size, "CUDA0")
    assert need - total(parts)["CUDA0"] == (0 if tied else here.tensors[0].size)


def test_a_projector_counts_on_either() -> None:
    plain, more = overheads().by_device, overheads(projector=1000 * MIB).by_device
    for device in ("CUDA0", "host"):
        assert more[device][CTX] - plain[device][CTX] == 1300 * MIB


def test_sliding_windows_make_long_contexts_cheap() -> None:
    plain = overheads(architecture="gemma3").by_device["CUDA0"]
    keys = {"attention__sliding_window": 1024}
    windowed = overheads(architecture="gemma3", **keys).by_device["CUDA0"]
    assert windowed[131072] < plain[131072] / 3


def test_the_largest_that_fits_to_the_byte() -> None:
    found = Overheads(16, {"CUDA0": {4: 100, 16: 400, 64: 1600}})
    assert found.need(1000, "CUDA0") == 1400
    rooms = [(1099, 0), (1100, 4), (1399, 4), (1400, 16), (2599, 16), (2600, 64), (9999, 64)]
    for room, largest in rooms:
        assert found.largest(1000, "CUDA0", room) == largest, room


def test_what_is_no_language_model_is_refused() -> None:
    with pytest.raises(EstimateError, match="a clip file without layers"):
        overheads_of(model("clip", layers=0), ["host"], asked=CTX)
