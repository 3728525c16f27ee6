"""Sockets beyond asyncio: listening with clear errors, and whether a client has disconnected."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import struct
from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, cast

from llamaswap_py.errors import StateError
from llamaswap_py.units import KIB

if TYPE_CHECKING:
    import asyncio

    from llamaswap_py.endpoint import Endpoint

BACKLOG: Final = 1024
#: sockaddr_un.sun_path holds 108 bytes with its final NUL (unix(7)).
_LONGEST_PATH: Final = 107
#: A piece of this size has filled the buffer into which it was read.
LARGE: Final = 128 * KIB


def bind(endpoint: Endpoint, backlog: int = BACKLOG) -> socket.socket:
    """Return a socket that listens at `endpoint`. Raises StateError with the remedy.

    A unix socket gets mode 0600. An existing one is replaced only if no process listens on it.
    """
    try:
        return (
            _bind_tcp(endpoint, backlog)
            if endpoint.path is None
            else _bind_unix(endpoint.path, backlog)
        )
    except OSError as error:
        raise StateError(
            f"cannot listen on {endpoint}: {_describe(error)}", remedy=_remedy(error)
        ) from error


def _describe(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the address is in use"
    return error.strerror or str(error)


def _remedy(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "stop what listens there, or choose another port: --port, or `listen` in the file"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "choose a port above 1023, or a folder you may write to"
    return "check the address under `listen`"


def _bind_tcp(endpoint: Endpoint, backlog: int) -> socket.socket:
    found = socket.getaddrinfo(
        endpoint.host or None, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _bind_unix(path: str, backlog: int) -> socket.socket:
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise StateError(
            f"cannot listen on unix:{path}: the path is longer than {_LONGEST_PATH} bytes",
            remedy="choose a shorter path",
        )
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        # Set before listen(), so that no other user can connect at any moment.
        os.chmod(path, 0o600)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _remove_stale(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise StateError(
            f"cannot listen on unix:{path}: this file is not a socket",
            remedy="remove the file, or choose another path",
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except TimeoutError:
            pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def remove_path(sock: socket.socket) -> None:
    """Unlink the path of a listening unix socket; call it before closing the socket."""
    if sock.family == socket.AF_UNIX:
        with suppress(OSError):
            os.unlink(sock.getsockname())


def reset_on_close(transport: asyncio.BaseTransport) -> None:
    """Make the coming close a reset, so that a body that ends by closing does not look complete."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def end_output(transport: asyncio.Transport) -> None:
    """Half-close; if the other side has reset the connection, reading reports it later."""
    with suppress(OSError):
        transport.write_eof()


# --- has a client left, or only stopped sending? -------------------------------------------------


def client_is_gone(transport: asyncio.BaseTransport) -> bool | None:
    """Tell a full close from a half-close (`shutdown(SHUT_WR)`), both of which read as end of file.

    It is exact for unix sockets, and on Linux for clients on this host. None if it cannot be known:
    over a network the two look the same until something is written.
    """
    sock = transport.get_extra_info("socket")
    if sock is None:
        return None
    try:
        if sock.family == socket.AF_UNIX:
            poll = select.poll()
            poll.register(sock.fileno(), select.POLLIN)
            return any(event & select.POLLHUP for _, event in poll.poll(0))
        peer = sock.getpeername()
        if not ip_address(peer[0]).is_loopback:
            return None
        return not _has_owner(sock.family, peer, sock.getsockname())
    except OSError as error:
        return True if error.errno == errno.ENOTCONN else None


def has_input(transport: asyncio.BaseTransport) -> bool:
    """Return whether a transport's socket has input to read."""
    sock = transport.get_extra_info("socket")
    if sock is None or transport.is_closing():
        return False
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return any(event & select.POLLIN for _, event in poll.poll(0))


_SOCK_DIAG_BY_FAMILY: Final = 20  # linux/sock_diag.h
_NETLINK_SOCK_DIAG: Final = 4  # linux/netlink.h
_NLM_F_REQUEST: Final = 1
_NLMSG_ERROR: Final = 2
_ANY_STATE: Final = 0xFFFFFFFF
_NO_COOKIE: Final = (0xFFFFFFFF, 0xFFFFFFFF)
_INODE_OFFSET: Final = 16 + 4 + 48 + 16  # nlmsghdr, state bytes, inet_diag_sockid, four counters


def _has_owner(family: int, local: tuple[Any, ...], remote: tuple[Any, ...]) -> bool:
    """Ask the kernel whether a process still holds the TCP socket `local` (linux/inet_diag.h).

    Raises OSError if the kernel does not support the question.
    """
    if not hasattr(socket, "AF_NETLINK"):
        raise OSError(errno.EPROTONOSUPPORT, "no netlink")
    addresses = b"".join(
        socket.inet_pton(family, end[0]).ljust(16, b"\0") for end in (local, remote)
    )
    request = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 0, _ANY_STATE)
    request += struct.pack("!HH", local[1], remote[1]) + addresses
    request += struct.pack("=III", 0, *_NO_COOKIE)
    header = struct.pack("=IHHII", 16 + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(0.1)
        netlink.sendto(header + request, (0, 0))
        answer = netlink.recv(4096)
    kind = struct.unpack_from("=H", answer, 4)[0]
    if kind == _NLMSG_ERROR:
        number = -struct.unpack_from("=i", answer, 16)[0]
        if number == errno.ENOENT:
            return False
        raise OSError(number, os.strerror(number))
    return bool(struct.unpack_from("=I", answer, _INODE_OFFSET)[0])


class Input:
    """Pauses and resumes reading from a transport, and limits it to one large piece per turn.

    libuv reads up to 32 times in a turn while its buffer gets full (uv__read in unix/stream.c).
    These are 8 MB, for which all streams would wait.
    """

    __slots__ = ("_loop", "_resting", "off", "transport")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.transport = cast("asyncio.Transport", None)
        self._loop = loop
        #: it was paused
        self.off = self._resting = False

    def pause(self) -> None:
        """Stop reading for now."""
        if not self.off:
            self.off = True
            if not self._resting:
                self.transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self.off:
            self.off = False
            if not self._resting:
                self.transport.resume_reading()

    def took_much(self) -> None:
        """Note that a LARGE piece was read; reading continues after the other connections' turn."""
        if not self._resting and not self.off:
            self._resting = True
            self.transport.pause_reading()
            self._loop.call_soon(self._rested)

    def _rested(self) -> None:
        self._resting = False
        if not self.off and not self.transport.is_closing():
            self.transport.resume_reading()
