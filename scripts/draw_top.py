"""Make docs/top.svg: `lswap top` as it looks on a real lswap under load.

    python scripts/draw_top.py docs/top.svg

Everything is real but the size of the models: llama-servers run, load, are evicted and answer; the
models are tiny ones that say a sentence, under the names of usual ones. Needs a llama-server
(`lswap engine build`), `pip install .`, and 2 GB in the temporary directory.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import yaml

from llamaswap_py.client.remote import AsyncRemote
from llamaswap_py.demo.tiny_gguf import write_tiny_model
from llamaswap_py.tui.app import Top
from llamaswap_py.tui.history import History

SIZE = (110, 32)
QWEN, CODER, GEMMA = "Qwen3-32B-Q4_K_M", "Qwen3-Coder-30B-Q4_K_M", "gemma-3-27b-it-Q5_K_M"
EMBED, MISTRAL = "nomic-embed-text-v1.5", "Mistral-Small-24B-Q6_K"


def write_config(folder: Path) -> Path:
    """Write the models and a file that has memory for some of them; return the file."""
    endless = {"args": {"context-shift": True, "warmup": False}, "concurrency": 2}
    models = {
        QWEN: {"memory": {"host": "80MiB"}, **endless},
        CODER: {"memory": {"host": "60MiB"}, "ttl": "15m", **endless},
        EMBED: {"memory": {"host": "10MiB"}, "pin": True},
        GEMMA: {"memory": {"host": "70MiB"}, "ttl": "5m", "args": {"load-mode": "none"}},
        MISTRAL: {"memory": {"host": "60MiB"}, "ttl": "5m"},
        "Llama-3.3-70B-IQ3_M": {"memory": {"host": "150MiB"}},
        "gpt-oss-20b-mxfp4": {"memory": {"host": "40MiB"}},
    }
    for name, preset in models.items():
        path = folder / f"{name}.gguf"
        knobs = {"loop": True, "layers": 256} if "concurrency" in preset else {"layers": 4}
        knobs |= {"pad_bytes": 1800 << 20} if name == GEMMA else {}
        write_tiny_model(path, f"{name} says hello from far away ", **knobs)
        preset["model"] = str(path)
    config = {
        "listen": f"unix:{folder}/l.sock",
        "memory": {"devices": {"host": "256MiB"}, "margin": "16MiB", "cache_ram": "0MiB"},
        "defaults": {"args": {"ctx-size": 512, "parallel": 2, "threads": 1}},
        "models": models,
    }
    file = folder / "lswap" / "lswap.yaml"  # its title has the folder
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return file


def main(target: Path) -> None:
    """Run it all and write the picture."""
    with tempfile.TemporaryDirectory(prefix="lswap-") as name:
        folder = Path(name)
        config = write_config(folder)
        words = [sys.executable, "-m", "llamaswap_py", "up", str(config), "--name", "home"]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL) as server:
            try:
                picture = asyncio.run(draw(f"{folder}/l.sock"))
            finally:
                server.terminate()
    target.write_text(picture, encoding="utf-8")


async def draw(socket: str) -> str:
    """Have requests answered, then look at a load that is on its way; return the picture."""
    transport = httpx.AsyncHTTPTransport(uds=socket)
    async with AsyncExitStack() as stack:
        client = httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60)
        await stack.enter_async_context(client)
        remote = await stack.enter_async_context(AsyncRemote(f"unix:{socket}"))
        app = Top(remote)
        pilot = await stack.enter_async_context(app.run_test(size=SIZE))
        await until(lambda: app.history.snapshot is not None)
        for model in (MISTRAL, EMBED):
            await client.post("/v1/chat/completions", json=body(model, max_tokens=9))
        for model, count in ((QWEN, 3), (CODER, 1)):
            for _ in range(count):
                await stack.enter_async_context(asking(client, model))
        await until(lambda: app.history.rates.of(CODER) > 0)
        await asyncio.sleep(6)  # for figures that mean something
        await client.post(f"/lswap/v1/models/{GEMMA}/load", params={"wait": "false"})
        await until(lambda: loaded_part(app.history, GEMMA) > 0.4)
        await pilot.press("down", "down")
        await pilot.pause()
        picture = app.export_screenshot(title="lswap top")
        return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)  # fetches nothing


@asynccontextmanager
async def asking(client: httpx.AsyncClient, model: str) -> AsyncIterator[None]:
    """Keep a streamed answer running, or waiting, meanwhile."""

    async def read() -> None:
        wanted = body(model, stream=True, max_tokens=1_000_000)
        async with client.stream("POST", "/v1/chat/completions", json=wanted) as answer:
            async for _ in answer.aiter_raw():
                pass

    reading = asyncio.create_task(read())
    try:
        await asyncio.sleep(0.5)
        yield
    finally:
        reading.cancel()
        await asyncio.wait([reading])


def body(model: str, **more: object) -> dict[str, object]:
    """Return a chat request."""
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}


def loaded_part(history: History, model: str) -> float:
    """Return how much of a model is loaded."""
    instances = history.snapshot.instances if history.snapshot else ()
    return max((one.progress or 0.0 for one in instances if one.preset == model), default=0.0)


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something to be seen; raises TimeoutError after a minute."""
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 (what is waited for is another process)
            await asyncio.sleep(0.05)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/top.svg"))
