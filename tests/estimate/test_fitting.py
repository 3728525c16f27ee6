"""The steps in which a model is fitted: what is open, in which order, and as which words."""

from __future__ import annotations

from llamaswap_py.estimate.fitting import FitStep, FitWish, fit_steps
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
