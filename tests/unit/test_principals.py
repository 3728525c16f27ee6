"""Whose a request is: no choice of a client's own makes it another principal."""

from __future__ import annotations

import pytest

from llamaswap_py.proxy.principals import UNIX, of_address, principal_of


@pytest.mark.parametrize(
    ("peer", "principal"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("127.0.0.1", "127.0.0.1"),
        ("127.9.9.9", "127.0.0.1"),
        ("::ffff:127.0.0.2", "127.0.0.1"),
        ("::1", "127.0.0.1"),
        ("fe80::1%eth0", "fe80::/64%eth0"),
        ("fe80::2%eth0", "fe80::/64%eth0"),
        ("fe80::2%eth1", "fe80::/64%eth1"),
        (UNIX, UNIX),
    ],
)
def test_the_principal_of_an_address(peer: str, principal: str) -> None:
    assert of_address(peer) == principal
    assert principal_of(None, peer) == principal


def test_a_key_is_one_principal_wherever_it_is_used() -> None:
    found = {principal_of("agents", peer) for peer in ("192.0.2.7", "2001:db8::1", UNIX)}
    assert found == {"key agents"}


def test_no_key_is_taken_for_an_address() -> None:
    assert principal_of("192.0.2.7", UNIX) != principal_of(None, "192.0.2.7")
    assert principal_of(UNIX, "192.0.2.7") != principal_of(None, UNIX)
