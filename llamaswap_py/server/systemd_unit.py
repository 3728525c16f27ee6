"""Unit files of systemd, as text. Pure: a `Unit` says what the machine has.

Some usual options for hardening are missing, because they break inference. The unit says why, so
that its readers do not add them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llamaswap_py.endpoint import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable

_GRACE: Final = 10.0
"""Seconds for what comes after draining and stopping the children."""
_START: Final = (
    "2min"  # engines and devices are read first, and a driver that does not work takes long
)
_WATCHDOG: Final = "30s"


@dataclass(frozen=True, slots=True)
class Unit:
    """What the files of one service are written from; times in seconds, paths absolute.

    `user` is None for a service of the user's own manager. `groups` are those that give access to
    GPUs and exist here; `writable` the folders that it writes to. `uses_tmp` is whether it needs a
    file in /tmp, `modprobe` the path of nvidia-modprobe, if there is one.
    """

    name: str
    command: tuple[str, ...]
    folder: str
    shutdown_timeout: float
    stop_timeout: float
    listen: tuple[Endpoint, ...]
    user: str | None = None
    groups: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    uses_tmp: bool = False
    modprobe: str | None = None
    by_socket: bool = False


def service_text(unit: Unit) -> str:
    """Return NAME.service (systemd.service(5), systemd.exec(5))."""
    lines = [
        *_head(unit),
        *_life(unit),
        *_rights(unit),
        "",
        "[Install]",
        f"WantedBy={'default.target' if unit.user is None else 'multi-user.target'}",
    ]
    return "\n".join(lines) + "\n"


def socket_text(unit: Unit) -> str:
    """Return NAME.socket: systemd listens, and starts the service with the first client."""
    lines = [
        "[Unit]",
        "Description=Where the clients of lswap connect",
        "",
        "[Socket]",
        *(f"ListenStream={_address(endpoint)}" for endpoint in unit.listen),
        "SocketMode=0600",
    ]
    if unit.user is not None:
        lines.append(f"SocketUser={unit.user}")
    lines += ["Backlog=1024", "", "[Install]", "WantedBy=sockets.target"]
    return "\n".join(lines) + "\n"


def _head(unit: Unit) -> Iterable[str]:
    yield "# Written by `lswap service install`, which replaces it when it is run again."
    yield f"# Changes of yours: systemctl{'' if unit.user else ' --user'} edit {unit.name}"
    yield "[Unit]"
    yield "Description=lswap: many local language models on too little memory"
    if unit.user is not None:
        yield "Wants=network-online.target"
        yield "After=network-online.target nvidia-persistenced.service"
    if unit.by_socket:
        yield f"Requires={unit.name}.socket"
        yield f"After={unit.name}.socket"
    yield ""


def _life(unit: Unit) -> Iterable[str]:
    yield "[Service]"
    yield "Type=notify"
    yield "NotifyAccess=main"
    yield f"WorkingDirectory={_specifiers(unit.folder)}"
    for name, value in unit.env:
        yield f"Environment={_quoted(f'{name}={value}')}"
    if unit.modprobe is not None and unit.user is not None:
        yield "# Makes CUDA's device files. On a machine without a desktop no other program does."
        yield f"ExecStartPre=-+{_command((unit.modprobe, '-c', '0', '-u'))}"
    yield f"ExecStart={_command(unit.command)}"
    yield "ExecReload=/bin/kill -HUP $MAINPID"
    yield f"TimeoutStartSec={_START}"
    yield f"WatchdogSec={_WATCHDOG}"
    yield "Restart=on-failure"
    yield "RestartSec=2s"
    yield "# 2: the configuration is wrong; a restart would not help."
    yield "RestartPreventExitStatus=2"
    yield "# SIGTERM drains: running requests (policy.shutdown_timeout), then the children"
    yield "# (stop_timeout). Only lswap gets the signal; it stops the children in order."
    yield "KillMode=mixed"
    seconds = math.ceil(unit.shutdown_timeout + unit.stop_timeout + _GRACE)
    yield f"TimeoutStopSec={seconds}s"
    yield "# lswap makes a cgroup for each model below this service's: so it ends what they start,"
    yield "# and enforces tasks_max and memory_max."
    yield "Delegate=yes"
    yield "# If the kernel ends a model for lack of memory, lswap goes on and loads it again."
    yield "OOMPolicy=continue"
    yield "LimitNOFILE=65536"
    yield "LimitMEMLOCK=infinity"
    yield "UMask=0077"


def _rights(unit: Unit) -> Iterable[str]:
    if unit.user is None:
        yield ""
        yield "# No sandbox: a user's manager cannot make most of it, and NoNewPrivileges, which"
        yield "# the rest brings along, keeps nvidia-modprobe from making CUDA's device files."
        return
    yield ""
    yield f"User={unit.user}"
    if unit.groups:
        yield f"SupplementaryGroups={' '.join(unit.groups)}"
    yield f"RuntimeDirectory={unit.name}"
    yield "RuntimeDirectoryMode=0700"
    yield ""
    yield "ProtectSystem=strict"
    yield "ProtectHome=read-only"
    if unit.writable:
        yield f"ReadWritePaths={' '.join(_quoted('-' + path) for path in unit.writable)}"
    if not unit.uses_tmp:
        yield "PrivateTmp=yes"
    if any(endpoint.path is None and 0 < endpoint.port < 1024 for endpoint in unit.listen):
        yield "AmbientCapabilities=CAP_NET_BIND_SERVICE"
        yield "CapabilityBoundingSet=CAP_NET_BIND_SERVICE"
    else:
        yield "CapabilityBoundingSet="
    yield from (
        "NoNewPrivileges=yes",
        "ProtectKernelTunables=yes",
        "ProtectKernelModules=yes",
        "ProtectKernelLogs=yes",
        "ProtectHostname=yes",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
        "RestrictNamespaces=yes",
        "RestrictRealtime=yes",
        "RestrictSUIDSGID=yes",
        "LockPersonality=yes",
        "SystemCallArchitectures=native",
        "# Missing, because the GPUs (/dev/nvidia*, /dev/dri, /dev/kfd) would be gone:",
        "# PrivateDevices, DevicePolicy, and ProtectClock, which turns DevicePolicy on.",
        "# Missing, because drivers compile kernels as they run: MemoryDenyWriteExecute.",
        "# Missing, because lswap makes a cgroup for each model: ProtectControlGroups.",
        "# Missing, because lswap reads which process has which memory: ProtectProc, PrivateUsers.",
    )


def _address(endpoint: Endpoint) -> str:
    return _specifiers(endpoint.path) if endpoint.path is not None else str(endpoint)


def _command(words: tuple[str, ...]) -> str:
    """Quote a command line. A single dollar sign would name a variable (systemd.service(5))."""
    return " ".join(_quoted(word).replace("$", "$$") for word in words)


def _quoted(word: str) -> str:
    """Quote a word as systemd.syntax(7) says, where it needs it."""
    text = _specifiers(word)
    if text and not set(text) & set(" \t\n\"'\\;"):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _specifiers(text: str) -> str:
    return text.replace("%", "%%")
