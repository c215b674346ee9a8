#!/usr/bin/env python3
"""What slow strangers cost others: `bench/strangers.py [TIDEGATE] [STRANGERS]`, over two tiers on this machine.

An edge and a shield, each with one worker's share of this machine, stand in front of an origin that is in this file. Requests for small
pages that nobody keeps are timed, first alone, then beside STRANGERS (1,000) others: half of them read a download that nobody keeps at about
50 kB/s, half upload to a script that does not read. It prints the median and the 99th percentile of both in milliseconds, how far apart they
are, the memory of the process (VmRSS), and the memory of its sockets in the kernel. All four parties share one kernel here: origin and
strangers keep their own buffers small, or the kernel runs short of memory for TCP and slows down every connection of the machine. Where it
does, that is said.
"""

import asyncio
import json
import multiprocessing
import random
import re
import resource
import socket
import subprocess
import sys
import tempfile
import time

PROGRAM = sys.argv[1] if len(sys.argv) > 1 else "target/release/tidegate"
STRANGERS = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
SETTLE = 20
DOWNLOAD, UPLOAD = 20 << 20, 5 << 20
REQUESTS, AT_ONCE, PAUSE = 1500, 8, 0.01


async def origin(reader, writer):
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            path = head.split(" ")[1]
            if path.startswith("/deaf"):
                await asyncio.sleep(3600)
            length = DOWNLOAD if path.startswith("/download") else 100
            writer.write(f"HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Length: {length}\r\n\r\n".encode())
            for _ in range(0, length, 65536):
                writer.write(b"x" * min(65536, length))
                await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


def small():
    """A socket with small buffers: what a kernel takes at once would be no slow reader's."""
    s = socket.socket(proto=socket.IPPROTO_TCP)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        s.setsockopt(socket.SOL_SOCKET, option, 65536)
    s.setblocking(False)
    return s


async def connected(address):
    s = small()
    await asyncio.get_running_loop().sock_connect(s, address)
    return await asyncio.open_connection(sock=s, limit=16384)


async def read_slowly(address, n):
    reader, writer = await connected(address)
    writer.write(f"GET /download/{n} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    while await reader.read(16384):
        await asyncio.sleep(random.uniform(0.1, 0.5))


async def upload_slowly(address, n):
    _, writer = await connected(address)
    writer.write(f"POST /deaf/{n} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {UPLOAD}\r\n\r\n".encode())
    for _ in range(0, UPLOAD, 16384):
        writer.write(b"x" * 16384)
        await writer.drain()
    await asyncio.sleep(3600)


async def timed(address, name):
    """Milliseconds that each of the others took."""
    out = []

    async def one(worker):
        reader, writer = await asyncio.open_connection(*address)
        for n in range(REQUESTS // AT_ONCE):
            began = time.perf_counter()
            writer.write(f"GET /page/{name}/{worker}/{n} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in head, head
            await reader.readexactly(100)
            out.append((time.perf_counter() - began) * 1000)
            await asyncio.sleep(PAUSE)
        writer.close()

    await asyncio.gather(*[one(w) for w in range(AT_ONCE)])
    return sorted(out)


def memory(pid):
    """Of the process, and of its sockets, in MB."""
    with open(f"/proc/{pid}/status") as f:
        own = int(next(line for line in f if line.startswith("VmRSS")).split()[1]) / 1024
    lines = subprocess.run(["ss", "-tnpmH"], capture_output=True, text=True).stdout.splitlines()
    held = [re.search(r"skmem:\(r(\d+),.*?,w(\d+),", what) for who, what in zip(lines[::2], lines[1::2]) if f"pid={pid}," in who]
    return own, sum(int(m[1]) + int(m[2]) for m in held if m) / 1e6


def times_short():
    """How often the kernel ran short of memory for TCP."""
    with open("/proc/net/netstat") as f:
        names, values = [line.split() for line in f if line.startswith("TcpExt:")]
    return int(values[names.index("TCPMemoryPressures")])


def raise_limit():
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)


def be_origin(to):
    """In a process of its own, as the strangers are: what is timed is not their work."""

    async def run():
        s = small()
        s.bind(("127.0.0.1", 0))
        server = await asyncio.start_server(origin, sock=s, backlog=2048)
        to.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    raise_limit()
    asyncio.run(run())


def be_strangers(address):
    async def run():
        await asyncio.gather(*[f(address, n) for n in range(STRANGERS // 2) for f in (read_slowly, upload_slowly)], return_exceptions=True)

    raise_limit()
    asyncio.run(run())


def main():
    port = multiprocessing.Queue()
    helpers = [multiprocessing.Process(target=be_origin, args=(port,))]
    helpers[0].start()
    arguments = ["dev", "--json", "--shields", "1", "--origin", f"http://127.0.0.1:{port.get()}"]
    for listener in ("http", "https", "api", "admin", "dns"):
        arguments += [f"--{listener}", "127.0.0.1:0"]
    with tempfile.NamedTemporaryFile("w+") as out:
        process = subprocess.Popen([PROGRAM, *arguments], stdout=out, stderr=subprocess.DEVNULL)
        try:
            while not (line := open(out.name).read()).endswith("\n"):
                time.sleep(0.05)
            host, at = json.loads(line)["http"][0].removeprefix("http://").split(":")
            address = (host, int(at))
            asyncio.run(timed(address, "warm"))
            short = times_short()
            calm, before = asyncio.run(timed(address, "calm")), memory(process.pid)
            helpers.append(multiprocessing.Process(target=be_strangers, args=(address,)))
            helpers[1].start()
            time.sleep(SETTLE)
            busy, after = asyncio.run(timed(address, "busy")), memory(process.pid)
        finally:
            process.terminate()
            process.wait()
            for helper in helpers:
                helper.kill()
                helper.join()
    at = lambda all, part: all[int(len(all) * part)]
    for name, all, held in (("alone", calm, before), (f"beside {STRANGERS} strangers", busy, after)):
        print(f"{name:24} median {at(all, 0.5):6.1f} ms, 99th {at(all, 0.99):6.1f} ms, longest {all[-1]:6.1f} ms; {held[0]:.0f} MB, sockets {held[1]:.0f} MB")
    if times_short() > short:
        print("The kernel ran short of memory for TCP: what is slow may be slow for that (net.ipv4.tcp_mem).")
    print(f"99th, times: {at(busy, 0.99) / at(calm, 0.99):.2f}")


main()
