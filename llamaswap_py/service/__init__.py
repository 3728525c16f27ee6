"""lswap as a service of systemd: its unit, what it tells the service manager, sockets it is handed.

unit     the text of unit files (pure)
notify   sd_notify(3): ready, reloading, stopping, a status line, the watchdog
sockets  sd_listen_fds(3): listening sockets that were opened before us
"""

from __future__ import annotations

from .notify import Notifier
from .sockets import inherited_sockets
from .unit import Unit, service_text, socket_text

__all__ = ["Notifier", "Unit", "inherited_sockets", "service_text", "socket_text"]
