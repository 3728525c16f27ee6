"""Requests that two readers may understand differently, and what RFC 9112 says of each.

All of them ask the same of llama-server, POST /tokenize, so that they go all the way to a child.
Behind each comes HIDDEN: a reader that sees the end of the request elsewhere answers that too, or
takes it for a part of the body.
"""

from __future__ import annotations

from typing import Final

BODY: Final = b'{"model":"@model","content":"hello"}'
HIDDEN: Final = b"GET /health?hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"
"""A legal request of its own."""
_LIKE_ONE = (
    b'{"model":"@model",\r\n\r\n"GET /health?hidden HTTP/1.1":\r\n"Host: localhost",\r\n\r\n'
    b'"content":"hello"}'
)

_LINE = b"POST /tokenize HTTP/1.1\r\n"
_HOST = b"Host: localhost\r\n"
_LENGTH = b"Content-Length: @length\r\n"
_CHUNKED = b"Transfer-Encoding: chunked\r\n"
_END = b"0\r\n\r\n"
_CHUNK = b"@size\r\n@body\r\n"


def _post(
    headers: bytes, body: bytes = b"@body", line: bytes = _LINE, host: bytes = _HOST
) -> bytes:
    return line + host + headers + b"\r\n" + body


def _chunks(body: bytes, headers: bytes = _CHUNKED) -> bytes:
    return _post(headers, body)


REFUSED: Final = {
    # RFC 9112 section 6.3: two lengths, or one that is not a number.
    "CL + TE": _chunks(_CHUNK + _END, _LENGTH + _CHUNKED),
    "TE + CL": _chunks(_CHUNK + _END, _CHUNKED + _LENGTH),
    "TE + short CL": _chunks(_CHUNK + _END, b"Content-Length: 4\r\n" + _CHUNKED),
    "two equal CL": _post(_LENGTH + _LENGTH),
    "two CL": _post(_LENGTH + b"Content-Length: 0\r\n"),
    "two CL, the other way": _post(b"Content-Length: 0\r\n" + _LENGTH),
    "list of CL": _post(b"Content-Length: @length, @length\r\n"),
    "signed CL": _post(b"Content-Length: +@length\r\n"),
    "negative CL": _post(b"Content-Length: -@length\r\n"),
    "hexadecimal CL": _post(b"Content-Length: 0x@size\r\n"),
    "empty CL": _post(b"Content-Length:\r\n"),
    "CL with a word": _post(b"Content-Length: @length bytes\r\n"),
    "CL with an underscore": _post(b"Content-Length: 1_0\r\n"),
    "CL in Arabic digits": _post("Content-Length: ٣٥\r\n".encode()),
    "CL that wraps in 64 bits": _post(b"Content-Length: @wrapped\r\n"),
    "CL of 400 digits": _post(b"Content-Length: " + b"9" * 400 + b"\r\n"),
    "CL above 2^62": _post(b"Content-Length: 9223372036854775807\r\n"),
    "CL with a space before the colon": _post(b"Content-Length : @length\r\n"),
    # Section 6.1: chunked comes last, once, and nothing else is understood here.
    "TE xchunked": _chunks(_CHUNK + _END, b"Transfer-Encoding: xchunked\r\n"),
    "TE identity": _post(b"Transfer-Encoding: identity\r\n" + _LENGTH),
    "TE chunked, identity": _chunks(_CHUNK + _END, b"Transfer-Encoding: chunked, identity\r\n"),
    "TE gzip, chunked": _chunks(_CHUNK + _END, b"Transfer-Encoding: gzip, chunked\r\n"),
    "TE chunked twice": _chunks(_CHUNK + _END, _CHUNKED + _CHUNKED),
    "TE with a vertical tab": _chunks(_CHUNK + _END, b"Transfer-Encoding:\x0bchunked\r\n"),
    "TE with a NUL": _chunks(_CHUNK + _END, b"Transfer-Encoding: chunked\0\r\n"),
    "TE with a space before the colon": _chunks(_CHUNK + _END, b"Transfer-Encoding : chunked\r\n"),
    "TE folded": _chunks(_CHUNK + _END, b"Transfer-Encoding:\r\n chunked\r\n"),
    "TE behind a bare LF": _chunks(_CHUNK + _END, b"X: a\nTransfer-Encoding: chunked\r\n"),
    "TE behind a bare CR": _chunks(_CHUNK + _END, b"X: a\rTransfer-Encoding: chunked\r\n"),
    "TE in HTTP/1.0": _post(_CHUNKED, _CHUNK + _END, line=b"POST /tokenize HTTP/1.0\r\n"),
    # Section 7.1: the chunks.
    "chunk size 0x": _chunks(b"0x@size\r\n@body\r\n" + _END),
    "chunk size with a sign": _chunks(b"+@size\r\n@body\r\n" + _END),
    "chunk size, negative": _chunks(b"-@size\r\n@body\r\n" + _END),
    "chunk size with a space": _chunks(b"@size \r\n@body\r\n" + _END),
    "chunk size that wraps in 64 bits": _chunks(b"1000000000000000@size\r\n@body\r\n" + _END),
    "chunk size without digits": _chunks(b";a=b\r\n@body\r\n" + _END),
    "chunk size with a bare LF": _chunks(b"@size\n@body\r\n" + _END),
    "bare LF behind a chunk": _chunks(b"@size\r\n@body\n" + _END),
    "nothing behind a chunk": _chunks(b"@size\r\n@body" + _END),
    "a chunk that is too long": _chunks(b"@size\r\n@body!\r\n" + _END),
    "extension with a bare LF": _chunks(b"@size;a\n@body\r\n" + _END),
    "extension with a bare CR": _chunks(b"@size;a\rb\r\n@body\r\n" + _END),
    "extension with a NUL": _chunks(b"@size;a=\0\r\n@body\r\n" + _END),
    "last chunk with a bare LF": _chunks(_CHUNK + b"0\n\n"),
    "framing in the trailer": _chunks(_CHUNK + b"0\r\nContent-Length: 5\r\n\r\n"),
    # Sections 2.2, 3 and 5: lines.
    "obs-fold": _post(b"X: a\r\n b\r\n" + _LENGTH),
    "obs-fold with a tab": _post(b"X: a\r\n\tContent-Length: 0\r\n" + _LENGTH),
    "obs-fold of a length": _post(b"Content-Length:\r\n @length\r\n"),
    "fold of the first line": _post(_LENGTH, host=b" X: a\r\n" + _HOST),
    "bare LF": _post(b"X: a\n" + _LENGTH),
    "bare LF everywhere": _post(_LENGTH).replace(b"\r\n", b"\n"),
    "bare LF at the end of the head": _post(_LENGTH).replace(b"\r\n\r\n", b"\r\n\n"),
    "bare CR": _post(b"X: a\rContent-Length: 0\r\n" + _LENGTH),
    "two CR": _post(b"X: a\r\r\n" + _LENGTH),
    "NUL in a value": _post(b"X: a\0b\r\n" + _LENGTH),
    "NUL in a name": _post(b"X\0: a\r\n" + _LENGTH),
    "NUL in the target": _post(_LENGTH, line=b"POST /tokenize\0 HTTP/1.1\r\n"),
    "control character in a value": _post(b"X: \x01\r\n" + _LENGTH),
    "empty name": _post(b": a\r\n" + _LENGTH),
    "no colon": _post(b"X\r\n" + _LENGTH),
    "space before the colon": _post(b"X : a\r\n" + _LENGTH),
    "two hosts": _post(_LENGTH, host=_HOST + _HOST),
    "no host": _post(_LENGTH, host=b""),
    "space before the request": b" " + _post(_LENGTH),
    "tab in the request line": _post(_LENGTH, line=b"POST\t/tokenize HTTP/1.1\r\n"),
    "HTTP/1.1 twice": _post(_LENGTH, line=b"POST /tokenize HTTP/1.1 HTTP/1.1\r\n"),
    "HTTP/2.0": _post(_LENGTH, line=b"POST /tokenize HTTP/2.0\r\n"),
    "a head of 100 KB": _post(b"X: " + b"x" * 100_000 + b"\r\n" + _LENGTH),
    "1,000 headers": _post(b"X: a\r\n" * 1_000 + _LENGTH),
}
"""Each gets one error and the end of the connection; the child gets nothing."""

LEGAL: Final = {
    "as it should be": _post(_LENGTH),
    "CL with leading zeros": _post(b"Content-Length: 000@length\r\n"),
    "CL with blanks around it": _post(b"Content-Length: \t @length \t\r\n"),
    "names in capitals": _post(b"CONTENT-LENGTH: @length\r\n"),
    "one chunk": _chunks(_CHUNK + _END),
    "TE in another case": _chunks(_CHUNK + _END, b"transfer-ENCODING: CHUNKED\r\n"),
    "many chunks": _chunks(b"@many" + _END),
    "chunk size with leading zeros": _chunks(b"0000@size\r\n@body\r\n000\r\n\r\n"),
    "chunk size in capitals": _chunks(b"@SIZE\r\n@body\r\n" + _END),
    "chunk extension": _chunks(b"@size;a=b;c\r\n@body\r\n0;d\r\n\r\n"),
    "chunk extension in quotes": _chunks(b'@size;a="b;c"\r\n@body\r\n' + _END),
    "trailer": _chunks(_CHUNK + b"0\r\nX-Trailer: a\r\n\r\n"),
    "empty line before the request": b"\r\n" + _post(_LENGTH),
    "Connection names the length": _post(b"Connection: content-length\r\n" + _LENGTH),
    "Connection names the chunks": _chunks(
        _CHUNK + _END, b"Connection: transfer-encoding\r\n" + _CHUNKED
    ),
    "an underscore is not a hyphen": _post(
        b"Content_Length: 0\r\nTransfer_Encoding: a\r\n" + _LENGTH
    ),
    "a body that looks like a request": _post(_LENGTH, _LIKE_ONE),
    "an upgrade that is not made": _post(b"Connection: upgrade\r\nUpgrade: h2c\r\n" + _LENGTH),
    "absolute form": _post(_LENGTH, line=b"POST http://localhost/tokenize HTTP/1.1\r\n"),
}
"""Each is one request, and HIDDEN the next; the child gets the first, with one length."""


def render(template: bytes, model: str) -> bytes:
    """Put a body that names a model, and its size, into a case."""
    body = BODY.replace(b"@model", model.encode())
    template = template.replace(b"@model", model.encode())
    own = (
        b"" if b"@body" in template or b"@many" in template else template.partition(b"\r\n\r\n")[2]
    )
    size = len(own or body)
    values = {
        b"@length": b"%d" % size,
        b"@wrapped": b"%d" % (2**64 + size),
        b"@size": b"%x" % size,
        b"@SIZE": b"%X" % size,
        b"@many": b"".join(b"1\r\n%c\r\n" % byte for byte in body),
        b"@body": body,
    }
    for mark, value in values.items():
        template = template.replace(mark, value)
    return template
