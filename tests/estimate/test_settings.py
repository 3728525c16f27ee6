"""Command lines: what of them decides memory."""

from __future__ import annotations

import pytest

from llamaswap_py.llamacpp.memory_settings import ALL, DraftModel, Settings, read_settings
from llamaswap_py.units import MIB


def test_nothing_said_is_llama_servers_default() -> None:
    settings = read_settings(["--model", "m.gguf"])
    assert settings == Settings()
    assert (settings.slots, settings.unified, settings.outputs) == (4, True, 4)
    assert settings.prompt_cache == 8192 * MIB


@pytest.mark.parametrize(
    ("words", "slots", "unified"),
    [
        ("-np 1", 1, True),
        ("-np 3", 3, False),
        ("--parallel 3 --kv-unified", 3, True),
        ("--parallel 3 -kvu", 3, True),
        ("-np -1", 4, True),
        ("-np 2 --kv-unified --no-kv-unified", 2, False),
        ("-np 2 --kv-unified -no-kvu", 2, False),
        ("-np x", 4, True),
    ],
)
def test_slots(words: str, slots: int, unified: bool) -> None:
    settings = read_settings(words.split())
    assert (settings.slots, settings.unified) == (slots, unified)


def test_long_and_short_names_and_the_last_one_wins() -> None:
    words = "-c 4096 --ctx-size 8192 -ctk q8_0 --cache-type-v Q4_0 -ub 256 -b 1024 -fa off"
    settings = read_settings(words.split())
    assert settings.context == 8192
    assert (settings.type_k, settings.type_v) == ("q8_0", "q4_0")
    assert (settings.micro_batch, settings.batch) == (256, 1024)
    assert not settings.flash
    assert read_settings(["-fa"]).flash
    assert read_settings(["--flash-attn", "auto"]).flash


@pytest.mark.parametrize(
    ("words", "mapped"),
    [
        ("", True),
        ("--load-mode none", False),
        ("--load-mode mlock", False),
        ("--load-mode mmap+mlock", True),
        ("-lm dio", False),
        ("--no-mmap", False),
    ],
)
def test_mapping(words: str, mapped: bool) -> None:
    assert read_settings(words.split()).mapped is mapped


@pytest.mark.parametrize(
    ("words", "layers"),
    [("", ALL), ("-ngl 12", 12), ("-ngl all", ALL), ("-ngl -1", ALL), ("-ngl auto", ALL)],
)
def test_gpu_layers(words: str, layers: int) -> None:
    assert read_settings(words.split()).gpu_layers == layers


def test_experts_splits_and_switches() -> None:
    words = "--n-cpu-moe 20 -ts 3,1 -sm none -mg 1 -nkvo --no-repack --swa-full --cache-ram 0"
    settings = read_settings(words.split())
    assert settings.cpu_expert_layers == 20
    assert settings.tensor_split == (3.0, 1.0)
    assert (settings.split_mode, settings.main_gpu) == ("none", 1)
    assert not settings.cache_on_gpu
    assert not settings.repack
    assert settings.whole_window
    assert settings.prompt_cache == 0
    assert read_settings(["--cpu-moe"]).cpu_expert_layers == ALL
    assert read_settings(["-ot", "exps=CPU"]).overrides == (("exps", "CPU"),)
    two = read_settings(["-ot", r"blk\.(1|2)\.ffn=CPU,attn=CUDA1"])
    assert two.overrides == ((r"blk\.(1|2)\.ffn", "CPU"), ("attn", "CUDA1"))
    assert not two.unread_overrides
    assert read_settings(["-ot", "(=CPU"]).unread_overrides
    assert read_settings(["--spec-draft-override-tensor", "x=CPU"]).unread_overrides


def test_draft_projector_and_adapters() -> None:
    words = "-md d.gguf -ctkd q8_0 -ngld 3 --mmproj p.gguf --no-mmproj-offload --lora a,b --lora c"
    settings = read_settings([*words.split(), "-np", "2", "--spec-type", "draft-simple"])
    assert settings.draft == DraftModel("d.gguf", "q8_0", "f16", 3)
    # Each slot asks for the logits of three drafted tokens and its own.
    assert settings.outputs == 8
    assert settings.speculation == "draft-simple"
    assert read_settings(["-md", "d.gguf"]).outputs == 4
    assert settings.projector == "p.gguf"
    assert not settings.projector_on_gpu
    assert settings.adapters == ("a", "b", "c")


def test_context_from_the_share_of_a_slot() -> None:
    words = "--kv-unified-per-slot 2048 -np 3 --kv-unified"
    assert read_settings(words.split()).context == 6144
    assert read_settings([*words.split(), "-c", "1000"]).context == 1000
