from __future__ import annotations

import pytest

from llamaswap_py.config.parse import load_config
from llamaswap_py.config.sections import Config
from llamaswap_py.config.warnings import warnings
from llamaswap_py.llamacpp.context_size import (
    context_per_request,
    slots,
)


def load(args: str, *, extra: str = "", top: str = "") -> Config:
    text = f"models: {{a: {{model: x, args: {{{args}}}, extra: [{extra}]}}}}\n{top}"
    return load_config(text, path=None, base_dir="/etc", env={}, home="/home/me")


# Seen in `n_slots = …, n_ctx_slot = …` of llama-server b11434 with these arguments.
@pytest.mark.parametrize(
    ("args", "extra", "expected"),
    [
        ("c: 2048, np: 2", "", (2, 1024)),
        ("c: 2048, np: 3", "", (3, 768)),
        ("c: 2000", "", (4, 2048)),
        ("c: 2048, np: 2, kvu: true", "", (2, 2048)),
        ("c: 2048, np: 2, kv-unified: false", "", (2, 1024)),
        ("c: 2048, kv-unified: false", "", (4, 2048)),
        ("c: 1024, np: 1", "", (1, 1024)),
        ("c: 2048, np: 2, kv-unified-per-slot: 600", "", (2, 600)),
        ("kv-unified-per-slot: 600, np: 2", "", (2, 600)),
        ("c: 0, np: 2", "", (2, None)),
        ("", "", (4, None)),
        ("c: many", "", (4, None)),
        ("c: 512", "--ctx-size, 2048, -np, 2", (2, 1024)),
        ("c: 2048, np: 2", "-kvu", (2, 2048)),
        ("c: 2048, np: 2", "-kvu, --jinja", (2, 2048)),
        ("c: 2048, np: 2, kvu: true", "-no-kvu", (2, 1024)),
        ("c: 2048, np: 2, kvu: true, no-kv-unified: true", "", (2, 1024)),
    ],
)
def test_context_per_request(args: str, extra: str, expected: tuple[int, int | None]) -> None:
    preset = load(args, extra=extra).models["a"]
    assert (slots(preset), context_per_request(preset)) == expected


def test_a_share_under_half_is_warned_about() -> None:
    assert warnings(load("c: 4096, np: 2")) == ()
    assert warnings(load("c: 4096, np: 4, kvu: true")) == ()
    (warning,) = warnings(load("c: 4096, np: 4"))
    assert warning == (
        "config:1: models.a: a request gets 1024 tokens of context: 4 slots divide ctx-size 4096 - "
        "set kv-unified: true, or ctx-size: 16384"
    )


def test_a_queue_timeout_that_cuts_waiting_short_is_warned_about() -> None:
    assert warnings(load("", top="policy: {queue: {timeout: 3m}}")) == ()
    (warning,) = warnings(load("", top="policy: {queue: {timeout: 179s}}"))
    assert warning.startswith("config:2: policy.queue.timeout: a request waits at most 3 m")
    assert warning.endswith(
        "max_wait + drain_timeout = 3 m - raise policy.queue.timeout above that"
    )


def test_a_sleep_that_never_comes_is_warned_about() -> None:
    def said(keys: str) -> tuple[str, ...]:
        text = f"models: {{a: {{model: x, {keys}}}}}"
        return warnings(load_config(text, path=None, base_dir="/etc", env={}, home="/home/me"))

    assert said("sleep: 5m, ttl: 30m") == said("sleep: 5m") == said("ttl: 5m") == ()
    (warning,) = said("sleep: 30m, ttl: 30m")
    assert warning == (
        "config:1: models.a: sleep (30 m) does nothing, because ttl unloads the model after 30 m "
        "- make sleep shorter than ttl, or remove it"
    )


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("fit: shrink, args: {c: 4096, ngl: 99}", ""),
        ("fit: auto, args: {c: 0, ngl: 99}", ""),
        ("fit: shrink, args: {c: 4096, fit-ctx: 2048}", ""),
        ("fit: exact, args: {c: 4096, ngl: 99}", ""),
        ("args: {fit-ctx: 2048}", ""),
        ("fit: exact, args: {fit-ctx: 2048}", "fit-ctx does nothing with fit: exact"),
        ("fit: {context: {least: 4k}}, args: {c: 4096}", "fit.context changes nothing"),
        ("fit: {context: {want: 64k}}, args: {c: 0}", "fit.context changes nothing"),
        ("fit: {favor: context}, args: {c: 4096}", ""),
        ("fit: {margin: {CUDA0: 1GiB}}", "fit.margin changes nothing"),
        ("fit: {margin: {CUDA0: 2GiB, host: 1MiB}}", ""),
    ],
)
def test_what_fit_cannot_do_is_warned_about(keys: str, expected: str) -> None:
    text = f"models: {{a: {{model: x, {keys}}}}}"
    found = warnings(load_config(text, path=None, base_dir="/etc", env={}, home="/home/me"))
    assert len(found) == bool(expected)
    assert all(expected in each for each in found)


def test_each_variant_is_looked_at() -> None:
    text = "models: {a: {model: x, args: {c: 4096, np: 1}, variants: [{name: one}, {name: four,"
    text += "\n args: {np: 4}}]}}"
    (warning,) = warnings(load_config(text, path=None, base_dir="/etc", env={}, home="/home/me"))
    assert warning.startswith("config:1: models.a.variants[1]: a request gets 1024 tokens")
