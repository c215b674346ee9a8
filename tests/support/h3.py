"""A client of HTTP/3 that nobody here wrote (aioquic), driven by one JSON document as its argument; it prints what came as JSON.

    {"connect": "127.0.0.1:8443", "ca": "ca.pem", "name": "localhost", "runs": [{"do": "requests", ...}, ...]}

Each run has a connection of its own. What a run may say stands with its function below.
"""

import asyncio
import hashlib
import json
import os
import socket
import sys

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted, StreamReset

SPEC = json.loads(sys.argv[1])
HOST, PORT = SPEC["connect"].rsplit(":", 1)
ADDRESS = (HOST, int(PORT))
NAME = SPEC.get("name", "localhost")
TICKETS = []


class Http(H3Connection):
    """It knows that a response to HEAD has no body, whatever its Content-Length says."""

    def __init__(self, quic):
        super().__init__(quic)
        self.bodiless = set()

    def _check_content_length(self, stream):
        if stream.stream_id not in self.bodiless:
            super()._check_content_length(stream)


class Answer:
    """What came on one stream."""

    def __init__(self):
        self.heads, self.interim, self.trailers = [], [], None
        self.length, self.digest, self.done = 0, hashlib.sha256(), asyncio.get_event_loop().create_future()
        self.text = b""

    def as_json(self, error=None):
        fields = dict(self.heads)
        return {
            "status": int(fields.get(":status", 0)),
            "headers": {k: v for k, v in self.heads if not k.startswith(":")},
            "interim": self.interim,
            "trailers": self.trailers,
            "length": self.length,
            "sha256": self.digest.hexdigest(),
            "text": self.text.decode("latin-1"),
            "error": error,
        }


class Client(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.http = Http(self._quic)
        self.answers = {}
        self.ended = asyncio.get_event_loop().create_future()
        self.shaken = asyncio.get_event_loop().create_future()
        self.early_accepted = False

    def quic_event_received(self, event):
        if isinstance(event, HandshakeCompleted):
            self.early_accepted = event.early_data_accepted
            if not self.shaken.done():
                self.shaken.set_result(None)
        if isinstance(event, ConnectionTerminated):
            if not self.ended.done():
                self.ended.set_result((event.error_code, event.reason_phrase))
            for answer in self.answers.values():
                if not answer.done.done():
                    answer.done.set_result(f"connection ended: {event.error_code:#x} {event.reason_phrase}")
            if not self.shaken.done():
                self.shaken.set_result(None)
        if isinstance(event, StreamReset) and event.stream_id in self.answers:
            answer = self.answers[event.stream_id]
            if not answer.done.done():
                answer.done.set_result(f"reset: {event.error_code:#x}")
        for got in self.http.handle_event(event):
            answer = self.answers.get(got.stream_id)
            if answer is None:
                continue
            if isinstance(got, HeadersReceived):
                head = [(k.decode(), v.decode("latin-1")) for k, v in got.headers]
                status = dict(head).get(":status", "")
                if answer.heads:
                    answer.trailers = dict(head)
                elif status.startswith("1"):
                    answer.interim.append(dict(head))
                else:
                    answer.heads = head
            elif isinstance(got, DataReceived):
                answer.length += len(got.data)
                answer.digest.update(got.data)
                if len(answer.text) < 2000:
                    answer.text += got.data[: 2000 - len(answer.text)]
            if got.stream_ended and not answer.done.done():
                answer.done.set_result(None)

    def begin(self, request):
        stream = self._quic.get_next_available_stream_id()
        self.answers[stream] = Answer()
        head = [
            (":method", request.get("method", "GET")),
            (":scheme", "https"),
            (":authority", request.get("authority", f"{NAME}:{PORT}")),
            (":path", request.get("path", "/")),
        ] + [tuple(h) for h in request.get("headers", [])]
        if request.get("protocol"):
            head.insert(1, (":protocol", request["protocol"]))
        if request.get("method") == "HEAD":
            self.http.bodiless.add(stream)
        body = request.get("body")
        trailers = request.get("trailers")
        encoded = [(k.encode(), v.encode("latin-1")) for k, v in head]
        open_end = body is not None or trailers is not None or request.get("late_end") or request.get("keep_open")
        self.http.send_headers(stream, encoded, end_stream=not open_end)
        if body is not None:
            data = body.encode() if isinstance(body, str) else pattern(body)
            self.http.send_data(stream, data, end_stream=trailers is None and not request.get("keep_open"))
        if trailers is not None:
            self.http.send_headers(stream, [(k.encode(), v.encode()) for k, v in trailers], end_stream=True)
        return stream

    async def answer(self, stream, within=60):
        answer = self.answers[stream]
        try:
            error = await asyncio.wait_for(asyncio.shield(answer.done), within)
        except asyncio.TimeoutError:
            error = "timeout"
        return answer.as_json(error)


def pattern(length):
    return (bytes(range(251)) * (length // 251 + 1))[:length]


def configuration(**more):
    c = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name=NAME, max_datagram_size=1350, **more)
    c.load_verify_locations(SPEC["ca"])
    return c


async def connect(wait=True, **more):
    loop = asyncio.get_event_loop()
    quic = QuicConnection(configuration=configuration(**more), session_ticket_handler=TICKETS.append)
    transport, protocol = await loop.create_datagram_endpoint(lambda: Client(quic), local_addr=("127.0.0.1", 0))
    protocol.connect(ADDRESS)
    if wait:
        await asyncio.wait_for(protocol.shaken, 10)
        protocol.transmit()
    return protocol


async def requests(run):
    """{"do": "requests", "requests": [...], "at_once": true}: all on one connection."""
    client = await connect(**run.get("configuration", {}))
    if run.get("at_once", True):
        streams = [client.begin(r) for r in run["requests"]]
        client.transmit()
        answers = [await client.answer(s, run.get("within", 60)) for s in streams]
    else:
        answers = []
        for r in run["requests"]:
            stream = client.begin(r)
            client.transmit()
            if r.get("late_end"):
                await asyncio.sleep(0.2)
                client.http.send_data(stream, b"", end_stream=True)
                client.transmit()
            answers.append(await client.answer(stream, run.get("within", 60)))
    if run.get("wait_for_ticket"):
        for _ in range(100):
            if TICKETS:
                break
            await asyncio.sleep(0.02)
    client.close()
    await asyncio.sleep(0.05)
    return {"answers": answers, "settings": {str(k): v for k, v in (client.http.received_settings or {}).items()}}


async def early(run):
    """{"do": "early", "requests": [...]}: in the first flight of a resumed session, before anything came back."""
    client = await connect(wait=False, session_ticket=TICKETS.pop(0))
    streams = [client.begin(r) for r in run["requests"]]
    client.transmit()
    answers = [await client.answer(s) for s in streams]
    accepted = client.early_accepted
    client.close()
    await asyncio.sleep(0.05)
    return {"answers": answers, "early": accepted}


async def migrate(run):
    """{"do": "migrate", "request": {...}, "times": N}: the client's port changes N times while the response comes."""
    client = await connect()
    stream = client.begin(run["request"])
    client.transmit()
    loop, ports = asyncio.get_event_loop(), []
    for _ in range(run["times"]):
        before = client.answers[stream].length
        for _ in range(500):
            if client.answers[stream].length > before or client.answers[stream].done.done():
                break
            await asyncio.sleep(0.01)
        client._quic.change_connection_id()
        old = client._transport
        new, _ = await loop.create_datagram_endpoint(lambda: Forward(client), local_addr=("127.0.0.1", 0))
        client._transport = new
        ports.append(new.get_extra_info("sockname")[1])
        client._quic.send_ping(0)
        client.transmit()
        await asyncio.sleep(0.1)
        old.close()
    answer = await client.answer(stream)
    again = client.begin(run["request"])
    client.transmit()
    second = await client.answer(again)
    client.close()
    await asyncio.sleep(0.05)
    return {"answers": [answer, second], "ports": ports}


class Forward(asyncio.DatagramProtocol):
    def __init__(self, client):
        self.client = client

    def datagram_received(self, data, addr):
        self.client.datagram_received(data, addr)


async def websocket(run):
    """{"do": "websocket", "path": "/ws", "say": [hex...]}: frames of WebSocket in DATA frames, and as many bytes of answers."""
    client = await connect()
    stream = client.begin({"method": "CONNECT", "protocol": "websocket", "path": run["path"], "keep_open": True, "headers": [["sec-websocket-version", "13"]]})
    client.transmit()
    answer = client.answers[stream]
    for _ in range(500):
        if answer.heads or answer.done.done():
            break
        await asyncio.sleep(0.01)
    for said in run["say"]:
        before = answer.length
        client.http.send_data(stream, bytes.fromhex(said), end_stream=False)
        client.transmit()
        for _ in range(500):
            if answer.length > before or answer.done.done():
                break
            await asyncio.sleep(0.01)
    client.http.send_data(stream, b"", end_stream=True)
    client.transmit()
    return {"answers": [await client.answer(stream, 5)]}


async def cancel(run):
    """{"do": "cancel", "request": {...}}: gives the request up once its first byte is there."""
    client = await connect()
    stream = client.begin(run["request"])
    client.transmit()
    while client.answers[stream].length == 0:
        await asyncio.sleep(0.01)
    client._quic.stop_stream(stream, 0x10C)
    client.transmit()
    print("begun", file=sys.stderr, flush=True)
    await asyncio.sleep(run["seconds"])
    return {"answers": []}


async def raw(run):
    """{"do": "raw", "bidirectional": [hex...], "unidirectional": [hex...]}: what a stream carries as it stands; how it ends."""
    client = await connect()
    streams = []
    for text in run.get("unidirectional", []):
        stream = client._quic.get_next_available_stream_id(is_unidirectional=True)
        client._quic.send_stream_data(stream, bytes.fromhex(text), end_stream=run.get("end", False))
    for text in run.get("bidirectional", []):
        stream = client._quic.get_next_available_stream_id()
        client.answers[stream] = Answer()
        streams.append(stream)
        repeat = run.get("repeat", 1)
        client._quic.send_stream_data(stream, bytes.fromhex(text) * repeat, end_stream=run.get("end", False))
    client.transmit()
    ended = None
    within = run.get("within", 3)
    try:
        ended = await asyncio.wait_for(asyncio.shield(client.ended), within if not streams or run.get("expect_end") else 0.01)
    except asyncio.TimeoutError:
        pass
    answers = [await client.answer(s, within) for s in streams]
    if client.ended.done():
        ended = client.ended.result()
    client.close()
    await asyncio.sleep(0.05)
    return {"answers": answers, "ended": ended and {"code": ended[0], "why": ended[1]}}


async def hold(run):
    """{"do": "hold", "seconds": N, "request": {...}}: an open connection; how it ends by itself, and what is answered meanwhile."""
    client = await connect()
    answers = []
    if "request" in run:
        stream = client.begin(run["request"])
        client.transmit()
        print("begun", file=sys.stderr, flush=True)
        answers.append(await client.answer(stream, run["seconds"]))
    else:
        print("begun", file=sys.stderr, flush=True)
    ended = None
    try:
        ended = await asyncio.wait_for(asyncio.shield(client.ended), run["seconds"])
    except asyncio.TimeoutError:
        pass
    return {"answers": answers, "ended": ended and {"code": ended[0], "why": ended[1]}}


async def flood(run):
    """{"do": "flood", "count": N, "bytes": M}: packets that are none; then one handshake has to work."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.setblocking(False)
        got = sent = 0
        for n in range(run["count"]):
            kind = n % 4
            noise = os.urandom(run.get("bytes", 1200))
            if kind == 1:  # a long header of a version that there is not
                noise = bytes([0xC0]) + b"\x1a\x2a\x3a\x4a" + b"\x08" + noise[:8] + b"\x08" + noise[8:16] + noise[16:]
            if kind == 2:  # what looks like an Initial
                noise = bytes([0xC3]) + b"\x00\x00\x00\x01" + b"\x08" + noise[:8] + b"\x08" + noise[8:16] + b"\x00\x44\x00" + noise[19:]
            if kind == 3:  # a short header
                noise = bytes([0x40]) + noise[1:]
            try:
                s.sendto(noise, ADDRESS)
                sent += len(noise)
            except BlockingIOError:
                await asyncio.sleep(0.001)
            try:
                while True:
                    got += len(s.recv(65536))
            except BlockingIOError:
                pass
        await asyncio.sleep(0.3)
        try:
            while True:
                got += len(s.recv(65536))
        except BlockingIOError:
            pass
    return {"sent": sent, "got": got}


async def half_open(run):
    """{"do": "half_open", "count": N}: handshakes that never go on; then whether a real client gets through."""
    loop = asyncio.get_event_loop()
    for _ in range(run["count"]):
        quic = QuicConnection(configuration=configuration())
        quic.connect(ADDRESS, now=loop.time())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            for data, _ in quic.datagrams_to_send(now=loop.time()):
                s.sendto(data, ADDRESS)
    return {}


async def main():
    out = []
    for run in SPEC["runs"]:
        out.append(await globals()[run["do"]](run))
    print(json.dumps(out))


asyncio.run(main())
