"""Tables of Ollama's API: every route and member, and what lswap does with each. Pure.

The sources are Ollama's API page, api/types.go and server/routes.go (0.33), and its Python client
(0.6.3). The code looks up option names and refused members in these tables. docs/ollama.md is
generated from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from llamaswap_py.errors import ApiError

Fate = Literal["translated", "refused", "ignored"]


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a request or an answer. If it is refused, `note` is the remedy."""

    name: str
    fate: Fate
    note: str = ""


@dataclass(frozen=True, slots=True)
class OllamaOption:
    """An entry of `options`: its name in llama-server ("" if it is ignored), and its type."""

    name: str
    becomes: str
    whole: bool = False


def _translated(**notes: str) -> tuple[Member, ...]:
    return tuple(Member(name.removesuffix("_"), "translated", note) for name, note in notes.items())


def _refused(**notes: str) -> tuple[Member, ...]:
    return tuple(Member(name, "refused", note) for name, note in notes.items())


def _ignored(note: str, *names: str) -> tuple[Member, ...]:
    return tuple(Member(name, "ignored", note) for name in names)


_MODEL: Final = _translated(model="a name of the file or an alias; the older `name` is read too")
_KEEP: Final = _translated(
    keep_alive='seconds, or a text like `5m`, `"300"`; 0: unload after the request, below 0: keep'
)
_LONG: Final = _ignored(
    "a prompt that is longer than the context is refused with both numbers; it is never cut",
    "truncate",
) + _ignored("the preset decides: args: {context-shift: true}", "shift")
_LOADING: Final = "set in the configuration, because it needs a new load"
_REMOTE: Final = "lswap does not tell which models run on other hosts"
_THINK: Final = (
    "`true`, `false`, or `low`, `medium`, `high`, `max` (`reasoning_effort`); ignored by a model "
    "whose template does not use it"
)
_LOGPROBS: Final = _translated(
    logprobs="with `tools` only if the answer is not streamed",
    top_logprobs="0 to 20, with `logprobs`",
)
_RENDER: Final = _translated(
    _debug_render_only="returns the prompt that the template makes, instead of an answer"
)
_OPTIONS: Final = _translated(options="see below")
_STREAM: Final = _translated(stream="true unless it is false")

REQUESTS: Final[dict[str, tuple[Member, ...]]] = {
    "/api/generate": (
        *_MODEL,
        *_translated(
            prompt="the user's message; an empty one only loads the model",
            suffix="the text after the answer: llama-server's `/infill`, if the model supports it",
            system="the system message",
        ),
        *_refused(
            template="set a Jinja template in the configuration: args: {chat-template-file: …}"
        ),
        *_translated(context="the `context` of an earlier answer: continues that conversation"),
        *_STREAM,
        *_translated(
            raw="`prompt` as it is, without a template: llama-server's `/completion`",
            format='`"json"` or a JSON schema',
        ),
        *_KEEP,
        *_translated(images="base64; sounds (WAV, MP3) too; not with `raw`"),
        *_OPTIONS,
        *_translated(think=_THINK),
        *_LONG,
        *_RENDER,
        *_LOGPROBS,
        *_refused(
            width="pictures are made by POST /v1/images/generations",
            height="pictures are made by POST /v1/images/generations",
            steps="pictures are made by POST /v1/images/generations",
        ),
    ),
    "/api/chat": (
        *_MODEL,
        *_translated(messages="see below; an empty list only loads the model"),
        *_STREAM,
        *_translated(format='`"json"` or a JSON schema'),
        *_KEEP,
        *_translated(tools="unchanged"),
        *_OPTIONS,
        *_translated(think=_THINK),
        *_LONG,
        *_RENDER,
        *_LOGPROBS,
    ),
    "a message": _translated(
        role="",
        content="",
        thinking="`reasoning_content`",
        images="base64; sounds (WAV, MP3) too",
        tool_calls="missing ids are added",
        tool_name="finds the call that a message of role `tool` answers",
        tool_call_id="the same",
    ),
    "/api/embed": (
        *_MODEL,
        *_translated(
            input="a text or a list of texts; an empty input (`[]`, an empty text) gives no vector"
        ),
        *_KEEP,
        *_translated(
            truncate="true unless it is false: longer inputs are cut to what the model takes",
            dimensions="vectors are cut to this length and normalised again",
        ),
        *_ignored(_LOADING, "options"),
    ),
    "/api/embeddings": (
        *_MODEL,
        *_translated(prompt="one text"),
        *_KEEP,
        *_translated(truncate="as in `/api/embed`"),
        *_ignored(_LOADING, "options"),
    ),
    "/api/show": (
        *_MODEL,
        *_ignored("in Ollama it only changes the `modelfile` in the answer", "system", "template"),
        *_ignored("arrays of the header and the list of tensors are not shown", "verbose"),
        *_ignored("in Ollama it only changes the `modelfile` in the answer", "options"),
    ),
    "/api/pull": (
        *_MODEL,
        *_STREAM,
        *_ignored("this route does not download", "insecure", "username"),
        *_ignored("this route does not download", "password"),
    ),
    "/api/delete": _MODEL,
}

OPTIONS: Final = (
    OllamaOption("num_keep", "n_keep", whole=True),
    OllamaOption("seed", "seed", whole=True),
    OllamaOption("num_predict", "max_tokens", whole=True),
    OllamaOption("top_k", "top_k", whole=True),
    OllamaOption("top_p", "top_p"),
    OllamaOption("min_p", "min_p"),
    OllamaOption("typical_p", "typical_p"),
    OllamaOption("repeat_last_n", "repeat_last_n", whole=True),
    OllamaOption("temperature", "temperature"),
    OllamaOption("repeat_penalty", "repeat_penalty"),
    OllamaOption("presence_penalty", "presence_penalty"),
    OllamaOption("frequency_penalty", "frequency_penalty"),
    OllamaOption("mirostat", "mirostat", whole=True),
    OllamaOption("mirostat_tau", "mirostat_tau"),
    OllamaOption("mirostat_eta", "mirostat_eta"),
    OllamaOption("stop", "stop"),
    *(
        OllamaOption(name, "")
        for name in (
            *("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "numa"),
            *("draft_num_predict", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock"),
            *("embedding_only", "tfs_z", "penalize_newline"),
        )
    ),
)

_HEAD: Final = _translated(model="the name that the request used", created_at="")
_FIGURES: Final = (
    *_translated(done="", done_reason="`stop`, `length`, `load` or `unload`"),
    *_translated(
        total_duration="", load_duration="", prompt_eval_count="", prompt_eval_duration=""
    ),
    *_translated(eval_count="", eval_duration=""),
    *_translated(logprobs="each with `token`, `logprob`, `bytes`, `top_logprobs`"),
    *_translated(_debug_info="`rendered_template`, `image_count`"),
    *_ignored(_REMOTE, "remote_model", "remote_host"),
)
_LISTED: Final = (
    *_translated(name="", model="", modified_at="of the newest file", size="of all files"),
    *_translated(digest="of the path, size and time of the files, not of their content"),
    *_translated(
        details="`format`, `family`, `families`, `parameter_size`, `quantization_level`, "
        "`context_length`, `embedding_length`"
    ),
)

ANSWERS: Final[dict[str, tuple[Member, ...]]] = {
    "/api/generate": (
        *_HEAD,
        *_translated(
            response="",
            thinking="",
            context="the conversation so far, without images; only lswap can read it",
        ),
        *_ignored("a request of this route has no tools", "tool_calls"),
        *_FIGURES,
        *_ignored("this route makes no pictures", "image", "completed", "total"),
    ),
    "/api/chat": (*_HEAD, *_translated(message="with `tool_calls` in one piece"), *_FIGURES),
    "/api/embed": _translated(
        model="", embeddings="", total_duration="", load_duration="", prompt_eval_count=""
    ),
    "/api/embeddings": _translated(embedding=""),
    "/api/tags": (
        *_LISTED,
        *_translated(capabilities="as in `/api/show`"),
        *_ignored(_REMOTE, "remote_model", "remote_host"),
    ),
    "/api/ps": (
        *_LISTED,
        *_translated(
            expires_at="when the `ttl` ends; the year 9999 for a model that stays loaded",
            size_vram="the part of `size` that is not in main memory",
            context_length="of one request",
        ),
    ),
    "/api/show": (
        *_translated(
            license="`general.license` of the header",
            modelfile="its first line",
            parameters="`num_ctx`, and the preset's `request: {default: …}`",
            template="the Jinja template of the header",
            details="as in `/api/tags`",
            model_info="the header, without arrays",
            capabilities="",
            modified_at="",
        ),
        *_ignored("llama-server has no such setting", "system", "renderer", "parser", "messages"),
        *_ignored(_REMOTE, "remote_model", "remote_host"),
        *_ignored("not read", "projector_info", "tensors", "requires"),
    ),
}

_SHOP: Final = "models are defined by the configuration file: change the file"
_CLOUD: Final = "a service of ollama.com, which lswap does not call"

ROUTES: Final[dict[str, str]] = {
    "GET /": "`Ollama is running`",
    "GET /api/version": "",
    "GET /api/tags": "",
    "GET /api/ps": "",
    "POST /api/show": "",
    "POST /api/generate": "",
    "POST /api/chat": "",
    "POST /api/embed": "",
    "POST /api/embeddings": "the older form",
    "POST /api/pull": "`success` at once for a model of the file, else 501",
    "DELETE /api/delete": "*admin*: removes a model of a repository: its files and its entry",
    "POST /api/create": f"501: {_SHOP}",
    "POST /api/copy": f"501: {_SHOP}",
    "POST /api/push": f"501: {_SHOP}",
    "POST /api/blobs/{digest}": f"501: {_SHOP}",
    "HEAD /api/blobs/{digest}": f"501: {_SHOP}",
    "POST /api/experimental/web_search": f"501: {_CLOUD}",
    "POST /api/experimental/web_fetch": f"501: {_CLOUD}",
    "GET /api/experimental/model-recommendations": f"501: {_CLOUD}",
}
"""The routes, without those of Ollama accounts (/api/me and the like)."""

VERSION: Final = "0.35.0"
"""The answer of GET /api/version: the highest version that a known client requires."""

CLIENTS: Final[dict[str, tuple[str, str]]] = {
    "OllamaSharp's System One": ("0.35.0", "`/v1/systemone`"),
    "Codex (`--oss --local-provider ollama`)": ("0.13.4", "`/v1/responses`; exits below it"),
    "VS Code, Copilot Chat": (
        "0.6.4",
        "`capabilities` of `/api/show`; below it no models are listed",
    ),
    "Raycast, Ollama AI": ("0.6.4", "`capabilities` of `/api/show`"),
    "Open WebUI": ("", "it only shows the version"),
    "Home Assistant, Zed": ("", "they do not read the version"),
}
"""Clients that check the version -> the lowest that each accepts, and the feature it needs."""


def refuse(route: str, ask: Mapping[str, Any]) -> None:
    """Raise ApiError `bad_request` if a request has a member that lswap refuses."""
    for member in REQUESTS[route]:
        if member.fate == "refused" and ask.get(member.name):
            what = f"`{member.name}` is not supported"
            raise ApiError("bad_request", what, param=member.name, remedy=member.note)


def as_markdown() -> str:
    """Return the tables of docs/ollama.md."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield from ("## Routes", "", "| route | |", "|---|---|")
    for route, note in ROUTES.items():
        yield f"| `{route}` | {note} |"
    yield ""
    yield from _tables("Requests", REQUESTS)
    yield from ("## `options`", "", "| option | llama-server's |", "|---|---|")
    for option in OPTIONS:
        yield f"| `{option.name}` | {f'`{option.becomes}`' if option.becomes else _LOADING} |"
    yield "| any other | passed on under its name: llama-server's own sampling parameters |"
    yield ""
    yield from _tables("Answers", ANSWERS)
    yield from ("## Clients that check the version", "")
    yield from ("| client | at least | because of |", "|---|---|---|")
    for client, (version, why) in CLIENTS.items():
        yield f"| {client} | {version} | {why} |"


def _tables(title: str, places: Mapping[str, tuple[Member, ...]]) -> Iterator[str]:
    yield from (f"## {title}", "")
    for place, members in places.items():
        shown = f"`{place}`" if place.startswith("/") else place
        yield from (f"### {title}: {shown}", "", "| member | | |", "|---|---|---|")
        for member in members:
            yield f"| `{member.name}` | {member.fate} | {member.note} |"
        yield ""
