"""Load on `bitsmith serve`: clients that ask, stream, go away in the middle and send nonsense, all at once. Every valid answer must be what
the same request gives alone, every nonsense must get a 4xx with a reason, and the server's memory must stay flat.

Usage: serve_load.py BITSMITH MODEL [--clients N] [--requests N] [--rounds N]. Linux only; needs no packages. Exits 1 if something is wrong.
"""

import argparse
import concurrent.futures
import http.client
import itertools
import json
import pathlib
import random
import socket
import subprocess
import sys

PROMPTS = ["The lighthouse", "Once upon a time there was", "In the beginning", "def main():", "Water boils at", "é", "A B C D", "She said"]
MALFORMED = [
    b"{", b"[]", b"null", b"", b'{"prompt": 3}', b'{"prompt": []}', b'{"prompt": "x", "max_tokens": -1}', b'{"prompt": [1, "a"]}',
    b'{"prompt": "x", "temperature": "hot"}', b'{"prompt": "x", "unheard_of": 1}', b'{"prompt": "x", "max_tokens": 1000000}',
    b'{"prompt": [999999999]}', b'{"prompt": "x", "model": "another"}', b'\xff\xfe{"prompt"', b"[" * 100000,
    json.dumps({"prompt": "x" * (5 << 20)}).encode(),
]


LENGTHS = [{"max_tokens": n} for n in (1, 8, 24, 48)]
CHOICES = [{"temperature": 0}, {"temperature": 0, "logprobs": 2, "echo": True}]
CHOICES += [{"temperature": 0.8, "seed": seed} for seed in range(3)]
ENDS = [{}, {"stop": [" the"]}, {"n": 2}]
# Requests with one right answer: greedy or seeded.
VALID = [{"prompt": p} | n | c | e for p, n, c, e in itertools.product(PROMPTS, LENGTHS, CHOICES, ENDS)]


def post(port, body, timeout=120):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def texts(document):
    return [(c["index"], c["text"], c["finish_reason"]) for c in sorted(document["choices"], key=lambda c: c["index"])]


def streamed(raw):
    """The same from a stream."""
    events = [e.removeprefix("data: ") for e in raw.decode().split("\n\n") if e]
    assert events[-1] == "[DONE]", events[-1:]
    found = {}
    for event in map(json.loads, events[:-1]):
        for c in event["choices"]:
            old = found.get(c["index"], ("", None))
            found[c["index"]] = (old[0] + c["text"], c["finish_reason"] or old[1])
    return [(i, *found[i]) for i in sorted(found)]


def cut_off(port, body, rng):
    """Sends a request, or part of one, and goes away."""
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    message = head + body
    with socket.create_connection(("127.0.0.1", port), timeout=60) as s:
        s.sendall(message[: rng.choice([10, len(head), len(message) - 3, len(message), len(message)])])
        if rng.random() < 0.5:
            s.settimeout(rng.choice([0.01, 0.05, 0.2]))
            try:
                s.recv(rng.choice([1, 100, 1000]))
            except TimeoutError:
                pass


def client(port, number, requests, right):
    rng, problems = random.Random(number), []
    counts = dict(whole=0, stream=0, cut=0, malformed=0)
    for _ in range(requests):
        kind = rng.choices(list(counts), [4, 4, 3, 2])[0]
        counts[kind] += 1
        body = rng.choice(VALID)
        try:
            if kind == "cut":
                long = body | {"max_tokens": 300, "stream": rng.random() < 0.7}
                cut_off(port, json.dumps(long).encode(), rng)
                continue
            if kind == "malformed":
                bad = rng.choice(MALFORMED)
                status, raw = post(port, bad)
                reason = json.loads(raw)["error"]["message"]
                if not (400 <= status < 500 and reason):
                    problems.append(f"{bad[:60]}: {status} {raw[:200]}")
                continue
            status, raw = post(port, json.dumps(body | {"stream": kind == "stream"}).encode())
            if status != 200:
                problems.append(f"{body}: {status} {raw[:200]}")
                continue
            found = streamed(raw) if kind == "stream" else texts(json.loads(raw))
            if found != right[json.dumps(body)]:
                problems.append(f"{body}: {found}, alone {right[json.dumps(body)]}")
        except (BrokenPipeError, ConnectionResetError) as e:
            # Refused before all of it was sent.
            if kind != "malformed" or len(bad) < 1 << 20:
                problems.append(f"{kind} {body}: {e!r}")
    return counts, problems


def memory(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("bitsmith")
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    call = [args.bitsmith, "--json", "-q", "serve", args.model, "--port", "0", "--slots", "8"]
    process = subprocess.Popen(call, stdout=subprocess.PIPE, text=True)
    port = json.loads(process.stdout.readline())["port"]
    right = {}
    for body in VALID:
        key = json.dumps(body)
        status, raw = post(port, key.encode())
        assert status == 200, raw
        right[key] = texts(json.loads(raw))
    problems, sizes = [], [memory(process.pid)]
    for round in range(args.rounds):
        with concurrent.futures.ThreadPoolExecutor(args.clients) as pool:
            numbers = range(round * args.clients + 1, (round + 1) * args.clients + 1)
            results = list(pool.map(lambda n: client(port, n, args.requests, right), numbers))
        problems += [p for _, found in results for p in found]
        sizes.append(memory(process.pid))
        total = {k: sum(counts[k] for counts, _ in results) for k in results[0][0]}
        print(f"round {round + 1}: {total}, {sizes[-1]:.1f} MiB", flush=True)
    # Those cut off are gone.
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/health")
    health = json.loads(connection.getresponse().read())
    if health != {"status": "ok", "running": 0, "waiting": 0}:
        problems.append(f"not at rest: {health}")
    process.terminate()
    if process.wait(30) != 0:
        problems.append(f"exit code {process.returncode}")
    # The first round fills caches and arenas.
    if sizes[-1] > sizes[1] * 1.1 + 8:
        problems.append(f"memory grows: {sizes}")
    for problem in problems[:20]:
        print("PROBLEM", problem)
    print(f"{len(right)} different requests, {len(problems)} problems, memory {' '.join(f'{s:.1f}' for s in sizes)} MiB")
    sys.exit(bool(problems))


main()
