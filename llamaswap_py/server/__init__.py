"""What `lswap up` is besides the supervisor and the API: systemd, logging, opening files at exit.

systemd        sd_notify(3): ready, reloading, stopping, a status line, the watchdog;
               sd_listen_fds(3): listening sockets that were opened before lswap
systemd_unit   the text of unit files (pure)
logging        lswap's own log
"""

from __future__ import annotations

from llamaswap_py.server.systemd import Notifier, inherited_sockets
from llamaswap_py.server.systemd_unit import Unit, service_text, socket_text

__all__ = ["Notifier", "Unit", "inherited_sockets", "service_text", "socket_text"]
