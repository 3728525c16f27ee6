"""Which model a body asks for."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llamaswap_py.api.body import Ask, read_ask
from llamaswap_py.api.multipart import MAX_VALUE, multipart_field, parameters
from llamaswap_py.errors import ApiError

JSON = b"application/json"
FORM = b"application/x-www-form-urlencoded"


def multipart(*parts: tuple[str, bytes], end: bytes = b"\r\n") -> bytes:
    body = b""
    for head, content in parts:
        body += b"--XyZ" + end + head.encode() + end + end + content + end
    return body + b"--XyZ--" + end


@pytest.mark.parametrize(
    ("body", "model", "stream"),
    [
        (b'{"model":"a","stream":true}', "a", True),
        (b'{"stream":false,"model":"org/name:7b"}', "org/name:7b", False),
        (b'{"model":"first","model":"last"}', "last", False),
        (b'{"mod\\u0065l":"\\u00e4"}', "ä", False),
        (b'{"messages":[{"model":"inner"}]}', None, False),
        (b'{"model":null,"stream":null}', None, False),
        (b'{"model":""}', None, False),
        (b'\xef\xbb\xbf {"model":"bom"}', "bom", False),
        (b'{"x":{"y":[1,2,{"z":"}"}]},"model":"deep"}', "deep", False),
        (b'[{"id":0,"scale":1}]', None, False),
        (b"", None, False),
        (b" \n", None, False),
    ],
)
def test_json(body: bytes, model: str | None, stream: bool) -> None:
    ask = read_ask(JSON, body)
    assert (ask.model, ask.stream) == (model, stream)


@pytest.mark.parametrize("kind", [b"", b"text/plain", FORM, b"application/json; charset=utf-8"])
def test_json_is_read_whatever_content_type_says(kind: bytes) -> None:
    assert read_ask(kind, b'{"model":"a=b"}').model == "a=b"


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b'{"a":1,\n "b":?}', "bad_json", "line 2, column 6"),
        (b'{"model":"a"', "bad_json", "ends too early, after 12 bytes"),
        (b'{"model":"a"} x', "bad_json", "trailing characters"),
        (b"hello", "bad_json", "byte 0"),
        (b'{"model":7}', "bad_request", "must be a string"),
        (b'{"model":["a"]}', "bad_request", "must be a string"),
        (rb'{"a":"\ud800"}', "bad_json", r"half a surrogate pair, \ud800 without its other half"),
        (rb'{"a":1,"b":"x\uDC00"}', "bad_json", "at byte 13 (line 1, column 14)"),
        (rb'{"a":"\ud800\u0041"}', "bad_json", "at byte 6 (line 1, column 7)"),
        (rb'{"model":"\ud800 and more"}', "bad_json", "at byte 10"),
        (rb'{"a":"\ud83e\udd99","b":"\ud800\ud800\udc00"}', "bad_json", "at byte 25"),
        (rb'{"a":"\ud800', "bad_json", "ends too early, after 12 bytes"),
        (rb'{"a":"\ud800\udc', "bad_json", "ends too early, after 16 bytes"),
        (rb'{"a":"\\ud800', "bad_json", "ends too early"),
        (b'{"model":"\xff"}', "bad_json", "UTF-8"),
        (b'{"a":' + b"[" * 100_000, "bad_json", "too deeply"),
    ],
)
def test_bad_json(body: bytes, code: str, words: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_ask(JSON, body)
    assert caught.value.code == code
    assert words in str(caught.value)


def test_curl_without_content_type_gets_a_json_error_for_text() -> None:
    with pytest.raises(ApiError) as caught:
        read_ask(FORM, b"just some words")
    assert caught.value.code == "bad_json"


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
@pytest.mark.parametrize(
    ("parts", "model"),
    [
        ([('Content-Disposition: form-data; name="model"', b"whisper")], "whisper"),
        ([("content-disposition:form-data;name=model", b"a/b:c")], "a/b:c"),
        (
            [
                ('Content-Disposition: form-data; name="file"; filename="x"', b"--XyZa\r\n\0" * 9),
                ('Content-Disposition: form-data; name="model"', b"late"),
            ],
            "late",
        ),
        (
            [
                ('Content-Disposition: form-data; name="f"; filename="; name=\\"model\\""', b"no"),
                ('Content-Type: text/plain\r\nContent-Disposition: form-data; name="model"', b"y"),
            ],
            "y",
        ),
        ([('Content-Disposition: form-data; name="file"', b'name="model"\r\n\r\nno')], None),
        ([('Content-Disposition: form-data; name="model"', b"")], None),
        ([], None),
    ],
)
def test_multipart(parts: list[tuple[str, bytes]], model: str | None, end: bytes) -> None:
    kind = b'multipart/form-data; boundary="XyZ"'
    assert read_ask(kind, multipart(*parts, end=end)).model == model


def test_multipart_preamble_and_missing_end() -> None:
    body = b'preamble --XyZ\r\n--XyZ \r\nContent-Disposition: form-data; name="model"\r\n\r\nopen'
    assert multipart_field(body, b"XyZ", b"model") == b"open"


@pytest.mark.parametrize("kind", [b"multipart/form-data", b"multipart/form-data; boundary="])
def test_multipart_without_boundary(kind: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        read_ask(kind, b"--x")
    assert caught.value.code == "bad_request"
    assert "boundary" in str(caught.value)


def test_a_name_that_is_no_name_is_refused() -> None:
    body = multipart(('Content-Disposition: form-data; name="model"', b"x" * (MAX_VALUE + 1)))
    with pytest.raises(ApiError, match="longer than"):
        read_ask(b"multipart/form-data; boundary=XyZ", body)


def test_urlencoded() -> None:
    assert read_ask(FORM, b"a=1&model=org%2Fx+y&model=z").model == "org/x y"
    assert read_ask(FORM, b"supermodel=1").model is None
    with pytest.raises(ApiError, match="UTF-8"):
        read_ask(FORM, b"model=%ff")


def test_quoted_parameters() -> None:
    assert parameters(b'x; A="q\\"uo;te"; b=plain ; c') == {b"a": b'q"uo;te', b"b": b"plain"}


KINDS = st.sampled_from([JSON, FORM, b"", b"multipart/form-data; boundary=b", b"a/b;boundary=b"])
PIECES = st.sampled_from(
    [
        b'{"model":',
        b'"a"',
        b"}",
        b"--b\r\n",
        b"--b--",
        b'Content-Disposition: form-data; name="model"',
        b"\r\n\r\n",
        b"\n",
        b"model=",
        b"%e4",
        b"\xff",
        b"[",
        b"\\u",
        b"\xef\xbb\xbf",
    ]
)
SOUP = st.lists(PIECES | st.binary(max_size=8), max_size=12).map(b"".join)


@given(KINDS | st.binary(max_size=60), SOUP | st.binary(max_size=200))
def test_any_bytes_give_an_ask_or_an_api_error(kind: bytes, body: bytes) -> None:
    refused, ask = None, Ask()
    try:
        ask = read_ask(kind, body)
    except ApiError as error:
        refused = error
    assert refused is None or refused.status == 400
    assert ask.model != ""


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@given(TEXT, st.binary(max_size=100))
def test_a_field_is_found_whatever_stands_before_it(name: str, noise: bytes) -> None:
    value = name.encode()
    assume(b"--XyZ" not in noise and b"--XyZ" not in value)
    body = multipart(
        ('Content-Disposition: form-data; name="file"', noise),
        ('Content-Disposition: form-data; name="model"', value),
    )
    assert multipart_field(body, b"XyZ", b"model") == value


@pytest.mark.parametrize(
    ("body", "plain"),
    [
        (b'{"model":"a","messages":[{"role":"user","content":"hi"}]}', True),
        (b'{"model":"a","tools":[]}', True),
        (b'{"model":"a","tools":[{"type":"function"}]}', False),
        (b'{"messages":[{"content":[{"type":"image_url","image_url":{"url":"x"}}]}]}', False),
        (b'{"messages":[{"content":[{"type":"image","source":{}}]}]}', False),
        (b'{"x":"' + b"a" * 300_000 + b'"}', False),
        (b"", False),
    ],
)
def test_only_words_can_be_answered_by_another_model(body: bytes, plain: bool) -> None:
    assert read_ask(JSON, body).plain is plain
