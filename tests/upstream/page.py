"""Parts of docs/compatibility.md: which of llama.cpp's server tests pass, and why some do not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple, TypeAlias

Outcomes: TypeAlias = dict[str, tuple[str, str]]
"""Test -> its outcome (`passed`, `failed`, `skipped`) and the first line of what was wrong."""


class Reason(NamedTuple):
    """Why tests pass only on plain llama-server: a name for the kind, the tests, the reason."""

    kind: str
    tests: str
    text: str


REASONS: Final[Sequence[Reason]] = (
    Reason(
        "tools and MCP servers",
        r"test_mcp_servers|test_tools_builtin",
        "lswap's `/tools` answers 403: it runs no tools for clients, and starts no MCP servers of "
        "its own; a preset with wrong options is listed as failed, and lswap serves on",
    ),
    Reason(
        "fetching pages for a browser",
        r"test_proxy|test_cors_proxy",
        "`/cors-proxy` answers 403: its clients could read what only the machine can reach",
    ),
    Reason(
        "pages of other origins",
        r"test_cors_options|test_cors_origins_",
        "llama-server lets pages of all origins in; lswap lets in those that `cors.origins` names, "
        "refuses the preflight of others, and answers one with 204, not 200",
    ),
    Reason(
        "slots and metrics",
        r"test_server_slots|test_metrics_disabled",
        "lswap always passes `--slots` and `--metrics`, because it reads them itself",
    ),
    Reason(
        "names",
        r"test_server_model_aliases_and_tags",
        "`/v1/models` has an entry for each name of a model; plain llama-server has one for all",
    ),
    Reason(
        "Google's Vertex AI",
        r"test_compat_gcp",
        "environment variables set its routes; lswap does not serve them",
    ),
    Reason(
        "what the server prints",
        r"test_kv_keep_only_active",
        "the test reads llama-server's output, which lswap keeps for `lswap logs`",
    ),
    Reason(
        "loading only by command",
        r"test_router_props|test_router_no_models_autoload",
        "lswap has no `--no-models-autoload`: a request loads its model",
    ),
    Reason(
        "which model is evicted",
        r"test_router_models_max_evicts_lru",
        "lswap evicts the model that is cheapest to load again, not the least recently used one",
    ),
    Reason(
        "delays inside the router",
        r"test_router_queue_\w+",
        "the test has llama.cpp's router hold requests back (`LLAMA_SERVER_DEBUG_FAKE_TIMING`); "
        "lswap answers at once",
    ),
    Reason(
        "the router's INI file",
        r"test_router_reload_models|test_router_dedup_cache_models",
        "`make compat` translates the file once, at the start; lswap watches its own file",
    ),
    Reason(
        "models of Hugging Face",
        r"test_router_delete_model",
        "the test has no hub: lswap adds no model that it cannot find; llama.cpp's router does",
    ),
)


def only_plain(plain: Outcomes, through: Outcomes) -> list[str]:
    """Return the tests that pass on plain llama-server alone, in their order."""
    return [
        test
        for test, (outcome, _) in plain.items()
        if outcome == "passed" and through.get(test, ("missing", ""))[0] != "passed"
    ]


def sorted_by_reason(
    tests: Sequence[str], reasons: Sequence[Reason] = REASONS
) -> dict[Reason | None, list[str]]:
    """Return the tests of each reason; None has those that no reason is written for."""
    found: dict[Reason | None, list[str]] = {}
    for test in tests:
        reason = next((one for one in reasons if re.search(one.tests, test)), None)
        found.setdefault(reason, []).append(test)
    return found


def part_of(engine: str) -> str:
    """Return the name of the part of the page that has the tests of an engine."""
    return f"server tests {engine.partition('-')[0]}"


def section(plain: Outcomes, through: Outcomes, engine: str, *, listed: bool = True) -> str:
    """Return what the page says of an engine; `listed`: with each test that passes only plain."""
    differ = only_plain(plain, through)
    passed = [sum(one[0] == "passed" for one in each.values()) for each in (plain, through)]
    both = passed[0] - len(differ)
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, llama-server {engine} with the tests of its own sources:",
        f"{len(plain)} tests run, {passed[0]} pass plain, {both} of these through lswap.",
        "",
    ]
    groups = sorted_by_reason(differ)
    lines += ["What passes only without lswap:", ""]
    lines += ["| kind | tests | why |", "|---|---|---|"]
    for reason, tests in groups.items():
        if reason is not None:
            lines.append(f"| {reason.kind} | {len(tests)} | {reason.text} |")
    if None in groups:
        lines.append(f"| not looked at yet | {len(groups[None])} | see below |")
    for reason, tests in groups.items():
        if reason is not None and not listed:
            continue
        lines += ["", f"#### {reason.kind if reason else 'Not looked at yet'}", ""]
        lines += [f"* `{_short(test)}`" for test in tests]
    return "\n".join(lines) + "\n"


def _short(test: str) -> str:
    return test.removeprefix("unit/").replace(".py::", ": ")
