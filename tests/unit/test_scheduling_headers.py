"""What clients may ask of the scheduler with headers."""

from __future__ import annotations

import pytest

from llamaswap_py.api.scheduling_headers import read_wishes
from llamaswap_py.errors import ApiError
from llamaswap_py.supervisor.leases import NO_WISHES, Wishes
from tests.unit.api_fakes import make_head


def wishes(**headers: str) -> Wishes:
    named = {f"x-lswap-{name.replace('_', '-')}": value for name, value in headers.items()}
    return read_wishes(make_head("POST", "/v1/chat/completions", named), substitutable=True)


def test_nothing_asked() -> None:
    assert wishes() == NO_WISHES


def test_everything_asked() -> None:
    assert wishes(
        priority="-2", when_full="substitute: small one", max_wait="1m30s", parent="req-1"
    ) == Wishes(-2, "substitute:small one", 90.0, True, "req-1")


@pytest.mark.parametrize("text", ["wait", "refuse", "substitute:loaded"])
def test_when_full(text: str) -> None:
    assert wishes(when_full=text).when_full == text


def test_nobody_raises_their_own_priority() -> None:
    assert wishes(priority="9").priority == 0
    assert wishes(priority="-999999").priority == -100


def test_a_bare_number_of_seconds_is_fine_in_a_header() -> None:
    assert wishes(max_wait="2.5").patience == 2.5


@pytest.mark.parametrize(
    ("name", "text"),
    [("priority", "high"), ("when_full", "later"), ("when_full", "substitute"), ("max_wait", "x")],
)
def test_nonsense_names_the_header(name: str, text: str) -> None:
    with pytest.raises(ApiError, match=f"x-lswap-{name.replace('_', '-')}: ") as caught:
        wishes(**{name: text})
    assert caught.value.code == "bad_request"
