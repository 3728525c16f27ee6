"""Heads on their way to a child and back."""

from __future__ import annotations

from llamaswap_py.proxy.messages import (
    Body,
    RequestHead,
    UpstreamRequest,
    forward_headers,
    is_bodiless,
    render_request,
    render_response,
)


def head(*headers: tuple[bytes, bytes]) -> RequestHead:
    return RequestHead("POST", "/x", "/x", "", "1.1", list(headers), keep_alive=True)


def test_only_end_to_end_headers_reach_a_child() -> None:
    request = head(
        (b"host", b"public:80"),
        (b"connection", b"close, X-Hop"),
        (b"x-hop", b"1"),
        (b"keep-alive", b"5"),
        (b"te", b"trailers"),
        (b"transfer-encoding", b"chunked"),
        (b"content-length", b"4"),
        (b"expect", b"100-continue"),
        (b"proxy-authorization", b"secret"),
        (b"upgrade", b"h2c"),
        (b"authorization", b"Bearer key"),
        (b"accept", b"*/*"),
        (b"x-forwarded-proto", b"https"),
    )
    assert forward_headers(request, drop=frozenset((b"authorization",)), peer="10.0.0.1") == [
        (b"host", b"localhost"),
        (b"accept", b"*/*"),
        (b"x-forwarded-for", b"10.0.0.1"),
        (b"x-forwarded-proto", b"http"),
        (b"x-forwarded-host", b"public:80"),
    ]


def test_each_connection_header_names_what_stays_here() -> None:
    """RFC 9110 section 7.6.1; several headers of one name are one list (section 5.3)."""
    request = head(
        (b"connection", b"close"), (b"connection", b"X-Hop, x-Other"), (b"x-hop", b"1"),
        (b"x-other", b"2"), (b"accept", b"*/*"),
    )  # fmt: skip
    names = [name for name, _ in forward_headers(request, peer="unix")]
    assert names == [b"host", b"accept", b"x-forwarded-for", b"x-forwarded-proto"]


def test_the_chain_of_proxies_grows() -> None:
    request = head((b"x-forwarded-for", b"1.1.1.1"))
    assert (b"x-forwarded-for", b"1.1.1.1, unix") in forward_headers(request, peer="unix")


def test_requests_always_say_their_length() -> None:
    wire = render_request(UpstreamRequest("POST", "/x?y", [(b"a", b"b")], Body.of(b"abc")))
    assert wire == b"POST /x?y HTTP/1.1\r\na: b\r\ncontent-length: 3\r\n\r\n"
    assert b"content-length: 0" in render_request(UpstreamRequest("POST", "/", []))
    assert b"content-length" not in render_request(UpstreamRequest("GET", "/", []))


def test_responses() -> None:
    assert render_response(404, [(b"a", b"b")]) == b"HTTP/1.1 404 Not Found\r\na: b\r\n\r\n"
    assert render_response(299, [], b"Odd") == b"HTTP/1.1 299 Odd\r\n\r\n"


def test_bodiless_answers() -> None:
    assert [is_bodiless("GET", s) for s in (100, 200, 204, 304, 404)] == [
        True,
        False,
        True,
        True,
        False,
    ]
    assert is_bodiless("HEAD", 200)


def test_a_body_is_joined_once() -> None:
    body = Body([b"a", b"b"], 2)
    assert body.join() == b"ab"
    assert body.pieces == [b"ab"]
    assert body.join() is body.pieces[0]
    assert Body().join() == b""
    assert Body.of(b"").pieces == []
