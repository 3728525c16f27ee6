#!/usr/bin/env bash
# Try Open WebUI against an lswap with two tiny models, as its OpenAI and as its Ollama connection: in
# a browser, a question to one model has to be answered with that model's sentence.
#
#   scripts/try_open_webui.sh [FOLDER]     FOLDER: a virtual environment with open-webui, or for one
#
# Needs the checkout's .venv (`make demo` makes it), Chromium, and a package index. Open WebUI brings
# several gigabytes along, so this is neither part of try_clients.sh nor of `make test`.
set -euo pipefail
cd "$(dirname "$0")/.."
place="${1:-build/open-webui}"
[ -x "$place/bin/open-webui" ] || { python3 -m venv "$place" && "$place/bin/python" -m pip install --quiet open-webui; }
place="$(cd "$place" && pwd)"

work="$(mktemp -d)"
cleanup() { kill "${server:-}" "${webui:-}" 2>/dev/null || :; wait 2>/dev/null || :; rm -rf "$work"; }
trap cleanup EXIT
port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

.venv/bin/python - "$work" <<'PY'
import sys
from pathlib import Path
from llamaswap_py.demo.tiny_gguf import write_tiny_model
folder = Path(sys.argv[1])
for name in ("alpha", "beta"):
    write_tiny_model(folder / f"{name}.gguf", f"{name} says hello", n_ctx_train=65536)
(folder / "lswap.yaml").write_text("""
memory: {devices: {host: 200MiB}, margin: 10MiB, cache_ram: 0MiB}
defaults: {args: {ctx-size: 65536, parallel: 1}, memory: {host: 150MiB}}
models:
  alpha: {model: alpha.gguf}
  beta: {model: beta.gguf}
""")
PY
lswap="http://127.0.0.1:$(port)"
.venv/bin/lswap up "$work/lswap.yaml" --listen "${lswap#http://}" >"$work/lswap.log" 2>&1 &
server=$!

try() { # NAME MODEL SETTING…
    local name="$1" model="$2" page
    shift 2
    page="http://127.0.0.1:$(port)"
    mkdir -p "$work/$name"
    env DATA_DIR="$work/$name" WEBUI_AUTH=False WEBUI_SECRET_KEY=for-this-run-alone-0123456789abcdef \
        OFFLINE_MODE=true HF_HUB_OFFLINE=1 RAG_EMBEDDING_ENGINE=openai "$@" PATH="$place/bin:$PATH" \
        "$place/bin/open-webui" serve --host 127.0.0.1 --port "${page##*:}" >"$work/$name.log" 2>&1 &
    webui=$!
    for _ in $(seq 180); do curl -sf "$page/health" >/dev/null && break; sleep 1; done
    if .venv/bin/python - "$page" "$model" <<'PY'; then echo "ok      Open WebUI, $name"; else echo "FAILED  Open WebUI, $name"; tail -n 20 "$work/$name.log"; failed=1; fi
import contextlib, shutil, sys
from playwright.sync_api import Error, sync_playwright
page_url, model = sys.argv[1:]
browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
with sync_playwright() as tool:
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    browser = tool.chromium.launch(executable_path=browser_path, args=arguments)
    page = browser.new_page()
    page.set_default_timeout(60_000)
    page.goto(f"{page_url}/?models={model}")
    with contextlib.suppress(Error):  # what is new, at the first visit
        page.get_by_role("button", name="Okay, Let's Go!").click(timeout=5_000)
    page.locator("#chat-input").click()
    page.keyboard.type("Who are you?")
    page.keyboard.press("Enter")
    page.get_by_text(f"{model} says hello").first.wait_for()
    browser.close()
PY
    kill "$webui"
    wait "$webui" 2>/dev/null || :
}

failed=0
try openai alpha ENABLE_OLLAMA_API=false OPENAI_API_BASE_URL="$lswap/v1" OPENAI_API_KEY=none
try ollama beta ENABLE_OPENAI_API=false OLLAMA_BASE_URL="$lswap"
exit "$failed"
