"""How large a model would be in other quantisations."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llamaswap_py.estimate.formula import lay_out
from llamaswap_py.estimate.quantisations import requantised, smaller, weights_of
from llamaswap_py.llamacpp.memory_settings import Settings
from llamaswap_py.units import GIB, HOST
from tests.estimate.shapes import HEADERS, SHAPES


def test_smaller_ones_are_named_the_largest_first() -> None:
    names = [quantisation.name for quantisation, _ in smaller([HEADERS["dense-8b"]])]
    assert names == ["Q3_K_M", "Q2_K", "IQ2_XS"]  # it is Q4_K, of 4.5 bits


def test_the_sizes_are_those_of_files_that_people_have() -> None:
    """Llama 3.1 8B: 7.95 GiB in Q8_0, 4.58 GiB in Q4_K_M, 2.95 GiB in Q2_K."""
    header = replace(SHAPES["dense-8b"], kind="F16").header
    sizes = {quantisation.name: weights_of(headers) for quantisation, headers in smaller([header])}
    for name, gib in {"Q8_0": 7.95, "Q6_K": 6.14, "Q4_K_M": 4.58, "Q2_K": 2.95}.items():
        assert sizes[name] / GIB == pytest.approx(gib, rel=0.02), name


def test_tensors_stay_side_by_side() -> None:
    """A file of other tensors has no gaps that would count as mapped."""
    header = HEADERS["dense-1b"]
    for _, headers in smaller([header]):
        layout = lay_out(headers, Settings(), (), ())
        assert layout.unused_pages == 0
        assert layout.weights[HOST] == weights_of(headers)


def test_vectors_and_what_is_smaller_already_stay() -> None:
    header = HEADERS["dense-1b"]
    ((quantisation, _),) = [one for one in smaller([header]) if one[0].name == "Q3_K_M"]
    norms = {one.name: one.size for one in header.tensors if "norm" in one.name}
    changed = requantised(header, quantisation)
    assert {one.name: one.size for one in changed.tensors if "norm" in one.name} == norms
    assert all(
        new.size <= old.size for old, new in zip(header.tensors, changed.tensors, strict=True)
    )
