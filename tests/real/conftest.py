"""The fixtures of the end-to-end tests."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests import device_engine
from tests.real.device_lab import NO_DRIVER, RpcServer, compile_shaders, has_vulkan, rpc_server
from tests.real.lab import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import TinyModel

# It needs a container engine, and runs only where that is asked for.
collect_ignore = [] if os.environ.get("LSWAP_TEST_IMAGE") else ["test_podman.py"]


@pytest.fixture
def lab(short_dir: Path, llama_server: str, tiny_model: TinyModel) -> Lab:
    """A folder of its own, the real llama-server, and tiny models."""
    return Lab(short_dir, llama_server, tiny_model)


@pytest.fixture(scope="session")
def rpc_engine() -> str:
    """The path of a llama-server that can use the devices of `rpc_servers`, and has Vulkan, too."""
    return str(device_engine.program("llama-server"))


@pytest.fixture(scope="session")
def vulkan_engine(rpc_engine: str) -> str:
    """The same on a machine with a Vulkan driver: run it with ON_SOFTWARE, and it has Vulkan0."""
    if not has_vulkan(rpc_engine):
        pytest.skip(NO_DRIVER)
    compile_shaders(rpc_engine)
    return rpc_engine


@pytest.fixture
def vulkan_lab(short_dir: Path, vulkan_engine: str, tiny_model: TinyModel) -> Lab:
    """A lab whose engine has Vulkan and RPC; give `env=ON_SOFTWARE` to what it starts."""
    return Lab(short_dir, vulkan_engine, tiny_model)


@pytest.fixture
def rpc_servers(short_dir: Path) -> Iterator[tuple[RpcServer, RpcServer]]:
    """Two ggml-rpc-servers of this host: RPC0 and RPC1 to an engine that gets both endpoints."""
    program = device_engine.program("ggml-rpc-server")
    with ExitStack() as stack:
        first, second = (stack.enter_context(rpc_server(program, short_dir)) for _ in range(2))
        yield first, second
