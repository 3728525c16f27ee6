"""The formulas, against figures worked out by hand from llama.cpp's source."""

from __future__ import annotations

from typing import Any

import pytest

from llamaswap_py.estimate.formula import (
    analytic_parts,
    caveats,
    compute_of,
    context_of,
    draft_settings,
    is_recurrent,
    lay_out,
    layer_devices,
    page_cache_notes,
    process_parts,
    repackable_kinds,
    widest_row,
    window_layers,
    without_spare_logits,
)
from llamaswap_py.estimate.types import (
    LOCKED,
    MOVED,
    WEIGHTS,
    Estimate,
    EstimateError,
    Part,
    Source,
    total,
)
from llamaswap_py.gguf.header import Header
from llamaswap_py.llamacpp.memory_settings import Settings, read_settings
from llamaswap_py.units import GIB, HOST, MIB, format_size
from tests.estimate.models import model


def settings(words: str) -> Settings:
    return read_settings(words.split())


def kv(header: Header, words: str) -> int:
    return sum(context_of(header, settings(words)).layers)


def test_llama_3_takes_a_gibibyte_per_8k() -> None:
    # 32 layers x 8 heads x 128 x (K and V) x 2 bytes = 128 KiB a token
    assert kv(model(), "-c 8192 -np 1") == GIB
    assert kv(model(), "-np 1") == GIB  # its training context
    assert kv(model(), "-c 8192 -np 1 -ctk q8_0 -ctv q8_0") == GIB * 34 // 64
    assert kv(model(), "-c 8192 -np 1 -ctk q8_0") == (GIB + GIB * 34 // 64) // 2


def test_contexts_are_rounded_up_per_stream() -> None:
    token = GIB // 8192
    assert kv(model(), "-c 1500 -np 1") == 1536 * token
    assert kv(model(), "-c 1500 -np 3") == 3 * 512 * token
    assert kv(model(), "-c 1500 -np 4 -kvu") == 1536 * token
    assert kv(model(), "-c 1 -np 1") == 256 * token


def test_heads_may_differ_by_layer_and_layers_may_share() -> None:
    token = 2 * 2 * 128
    header = model(layers=3, attention__head_count_kv=[8, 0, 4])
    assert kv(header, "-c 256 -np 1") == 256 * token * 12
    shared = model(layers=4, attention__shared_kv_layers=1)
    assert kv(shared, "-c 256 -np 1") == 256 * token * 8 * 3


GEMMA: dict[str, Any] = {"attention__sliding_window": 1024, "attention__key_length": 256}
GEMMA |= {"attention__value_length": 256, "attention__head_count_kv": 4}


def test_sliding_windows() -> None:
    header = model("gemma3", layers=12, **GEMMA)
    assert window_layers(header, 12) == (True,) * 5 + (False,) + (True,) * 5 + (False,)
    token = 4 * 256 * 2 * 2
    # Two whole layers; ten keep a window and one batch: 1024 + 512.
    assert kv(header, "-c 16384 -np 1") == token * (2 * 16384 + 10 * 1536)
    assert kv(header, "-c 16384 -np 2") == token * (2 * 16384 + 10 * 2 * 1536)
    # One cache of two slots holds both windows: 2 x 1024 + 512.
    assert kv(header, "-c 16384 -np 2 -kvu") == token * (2 * 16384 + 10 * 2560)
    assert kv(header, "-c 16384 -np 1 --swa-full") == token * 12 * 16384
    assert kv(header, "-c 512 -np 1") == token * 12 * 512


def test_a_list_of_windows_or_another_period_wins() -> None:
    listed = model(
        "gemma3", layers=3, attention__sliding_window_pattern=[True, True, False], **GEMMA
    )
    assert window_layers(listed, 3) == (True, True, False)
    period = model("gemma3", layers=4, attention__sliding_window_pattern=2, **GEMMA)
    assert window_layers(period, 4) == (True, False, True, False)
    dense_first = model("smallthinker", layers=5, attention__sliding_window=4096)
    assert window_layers(dense_first, 5) == (False, True, True, True, False)
    unknown = model("nobody", layers=2, attention__sliding_window=4096)
    assert window_layers(unknown, 2) == (False, False)
    context = context_of(unknown, Settings())
    assert any("sliding window is not used" in one for one in caveats(unknown, Settings(), context))


def test_latent_attention_keeps_no_values() -> None:
    header = model(
        "deepseek2",
        layers=1,
        attention__head_count_kv=1,
        attention__key_length=576,
        attention__value_length=512,
        attention__key_length_mla=192,
    )
    assert kv(header, "-c 1024 -np 1") == 1024 * 576 * 2


def test_recurrent_state_is_kept_per_slot() -> None:
    keys: dict[str, Any] = {"ssm__conv_kernel": 4, "ssm__inner_size": 4096, "ssm__state_size": 128}
    header = model("qwen3next", layers=4, full_attention_interval=4, ssm__group_count=16, **keys)
    assert is_recurrent(header)
    state = 4 * (3 * (4096 + 2 * 16 * 128) + 128 * 4096)
    attention = 1024 * 8 * 128 * 2 * 2
    assert kv(header, "-c 1024 -np 1") == attention + 3 * state
    assert kv(header, "-c 1024 -np 2 -kvu") == attention + 2 * 3 * state


def test_weights_go_where_their_layers_go() -> None:
    header = model(layers=4)
    sizes = {one.name: one.size for one in header.tensors}
    whole = sum(sizes.values())
    embedding = sizes["token_embd.weight"]
    assert lay_out([header], Settings(), (), ()).weights == {HOST: whole}
    on_gpu = lay_out([header], Settings(), ("CUDA0",), ())
    assert on_gpu.weights == {HOST: embedding, "CUDA0": whole - embedding}
    # The output counts as one more layer: three of five.
    part = lay_out([header], settings("-ngl 3"), ("CUDA0",), ())
    assert part.layer_devices == (HOST, HOST, "CUDA0", "CUDA0", "CUDA0")
    layer = sum(size for name, size in sizes.items() if name.startswith("blk.0."))
    assert part.weights[HOST] == embedding + 2 * layer
    none = lay_out([header], settings("-ngl 0"), ("CUDA0",), ())
    assert none.weights == {HOST: whole}


def test_splits() -> None:
    header = model(layers=7)
    gpus = ("CUDA0", "CUDA1")
    assert layer_devices(header, Settings(), gpus) == ("CUDA0",) * 4 + ("CUDA1",) * 4
    assert layer_devices(header, settings("-ts 3,1"), gpus) == ("CUDA0",) * 6 + ("CUDA1",) * 2
    assert layer_devices(header, settings("-sm none -mg 1"), gpus) == ("CUDA1",) * 8
    assert layer_devices(header, settings("-ts 0,1"), gpus) == ("CUDA1",) * 8
    # The first device whose share lies above layer / layers has it: 4 / 8 < 0.51, and 5 / 8 is not.
    assert layer_devices(header, settings("-ts 51,49"), gpus) == ("CUDA0",) * 5 + ("CUDA1",) * 3


def test_a_tied_embedding_is_there_twice_on_a_gpu() -> None:
    header = model(layers=2, tied=True)
    embedding = header.tensors[0].size
    layout = lay_out([header], Settings(), ("CUDA0",), ())
    assert layout.weights[HOST] == embedding
    assert layout.weights["CUDA0"] == sum(one.size for one in header.tensors)


def test_experts_kept_by_the_cpu() -> None:
    header = model(layers=4, experts=8, expert_used_count=2)
    experts = [one.size for one in header.tensors if "_exps" in one.name]
    layout = lay_out([header], settings("--n-cpu-moe 3"), ("CUDA0",), ())
    assert layout.weights[HOST] == header.tensors[0].size + sum(experts[:3])
    everything = lay_out([header], settings("--cpu-moe"), ("CUDA0",), ())
    assert everything.weights[HOST] == header.tensors[0].size + sum(experts)


def test_rearranged_weights_stay_mapped_as_page_cache() -> None:
    header = model(layers=4)
    moved = sum(one.size for one in header.tensors if one.kind == "Q4_K") - header.tensors[0].size
    layout = lay_out([header], Settings(), (), ("Q4_K",))
    assert layout.repacked == moved
    assert layout.unused_pages == moved
    assert lay_out([header], settings("--load-mode none"), (), ("Q4_K",)).unused_pages == 0
    assert lay_out([header], settings("--no-repack"), (), ("Q4_K",)).repacked == 0
    assert lay_out([header], Settings(), ("CUDA0",), ("Q4_K",)).repacked == 0


def test_the_host_is_charged_with_each_weight_once() -> None:
    """However it is loaded: the pages beside a rearranged copy are noted, and not counted."""
    header = model(layers=4)
    whole = sum(one.size for one in header.tensors)
    moved = lay_out([header], Settings(), (), ("Q4_K",)).repacked
    for words in ("", "--load-mode none", "--no-mmap", "--no-repack", "--load-mode mlock"):
        chosen = settings(words)
        parts = analytic_parts([header], chosen, (), ("Q4_K",))
        sizes = {part.what: part.size for part in parts if part.what in (WEIGHTS, MOVED, LOCKED)}
        assert sum(sizes.values()) == whole, words
        estimate = Estimate(Source.ANALYTIC, tuple(parts))
        assert estimate.in_place == whole - (moved if chosen.repack else 0)
        notes = page_cache_notes(parts, lay_out([header], chosen, (), ("Q4_K",)), chosen)
        where = "beside the weights that were rearranged or moved"
        said = [f"{format_size(moved)} of its file stay mapped {where}: page cache, not counted"]
        assert notes == (said if chosen.mapped and chosen.repack else [])


def test_locked_pages_are_charged_because_the_kernel_cannot_drop_them() -> None:
    header = model(layers=4)
    whole = sum(one.size for one in header.tensors)
    for words in ("--load-mode mmap+mlock", "--mlock"):
        parts = analytic_parts([header], settings(words), (), ("Q4_K",))
        moved = sum(part.size for part in parts if part.what == MOVED)
        assert Part(HOST, LOCKED, moved) in parts
        assert Estimate(Source.ANALYTIC, tuple(parts)).in_place == whole
        layout = lay_out([header], settings(words), (), ("Q4_K",))
        assert page_cache_notes(parts, layout, settings(words)) == []


def test_pages_of_layers_on_a_device_are_not_charged() -> None:
    header = model(layers=4)
    parts = analytic_parts([header], Settings(), ("CUDA0",), ())
    assert Estimate(Source.ANALYTIC, tuple(parts)).in_place == header.tensors[0].size


def test_what_a_cpu_rearranges() -> None:
    assert repackable_kinds({"sse"}) == frozenset()
    assert {"Q4_0", "Q4_K"} <= repackable_kinds({"avx2"})
    assert "Q8_0" not in repackable_kinds({"avx2", "avx512f"})
    assert "Q8_0" in repackable_kinds({"avx2", "amx_int8"})


def test_compute_of_llama_3() -> None:
    header = model()
    chosen = settings("-c 8192 -np 1")
    found = compute_of(header, chosen, context_of(header, chosen))
    # 512 tokens x 4 bytes x (5 rows of 4096 and 3 of 14336), and a mask of F16
    assert found.buffer == 512 * 4 * (5 * 4096 + 3 * 14336) + 512 * 8192 * 2
    small = settings("-c 256 -np 1 -ub 64")
    assert compute_of(header, small, context_of(header, small)).buffer == 64 * (
        4 * (5 * 4096 + 3 * 14336) + 256 * 2
    )


def test_attention_without_flash_needs_its_matrix() -> None:
    header = model()
    chosen = settings("-c 8192 -np 1 -fa off")
    found = compute_of(header, chosen, context_of(header, chosen))
    assert found.buffer > 512 * 8192 * 32 * 4
    assert found.work == 512 * 8192 * 32 * 2


@pytest.mark.parametrize(
    ("width", "hidden", "used", "floats"),
    [
        (2048, 768, 8, 34816),
        (2048, 512, 8, 28672),
        (2048, 1024, 8, 24576),
        (4096, 1536, 4, 34816),
        (4096, 1536, 8, 69632),
        (1024, 512, 16, 24576),
    ],
)
def test_experts_at_their_widest(width: int, hidden: int, used: int, floats: int) -> None:
    """Floats per token as llama-fit-params of build 11434 reserves them for qwen3moe files."""
    header = model(
        "qwen3moe",
        layers=1,
        experts=32,
        embedding_length=width,
        expert_feed_forward_length=hidden,
        expert_used_count=used,
        attention__head_count=32,
        attention__key_length=128,
        attention__head_count_kv=4,
    )
    chosen = settings("-c 1024 -np 1")
    assert widest_row(header, chosen, context_of(header, chosen)) == floats


def test_spare_logits_are_taken_out_of_a_dry_run() -> None:
    header = model()
    chosen = settings("-c 8192 -np 1")
    context = context_of(header, chosen)
    steady = 512 * (4 * 5 * 4096 + 2 * 8192)
    with_logits = steady + 512 * 4 * 128256
    expected = compute_of(header, chosen, context).buffer
    assert without_spare_logits(with_logits, header, chosen, context) == expected
    small = model(vocabulary=32000)
    assert without_spare_logits(expected, small, chosen, context) == expected
    embedding = settings("-c 8192 -np 1 --embeddings")
    assert without_spare_logits(with_logits, header, embedding, context) == with_logits


def test_checkpoints_of_sliding_windows_are_charged() -> None:
    header = model("gemma3", layers=12, **GEMMA)
    chosen = settings("-c 16384 -np 2")
    parts = analytic_parts([header], chosen, (), ())
    token = 4 * 256 * 2 * 2
    # Two per slot, each the windows of ten layers.
    assert Part(HOST, "checkpoints", 2 * 2 * 10 * 1024 * token, grows=True) in parts
    assert any(
        "32 checkpoints per slot, 2,560 MiB" in note
        for note in caveats(header, chosen, context_of(header, chosen))
    )
    without = analytic_parts([header], settings("-np 2 --ctx-checkpoints 0"), (), ())
    assert not any(part.what == "checkpoints" for part in without)
    assert not any(part.what == "checkpoints" for part in analytic_parts([model()], chosen, (), ()))


def test_parts_of_a_gpu_and_of_the_host() -> None:
    header = model()
    parts = analytic_parts([header], settings("-c 8192 -np 1"), ("CUDA0",), ())
    sizes = total(parts)
    context = total(part for part in parts if part.what == "context")
    assert context == {"CUDA0": GIB}
    assert sizes[HOST] == header.tensors[0].size + 128256 * 210
    grows = {part.device for part in parts if part.grows and part.size}
    assert grows == set()  # a GPU reserves everything at once
    kept = analytic_parts([header], settings("-c 8192 -np 1 -nkvo"), ("CUDA0",), ())
    assert total(part for part in kept if part.what == "context") == {HOST: GIB}


def test_what_belongs_to_the_process() -> None:
    parts = process_parts(settings("--cache-ram 100"), ("CUDA0",), projector=1000 * MIB, adapters=7)
    sizes = {(part.device, part.what): part.size for part in parts}
    assert sizes[HOST, "prompt cache"] == 100 * MIB
    assert sizes["CUDA0", "driver"] == 450 * MIB
    assert sizes["CUDA0", "projector"] == 1300 * MIB
    assert sizes["CUDA0", "adapters"] == 7
    on_host = process_parts(settings("--no-mmproj-offload"), ("CUDA0",), projector=10, adapters=0)
    assert (HOST, "projector") in {(part.device, part.what) for part in on_host}


def test_a_draft_runs_with_its_own_types() -> None:
    chosen = settings("-md d.gguf -ctk q8_0 -ctv q8_0 -ctkd q4_0 -ngld 0 -c 4096 -np 2")
    draft = draft_settings(chosen)
    assert (draft.type_k, draft.type_v, draft.gpu_layers) == ("q4_0", "f16", 0)
    assert (draft.context, draft.slots, draft.outputs) == (4096, 2, 2)


def test_what_may_differ_is_said_of_drafts() -> None:
    header = model()

    def said(words: str) -> str:
        chosen = settings(words)
        return "; ".join(caveats(header, chosen, context_of(header, chosen)))

    assert "dropped again" in said("-md d.gguf")
    assert said("-md d.gguf --spec-type draft-simple") == ""
    assert "own draft layers" in said("--spec-type draft-mtp")
    assert said("--spec-type ngram-simple") == ""


def test_what_is_no_language_model() -> None:
    with pytest.raises(EstimateError, match="clip file without layers"):
        analytic_parts([model("clip", layers=0, block_count=0)], Settings(), (), ())


def test_tensors_are_where_override_tensor_puts_them() -> None:
    header, gpus = model(layers=4, experts=8), ("CUDA2", "CUDA3")
    experts = sum(one.size for one in header.tensors if "exps" in one.name)
    as_usual = lay_out([header], Settings(), gpus, ()).weights
    on_host = lay_out([header], read_settings(["-ot", "exps=CPU"]), gpus, ()).weights
    assert on_host[HOST] == as_usual[HOST] + experts
    moved = lay_out([header], read_settings(["-ot", r"blk\.\d+\.=CUDA1"]), gpus, ()).weights
    of_layers = sum(one.size for one in header.tensors if one.name.startswith("blk"))
    assert moved["CUDA3"] >= of_layers
    assert "CUDA2" not in moved
    same = lay_out([header], read_settings(["--cpu-moe"]), gpus, ()).weights
    assert on_host == same


def test_the_dense_part_of_first_layers_is_on_the_host_by_n_cpu_ffn() -> None:
    header = model(layers=12)
    settings = read_settings(["--n-cpu-ffn", "11"])
    weights = lay_out([header], settings, ("CUDA0",), ()).weights
    kept = {"token_embd.weight", *(f"blk.{at}.ffn_up.weight" for at in range(11))}
    assert weights[HOST] == sum(one.size for one in header.tensors if one.name in kept)
