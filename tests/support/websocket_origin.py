"""A WebSocket server that nobody here wrote (websockets): it prints its port, says what it hears in capitals, and serves a page that asks it."""

import asyncio
import http
import os

from websockets.asyncio.server import serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosedError
from websockets.http11 import Response

PAGE = b"""<!doctype html><title>asking</title><script>
const socket = new WebSocket(location.href.replace("https", "wss") + "ws");
socket.onopen = () => socket.send("hello from a page");
socket.onmessage = (m) => { document.title = m.data; document.body.textContent = m.data; };
socket.onerror = () => { document.body.textContent = "failed"; };
</script><body>waiting"""


def page(connection, request):
    if request.headers.get("Upgrade") is None:
        headers = Headers({"Content-Type": "text/html", "Content-Length": str(len(PAGE)), "Cache-Control": "no-store", "Connection": "close"})
        return Response(http.HTTPStatus.OK, "OK", headers, PAGE)


async def answer(connection):
    try:
        await echo(connection)
    except ConnectionClosedError:
        pass  # A client may leave without a word.


async def echo(connection):
    async for message in connection:
        await connection.send(message.upper())


async def main():
    async with serve(answer, "127.0.0.1", 0, process_request=page) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().create_future()


asyncio.run(main())
