"""The sizes of single layers and of their cache tensors."""

from __future__ import annotations

from llamaswap_py.estimate.formula import context_of
from llamaswap_py.estimate.layer_sizes import (
    largest_cache_tensors,
    layer_bytes,
    layers_with_experts,
    refused_devices,
)
from llamaswap_py.llamacpp.fit_params import is_cache_tensor
from llamaswap_py.llamacpp.memory_settings import Settings, read_settings
from llamaswap_py.units import MIB
from tests.estimate.models import model

CARDS = ("CUDA0", "CUDA1")


def settings(words: str) -> Settings:
    return read_settings(words.split())


def test_a_layer_is_its_weights_and_its_cache_the_output_is_the_last() -> None:
    header = model(layers=3)
    sizes = layer_bytes([header], settings("-c 8192"))
    assert len(sizes) == 4
    weights = {tensor.name: tensor.size for tensor in header.tensors}
    cache = context_of(header, settings("-c 8192")).layers[1]
    layer = sum(size for name, size in weights.items() if name.startswith("blk.1."))
    assert sizes[1] == layer + cache
    assert sizes[3] == weights["output.weight"] + weights["output_norm.weight"]
    assert layer_bytes([header], settings("-c 8192 -nkvo"))[1] == layer


def test_experts_on_the_host_are_not_of_a_layer_on_a_device() -> None:
    header = model(layers=3, experts=4)
    whole = layer_bytes([header], settings("-c 256"))
    lean = layer_bytes([header], settings("-c 256 --n-cpu-moe 2"))
    experts = next(one.size for one in header.tensors if "exps" in one.name)
    assert [size - other for size, other in zip(whole, lean, strict=True)] == [
        experts,
        experts,
        0,
        0,
    ]


def test_a_split_does_not_change_the_size_of_layers() -> None:
    header = model(layers=3)
    plain = layer_bytes([header], settings("-c 256"))
    assert layer_bytes([header], settings("-c 256 -ts 3,1 -ngl 2 -sm none")) == plain


def test_the_largest_cache_tensor_is_of_all_tokens_of_one_layer() -> None:
    # Llama 3 8B: 8 heads x 128 x 2 bytes = 2 KiB a token in each of K and V.
    header = model(layers=3)
    both = {"CUDA0": 64 * MIB, "CUDA1": 64 * MIB}
    assert largest_cache_tensors(header, settings("-c 32768"), CARDS) == both
    assert largest_cache_tensors(header, settings("-c 32768 -np 4"), CARDS) == both
    quarter = largest_cache_tensors(header, settings("-c 32768 -ctk q4_0 -ctv q4_0"), CARDS)
    assert quarter["CUDA0"] == 64 * MIB * 9 // 32
    mixed = largest_cache_tensors(header, settings("-c 32768 -ctk q4_0"), CARDS)
    assert mixed["CUDA0"] == 64 * MIB
    assert largest_cache_tensors(header, settings("-c 32768 -nkvo"), CARDS) == {}
    assert largest_cache_tensors(header, settings("-c 32768 -ngl 0"), CARDS) == {}


def test_a_sliding_window_makes_smaller_tensors() -> None:
    # The sixth layer sees the whole context.
    header = model("gemma3", layers=6, attention__sliding_window=1024)
    sizes = largest_cache_tensors(header, settings("-c 32768 -np 1"), CARDS)
    assert sizes["CUDA0"] < sizes["CUDA1"]


def test_a_device_refuses_what_is_as_large_as_what_it_refused() -> None:
    header, limits = model(layers=3), {"CUDA1": 64 * MIB}
    assert refused_devices(header, settings("-c 32768"), CARDS, limits) == {"CUDA1": 64 * MIB}
    assert refused_devices(header, settings("-c 32512"), CARDS, limits) == {}
    assert refused_devices(header, settings("-c 32768 --device none"), CARDS, limits) == {}


def test_names_of_cache_tensors() -> None:
    assert is_cache_tensor("cache_k_l0")
    assert is_cache_tensor("cache_v_l31")
    assert not is_cache_tensor("cache_s_l0")


def test_layers_before_the_first_expert_have_none() -> None:
    assert layers_with_experts(model(layers=4)) == ()
    assert layers_with_experts(model(layers=4, experts=8)) == (0, 1, 2, 3)
    header = model(layers=4, experts=8, leading_dense_block_count=3)
    assert layers_with_experts(header) == (3,)
