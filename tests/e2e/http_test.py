#!/usr/bin/env python3
"""castord over raw sockets: wrong bodies, hostile requests, slow clients, many clients.

CASTOR_BIN names the program (default build/castord). The case `stress` is what a build with
SAN=thread is run on: `CASTOR_BIN=build/tsan/castord tests/e2e/http_test.py stress`; any report of a
sanitizer in castord's log fails the run. Needs the standard library only.
"""
import contextlib
import errno
import glob
import json
import os
import socket
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import castord as e2e  # noqa: E402
from castord import expect  # noqa: E402

server = None
JOBS = "/v1/fine_tuning/jobs"


def connect():
    s = socket.create_connection(("127.0.0.1", server.port), timeout=300)
    return s


def read_answer(f):
    """One answer of a socket's file: (status, headers, body); (0, {}, b"") at its end."""
    line = f.readline()
    if not line:
        return 0, {}, b""
    status = int(line.split()[1])
    headers = {}
    while True:
        line = f.readline().strip()
        if not line:
            break
        name, value = line.decode("latin-1").split(":", 1)
        headers[name.lower()] = value.strip()
    return status, headers, f.read(int(headers.get("content-length", 0)))


def raw(data, more=()):
    """Send bytes, read one answer. A refused request may be cut off while it is being sent."""
    with connect() as s, s.makefile("rb") as f:
        with contextlib.suppress(ConnectionError):
            s.sendall(data)
            for piece in more:
                s.sendall(piece)
        try:
            return read_answer(f)
        except ConnectionError:
            return 0, {}, b""


def post(body, headers=None, path=JOBS):
    return server.request("POST", path, body, headers)


def good_body(**more):
    return {"model": "test/tiny", "training_file": server.file_id, **more}


def alive():
    expect(server.request("GET", "/healthz"), 200)


# --- the create body, member by member ---------------------------------------------------------------

WRONG = {
    "model": [7, "", None, [], "a/b/c", "/etc/passwd", "../x/y", "org/na me", "x" * 100000, "hf://"],
    "training_file": [7, "", None, {}, "nofile", "file-", "file-../../etc/passwd", "file-absent"],
    "validation_file": [7, "", {}, "nofile", "file-absent"],
    "suffix": [7, "", "x" * 65, []],
    "seed": [-1, 2147483648, 1.5, "1", True, 1e300],
    "metadata": [[], "x", {"k": 1}, {"k": None}, {"k" * 65: "v"}, {"k": "v" * 513},
                 {str(i): "v" for i in range(17)}],
    "method": ["supervised", {}, {"type": "magic"}, {"type": "dpo"}, {"type": "reinforcement"},
               {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 0}}},
               {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 51}}},
               {"type": "supervised", "supervised": {"hyperparameters": {"epochs": 1}}},
               {"type": "supervised", "supervised": 3},
               {"type": "supervised", "unsupervised": {}}],
    "hyperparameters": [3, {"n_epochs": "many"}, {"n_epochs": 0}, {"batch_size": 0},
                        {"batch_size": 1 << 40}, {"learning_rate_multiplier": 0},
                        {"learning_rate_multiplier": -1}, {"learning_rate_multiplier": "x"},
                        {"n_epochs": 1.5}, {"colour": 1}],
    "integrations": [[{"type": "wandb", "wandb": {"project": "x"}}], "wandb", 7],
    "dataset": ["text", {"format": "xml"}, {"max_seq_length": -1}, {"max_seq_length": 1 << 40},
                {"packing": "yes"}, {"validation_fraction": 0.6}, {"validation_fraction": -0.1},
                {"max_examples": -1}, {"rows": 1}],
    "optimization": [[], {"learning_rate": 0}, {"learning_rate": -1}, {"beta1": 1}, {"beta2": 2},
                     {"schedule": "step"}, {"warmup_ratio": 2}, {"max_steps": -1},
                     {"max_steps": 1e30}, {"dropout": 1}, {"early_stopping": 3},
                     {"early_stopping": {"patience": -1}}, {"lr": 1}],
    "precision": [{"compute": "fp4"}, {"master": "fp8"}, {"bits": 4}, 16],
    "parallelism": ["none", {"data": 0}, {"tensor": {"mode": "4d"}}, {"zero": 4},
                    {"pipeline": {"stages": 0}}, {"ranks": 2}],
    "placement": [{"policy": "disk"}, {"gpu_memory_limit": -1}, {"gpu_memory_limit": "lots"},
                  {"prefetch_depth": 65}, 1],
    "resources": [{"device": "tpu"}, {"gpus": 0}, {"nodes": 0}, {"backend": "ray"}, []],
    "scheduling": [{"priority": 101}, {"max_runtime_seconds": -1}, {"max_restarts": 101}, 5],
    "lora": [True, {"rank": 0}, {"rank": "big"}, {"quantize_base": 4}, {"quantize_base": "fp4"}],
    "sample_prompts": ["x", [1], ["x"] * 9],
    "sample_tokens": [0, 5000, "x"],
    "dry_run": ["yes", 1],
    "webhook": ["http://localhost/", {"url": "http://localhost/"}],
    "colour": ["red", None, {}],
}


def every_member_wrong_in_turn():
    for member, values in WRONG.items():
        for value in values:
            error = expect(post({**good_body(), member: value}), 400)
            named = [error["param"] or ""] + [d["param"] for d in error.get("details", [])]
            assert any(n.split(".")[0].split("[")[0] == member
                       or (member == "hyperparameters" and n.startswith("method")) for n in named), \
                (member, value, error)
    for member in ("model", "training_file"):
        body = good_body()
        del body[member]
        expect(post(body), 400, "missing_required_parameter", member)
    error = expect(post({k: v[0] for k, v in WRONG.items()}), 400)
    assert len(error["details"]) > 15, len(error["details"])
    assert server.request("GET", JOBS)[2]["data"] == []


def bodies_that_are_not_json():
    for text in (b"", b"x", b"{", b"[]", b"null", b"{}{}", b"{\"a\":}", b"\xff\xfe", b"{\"a\":\"\xff\"}",
                 b"{\"model\":\"a\",\"model\":\"b\"}", b"{\"model\":\"\\u0000\"}",
                 b"{\"seed\":NaN}", b"{\"seed\":Infinity}", b"{\"seed\":-Infinity}",
                 b"{\"seed\":1e999}", b"{\"seed\":01}", b"{\"seed\":0x10}",
                 b"{\"seed\":" + b"9" * 1000 + b"}", b"{\"seed\":1" + b"0" * 400 + b".0}",
                 b"[" * 200000, b"{\"a\":" * 100000, b"{\"a\":\"" + b"\\" * 100000):
        expect(post(text, {"Content-Type": "application/json"}), 400)
    alive()


def numbers_as_long_as_the_limit():
    digits = b"{\"seed\":" + b"1" * 1000000 + b"}"
    expect(post(digits, {"Content-Type": "application/json"}), 400)
    # A gigabyte is announced and refused before it is sent.
    head = b"POST /v1/fine_tuning/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1073741824\r\n"
    expect(raw(head + b"Content-Type: application/json\r\n\r\n"), 413, "body_too_large")
    # The same without announcing: nothing is kept, and the connection is not held for ever.
    with connect() as s, s.makefile("rb") as f:
        s.sendall(b"POST /v1/fine_tuning/jobs HTTP/1.1\r\nHost: localhost\r\n"
                  b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 1 << 30:
                s.sendall(b"100000\r\n" + b"1" * 0x100000 + b"\r\n")
                sent += 1 << 20
        assert sent < 64 << 20, "castord read %d MiB of a refused body" % (sent >> 20)
        with contextlib.suppress(ConnectionError):
            read_answer(f)
    alive()


def content_types():
    text = json.dumps(good_body(dry_run=True)).encode()
    for kind in ("application/json", "application/json; charset=utf-8", "Application/JSON"):
        expect(post(text, {"Content-Type": kind}), 200)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/jsonx",
                 "multipart/form-data; boundary=x"):
        expect(post(text, {"Content-Type": kind}), 415, "unsupported_media_type")
    expect(post(text, {"Content-Type": "application/json", "Content-Encoding": "gzip"}), 415)


# --- paths, methods, headers -----------------------------------------------------------------------------


def get(path, headers=b""):
    path = path if isinstance(path, bytes) else path.encode()
    return raw(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n")


def hostile_paths():
    for path in ("/v1/files/%00", "/v1/files/a%00b", "/v1/files/..%2f..%2fetc%2fpasswd",
                 "/v1/files/%2e%2e/x", "/v1/../v1/files", "/./v1/files", "/v1/files/%zz",
                 "/v1/files/%4", "/v1/files/%", "/v1/files/%ff", "/v1/files/%c0%af",
                 "/v1/models/..%5c..%5cx", "/v1/files?limit=%", "/v1/files?a=%00",
                 "/" + "a/" * 30, "/v1/files?" + "a=1&" * 100):
        expect(get(path), 400, "invalid_url")
    for path in ("/v1/files/" + "a" * 9000, "/v1/files?after=" + "%41" * 4000):
        expect(get(path), 414, "uri_too_long")
    for path in ("/", "/v1", "//v1/files", "/v1//files", "/v1/files/", "/etc/passwd",
                 "/v1/files/x/y", "/v1/chat/completions", "/favicon.ico"):
        expect(get(path), 404, "unknown_url")
    expect(get("/v1/files/' OR 1=1 --".replace(" ", "%20")), 404)
    expect(get("http://localhost/v1/files"), 200)
    for bad in (b"/v1/files/\xc3\xa4", b"/v1/files/\x01"):
        status = get(bad)[0]
        assert status in (0, 400, 404), status
    alive()


def methods():
    status, headers, _ = raw(b"PUT /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
    assert status == 405 and headers["allow"] == "POST, GET, HEAD", (status, headers)
    expect(raw(b"DELETE /v1/fine_tuning/jobs HTTP/1.1\r\nHost: localhost\r\n\r\n"), 405)
    expect(raw(b"GET /v1/fine_tuning/jobs/x/cancel HTTP/1.1\r\nHost: localhost\r\n\r\n"), 405)
    expect(raw(b"FROBNICATE /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"), 405)
    with connect() as s, s.makefile("rb") as f:
        s.sendall(b"HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        line = f.readline()
        assert b" 200 " in line, line
        while f.readline().strip():
            pass
        s.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_answer(f)[0] == 200  # HEAD sent no body


def headers_every_answer_has():
    for path in ("/healthz", "/v1/files", "/nowhere", "/v1/files/none"):
        status, headers, _ = server.request("GET", path)
        assert headers["x-request-id"].startswith("req_") and len(headers["x-request-id"]) == 36
        assert headers["Content-Type"] == "application/json" and headers["openai-version"]
        assert int(headers["openai-processing-ms"]) >= 0
    ids = {server.request("GET", "/healthz")[1]["x-request-id"] for _ in range(10)}
    assert len(ids) == 10


def huge_headers():
    expect(get("/healthz", b"X: " + b"a" * 40000 + b"\r\n"), 431, "headers_too_large")
    expect(get("/healthz", b"".join(b"X%d: a\r\n" % i for i in range(200))), 431)
    for n in (100000, 1000000):
        status = get("/healthz", b"X: " + b"a" * n + b"\r\n")[0]
        assert status in (0, 431, 413), status  # the library's own answer
    expect(get("/v1/files", b"Authorization: Bearer " + b"a" * 20000 + b"\r\n"), 200)
    alive()


def end_input(s):
    """A server that has closed already is one of the ends."""
    try:
        s.shutdown(socket.SHUT_WR)
    except OSError as e:
        if e.errno != errno.ENOTCONN:
            raise


def strange_framing():
    head = b"POST /v1/fine_tuning/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for extra in (b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                  b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
                  b"Content-Length: -2\r\n\r\n{}", b"Content-Length: x\r\n\r\n{}",
                  b"Content-Length: 99999999999999999999999\r\n\r\n{}",
                  b"Transfer-Encoding: gzip\r\n\r\n{}",
                  b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
                  b"Transfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n",
                  b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}\r\n0\r\n\r\n"):
        status = raw(head + extra)[0]
        assert status in (0, 400, 413), (extra, status)
    for garbage in (b"\r\n\r\n", b"\0" * 100, b"GET\r\n\r\n", b"GET /\r\n\r\n", b"\x16\x03\x01\x02\x00",
                    b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"a" * 200000):
        raw_status = None
        with connect() as s, s.makefile("rb") as f:
            with contextlib.suppress(ConnectionError):
                s.sendall(garbage)
                end_input(s)
                raw_status = f.readline()[:12]
        assert not raw_status or raw_status.split()[1] not in (b"200", b"500"), (garbage[:20], raw_status)
    alive()


def empty_posts():
    job = expect(post(good_body()), 200)
    for headers in ("Content-Length: 0\r\n", ""):
        data = "POST %s/%s/cancel HTTP/1.1\r\nHost: localhost\r\n%s\r\n" % (JOBS, job["id"], headers)
        status, _, body = raw(data.encode())
        assert status in (200, 409), (status, body)
    expect(post({}, path=JOBS + "/none/cancel"), 404)
    expect(post(b"junk", path=JOBS + "/" + job["id"] + "/cancel"), 400)


def pipelined_requests_are_answered_in_order():
    with connect() as s, s.makefile("rb") as f:
        paths = ["/healthz", "/nowhere", "/v1/files", "/version"] * 10
        s.sendall("".join("GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % p for p in paths).encode())
        got = [read_answer(f) for _ in paths]
        assert [g[0] for g in got] == [200, 404, 200, 200] * 10, [g[0] for g in got]
        assert b"version" in got[3][2] and b"list" in got[2][2]
        body = json.dumps({}).encode()
        request = (b"POST /v1/fine_tuning/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                   b"application/json\r\nContent-Length: %d\r\n\r\n" % len(body)) + body
        s.sendall(request * 3 + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert [read_answer(f)[0] for _ in range(4)] == [400, 400, 400, 200]


# --- uploads ---------------------------------------------------------------------------------------------


def spooled():
    return glob.glob(os.path.join(server.state, "spool", "*"))


def wait_spooled(n):
    deadline = time.time() + 300
    while len(spooled()) != n and time.time() < deadline:
        time.sleep(0.05)
    assert len(spooled()) == n, spooled()


def stored():
    return len(glob.glob(os.path.join(server.state, "files", "*")))


def chunked(body, size):
    for at in range(0, len(body), size):
        piece = body[at:at + size]
        yield b"%x\r\n%s\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


def uploads_in_every_order_and_framing():
    text = e2e.data_set(50)
    parts = [("purpose", None, "fine-tune"), ("file", "d.jsonl", text)]
    for order in (parts, parts[::-1]):
        body, kind = e2e.multipart(order)
        head = ("POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\n" % kind).encode()
        answers = [raw(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)]
        answers += [raw(head + b"Transfer-Encoding: chunked\r\n\r\n", chunked(body, n))
                    for n in (1, 7, 1000, 100000)]
        for answer in answers:
            f = json.loads(expect(answer, 200))
            assert f["bytes"] == len(text) and f["status"] == "processed", f
            assert server.request("GET", "/v1/files/%s/content" % f["id"])[2].decode() == text
    for name in ('we"ird.jsonl', "../../etc/passwd", "a\\b.jsonl", "x" * 500, ""):
        body, kind = e2e.multipart([("file", name.replace('"', "%22"), text), parts[0]])
        f = expect(server.request("POST", "/v1/files", body, {"Content-Type": kind}), 200)
        assert "/" not in f["filename"] and "\\" not in f["filename"] and f["filename"], f
    assert not spooled()


def uploads_that_are_wrong():
    before = stored()
    good, kind = e2e.multipart([("file", "d.jsonl", e2e.data_set()), ("purpose", None, "fine-tune")])
    types = {"Content-Type": kind}
    expect(server.request("POST", "/v1/files", good[:-20], types), 400)
    expect(server.request("POST", "/v1/files", b"", types), 400)
    expect(server.request("POST", "/v1/files", b"junk" * 1000, types), 400)
    expect(server.request("POST", "/v1/files", good, {"Content-Type": "multipart/form-data"}), 400)
    expect(server.request("POST", "/v1/files", good, {"Content-Type": "application/json"}), 415)
    for parts in ([], [("purpose", None, "fine-tune")], [("file", "x", "{}\n")],
                  [("file", "x", ""), ("purpose", None, "fine-tune")],
                  [("file", "x", "{}\n"), ("purpose", None, "p" * 100000)],
                  [("file", "x", "{}\n"), ("purpose", None, "fine-tune"), ("x" * 300, None, "1")],
                  [("file", "x", "{}\n")] + [("f%d" % i, None, "1") for i in range(50)],
                  [("file", "x", "{}\n"), ("file", "y", "{}\n"), ("purpose", None, "fine-tune")]):
        body, kind = e2e.multipart(parts)
        expect(server.request("POST", "/v1/files", body, {"Content-Type": kind}), 400)
    error = expect(server.upload("{}\n[]\n{\n"), 400, "invalid_file", "file")
    assert [("Line %d" % n in d["message"]) for n, d in zip((2, 3), error["details"])] == [True, True]
    expect(server.upload(b"\xff\xfe{}\n"), 400, "invalid_file")
    assert not spooled() and stored() == before
    alive()


def uploads_beyond_the_limit():
    before = stored()
    line = json.dumps({"text": "x" * 1000}) + "\n"
    expect(server.upload(line * 1100), 413, "file_too_large", "file")  # the limit here is 1 MiB
    body, kind = e2e.multipart([("file", "d", line * 1100), ("purpose", None, "fine-tune")])
    head = ("POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\n" % kind).encode()
    expect(raw(head + b"Transfer-Encoding: chunked\r\n\r\n", chunked(body, 65536)), 413)
    expect(raw(head + b"Content-Length: 99999999999\r\n\r\n"), 413)
    expect(raw(head + b"Expect: 100-continue\r\nContent-Length: 99999999999\r\n\r\n"), 413)
    with connect() as s, s.makefile("rb") as f:  # and 100-continue where it is welcome
        body, kind = e2e.multipart([("file", "d", line), ("purpose", None, "fine-tune")])
        s.sendall(head + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert b" 100 " in f.readline() and not f.readline().strip()
        s.sendall(body)
        assert read_answer(f)[0] == 200
    assert not spooled() and stored() == before + 1


def uploads_given_up_half_way():
    body, kind = e2e.multipart([("file", "d.jsonl", e2e.data_set(2000)), ("purpose", None, "fine-tune")])
    head = ("POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
            % (kind, len(body))).encode()
    with contextlib.ExitStack() as clients:
        for _ in range(10):
            clients.enter_context(connect()).sendall(head + body[:len(body) // 2])
        wait_spooled(10)
    wait_spooled(0)
    alive()


# --- time ----------------------------------------------------------------------------------------------


def slow_clients_hold_up_nobody():
    slow = [connect() for _ in range(40)]
    for i, s in enumerate(slow):
        s.sendall((b"GET /healthz HTTP/1.1\r\nHo", b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\n"
                   b"Content-Length: 1000\r\nContent-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n",
                   b"")[i % 3])
    took = []
    for _ in range(20):
        started = time.time()
        alive()
        took.append(time.time() - started)
    assert sorted(took)[10] < 2, took  # limits.idle_seconds is 2 here, so one that waits for them takes 2
    for s in slow:
        s.settimeout(300)
        with contextlib.suppress(ConnectionError):
            while s.recv(4096):
                pass
        s.close()


def connections_are_limited():
    held = []
    try:
        for _ in range(400):
            s = socket.create_connection(("127.0.0.1", server.port), timeout=5)
            held.append(s)
    except OSError:
        pass
    for s in held:
        s.close()
    time.sleep(0.3)
    alive()


def answers_that_nobody_reads():
    big = expect(server.upload((json.dumps({"text": "y" * 900}) + "\n") * 1000), 200)
    path = "/v1/files/%s/content" % big["id"]
    held = []
    for _ in range(20):
        s = connect()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        s.sendall(("GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path).encode() * 5)
        held.append(s)
    for _ in range(10):
        alive()
    for s in held:
        s.close()
    alive()


# --- documents ---------------------------------------------------------------------------------------------


def documents():
    doc = expect(server.request("GET", "/openapi.json"), 200)
    assert doc["openapi"].startswith("3.1") and JOBS in doc["paths"]
    assert expect(server.request("GET", "/version"), 200)["name"] == "castor"
    expect(server.request("GET", "/readyz"), 200)
    expect(server.request("GET", "/health"), 200)


# --- many at once ---------------------------------------------------------------------------------------------


def stress():
    """Eight clients do everything at once for a few seconds."""
    deadline = time.time() + float(os.environ.get("STRESS_SECONDS", "8"))
    faults = []

    def client(number):
        n = 0
        try:
            while time.time() < deadline:
                n += 1
                f = server.upload(e2e.data_set(5 + n % 5))
                assert f[0] in (200, 503), f
                if f[0] != 200:
                    continue
                made = post({"model": "test/tiny", "training_file": f[2]["id"],
                             "metadata": {"client": str(number), "fake": "slow" if n % 2 else ""},
                             "optimization": {"max_steps": 3}},
                            {"x-stainless-retry-count": str(n % 3)})
                assert made[0] in (200, 503), made
                if made[0] != 200:
                    continue
                job = JOBS + "/" + made[2]["id"]
                for path in (job, job + "/events?limit=3", job + "/checkpoints", JOBS + "?limit=5",
                             "/v1/files?limit=3", "/v1/models", "/readyz",
                             JOBS + "?metadata[client]=%d" % number):
                    status = server.request("GET", path)[0]
                    assert status == 200, (path, status)
                status = post(None, path=job + ("/cancel", "/pause", "/resume")[n % 3])[0]
                assert status in (200, 409), status
                assert post(None, path=job + "/cancel")[0] in (200, 409)
                status = server.request("GET", "/v1/files/%s/content" % f[2]["id"])[0]
                assert status == 200, status
                status = server.request("DELETE", "/v1/files/" + f[2]["id"])[0]
                assert status in (200, 409), status
                with connect() as s:  # and one that hangs up
                    s.sendall(b"GET /v1/files HTTP/1.1\r\nHost: localhost\r\n\r\n")
        except Exception as e:  # noqa: BLE001
            faults.append(repr(e))

    threads = [threading.Thread(target=client, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not faults, faults[:3]
    alive()


def no_sanitizer_complained():
    text = server.log_text()
    assert "Sanitizer" not in text and "runtime error:" not in text, text[-8000:]
    assert "panic" not in text.lower()


CASES = [(f.__name__, f) for f in (
    every_member_wrong_in_turn, bodies_that_are_not_json, numbers_as_long_as_the_limit, content_types,
    hostile_paths, methods, headers_every_answer_has, huge_headers, strange_framing, empty_posts,
    pipelined_requests_are_answered_in_order, uploads_in_every_order_and_framing, uploads_that_are_wrong,
    uploads_beyond_the_limit, uploads_given_up_half_way, slow_clients_hold_up_nobody,
    connections_are_limited, answers_that_nobody_reads, documents, stress, no_sanitizer_complained)]

if __name__ == "__main__":
    limits = {"limits": {"file_bytes": 1 << 20, "idle_seconds": 2}}
    with e2e.Castord(limits) as server:
        server.file_id = server.upload(e2e.data_set())[2]["id"]
        if len(sys.argv) > 1:
            sys.argv.append("no_sanitizer_complained")
        e2e.main(CASES)
