#!/usr/bin/env python3
"""What many certificates cost: memory, handshakes, and how long one change takes to be served.

    cargo build --release && bench/certificates.py [--count 10000]

It runs a network in one process, uploads so many certificates, and gives each to a site of its own. All have one key: what is counted is
the number. Handshakes are those of `wrk`, a new connection for each request, on the same machine.
"""

import argparse
import concurrent.futures
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import tempfile
import time


def call(api, token, method, path, body=None, kind="application/json"):
    host = api.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=60)
    connection.request(method, path, body, {"Authorization": f"Bearer {token}", "Content-Type": kind})
    answer = connection.getresponse()
    text = answer.read()
    if answer.status >= 300:
        raise SystemExit(f"{method} {path}: {answer.status} {text[:300]}")
    return text


def make(folder, name, days):
    key, cert = os.path.join(folder, "key.pem"), os.path.join(folder, f"{name}.pem")
    new = [] if os.path.exists(key) else ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key]
    old = [] if new else ["-key", key]
    subprocess.run(
        ["openssl", "req", "-x509", *new, *old, "-days", days, "-subj", "/CN=big", "-addext", "subjectAltName=DNS:*.big.example",
         "-addext", "basicConstraints=critical,CA:FALSE", "-out", cert], check=True, capture_output=True)
    return open(cert).read(), open(key).read()


def memory(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", open(f"/proc/{pid}/status").read()).group(1))


def handshakes(port):
    command = ["wrk", "-t1", "-c16", "-d5s", "-H", "Connection: close", f"https://localhost:{port}/"]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    return f'{re.search(r"Requests/sec: +([0-9.]+)", out.stdout).group(1)} new connections over TLS in a second'


def idle(pid):
    """Of one processor's time, what the network uses while nobody asks for anything."""
    def used():
        fields = open(f"/proc/{pid}/stat").read().rsplit(") ", 1)[1].split()
        return int(fields[11]) + int(fields[12])
    before = used()
    time.sleep(5)
    return (used() - before) / os.sysconf("SC_CLK_TCK") / 5 * 100


def served(port, name):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), timeout=5) as tcp, context.wrap_socket(tcp, server_hostname=name) as tls:
        return tls.getpeercert(binary_form=True)


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--count", type=int, default=10_000)
    arguments.add_argument("--program", default="target/release/tidegate")
    options = arguments.parse_args()
    folder = tempfile.TemporaryDirectory()
    command = [options.program, "dev", "--json", "--shields", "0", "--http", "127.0.0.1:0", "--https", "127.0.0.1:0", "--api", "127.0.0.1:0",
               "--admin", "127.0.0.1:0", "--data", os.path.join(folder.name, "data")]
    network = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=open(os.path.join(folder.name, "log"), "w"), text=True)
    try:
        ready = json.loads(network.stdout.readline())
        api, token, port = ready["api"][0], ready["token"], int(ready["https"][0].rsplit(":", 1)[1])
        before = memory(network.pid)
        print(f"without: {before} KiB, {handshakes(port)}, idle {idle(network.pid):.1f} % of a processor")
        chain, key = make(folder.name, "first", "30")
        started = time.time()

        def one(n):
            call(api, token, "PUT", f"/v1/certificates/c{n}", json.dumps({"chain": chain, "key": key}))
            site = f'name = "s{n}"\nhosts = ["h{n}.big.example"]\n[origin]\nservers = [{{ url = "http://origin.example" }}]\n[tls]\ncertificate = "c{n}"\n'
            call(api, token, "PUT", f"/v1/sites/s{n}?vouch=true", site, "application/toml")

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            for done, _ in enumerate(pool.map(one, range(options.count)), 1):
                if done % 1000 == 0:
                    print(f"{done} certificates and sites after {time.time() - started:.1f} s, {memory(network.pid)} KiB", flush=True)
        name = f"h{options.count - 1}.big.example"
        while not served(port, name):
            time.sleep(0.05)
        # The network's own authority makes one for each of the sites, too.
        while (used := idle(network.pid)) > 30 and time.time() - started < 600:
            pass
        print(f"settled after {time.time() - started:.1f} s: idle {used:.1f} % of a processor", flush=True)
        after = memory(network.pid)
        print(f"with {options.count}: {after} KiB ({(after - before) * 1024 // options.count} bytes for each), {handshakes(port)}")
        for n in range(3):
            chain, key = make(folder.name, f"next{n}", str(40 + n))
            wanted = ssl.PEM_cert_to_DER_cert(chain)
            begun = time.time()
            call(api, token, "PUT", f"/v1/certificates/c{options.count - 1}", json.dumps({"chain": chain, "key": key}))
            answered = time.time() - begun
            while served(port, name) != wanted:
                time.sleep(0.005)
            print(f"a change: answered after {answered * 1000:.0f} ms, served after {(time.time() - begun) * 1000:.0f} ms")
    finally:
        network.send_signal(signal.SIGINT)
        network.wait(30)


if __name__ == "__main__":
    main()
