"""Which sockets listen at an address, and their users, from the kernel's own tables.

lswap asks the kernel by netlink (sock_diag(7)): that takes some 60 µs, however many connections
there are. Where netlink is not allowed, /proc/net/tcp says the same, in milliseconds.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socket
import struct
import sys
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_LISTEN: Final = 10  # TCP_LISTEN, include/net/tcp_states.h
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
_MAPPED: Final = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96, an IPv4 address written as IPv6

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST_AND_DUMP: Final = 0x301
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_HEADER: Final = struct.Struct("=IHHII")
_WANTED: Final = struct.Struct("=BBBxI")  # inet_diag_req_v2 up to its inet_diag_sockid
_REST_OF_ID: Final = bytes(44)  # of inet_diag_sockid, behind its source port: of any
_SOURCE: Final = 4 + 4  # inet_diag_msg: where its id.idiag_src begins
_OWNER: Final = 4 + 48 + 12  # inet_diag_msg: where idiag_uid and idiag_inode are
_BUFFER: Final = 32 * 1024


class Listener(NamedTuple):
    """A socket that listens: its address (4 or 16 bytes), its user, and its inode."""

    address: bytes
    uid: int
    inode: int


def takers(host: str, port: int) -> list[Listener]:
    """Return the sockets that can take a connection to that address; empty if nothing listens.

    They are the ones with the most specific address, as the kernel prefers them: the address
    itself, else any IPv4 address, else any address. There are several if they share the port
    (SO_REUSEPORT). Raises OSError if the system does not tell.
    """
    wanted = ip_address(host).packed
    ranked = [(_rank(_plain(one.address), wanted), one) for one in listeners(port)]
    best = max((rank for rank, _ in ranked), default=0)
    return [one for rank, one in ranked if rank == best and rank]


def listeners(port: int) -> list[Listener]:
    """Return every TCP socket that listens on a port. Raises OSError if the system hides them."""
    if asks_kernel():
        with contextlib.suppress(OSError):
            return _from_kernel(port)
    return list(_from_proc(port))


def asks_kernel() -> bool:
    """Tell whether netlink answers here, so that a look is quick."""
    try:
        return _has_netlink()
    except OSError:
        return False


def can_tell() -> bool:
    """Tell whether this system shows which sockets listen, and whose they are."""
    try:
        return _shows_ours()
    except OSError:  # too few descriptors: that says nothing of the system
        return True


@functools.cache
def _has_netlink() -> bool:
    """Try netlink once; raises OSError if the attempt itself failed."""
    if sys.platform != "linux":
        return False
    try:
        _from_kernel(1)
    except OSError as error:
        if error.errno in _EXHAUSTED:
            raise
        return False
    return True


@functools.cache
def _shows_ours() -> bool:
    """Look once for a socket of our own; raises OSError if the attempt itself failed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        probe.listen()
        try:
            found = takers(*probe.getsockname())
        except OSError as error:
            if error.errno in _EXHAUSTED:
                raise
            return False
        return os.fstat(probe.fileno()).st_ino in {one.inode for one in found}


def _rank(address: bytes, wanted: bytes) -> int:
    if address == wanted:
        return 3
    if address == bytes(len(wanted)):
        return 2
    return int(len(wanted) == 4 and address == bytes(16))


def _plain(address: bytes) -> bytes:
    return address[12:] if address.startswith(_MAPPED) and len(address) == 16 else address


def _from_kernel(port: int) -> list[Listener]:
    if sys.platform != "linux":
        raise NotImplementedError
    found: list[Listener] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.setblocking(False)  # the kernel answers at once
        for family, size in ((socket.AF_INET, 4), (socket.AF_INET6, 16)):
            wanted = _WANTED.pack(family, socket.IPPROTO_TCP, 0, 1 << _LISTEN)
            message = wanted + struct.pack("!HH", port, 0) + _REST_OF_ID
            length = _HEADER.size + len(message)
            head = _HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _REQUEST_AND_DUMP, 0, 0)
            netlink.sendto(head + message, (0, 0))
            for told in _messages(netlink):
                address = told[_SOURCE : _SOURCE + size]
                found.append(Listener(address, *struct.unpack_from("=II", told, _OWNER)))
    return found


def _messages(netlink: socket.socket) -> Iterator[bytes]:
    """Yield the content of each message of an answer, up to the one that ends it."""
    while True:
        data = netlink.recv(_BUFFER)
        while data:
            length, kind, *_ = _HEADER.unpack_from(data)
            told, data = data[_HEADER.size : length], data[(length + 3) & ~3 :]
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                raise OSError(-struct.unpack_from("=i", told)[0], "netlink refused")
            yield told


def _from_proc(port: int) -> Iterator[Listener]:
    """Yield the same from /proc/net/tcp and tcp6 (proc_pid_net(5)). Raises OSError: no /proc."""
    ending = f":{port:04X}"
    names = ("tcp", "tcp6") if os.path.exists("/proc/net/tcp6") else ("tcp",)  # IPv6 may be off
    for name in names:
        for fields in table(name):
            if fields[3] == f"{_LISTEN:02X}" and fields[1].endswith(ending):
                words = fields[1].partition(":")[0]
                parts = [int(words[at : at + 8], 16) for at in range(0, len(words), 8)]
                address = b"".join(part.to_bytes(4, sys.byteorder) for part in parts)
                yield Listener(address, int(fields[7]), int(fields[9]))


def table(name: str) -> Iterator[list[str]]:
    """Yield the lines of a table of sockets, in fields. Raises OSError where there is none."""
    with open(f"/proc/net/{name}", encoding="utf-8", errors="replace") as file:
        next(file, None)
        yield from (fields for line in file if len(fields := line.split()) > 6)
