"""A real llama-server with devices that are not the host: Vulkan on a software driver, and RPC.

What the engine itself does with them, before lswap takes part; each test takes seconds.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llamaswap_py.llamacpp.binaries import VARIABLE, find_engines
from tests.real.answers import PATIENCE
from tests.real.bare import serve
from tests.real.device_lab import ON_SOFTWARE, PADDING, RpcServer, list_devices

if TYPE_CHECKING:
    import httpx

    from tests.conftest import TinyModel
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio

RpcPair = tuple[RpcServer, RpcServer]

SENTENCE = "alpha says hello from a device"


@pytest.fixture(scope="module")
def padded(tiny_model: TinyModel) -> Path:
    """A model whose layers are large enough for dry runs to count them."""
    return tiny_model("padded-for-a-device", SENTENCE, layers=8, pad_bytes=PADDING)


def says(client: httpx.Client) -> str:
    answer = client.post("/completion", json={"prompt": "Who are you?"})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["content"])


def weights(log: list[str]) -> set[str]:
    """Return the devices that got a MiB of the weights or more, by what llama-server said."""
    found = re.findall(r": +(\S+) model buffer size = +(\d+)\.\d+ MiB", "".join(log))
    return {name.removesuffix("_Mapped") for name, size in found if int(size) >= 1}


def dry_run(engine: str, model: Path, *args: str, **env: str) -> dict[str, int]:
    """Return how many MiB of the weights llama-fit-params counts on each device."""
    program = Path(engine).with_name("llama-fit-params")
    done = subprocess.run(
        [str(program), "--fit-print", "on", "-m", str(model), "-c", "512", *args],
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"^(\w+) (\d+) \d+ \d+ *$", done.stdout, re.MULTILINE)
    return {name: int(size) for name, size in lines}


def test_the_engine_names_its_device(vulkan_engine: str) -> None:
    (line,) = list_devices(vulkan_engine, env=ON_SOFTWARE)
    assert re.fullmatch(r"Vulkan0: .*llvmpipe.* \(\d+ MiB, \d+ MiB free\)", line)


def test_without_the_variable_the_software_driver_is_left_out(vulkan_engine: str) -> None:
    assert list_devices(vulkan_engine, env={"GGML_VK_VISIBLE_DEVICES": ""}) == []


def test_no_other_test_gets_this_engine(rpc_engine: str) -> None:
    assert Path(rpc_engine).is_file()
    assert Path(rpc_engine) not in [engine.path for engine in find_engines()]


async def test_lswap_lists_and_examines_it(vulkan_lab: Lab) -> None:
    named = {VARIABLE: vulkan_lab.engine, **ON_SOFTWARE}
    first = (await vulkan_lab.cli("engine", "list", "--json", **named)).json()[0]
    assert (first["path"], first["backend"]) == (vulkan_lab.engine, "vulkan")
    assert first["fit_params"] == str(Path(vulkan_lab.engine).with_name("llama-fit-params"))
    checks = (await vulkan_lab.cli("engine", "doctor", "--json", **named)).json()["checks"]
    (engine,) = [check for check in checks if check["name"] == vulkan_lab.engine]
    assert engine["state"] == "ok"
    assert f"b{first['build']}-vulkan" in engine["detail"]


@pytest.mark.parametrize(
    ("args", "lies_on"),
    [
        (("-ngl", "99", "--device", "Vulkan0"), {"Vulkan0"}),
        (("-ngl", "4", "--device", "Vulkan0"), {"Vulkan0", "CPU"}),
        (("-ngl", "99", "--device", "none"), {"CPU"}),
    ],
    ids=["device", "split", "host"],
)
def test_a_model_on_the_device_the_host_or_both_says_its_sentence(
    vulkan_engine: str, padded: Path, args: tuple[str, ...], lies_on: set[str]
) -> None:
    log: list[str] = []
    with serve(vulkan_engine, padded, "-lv", "4", *args, env=ON_SOFTWARE, log=log) as client:
        assert says(client) == SENTENCE
    assert weights(log) == lies_on


async def test_lswap_counts_what_a_declared_device_holds(vulkan_lab: Lab, padded: Path) -> None:
    models = {"alpha": {"model": str(padded), "device": "Vulkan0", "args": {"n-gpu-layers": 99}}}
    memory = {"devices": {"host": "2GiB", "Vulkan0": "2GiB"}}
    async with vulkan_lab.lswap(models, env=ON_SOFTWARE, memory=memory) as lswap:
        assert await lswap.chat("alpha") == SENTENCE
        held = {device.id: device.used for device in (await lswap.state()).devices}
        assert held["Vulkan0"] >= PADDING


def test_a_dry_run_counts_each_device(vulkan_engine: str, padded: Path) -> None:
    def dry(*args: str) -> dict[str, int]:
        return dry_run(vulkan_engine, padded, *args, **ON_SOFTWARE)

    whole = dry("-ngl", "99", "--device", "Vulkan0")
    assert whole.keys() == {"Vulkan0", "Host"}
    assert whole["Vulkan0"] >= 64 > whole["Host"]
    half = dry("-ngl", "4", "--device", "Vulkan0")
    assert 0 < half["Vulkan0"] < whole["Vulkan0"]
    assert half["Vulkan0"] + half["Host"] == pytest.approx(whole["Vulkan0"] + whole["Host"], abs=2)
    assert dry("-ngl", "99", "--device", "none").keys() == {"Host"}


def test_two_servers_lend_two_devices(rpc_engine: str, rpc_servers: RpcPair) -> None:
    endpoints = [server.endpoint for server in rpc_servers]
    lines = list_devices(rpc_engine, "--rpc", ",".join(endpoints))
    names = [re.fullmatch(r"(RPC\d): (\S+) \(\d+ MiB, \d+ MiB free\)", line) for line in lines]
    assert [name and name.groups() for name in names] == [
        ("RPC0", endpoints[0]),
        ("RPC1", endpoints[1]),
    ]


def test_a_dry_run_counts_each_lent_device(
    rpc_engine: str, rpc_servers: RpcPair, padded: Path
) -> None:
    lent = ("--rpc", ",".join(server.endpoint for server in rpc_servers))
    both = dry_run(rpc_engine, padded, "-ngl", "99", *lent)
    assert both.keys() == {"RPC0", "RPC1", "Host"}
    assert both["RPC0"] > 0
    assert both["RPC1"] > 0
    assert both["RPC0"] + both["RPC1"] >= 64 > both["Host"]
    one = dry_run(rpc_engine, padded, "-ngl", "99", *lent, "--device", "RPC1")
    assert one.keys() == {"RPC1", "Host"}
    assert one["RPC1"] >= 64


def test_a_model_split_over_two_lent_devices_says_its_sentence(
    rpc_engine: str, rpc_servers: RpcPair, padded: Path
) -> None:
    lent = ("--rpc", ",".join(server.endpoint for server in rpc_servers))
    log: list[str] = []
    with serve(rpc_engine, padded, "-lv", "4", "-ngl", "99", *lent, log=log) as client:
        assert says(client) == SENTENCE
    # The number in a buffer's name counts the devices of one server.
    assert weights(log) == {f"RPC0[{server.endpoint}]" for server in rpc_servers}


def test_an_endpoint_that_is_gone_ends_even_a_list_of_devices(
    rpc_engine: str, rpc_servers: RpcPair
) -> None:
    first, second = rpc_servers
    second.kill()
    with pytest.raises(AssertionError, match=re.escape(second.endpoint)):
        list_devices(rpc_engine, "--rpc", f"{first.endpoint},{second.endpoint}")
