"""A llama-server without lswap: what the engine does by itself."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


@contextmanager
def serve(
    llama_server: str,
    model: Path,
    *args: str,
    env: Mapping[str, str] | None = None,
    log: list[str] | None = None,
) -> Iterator[httpx.Client]:
    """Run it with `model` and more of an environment; yield a client of it once it listens.

    What it says until then goes into `log`.
    """
    command = [llama_server, "-m", str(model), "--host", "127.0.0.1", "--port", "0", "--offline"]
    with subprocess.Popen(
        [*command, "-t", "1", "-c", "512", "--fit", "off", *args],
        env={**os.environ, **(env or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            log = [] if log is None else log
            for line in process.stderr:
                log.append(line)
                if "listening on http" in line:
                    url = line.split("listening on ")[1].split()[0]
                    with httpx.Client(base_url=url, timeout=90, trust_env=False) as client:
                        yield client
                    return
            pytest.fail("llama-server ended: " + "".join(log))
        finally:
            process.kill()
