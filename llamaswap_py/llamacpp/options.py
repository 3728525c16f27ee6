"""llama-server's options: all their spellings, those that lswap sets itself, a binary's own table.

Spellings and meanings are those of `llama-server --help`, build 11434 (llama.cpp common/arg.cpp).
The table of the located binary decides. The spellings here are for reading the file without one.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

from llamaswap_py.llamacpp.features import Option

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "LONG_NAMES",
    "ONLY_NEGATED",
    "OWNED",
    "SPECULATION",
    "SWITCHES",
    "WITHOUT_LOSS",
    "Argument",
    "Given",
    "Option",
    "OptionTable",
    "Owned",
    "is_negation",
    "long_name",
    "owned",
    "plain_name",
    "spellings",
    "switched",
    "table_of",
    "word_for",
]

Argument: TypeAlias = bool | int | float | str | tuple[bool | int | float | str, ...]
"""The value of one llama-server option; a tuple repeats the option."""


class Given(Protocol):
    """Given options: `args` by name, and `extra`, words that come after them."""

    @property
    def args(self) -> Mapping[str, Argument]: ...

    @property
    def extra(self) -> tuple[str, ...]: ...


class Owned(NamedTuple):
    """Why an option belongs to lswap, and what to write instead."""

    reason: str
    instead: str


# One option a line: all spellings of its positive form as --help orders them, which puts the name
# that llama.cpp's own preset files use last (common/preset.cpp).
_SPELLINGS: Final = """
h help usage
cl cache-list
t threads
tb threads-batch
C cpu-mask
Cr cpu-range
Cb cpu-mask-batch
Crb cpu-range-batch
c ctx-size
n predict n-predict
b batch-size
ub ubatch-size
fa flash-attn
e escape
kvo kv-offload
ctk cache-type-k
ctv cache-type-v
dt defrag-thold
lm load-mode
lzm lazy-mode
dev device
ot override-tensor
cmoe cpu-moe
ncmoe n-cpu-moe
ncffn n-cpu-ffn
ngl gpu-layers n-gpu-layers
sm split-mode
ts tensor-split
mg main-gpu
fit fit
fitt fit-target
fitc fit-ctx
m model
mu model-url
dr docker-repo
hf hfr hf-repo
hff hf-file
hft hf-token
v verbose log-verbose
lv verbosity log-verbosity
spec-draft-type-k ctkd cache-type-k-draft
spec-draft-type-v ctvd cache-type-v-draft
s seed
sampler-seq sampling-seq
temp temperature
top-nsigma top-n-sigma
typical typical-p
l logit-bias
j json-schema
jf json-schema-file
bs backend-sampling
spec-draft-hf hfd hfrd hf-repo-draft
spec-draft-threads td threads-draft
spec-draft-threads-batch tbd threads-batch-draft
spec-draft-cpu-mask Cd cpu-mask-draft
spec-draft-cpu-range Crd cpu-range-draft
spec-draft-cpu-strict cpu-strict-draft
spec-draft-prio prio-draft
spec-draft-poll poll-draft
spec-draft-cpu-mask-batch Cbd cpu-mask-batch-draft
spec-draft-cpu-strict-batch cpu-strict-batch-draft
spec-draft-prio-batch prio-batch-draft
spec-draft-poll-batch poll-batch-draft
spec-draft-override-tensor otd override-tensor-draft
spec-draft-cpu-moe cmoed cpu-moe-draft
spec-draft-n-cpu-moe spec-draft-ncmoe ncmoed n-cpu-moe-draft
spec-draft-p-split draft-p-split
spec-draft-p-min draft-p-min
spec-draft-device devd device-draft
spec-draft-ngl ngld gpu-layers-draft n-gpu-layers-draft
spec-draft-model md model-draft
lcs lookup-cache-static
lcd lookup-cache-dynamic
ctxcp ctx-checkpoints swa-checkpoints
cms checkpoint-min-step
cram cache-ram
kvu kv-unified
r reverse-prompt
sp special
np parallel
cb cont-batching
mm mmproj
mmu mmproj-url
mmdev mmproj-device
a alias
ui-config webui-config
ui-config-file webui-config-file
ui-mcp-proxy webui-mcp-proxy
ag agent
ui webui
embedding embeddings
rerank reranking
to timeout
rea reasoning
sps slot-prompt-similarity
"""

LONG_NAMES: Final[dict[str, str]] = {
    name: names[-1] for names in map(str.split, _SPELLINGS.strip().splitlines()) for name in names
}
"""Every known spelling without dashes -> the name lswap shows."""

_GROUPS: Final[dict[str, tuple[str, ...]]] = {
    names[-1]: names for names in (tuple(line.split()) for line in _SPELLINGS.strip().splitlines())
}

_DOWNLOAD: Final = Owned("children run offline", "download the file and name it in `model`")
_LISTENER: Final = Owned(
    "lswap picks the address and the port itself", "remove it; clients connect to the key `listen`"
)
_LOGGING: Final = Owned("lswap reads its children's logs", "set the key `log`")
_INFORMATION: Final = Owned("llama-server would print and exit", "run llama-server by hand")
_KEYS: Final = Owned("clients' keys are lswap's business, children are private", "remove it")
_UI: Final = Owned("children answer under their own root", "remove it")

OWNED: Final[dict[str, Owned]] = {
    "host": _LISTENER,
    "port": _LISTENER,
    "reuse-port": _LISTENER,
    "ssl-key-file": _LISTENER,
    "ssl-cert-file": _LISTENER,
    "api-prefix": _UI,
    "api-key": _KEYS,
    "api-key-file": _KEYS,
    "model": Owned("the file is the preset's", "set the preset's key `model`"),
    "alias": Owned("children answer to the preset's name", "set the preset's key `aliases`"),
    "metrics": Owned("lswap always passes it", "remove it"),
    "slots": Owned("lswap always passes it", "remove it"),
    "offline": Owned("lswap always passes it", "remove it"),
    "cache-ram": Owned("its memory is accounted for", "set the key `memory.cache_ram`"),
    "sleep-idle-seconds": Owned(
        "lswap has to know when memory is given back", "set the preset's key `sleep`, or `ttl`"
    ),
    "threads-http": Owned("lswap derives it from the slots", "set the preset's `concurrency`"),
    "fit": Owned(
        "lswap chooses what the options leave open",
        "set the preset's key `fit`: auto or exact",
    ),
    "fit-target": Owned(
        "it is the margin of the preset's devices",
        "set `fit: {margin: {DEVICE: SIZE}}`, or `memory.margin`",
    ),
    **dict.fromkeys(
        ("log-disable", "log-file", "log-jsonl", "log-colors", "log-prefix", "log-timestamps"),
        _LOGGING,
    ),
    "models-dir": Owned("lswap is the router", "set the key `model_dirs`"),
    "models-preset": Owned(
        "lswap is the router", "`lswap import llama-cpp FILE` takes the file over"
    ),
    "models-max": Owned("lswap is the router", "set the key `policy.max_loaded`"),
    "models-autoload": Owned("lswap is the router", "set the key `autoload`"),
    **dict.fromkeys(
        (
            "model-url",
            "docker-repo",
            "hf-repo",
            "hf-file",
            "hf-token",
            "hf-repo-draft",
            "mmproj-url",
            "embd-gemma-default",
            "fim-qwen-1.5b-default",
            "fim-qwen-3b-default",
            "fim-qwen-7b-default",
            "fim-qwen-7b-spec",
            "fim-qwen-14b-spec",
            "fim-qwen-30b-default",
            "gpt-oss-20b-default",
            "gpt-oss-120b-default",
            "vision-gemma-4b-default",
            "vision-gemma-12b-default",
        ),
        _DOWNLOAD,
    ),
    **dict.fromkeys(
        ("usage", "version", "list-devices", "completion-bash", "cache-list"), _INFORMATION
    ),
}
"""Long name -> why a preset may not set it."""

SPECULATION: Final = "spec-type"
"""The option that says which kinds of speculative decoding there are, commas between them."""
WITHOUT_LOSS: Final = frozenset(
    {"host", "port", "metrics", "slots", "offline", "threads-http", "log-colors", "log-prefix"}
    | {"log-timestamps", "log-disable", "log-jsonl", "reuse-port", "webui"}
)
"""Options that lswap sets by itself, so that they can be left out without a change."""
SWITCHES: Final = frozenset(
    {"jinja", "mmap", "mlock", "kv-offload", "kv-unified", "embeddings", "reranking", "warmup"}
    | {"cont-batching", "repack", "op-offload", "swa-full", "cache-prompt", "context-shift"}
    | {"webui", "offline", "check-tensors", "cpu-moe", "props", "direct-io", "mmproj-auto"}
    | {"mmproj-offload", "prefill-assistant", "special", "perf", "escape", "metrics", "slots"}
    | {"mmproj", "cache-idle-slots", "skip-chat-parsing", "spec-default", "reasoning-preserve"}
    | {"backend-sampling", "spec-draft-backend-sampling", "spm-infill", "ignore-eos", "host"}
    | {"agent", "cpu-moe-draft", "lora-init-without-apply", "log-prefix", "log-timestamps"}
)
"""Switches, for use without an engine: for all other options `true` or `1` is a value."""
ONLY_NEGATED: Final = frozenset({"mmproj", "host"})
"""Those of them that are switches only in their negative form: `mmproj` names a file."""


def plain_name(spelling: str) -> str:
    """Return an option's name without leading dashes, `-` for `_`, as llama.cpp reads it."""
    return spelling.lstrip("-").replace("_", "-")


def long_name(spelling: str) -> str:
    """Return the long name of any spelling of an option; an unknown one stays what it is."""
    name = plain_name(spelling)
    return LONG_NAMES.get(name, name)


def owned(name: str) -> Owned | None:
    """Return why lswap owns the option of this name (any spelling, `no-` too), or None."""
    plain = plain_name(name)
    return OWNED.get(LONG_NAMES.get(plain, plain)) or (
        OWNED.get(long_name(plain[3:])) if plain.startswith("no-") and plain != "no-host" else None
    )


def spellings(name: str) -> tuple[str, ...]:
    """Return the other spellings of an option without dashes, its long name first."""
    negated = name.startswith("no-") and name not in LONG_NAMES
    long = long_name(name[3:]) if negated else long_name(name)
    group = (long, *_GROUPS.get(long, ())[::-1])
    found = [f"no-{each}" for each in group] if negated else group
    return tuple(dict.fromkeys(each for each in found if each != name))


# The options of one binary

_TABLES: Final[dict[int, tuple[Mapping[str, Option] | None, OptionTable]]] = {}
_MOST_TABLES: Final = 8


def table_of(options: Mapping[str, Option] | None) -> OptionTable:
    """Return the table of a binary, made once: it has 400 spellings, a file 10,000 presets."""
    made = _TABLES.get(id(options))
    if made is None or made[0] is not options:
        if len(_TABLES) >= _MOST_TABLES:
            _TABLES.clear()
        made = _TABLES[id(options)] = (options, OptionTable(options))
    return made[1]


class OptionTable:
    """The binary's options by any spelling without dashes; without a table all are accepted."""

    def __init__(self, options: Mapping[str, Option] | None) -> None:
        self.is_known = options is not None
        self._by_name: dict[str, Option] = {}
        self._by_env: dict[str, tuple[Option, bool]] = {}
        for option in (options or {}).values():
            for spelling in (*option.names, *option.negated):
                self._by_name[plain_name(spelling)] = option
            if option.env:
                self._by_env[option.env] = option, True
                if option.negated:  # common_arg::get_env in common/arg.cpp
                    negated = option.env.replace("LLAMA_ARG_", "LLAMA_ARG_NO_")
                    self._by_env[negated] = option, False

    def find(self, name: str) -> Option | None:
        """Return the option that has exactly this spelling."""
        return self._by_name.get(name)

    def find_env(self, name: str) -> tuple[Option, bool] | None:
        """Return the option that a variable sets, and whether it sets rather than unsets it."""
        return self._by_env.get(name)

    def knows(self, name: str) -> bool:
        """Return whether the binary has the option and uses it; True if it is unknown."""
        option = self._by_name.get(name)
        return not self.is_known or (option is not None and not option.removed)

    def usable(self, *names: str) -> tuple[Option, str] | None:
        """Return the first option of these that the binary uses, and the spelling that it has.

        The written spelling comes first, then another spelling of the same option.
        """
        for name in (*names, *(other for each in names for other in spellings(each))):
            option = self._by_name.get(name)
            if option is not None and not option.removed:
                return option, name
        return None

    def owned_words(self, words: tuple[str, ...]) -> Iterator[tuple[str, Owned]]:
        """Yield the words of a command line that are lswap's, with the reason."""
        for word in words:
            if mine := self.owned_word(word):
                yield word, mine

    def owned_word(self, word: str) -> Owned | None:
        """Return why lswap owns the option in a word (`--host=x`, `-a`, `--no-slots`), or None."""
        if not word.startswith("-"):
            return None
        name = plain_name(word.partition("=")[0])
        if mine := owned(name):
            return mine
        option = self.find(name)
        names = (*option.names, *option.negated) if option is not None else ()
        return next((mine for each in names if (mine := owned(plain_name(each)))), None)

    def nearest(self, name: str) -> str:
        """Return a question that suggests a similar option, or ""."""
        meant = _ELSEWHERE.get(plain_name(name).replace("_", "-").lower(), "")
        if self.usable(meant) is not None:
            return f"did you mean {meant}?"
        close = difflib.get_close_matches(name, self._by_name, n=1, cutoff=0.6)
        return f"did you mean {long_name(close[0])}?" if close else ""


def word_for(option: Option, name: str) -> str:
    """Return the binary's own word for a spelling without dashes: `--temp` stays `--temp`.

    A short one becomes the long name that llama.cpp's preset files use.
    """
    long = f"--{name}"
    return long if long in option.names else option.name


def is_negation(option: Option, name: str) -> bool:
    """Return whether a spelling without dashes is one that switches the option off."""
    return any(plain_name(each) == name for each in option.negated)


def switched(value: Argument) -> bool | None:
    """Return what a word means for a switch (is_truthy in common/arg.cpp), None if nothing."""
    if isinstance(value, bool):
        return value
    return _SWITCH_WORDS.get(str(value).lower())


_ELSEWHERE: Final = {
    **dict.fromkeys(
        ("context", "context-size", "context-length", "num-ctx", "max-model-len"), "ctx-size"
    ),
    **dict.fromkeys(("num-gpu", "gpu-layer-count"), "n-gpu-layers"),
    "num-thread": "threads",
    "num-batch": "batch-size",
    "num-predict": "predict",
    "num-parallel": "parallel",
}
"""Name of an option in other programs -> its name here."""
_SWITCH_WORDS: Final = {
    **dict.fromkeys(("on", "enabled", "true", "1", "yes"), True),
    **dict.fromkeys(("off", "disabled", "false", "0", "no"), False),
}
