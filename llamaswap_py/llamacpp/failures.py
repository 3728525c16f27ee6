"""Finds why a child ended, from its exit status and the last lines it wrote.

The texts are those of llama.cpp b11434 and older. If no rule matches, the first error line is the
summary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeAlias


class FailureKind(Enum):
    """Kinds that a caller treats differently; users and JSON see the value."""

    OUT_OF_MEMORY = "out_of_memory"
    FILE_MISSING = "file_missing"
    FILE_CORRUPT = "file_corrupt"
    BAD_ARGUMENT = "bad_argument"
    UNKNOWN_ARCHITECTURE = "unknown_architecture"
    PORT = "port"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    KILLED = "killed"
    OOM_KILLED = "oom_killed"
    RPC_LOST = "rpc_lost"
    TENSOR_TOO_LARGE = "tensor_too_large"
    ENGINE = "engine"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a child ended unasked: the kind, and one line of text."""

    kind: FailureKind
    summary: str


_Summary: TypeAlias = Callable[["re.Match[str]"], str]
_Rule: TypeAlias = tuple[FailureKind, "re.Pattern[str]", _Summary]


def _rule(kind: FailureKind, pattern: str, summary: _Summary) -> _Rule:
    return kind, re.compile(pattern), summary


def _fixed(text: str) -> _Summary:
    return lambda _match: text


# The first rule that matches any line wins. So rules for causes stand above those for effects:
# "failed to load model" follows every cause. A missing draft model never says "invalid argument".
_RULES: Final[tuple[_Rule, ...]] = (
    _rule(
        FailureKind.ENGINE,
        r"^setpriv: failed to execute (?P<what>.+)",
        lambda m: f"cannot run {m['what']}",
    ),
    _rule(
        FailureKind.ENGINE,
        r"error while loading shared libraries: (?P<what>[^:]+):",
        lambda m: f"llama-server needs the library {m['what']}, which is not here",
    ),
    _rule(
        FailureKind.BAD_ARGUMENT,
        r"^error: invalid argument: (?P<what>.+)",
        lambda m: f"llama-server does not know the argument {m['what']}",
    ),
    _rule(
        FailureKind.BAD_ARGUMENT,
        r'^error while handling argument "(?P<what>[^"]+)": (?P<why>.*)',
        lambda m: f"bad value for argument {m['what']}: {_plain_reason(m['why'])}",
    ),
    _rule(
        FailureKind.BAD_ARGUMENT,
        r"^error while handling environment variable \"(?P<what>[^\"]+)\": (?P<why>.*)",
        lambda m: f"bad value for environment variable {m['what']}: {_plain_reason(m['why'])}",
    ),
    _rule(
        FailureKind.PORT,
        r"couldn't bind (?:to|HTTP) server socket(?:[:,] hostname(?:=|: )(?P<host>[^\s,]+))?",
        lambda m: f"llama-server could not listen on {m['host'] or 'its address'}",
    ),
    _rule(
        FailureKind.OUT_OF_MEMORY,
        r"cudaMalloc failed: out of memory|CUDA error: out of memory|hipMalloc failed"
        r"|(?:ErrorOutOfDeviceMemory|VK_ERROR_OUT_OF_DEVICE_MEMORY)",
        _fixed("not enough memory on the graphics card"),
    ),
    _rule(
        FailureKind.OUT_OF_MEMORY,
        r"failed to allocate (?P<what>(?:\S+ )?buffer(?: for [\w ]+| of size [\d.]+ [KMG]iB)?)",
        lambda m: f"not enough memory: could not allocate the {m['what']}",
    ),
    _rule(
        FailureKind.OUT_OF_MEMORY,
        r"ggml_aligned_malloc: insufficient memory(?P<more>.*)|std::bad_alloc"
        r"|[Cc]annot allocate memory|unable to allocate \S+ buffer|failed to mlock .*no memory",
        _fixed("not enough memory on the host"),
    ),
    _rule(
        FailureKind.TENSOR_TOO_LARGE,
        r"pre-allocated tensor \((?P<what>[^ )]+).*?\) in a buffer \((?P<device>[^)]+)\)",
        lambda m: f"{m['device']} cannot compute with the tensor {m['what']}: it is too large",
    ),
    _rule(
        FailureKind.UNKNOWN_ARCHITECTURE,
        r"unknown (?:model architecture|projector type): '?(?P<what>[^']+)'?",
        lambda m: f"this llama-server does not know the model architecture {m['what']!r}",
    ),
    _rule(
        FailureKind.FILE_MISSING,
        r"failed to open (?:GGUF file )?'?(?P<what>[^']+)'? ?[:(] ?(?P<why>[^)]+)",
        lambda m: f"cannot open {m['what']}: {m['why'][:1].lower()}{m['why'][1:]}",
    ),
    _rule(
        FailureKind.FILE_CORRUPT,
        r"tensor '(?P<what>[^']+)' data is not within the file bounds",
        lambda m: f"the file is cut short: tensor {m['what']!r} lies beyond its end",
    ),
    _rule(
        FailureKind.FILE_CORRUPT,
        r"invalid magic characters: '(?P<what>[^']*)'|invalid magic number",
        _fixed("this is not a GGUF file: it does not begin with GGUF"),
    ),
    _rule(
        FailureKind.FILE_CORRUPT,
        r"gguf_init\w*: (?:failed to read (?P<what>.+)|(?P<why>.+))",
        lambda m: (
            f"the file is damaged or cut short: its {m['what']} cannot be read"
            if m["what"]
            else f"the file is damaged: {m['why']}"
        ),
    ),
    _rule(
        FailureKind.FILE_CORRUPT,
        r"(?:missing tensor|check_tensor_dims: tensor|wrong number of tensors).*",
        lambda m: f"the file does not hold what its header promises: {m[0]}",
    ),
    _rule(
        FailureKind.FILE_MISSING,
        r"[Ff]ailed to load (?:CLIP|multimodal) model(?: from|,) '?(?P<what>[^']+)'?",
        lambda m: f"cannot load the projector file {m['what']}",
    ),
)
_MODEL_NAME: Final = re.compile(r"failed to load (?:draft )?model,? '(?P<what>[^']+)'")
_PLAIN_PREFIX: Final = re.compile(r"^(?:\d+\.\d\d\.\d{3}\.\d{3} )?(?:[IWED] )?")
_LOG_PREFIX: Final = re.compile(r"^(?:(?:srv|cmn|que|res)\s+\S+: )?")
# GGML_ABORT in ggml-rpc.cpp: the only file that aborts because a server is gone.
_RPC_LOST: Final = re.compile(r"\bggml-rpc\.cpp:\d+: (?P<why>.+)")
_ABORTED: Final = 6
_ERROR_LINE: Final = re.compile(
    r"^(?:\d+\.\d\d\.\d{3}\.\d{3} )?E "
    r"|\berror\b|\bfailed\b|terminate called|GGML_ASSERT|\bwhat\(\)",
    re.IGNORECASE,
)
_CRASHES: Final = {
    4: "an illegal instruction (was this llama-server built for another CPU?)",
    6: "SIGABRT",
    7: "SIGBUS (a model file that shrank, or a disk that failed?)",
    8: "SIGFPE",
    11: "SIGSEGV",
}


def classify(
    code: int | None,
    signal: int | None,
    tail: Sequence[str],
    *,
    asked: bool = False,
    stalled: bool = False,
    oom_killed: bool = False,
    rpc: Sequence[str] = (),
) -> Failure | None:
    """Return why a child ended, None when it ended because it was told to.

    `asked`: a stop was asked for. `stalled`: it had shown no sign of life for too long, so that an
    asked stop is a failure of kind `timeout`. `oom_killed`: the kernel has killed a process of its
    cgroup because memory ran out. `rpc` are the endpoints of the RPC servers that it used.
    """
    lines = [_PLAIN_PREFIX.sub("", line) for line in tail]
    if stalled:
        last = f"; it last said: {_LOG_PREFIX.sub('', lines[-1])}" if lines else ""
        return Failure(FailureKind.TIMEOUT, f"loading stalled{last}")
    if asked:
        return None
    if rpc and (signal == _ABORTED or code == 128 + _ABORTED) and (why := _rpc_reason(lines)):
        return Failure(FailureKind.RPC_LOST, _rpc_lost(why, rpc))
    found = _match_rules(lines)
    if found is not None:
        return found
    if oom_killed and signal == 9:
        return Failure(
            FailureKind.OOM_KILLED,
            "llama-server was killed by the kernel: it took more host memory than memory_max "
            "allows, or than there was",
        )
    if signal is not None:
        return _judge_signal(signal, tail)
    if code in (126, 127):
        return Failure(FailureKind.ENGINE, f"llama-server could not be run (exit code {code})")
    said = _first_error(tail)
    because = f": {said}" if said else ""
    return Failure(FailureKind.EXITED, f"llama-server ended with exit code {code}{because}")


def kind_of(line: str) -> FailureKind | None:
    """Return the kind of failure that a rule reads in one line, None where no rule matches."""
    found = _match_rules([_PLAIN_PREFIX.sub("", line)])
    return None if found is None else found.kind


def _match_rules(lines: Sequence[str]) -> Failure | None:
    for kind, pattern, summary in _RULES:
        for line in lines:
            match = pattern.search(line)
            if match:
                return Failure(kind, summary(match) + _name_file(kind, line, lines))
    return None


def _rpc_reason(lines: Sequence[str]) -> str:
    """Return what the RPC backend said when it aborted; "" if it did not."""
    return next((found["why"].strip() for one in lines if (found := _RPC_LOST.search(one))), "")


def _rpc_lost(why: str, endpoints: Sequence[str]) -> str:
    """Name the RPC server that is gone, or all of them if the output does not say which."""
    named = [one for one in endpoints if re.search(rf"(?<!\S){re.escape(one)}(?!\S)", why)]
    if len(named or endpoints) == 1:
        return f"the RPC server {(named or endpoints)[0]} is gone: {why}"
    return f"one of the RPC servers {' and '.join(endpoints)} is gone: {why}"


def _name_file(kind: FailureKind, line: str, lines: Sequence[str]) -> str:
    """Return ` (FILE)` for an error of a model file, if the error's line does not name the file."""
    if kind not in (FailureKind.FILE_CORRUPT, FailureKind.UNKNOWN_ARCHITECTURE):
        return ""
    for other in lines:
        match = _MODEL_NAME.search(other)
        if match and match["what"] not in line:
            return f" ({match['what']})"
    return ""


def _judge_signal(signal: int, tail: Sequence[str]) -> Failure:
    if signal in _CRASHES:
        said = _first_error(tail)
        because = f": {said}" if said else ""
        return Failure(
            FailureKind.CRASHED, f"llama-server crashed with {_CRASHES[signal]}{because}"
        )
    if signal == 9:
        return Failure(
            FailureKind.KILLED,
            "llama-server was killed (SIGKILL): by someone, or by the kernel for want of memory",
        )
    return Failure(FailureKind.KILLED, f"llama-server was ended by signal {signal}")


def _first_error(tail: Sequence[str]) -> str | None:
    for line in tail:
        if _ERROR_LINE.search(line):
            return as_quoted(line)
    return None


def as_quoted(line: str) -> str:
    """Return a line as the reason of a failure quotes it."""
    return _LOG_PREFIX.sub("", _PLAIN_PREFIX.sub("", line))[:300]


def _plain_reason(why: str) -> str:
    """Replace the bare function name of a C++ error: `stoi` does not explain anything to users."""
    return "not a number" if why.strip() in ("stoi", "stol", "stoll", "stof", "stod") else why
