"""The configuration, typed once: names, defaults, descriptions and the forms of the values.

Durations are seconds, sizes bytes. The reader (parse.py), the JSON Schema and the reference page
(schema.py) are derived from these classes; nothing about a key is written anywhere else.

Where conversations are kept over an eviction (`memory.keep_kv`), and what cannot be kept.

The key `memory`: what may be used of each device, and what host memory holds of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Literal, TypeAlias

from msgspec import field

from llamaswap_py.config.choosing import Alias, Group, file_found, spelled
from llamaswap_py.config.clients import Cors, Keys
from llamaswap_py.config.compat import COMPAT
from llamaswap_py.config.discover import Folder
from llamaswap_py.config.forms import (
    DURATION,
    HOSTS,
    PATH,
    PATHS,
    POSITIVE_DURATION,
    POSITIVE_SIZE,
    SIZE,
    TEXT,
    UI,
    WHEN_FULL,
    EngineSpec,
    PerDevice,
    Record,
    key,
    or_null,
    or_word,
    plain,
    word,
)
from llamaswap_py.config.model_forms import BUDGETS, ENGINE, ENV, LISTEN, MARGIN, METADATA
from llamaswap_py.config.preset import Defaults, Preset
from llamaswap_py.config.sources import Sources
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.units import GIB, KIB, MIB


class KeepKv(Record, frozen=True):
    """What `keep_kv` of the presets may take."""

    limit: Annotated[
        int,
        key(
            "Most bytes of conversations kept at once; of more the oldest go.",
            POSITIVE_SIZE,
            "16GiB",
        ),
    ] = 4 * GIB
    dir: Annotated[
        str | None,
        key(
            "Folder for them. auto: main memory ($XDG_RUNTIME_DIR or /dev/shm, whichever has room "
            "for `limit`; given back as soon as a model needs it), else $XDG_CACHE_HOME.",
            or_word("auto", PATH),
            "/mnt/nvme/lswap",
        ),
    ] = None
    timeout: Annotated[
        float,
        key(
            "Longest that keeping them may hold up an eviction, and bringing them back a load.",
            DURATION,
            "10s",
        ),
    ] = 2.0


class Memory(Record, frozen=True):
    """What may be used of each device."""

    margin: Annotated[
        PerDevice,
        key(
            "Left free on every device, always; or per device (1GiB on those not named).",
            MARGIN,
            "2GiB",
            {"CUDA0": "2GiB", "host": "4GiB"},
        ),
    ] = PerDevice(GIB)
    devices: Annotated[
        dict[str, int] | None,
        key(
            "How much memory each device has: auto asks the machine; a mapping declares it "
            "(containers, WSL, tests).",
            BUDGETS,
            {"CUDA0": "24GiB", "host": "64GiB"},
        ),
    ] = None
    settle: Annotated[
        float,
        key("How long a stopped child's memory may take to show up as free.", DURATION, "10s"),
    ] = 5.0
    cache_ram: Annotated[
        int,
        key(
            "llama-server's prompt cache, per child, charged to host; 0 turns it off "
            "(llama-server's own default is 8 GiB).",
            SIZE,
            "4GiB",
        ),
    ] = GIB
    read_ahead: Annotated[
        Literal["auto", "off"],
        plain(
            "auto: read the files of a model that waits for memory into the page cache, as far as "
            "free host memory goes, until its load begins.",
            "off",
        ),
    ] = "auto"
    host_cache: Annotated[
        int | None,
        key(
            "Most bytes of model files that `keep_in_ram` keeps in the page cache; null: as much "
            "as host memory has free.",
            or_null(SIZE),
            "32GiB",
        ),
    ] = None
    keep_kv: Annotated[KeepKv, plain("What `keep_kv` of the presets may take.")] = KeepKv()


Mistake: TypeAlias = tuple[str, str, str]
"""Where it is, what is wrong, and what to do."""

__all__ = [
    "Alias",
    "Config",
    "Cors",
    "Defaults",
    "Group",
    "Keys",
    "Limits",
    "Log",
    "Memory",
    "Policy",
    "Preset",
    "Queue",
    "Record",
    "Waiting",
    "groups_of",
]


class Queue(Record, frozen=True):
    """Requests that wait for a model."""

    limit: Annotated[
        int, plain("Most requests that may wait for one preset; more get 429.", 64, ge=1)
    ] = 512
    timeout: Annotated[
        float, key("How long a request may wait before it gets 503.", POSITIVE_DURATION, "5m")
    ] = 900.0


class Policy(Record, frozen=True):
    """Who is loaded, and who waits how long."""

    max_loaded: Annotated[
        int, plain("Most models loaded at once; 0: memory alone decides.", 2, ge=0)
    ] = 0
    max_wait: Annotated[
        float,
        key(
            "After this wait the models in a request's way take no more requests.", DURATION, "20s"
        ),
    ] = 60.0
    when_full: Annotated[
        str,
        key(
            "What a request gets when something has to leave for it, where its preset says "
            "nothing: wait for a turn; refuse: 503 at once; or another model answers.",
            WHEN_FULL,
            "refuse",
            {"substitute": "loaded"},
        ),
    ] = "wait"
    queue: Annotated[Queue, plain("Requests that wait for a model.")] = Queue()
    detached_timeout: Annotated[
        float,
        key(
            "How long an answer goes on for a client that left and may come back (`resume`); 10s, "
            "if less, once somebody waits for the memory.",
            DURATION,
            "30s",
        ),
    ] = 300.0
    shutdown_timeout: Annotated[
        float,
        key(
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
        key(
            "Silence before a waiting stream gets its first comment line.", POSITIVE_DURATION, "5s"
        ),
    ] = 10.0
    json: Annotated[
        Literal["none", "whitespace"],
        plain(
            "What clients get that wait for an answer in one piece. whitespace: blanks before it, "
            "which are legal JSON and keep proxies from giving up; failures then come with "
            "status 200."
        ),
    ] = "none"


class Log(Record, frozen=True):
    """lswap's own log, and its children's."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], plain("The least important lines shown.")
    ] = "info"
    format: Annotated[
        Literal["auto", "pretty", "json"],
        plain(
            "pretty is for people, with colours on a terminal; auto is that, or what systemd's "
            "journal reads (levels, and no time)."
        ),
    ] = "auto"
    dir: Annotated[
        str | None,
        key(
            "Folder for the children's output; null keeps the last lines in memory only.",
            or_null(PATH),
            "/var/log/lswap",
        ),
    ] = None
    rotate: Annotated[
        int | None,
        key(
            "A model's file in `dir` that has grown to this becomes FILE.1; three old ones are "
            "kept. null: it grows for ever.",
            or_null(POSITIVE_SIZE),
            "10MiB",
        ),
    ] = 50 * MIB


class Limits(Record, frozen=True):
    """What a client may send."""

    header: Annotated[int, key("Largest request head.", POSITIVE_SIZE, "128KiB")] = 64 * KIB
    body: Annotated[int, key("Largest request body.", POSITIVE_SIZE, "256MiB")] = 64 * MIB
    upload: Annotated[
        int, key("Largest multipart body (audio, images).", POSITIVE_SIZE, "2GiB")
    ] = 512 * MIB
    body_memory: Annotated[
        int | None,
        key(
            "Most memory that large bodies of open requests may take together. What does not fit "
            "gets 503. One key may take half. auto: an eighth of main memory, but at least four "
            "times the larger of `body` and `upload`.",
            or_word("auto", POSITIVE_SIZE),
            "4GiB",
        ),
    ] = None
    connections: Annotated[
        int | None,
        word(
            "Most connections of clients at once. auto: half of the files that lswap may open, "
            "after a reserve for its children; a higher number is lowered to that. One key may "
            "have half. If none is left, lswap closes some on which it waits for the client.",
            "auto",
            ge=8,
        ),
    ] = None
    idle: Annotated[
        float,
        key("How long a connection may stay open without a request.", POSITIVE_DURATION, "30s"),
    ] = 75.0
    head_read: Annotated[
        float, key("How long a request head may take to arrive.", POSITIVE_DURATION, "10s")
    ] = 30.0
    stall: Annotated[
        float,
        key(
            "How long a client may take nothing at all of an answer that waits for it; a slow one "
            "is let be.",
            POSITIVE_DURATION,
            "1h",
        ),
    ] = 300.0
    max_in_flight: Annotated[
        int,
        plain(
            "Most requests that one key, or one address without a key, may have open at once; "
            "further ones get 429. A key's own `max_in_flight` comes before this; 0: no limit.",
            256,
            ge=0,
        ),
    ] = 1024


class Config(Record, frozen=True, kw_only=True, dict=True):
    """The whole file; names of presets in it are ids, whatever alias was written."""

    listen: Annotated[
        tuple[Endpoint, ...],
        key(
            "Where clients connect: host:port, [v6]:port, :port (every interface), unix:PATH, or a "
            "list of them.",
            LISTEN,
            "127.0.0.1:8080",
            ["127.0.0.1:8080", "unix:/run/lswap.sock"],
        ),
    ] = (Endpoint(host="127.0.0.1", port=8080),)
    allow_unauthenticated: Annotated[
        bool, plain("Needed to listen where other machines can connect.", True)
    ] = False
    allowed_hosts: Annotated[
        tuple[str, ...],
        key(
            "Names this server may be addressed by, besides IP addresses, localhost and the "
            "machine's own names.",
            HOSTS,
            ["gpubox.lan"],
        ),
    ] = ()
    keys: Annotated[
        Keys, plain("Who may use this server; without a file everybody who reaches it.")
    ] = Keys()
    cors: Annotated[Cors, plain("Pages of other origins that may use this server.")] = Cors()
    limits: Annotated[Limits, plain("What a client may send.")] = Limits()
    default_model: Annotated[
        str | None, key("The model of requests that name none.", or_null(TEXT), "qwen3-8b")
    ] = None
    ui: Annotated[
        str,
        key(
            "What browsers get at /: auto, the web UI that llama-server brings along; none; or the "
            "folder of another one.",
            UI,
            "none",
            "~/my-ui",
        ),
    ] = "auto"
    autoload: Annotated[
        bool, plain("Load a model when a request needs it; false: only on command.", False)
    ] = True
    capture: Annotated[
        Literal["off", "on"],
        plain(
            "on: store prompts and answers, a line of JSON each, in "
            "`$XDG_STATE_HOME/lswap/captures` for their owner's eyes only.",
            "on",
        ),
    ] = "off"
    allow_args: Annotated[
        bool,
        plain(
            "Let an administrator load a model with other arguments than the file's "
            "(`POST /lswap/v1/models/{id}/load`).",
            True,
        ),
    ] = False
    allow_media_urls: Annotated[
        bool,
        plain(
            "Let llama-server fetch media that requests name by http(s):// URLs, anywhere.", True
        ),
    ] = False
    engine: Annotated[
        EngineSpec,
        key(
            "Which llama-server: auto, a path, or {build, backend} of an installed one.",
            ENGINE,
            "~/llama.cpp/build/bin/llama-server",
            {"build": "b11434", "backend": "cuda"},
        ),
    ] = "auto"
    env: Annotated[
        dict[str, str], key("Environment variables of every child.", ENV, {"OMP_NUM_THREADS": "8"})
    ] = field(default_factory=dict)
    memory: Annotated[Memory, plain("What may be used of each device.")] = Memory()
    policy: Annotated[Policy, plain("Who is loaded, and who waits how long.")] = Policy()
    waiting: Annotated[Waiting, plain("What a client sees while its request waits.")] = Waiting()
    log: Annotated[Log, plain("lswap's own log, and its children's.")] = Log()
    defaults: Annotated[Defaults, plain("What every preset starts from.")] = Defaults()
    models: Annotated[dict[str, Preset], plain("The presets, by the name clients ask for.")]
    model_dirs: Annotated[
        tuple[str, ...],
        key(
            "Folders whose GGUF files become presets, by their names: a folder or shards are one "
            "model, mmproj* its projector. An entry of `models` for a file wins; an entry "
            "without a file holds settings for the model of its name.",
            PATHS,
            ["~/models"],
        ),
    ] = ()

    aliases: Annotated[
        dict[str, Alias], plain("Names that are no preset's own, and choose among several.")
    ] = field(default_factory=dict)
    list_aliases: Annotated[
        bool,
        plain(
            "List every name that clients can use, also "
            "`aliases` and names of `request.per_name`. false: list only the presets.",
            False,
        ),
    ] = True
    groups: Annotated[
        dict[str, Group], plain("Presets that have to do with each other, by a name of yours.")
    ] = field(default_factory=dict)

    vars: Annotated[
        dict[str, str | int | float | bool],
        key(
            "Names for what the file says more than once: ${root} stands for it in any value, "
            "${env.HOME} for the environment's, $${ for ${ itself.",
            METADATA,
            {"root": "~/models"},
        ),
    ] = field(default_factory=dict)

    compat: Annotated[
        str | None,
        key(
            "Take the defaults of this earlier release for every key that the file does not set.",
            or_null(COMPAT),
            "0.1",
        ),
    ] = None

    # Where the file said what, how it spelled options, what it took from the environment, what lay
    # in its `model_dirs`, and the presets that it describes wrongly; no keys of it.
    source: str = "config"
    lines: dict[str, int] = field(default_factory=dict)
    spelled: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    sources: Sources | None = None
    folders: tuple[Folder, ...] = ()
    broken: dict[str, tuple[Mistake, ...]] = field(default_factory=dict)
    described: dict[str, Preset] = field(default_factory=dict)
    """Of the broken ones those of which the rest can be looked at, as far as they can be read."""

    def where(self, place: str) -> str:
        """Return `config.yaml:12: models.a.ttl` for a place, without the line if it has none.

        Of a model that was only found in a folder it is `models folder: a.gguf`.
        """
        line = self.lines.get(place)
        if line is None and (file := file_found(place, self.models, self.lines)):
            return f"models folder: {file}"
        if line is None or self.sources is None:
            return f"{self.source}: {place}"
        return f"{self.sources.where(line)}: {place}"

    def find(self, name: str) -> Preset | None:
        """Return the preset with this name: its id, an alias, or one of `request.per_name`."""
        known = spelled(name, self._ids)
        return None if known is None else self.models[self._ids[known]]

    @cached_property
    def _ids(self) -> dict[str, str]:
        others = {name: each.id for each in self.models.values() for name in each.other_names}
        return others | {id: id for id in self.models}

    @cached_property
    def _groups(self) -> Mapping[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for name, group in self.groups.items():
            for id in group.exclusive:
                found[id] = (*found.get(id, ()), name)
        return found


def groups_of(config: Config, preset_id: str) -> tuple[str, ...]:
    """Return the names of the exclusive groups a preset is in, in the file's order."""
    return config._groups.get(preset_id, ())
