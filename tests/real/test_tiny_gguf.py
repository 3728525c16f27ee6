"""Tiny models in a real llama-server: they say their sentence, whatever they are asked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import gguf
import httpx
import pytest

from llamaswap_py.demo.tiny_gguf import sentence_tokens, write_tiny_model
from llamaswap_py.errors import LswapError
from tests.real.bare import serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import TinyModel

SENTENCE = "Hello, I am alpha; the cat and the dog and the I I I bird say: grüße dich, 你好 a b."


@pytest.fixture(scope="module")
def alpha(llama_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    path = tmp_path_factory.mktemp("tiny") / "alpha.gguf"
    write_tiny_model(path, SENTENCE, name="alpha")
    with serve(llama_server, path) as client:
        yield client


def complete(client: httpx.Client, **body: object) -> dict[str, object]:
    answer = client.post("/completion", json=body)
    assert answer.status_code == 200, answer.text
    result: dict[str, object] = answer.json()
    return result


@pytest.mark.parametrize("temperature", [0, 0.8, 2])
@pytest.mark.parametrize(
    "prompt",
    ["", "x", "Hello, I am", " and the", "say: a", "日本 the cat and the", "</s>", SENTENCE],
)
def test_any_prompt_yields_the_sentence(
    alpha: httpx.Client, prompt: str, temperature: float
) -> None:
    result = complete(alpha, prompt=prompt, temperature=temperature)
    assert result["content"] == SENTENCE
    assert result["tokens_predicted"] == sentence_tokens(SENTENCE) + 1  # and the end token
    assert result["stop_type"] == "eos"


def test_chat(alpha: httpx.Client) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    answer = alpha.post("/v1/chat/completions", json={"messages": messages}).json()
    assert answer["choices"][0]["message"]["content"] == SENTENCE
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_chat_streams_a_word_at_a_time(alpha: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    pieces = []
    with alpha.stream("POST", "/v1/chat/completions", json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                delta = json.loads(line[6:])["choices"][0]["delta"]
                pieces.append(delta.get("content") or "")
    assert "".join(pieces) == SENTENCE
    assert " alpha;" in pieces


def test_ignore_eos_starts_again(alpha: httpx.Client) -> None:
    tokens = sentence_tokens(SENTENCE)
    result = complete(alpha, prompt="x", ignore_eos=True, n_predict=3 * tokens)
    assert result["content"] == SENTENCE * 3


def test_a_loop_never_ends(llama_server: str, tiny_model: TinyModel) -> None:
    model = tiny_model("loop", "tick tock ", loop=True)
    with serve(llama_server, model, "--context-shift", "-np", "1") as client:
        result = complete(client, prompt="x", n_predict=1500)
    assert result["content"] == "tick tock " * 500
    assert result["tokens_predicted"] == 1500


def test_a_long_sentence(llama_server: str, tiny_model: TinyModel) -> None:
    sentence = " ".join(f"word{number}" for number in range(2000))
    model = tiny_model("long", sentence, width=128)
    with serve(llama_server, model, "-c", "4096", "-np", "1") as client:
        assert complete(client, prompt="x")["content"] == sentence


def test_slow_knobs_keep_the_sentence(llama_server: str, tiny_model: TinyModel) -> None:
    deep = tiny_model("deep", "deep is the sea", layers=64, feed_forward=128)
    padded = tiny_model("padded", "heavy is the crown", pad_bytes=8 << 20)
    assert padded.stat().st_size > 8 << 20
    assert padded.stat().st_blocks * 512 < 1 << 20
    for model, sentence in ((deep, "deep is the sea"), (padded, "heavy is the crown")):
        with serve(llama_server, model) as client:
            assert complete(client, prompt="x")["content"] == sentence


def test_files_are_small_and_always_the_same(tmp_path: Path) -> None:
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    for path in (one, two):
        write_tiny_model(path, SENTENCE)
    assert one.read_bytes() == two.read_bytes()
    assert one.stat().st_size < 256 << 10
    assert sorted(tmp_path.iterdir()) == [one, two]


@pytest.mark.parametrize("quantized", [False, True])
def test_llama_cpps_own_library_reads_the_file(tmp_path: Path, quantized: bool) -> None:
    path = tmp_path / "one.gguf"
    write_tiny_model(path, "some tiny one", name="one", pad_bytes=1 << 20, quantized=quantized)
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.name"].contents() == "one"
    assert reader.fields["llama.context_length"].contents() == 4096
    assert reader.fields["llama.attention.layer_norm_rms_epsilon"].contents() == pytest.approx(1e-6)
    assert reader.fields["tokenizer.ggml.add_bos_token"].contents() is True
    assert reader.fields["tokenizer.ggml.tokens"].contents()[-3:] == ["some", " tiny", " one"]
    assert set(reader.fields["tokenizer.ggml.token_type"].contents()) == {1, 2, 3, 6}
    tensors = {one.name: one for one in reader.tensors}
    words = 3 + 256 + 3
    assert tensors["output.weight"].shape.tolist() == [64, words]
    assert tensors["token_embd.weight"].data.shape == (words, 64)
    assert set(tensors["token_embd.weight"].data.flatten().tolist()) == {1.0, -1.0}
    padded = tensors["blk.0.ffn_up_exps.weight"]
    assert padded.tensor_type.name == ("Q4_0" if quantized else "F16")
    assert len(padded.shape) == 3
    assert not padded.data.any()


@pytest.mark.parametrize(
    ("sentence", "knobs", "message"),
    [
        (" ", {}, "needs a sentence"),
        ("x", {"layers": 513}, "513 layers"),
        ("x", {"width": 40}, "width=40"),
        (" ".join(f"word{i}" for i in range(60000)), {"width": 32}, "too many for a model 32 wide"),
    ],
)
def test_what_cannot_be_written_is_refused(
    tmp_path: Path, sentence: str, knobs: dict[str, int], message: str
) -> None:
    with pytest.raises(LswapError, match=message):
        write_tiny_model(tmp_path / "x.gguf", sentence, **knobs)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
