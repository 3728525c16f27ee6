"""Which sockets take a connection to an address: both of the kernel's tables, and what it does."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from llamaswap_py.children import listeners
from llamaswap_py.children.listeners import Listener, can_tell, takers

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="missing: Linux's tables")


def is_here(address: str) -> bool:
    """Return whether this machine has an address: IPv6 may be off."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
            sock.bind((address, 0))
    except OSError:
        return False
    return True


ADDRESSES = [
    one
    for one in ("127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1", "::1", "127.0.0.2")
    if is_here(one)
]


@pytest.fixture(params=["netlink", "proc"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "proc":
        monkeypatch.setattr(listeners, "asks_kernel", lambda: False)
    return str(request.param)


@contextlib.contextmanager
def listening(*addresses: str, reuse: bool = False) -> Iterator[tuple[int, dict[str, int]]]:
    """Listen at several addresses on one port; yield it, and the inode of each."""
    with contextlib.ExitStack() as stack:
        port, inodes = 0, {}
        for number, address in enumerate(addresses):
            v6 = ":" in address
            sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET)
            stack.enter_context(sock)
            if v6:
                alone = len(addresses) > 1 and address == "::"
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, alone)
            if reuse:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((address, port))
            sock.listen()
            port = sock.getsockname()[1]
            inodes[f"{address}/{number}"] = os.fstat(sock.fileno()).st_ino
        yield port, inodes


def connects(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=90).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.parametrize("address", ADDRESSES)
def test_whoever_takes_a_connection_is_found(source: str, address: str) -> None:
    with listening(address) as (port, inodes):
        found = [one.inode for one in takers("127.0.0.1", port)]
        assert found == (list(inodes.values()) if connects("127.0.0.1", port) else [])
        assert all(one.uid == os.geteuid() for one in takers("127.0.0.1", port))
    assert takers("127.0.0.1", port) == []


def test_the_most_specific_address_wins_as_it_does_in_the_kernel(source: str) -> None:
    others = [one for one in ("::", "127.0.0.2") if is_here(one)]
    with listening("127.0.0.1", *others) as (port, inodes):
        assert [one.inode for one in takers("127.0.0.1", port)] == [inodes["127.0.0.1/0"]]
        assert [one.inode for one in takers("::1", port)] == [
            inode for name, inode in inodes.items() if name.startswith("::/")
        ]
    with listening("0.0.0.0", "127.0.0.1", reuse=True) as (port, inodes):
        assert [one.inode for one in takers("127.0.0.1", port)] == [inodes["127.0.0.1/1"]]


def test_all_that_share_a_port_are_found(source: str) -> None:
    with listening("127.0.0.1", "127.0.0.1", "0.0.0.0", reuse=True) as (port, inodes):
        first, second, _ = inodes.values()
        assert {one.inode for one in takers("127.0.0.1", port)} == {first, second}


def test_both_tables_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(*ADDRESSES, reuse=True) as (port, inodes):
        said = listeners.listeners(port)
        assert {one.inode for one in said} == set(inodes.values())
        own = Listener(bytes([127, 0, 0, 1]), os.geteuid(), inodes["127.0.0.1/0"])
        assert own in said
        monkeypatch.setattr(listeners, "asks_kernel", lambda: False)
        assert set(listeners.listeners(port)) == set(said)


def test_where_nobody_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_tell()
    listeners._shows_ours.cache_clear()
    monkeypatch.setattr(listeners, "listeners", lambda port: [])
    try:
        assert not can_tell()
    finally:
        listeners._shows_ours.cache_clear()


def test_want_of_descriptors_does_not_count_as_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> list[Listener]:
        raise OSError(errno.EMFILE, "too many open files")

    before = listeners.asks_kernel()
    for one in (listeners._shows_ours, listeners._has_netlink):
        one.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(listeners, "_from_kernel", fails)
        patch.setattr(listeners, "_from_proc", fails)
        assert not listeners.asks_kernel()
        assert can_tell()
    assert listeners.asks_kernel() == before
    assert can_tell()
    assert listeners._shows_ours.cache_info().currsize == 1
