"""Why a child ended: texts of b11434, taken from runs of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaswap_py.llamacpp.failures import FailureKind, classify

MISSING = (
    "common_fit_params: encountered an error while trying to fit params: failed to load model",
    "gguf_init_from_file: failed to open GGUF file 'nope.gguf' (No such file or directory)",
    "llama_model_load: error loading model: llama_model_loader: failed to load model from nope",
    "srv    load_model: failed to load model, 'nope.gguf'",
    "srv  llama_server: exiting due to model loading error",
)
SHORT = (
    (
        "llama_model_load: error loading model: tensor 'output.weight' data is not within the file "
        "bounds, model is corrupted or incomplete"
    ),
    "cmn  common_init_: failed to load model 't.gguf'",
)
FOREIGN = (
    "gguf_init_from_reader: invalid magic characters: 'hell', expected 'GGUF'",
    "srv    load_model: failed to load model, 'f.gguf'",
)
PLAIN = (
    "0.00.004.576 E gguf_init_from_reader: failed to read header",
    "0.00.004.900 E srv    load_model: failed to load model, 'tt.gguf'",
)
BIND = (
    "srv         start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 22222",
    "srv  llama_server: exiting due to HTTP server error",
)


@pytest.mark.parametrize(
    ("tail", "kind", "summary"),
    [
        (
            MISSING,
            FailureKind.FILE_MISSING,
            "cannot open nope.gguf: no such file or directory",
        ),
        (
            SHORT,
            FailureKind.FILE_CORRUPT,
            "the file is cut short: tensor 'output.weight' lies beyond its end (t.gguf)",
        ),
        (
            FOREIGN,
            FailureKind.FILE_CORRUPT,
            "this is not a GGUF file: it does not begin with GGUF (f.gguf)",
        ),
        (
            PLAIN,
            FailureKind.FILE_CORRUPT,
            "the file is damaged or cut short: its header cannot be read (tt.gguf)",
        ),
        (
            ("llama_model_load: error loading model: unknown model architecture: 'xlama'",),
            FailureKind.UNKNOWN_ARCHITECTURE,
            "this llama-server does not know the model architecture 'xlama'",
        ),
        (
            ("error: invalid argument: --bogus-flag",),
            FailureKind.BAD_ARGUMENT,
            "llama-server does not know the argument --bogus-flag",
        ),
        (
            ('error while handling argument "-c": stoi', "", "usage:"),
            FailureKind.BAD_ARGUMENT,
            "bad value for argument -c: not a number",
        ),
        (
            ('error while handling argument "--chat-template-file": error: failed to open file',),
            FailureKind.BAD_ARGUMENT,
            "bad value for argument --chat-template-file: error: failed to open file",
        ),
        (BIND, FailureKind.PORT, "llama-server could not listen on 127.0.0.1"),
        (
            ("ggml_aligned_malloc: insufficient memory (attempted to allocate 99 MB)",),
            FailureKind.OUT_OF_MEMORY,
            "not enough memory on the host",
        ),
        (
            ("llama_kv_cache: failed to allocate buffer for kv cache",),
            FailureKind.OUT_OF_MEMORY,
            "not enough memory: could not allocate the buffer for kv cache",
        ),
        (
            ("ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory",),
            FailureKind.OUT_OF_MEMORY,
            "not enough memory on the graphics card",
        ),
        (
            ("mtmd_init_from_file: error: Failed to load CLIP model from nope.gguf",),
            FailureKind.FILE_MISSING,
            "cannot load the projector file nope.gguf",
        ),
        (
            ("something else failed here",),
            FailureKind.EXITED,
            "llama-server ended with exit code 1: something else failed here",
        ),
        ((), FailureKind.EXITED, "llama-server ended with exit code 1"),
        (
            ("x: error while loading shared libraries: libcudart.so.12: cannot open shared",),
            FailureKind.ENGINE,
            "llama-server needs the library libcudart.so.12, which is not here",
        ),
    ],
)
def test_the_most_telling_line_in_plain_words(
    tail: tuple[str, ...], kind: FailureKind, summary: str
) -> None:
    failure = classify(1, None, tail)
    assert failure is not None
    assert (failure.kind, failure.summary) == (kind, summary)


def test_signals() -> None:
    crashed = classify(None, 11, ("GGML_ASSERT(x) failed",))
    assert crashed is not None
    assert crashed.kind is FailureKind.CRASHED
    assert "SIGSEGV" in crashed.summary
    assert "GGML_ASSERT(x) failed" in crashed.summary
    killed = classify(None, 9, ())
    assert killed is not None
    assert killed.kind is FailureKind.KILLED
    memory = classify(None, 6, ("CUDA error: out of memory",))
    assert memory is not None
    assert memory.kind is FailureKind.OUT_OF_MEMORY


def test_an_asked_end_is_no_failure_and_a_stalled_one_is_a_timeout() -> None:
    assert classify(None, 9, (), asked=True) is None
    assert classify(0, None, MISSING, asked=True) is None
    failure = classify(None, 9, ("srv  load_model: loading model 'x'",), asked=True, stalled=True)
    assert failure is not None
    assert failure.kind is FailureKind.TIMEOUT
    assert failure.summary == "loading stalled; it last said: loading model 'x'"


def test_exit_code_127_is_the_engine() -> None:
    failure = classify(127, None, ())
    assert failure is not None
    assert failure.kind is FailureKind.ENGINE


@given(st.integers(0, 255) | st.none(), st.integers(1, 64) | st.none(), st.lists(st.text()))
def test_any_end_has_a_one_line_summary(
    code: int | None, signal: int | None, tail: list[str]
) -> None:
    failure = classify(code, signal, tail)
    assert failure is not None
    assert failure.summary


ABORTED_CONNECT = (
    "/src/ggml/src/ggml-rpc/ggml-rpc.cpp:547: Failed to connect to 10.0.0.7:50052",
    "",
)
RESPONSE = "Remote RPC server crashed or returned malformed response"
ABORTED_USE = (f"/src/ggml/src/ggml-rpc/ggml-rpc.cpp:566: {RESPONSE}",)


@pytest.mark.parametrize(
    ("tail", "servers", "summary"),
    [
        (
            ABORTED_CONNECT,
            ("10.0.0.7:5005", "10.0.0.7:50052"),
            "the RPC server 10.0.0.7:50052 is gone: Failed to connect to 10.0.0.7:50052",
        ),
        (
            ABORTED_USE,
            ("gpubox:50052",),
            f"the RPC server gpubox:50052 is gone: {RESPONSE}",
        ),
        (
            ABORTED_USE,
            ("a:1", "b:2"),
            f"one of the RPC servers a:1 and b:2 is gone: {RESPONSE}",
        ),
    ],
)
@pytest.mark.parametrize(("code", "signal"), [(None, 6), (134, None)])
def test_a_lost_rpc_server_is_named(
    code: int | None,
    signal: int | None,
    tail: tuple[str, ...],
    servers: tuple[str, ...],
    summary: str,
) -> None:
    failure = classify(code, signal, (*tail, "E srv: failed to load model"), rpc=servers)
    assert failure is not None
    assert (failure.kind, failure.summary) == (FailureKind.RPC_LOST, summary)


def test_what_a_prompt_says_of_rpc_is_no_lost_server() -> None:
    """Only an abort of a model that has RPC servers counts: prompts are in the output, too."""
    for code, signal, servers in ((1, None, ("a:1",)), (None, 6, ()), (None, 11, ("a:1",))):
        failure = classify(code, signal, ABORTED_USE, rpc=servers)
        assert failure is not None
        assert failure.kind is not FailureKind.RPC_LOST
