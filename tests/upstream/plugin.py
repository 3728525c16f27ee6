"""A pytest plugin for llama.cpp's server tests: stand-ins for downloads, a limit, a record.

It runs in an environment of its own, with what those tests need, and imports nothing of lswap.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

_RECORD: Final = "UPSTREAM_RECORD"
_LOADED: Final = 20
"""Seconds that a tiny model may take to load."""
_UNAVAILABLE: Final = 503
_LIMIT: Final = int(os.environ.get("UPSTREAM_LIMIT", "60"))


def pytest_configure() -> None:
    """Have the tests use the tiny models; `utils` is the tests' own module."""
    utils: Any = importlib.import_module("utils")
    preset = utils.ServerPreset
    preset.load_all = staticmethod(lambda: None)  # everything is in the cache
    for name in ("bert_bge_small", "bert_bge_small_with_fa"):
        setattr(preset, name, staticmethod(_pooling(getattr(preset, name))))
    utils.download_file = _stand_in
    if os.environ.get("UPSTREAM_NAMED"):
        server: Any = utils.ServerProcess
        if hasattr(server, "make_url"):
            server.make_url = _naming(server.make_url)
        else:  # older tests (b9840) make the URL within each of these
            for name in ("make_request", "make_stream_request"):
                setattr(server, name, _naming_asked(getattr(server, name)))
        server.start = _waiting(server.start)


def _naming(make_url: Any) -> Any:
    """Have reads name their model, as every client of several models does."""

    def made(server: Any, path: str, host: str | None = None) -> Any:
        return make_url(server, _named(server, path), host)

    return made


def _naming_asked(ask: Any) -> Any:
    def asked(server: Any, method: str, path: str, *args: Any, **keys: Any) -> Any:
        return ask(server, method, _named(server, path), *args, **keys)

    return asked


def _named(server: Any, path: str) -> str:
    if path in ("/props", "/metrics", "/slots") and server.model_alias:
        return f"{path}?model={server.model_alias.split(',')[0]}"
    return path


def _waiting(start: Any) -> Any:
    """Have a start end when the model is loaded: lswap is healthy before, llama-server is not."""

    def made(server: Any, *args: Any, **keys: Any) -> None:
        start(server, *args, **keys)
        headers = {"Authorization": f"Bearer {server.api_key}"}
        until = time.monotonic() + _LOADED
        while server.model_alias and time.monotonic() < until:
            if server.make_request("GET", "/props", headers=headers).status_code != _UNAVAILABLE:
                return
            time.sleep(0.05)

    return made


def _pooling(make: Any) -> Any:
    def made() -> Any:
        server = make()
        server.pooling = "mean"  # the stand-in's header says nothing of it
        return server

    return made


def _stand_in(url: str, output_file_path: str | None = None) -> str:
    if not url.endswith("stories15M-q4_0.gguf"):
        pytest.fail(f"there is no stand-in for {url}")
    return os.environ["UPSTREAM_MODEL"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """End a test that takes too long."""

    def late(*_: object) -> None:
        pytest.fail(f"longer than {_LIMIT} s", pytrace=False)

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(_LIMIT)
    try:
        return (yield)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write a line for each step of a test that says something."""
    if report.when == "call" or report.outcome != "passed":
        line = {"test": report.nodeid, "outcome": report.outcome, "why": _last_line(report)}
        with Path(os.environ[_RECORD]).open("a") as file:
            file.write(json.dumps(line) + "\n")


def _last_line(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return "" if crash is None else str(crash.message).splitlines()[0][:300]
