"""The steps in which a model is fitted: what is open, in which order, and as which words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llamaswap_py.estimate.fitting import FitStep, FitWish, fit_steps
from llamaswap_py.estimate.formula import batch_tokens
from llamaswap_py.llamacpp.memory_settings import names_of, read_settings
from tests.estimate.models import model

CARD = ("CUDA0",)


def steps_of(
    *args: str, gpus: tuple[str, ...] = CARD, wish: FitWish | None = None, **keys: int
) -> tuple[FitStep, ...]:
    """Return the steps of a model trained for 128k of which the file gives `args`."""
    keys.setdefault("context_length", 131072)
    words = ("--cache-ram", "0", *args)
    header = model(**keys)  # type: ignore[arg-type]
    return fit_steps(header, read_settings(words), names_of(args), gpus, wish or FitWish())


def places(steps: tuple[FitStep, ...]) -> list[tuple[int, int, int]]:
    return [(one.context, one.layers_on_devices, one.experts_on_host) for one in steps]


def test_the_context_is_cut_to_16k_and_8k_before_dense_layers_leave_the_device() -> None:
    steps = places(steps_of(layers=3))
    assert steps == [
        (32768, 4, 0),
        (24576, 4, 0),
        (16384, 4, 0),
        (12288, 4, 0),
        (8192, 4, 0),
        (8192, 3, 0),
        (8192, 2, 0),
        (8192, 1, 0),
        *((context, 0, 0) for context in (32768, 24576, 16384, 12288, 8192)),
        *((4096, layers, 0) for layers in (4, 3, 2, 1, 0)),
    ]


def test_experts_leave_the_device_before_the_context_goes_below_16k() -> None:
    steps = places(steps_of(layers=2, experts=8))
    assert steps[:6] == [
        (32768, 3, 0),
        (24576, 3, 0),
        (16384, 3, 0),
        (16384, 3, 1),
        (16384, 3, 2),
        (12288, 3, 2),
    ]


def test_ranks_are_places_in_the_order() -> None:
    steps = steps_of(layers=2, experts=8)
    assert [one.rank for one in steps] == list(range(len(steps)))


def test_without_devices_the_context_alone_is_open() -> None:
    steps = steps_of(gpus=())
    assert [one.words for one in steps] == [
        ("--ctx-size", str(context)) for context in (32768, 24576, 16384, 12288, 8192, 4096)
    ]


@pytest.mark.parametrize(
    ("trained", "contexts"),
    [
        (256, [256]),
        (2048, [2048]),
        (4096, [4096]),
        (6000, [6000, 4096]),
        (8192, [8192, 4096]),
        (10000, [10000, 8192, 4096]),
        (16384, [16384, 12288, 8192, 4096]),
        (40960, [32768, 24576, 16384, 12288, 8192, 4096]),
    ],
)
def test_no_context_is_longer_than_the_trained_one(trained: int, contexts: list[int]) -> None:
    steps = steps_of(gpus=(), context_length=trained)
    assert [one.context for one in steps] == contexts
    assert {one.trained for one in steps} == {trained}


def test_a_wish_bounds_the_contexts() -> None:
    long = steps_of(gpus=(), wish=FitWish(least=16384, want=131072))
    assert [one.context // 1024 for one in long] == [128, 96, 64, 48, 32, 24, 16]
    short = steps_of(gpus=(), wish=FitWish(least=4096, want=6144))
    assert [one.context for one in short] == [6144, 4096]
    odd = steps_of(gpus=(), wish=FitWish(least=10000, want=20000))
    assert [one.context for one in odd] == [20000, 16384, 12288, 10000]


def test_a_least_context_above_the_wanted_one_is_the_wanted_one() -> None:
    steps = steps_of(gpus=(), wish=FitWish(least=65536, want=32768))
    assert [one.context for one in steps] == [32768]


def test_4k_is_tried_last_where_the_file_says_no_least_context() -> None:
    assert steps_of(gpus=())[-1].context == 4096
    assert steps_of(gpus=(), wish=FitWish(least=12288))[-1].context == 12288


def test_favor_context_moves_layers_before_the_context_is_cut() -> None:
    steps = places(steps_of(layers=2, experts=4, wish=FitWish(favor="context")))
    assert steps[:8] == [
        (32768, 3, 0),
        (32768, 3, 1),
        (32768, 3, 2),
        (32768, 2, 2),
        (32768, 1, 2),
        (32768, 0, 0),
        (24576, 3, 0),
        (24576, 3, 1),
    ]


def test_a_given_context_stands() -> None:
    steps = steps_of("--ctx-size", "20000", layers=2)
    assert {one.context for one in steps} == {20000}
    assert not any("--ctx-size" in one.words for one in steps)
    whole = steps_of("-c", "0", layers=2)
    assert {one.context for one in whole} == {131072}
    each = steps_of("--kv-unified-per-slot", "2000", layers=2)
    assert not any("--ctx-size" in one.words for one in each)


def test_given_layers_stand_and_experts_may_still_leave() -> None:
    steps = steps_of("-ngl", "2", layers=2, experts=4)
    assert {one.layers_on_devices for one in steps} == {2}
    assert {one.experts_on_host for one in steps} == {0, 1, 2}
    assert not any("--n-gpu-layers" in one.words for one in steps)


def test_given_experts_stand_and_layers_may_still_leave() -> None:
    for given in (("--n-cpu-moe", "1"), ("--cpu-moe",)):
        steps = steps_of(*given, layers=2, experts=4)
        assert {one.layers_on_devices for one in steps} == {3, 2, 1, 0}
        assert not any("--n-cpu-moe" in one.words for one in steps)


def test_given_overrides_stand_and_layers_may_still_leave() -> None:
    for given in (("--override-tensor", "exps=CPU"), ("--n-cpu-ffn", "1")):
        steps = steps_of(*given, layers=2, experts=4)
        assert {one.layers_on_devices for one in steps} == {3, 2, 1, 0}
        assert not any("--n-cpu-moe" in one.words for one in steps)


def test_only_layers_with_experts_lose_them() -> None:
    steps = steps_of(layers=4, experts=8, leading_dense_block_count=2)
    words = [one.words[-2:] for one in steps if one.moved and one.context == 16384]
    assert words == [("--n-cpu-moe", "3"), ("--n-cpu-moe", "4")]
    counts = [one.experts_on_host for one in steps if one.moved and one.context == 16384]
    assert counts == [1, 2]


def test_slots_that_share_a_context_have_the_whole_each() -> None:
    for args in ((), ("--parallel", "3", "--kv-unified"), ("--parallel", "1")):
        first = steps_of(*args, gpus=())[0]
        assert first.context == 32768
        assert "32768" in first.words


def test_slots_that_divide_a_context_have_it_each_and_become_fewer_at_last() -> None:
    steps = steps_of("--parallel", "4", gpus=())
    assert [(one.context, one.slots) for one in steps] == [
        (32768, 4),
        (24576, 4),
        (16384, 4),
        (12288, 4),
        (8192, 4),
        (8192, 2),
        (8192, 1),
        (4096, 1),
    ]
    assert steps[0].words == ("--ctx-size", "131072")
    assert steps[5].words == ("--ctx-size", "16384", "--parallel", "2")


def test_a_given_context_is_divided_among_given_slots() -> None:
    steps = steps_of("--ctx-size", "8192", "--parallel", "4", gpus=())
    assert [(one.context, one.slots) for one in steps] == [(2048, 4)]


def test_the_prompt_cache_goes_before_the_context_is_cut() -> None:
    header = model(context_length=16384)
    settings = read_settings(("--cache-ram", "1024"))
    steps = fit_steps(header, settings, (), (), FitWish())
    assert [("--cache-ram" in one.words, one.context) for one in steps[:4]] == [
        (False, 16384),
        (True, 16384),
        (False, 12288),
        (True, 12288),
    ]
    given = fit_steps(header, settings, ("cache-ram",), (), FitWish())
    assert not any("--cache-ram" in one.words for one in given)


def test_a_model_for_embeddings_keeps_its_trained_context() -> None:
    """As it is without a fit; llama-server shortens a batch that is longer than the context."""
    args = ("--embeddings", "--batch-size", "8192", "--ubatch-size", "8192")
    steps = steps_of(*args, gpus=(), context_length=65536)
    assert [one.context // 1024 for one in steps] == [64, 48, 32, 24, 16, 12, 8, 4]
    settings = read_settings((*args, *steps[-1].words))
    assert batch_tokens(model(), settings) == 4096


def test_on_the_host_alone_nothing_beside_the_model_uses_a_device() -> None:
    args = ("--model-draft", "/d.gguf", "--mmproj", "/p.gguf")
    last = steps_of(*args)[-1]
    assert last.layers_on_devices == 0
    said = read_settings((*args, *last.words))
    assert said.host_alone
    assert not said.projector_on_gpu
    assert said.draft is not None
    assert said.draft.gpu_layers == 0


def test_texts_say_how_a_model_runs() -> None:
    steps = steps_of(layers=32)
    assert steps[0].text(("CUDA0",)) == "32,768 of 131,072 context, all 33 layers on CUDA0"
    some = next(one for one in steps if one.layers_on_devices == 24)
    assert some.text(("Vulkan0",)) == "8,192 of 131,072 context, 24 of 33 layers on Vulkan0"
    assert steps[-1].text(("CUDA0",)) == "4,096 of 131,072 context, all layers on the host"
    assert steps_of(gpus=(), context_length=4096)[0].text(()) == "4,096 context"
    moe = next(one for one in steps_of(layers=4, experts=8) if one.experts_on_host == 3)
    assert moe.text(CARD).endswith("all 5 layers on CUDA0, the experts of 3 layers on the host")
    split = replace(some, words=(*some.words, "--tensor-split", "14,10"))
    assert "24 of 33 layers on CUDA0 (14) and CUDA1 (10)" in split.text(("CUDA0", "CUDA1"))
    fewer = steps_of("--parallel", "4", gpus=())
    assert fewer[5].text(()) == "8,192 of 131,072 context, 2 slots"
    assert fewer[6].text(()) == "8,192 of 131,072 context, 1 slot"
    uncached = fit_steps(model(), read_settings(()), (), (), FitWish())[1]
    assert uncached.text(()) == "8,192 context, no prompt cache"


def test_an_option_that_the_engine_lacks_is_not_used() -> None:
    header, settings = model(layers=2, experts=4), read_settings(())
    old = ("--ctx-size", "--n-gpu-layers", "--device")
    steps = fit_steps(header, settings, (), CARD, FitWish(), known=old)
    words = {word for one in steps for word in one.words if word.startswith("--")}
    assert words == set(old)
    assert {one.experts_on_host for one in steps} == {0}


def test_without_layers_on_devices_no_expert_can_leave() -> None:
    steps = steps_of("--n-gpu-layers", "0", layers=2, experts=4)
    assert len({one.words for one in steps}) == len(steps)


def test_only_what_is_chosen_is_said() -> None:
    """The prompt cache alone is open where the file gives the whole context, and the layers."""
    words = ("--ctx-size", "0", "--parallel", "200")
    header = model(context_length=65536)
    kept, left_out = fit_steps(header, read_settings(words), names_of(words), (), FitWish())
    assert (kept.text(()), left_out.text(())) == ("", "no prompt cache")
    layers = steps_of("--ctx-size", "4096", layers=3)
    assert layers[0].text(CARD) == "all 4 layers on CUDA0"
    context = steps_of("--n-gpu-layers", "2", layers=3)
    assert context[0].text(CARD) == "32,768 of 131,072 context"


def test_the_batch_of_an_embedding_model_follows_its_context() -> None:
    """One that lswap has made as long as an input may be; one of the file stands."""
    batch = ("--batch-size", "8192", "--ubatch-size", "8192")
    words = ("--cache-ram", "0", "--embeddings", *batch)
    header, wish = model(context_length=16384), FitWish(least=2048)
    settings = read_settings(words)
    steps = fit_steps(header, settings, {"embeddings", "cache-ram"}, (), wish)
    read = [read_settings((*words, *one.words)) for one in steps]
    assert [(one.context, one.batch, one.micro_batch) for one in read] == [
        (context, min(context, 8192), min(context, 8192))
        for context in (16384, 12288, 8192, 6144, 4096, 2048)
    ]
    given = fit_steps(header, settings, {"embeddings", "cache-ram", "ubatch-size"}, (), wish)
    assert {read_settings((*words, *one.words)).micro_batch for one in given} == {8192}
