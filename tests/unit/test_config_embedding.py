"""Embedding models and rerankers get a batch as long as their context, where it is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from llamaswap_py.config.parse import load_config
from llamaswap_py.estimate.files import with_whole_batch
from llamaswap_py.llamacpp.embedding_models import (
    Trained,
    embeds,
    kind_of,
    most_tokens,
    ranks_whole,
    read_trained,
    splits,
    whole_batch,
)
from tests.estimate.gguf_bytes import header

if TYPE_CHECKING:
    from pathlib import Path

    from llamaswap_py.config.sections import Preset

BERT = Trained(8192, "mean", causal=False)
QWEN = Trained(32768, "last")


def preset(args: str, *, extra: str = "", top: str = "", model: str = "x") -> Preset:
    text = f"{top}models: {{a: {{model: {model}, args: {{{args}}}, extra: [{extra}]}}}}\n"
    return load_config(text, path=None, base_dir="/etc", env={}, home="/home/me").models["a"]


def both(size: int) -> dict[str, Any]:
    return {"batch-size": size, "ubatch-size": size}


@pytest.mark.parametrize(
    ("args", "extra", "trained", "expected"),
    [
        ("embeddings: true, c: 2048, np: 1", "", BERT, both(2048)),
        ("embeddings: true, c: 2048", "", Trained(), both(2048)),
        ("embedding: true, pooling: mean, c: 4096, np: 2", "", BERT, both(2048)),
        ("c: 2048", "--embedding", BERT, both(2048)),
        ("reranking: true, c: 2048", "", BERT, both(2048)),
        ("c: 2048", "--rerank", BERT, both(2048)),
        # The context of the model file, as far as memory allows without being asked.
        ("embeddings: true", "", BERT, both(8192)),
        ("embeddings: true, np: 2", "", BERT, both(4096)),
        ("embeddings: true", "", Trained(2048, "cls", causal=False), both(2048)),
        ("embeddings: true", "", Trained(131072, "mean"), both(8192)),
        ("embeddings: true, c: 32768", "", Trained(131072, "mean"), both(32768)),
        ("embeddings: true, c: 32768", "", BERT, both(8192)),
        # One that llama-server reads in pieces, and one that it cannot.
        ("embeddings: true, c: 16384", "", QWEN, {}),
        ("embeddings: true, c: 16384, pooling: mean", "", QWEN, both(16384)),
        ("reranking: true, c: 4096", "", Trained(8192, "rank", causal=False), both(4096)),
        ("embeddings: true, c: 2048, pooling: last", "", BERT, both(2048)),
        ("reranking: true, c: 16384", "", Trained(32768, "rank"), {}),
        ("reranking: true, c: 16384", "", Trained(32768), {}),
        # What the file says is left.
        ("embeddings: true, c: 2048, ub: 1024", "", BERT, {}),
        ("embeddings: true, c: 2048", "-ub, 512", BERT, {}),
        ("embeddings: true, c: 8192, b: 1024", "", BERT, both(1024)),
        ("embeddings: true, c: 1024, b: 4096", "", BERT, {"batch-size": 4096, "ubatch-size": 1024}),
        # Nothing to do.
        ("embeddings: true, c: 512", "", BERT, {}),
        ("embeddings: true", "", Trained(), {}),
        ("c: 8192", "", BERT, {}),
        ("pooling: mean, c: 8192", "", BERT, {}),
    ],
)
def test_the_batch(args: str, extra: str, trained: Trained, expected: dict[str, Any]) -> None:
    assert whole_batch(preset(args, extra=extra), trained) == expected


def test_a_build_that_reads_each_ranking_whole() -> None:
    """As b10456, which splits only what is pooled by its last token."""
    assert [ranks_whole(build) for build in (10456, 11434, None)] == [True, False, False]
    ranks = preset("reranking: true, c: 16384")
    trained = Trained(32768, "rank")
    assert whole_batch(ranks, trained, ranks_whole=True) == both(16384)
    assert whole_batch(ranks, trained) == {}
    assert whole_batch(preset("embeddings: true, c: 16384"), QWEN, ranks_whole=True) == {}


@pytest.mark.parametrize(
    ("args", "trained", "expected"),
    [
        ("embeddings: true, c: 2048, np: 1, b: 2048, ub: 2048", BERT, 2048),
        ("embeddings: true, c: 2048, np: 1", BERT, 512),
        ("embeddings: true, c: 16384", QWEN, 16383),
        ("embeddings: true, c: 65536", QWEN, 32767),
        ("embeddings: true, np: 1", QWEN, 32767),
        ("embeddings: true, c: 2048, b: 256, ub: 1024", BERT, 256),
        ("embeddings: true", Trained(), 0),
    ],
)
def test_what_a_child_takes_of_one_input(args: str, trained: Trained, expected: int) -> None:
    assert most_tokens(preset(args), trained) == expected


def test_a_model_file_says_how_it_reads(tmp_path: Path) -> None:
    pairs = {
        "general.architecture": "bert",
        "bert.context_length": 8192,
        "bert.pooling_type": 1,
        "bert.attention.causal": False,
    }
    path = tmp_path / "bert.gguf"
    path.write_bytes(header(pairs))
    assert read_trained("bert", pairs) == BERT
    assert read_trained("bert", {"bert.pooling_type": 99}) == Trained()
    filled = with_whole_batch(preset("embeddings: true", model=str(path)))
    assert filled.args == {"embeddings": True, **both(8192)}
    chat = preset("c: 8192", model=str(path))
    assert with_whole_batch(chat) is chat
    absent = preset("embeddings: true, c: 2048", model=str(tmp_path / "none.gguf"))
    assert with_whole_batch(absent).args["ubatch-size"] == 2048


def test_which_presets_embed() -> None:
    assert embeds(preset("embeddings: true"))
    assert not embeds(preset("embeddings: false"))
    assert not splits(preset("embeddings: true"), Trained())


@pytest.mark.parametrize("more", ["", "defaults: {args: {c: 2048}}\n"])
def test_a_file_of_an_earlier_release_keeps_its_batch(more: str) -> None:
    old = preset("embeddings: true, c: 2048", top=f"compat: 0.1\n{more}")
    assert whole_batch(old, BERT) == {}
    said = preset("embeddings: true", top="compat: 0.1\ndefaults: {args: {ub: 1024}}\n")
    assert said.args["ubatch-size"] == 1024


@pytest.mark.parametrize(
    ("args", "kind"),
    [
        ("embeddings: true", "embedding"),
        ("embedding: on", "embedding"),
        ("embeddings: off", "chat"),
        ("rerank: enabled", "rerank"),
        ("reranking: false", "chat"),
        ("pooling: rank", "rerank"),
    ],
)
def test_a_switch_may_be_a_word(args: str, kind: str) -> None:
    assert kind_of(preset(args)) == kind
