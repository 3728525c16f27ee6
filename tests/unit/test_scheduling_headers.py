"""What clients may ask of the scheduler with headers."""

from __future__ import annotations

import pytest

from llamaswap_py.api.scheduling_headers import read_scheduling_headers
from llamaswap_py.errors import ApiError
from llamaswap_py.supervisor.leases import DEFAULT_SCHEDULING, SchedulingOptions
from tests.unit.api_fakes import make_head


def scheduling(**headers: str) -> SchedulingOptions:
    named = {f"x-lswap-{name.replace('_', '-')}": value for name, value in headers.items()}
    return read_scheduling_headers(
        make_head("POST", "/v1/chat/completions", named), substitutable=True
    )


def test_nothing_asked() -> None:
    assert scheduling() == DEFAULT_SCHEDULING


def test_everything_asked() -> None:
    assert scheduling(
        priority="-2", when_full="substitute: small one", max_wait="1m30s", parent="req-1"
    ) == SchedulingOptions(-2, "substitute:small one", 90.0, True, "req-1")


@pytest.mark.parametrize("text", ["wait", "refuse", "substitute:loaded"])
def test_when_full(text: str) -> None:
    assert scheduling(when_full=text).when_full == text


def test_nobody_raises_their_own_priority() -> None:
    assert scheduling(priority="9").priority == 0
    assert scheduling(priority="-999999").priority == -100


def test_a_bare_number_of_seconds_is_fine_in_a_header() -> None:
    assert scheduling(max_wait="2.5").patience == 2.5


@pytest.mark.parametrize(
    ("name", "text"),
    [("priority", "high"), ("when_full", "later"), ("when_full", "substitute"), ("max_wait", "x")],
)
def test_nonsense_names_the_header(name: str, text: str) -> None:
    with pytest.raises(ApiError, match=f"x-lswap-{name.replace('_', '-')}: ") as caught:
        scheduling(**{name: text})
    assert caught.value.code == "bad_request"
