"""A program that mimics llama-server where a real one cannot be made to misbehave.

`install(folder)` writes an executable copy and returns its path, to be used as `binary`. It takes
`--host X.sock` or `--host IP --port N`, `--alias`, `-m`, and ignores other arguments. It speaks
the dialect of its environment: child mode when LLAMA_SERVER_ROUTER_PORT is set, JSON logs with
`--log-jsonl`. Knobs, all environment variables:

FAKE_FORMAT         plain dialects: `old` (`main: server is listening on`), `ancient` (besides,
                    "HTTP server is listening, hostname" before it is ready)
FAKE_RECORD         write argv, environment, pid, parent as JSON into this file at the start
FAKE_LOAD_STEPS     report this many progress values (child mode), default 2
FAKE_LOAD_SECONDS   take so long to load, default 0
FAKE_LOAD_GATE      finish loading only once this file exists
FAKE_HANG           never finish loading, silently
FAKE_SILENT_READY   listen, but never say so
FAKE_CRASH          `loading:SIG` | `ready:SIG` (a number): die by that signal there;
                    `loading:exit:N` | `ready:exit:N`: exit with code N
FAKE_STDERR         text written to stderr before all else
FAKE_FLOOD          write so many bytes of log lines to stderr before it is ready
FAKE_LONG_LINE      write one line of so many bytes to stderr before it is ready
FAKE_IGNORE_TERM    ignore SIGTERM
FAKE_LOSE_TERM      lose the first N SIGTERMs
FAKE_IGNORE_EXIT    ignore the exit command and the end of stdin
FAKE_LOSE_EXIT      lose the first N exit commands
FAKE_GRANDCHILD     start `sleep 600` that keeps our pipes, write its pid into this file
FAKE_PROPS          `never` (accept, say nothing) | `503:N` (the first N times) | `401`
FAKE_SLOTS          total_slots, default 4
FAKE_N_CTX          n_ctx of a slot, default 4096
FAKE_TOKENS         pieces of an SSE answer to any POST, default 3
FAKE_TOKEN_SECONDS  pause between them, default 0
FAKE_TOKEN_PAD      so many bytes more in each, default 0
FAKE_ECHO_HEAD      answer a POST with its own head
FAKE_MUTE           close the connection of any POST without a word
FAKE_CUT_AFTER      die by SIGKILL after so many pieces
FAKE_STALL          accept a POST and send nothing, until the file FAKE_STALL_GATE exists; meanwhile
                    `silent`: nothing moves, /slots answers as ever; `deaf`: nor does it answer
                    anything else; `cpu`: burn processor time, deaf; `log`: write lines, deaf;
                    `slots`: /slots shows progress; `trickle`: a byte of the answer now and then
FAKE_SAVE           slots hold 500 tokens, are saved as files of 1000 bytes, and restored. `hang`:
                    begin to save and never finish; `hang-restore`: the same of a restore;
                    `useless`: restore, and say that no prompt made use of it
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time

ENV = os.environ
CHILD_MODE = "LLAMA_SERVER_ROUTER_PORT" in ENV
JSONL = "--log-jsonl" in sys.argv
ready = threading.Event()
done = threading.Event()
stalled = threading.Event()
counts = {"props": 0, "slots": 0}
lost = {"term": int(ENV.get("FAKE_LOSE_TERM", "0")), "exit": int(ENV.get("FAKE_LOSE_EXIT", "0"))}


def install(folder: object) -> str:
    """Write an executable copy into `folder` and return its path."""
    with open(__file__, encoding="utf-8") as file:
        text = file.read()
    path = os.path.join(str(folder), "llama-server")
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"#!{sys.executable} -SE\n{text}")
    os.chmod(path, 0o700)
    return path


def option(name: str, default: str) -> str:
    """Return the word after `name`."""
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def log(message: str, level: str = "info") -> None:
    """Write one log line in the dialect of the day."""
    if JSONL:
        line = json.dumps({"type": "log", "time": 1, "level": level, "msg": message + "\n"})
        stream = sys.stderr if CHILD_MODE else sys.stdout
    else:
        line = message if ENV.get("FAKE_FORMAT") else f"0.00.001.000 I {message}"
        stream = sys.stderr
    stream.write(line + "\n")
    stream.flush()


def state(name: str, payload: dict[str, object]) -> None:
    """Tell the router."""
    if CHILD_MODE:
        said = json.dumps({"state": name, "payload": payload})
        sys.stdout.write(f"cmd_child_to_router:state:{said}\n")
        sys.stdout.flush()


def crash(stage: str) -> None:
    """Die, if this is the stage to die in."""
    want = ENV.get("FAKE_CRASH", "")
    if want.startswith(f"{stage}:"):
        how = want.split(":")[1:]
        if how[0] == "exit":
            os._exit(int(how[1]))
        os.kill(os.getpid(), int(how[0]))
        time.sleep(60)


def answer(connection: socket.socket) -> None:
    """Serve one request of one connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return
        data += piece
    method, path = data.split(b" ", 2)[:2]
    busy = {"error": {"message": "Loading model", "code": 503}}
    if not ready.is_set():
        send(connection, 503, busy)
    elif method == b"POST" and "FAKE_MUTE" in ENV:
        return
    elif "FAKE_SAVE" in ENV and path.startswith((b"/slots", b"/metrics")):
        keep_slots(connection, path, data)
    elif method == b"POST":
        if "FAKE_ECHO_HEAD" in ENV:
            send(connection, 200, {"head": data.partition(b"\r\n\r\n")[0].decode("latin-1")})
        elif "FAKE_STALL" in ENV:
            stall(connection)
        else:
            stream(connection)
    elif stalled.is_set() and ENV["FAKE_STALL"] in ("deaf", "cpu", "log"):
        done.wait()
    elif path == b"/slots" and ENV.get("FAKE_STALL") == "slots":
        counts["slots"] += 1
        send(connection, 200, [{"id": 0, "n_decoded": counts["slots"]}])
    elif path == b"/props":
        counts["props"] += 1
        how = ENV.get("FAKE_PROPS", "")
        if how == "never":
            done.wait()
        elif how == "401":
            send(connection, 401, {"error": {"message": "Invalid API Key", "code": 401}})
        elif how.startswith("503:") and counts["props"] <= int(how[4:]):
            send(connection, 503, busy)
        else:
            context = {"n_ctx": int(ENV.get("FAKE_N_CTX", "4096"))}
            slots = int(ENV.get("FAKE_SLOTS", "4"))
            props = {"total_slots": slots, "default_generation_settings": context}
            send(connection, 200, props)
    else:
        send(connection, 200, {"status": "ok"})


def keep_slots(connection: socket.socket, path: bytes, data: bytes) -> None:
    """Save and restore the slots; each has 500 tokens."""
    how = ENV["FAKE_SAVE"]
    if path == b"/slots":
        send(connection, 200, [{"id": 0, "is_processing": False, "n_prompt_tokens": 500}])
        return
    if path == b"/metrics":
        send(connection, 200, None, b"llamacpp:prompt_tokens_cached_total 0\n")
        return
    body = data.partition(b"\r\n\r\n")[2]
    while not body.endswith(b"}"):
        body += connection.recv(65536)
    name = os.path.join(option("--slot-save-path", "/nowhere"), json.loads(body)["filename"])
    if path.endswith(b"=save"):
        with open(name, "wb") as file:
            file.write(bytes(10 if how == "hang" else 1000))
        if how == "hang":
            done.wait()
        send(connection, 200, {"n_saved": 500, "n_written": 1000})
    else:
        if how == "hang-restore":
            done.wait()
        send(connection, 200, {"n_restored": 500, "n_read": 1000})


def stall(connection: socket.socket) -> None:
    """Hang, or only seem to, until the gate opens; then answer."""
    stalled.set()
    how, gate = ENV["FAKE_STALL"], ENV.get("FAKE_STALL_GATE", "")
    if how == "trickle":
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
        connection.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
    while not os.path.exists(gate):
        if how == "cpu":
            sum(range(200_000))
            continue
        if how == "log":
            log("still at it")
        elif how == "trickle":
            connection.sendall(b"3\r\n:\n\n\r\n")
        time.sleep(0.1)
    stalled.clear()
    if how == "trickle":
        connection.sendall(b"0\r\n\r\n")
    else:
        stream(connection)


def send(connection: socket.socket, status: int, value: object, text: bytes = b"") -> None:
    """Send one answer, of JSON unless there is a text."""
    body = text or json.dumps(value).encode()
    head = (
        f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    )
    connection.sendall(head.encode() + b"Connection: close\r\n\r\n" + body)


def stream(connection: socket.socket) -> None:
    """Send an SSE answer in chunks."""
    connection.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    cut = int(ENV.get("FAKE_CUT_AFTER", "-1"))
    pad = b"." * int(ENV.get("FAKE_TOKEN_PAD", "0"))
    for number in range(int(ENV.get("FAKE_TOKENS", "3"))):
        if number == cut:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(float(ENV.get("FAKE_TOKEN_SECONDS", "0")))
        event = b'data: {"content":"t%d%b"}\n\n' % (number, pad)
        connection.sendall(b"%x\r\n%s\r\n" % (len(event), event))
    connection.sendall(b"0\r\n\r\n")


def serve(listener: socket.socket) -> None:
    """Accept for ever, a thread for each connection."""
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=guarded, args=(connection,), daemon=True).start()


def guarded(connection: socket.socket) -> None:
    """Answer and close, whatever the other side does."""
    try:
        answer(connection)
    except OSError:
        pass
    finally:
        connection.close()


def listen() -> str:
    """Bind as asked; return the URL that llama-server would print."""
    host = option("--host", "127.0.0.1")
    if host.endswith(".sock"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(host)
        url = f"unix://{host}"
    else:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as cpp-httplib does
        listener.bind((host, int(option("--port", "8080"))))
        url = f"http://{host}:{listener.getsockname()[1]}"
    listener.listen(64)
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    return url


def read_commands() -> None:
    """Heed the router as child mode does."""
    for line in sys.stdin:
        if "cmd_router_to_child:exit" in line and "FAKE_IGNORE_EXIT" not in ENV:
            if lost["exit"] > 0:
                lost["exit"] -= 1
            else:
                log("srv    operator(): operator(): cleaning up before exit...")
                os._exit(0)
    if "FAKE_IGNORE_EXIT" not in ENV:
        os._exit(1)


def on_term(number: int, frame: object) -> None:
    """Heed, lose or ignore SIGTERM."""
    if "FAKE_IGNORE_TERM" in ENV:
        return
    if lost["term"] > 0:
        lost["term"] -= 1
        return
    # Not by `log`: the signal may have come in the middle of one.
    os.write(2, b"srv    operator(): operator(): cleaning up before exit...\n")
    os._exit(0)


def load() -> None:
    """Pretend to read a model."""
    sys.stderr.write(ENV.get("FAKE_STDERR", ""))
    sys.stderr.flush()
    flood = int(ENV.get("FAKE_FLOOD", "0"))
    block = ("x" * 99 + "\n") * 640
    for _ in range(flood // len(block)):
        sys.stderr.write(block)
    if "FAKE_LONG_LINE" in ENV:
        sys.stderr.write("y" * int(ENV["FAKE_LONG_LINE"]) + "\n")
    crash("loading")
    steps = int(ENV.get("FAKE_LOAD_STEPS", "2"))
    for step in range(steps):
        value = step / max(1, steps - 1)
        state("loading", {"stages": ["text_model"], "current": "text_model", "value": value})
        time.sleep(float(ENV.get("FAKE_LOAD_SECONDS", "0")) / steps)
    gate = ENV.get("FAKE_LOAD_GATE")
    while gate and not os.path.exists(gate):
        time.sleep(0.005)
    if "FAKE_HANG" in ENV:
        signal.pause()


def start_grandchild() -> None:
    """Leave a process behind that holds our pipes."""
    pid = os.fork()
    if pid == 0:
        os.execvp("sleep", ["sleep", "600"])
    with open(ENV["FAKE_GRANDCHILD"] + ".part", "w", encoding="ascii") as file:
        file.write(str(pid))
    os.replace(ENV["FAKE_GRANDCHILD"] + ".part", ENV["FAKE_GRANDCHILD"])


def say_listening(url: str) -> None:
    """Print the line that means ready."""
    if "FAKE_SILENT_READY" in ENV:
        return
    if ENV.get("FAKE_FORMAT") in ("old", "ancient"):
        log(f"main: server is listening on {url} - starting the main loop")
    else:
        log(f"srv  llama_server: listening on {url}")


def main() -> None:
    """Load, listen, and serve until told otherwise."""
    if "FAKE_RECORD" in ENV:
        with open(ENV["FAKE_RECORD"] + ".part", "w", encoding="utf-8") as file:
            told = {"argv": sys.argv, "env": dict(ENV), "pid": os.getpid(), "ppid": os.getppid()}
            json.dump(told, file)
        os.replace(ENV["FAKE_RECORD"] + ".part", ENV["FAKE_RECORD"])
    if "FAKE_IGNORE_TERM" in ENV or lost["term"]:
        signal.signal(signal.SIGTERM, on_term)
    if "FAKE_GRANDCHILD" in ENV:
        start_grandchild()
    log("srv  llama_server: initializing ...")
    url = listen()
    if ENV.get("FAKE_FORMAT") == "ancient":
        log("main: HTTP server is listening, hostname: 127.0.0.1, port: 1, http threads: 3")
    load()
    signal.signal(signal.SIGTERM, on_term)
    ready.set()
    if CHILD_MODE:
        threading.Thread(target=read_commands, daemon=True).start()
    say_listening(url)
    if "FAKE_SILENT_READY" not in ENV:
        state("ready", {"id": option("--alias", "fake"), "meta": {"n_ctx": 4096}})
    crash("ready")
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
