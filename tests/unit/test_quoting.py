"""What llama-server's log says of itself is shown; what may quote a client is not."""

from __future__ import annotations

import pytest

from llamaswap_py.llamacpp.quoting import says_figures, without_quotes

# As b11434 writes them: the start of one, two requests, and what requests can make it write.
LOADING = [
    "srv  llama_server: initializing ...",
    "srv    load_model: loading model '/models/My alpha.gguf'",
    "llama_model_loader: - kv   2: general.name str = My alpha",
    "srv  llama_server: model loaded",
    "srv  llama_server: listening on unix:///run/lswap/1.sock",
]
FIGURES = [
    "srv    operator(): child server monitoring thread started, waiting for EOF on stdin...",
    "slot get_availabl: id  1 | task -1 | selected slot by LRU, t_last = -1",
    "slot launch_slot_: id  1 | task 0 | processing task, is_child = 0",
    "slot print_timing: id  1 | task 0 | prompt eval time = 0.9 ms / 40 tokens (0.02 ms per token)",
    "slot      release: id  1 | task 0 | stop processing: n_tokens = 52, truncated = 0",
    "0.13.002.114 I slot      release: id  1 | task 0 | stop processing: n_tokens = 52",
    "srv          stop: cancel task, id_task = 14",
    "ggml_cuda_init: found 1 CUDA devices (Total VRAM: 24217 MiB):",
    "  Device 0: NVIDIA RTX 4090, compute capability 8.9, VMM: yes, VRAM: 24217 MiB",
    "ggml_cuda: cudaMalloc failed: out of memory",
]
QUOTES = [
    "parse: error parsing grammar: expecting ::= at Sentinel",
    "Sentinel x",
    "0123 4567 8901 2345",
    'srv    operator(): got exception: {"error":{"message":"but got: Sentinel"}}',
    "slot update_slots: id  0 | task 3 | Sentinel",
    "slot update_slots: id  0 | task 3 | 4111 1111 1111",
    "0.13.002.114 W srv    send_error: task id = 14, error: Sentinel",
    "request: POST /v1/chat/completions Sentinel",
]


def test_what_it_writes_while_it_loads_is_shown() -> None:
    shown, loaded = without_quotes(LOADING, first=False)
    assert shown == loaded == LOADING


def test_figures_are_shown_and_quotations_are_not() -> None:
    shown, loaded = without_quotes([*LOADING, *FIGURES, *QUOTES, FIGURES[0]], first=False)
    assert loaded == LOADING
    assert shown == [
        *LOADING,
        *FIGURES,
        "[3 lines left out]",
        "srv    operator(): [56 characters left out]",
        "slot update_slots: id  0 | task 3 | [9 characters left out]",
        "slot update_slots: id  0 | task 3 | [15 characters left out]",
        "0.13.002.114 W srv    send_error: [29 characters left out]",
        "[1 line left out]",
        FIGURES[0],
    ]


def test_a_log_whose_beginning_is_not_there_is_not_trusted() -> None:
    shown, loaded = without_quotes(QUOTES[:3], first=False)
    assert (shown, loaded) == (["[3 lines left out]"], [])
    words = ['error while handling argument "--rope-scale": stoi']
    assert without_quotes(words, first=True) == (words, words)
    assert without_quotes(words, first=False)[0] == ["[1 line left out]"]


def test_a_beginning_is_not_trusted_where_one_of_them_listened() -> None:
    """The first may have been told to write little: then its requests follow at once."""
    shown, _ = without_quotes([*QUOTES[:1], *LOADING], first=True)
    assert shown == ["[1 line left out]", *LOADING]


def test_the_next_one_that_starts_is_shown_again() -> None:
    shown, _ = without_quotes([*QUOTES[:1], *LOADING, *QUOTES[:1], *LOADING[:2]], first=False)
    assert shown == ["[1 line left out]", *LOADING, "[1 line left out]", *LOADING[:2]]


@pytest.mark.parametrize(
    "end",
    [
        "main: server is listening on http://127.0.0.1:8080 - starting the main loop",
        "0.00.013.109 I srv  llama_server: listening on http://127.0.0.1:8080",
        "server is listening on unix:///run/lswap/1.sock",
    ],
)
def test_older_builds_end_their_load_in_other_words(end: str) -> None:
    shown, _ = without_quotes([LOADING[0], "load_tensors: x", end, "Sentinel"], first=False)
    assert shown == [LOADING[0], "load_tensors: x", end, "[1 line left out]"]


def test_only_plain_words_of_llama_server_are_figures() -> None:
    assert says_figures("failed to allocate memory, size = 3")
    assert not says_figures("the Sentinel")
    assert not says_figures("größe = 3")
