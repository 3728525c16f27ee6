"""What lswap knows of llama-server's options without asking a binary.

Spellings and meanings are those of `llama-server --help`, build 11434 (llama.cpp common/arg.cpp).
The table of the located binary is the truth; this one lets the file be read without it.
"""

from __future__ import annotations

from typing import Final, NamedTuple


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
        "a preset means what it says, unless it says otherwise",
        "set the preset's key `fit: shrink`",
    ),
    "fit-target": Owned(
        "it is the margin of the preset's devices",
        "set the preset's key `fit: shrink`, and `memory.margin`",
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

PATH_OPTIONS: Final = frozenset(
    {
        "mmproj",
        "model-draft",
        "grammar-file",
        "json-schema-file",
        "chat-template-file",
        "slot-save-path",
        "media-path",
        "lookup-cache-static",
        "lookup-cache-dynamic",
        "webui-config-file",
        "mcp-servers-config",
        "video-ffmpeg-dir",
        "log-prompts-dir",
        "path",
    }
)
"""Options whose value is one path."""

PATH_LISTS: Final = frozenset({"lora", "lora-scaled", "control-vector", "control-vector-scaled"})
"""Options whose value is paths with commas between them, some followed by `:SCALE`."""


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
