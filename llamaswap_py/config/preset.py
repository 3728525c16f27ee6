"""One model of the file: its keys, those it can inherit, and its variants."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import field, structs

from llamaswap_py.config.filters import FILTERS
from llamaswap_py.config.forms import (
    DURATION,
    NAME,
    NAMES,
    PATH,
    POSITIVE_DURATION,
    POSITIVE_SIZE,
    SLEEP,
    TEXT,
    TTL,
    WHEN_FULL,
    Command,
    EngineSpec,
    Filters,
    Ready,
    Record,
    key,
    or_null,
    or_word,
    plain,
    word,
)
from llamaswap_py.config.model_forms import (
    ARGS,
    COMMAND,
    DEVICES,
    ENGINE,
    ENV,
    EXTRA,
    METADATA,
    READY,
    SIZES,
    STOP,
)
from llamaswap_py.llamacpp.options import Argument

_WHEN_FULL: Final = (
    "What a request gets when something has to leave for it: wait, refuse (503 at once), or a "
    "substitute that answers instead, by name or any that is loaded; if not given, what "
    "`policy.when_full` says."
)


class Defaults(Record, frozen=True):
    """What every preset starts from: its own keys win, args and env are merged key by key."""

    args: Annotated[
        dict[str, Argument],
        key(
            "llama-server's options, by their names in --help: true or false for switches, a list "
            "repeats the option, paths start at this file's folder.",
            ARGS,
            {"ctx-size": 16384, "parallel": 2, "kv-unified": True},
        ),
    ] = field(default_factory=dict)
    extra: Annotated[
        tuple[str, ...],
        key("Words added to the command line as they are, after args.", EXTRA, ["--top-k", "20"]),
    ] = ()
    env: Annotated[
        dict[str, str],
        key("Environment variables of the child.", ENV, {"GGML_CUDA_ENABLE_UNIFIED_MEMORY": "1"}),
    ] = field(default_factory=dict)
    engine: Annotated[
        EngineSpec | None,
        key(
            "Which llama-server, if another than the top-level `engine`.",
            ENGINE,
            {"backend": "cpu"},
        ),
    ] = None
    ttl: Annotated[
        float | None,
        key(
            "Unload after this long without a request; 0: with the end of the last one.",
            TTL,
            "30m",
            "0",
        ),
    ] = None
    keep: Annotated[
        Literal["auto", "always"],
        plain(
            "always: load it at start and never unload it, like preload: true, pin: true and "
            "ttl: never together; auto: those three keys decide.",
            "always",
        ),
    ] = "auto"
    pin: Annotated[bool, plain("Never evict it for another model.", True)] = False
    preload: Annotated[
        bool, plain("Load it at start, as far as it fits without evicting.", True)
    ] = False
    device: Annotated[
        Literal["auto"] | tuple[str, ...],
        key("Where it may run: auto, one device, a list to split over, or host.", DEVICES, "CUDA1"),
    ] = "auto"
    memory: Annotated[
        dict[str, int] | None,
        key(
            "What it needs per device, overruling the estimate.",
            or_null(SIZES),
            {"CUDA0": "9.5GiB"},
        ),
    ] = None
    concurrency: Annotated[
        int | None,
        word(
            "Requests that generate at once; auto: the child's slots (1 for `cmd`, unless it is a "
            "llama-server).",
            "auto",
            ge=1,
        ),
    ] = None
    drain_timeout: Annotated[
        float,
        key(
            "How long running requests may take once somebody else waits for the memory.",
            DURATION,
            "10m",
        ),
    ] = 120.0
    on_drain_deadline: Annotated[
        Literal["cancel", "wait"],
        plain(
            "What happens then. cancel: they end, unanswered ones are retried; wait: they go on."
        ),
    ] = "cancel"
    stop_timeout: Annotated[
        float,
        key("How long a child may take to exit before it is killed.", POSITIVE_DURATION, "30s"),
    ] = 10.0
    tasks_max: Annotated[
        int | None,
        word(
            "Most processes and threads of the model's process and of what it starts, like "
            "systemd's TasksMax: the kernel refuses to start more. Needs cgroups (`lswap engine "
            "doctor` says whether there are any).",
            "infinity",
            ge=16,
        ),
    ] = None
    memory_max: Annotated[
        int | None,
        key(
            "Most host memory of the model's process and of what it starts, like systemd's "
            "MemoryMax: the kernel ends the process if it takes more. Pages of mapped files count, "
            "so leave room for the weights. Needs cgroups (`lswap engine doctor` says whether "
            "there are any).",
            or_word("infinity", POSITIVE_SIZE),
            "48GiB",
        ),
    ] = None
    load_stall: Annotated[
        float,
        key(
            "How long a load may show no sign of progress before it is given up.",
            POSITIVE_DURATION,
            "15m",
        ),
    ] = 300.0
    liveness: Annotated[
        float | None,
        key(
            "How long a loaded model with open requests may give no sign of life (no byte, no "
            "token, no processor time, no log line) before it is restarted. A `cmd` program is "
            "judged while it owes an answer, and not at all where it is only the client of what "
            "serves (a container).",
            SLEEP,
            "10m",
        ),
    ] = 120.0
    priority: Annotated[
        int,
        # Waiting gains one a minute: with larger steps it would not help in time.
        plain("Whose requests go first when several wait: the higher number.", 10, ge=-100, le=100),
    ] = 0
    when_full: Annotated[
        str | None,
        key(
            _WHEN_FULL,
            or_null(WHEN_FULL),
            "refuse",
            {"substitute": "loaded"},
        ),
    ] = None
    fit: Annotated[
        Literal["exact", "shrink"],
        plain(
            "shrink lets llama-server lower the offload and the context that args leave open, "
            "until it fits within the margin."
        ),
    ] = "exact"
    sleep: Annotated[
        float | None,
        key(
            "Let llama-server give its weights back after this long without a request, and stay "
            "(whole seconds, rounded up).",
            SLEEP,
            "5m",
        ),
    ] = None
    keep_kv: Annotated[
        bool,
        plain(
            "Keep the conversations of its slots when it leaves the memory for another model or by "
            "ttl, and bring them back with its next load (see `memory.keep_kv`).",
            True,
        ),
    ] = False
    prefer: Annotated[
        Literal["fit", "first"],
        plain(
            "Which variant is loaded: the first that fits without evicting, or the first that can "
            "fit at all."
        ),
    ] = "fit"
    request: Annotated[
        Filters,
        key(
            "What is changed in a request's JSON: set overrides, default fills in, strip takes "
            "out; per_name does so for names of its own, which mean this preset.",
            FILTERS,
            {"set": {"temperature": 0.7}, "default": {"top_p": 0.9}, "strip": ["seed"]},
        ),
    ] = Filters()
    keep_in_ram: Annotated[
        bool,
        plain(
            "Keep its files in the page cache while it is not loaded, so that its next load reads "
            "no disk: read at start, after it is unloaded, and again when the kernel has dropped "
            "them.",
            True,
        ),
    ] = False
    resume: Annotated[
        bool,
        plain(
            "Go on with an answer whose client has left, if it carries X-Conversation-Id, as those "
            "of llama.cpp's web UI do: they can be read again.",
            False,
        ),
    ] = True
    metadata: Annotated[
        dict[str, str | int | float | bool],
        key("Anything to show in /v1/models.", METADATA, {"note": "for the team"}),
    ] = field(default_factory=dict)
    unlisted: Annotated[
        bool,
        plain(
            "Leave it and its other names out of lists of models (/v1/models, /models, "
            "/api/tags, the web UI); requests for it are still answered.",
            True,
        ),
    ] = False


class Variant(Record, frozen=True):
    """Another way to run a preset: what it says wins, args are merged option by option."""

    name: Annotated[str, key("How it is called in logs and answers.", NAME, "lean")]
    args: Annotated[
        dict[str, Argument],
        key("llama-server's options that differ.", ARGS, {"n-cpu-moe": 20}),
    ] = field(default_factory=dict)
    extra: Annotated[
        tuple[str, ...] | None,
        key("The raw words, instead of the preset's.", or_null(EXTRA), ["--top-k", "20"]),
    ] = None
    memory: Annotated[
        dict[str, int] | None,
        key(
            "What it needs per device, instead of what the preset declares.",
            or_null(SIZES),
            {"CUDA0": "6GiB", "host": "8GiB"},
        ),
    ] = None
    device: Annotated[
        Literal["auto"] | tuple[str, ...] | None,
        key("Where it may run, instead of where the preset may.", or_null(DEVICES), "CUDA1"),
    ] = None


class Preset(Defaults, frozen=True, kw_only=True):
    """One model: files, options, policy, after `defaults` were merged."""

    id: str  # the key under `models`, no key itself
    model: Annotated[
        str,
        key(
            "The GGUF file (the first one of a split model), relative to this file's folder.",
            PATH,
            "~/models/Qwen3-8B-Q4_K_M.gguf",
        ),
    ]
    hf: Annotated[
        str | None,
        key(
            "Instead of `model`: a repository of Hugging Face, user/repo or user/repo:QUANT, whose "
            "files are fetched when it is first asked for.",
            or_null(TEXT),
            "Qwen/Qwen3-8B-GGUF:Q4_K_M",
        ),
    ] = None
    cmd: Annotated[
        Command | None,
        key(
            "Instead of `model`: any program that speaks HTTP, as a list of words. {port} is where "
            "it has to listen at 127.0.0.1, {socket} a unix socket instead; it runs in this file's "
            "folder.",
            COMMAND,
            ["whisper-server", "--port", "{port}", "-m", "models/ggml-large.bin"],
        ),
    ] = None
    ready: Annotated[
        Ready,
        key(
            "When a program that `cmd` runs is ready: once GET of a path succeeds (http), or once "
            "a line of its output contains a text or matches it as a regular expression (line).",
            READY,
            {"http": "/v1/models"},
            {"line": "listening on"},
        ),
    ] = Ready(http="/health")
    stop_cmd: Annotated[
        tuple[str, ...],
        key(
            "Stops a program that `cmd` runs, instead of SIGTERM: a list of words, with {pid} and "
            "{port} where those go. Its process is killed if it is still there after stop_timeout.",
            STOP,
            ["docker", "stop", "whisper"],
        ),
    ] = ()
    served_by: Annotated[
        Literal["cmd", "container", "anyone"],
        plain(
            "Which process may hold the port of a program that `cmd` runs. While another process "
            "holds it, the program gets no request. cmd: the program itself or what it started; "
            "container: also a process of root or of the user that runs lswap, for a container or "
            "a service that cmd only talks to; anyone: lswap does not look. A program that listens "
            "on a unix socket (`{socket}`) needs no such look.",
            "container",
        ),
    ] = "cmd"
    engine: Annotated[
        EngineSpec,
        key("Which llama-server, if not the top-level one.", ENGINE, {"backend": "cpu"}),
    ] = "auto"
    when_full: Annotated[
        str,
        key(
            _WHEN_FULL,
            WHEN_FULL,
            "refuse",
            {"substitute": "loaded"},
        ),
    ] = "wait"
    aliases: Annotated[
        tuple[str, ...], key("Other names it answers to.", NAMES, ["gpt-4o-mini"])
    ] = ()
    variants: Annotated[
        tuple[Variant, ...],
        plain("Several ways to run it, the best first, each with the keys that differ."),
    ] = ()
    variant: str = ""  # of which of them this is the merged preset; no key either

    @property
    def other_names(self) -> tuple[str, ...]:
        """What it answers to besides its id."""
        return tuple(name for name in (*self.aliases, *self.request.per_name) if name != self.id)


def variant_preset(preset: Preset, variant: Variant) -> Preset:
    """Return the preset as one of its variants runs it; `.variant` is its name."""
    args = {name: value for name, value in preset.args.items() if name not in variant.args}
    changed = {
        name: value
        for name in ("extra", "memory", "device")
        if (value := getattr(variant, name)) is not None
    }
    return structs.replace(preset, variant=variant.name, args=args | variant.args, **changed)


def variant_presets(preset: Preset) -> tuple[Preset, ...]:
    """Return each way to run a preset, in the file's order: without variants it is the only one."""
    return tuple(variant_preset(preset, each) for each in preset.variants) or (preset,)
