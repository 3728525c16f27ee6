"""A child that writes down every byte it is sent, and answers each request it understands.

`LSWAP_TAPE` names the file. Requests are read by h11, which is strict; what it cannot read is
answered with 400 and the end of the connection. An answer tells the size of the request's body.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import h11


def write_down(data: bytes) -> None:
    """Append to the tape; it is there before the answer is."""
    with Path(os.environ["LSWAP_TAPE"]).open("ab") as tape:
        tape.write(data)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection."""
    connection, size = h11.Connection(h11.SERVER), 0
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            writer.write(f"HTTP/1.1 400 X\r\nContent-Length: 0\r\nX-Why: {error}\r\n\r\n".encode())
            break
        if event is h11.NEED_DATA:
            data = await reader.read(65536)
            write_down(data)
            connection.receive_data(data)
        elif isinstance(event, h11.Data):
            size += len(event.data)
        elif isinstance(event, h11.EndOfMessage):
            body = json.dumps({"total_slots": 1, "size": size}).encode()
            headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
            for part in (
                h11.Response(status_code=200, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                writer.write(connection.send(part) or b"")
            size = 0
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                break
            connection.start_next_cycle()
        elif isinstance(event, h11.ConnectionClosed):
            break
    writer.close()


async def main() -> None:
    """Listen where llama-server would, say so as it does, and end with stdin."""
    path = sys.argv[sys.argv.index("--host") + 1]
    async with await asyncio.start_unix_server(serve, path):
        print('cmd_child_to_router:state:{"state":"ready","payload":{}}', flush=True)
        await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    asyncio.run(main())
