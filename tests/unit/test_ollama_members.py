"""Every member of Ollama's API has a fate, the docs name it, and the code keeps to it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import ollama
import pytest
from ollama import _types as types

from llamaswap_py.api.ollama.members import (
    ANSWERS,
    CLIENTS,
    OPTIONS,
    REQUESTS,
    ROUTES,
    VERSION,
    as_markdown,
)
from llamaswap_py.api.ollama.translate import translate_chat, translate_generate
from llamaswap_py.api.routes import look_up
from llamaswap_py.errors import ApiError

PAGE = Path(__file__).parents[2] / "docs" / "ollama.md"

# The JSON names in Ollama's api/types.go (0.33), those of its cloud and its account left out.
GENERATE = """
model prompt suffix system template context stream raw format keep_alive images options think
truncate shift _debug_render_only logprobs top_logprobs
"""
CHAT = """
model messages stream format keep_alive tools options think truncate shift _debug_render_only
logprobs top_logprobs
"""
MESSAGE = "role content thinking images tool_calls tool_name tool_call_id"
OPTION_NAMES = """
num_ctx num_batch num_gpu main_gpu use_mmap num_thread draft_num_predict num_keep seed num_predict
top_k top_p min_p typical_p repeat_last_n temperature repeat_penalty presence_penalty
frequency_penalty stop
"""
METRICS = """
total_duration load_duration prompt_eval_count prompt_eval_duration eval_count eval_duration
"""
GENERATED = f"""
model remote_model remote_host created_at response thinking done done_reason context tool_calls
_debug_info logprobs {METRICS}
"""
CHATTED = f"""
model remote_model remote_host created_at message done done_reason _debug_info logprobs {METRICS}
"""
LISTED = """
name model remote_model remote_host modified_at size digest details capabilities
"""
RUNNING = "name model size digest details expires_at size_vram context_length"
EMBEDDED = "model embeddings total_duration load_duration prompt_eval_count"
SHOWN = """
license modelfile parameters template system renderer parser details messages remote_model
remote_host model_info projector_info tensors capabilities modified_at requires
"""


@pytest.mark.parametrize(
    ("table", "place", "names"),
    [
        (REQUESTS, "/api/generate", GENERATE),
        (REQUESTS, "/api/chat", CHAT),
        (REQUESTS, "a message", MESSAGE),
        (REQUESTS, "/api/embed", "model input keep_alive truncate dimensions options"),
        (REQUESTS, "/api/embeddings", "model prompt keep_alive options"),
        (REQUESTS, "/api/show", "model system template verbose options"),
        (REQUESTS, "/api/pull", "model insecure username password stream"),
        (REQUESTS, "/api/delete", "model"),
        (ANSWERS, "/api/generate", GENERATED),
        (ANSWERS, "/api/chat", CHATTED),
        (ANSWERS, "/api/embed", EMBEDDED),
        (ANSWERS, "/api/embeddings", "embedding"),
        (ANSWERS, "/api/tags", LISTED),
        (ANSWERS, "/api/ps", RUNNING),
        (ANSWERS, "/api/show", SHOWN),
    ],
)
def test_every_member_of_ollamas_types_has_a_fate(table: Any, place: str, names: str) -> None:
    assert set(names.split()) <= {member.name for member in table[place]}


@pytest.mark.parametrize(
    ("table", "place", "kind"),
    [
        (REQUESTS, "/api/generate", types.GenerateRequest),
        (REQUESTS, "/api/chat", types.ChatRequest),
        (REQUESTS, "a message", types.Message),
        (REQUESTS, "/api/embed", types.EmbedRequest),
        (REQUESTS, "/api/embeddings", types.EmbeddingsRequest),
        (REQUESTS, "/api/show", types.ShowRequest),
        (REQUESTS, "/api/pull", types.PullRequest),
        (REQUESTS, "/api/delete", types.DeleteRequest),
        (ANSWERS, "/api/generate", types.GenerateResponse),
        (ANSWERS, "/api/chat", types.ChatResponse),
        (ANSWERS, "/api/embeddings", types.EmbeddingsResponse),
        (ANSWERS, "/api/tags", types.ListResponse.Model),
        (ANSWERS, "/api/ps", types.ProcessResponse.Model),
        (ANSWERS, "/api/show", types.ShowResponse),
    ],
)
def test_every_field_of_ollamas_client_has_a_fate(table: Any, place: str, kind: Any) -> None:
    fields = {field.alias or name for name, field in kind.model_fields.items()}
    assert fields <= {member.name for member in table[place]}


def test_every_option_has_a_fate() -> None:
    names = {option.name for option in OPTIONS}
    assert set(OPTION_NAMES.split()) <= names
    assert set(types.Options.model_fields) <= names


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_is_there(route: str) -> None:
    method, path = route.split()
    methods, _ = look_up(path.replace("{digest}", "sha256:ab"))
    assert methods is not None
    assert ("GET" if method == "HEAD" else method) in methods


def test_every_path_of_ollamas_client_has_a_fate() -> None:
    source = inspect.getsource(ollama.AsyncClient)
    named = {path for path in source.replace('"', "'").split("'") if path.startswith("/api/")}
    assert named <= {route.split()[1] for route in ROUTES}


@pytest.mark.parametrize("translate", [translate_generate, translate_chat])
def test_what_is_refused_is_refused_by_name(translate: Any) -> None:
    place = "/api/chat" if translate is translate_chat else "/api/generate"
    ask = {"messages": [{"role": "user", "content": "x"}], "prompt": "x"}
    translate(ask)
    for member in REQUESTS[place]:
        if member.fate == "refused":
            assert member.note
            with pytest.raises(ApiError, match=f"`{member.name}`"):
                translate({**ask, member.name: "x"})


def test_the_page_has_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8").endswith(f"---\n\n{as_markdown()}\n")


@pytest.mark.parametrize("client", CLIENTS)
def test_the_version_is_one_that_clients_accept(client: str) -> None:
    def parts(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in version.split(".") if part)

    assert parts(VERSION) >= parts(CLIENTS[client][0])
