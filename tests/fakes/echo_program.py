"""An HTTP server for `cmd` that answers every request with its method and its target, raw.

echo_program.py PORT
"""

from __future__ import annotations

import json
import socketserver
import sys


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while line := self.rfile.readline().decode("latin-1").split():
            length = 0
            while (header := self.rfile.readline().strip().lower()) != b"":
                if header.startswith(b"content-length:"):
                    length = int(header[15:])
            self.rfile.read(length)
            body = json.dumps({"method": line[0], "target": line[1]}).encode()
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
            self.wfile.write(b"Content-Length: %d\r\n\r\n" % len(body))
            self.wfile.write(b"" if line[0] == "HEAD" else body)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
