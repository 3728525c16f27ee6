#!/usr/bin/env bash
# Try real clients against an lswap with two tiny models: each has to say its model's sentence.
#
#   scripts/try_clients.sh [FOLDER]     FOLDER: where they are installed, or found
#
# Needs the checkout's .venv (`make demo` makes it), a package index, and npm for two of them. aider
# has an environment of its own: it insists on old versions. Not part of `make test`.
set -euo pipefail
cd "$(dirname "$0")/.."
place="${1:-build/clients}"
[ -x "$place/bin/python" ] || python3 -m venv "$place"
"$place/bin/python" -m pip install --quiet openai anthropic ollama llm langchain-openai langchain-ollama
[ -x "$place/aider/bin/aider" ] || { python3 -m venv "$place/aider" && "$place/aider/bin/pip" install --quiet aider-chat; }
if command -v npm >/dev/null && [ ! -d "$place/npm/node_modules/cline" ]; then
    npm install --silent --no-audit --no-fund --prefix "$place/npm" @continuedev/cli cline
fi
place="$(cd "$place" && pwd)"

work="$(mktemp -d)"
cleanup() { [ -z "${server:-}" ] || { kill "$server" 2>/dev/null; wait "$server" 2>/dev/null || :; }; rm -rf "$work"; }
trap cleanup EXIT

.venv/bin/python - "$work" <<'PY'
import sys
from pathlib import Path
from llamaswap_py.demo.tiny_gguf import write_tiny_model
folder = Path(sys.argv[1])
for name in ("alpha", "beta"):
    write_tiny_model(folder / f"{name}.gguf", f"{name} says hello", n_ctx_train=65536)
(folder / "lswap.yaml").write_text(f"""
memory: {{devices: {{host: 200MiB}}, margin: 10MiB, cache_ram: 0MiB}}
defaults: {{args: {{ctx-size: 65536, parallel: 1}}, memory: {{host: 150MiB}}}}
models:
  alpha: {{model: alpha.gguf}}
  beta: {{model: beta.gguf}}
""")
PY
port="$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
.venv/bin/lswap up "$work/lswap.yaml" --listen "127.0.0.1:$port" >"$work/log" 2>&1 &
server=$!
for _ in $(seq 100); do curl -sf "http://127.0.0.1:$port/readyz" >/dev/null && break; sleep 0.1; done
export URL="http://127.0.0.1:$port" OPENAI_API_KEY=none LLM_USER_PATH="$work/llm"

failed=0
expect() { # NAME WANTED COMMAND…
    local name="$1" wanted="$2" said
    shift 2
    said="$("$@" 2>&1)" || :
    if [[ "$said" == *"$wanted"* ]]; then echo "ok      $name"; else echo "FAILED  $name: $said"; failed=1; fi
}
py() { "$place/bin/python" -c "$1"; }

expect 'curl, no Content-Type' 'alpha says hello' curl -s "$URL/v1/chat/completions" -H 'Content-Type:' \
    -d '{"model": "alpha", "messages": [{"role": "user", "content": "hi"}]}'
expect 'openai' 'beta says hello' py "
import os, openai
c = openai.OpenAI(base_url=os.environ['URL'] + '/v1')
print(c.chat.completions.create(model='beta', messages=[{'role': 'user', 'content': 'hi'}]).choices[0].message.content)"
expect 'anthropic' 'alpha says hello' py "
import os, anthropic
c = anthropic.Anthropic(base_url=os.environ['URL'], api_key='none')
print(c.messages.create(model='alpha', max_tokens=50, messages=[{'role': 'user', 'content': 'hi'}]).content[0].text)"
expect 'ollama' 'beta says hello' py "
import os, ollama
c = ollama.Client(host=os.environ['URL'])
print(''.join(p.message.content for p in c.chat('beta', [{'role': 'user', 'content': 'hi'}], stream=True)))"
expect 'langchain-openai' 'alpha says hello' py "
import os
from langchain_openai import ChatOpenAI
print(ChatOpenAI(base_url=os.environ['URL'] + '/v1', model='alpha').invoke('hi').content)"
expect 'langchain-ollama' 'beta says hello' py "
import os
from langchain_ollama import ChatOllama
print(ChatOllama(base_url=os.environ['URL'], model='beta').invoke('hi').content)"
mkdir -p "$LLM_USER_PATH"
printf -- '- model_id: alpha\n  model_name: alpha\n  api_base: "%s/v1"\n' "$URL" >"$LLM_USER_PATH/extra-openai-models.yaml"
expect 'llm' 'alpha says hello' "$place/bin/llm" -m alpha hi
mkdir "$work/project"
in_project() { (cd "$work/project" && HOME="$work/home" timeout 120 "$@" </dev/null); }
OPENAI_API_BASE="$URL/v1" expect 'aider' 'beta says hello' in_project "$place/aider/bin/aider" --model openai/beta \
    --no-git --yes-always --no-check-update --no-show-model-warnings --no-analytics --message hi
if command -v npm >/dev/null; then
    cat >"$work/continue.yaml" <<YAML
name: local
version: 0.0.1
schema: v1
models: [{name: local, provider: openai, model: alpha, apiBase: "$URL/v1", apiKey: none}]
YAML
    expect 'Continue (cn)' 'alpha says hello' in_project "$place/npm/node_modules/.bin/cn" --config "$work/continue.yaml" -p hi
    in_project "$place/npm/node_modules/.bin/cline" auth -p openai -k none -m beta -b "$URL/v1" --config "$work/cline" >/dev/null
    expect 'Cline' 'beta says hello' in_project "$place/npm/node_modules/.bin/cline" --config "$work/cline" -m beta -t 60 "Who are you?"
else
    echo 'missing: npm, for Continue and Cline'
fi
exit "$failed"
