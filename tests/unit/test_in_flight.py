"""How many requests a key, or an address without one, may have open; and what does not count."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest

from llamaswap_py.api import routes
from llamaswap_py.api.app import App
from llamaswap_py.api.auth import Access
from llamaswap_py.config.api_keys import ApiKey, KeyRing, hash_secret
from llamaswap_py.errors import ApiError
from tests.unit.api_fakes import FakeExchange, FakeSupervisor, make_config

pytestmark = pytest.mark.anyio

SMALL = "names models or conversations; a body above 64 KiB counts"
UNCOUNTED = {
    # They take no key, and are answered at once.
    ("GET", "/"): "public",
    ("GET", "/health"): "public",
    ("GET", "/v1/health"): "public",
    ("GET", "/livez"): "public",
    ("GET", "/readyz"): "public",
    ("GET", "/api/version"): "public",
    ("GET", "/openapi.json"): "public",
    # What an operator needs when there are too many.
    ("GET", "/metrics"): "lswap's own; with a model or a body it counts",
    ("GET", "/lswap/v1/state"): "shows",
    ("GET", "/lswap/v1/decisions"): "shows",
    ("GET", "/lswap/v1/requests"): "shows",
    ("POST", "/lswap/v1/reload"): SMALL,
    ("POST", "/lswap/v1/requests/{id}/cancel"): "ends one",
    ("POST", "/lswap/v1/models/{id}/unload"): "ends some",
    ("POST", "/models/unload"): SMALL,
    # Answers that go on without their client count as long as they do.
    ("GET", "/v1/stream"): "reads an answer that counts",
    ("DELETE", "/v1/stream"): "ends one",
    ("GET", "/v1/stream/{id}"): "the same, as older builds have it",
    ("DELETE", "/v1/stream/{id}"): "ends one",
    ("POST", "/v1/streams/lookup"): SMALL,
}
"""Every route that does not count, and why that is safe. Whatever is not here has to."""


def all_routes() -> list[tuple[str, str]]:
    patterns = [(f"{start}{{id}}{end}", methods) for start, end, methods in routes.PATTERNS]
    return [
        ("POST" if method == routes.ANY else method, path)
        for path, methods in [*routes.ROUTES.items(), *patterns]
        for method in methods
    ]


def limited(most: int) -> App:
    config = msgspec.structs.replace(
        make_config(), limits=msgspec.structs.replace(make_config().limits, max_in_flight=most)
    )
    return App(cast("Any", FakeSupervisor(config)))


async def ask(app: App, method: str, target: str, peer: str = "127.0.0.1") -> int:
    exchange = FakeExchange(method, target, b"", peer=peer)
    await app.handle(cast("Any", exchange))
    return exchange.status


@pytest.mark.parametrize(("method", "path"), all_routes())
async def test_every_route_counts_or_is_listed(method: str, path: str) -> None:
    app = limited(1)
    app.services.access.in_flight["127.0.0.1"] = 1
    status = await ask(app, method, path.replace("{id}", "alpha"))
    assert (status != 429) == ((method, path) in UNCOUNTED)
    assert app.services.access.in_flight == {"127.0.0.1": 1}


def test_the_list_is_of_routes() -> None:
    assert set(UNCOUNTED) <= set(all_routes())


@pytest.mark.parametrize("target", ["/metrics?model=alpha", "/metrics?x"])
async def test_the_metrics_of_a_model_count(target: str) -> None:
    app = limited(1)
    app.services.access.in_flight["127.0.0.1"] = 1
    assert await ask(app, "GET", target) == 429


async def test_an_address_counts_by_its_principal() -> None:
    app = limited(2)
    app.services.access.in_flight["2001:db8::/64"] = 2
    assert await ask(app, "GET", "/v1/models", peer="2001:db8::9") == 429
    assert await ask(app, "GET", "/v1/models", peer="2001:db8:0:1::9") == 200
    assert app.services.access.in_flight == {"2001:db8::/64": 2}


async def test_no_limit_is_said_with_0() -> None:
    app = limited(0)
    app.services.access.in_flight["127.0.0.1"] = 10**6
    assert await ask(app, "GET", "/v1/models") == 200


def a_key(**changes: Any) -> ApiKey:
    return ApiKey(name="k", hash=hash_secret(b"secret"), **changes)


@pytest.mark.parametrize("own", [2, None])
def test_the_limit_of_a_key_is_its_own_or_the_default(own: int | None) -> None:
    key = a_key(max_in_flight=own)
    access = Access(KeyRing([key]))
    access.enter("key k", key, 2)
    access.enter("key k", key, 2)
    with pytest.raises(ApiError) as caught:
        access.enter("key k", key, 2)
    assert (caught.value.code, caught.value.status) == ("too_many_requests", 429)
    assert caught.value.retry_after
    assert ("limits.max_in_flight" in caught.value.remedy) == (own is None)
    access.enter("key k", key, 2, replaces=True)
    access.enter("key other", None, 2)
    for _ in range(3):
        access.leave("key k")
    access.leave("key other")
    assert access.in_flight == {}


def test_a_key_that_gets_a_limit_while_it_is_used_is_counted_right() -> None:
    access = Access(None)
    access.enter("key k", a_key(), 0)
    key = a_key(max_in_flight=1)
    with pytest.raises(ApiError):
        access.enter("key k", key, 0)
    access.leave("key k")
    access.enter("key k", key, 0)
    access.leave("key k")
    assert access.in_flight == {}
