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
const show = (text) => { document.querySelector("span").textContent = text; };
socket.onmessage = (m) => show(m.data);
socket.onerror = () => show("failed");
</script><body><span></span><img src="answered">"""


ANSWERED = asyncio.Event()


async def page(connection, request):
    if request.headers.get("Upgrade") is None:
        if request.path.endswith("answered"):
            # The page has loaded once this is there.
            await ANSWERED.wait()
            await asyncio.sleep(0.3)
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
        ANSWERED.set()


async def main():
    async with serve(answer, "127.0.0.1", 0, process_request=page) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().create_future()


asyncio.run(main())
