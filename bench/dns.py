#!/usr/bin/env python3
"""Queries per second and CPU time per query of the node that answers for the zone, beside NSD: a server on core 0, dnsperf on core 1.

Unsigned, then signed (with signatures that are kept). Then how much larger than its question each kind of answer is over UDP.

    cargo build --release && bench/dns.py [--rounds 3] [--seconds 3]

Needs dnsperf and, to compare with, nsd.
"""

import argparse, json, os, random, re, shutil, signal, socket, statistics, struct, subprocess, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
TICK = os.sysconf("SC_CLK_TCK")
QUESTIONS = "dev.cdn.test A\ndev.cdn.test AAAA\nnowhere.cdn.test A\ncdn.test NS\n"
ZONE = """$ORIGIN cdn.test.
@ 3600 IN SOA dns-1.ns hostmaster 1 3600 600 604800 5
@ 3600 IN NS dns-1.ns
dns-1.ns 3600 IN A 127.0.0.1
dev 20 IN A 127.0.0.1
"""


def port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def cpu(pids):
    used = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        used += (int(fields[11]) + int(fields[12])) / TICK
    return used


def children(pid):
    found = [pid]
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) in found:
            found.append(int(stat.parent.name))
    return found


class Tidegate:
    name = "tidegate"

    def __init__(self, work):
        arguments = ["dev", "--json", "--shields", "0"]
        for listener in ("http", "https", "api", "admin", "dns"):
            arguments += [f"--{listener}", "127.0.0.1:0"]
        self.process = subprocess.Popen(["taskset", "-c", "0", TARGET / "tidegate", *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.said = json.loads(self.process.stdout.readline())
        self.port = int(self.said["dns"].rsplit(":", 1)[1])

    def sign(self):
        environment = {**os.environ, "TIDEGATE_API": self.said["api"][0], "TIDEGATE_TOKEN": self.said["token"]}
        subprocess.run([TARGET / "tidegate", "dns", "sign", "cdn.test"], env=environment, check=True, stdout=subprocess.DEVNULL)
        time.sleep(1)


class Nsd:
    name = "nsd"

    def __init__(self, work):
        self.port = port()
        (work / "zone").write_text(ZONE)
        (work / "nsd.conf").write_text(
            f'server:\n ip-address: 127.0.0.1@{self.port}\n server-count: 1\n username: ""\n chroot: ""\n zonesdir: "{work}"\n pidfile: ""\n database: ""\n'
            f' xfrdfile: "{work}/xfrd"\n xfrdir: "{work}"\n rrl-ratelimit: 0\nremote-control:\n control-enable: no\nzone:\n name: cdn.test\n zonefile: "{work}/zone"\n'
        )
        self.process = subprocess.Popen(["taskset", "-c", "0", "nsd", "-d", "-c", work / "nsd.conf"], stderr=subprocess.DEVNULL)
        time.sleep(1)


def stop(server):
    for pid in children(server.process.pid)[::-1]:
        os.kill(pid, signal.SIGTERM)
    server.process.wait()


def run(server, file, seconds, signed):
    pids = children(server.process.pid)
    before = cpu(pids)
    out = subprocess.run(
        ["taskset", "-c", "1", "dnsperf", "-s", "127.0.0.1", "-p", str(server.port), "-d", file, "-l", str(seconds), "-c", "4", *(["-D"] if signed else [])],
        capture_output=True, text=True,
    ).stdout
    completed = int(re.search(r"Queries completed:\s+(\d+)", out)[1])
    lost = int(re.search(r"Queries lost:\s+(\d+)", out)[1])
    if lost * 100 > completed:
        raise SystemExit(f"{server.name} lost {lost} of {completed}")
    return float(re.search(r"Queries per second:\s+([\d.]+)", out)[1]), (cpu(pids) - before) / completed * 1e6


def query(name, kind, dnssec):
    question = b"".join(bytes([len(l)]) + l.encode() for l in name.split(".")) + b"\0" + struct.pack("!HH", kind, 1)
    opt = b"\0" + struct.pack("!HHIH", 41, 4096, 0x8000 if dnssec else 0, 0)
    return struct.pack("!HHHHHH", random.randrange(65536), 0, 1, 0, 0, 1) + question + opt


def amplification(server):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(2)
        for name, kind, text in [("dev.cdn.test", 1, "A"), ("dev.cdn.test", 255, "ANY"), ("cdn.test", 2, "NS"), ("cdn.test", 48, "DNSKEY"), ("nowhere.cdn.test", 1, "denied")]:
            for dnssec in (False, True):
                asked = query(name, kind, dnssec)
                s.sendto(asked, ("127.0.0.1", server.port))
                print(f"{text:8} {'signed' if dnssec else '':8} {len(asked):4} -> {len(s.recv(4096)):4} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="tidegate-dns-"))
    (work / "questions").write_text(QUESTIONS)
    running = []
    try:
        running.append(Tidegate(work))
        if shutil.which("nsd"):
            running.append(Nsd(work))
        for signed in (False, True):
            if signed:
                running[0].sign()
            measured = {}
            for _ in range(options.rounds):
                for server in running[:1] if signed else running:
                    measured.setdefault(server.name, []).append(run(server, work / "questions", options.seconds, signed))
            for name, all in measured.items():
                rate, micros = (statistics.median(x) for x in zip(*all))
                print(f"{name:10} {'signed' if signed else 'unsigned':8} {rate:9.0f} queries/s {micros:6.2f} us of CPU per query")
        amplification(running[0])
    finally:
        for server in running:
            stop(server)
        shutil.rmtree(work)


main()
