"""Where an input is cut, and which tokens end it then."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from llamaswap_py.api.ollama import embed
from llamaswap_py.api.ollama.embed import closing
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.scheduler.types import Choice, PresetId
from llamaswap_py.supervisor.model_facts import ModelFacts
from tests.unit.supervisors import configured, make_supervisor

if TYPE_CHECKING:
    from pathlib import Path

BOS, EOS, CLS, SEP = 1, 2, 101, 102


@pytest.mark.parametrize(
    ("tokens", "none", "expected"),
    [
        ([CLS, 7, 8, SEP], [CLS, SEP], [SEP]),
        ([BOS, 7, 8], [BOS], []),
        ([7, 8, EOS], [EOS], [EOS]),
        ([BOS, 7, 8, EOS], [BOS, EOS], [EOS]),
        ([7, 8], [], []),
    ],
)
def test_the_end(tokens: list[int], none: list[int], expected: list[int]) -> None:
    assert closing(tokens, none) == expected


@pytest.mark.anyio
@pytest.mark.parametrize("loaded", [False, True])
async def test_inputs_are_cut_at_the_context_that_was_chosen(
    loaded: bool, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured("models: {alpha: {model: /a.gguf, args: {embeddings: true}}}")
    words = ("--ctx-size", "2048", "--batch-size", "2048", "--ubatch-size", "2048")
    supervisor = make_supervisor(short_dir, config, Endpoint(port=1))
    state = supervisor.scheduler.state
    choice = Choice({}, words=() if loaded else words)
    state.add_preset(replace(state.presets[PresetId("alpha")].plan, choices=(choice,)))
    if loaded:
        serving = SimpleNamespace(choice=Choice({}, words=words))
        state.presets[PresetId("alpha")].serving = cast("Any", serving)
    trained = {"bert.context_length": 8192, "bert.attention.causal": False}

    async def facts(_: str) -> ModelFacts:
        return ModelFacts(family="bert", metadata=dict(trained))

    monkeypatch.setattr(supervisor.facts, "of", facts)
    call = cast("Any", SimpleNamespace(supervisor=supervisor))
    assert await embed._most_tokens(call, "alpha") == 2048
