"""The sections of the configuration: the name, default, description and form of each key.

Durations are in seconds, sizes in bytes. The reader (parse.py), the JSON Schema (json_schema.py)
and the reference page (reference.py) are derived from these classes, so a key is described only
here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Literal, TypeAlias

from msgspec import field

from llamaswap_py.config.api_keys import Keys
from llamaswap_py.config.compat import COMPAT
from llamaswap_py.config.discovery import Folder
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
from llamaswap_py.config.listen import LISTEN
from llamaswap_py.config.model_forms import BUDGETS, ENGINE, ENV, KEPT_FREE, METADATA
from llamaswap_py.config.origins import Cors
from llamaswap_py.config.preset import Defaults, Preset
from llamaswap_py.config.preset_names import Alias, PresetGroup, file_found, spelled
from llamaswap_py.config.sources import Sources
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.units import GIB, KIB, MIB


class KeepKv(Record, frozen=True):
    "What the `keep_kv` of all models may take together."

    limit: Annotated[
        int,
        key(
            "How many bytes of conversations are kept at once. Above that, the oldest are deleted.",
            POSITIVE_SIZE,
            "16GiB",
        ),
    ] = 4 * GIB
    dir: Annotated[
        str | None,
        key(
            "Folder for the conversations. auto: main memory ($XDG_RUNTIME_DIR or /dev/shm, "
            "whichever has room for `limit`), else $XDG_CACHE_HOME. A model that needs the main "
            "memory gets it back at once.",
            or_word("auto", PATH),
            "/mnt/nvme/lswap",
        ),
    ] = None
    timeout: Annotated[
        float,
        key(
            "How long saving conversations may delay an unload, and restoring them a load.",
            DURATION,
            "10s",
        ),
    ] = 2.0


class Memory(Record, frozen=True):
    """What may be used of each device."""

    margin: Annotated[
        PerDevice,
        key(
            "How much memory is always left free: one size for every device, or one per device "
            "(1GiB on those not named). auto: 1GiB on every device; down to 128MiB for a model "
            "with `fit: auto` that fits in no other way.",
            KEPT_FREE,
            "2GiB",
            {"CUDA0": "2GiB", "host": "4GiB"},
        ),
    ] = PerDevice(GIB, may_yield=True)
    devices: Annotated[
        dict[str, int] | None,
        key(
            "How much memory each device has. auto: ask the machine; a mapping declares it "
            "(containers, WSL, tests).",
            BUDGETS,
            {"CUDA0": "24GiB", "host": "64GiB"},
        ),
    ] = None
    settle: Annotated[
        float,
        key(
            "How long to wait until the memory of a stopped model shows up as free.",
            DURATION,
            "10s",
        ),
    ] = 5.0
    cache_ram: Annotated[
        int,
        key(
            "Size of llama-server's prompt cache, for each loaded model. It counts as host "
            "memory. 0 turns it off (llama-server's own default is 8 GiB).",
            SIZE,
            "4GiB",
        ),
    ] = GIB
    read_ahead: Annotated[
        Literal["auto", "off"],
        plain(
            "auto: while a model waits for memory, read its files into the page cache, as far as "
            "host memory is free. off: do not.",
            "off",
        ),
    ] = "auto"
    host_cache: Annotated[
        int | None,
        key(
            "How many bytes of model files `keep_in_ram` keeps in the page cache; null: as many "
            "as host memory has free.",
            or_null(SIZE),
            "32GiB",
        ),
    ] = None
    keep_kv: Annotated[KeepKv, plain("What the `keep_kv` of all models may take together.")] = (
        KeepKv()
    )


Mistake: TypeAlias = tuple[str, str, str]
"""Place, message and remedy."""

__all__ = [
    "Alias",
    "Config",
    "Cors",
    "Defaults",
    "Keys",
    "Limits",
    "Log",
    "Memory",
    "Policy",
    "Preset",
    "PresetGroup",
    "Queue",
    "Record",
    "Waiting",
    "groups_of",
]


class Queue(Record, frozen=True):
    """Requests that wait for a model."""

    limit: Annotated[
        int, plain("How many requests may wait for one model; more get 429.", 64, ge=1)
    ] = 512
    timeout: Annotated[
        float, key("How long a request may wait before it gets 503.", POSITIVE_DURATION, "5m")
    ] = 900.0


class Policy(Record, frozen=True):
    "Which models are loaded, and how long requests wait."

    max_loaded: Annotated[
        int, plain("How many models may be loaded at once; 0: only memory decides.", 2, ge=0)
    ] = 0
    max_wait: Annotated[
        float,
        key(
            "When a request has waited this long, the busy models whose memory it needs accept no "
            "new requests, so that its turn comes.",
            DURATION,
            "20s",
        ),
    ] = 60.0
    when_full: Annotated[
        str,
        key(
            "What a request gets if a busy model would have to be unloaded for it. wait: it waits "
            "for its turn; refuse: 503 at once; substitute: another model answers. A model's own "
            "`when_full` comes before this.",
            WHEN_FULL,
            "refuse",
            {"substitute": "loaded"},
        ),
    ] = "wait"
    queue: Annotated[Queue, plain("Requests that wait for a model.")] = Queue()
    detached_timeout: Annotated[
        float,
        key(
            "How long an answer continues after its client has disconnected, if the client may "
            "come back (`resume`). At most 10s once another request waits for the memory.",
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
            "How long a stream waits in silence before it gets its first comment line.",
            POSITIVE_DURATION,
            "5s",
        ),
    ] = 10.0
    json: Annotated[
        Literal["none", "whitespace"],
        plain(
            "whitespace: send spaces while a client waits for an answer that is not a stream, so "
            "that proxies do not time out. The spaces are legal JSON, but errors then arrive with "
            "status 200. none: send nothing."
        ),
    ] = "none"


class Log(Record, frozen=True):
    "lswap's own log, and the output of the models' processes."

    level: Annotated[
        Literal["debug", "info", "warning", "error"], plain("The lowest level that is logged.")
    ] = "info"
    format: Annotated[
        Literal["auto", "pretty", "json"],
        plain(
            "pretty: for people, with colours on a terminal; json: one object for each line; "
            "auto: pretty, but under systemd with levels and without times, as its journal reads "
            "them."
        ),
    ] = "auto"
    dir: Annotated[
        str | None,
        key(
            "Folder for the output of the models' processes; null: keep the last lines in memory "
            "only.",
            or_null(PATH),
            "/var/log/lswap",
        ),
    ] = None
    rotate: Annotated[
        int | None,
        key(
            "When a model's file in `dir` has grown to this size, it is renamed to FILE.1. Three "
            "old files are kept. null: the file grows for ever.",
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
            "How much memory the large bodies of open requests may take together. A request "
            "beyond it gets 503. One key may take half. auto: an eighth of main memory, but at "
            "least four times the larger of `body` and `upload`.",
            or_word("auto", POSITIVE_SIZE),
            "4GiB",
        ),
    ] = None
    connections: Annotated[
        int | None,
        word(
            "How many connections clients may have at once. auto: half of the files that lswap "
            "may open, after a reserve for the models; a higher number is lowered to that. One "
            "key may have half. If none is left, lswap closes some on which it waits for the "
            "client.",
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
            "How long a client may read nothing of its answer before the connection is closed. A "
            "client that reads slowly is not cut off.",
            POSITIVE_DURATION,
            "1h",
        ),
    ] = 300.0
    max_in_flight: Annotated[
        int,
        plain(
            "How many requests one key, or one address without a key, may have open at once; more "
            "get 429. A key's own `max_in_flight` comes before this; 0: no limit.",
            256,
            ge=0,
        ),
    ] = 1024


class Config(Record, frozen=True, kw_only=True, dict=True):
    """The whole file. Where it names a preset by an alias, this has the preset's id."""

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
        bool,
        plain(
            "Let other machines connect without a key. Without keys, lswap does not start on an "
            "address that they can reach unless this is true.",
            True,
        ),
    ] = False
    allowed_hosts: Annotated[
        tuple[str, ...],
        key(
            "Host names by which clients may address lswap, besides IP addresses, localhost and "
            "the machine's own names.",
            HOSTS,
            ["gpubox.lan"],
        ),
    ] = ()
    keys: Annotated[
        Keys, plain("Who may use lswap; without a key file, everybody who reaches it.")
    ] = Keys()
    cors: Annotated[Cors, plain("Web pages of other origins that may use lswap.")] = Cors()
    limits: Annotated[Limits, plain("What a client may send.")] = Limits()
    default_model: Annotated[
        str | None, key("The model for requests that do not name one.", or_null(TEXT), "qwen3-8b")
    ] = None
    ui: Annotated[
        str,
        key(
            "What browsers get at /. auto: llama-server's web UI; none: no UI; or the folder of "
            "another UI.",
            UI,
            "none",
            "~/my-ui",
        ),
    ] = "auto"
    autoload: Annotated[
        bool,
        plain(
            "Load a model when a request needs it; false: only by `lswap load` and the like.", False
        ),
    ] = True
    capture: Annotated[
        Literal["off", "on"],
        plain(
            "on: store prompts and answers, one line of JSON for each request, in "
            "`$XDG_STATE_HOME/lswap/captures`. Only the user that runs lswap can read them.",
            "on",
        ),
    ] = "off"
    allow_args: Annotated[
        bool,
        plain(
            "Let clients with an admin key load a model with other arguments than the file's "
            "(`POST /lswap/v1/models/{id}/load`).",
            True,
        ),
    ] = False
    allow_media_urls: Annotated[
        bool,
        plain(
            "Let llama-server fetch images, sounds and videos that requests name by http(s):// "
            "URLs, from any address.",
            True,
        ),
    ] = False
    engine: Annotated[
        EngineSpec,
        key(
            "Which llama-server to use: auto, a path, or {build, backend} of an installed one.",
            ENGINE,
            "~/llama.cpp/build/bin/llama-server",
            {"build": "b11434", "backend": "cuda"},
        ),
    ] = "auto"
    env: Annotated[
        dict[str, str], key("Environment variables for all models.", ENV, {"OMP_NUM_THREADS": "8"})
    ] = field(default_factory=dict)
    memory: Annotated[Memory, plain("What may be used of each device.")] = Memory()
    policy: Annotated[Policy, plain("Which models are loaded, and how long requests wait.")] = (
        Policy()
    )
    waiting: Annotated[Waiting, plain("What a client sees while its request waits.")] = Waiting()
    log: Annotated[Log, plain("lswap's own log, and the output of the models' processes.")] = Log()
    defaults: Annotated[
        Defaults, plain("Settings for all models; a model's own keys override them.")
    ] = Defaults()
    models: Annotated[dict[str, Preset], plain("The models, by the name that clients ask for.")]
    model_dirs: Annotated[
        tuple[str, ...],
        key(
            "Folders whose GGUF files become models. `x.gguf` is named `x`; a folder that holds "
            "one model, or its shards, gives the folder's name; mmproj* is the projector. An "
            "entry of `models` for the same file wins; an entry without a file has settings for "
            "the model of its name.",
            PATHS,
            ["~/models"],
        ),
    ] = ()

    aliases: Annotated[
        dict[str, Alias],
        plain("Names that stand for several models; lswap chooses one for each request."),
    ] = field(default_factory=dict)
    list_aliases: Annotated[
        bool,
        plain(
            "List every name that clients can use, also `aliases` and names of "
            "`request.per_name`. false: list only the names of `models`.",
            False,
        ),
    ] = True
    groups: Annotated[
        dict[str, PresetGroup],
        plain("Models that must not be loaded together, by a name of yours."),
    ] = field(default_factory=dict)

    vars: Annotated[
        dict[str, str | int | float | bool],
        key(
            "Values that the file uses more than once: ${root} stands for `root` in any value, "
            "${env.HOME} for an environment variable, $${ for ${ itself.",
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

    # The following are not keys: the line of each key, how options are spelled, which values came
    # from the environment, what `model_dirs` contained, and the presets with mistakes.
    source: str = "config"
    lines: dict[str, int] = field(default_factory=dict)
    spelled: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    sources: Sources | None = None
    folders: tuple[Folder, ...] = ()
    broken: dict[str, tuple[Mistake, ...]] = field(default_factory=dict)
    described: dict[str, Preset] = field(default_factory=dict)
    """The part of a broken preset that could be read, so that commands can examine it."""

    def where(self, place: str) -> str:
        """Return `config.yaml:12: models.a.ttl` for a place, without the line if it has none.

        For a model that comes only from a folder it returns `models folder: a.gguf`.
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
