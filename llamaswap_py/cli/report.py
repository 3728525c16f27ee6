"""`lswap report`: writes what a bug report needs into one file, to be read before it is sent.

A part that fails says why, and the other parts are there all the same.
Secrets and quotations are taken out where their place is known (`config/redacted.py`,
`llamacpp/quoting.py`). A last pass over all lines removes what looks like a secret or an address.
"""

from __future__ import annotations

import io
import ipaddress
import json
import os
import platform
import re
import shlex
import time
from contextlib import redirect_stdout, suppress
from functools import cached_property
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml
from msgspec.structs import replace

from llamaswap_py.children.containment import examine_containment
from llamaswap_py.children.running_lswaps import find_running
from llamaswap_py.cli import check, engine, show
from llamaswap_py.cli.arguments import origin_of
from llamaswap_py.cli.init import serves_text
from llamaswap_py.cli.servers import find_url
from llamaswap_py.cli.version import commit, lswap_text
from llamaswap_py.client import calls
from llamaswap_py.client.remote import Remote
from llamaswap_py.config.redacted import redacted
from llamaswap_py.config.sections import Memory
from llamaswap_py.config.yaml_tree import MAX_TEXT, plain_value, read_yaml
from llamaswap_py.errors import ConfigError, LswapError, RemoteError
from llamaswap_py.llamacpp.binaries import Engine, locate_engine
from llamaswap_py.llamacpp.doctor import examine
from llamaswap_py.llamacpp.quoting import without_quotation, without_quotes
from llamaswap_py.redaction import Redactor
from llamaswap_py.storage.regular_files import read_regular, write_whole
from llamaswap_py.supervisor.device_lists import devices_for, find_devices
from llamaswap_py.supervisor.located_engines import Engines
from llamaswap_py.units import MIB, format_size, showable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from llamaswap_py.config.load import Origin
    from llamaswap_py.config.sections import Config
    from llamaswap_py.snapshot import ModelView, Snapshot

_PATIENCE: Final = 10.0
"""Seconds that a running lswap may take for one answer."""
_LINES: Final = {"Configuration": 400, "State": 150, "Decisions": 100, "Events": 150}
_MOST: Final = 250
"""Lines of each other part."""
_MODELS: Final = 20
"""Models that are shown with more than a line."""
_OF_EACH: Final = 6
"""Decisions shown of each of them."""
_LOG_OF_EACH: Final = 80
_KEPT_LINES: Final = 2000
_KEPT_BYTES: Final = MIB
"""Lines of a child's log that lswap keeps (children/logs.py)."""
_LONGEST: Final = 500
_TIME: Final = "%Y-%m-%d %H:%M:%S"

_HEAD: Final = """\
Made by `lswap report` on {when}. **Read it before you send it.**

In it: versions, devices and limits of the machine, the configuration and mistakes in it; if lswap
runs, its state, decisions, events and the ends of the logs. Also in it: names of models, files,
folders and API keys, and the host names in the configuration.

Left out: API keys, tokens and passwords; values of environment variables and of `env`, `vars` and
unknown keys; texts in `request`; the name of your home folder (`~`) and of others'; addresses of
clients; and lines of logs that may quote prompts or answers. In their place it says `[redacted]`,
`[address]` or `[… left out]`.
"""


def run(path: Path, *, config: Path | None, force: bool, url: str | None, key: str | None) -> None:
    """Write the report; raises ConfigError if the file exists or cannot be written."""
    if str(path) == "-":
        print(report_text(config, url, key), end="")
        return
    if os.path.lexists(path) and not force:
        remedy = "name another file, or overwrite it with --force"
        raise ConfigError("this file exists already", where=str(path), remedy=remedy)
    text = report_text(config, url, key).encode()
    try:
        write_whole(path, text, mode=0o600)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"it cannot be written: {reason}", where=str(path)) from None
    print(f"wrote {path} ({format_size(len(text))}): read it before you send it")


def report_text(config: Path | None, url: str | None, key: str | None) -> str:
    """Return the whole report."""
    lswap = _Lswap(url, key)
    file = _File(config, lswap)
    parts: dict[str, Callable[[], Iterable[str]]] = {
        "Versions": _versions,
        "Machine": _machine,
        "Devices": file.devices,
        "Configuration": file.configuration,
        "Mistakes in the configuration": file.mistakes,
        "State": lswap.state,
        "Why models are loaded or not": lswap.whys,
        "Decisions": lswap.decisions,
        "Events": lswap.events,
        "Log of lswap": lswap.own_log,
        "Logs of models": lswap.logs,
    }
    gathered = {title: _gathered(part) for title, part in parts.items()}
    clean = _Cleaner(key, file.secrets, lswap.loaded)
    when = time.strftime(f"{_TIME} (UTC%z)")
    lines = ["# lswap report", "", *_HEAD.format(when=when).splitlines()]
    for title, found in gathered.items():
        # Four blanks make a Markdown block that is shown as it is.
        lines += ["", f"## {title}", ""]
        lines += [f"    {clean(line)}".rstrip() for line in _bounded(title, found)]
    return "\n".join(lines) + "\n"


def _gathered(part: Callable[[], Iterable[str]]) -> list[str]:
    lines: list[str] = []
    try:
        lines.extend(part())
    except LswapError as error:
        lines.append(f"could not be gathered: {error}")
    except Exception as error:  # reported; the other parts follow
        lines.append(f"could not be gathered: {type(error).__name__}: {error}")
    return [each for line in lines for each in (line.splitlines() or [""])] or ["nothing"]


def _bounded(title: str, lines: list[str]) -> Iterator[str]:
    """Yield the first lines of a part, or the last lines of a log."""
    most = _LINES.get(title, _MOST)
    if title == "Logs of models" or len(lines) <= most:
        yield from lines
    elif title == "Log of lswap":
        yield f"[{len(lines) - most} earlier lines left out]"
        yield from lines[-most:]
    else:
        yield from lines[:most]
        yield f"[{len(lines) - most} more lines left out]"


def _printed(show: Callable[..., object], *args: Any, **keys: Any) -> list[str]:
    """Return what a function prints, as lines."""
    text = io.StringIO()
    with redirect_stdout(text):
        show(*args, **keys)
    return text.getvalue().splitlines()


# --- the machine ---------------------------------------------------------------------------------


def _versions() -> Iterator[str]:
    yield lswap_text() + ("" if commit() else " (commit unknown)")
    yield f"Python {platform.python_version()} ({platform.python_implementation()})"
    yield f"system: {_system()}, kernel {platform.release()}, {platform.machine()}"
    try:
        found = locate_engine()
        yield f"llama-server {found.label} ({found.source}): {found.version}"
    except LswapError as error:
        yield f"llama-server: none ({error})"
    yield f"libraries: {', '.join(_libraries())}"


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _libraries() -> Iterator[str]:
    try:
        wanted = metadata.requires("llamaswap_py") or []
    except metadata.PackageNotFoundError:
        wanted = []
    names = [re.split(r"[^\w.-]", one, maxsplit=1)[0] for one in wanted if "extra ==" not in one]
    for name in names:
        try:
            yield f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            yield f"{name} is missing"


def _machine() -> Iterator[str]:
    """Yield the output of `lswap engine doctor`."""
    yield f"{os.cpu_count()} processors"
    yield from _printed(engine.print_checks, (*examine().checks, examine_containment()))
    names = [name for name in sorted(os.environ) if name.startswith(_VARIABLES)]
    yield f"relevant environment variables that are set: {', '.join(names) or 'none'}"


_VARIABLES: Final = (
    *("LSWAP_", "LLAMA_", "GGML_", "CUDA_", "NVIDIA_", "ROCR_", "HIP_", "HSA_", "ROCM_"),
    *("HF_", "XDG_", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY"),
)


# --- a running lswap -----------------------------------------------------------------------------


class _Lswap:
    """The answers of a running lswap; every part raises LswapError if none answers."""

    def __init__(self, url: str | None, key: str | None) -> None:
        self.loaded: list[str] = []
        """Lines that llama-servers wrote while loading, which therefore quote no client."""
        self._key = key
        self._url = ""
        self._problem: LswapError | None = None
        self.found: Snapshot | None = None
        try:
            self._url = find_url(url)
            with self._remote() as remote:
                self.found = remote.ask(calls.state())
        except LswapError as error:  # reported in each part, and not tried again
            self._problem = error

    def _remote(self) -> Remote:
        if self._problem is not None:
            raise self._problem
        return Remote(self._url, key=self._key, patience=_PATIENCE)

    @property
    def snapshot(self) -> Snapshot:
        """Its state; raises LswapError if it did not answer."""
        if self.found is None:
            assert self._problem is not None
            raise self._problem
        return self.found

    def state(self) -> Iterator[str]:
        """Yield the figures, and the tables of `lswap ps` and `lswap models`."""
        found = self.snapshot
        began = time.strftime(_TIME, time.localtime(found.started_at))
        yield f"lswap {found.version} {found.state} since {began}, {_place(found)}"
        yield f"listens on {', '.join(found.listen)}"
        engine = found.engine
        yield f"llama-server b{engine.build or '?'}-{engine.backend} ({engine.path})"
        yield (
            f"requests: {found.requests_open} open, {found.requests_total} in all; "
            f"{found.loads_total} loads, {found.evictions_total} evictions"
        )
        yield from ("", *_printed(show.print_ps, found), "", *_printed(show.print_models, found))

    def whys(self) -> Iterator[str]:
        """Yield the output of `lswap why` for the models that matter most."""
        yield from self._of_each(self._why)
        if (more := len(self.snapshot.models) - _MODELS) > 0:
            yield f"and {more:,} more models"

    def _why(self, remote: Remote, model: ModelView) -> Iterator[str]:
        decisions = remote.ask(calls.decisions(model.id, _OF_EACH)).decisions
        yield from _printed(show.print_why, _without_log(model), decisions, self.snapshot.now)
        yield from (f"args: {shlex.join(model.args)}", "")

    def decisions(self) -> Iterator[str]:
        """Yield the newest decisions, newest last."""
        with self._remote() as remote:
            for one in remote.ask(calls.decisions(limit=_LINES["Decisions"])).decisions:
                yield f"{_clock(one.at)} {_named(one.preset, one.epoch)}{one.kind}: {one.reason}"

    def events(self) -> Iterator[str]:
        """Yield the newest events, without decisions, which have a part of their own."""
        with self._remote() as remote, remote.stream(calls.kept_events()) as events:
            told = [one for one in events if one.event not in ("decision", "progress")]
        for one in told[-_LINES["Events"] :]:
            members = {name: value for name, value in one.data.items() if name not in _UNTOLD}
            said = ", ".join(f"{name} {value}" for name, value in members.items())
            yield f"{_clock(one.data.get('at', 0.0))} {one.event}: {said}"

    def own_log(self) -> Iterator[str]:
        """Yield the end of lswap's own log."""
        asked = calls.logs(None, tail=_KEPT_LINES)
        with self._remote() as remote, remote.stream(asked) as lines:
            for line in lines:
                yield from _own_lines(line)

    def logs(self) -> Iterator[str]:
        """Yield the ends of the logs of the models that matter most."""
        return self._of_each(self._log)

    def _log(self, remote: Remote, model: ModelView) -> Iterator[str]:
        with remote.stream(calls.logs(model.id, tail=_KEPT_LINES)) as log:
            lines = list(log)
        whole = len(lines) < _KEPT_LINES and sum(map(len, lines)) < _KEPT_BYTES
        first = whole and model.loads == 0 and _is_llama_server(model)
        shown, loaded = without_quotes(lines, first=first)
        self.loaded += loaded
        if lines:
            yield f"{model.id} ({model.state}), {len(lines)} lines:"
            yield from (f"  {line}" for line in shown[-_LOG_OF_EACH:])

    def _of_each(self, part: Callable[[Remote, ModelView], Iterator[str]]) -> Iterator[str]:
        """Yield a part for each model that matters; if it fails, the error."""
        with self._remote() as remote:
            for model in self._models():
                try:
                    yield from part(remote, model)
                except RemoteError as error:
                    yield f"{model.id}: could not be gathered: {error}"

    def _models(self) -> list[ModelView]:
        """Return the models that matter: failed, loaded, waited for, or loaded before."""
        running = {one.preset for one in self.snapshot.instances}
        ranked = sorted(
            self.snapshot.models,
            key=lambda one: (
                one.failure is None,
                one.id not in running and not one.waiting,
                one.loads == 0,
            ),
        )
        return ranked[:_MODELS]


_UNTOLD: Final = ("at", "client")
"""Members of events: the time is said already, and which client asked is private."""


def _place(found: Snapshot) -> str:
    return f"with {found.config_path}" if found.config_path else "without a file"


def _without_log(model: ModelView) -> ModelView:
    """Return a model without the end of its log, which is in another part."""
    return replace(model, failure=replace(model.failure, log=())) if model.failure else model


def _is_llama_server(model: ModelView) -> bool:
    """Return whether it is a llama-server: the words of another program begin with its name."""
    return bool(model.args) and model.args[0].startswith("-")


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def _named(model: str, epoch: int | None) -> str:
    return f"{model}{f'#{epoch}' if epoch is not None else ''} " if model else ""


def _own_lines(line: str) -> Iterator[str]:
    """Yield a line of lswap's log; a JSON line is turned into text."""
    try:
        said = json.loads(line) if line.startswith("{") else None
    except ValueError:
        said = None
    if not isinstance(said, dict):
        yield line
        return
    about = [f"{key}={said[key]}" for key in ("model", "route", "status") if key in said]
    time_of = _clock(said.get("time", 0.0))
    yield " ".join([time_of, said.get("level", ""), str(said.get("message", "")), *about])
    yield from str(said.get("traceback", "")).splitlines()


# --- the configuration ---------------------------------------------------------------------------


class _File:
    """The configuration to show: the one named, else the running lswap's, else the usual one."""

    def __init__(self, config: Path | None, lswap: _Lswap) -> None:
        self.secrets: dict[str, str] = {}
        """Values of environment variables in it, and their names."""
        self._named = config
        self._lswap = lswap

    @cached_property
    def _origin(self) -> Origin:
        """Where it is read from; raises LswapError if there is none here."""
        if self._named is not None:
            return origin_of([self._named])
        snapshot = self._lswap.found
        if snapshot is None or snapshot.config_path is None:
            return origin_of([])
        if snapshot.pid not in [one.pid for one in find_running(os.environ)]:
            remedy = "run `lswap report` there, or name the file with --config"
            raise ConfigError(
                "the configuration of that lswap is on another machine", remedy=remedy
            )
        folder = Path(f"/proc/{snapshot.pid}/cwd")  # its path may be one of that machine
        return origin_of([os.path.realpath(folder / snapshot.config_path)])

    def _config(self) -> Config:
        config = self._origin.read()
        self.secrets |= config.secrets
        return config

    def devices(self) -> Iterator[str]:
        """Yield the devices, with the budgets and margins of the configuration if there is one."""
        try:
            config = self._config()
            found = find_devices(config, Engines(config))
        except LswapError:  # the next part reports it
            found = devices_for(_usual_engine(), Memory())
        for one in found:
            sizes = f"{format_size(one.total)} ({one.source}), {format_size(one.margin)} kept free"
            within = ", is main memory" if one.unified else f", is {one.within}'s memory"
            what = f", {one.description}" if one.description else ""
            yield f"{show.device_name(one.id)}: {sizes}{within if one.within else ''}{what}"

    def configuration(self) -> Iterator[str]:
        """Yield the files, redacted."""
        origin = self._origin
        if not origin.files():
            yield f"no file: {serves_text(origin)}"
        for path in origin.files():
            yield f"# {path}"
            tree = read_yaml(read_regular(path, MAX_TEXT).decode("utf-8-sig"), str(path))
            shown = redacted(_fewer_models(plain_value(tree))) if tree is not None else None
            yield yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=_LONGEST)
        self._config()  # its error is shown below the files

    def mistakes(self) -> list[str]:
        """Return the output of `lswap check`."""
        config = self._config()
        if len(config.models) > _MOST:
            return [
                f"not checked, because there are {len(config.models):,} models: run `lswap check`"
            ]
        return _printed(check.run, self._origin, as_json=False)


def _usual_engine() -> Engine | None:
    with suppress(LswapError):
        return locate_engine()
    return None


def _fewer_models(tree: Any) -> Any:
    models = tree.get("models") if isinstance(tree, dict) else None
    if not isinstance(models, dict) or len(models) <= _MOST:
        return tree
    return {**tree, "models": dict(islice(models.items(), _MOST))}


# --- the last pass -------------------------------------------------------------------------------


class _Cleaner:
    """Removes from a line what looks like a secret, an address or the quotation of a client."""

    def __init__(self, key: str | None, secrets: Mapping[str, str], loaded: Iterable[str]) -> None:
        self._redact = Redactor({**os.environ, "LSWAP_KEY": key or ""}, secrets)
        home = os.path.expanduser("~")
        homes = {home, os.path.realpath(home)} - {"/", "~"}
        self._home = re.compile("|".join(f"{re.escape(one)}(?![\\w.-])" for one in homes) or "(?!)")
        self._loaded = tuple(loaded)

    def __call__(self, line: str) -> str:
        """Return the cleaned line."""
        line = without_quotation(self._redact(showable(line)), self._loaded)
        line = _EXCEPTION.sub(r"\1\2: [its text left out]", line)
        line = _OTHER_HOME.sub(r"\1[user]", self._home.sub("~", line))
        line = _ADDRESS.sub(_address, line)
        return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"


# The last line of a traceback, unless errors of its kind never quote what a client sent.
_EXCEPTION: Final = re.compile(
    r"^([\s|+]*)((?!OSError|AttributeError|NameError|TypeError|ImportError|AssertionError"
    r"|ModuleNotFoundError|FileNotFoundError|PermissionError|ConnectionError|TimeoutError)"
    r"[A-Za-z_][\w.]*(?:Error|Exception)): .+"
)
_OTHER_HOME: Final = re.compile(r"(/(?:home|Users)/)[^/\s\"',:;)\]]+")
_ADDRESS: Final = re.compile(
    r"(?<![\w:.])(?:\d+(?:\.\d+){3}|[\dA-Fa-f]*:[\dA-Fa-f:]+)(?![\w:]|\.\d)"
)


def _address(found: re.Match[str]) -> str:
    try:
        address = ipaddress.ip_address(found[0])
    except ValueError:
        return found[0]
    known = address.is_loopback or address.is_unspecified
    return found[0] if known else "[address]"
