"""A preset, which is one model of the file: its keys, those it can inherit, and its variants."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import field, structs

from llamaswap_py.config.fit_form import FIT
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
    Fit,
    ReadyCheck,
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
from llamaswap_py.config.request_filters import FILTERS
from llamaswap_py.llamacpp.options import Argument

_WHEN_FULL: Final = (
    "What a request gets if a busy model would have to be unloaded for it. wait: it waits "
    "for its turn; refuse: 503 at once; substitute: the named model, or any that is "
    "loaded, answers instead. Default: `policy.when_full`."
)


class Defaults(Record, frozen=True):
    """The keys that every preset inherits; its own keys win, args and env are merged by key."""

    args: Annotated[
        dict[str, Argument],
        key(
            "llama-server's options, by their names in --help. Switches take true or false. A "
            "list repeats the option. Paths start at this file's folder.",
            ARGS,
            {"ctx-size": "16k", "parallel": 2, "kv-unified": True},
        ),
    ] = field(default_factory=dict)
    extra: Annotated[
        tuple[str, ...],
        key(
            "More words for llama-server's command line. They are added as they are, after args.",
            EXTRA,
            ["--top-k", "20"],
        ),
    ] = ()
    env: Annotated[
        dict[str, str],
        key(
            "Environment variables for the model's process.",
            ENV,
            {"GGML_CUDA_ENABLE_UNIFIED_MEMORY": "1"},
        ),
    ] = field(default_factory=dict)
    engine: Annotated[
        EngineSpec | None,
        key(
            "Which llama-server to use, if not the top-level `engine`.",
            ENGINE,
            {"backend": "cpu"},
        ),
    ] = None
    ttl: Annotated[
        float | None,
        key(
            "Unload the model after this long without a request; 0: when its last request ends.",
            TTL,
            "30m",
            "0",
        ),
    ] = None
    keep: Annotated[
        Literal["auto", "always"],
        plain(
            "always: load the model at start and never unload it, like preload: true, pin: true "
            "and ttl: never together; auto: those three keys decide.",
            "always",
        ),
    ] = "auto"
    pin: Annotated[bool, plain("Never unload the model for another one.", True)] = False
    preload: Annotated[
        bool, plain("Load the model at start, if it fits beside those already loaded.", True)
    ] = False
    device: Annotated[
        Literal["auto", "all"] | tuple[str, ...],
        key(
            "Where the model may run: auto, all, one device, a list of devices to split it over, "
            "or host. auto: cards, and integrated GPUs only if the engine lists no card; all: "
            "both.",
            DEVICES,
            "CUDA1",
        ),
    ] = "auto"
    memory: Annotated[
        dict[str, int] | None,
        key(
            "How much memory the model needs on each device; replaces the estimate.",
            or_null(SIZES),
            {"CUDA0": "9.5GiB"},
        ),
    ] = None
    concurrency: Annotated[
        int | None,
        word(
            "How many requests the model answers at the same time. auto: as many as its "
            "llama-server has slots (`parallel`); 1 for another program (`cmd`).",
            "auto",
            ge=1,
        ),
    ] = None
    drain_timeout: Annotated[
        float,
        key(
            "How long running requests may go on when another model waits for the memory.",
            DURATION,
            "10m",
        ),
    ] = 120.0
    on_drain_deadline: Annotated[
        Literal["cancel", "wait"],
        plain(
            "What happens to running requests at `drain_timeout`. cancel: they end; those without "
            "any answer yet are tried again. wait: they go on."
        ),
    ] = "cancel"
    stop_timeout: Annotated[
        float,
        key(
            "How long the model's process may take to exit before it is killed.",
            POSITIVE_DURATION,
            "30s",
        ),
    ] = 10.0
    tasks_max: Annotated[
        int | None,
        word(
            "How many processes and threads the model's process and what it starts may have "
            "together, like systemd's TasksMax: the kernel refuses to start more. Needs cgroups "
            "(`lswap engine doctor` says whether there are any).",
            "infinity",
            ge=16,
        ),
    ] = None
    memory_max: Annotated[
        int | None,
        key(
            "How much host memory the model's process and what it starts may take together, like "
            "systemd's MemoryMax: the kernel ends the process if it takes more. Pages of mapped "
            "files count, so leave room for the weights. Needs cgroups (`lswap engine doctor` "
            "says whether there are any).",
            or_word("infinity", POSITIVE_SIZE),
            "48GiB",
        ),
    ] = None
    load_stall: Annotated[
        float,
        key(
            "How long a load may show no progress before it fails.",
            POSITIVE_DURATION,
            "15m",
        ),
    ] = 300.0
    liveness: Annotated[
        float | None,
        key(
            "How long a loaded model with open requests may give no sign of life (no byte, token, "
            "processor time or log line) before it is restarted. A `cmd` program is checked only "
            "while it owes an answer; one that only talks to a container or a service is not "
            "checked.",
            SLEEP,
            "10m",
        ),
    ] = 120.0
    priority: Annotated[
        int,
        # A waiting request gains one each minute. With larger numbers that would help too late.
        plain(
            "When requests for several models wait, those for the model with the higher number go "
            "first. Models in use that answer only lower numbers give way to them once their open "
            "answers have ended.",
            10,
            ge=-100,
            le=100,
        ),
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
        Fit,
        key(
            "auto: lswap chooses what `args` leave open so that the model fits: the context, the "
            "layers and experts on each device, the slots. exact: nothing is chosen, and the "
            "engine's own defaults hold. shrink: the same as auto. A mapping sets limits: "
            "`context.least` and `context.want` are tokens that one request gets (8192 and 32768 "
            "by default), `favor: context` moves layers to the host before it shortens the "
            "context, and `margin` is the memory that stays free on a device, if it is more than "
            "`memory.margin`. With `variants: off` lswap adds no variant with less context that "
            "fits beside the models used in the last day.",
            FIT,
            "exact",
            {"context": {"least": "8k", "want": "64k"}, "favor": "context"},
            {"margin": {"CUDA0": "2GiB"}},
            {"variants": "off"},
        ),
    ] = Fit()
    sleep: Annotated[
        float | None,
        key(
            "After this long without a request llama-server frees the model's memory, but its "
            "process stays (whole seconds, rounded up).",
            SLEEP,
            "5m",
        ),
    ] = None
    keep_kv: Annotated[
        bool,
        plain(
            "Save the model's conversations (the KV cache of its slots) when it is unloaded for "
            "another model or by `ttl`, and restore them with its next load (see "
            "`memory.keep_kv`).",
            True,
        ),
    ] = False
    prefer: Annotated[
        Literal["fit", "first"],
        plain(
            "Which of the `variants` is loaded. fit: the first that fits without unloading "
            "another model; first: the first that can fit at all."
        ),
    ] = "fit"
    request: Annotated[
        Filters,
        key(
            "What lswap changes in a request's JSON: `set` overrides members, `default` adds "
            "missing ones, `strip` removes them. `per_name` gives the model more names, each with "
            "changes of its own.",
            FILTERS,
            {"set": {"temperature": 0.7}, "default": {"top_p": 0.9}, "strip": ["seed"]},
        ),
    ] = Filters()
    keep_in_ram: Annotated[
        bool,
        plain(
            "Keep the model's files in the page cache while it is not loaded, so that its next "
            "load does not read the disk. lswap reads them at start, after an unload, and again "
            "when the kernel has dropped them.",
            True,
        ),
    ] = False
    resume: Annotated[
        bool,
        plain(
            "Continue an answer after its client has disconnected, if the request has "
            "X-Conversation-Id (llama.cpp's web UI sends it). The client can then read the answer "
            "again.",
            False,
        ),
    ] = True
    metadata: Annotated[
        dict[str, str | int | float | bool],
        key("Any values to show in /v1/models.", METADATA, {"note": "for the team"}),
    ] = field(default_factory=dict)
    unlisted: Annotated[
        bool,
        plain(
            "Leave the model and its other names out of lists (/v1/models, /models, /api/tags, "
            "the web UI). Requests for it are still answered.",
            True,
        ),
    ] = False


class Variant(Record, frozen=True):
    """Another way to run a preset: its keys override the preset's, args option by option."""

    name: Annotated[str, key("The variant's name in logs and answers.", NAME, "lean")]
    args: Annotated[
        dict[str, Argument],
        key("llama-server's options that differ from the model's.", ARGS, {"n-cpu-moe": 20}),
    ] = field(default_factory=dict)
    extra: Annotated[
        tuple[str, ...] | None,
        key("The `extra` words, instead of the model's.", or_null(EXTRA), ["--top-k", "20"]),
    ] = None
    memory: Annotated[
        dict[str, int] | None,
        key(
            "How much memory the variant needs on each device, instead of the model's `memory`.",
            or_null(SIZES),
            {"CUDA0": "6GiB", "host": "8GiB"},
        ),
    ] = None
    device: Annotated[
        Literal["auto", "all"] | tuple[str, ...] | None,
        key(
            "Where the variant may run, instead of the model's `device`.", or_null(DEVICES), "CUDA1"
        ),
    ] = None
    fit: Annotated[
        Fit | None,
        key("What lswap may choose, instead of the model's `fit`.", or_null(FIT), "exact"),
    ] = None


class Preset(Defaults, frozen=True, kw_only=True):
    """One model: its files, options and policy, with `defaults` merged in."""

    id: str  # its name in `models`, not a key of its own
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
            "Instead of `model`: a repository of Hugging Face, user/repo or user/repo:QUANT. Its "
            "files are downloaded at the first request.",
            or_null(TEXT),
            "Qwen/Qwen3-8B-GGUF:Q4_K_M",
        ),
    ] = None
    cmd: Annotated[
        Command | None,
        key(
            "Instead of `model`: any program that speaks HTTP, as a list of words. It has to "
            "listen on port {port} of 127.0.0.1, or on the unix socket {socket}. It runs in this "
            "file's folder.",
            COMMAND,
            ["whisper-server", "--port", "{port}", "-m", "models/ggml-large.bin"],
        ),
    ] = None
    ready: Annotated[
        ReadyCheck,
        key(
            "When the program of `cmd` is ready. http: a GET of this path succeeds; line: a line "
            "of its output contains this text, or matches it as a regular expression.",
            READY,
            {"http": "/v1/models"},
            {"line": "listening on"},
        ),
    ] = ReadyCheck(http="/health")
    stop_cmd: Annotated[
        tuple[str, ...],
        key(
            "A command that stops the program of `cmd`, instead of SIGTERM: a list of words, in "
            "which {pid} and {port} stand for its process and port. A process that is still there "
            "after stop_timeout is killed.",
            STOP,
            ["docker", "stop", "whisper"],
        ),
    ] = ()
    served_by: Annotated[
        Literal["cmd", "container", "anyone"],
        plain(
            "Which process may hold the port of the program of `cmd`. While another process holds "
            "it, the program gets no request. cmd: the program itself or what it started; "
            "container: also a process of root or of the user that runs lswap, for a container or "
            "a service that cmd only talks to; anyone: lswap does not check. With a unix socket "
            "(`{socket}`) lswap does not need to check.",
            "container",
        ),
    ] = "cmd"
    engine: Annotated[
        EngineSpec,
        key("Which llama-server to use, if not the top-level one.", ENGINE, {"backend": "cpu"}),
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
        tuple[str, ...], key("Other names of the model.", NAMES, ["gpt-4o-mini"])
    ] = ()
    variants: Annotated[
        tuple[Variant, ...],
        plain("Several ways to run the model, the best first, each with the keys that differ."),
    ] = ()
    variant: str = ""  # the variant that is merged into this preset; not a key

    @property
    def other_names(self) -> tuple[str, ...]:
        """The names besides its id by which requests can ask for it."""
        return tuple(name for name in (*self.aliases, *self.request.per_name) if name != self.id)


def variant_preset(preset: Preset, variant: Variant) -> Preset:
    """Return the preset as one of its variants runs it; `.variant` is its name."""
    args = {name: value for name, value in preset.args.items() if name not in variant.args}
    changed = {
        name: value
        for name in ("extra", "memory", "device", "fit")
        if (value := getattr(variant, name)) is not None
    }
    return structs.replace(preset, variant=variant.name, args=args | variant.args, **changed)


def variant_presets(preset: Preset) -> tuple[Preset, ...]:
    """Return a preset for each variant, in the file's order; the preset itself if it has none."""
    return tuple(variant_preset(preset, each) for each in preset.variants) or (preset,)
