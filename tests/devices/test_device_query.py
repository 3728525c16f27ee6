"""Asking an engine for its devices: what a run may do wrong, and how that is named."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

import pytest

from llamaswap_py.errors import EngineError
from llamaswap_py.llamacpp.device_query import query_devices
from llamaswap_py.llamacpp.probe import probe_engine

LISTED = "Available devices:\\n  Vulkan0: llvmpipe (LLVM 15) (2048 MiB, 2048 MiB free)\\n"


def engine(folder: Path, script: str) -> Path:
    path = folder / "llama-server"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_it_is_run_without_a_debugger_and_in_the_given_environment(tmp_path: Path) -> None:
    told = tmp_path / "told"
    script = f'echo "$GGML_NO_BACKTRACE $SHOWN $LLAMA_ARG_DEVICE $@" > {told}; printf "{LISTED}"'
    environment = {**os.environ, "SHOWN": "yes", "LLAMA_ARG_DEVICE": "Vulkan7"}
    (device,) = query_devices(engine(tmp_path, script), environment)
    assert (device.name, device.description) == ("Vulkan0", "llvmpipe (LLVM 15)")
    assert told.read_text() == "1 yes  --list-devices\n"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo Invalid Vulkan device index >&2; exit 134", "status 134: Invalid Vulkan device"),
        ("echo something else", "status 0: something else"),
        ("exit 3", "status 3: no output"),
        ("sleep 60", "did not end within 0.5 s"),
    ],
)
def test_a_run_that_fails_is_named(tmp_path: Path, script: str, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        query_devices(engine(tmp_path, script), os.environ, timeout=0.5)


@pytest.mark.parametrize("stream", ["1", "2"])
def test_a_run_that_prints_without_end_is_ended(tmp_path: Path, stream: str) -> None:
    binary = engine(tmp_path, f"exec yes >&{stream}")
    with pytest.raises(EngineError, match=r"--list-devices prints more than 8 MiB"):
        query_devices(binary, os.environ, timeout=60)
    with pytest.raises(EngineError, match=r"--version prints more than 8 MiB"):
        probe_engine(binary, "test", cached=False)


def test_the_reason_for_an_empty_list_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    empty = 'echo "Available devices:"; echo "  (none)"'
    with caplog.at_level(logging.INFO):
        assert query_devices(engine(tmp_path, empty), os.environ) == ()
        assert caplog.messages == []
        said = f"{empty}; echo Invalid device index 5 >&2"
        assert query_devices(engine(tmp_path, said), os.environ) == ()
    assert [one.rpartition(": ")[2] for one in caplog.messages] == ["Invalid device index 5"]


def test_a_file_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be run"):
        query_devices(tmp_path / "missing", os.environ)


def test_endpoints_are_tried_before_the_engine_sees_them(tmp_path: Path) -> None:
    told = tmp_path / "told"
    binary = engine(tmp_path, f'echo "$@" >> {told}; printf "{LISTED}"')
    with socket.create_server(("127.0.0.1", 0)) as lender:
        there = f"127.0.0.1:{lender.getsockname()[1]}"
        query_devices(binary, os.environ, [there])
    with pytest.raises(EngineError, match=f"RPC server {there} does not answer"):
        query_devices(binary, os.environ, [there])
    assert told.read_text() == f"--rpc {there} --list-devices\n"
