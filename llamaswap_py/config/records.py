"""The configuration, typed once: names, defaults, descriptions and the forms of the values.

Durations are seconds, sizes bytes. The reader (parse.py), the JSON Schema and the reference page
(schema.py) are derived from these classes; nothing about a key is written anywhere else. Keys of
the design that this version does not have yet are in planned.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from llamaswap_py.config.arguments import ARGS, ENV, EXTRA, METADATA
from llamaswap_py.config.forms import (
    DURATION,
    HOSTS,
    NAMES,
    PATH,
    POSITIVE_DURATION,
    POSITIVE_SIZE,
    SIZE,
    TEXT,
    TTL,
    Form,
    or_null,
)
from llamaswap_py.config.places import BUDGETS, DEVICES, ENGINE, LISTEN, MARGIN, SIZES
from llamaswap_py.config.values import Argument, EngineSpec, PerDevice
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.units import GIB, KIB, MIB


def _key(description: str, form: Form, *examples: Any) -> Meta:
    return Meta(description=description, examples=list(examples), extra={"form": form})


def _plain(description: str, *examples: Any, ge: int | None = None) -> Meta:
    """Describe a value that YAML and Python write alike: a boolean, a number, one of some words."""
    return Meta(description=description, examples=list(examples), ge=ge)


def _word(description: str, word: str, *, ge: int) -> Meta:
    """Describe a number that may also be left open with a word, which is None here."""
    return Meta(description=description, examples=[word, ge], ge=ge, extra={"word": word})


class Record(Struct, frozen=True):
    """A mapping with fixed keys."""


class Memory(Record, frozen=True):
    """What may be used of each device."""

    margin: Annotated[
        PerDevice,
        _key(
            "Left free on every device, always; or per device (1GiB on those not named).",
            MARGIN,
            "2GiB",
            {"CUDA0": "2GiB", "host": "4GiB"},
        ),
    ] = PerDevice(GIB)
    devices: Annotated[
        dict[str, int] | None,
        _key(
            "How much memory each device has: auto asks the machine; a mapping declares it "
            "(containers, WSL, tests).",
            BUDGETS,
            {"CUDA0": "24GiB", "host": "64GiB"},
        ),
    ] = None
    settle: Annotated[
        float,
        _key("How long a stopped child's memory may take to show up as free.", DURATION, "10s"),
    ] = 5.0
    cache_ram: Annotated[
        int,
        _key(
            "llama-server's prompt cache, per child, charged to host; 0 turns it off "
            "(llama-server's own default is 8 GiB).",
            SIZE,
            "4GiB",
        ),
    ] = GIB


class Queue(Record, frozen=True):
    """Requests that wait for a model."""

    limit: Annotated[
        int, _plain("Most requests that may wait for one preset; more get 429.", 64, ge=1)
    ] = 512
    timeout: Annotated[
        float, _key("How long a request may wait before it gets 503.", POSITIVE_DURATION, "5m")
    ] = 900.0


class Policy(Record, frozen=True):
    """Who is loaded, and who waits how long."""

    max_loaded: Annotated[
        int, _plain("Most models loaded at once; 0: memory alone decides.", 2, ge=0)
    ] = 0
    max_wait: Annotated[
        float,
        _key(
            "After this wait the models in a request's way take no more requests.", DURATION, "20s"
        ),
    ] = 60.0
    queue: Annotated[Queue, _plain("Requests that wait for a model.")] = Queue()
    shutdown_timeout: Annotated[
        float,
        _key(
            "How long running requests may take to finish when lswap stops; a second SIGINT or "
            "SIGTERM stops at once.",
            DURATION,
            "2m",
        ),
    ] = 30.0


class Waiting(Record, frozen=True):
    """What a client sees while its request waits."""

    notice: Annotated[
        float,
        _key(
            "Silence before a waiting stream gets its first comment line.", POSITIVE_DURATION, "5s"
        ),
    ] = 10.0
    json: Annotated[
        Literal["none", "whitespace"],
        _plain("whitespace sends blanks before a late JSON answer, to keep proxies patient."),
    ] = "none"


class Log(Record, frozen=True):
    """lswap's own log, and its children's."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], _plain("The least important lines shown.")
    ] = "info"
    format: Annotated[
        Literal["auto", "text", "json"],
        _plain("auto is text with colours on a terminal, without them elsewhere."),
    ] = "auto"
    dir: Annotated[
        str | None,
        _key(
            "Folder for the children's output; null keeps the last lines in memory only.",
            or_null(PATH),
            "/var/log/lswap",
        ),
    ] = None


class Limits(Record, frozen=True):
    """What a client may send."""

    header: Annotated[int, _key("Largest request head.", POSITIVE_SIZE, "128KiB")] = 64 * KIB
    body: Annotated[int, _key("Largest request body.", POSITIVE_SIZE, "256MiB")] = 64 * MIB
    upload: Annotated[
        int, _key("Largest multipart body (audio, images).", POSITIVE_SIZE, "2GiB")
    ] = 512 * MIB
    idle: Annotated[
        float,
        _key("How long a connection may stay open without a request.", POSITIVE_DURATION, "30s"),
    ] = 75.0
    head_read: Annotated[
        float, _key("How long a request head may take to arrive.", POSITIVE_DURATION, "10s")
    ] = 30.0


class Defaults(Record, frozen=True):
    """What every preset starts from: its own keys win, args and env are merged key by key."""

    args: Annotated[
        dict[str, Argument],
        _key(
            "llama-server's options, by their names in --help: true or false for switches, a list "
            "repeats the option, paths start at this file's folder.",
            ARGS,
            {"ctx-size": 16384, "parallel": 2, "kv-unified": True},
        ),
    ] = {}
    extra: Annotated[
        tuple[str, ...],
        _key("Words added to the command line as they are, after args.", EXTRA, ["--top-k", "20"]),
    ] = ()
    env: Annotated[
        dict[str, str],
        _key("Environment variables of the child.", ENV, {"GGML_CUDA_ENABLE_UNIFIED_MEMORY": "1"}),
    ] = {}
    engine: Annotated[
        EngineSpec | None,
        _key(
            "Which llama-server, if another than the top-level `engine`.",
            ENGINE,
            {"backend": "cpu"},
        ),
    ] = None
    ttl: Annotated[
        float | None,
        _key(
            "Unload after this long without a request; 0: with the end of the last one.",
            TTL,
            "30m",
            "0",
        ),
    ] = None
    pin: Annotated[bool, _plain("Never evict it for another model.", True)] = False
    preload: Annotated[
        bool, _plain("Load it at start, as far as it fits without evicting.", True)
    ] = False
    device: Annotated[
        Literal["auto"] | tuple[str, ...],
        _key(
            "Where it may run: auto, one device, a list to split over, or host.", DEVICES, "CUDA1"
        ),
    ] = "auto"
    memory: Annotated[
        dict[str, int] | None,
        _key(
            "What it needs per device, overruling the estimate.",
            or_null(SIZES),
            {"CUDA0": "9.5GiB"},
        ),
    ] = None
    concurrency: Annotated[
        int | None, _word("Requests that generate at once; auto: the child's slots.", "auto", ge=1)
    ] = None
    drain_timeout: Annotated[
        float,
        _key(
            "How long running requests may take once somebody else waits for the memory.",
            DURATION,
            "10m",
        ),
    ] = 120.0
    on_drain_deadline: Annotated[
        Literal["cancel", "wait"],
        _plain(
            "What happens then. cancel: they end, unanswered ones are retried; wait: they go on."
        ),
    ] = "cancel"
    stop_timeout: Annotated[
        float,
        _key("How long a child may take to exit before it is killed.", POSITIVE_DURATION, "30s"),
    ] = 10.0
    load_stall: Annotated[
        float,
        _key(
            "How long a load may show no sign of progress before it is given up.",
            POSITIVE_DURATION,
            "15m",
        ),
    ] = 300.0
    metadata: Annotated[
        dict[str, str | int | float | bool],
        _key("Anything to show in /v1/models.", METADATA, {"note": "for the team"}),
    ] = {}


class Preset(Defaults, frozen=True, kw_only=True):
    """One model: files, options, policy, after `defaults` were merged."""

    id: str  # the key under `models`, no key itself
    model: Annotated[
        str,
        _key(
            "The GGUF file (the first one of a split model), relative to this file's folder.",
            PATH,
            "~/models/Qwen3-8B-Q4_K_M.gguf",
        ),
    ]
    engine: Annotated[
        EngineSpec,
        _key("Which llama-server, if not the top-level one.", ENGINE, {"backend": "cpu"}),
    ] = "auto"
    aliases: Annotated[
        tuple[str, ...], _key("Other names it answers to.", NAMES, ["gpt-4o-mini"])
    ] = ()


class Config(Record, frozen=True, kw_only=True):
    """The whole file."""

    listen: Annotated[
        tuple[Endpoint, ...],
        _key(
            "Where clients connect: host:port, [v6]:port, :port (every interface), unix:PATH, or a "
            "list of them.",
            LISTEN,
            "127.0.0.1:8080",
            ["127.0.0.1:8080", "unix:/run/lswap.sock"],
        ),
    ] = (Endpoint(host="127.0.0.1", port=8080),)
    allow_unauthenticated: Annotated[
        bool, _plain("Needed to listen where other machines can connect.", True)
    ] = False
    allowed_hosts: Annotated[
        tuple[str, ...],
        _key(
            "Names this server may be addressed by, besides IP addresses, localhost and the "
            "machine's own names.",
            HOSTS,
            ["gpubox.lan"],
        ),
    ] = ()
    limits: Annotated[Limits, _plain("What a client may send.")] = Limits()
    default_model: Annotated[
        str | None, _key("The model of requests that name none.", or_null(TEXT), "qwen3-8b")
    ] = None
    autoload: Annotated[
        bool, _plain("Load a model when a request needs it; false: only on command.", False)
    ] = True
    engine: Annotated[
        EngineSpec,
        _key(
            "Which llama-server: auto, a path, or {build, backend} of an installed one.",
            ENGINE,
            "~/llama.cpp/build/bin/llama-server",
            {"build": "b11434", "backend": "cuda"},
        ),
    ] = "auto"
    env: Annotated[
        dict[str, str], _key("Environment variables of every child.", ENV, {"OMP_NUM_THREADS": "8"})
    ] = {}
    memory: Annotated[Memory, _plain("What may be used of each device.")] = Memory()
    policy: Annotated[Policy, _plain("Who is loaded, and who waits how long.")] = Policy()
    waiting: Annotated[Waiting, _plain("What a client sees while its request waits.")] = Waiting()
    log: Annotated[Log, _plain("lswap's own log, and its children's.")] = Log()
    defaults: Annotated[Defaults, _plain("What every preset starts from.")] = Defaults()
    models: Annotated[dict[str, Preset], _plain("The presets, by the name clients ask for.")]

    # Where the file said what; no keys of it.
    source: str = "config"
    lines: dict[str, int] = {}

    def where(self, place: str) -> str:
        """Return `config.yaml:12: models.a.ttl` for a place, without the line if it has none."""
        line = self.lines.get(place)
        return f"{self.source}: {place}" if line is None else f"{self.source}:{line}: {place}"

    def find(self, name: str) -> Preset | None:
        """Return the preset with this id or alias."""
        if name in self.models:
            return self.models[name]
        return next((preset for preset in self.models.values() if name in preset.aliases), None)
