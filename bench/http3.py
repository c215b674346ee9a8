#!/usr/bin/env python3
"""HTTP/3 beside HTTP/2, in one run: a server on core 0, the load on core 1, turn about.

Prints requests per second and the server's CPU time per request, for Tidegate (a cache in front of nginx) and for Caddy (Debian's
package, serving the files themselves), over HTTP/2 by h2load and over HTTP/3 by h3load.

    cargo build --release --workspace && bench/http3.py [--rounds 3] [--seconds 3] [--large]

Needs nginx, h2load (nghttp2-client) and, to compare with, caddy. `--large` asks for one body of 1 GiB over each protocol as well.
"""

import argparse, json, os, re, shutil, signal, socket, statistics, subprocess, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
TICK = os.sysconf("SC_CLK_TCK")
SIZES = {"1k": 1 << 10, "16k": 1 << 14, "1m": 1 << 20}
# name: (path, connections, streams, a connection for each request)
WORKLOADS = {"1k": ("/1k.bin", 16, 16, False), "16k": ("/16k.bin", 16, 16, False), "1m": ("/1m.bin", 8, 4, False), "new-conn": ("/1k.bin", 16, 1, True)}


def port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(port):
    for _ in range(300):
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"nothing listens on port {port}")


def cpu(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def on_core(core, command, **more):
    return subprocess.Popen(["taskset", "-c", str(core), *map(str, command)], **more)


class Tidegate:
    name = "tidegate"

    def __init__(self, work, www):
        self.origin = port()
        conf = work / "nginx.conf"
        conf.write_text(
            f"daemon off; user root; worker_processes 1; pid {work}/nginx.pid; error_log {work}/nginx.err; events {{}}\n"
            f"http {{ access_log off; client_body_temp_path {work}/b; proxy_temp_path {work}/p; fastcgi_temp_path {work}/f; uwsgi_temp_path {work}/u;"
            f" scgi_temp_path {work}/s; server {{ listen 127.0.0.1:{self.origin}; root {www}; add_header Cache-Control max-age=86400; }} }}\n"
        )
        self.nginx = on_core(1, ["nginx", "-c", conf], stderr=subprocess.DEVNULL)
        wait_for(self.origin)
        arguments = ["dev", "--json", "--origin", f"http://127.0.0.1:{self.origin}", "--shields", 0]
        for listener in ("http", "https", "api", "admin", "dns"):
            arguments += [f"--{listener}", "127.0.0.1:0"]
        self.process = on_core(0, [TARGET / "tidegate", *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.port = int(json.loads(self.process.stdout.readline())["https"][0].rsplit(":", 1)[1])
        self.pid = self.process.pid

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        self.nginx.terminate()
        self.nginx.wait()


class Caddy:
    name = "caddy"

    def __init__(self, work, www):
        self.port = port()
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=localhost",
             "-addext", "subjectAltName=DNS:localhost", "-keyout", work / "key.pem", "-out", work / "cert.pem"],
            check=True, stderr=subprocess.DEVNULL,
        )
        (work / "Caddyfile").write_text(
            "{\n admin off\n auto_https off\n log {\n  output discard\n }\n}\n"
            f"https://localhost:{self.port} {{\n tls {work}/cert.pem {work}/key.pem\n root * {www}\n file_server\n}}\n"
        )
        environment = {**os.environ, "GOMAXPROCS": "1", "HOME": str(work)}
        self.process = on_core(0, ["caddy", "run", "--config", work / "Caddyfile"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment)
        wait_for(self.port)
        self.pid = self.process.pid

    def stop(self):
        self.process.terminate()
        self.process.wait()


def h2(server, workload, seconds):
    path, connections, streams, close = WORKLOADS[workload]
    if close:
        return None
    url = f"https://localhost:{server.port}{path}"
    out = subprocess.run(
        ["taskset", "-c", "1", "h2load", "-c", str(connections), "-m", str(streams), "-D", str(seconds), "--connect-to", f"127.0.0.1:{server.port}", url],
        capture_output=True, text=True,
    ).stdout
    done = re.search(r"requests: (\d+) total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed", out)
    if not done or int(done[3]) == 0 or int(done[4]):
        raise SystemExit(f"{server.name} over HTTP/2: {out}")
    return int(done[3])


def h3(server, workload, seconds, more=()):
    path, connections, streams, close = WORKLOADS[workload]
    command = [TARGET / "h3load", f"127.0.0.1:{server.port}", "--host", f"localhost:{server.port}", "--path", path, "--connections", connections,
               "--streams", streams, "--seconds", seconds, *more]
    out = subprocess.run(["taskset", "-c", "1", *map(str, command), *(["--close"] if close else [])], capture_output=True, text=True)
    said = json.loads(out.stdout)
    if said["failed"] or not said["requests"]:
        raise SystemExit(f"{server.name} over HTTP/3: {said} {out.stderr}")
    return said["requests"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--large", action="store_true")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="tidegate-http3-"))
    www = work / "www"
    www.mkdir()
    for name, size in SIZES.items():
        (www / f"{name}.bin").write_bytes(os.urandom(size))
    running = []
    try:
        running.append(Tidegate(work, www))
        if shutil.which("caddy"):
            running.append(Caddy(work, www))
        measured = {}
        for round in range(options.rounds + 1):
            for workload in WORKLOADS:
                for server in running:
                    for protocol, ask in (("h2", h2), ("h3", h3)):
                        before, begun = cpu(server.pid), time.monotonic()
                        # The first round warms caches.
                        requests = ask(server, workload, options.seconds if round else 1)
                        if requests is None or not round:
                            continue
                        used, took = cpu(server.pid) - before, time.monotonic() - begun
                        measured.setdefault((workload, server.name, protocol), []).append((requests / took, used / requests * 1e6))
        print(f"{'workload':10} {'server':10} {'':3} {'req/s':>9} {'cpu us':>9}")
        for (workload, server, protocol), all in measured.items():
            rate, micros = (statistics.median(x) for x in zip(*all))
            print(f"{workload:10} {server:10} {protocol:3} {rate:9.0f} {micros:9.1f}")
        if options.large:
            with open(www / "1g.bin", "wb") as f:
                for _ in range(1024):
                    f.write(os.urandom(1 << 20))
            for server in running:
                for protocol in ("h2", "h3"):
                    for turn in ("cold", "again"):
                        before, begun = cpu(server.pid), time.monotonic()
                        if protocol == "h2":
                            url = f"https://localhost:{server.port}/1g.bin"
                            subprocess.run(["taskset", "-c", "1", "curl", "-sko", "/dev/null", "--http2", url], check=True)
                        else:
                            WORKLOADS["large"] = ("/1g.bin", 1, 1, False)
                            h3(server, "large", 60, ["--requests", 1])
                        took = time.monotonic() - begun
                        print(f"1 GiB      {server.name:10} {protocol:3} {turn:5} {took:6.2f} s {1024 / took:7.0f} MiB/s, {cpu(server.pid) - before:5.2f} s of CPU")
    finally:
        for server in running:
            server.stop()
        shutil.rmtree(work)


main()
