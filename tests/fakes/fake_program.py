"""A small HTTP server that is not a llama-server, as people put behind `cmd`.

    fake_program.py PORT | PATH OF A SOCKET

It answers GET /health with 503 until it is up, GET /env with its environment, arguments and folder,
POST with what was posted, backwards, and says "up and running on …" once it listens. Knobs,
environment variables:

PROGRAM_SECONDS      take so long to come up, default 0
PROGRAM_NO_HEALTH    know no /health
PROGRAM_EXIT         end with this exit code instead
PROGRAM_IGNORE_TERM  ignore SIGTERM
PROGRAM_LINGERS      at SIGTERM take no more connections, and stay
PROGRAM_SLAMS        once the file PROGRAM_GATE exists, `close` or `reset` each connection at once
PROGRAM_MEMORY       take so many MiB
PROGRAM_HANG         answer a POST only once the file PROGRAM_GATE exists, GET /health always:
                     `mute`, `stream` (begin a stream), `works` (a child uses the processor), or
                     `lines` (write some)
PROGRAM_CHATTER      write a line that looks like llama-server's own first
PROGRAM_GATE_FIRST   listen only once this file exists
PROGRAM_REUSE_PORT   let others share the port
PROGRAM_INSIDE       be served by a process of its own: `child`; `orphan` (its parent ends);
                     `daemon` (besides, it leads a session); the program itself starts a server that
                     has ended anew, on the same port, once the file PROGRAM_AGAIN exists
"""

from __future__ import annotations

import json
import os
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ENV = os.environ
began = time.monotonic()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        self.rfile.peek(1)  # type: ignore[attr-defined]
        how = ENV.get("PROGRAM_SLAMS")
        if how is None or not os.path.exists(ENV["PROGRAM_GATE"]):
            super().handle_one_request()
            return
        self.close_connection = True
        if how == "reset":
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/health" and "PROGRAM_NO_HEALTH" not in ENV:
            up = time.monotonic() - began >= float(ENV.get("PROGRAM_SECONDS", "0"))
            self.answer(200 if up else 503, b"{}")
        elif self.path.startswith("/env"):
            told = {"env": dict(ENV), "argv": sys.argv, "cwd": os.getcwd(), "pid": os.getpid()}
            self.answer(200, json.dumps(told).encode())
        else:
            self.answer(404, b"{}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if how := ENV.get("PROGRAM_HANG"):
            self.hang(how)
        self.answer(200, json.dumps({"backwards": body.decode()[::-1]}).encode())

    def hang(self, how: str) -> None:
        gate, helper = ENV["PROGRAM_GATE"], None
        if how == "stream" and not os.path.exists(gate):
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(b"data: {}\n\n")
        if how == "works":
            helper = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        while not os.path.exists(gate):
            time.sleep(0.05)
            if how == "lines":
                print("still at it", flush=True)
        if helper is not None:
            helper.kill()
            helper.wait()

    def log_message(self, *args: object) -> None:
        pass

    def address_string(self) -> str:
        return "somebody"


class OnSocket(ThreadingHTTPServer):
    address_family = socketserver.socket.AF_UNIX  # type: ignore[attr-defined]

    def server_bind(self) -> None:
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "localhost", 0


def end(number: int, frame: object) -> None:
    if "PROGRAM_LINGERS" in ENV and servers:
        servers.pop().socket.close()
    print("told to end", flush=True)
    if "PROGRAM_LINGERS" in ENV:
        while True:
            time.sleep(60)
    if "PROGRAM_IGNORE_TERM" not in ENV:
        os._exit(0)


servers: list[ThreadingHTTPServer] = []


class Sharing(ThreadingHTTPServer):
    def server_bind(self) -> None:
        self.socket.setsockopt(socketserver.socket.SOL_SOCKET, socketserver.socket.SO_REUSEPORT, 1)  # type: ignore[attr-defined]
        super().server_bind()


def serve_inside(how: str) -> None:
    """Have another process serve, for ever."""
    words = [sys.executable, __file__, *sys.argv[1:]]
    env = {name: value for name, value in ENV.items() if name != "PROGRAM_INSIDE"}
    while True:
        if how == "child":
            subprocess.run(words, env=env, check=False)
        elif how == "orphan":
            subprocess.run(["sh", "-c", '"$@" &', "sh", *words], env=env, check=False)
        else:
            subprocess.run(["setsid", "-f", *words], env=env, check=False)
        while how != "child" or not os.path.exists(ENV.get("PROGRAM_AGAIN", "")):
            time.sleep(0.02)


def main() -> None:
    signal.signal(signal.SIGTERM, end)
    if "PROGRAM_CHATTER" in ENV:
        print("main: server is listening on http://127.0.0.1:1", flush=True)
    if "PROGRAM_EXIT" in ENV:
        print("error: there is no such weight", file=sys.stderr, flush=True)
        sys.exit(int(ENV["PROGRAM_EXIT"]))
    if how := ENV.get("PROGRAM_INSIDE"):
        serve_inside(how)
    where = sys.argv[1]
    while (gate := ENV.get("PROGRAM_GATE_FIRST")) and not os.path.exists(gate):
        time.sleep(0.02)
    kept = b"x" * (int(ENV.get("PROGRAM_MEMORY", "0")) << 20)
    kind = OnSocket if "/" in where else ThreadingHTTPServer
    if "PROGRAM_REUSE_PORT" in ENV:
        kind = Sharing
    address = where if "/" in where else ("127.0.0.1", int(where))
    server = kind(address, Handler)  # type: ignore[arg-type]
    servers.append(server)
    print(f"up and running on {where} with {len(kept)} bytes", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
