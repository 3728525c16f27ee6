"""Pages for browsers: llama.cpp's web UI, or a page that says why there is none."""

from __future__ import annotations

import gzip
from html import escape
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from llamaswap_py import __version__

if TYPE_CHECKING:
    from llamaswap_py.api.request import Call
    from llamaswap_py.api.web_ui import Asset
    from llamaswap_py.snapshot import ModelView

_READS: Final = frozenset({"GET", "HEAD"})


async def index(call: Call) -> None:
    """GET /: the web UI for browsers; for other clients the text that Ollama's clients expect."""
    call.extra = [*call.extra, (b"vary", b"accept")]
    call.stamp()
    if not _is_browser(call):
        call.respond_text(200, "Ollama is running")
        return
    ui = call.supervisor.config.ui
    asset = await call.services.web_ui.find(ui, "/")
    if asset is not None:
        _send(call, asset)
        return
    call.status = 200
    page = _page(call, ui)
    headers = [(b"cache-control", b"no-cache"), (b"content-security-policy", _POLICY)]
    call.exchange.respond(200, page.encode(), "text/html; charset=utf-8", headers)


def _is_browser(call: Call) -> bool:
    """Return whether a browser asks, by `Accept`, or as a service worker (Fetch Metadata, 2.3).

    The web UI's service worker fetches `/` and accepts any type.
    """
    head = call.exchange.head
    if b"text/html" in (head.get(b"accept") or b""):
        return True
    return head.get(b"sec-fetch-site") == b"same-origin"


async def serve_file(call: Call) -> bool:
    """Answer with a file of the web UI; return False if it has no such file."""
    head = call.exchange.head
    if head.method not in _READS or "." not in PurePosixPath(head.path).name:
        return False
    asset = await call.services.web_ui.find(call.supervisor.config.ui, head.path)
    if asset is None:
        return False
    _send(call, asset)
    return True


def _send(call: Call, asset: Asset) -> None:
    """Send a file, or 304 if the browser has it already (RFC 9110, 13.1.2)."""
    head = call.exchange.head
    kind = asset.header(b"content-type").decode("latin-1")
    headers = [one for one in asset.headers if one[0] != b"content-type"]
    etag = asset.header(b"etag").removeprefix(b"W/")
    known = [
        one.strip().removeprefix(b"W/") for one in (head.get(b"if-none-match") or b"").split(b",")
    ]
    if etag and etag in known:
        call.status = 304
        call.exchange.respond(
            304, headers=[one for one in headers if one[0] != b"content-encoding"]
        )
        return
    body = asset.body
    packed = asset.header(b"content-encoding") == b"gzip"
    if packed and b"gzip" not in (head.get(b"accept-encoding") or b""):
        body = gzip.decompress(body)
        headers = [one for one in headers if one[0] != b"content-encoding"]
    if packed:
        headers.append((b"vary", b"accept-encoding"))
    call.status = 200
    call.exchange.respond(200, body, kind, headers)


_POLICY: Final = b"default-src 'none'; style-src 'unsafe-inline'; form-action 'none'"

_STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 3rem auto; padding: 0 1rem;
  color: #222; background: #fff }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .3rem .6rem;
  border-bottom: 1px solid #8884 } code, pre { background: #8882; border-radius: 4px }
code { padding: .1em .3em } pre { padding: .8rem; overflow-x: auto }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #181818 } }
"""


def _page(call: Call, ui: str) -> str:
    snapshot = call.supervisor.snapshot()
    rows = "".join(map(_row, snapshot.models))
    models = f"<table><tr><th>model<th>state<th>context</tr>{rows}</table>"
    if call.services.access.keys is not None:
        models = "<p>This server needs an API key; <code>GET /v1/models</code> lists the models."
    host = (call.exchange.head.get(b"host") or b"").decode("latin-1") or "127.0.0.1:8080"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>lswap</title><style>{_STYLE}</style>"
        f"<h1>lswap {escape(__version__)}</h1>"
        "<p>Many local models, one address: each is loaded when a request names it.</p>"
        f"{models}<h2>Point a client here</h2>"
        f"<pre>base URL   http://{escape(host)}/v1\nAPI key    any text, unless keys are needed"
        "</pre><p>Clients of Ollama and Anthropic: the same address without <code>/v1</code>.</p>"
        f"<h2>No web UI</h2><p>{_why_no_ui(ui)}</p></html>"
    )


def _row(model: ModelView) -> str:
    context = model.context_per_request or ""
    return f"<tr><td>{escape(model.id)}<td>{escape(model.state)}<td>{context}</tr>"


def _why_no_ui(ui: str) -> str:
    if ui == "none":
        return "The configuration says <code>ui: none</code>."
    if ui != "auto":
        return (
            f"<code>{escape(ui)}</code> has no index.html (<code>ui</code> in the configuration)."
        )
    return (
        "The llama-server in use has no web UI. <code>lswap engine build --ui</code> builds one "
        "that has it (needs npm); <code>ui: FOLDER</code> in the configuration serves another UI."
    )
