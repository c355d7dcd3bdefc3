#!/usr/bin/env python3
"""A small hub on a loopback port, for tests and demonstrations. Python's standard library only.

    python3 tests/hub/fixture_hub.py --root DIR --port 0
    listening on http://127.0.0.1:40123

It speaks the part of the Hugging Face hub's protocol that downloads need: /api/models/ID
[/revision/REV], /tree, /paths-info, /refs, /auth-check, /api/whoami-v2, and /ID/resolve/REV/PATH;
the same for data sets, whose ID is "datasets/org/name" here.
Small files answer after a relative redirect; files that a real repository keeps in LFS are
redirected to signed addresses on a second port, the "store", which refuses requests that carry an
Authorization header, as object stores do.

    DIR/models/org/name/FILES          the branch main of model org/name
    DIR/datasets/org/name/FILES        the same of a data set
    DIR/models/org/name@REV/FILES      another branch ('/' in REV is written %2F)
    DIR/hub.json                       optional:
      {"tokens": {"hf_a": {"gated": true}},      who may log in; and read gated models
       "gated": {"org/name": "manual"}, "private": ["org/x"], "disabled": ["org/y"],
       "renamed": {"old": "org/new"}}

A commit's hash is made from its files' names and contents alone.

Faults, for tests, are a JSON list: POST /_fixture/faults replaces it, --faults FILE reads one.
Each entry has "match" (a regular expression for "SERVER METHOD PATH", SERVER is hub or store),
"action", and optionally "times" (how often, default for ever) and "skip" (how many to let pass):
    status        code, headers {name: value}, error_code, message
    redirect      location
    body          text: answers 200 with it
    headers       set {name: value or null}: changes the headers of the answer
    cut           bytes: closes the connection after so many bytes of the body
    stall         bytes, seconds: is silent for so long after so many bytes of the body
    slow          rate: bytes a second
    short, long   bytes: the body is so much shorter or longer, and Content-Length with it
    flip          at: changes one byte
    ignore_range  answers 200 with everything
    tree          add [entries], fill N (made-up files), page N (a page's length), endless true
GET /_fixture/log lists the requests so far, DELETE empties the list.
"""
import argparse
import hashlib
import json
import mmap
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_SUFFIXES = {".safetensors", ".bin", ".model", ".msgpack", ".h5", ".gguf", ".ot", ".parquet"}
LFS_BYTES = 1 << 20
PAGE = 1000
SIGNATURE = "Expires=4102444800&Signature=fixture"


def content_of(path):
    """A file's bytes without reading them all: models can be larger than memory."""
    with open(path, "rb") as file:
        if not path.stat().st_size:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


class File:
    """One file of a commit, with the hashes that the hub would announce."""

    def __init__(self, path, disk_path):
        data = content_of(disk_path)
        self.path, self.disk_path, self.size = path, disk_path, len(data)
        self.is_lfs = disk_path.suffix in LFS_SUFFIXES or len(data) > LFS_BYTES
        self.sha256 = hashlib.sha256(data).hexdigest()
        if self.is_lfs:
            data = (
                "version https://git-lfs.github.com/spec/v1\n"
                f"oid sha256:{self.sha256}\nsize {self.size}\n"
            ).encode()
        self.pointer_size = len(data)
        git_blob = hashlib.sha1(b"blob %d\0" % len(data))
        git_blob.update(data)
        self.oid = git_blob.hexdigest()

    def etag(self):
        return self.sha256 if self.is_lfs else self.oid

    def entry(self):
        entry = {"type": "file", "oid": self.oid, "size": self.size, "path": self.path}
        if self.is_lfs:
            entry["lfs"] = {
                "oid": self.sha256,
                "size": self.size,
                "pointerSize": self.pointer_size,
            }
        return entry


class Commit:
    def __init__(self, folder, cache):
        self.files = {}
        for disk_path in sorted(folder.rglob("*")):
            if not disk_path.is_file():
                continue
            path = disk_path.relative_to(folder).as_posix()
            stat = disk_path.stat()
            key = (str(disk_path), stat.st_mtime_ns, stat.st_size)
            if key not in cache:
                cache[key] = File(path, disk_path)
            self.files[path] = cache[key]
        listing = "".join(f"{f.oid} {p}\n" for p, f in self.files.items())
        self.sha = hashlib.sha1(listing.encode()).hexdigest()


class Hub:
    """The repositories under a root, the accounts, the faults and the log of requests."""

    def __init__(self, root, faults):
        self.root = Path(root)
        config = Path(root) / "hub.json"
        self.config = json.loads(config.read_text()) if config.is_file() else {}
        self.lock = threading.Lock()
        self.faults, self.log, self.cache = faults, [], {}
        self.store_url = None

    def place(self, repo):
        return self.root / (repo if repo.startswith("datasets/") else f"models/{repo}")

    def folder(self, repo, revision):
        main = self.place(repo)
        folder = main if revision == "main" else Path(f"{main}@{quote(revision, safe='')}")
        has_files = folder.is_dir() and any(p.is_file() for p in folder.rglob("*"))
        return folder if has_files else None

    def revisions(self, repo):
        parent = self.place(repo).parent
        name = repo.split("/")[-1]
        branches = [unquote(p.name.split("@", 1)[1]) for p in parent.glob(f"{name}@*")]
        return ["main"] + sorted(branches)

    def commit(self, repo, revision):
        with self.lock:
            if not re.fullmatch("[0-9a-f]{40}", revision):
                folder = self.folder(repo, revision)
                return Commit(folder, self.cache) if folder else None
            for name in self.revisions(repo):
                commit = Commit(self.folder(repo, name), self.cache)
                if commit.sha == revision:
                    return commit
        return None

    def blob(self, sha256):
        with self.lock:
            return next((f for f in self.cache.values() if f.sha256 == sha256), None)

    def take_fault(self, actions, line):
        """The first fault for this request that is still to happen."""
        with self.lock:
            for fault in self.faults:
                if fault["action"] not in actions or not re.search(fault["match"], line):
                    continue
                if fault.get("skip", 0) > 0:
                    fault["skip"] -= 1
                    continue
                times = fault.get("times", -1)
                if times == 0:
                    continue
                fault["times"] = times - 1
                return fault
        return None


class Handler(BaseHTTPRequestHandler):
    """What the hub and its store have in common: faults, the log, sending bodies."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_kind = ""
    hub = None

    def log_message(self, *args):
        pass

    def line(self):
        return f"{self.server_kind} {self.command} {self.path}"

    def fault(self, *actions):
        if self.path.startswith("/_fixture/"):
            return None
        return self.hub.take_fault(actions, self.line())

    def note_request(self):
        with self.hub.lock:
            self.hub.log.append(
                {
                    "server": self.server_kind,
                    "method": self.command,
                    "path": self.path,
                    "range": self.headers.get("Range"),
                    "authorized": "Authorization" in self.headers,
                }
            )

    def answer(self, status, body=b"", headers=None):
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), **(headers or {})}
        fault = self.fault("headers")
        if fault:
            headers.update(fault["set"])
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.send_body(body)

    def answer_json(self, value, headers=None):
        headers = {"Content-Type": "application/json; charset=utf-8", **(headers or {})}
        self.answer(200, json.dumps(value).encode(), headers)

    def refuse(self, status, code, message, headers=None):
        headers = dict(headers or {})
        if code:
            headers["X-Error-Code"] = code
        headers.update({"X-Error-Message": message, "X-Request-Id": "Root=1-fixture"})
        self.answer(status, json.dumps({"error": message}).encode(), headers)

    def redirect(self, status, location, headers=None):
        self.answer(status, b"Redirecting", {"Location": location, **(headers or {})})

    def send_body(self, body):
        fault = self.fault("cut", "stall", "slow") if body else None
        if not fault:
            self.wfile.write(body)
        elif fault["action"] == "slow":
            step = max(1, fault["rate"] // 20)
            for start in range(0, len(body), step):
                self.wfile.write(body[start : start + step])
                time.sleep(0.05)
        else:
            self.wfile.write(body[: fault["bytes"]])
            self.close_connection = True
            if fault["action"] == "stall":
                time.sleep(fault["seconds"])
                self.wfile.write(body[fault["bytes"] :])

    def send_content(self, data, headers):
        """A file, or the part of it that Range asks for, with the faults of contents."""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        total = len(data)
        if self.command == "HEAD":
            self.answer(200, data, {"Accept-Ranges": "bytes", **headers})
            return
        flip = self.fault("flip")
        if flip:
            at = flip["at"]
            data = b"".join([data[:at], bytes([data[at] ^ 1]), data[at + 1 :]])
        size = self.fault("short", "long")
        if size:
            n = size["bytes"]
            data = data[: len(data) - n] if size["action"] == "short" else bytes(data) + b"x" * n
        if not wanted or self.fault("ignore_range"):
            self.answer(200, data, {"Accept-Ranges": "bytes", **headers})
            return
        first, last = int(wanted[1]), min(int(wanted[2] or total - 1), total - 1)
        if first >= total:
            self.answer(416, b"", {"Content-Range": f"bytes */{total}"})
            return
        part = data[first : last + 1]
        self.answer(206, part, {"Content-Range": f"bytes {first}-{last}/{total}", **headers})

    def run(self):
        self.note_request()
        fault = self.fault("status", "redirect", "body")
        if not fault:
            self.route()
        elif fault["action"] == "status":
            message = fault.get("message", "made to fail")
            self.refuse(fault["code"], fault.get("error_code"), message, fault.get("headers"))
        elif fault["action"] == "redirect":
            self.redirect(302, fault["location"])
        else:
            self.answer(200, fault["text"].encode(), {"Content-Type": "text/html"})

    def do_GET(self):
        self.run()

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except ConnectionError:  # a client that was killed, or that has seen enough
            self.close_connection = True

    def do_HEAD(self):
        self.do_GET()


class StoreHandler(Handler):
    server_kind = "store"

    def route(self):
        url = urlsplit(self.path)
        file = self.hub.blob(url.path.rsplit("/", 1)[-1])
        if "Authorization" in self.headers or url.query != SIGNATURE or not file:
            self.refuse(400, None, "one way to authorise only, and a known file")
            return
        # The store has an ETag of its own, which is not the content's hash.
        etag = hashlib.sha256(file.sha256.encode()).hexdigest()
        self.send_content(content_of(file.disk_path), {"ETag": f'"{etag}"'})


class HubHandler(Handler):
    server_kind = "hub"

    def route(self):
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        if url.path.startswith("/_fixture/"):
            self.control(url.path)
            return
        if self.bearer() is False:
            self.refuse(401, None, "Invalid credentials in Authorization header")
            return
        if url.path == "/api/whoami-v2":
            self.whoami()
            return
        for pattern, method in self.ROUTES:
            match = re.fullmatch(pattern, url.path)
            if match:
                args = {k: unquote(v) for k, v in match.groupdict().items() if v is not None}
                method(self, query=query, **args)
                return
        self.refuse(404, None, "Sorry, we can't find the page you are looking for.")

    # --- who asks, and for what ---------------------------------------------------------------

    def bearer(self):
        """None without a token, False with a wrong one, else what the account may do."""
        value = self.headers.get("Authorization")
        if value is None:
            return None
        return self.hub.config.get("tokens", {}).get(value.removeprefix("Bearer "), False)

    def whoami(self):
        if self.bearer() is None:
            self.refuse(401, None, "Invalid username or password.")
        else:
            self.answer_json({"type": "user", "name": "fixture", "auth": {"type": "access_token"}})

    def repo_commit(self, repo, rev, content=False):
        """The commit, or None after an answer was sent."""
        config, account = self.hub.config, self.bearer()
        if repo in config.get("renamed", {}):
            new = config["renamed"][repo]
            self.redirect(307, self.path.replace(quote(repo), quote(new), 1))
            return None
        hidden = repo in config.get("private", []) and account is None
        if hidden or not self.hub.folder(repo, "main"):
            status = 401 if account is None else 404
            message = "Invalid username or password." if status == 401 else "Repository not found"
            self.refuse(status, "RepoNotFound", message)
            return None
        if repo in config.get("disabled", []):
            self.refuse(403, None, "Access to this resource is disabled.")
            return None
        if content and config.get("gated", {}).get(repo) and not (account or {}).get("gated"):
            message = f"Access to model {repo} is restricted."
            self.refuse(401 if account is None else 403, "GatedRepo", message)
            return None
        commit = self.hub.commit(repo, rev)
        if not commit:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        return commit

    # --- the API ------------------------------------------------------------------------------

    def info(self, repo, query, rev="main"):
        commit = self.repo_commit(repo, rev)
        if not commit:
            return
        siblings = [{"rfilename": path} for path in commit.files]
        if query.get("blobs") == ["true"]:
            for sibling, file in zip(siblings, commit.files.values()):
                sibling.update({"size": file.size, "blobId": file.oid})
                if file.is_lfs:
                    sibling["lfs"] = {
                        "sha256": file.sha256,
                        "size": file.size,
                        "pointerSize": file.pointer_size,
                    }
        info = {
            "_id": "0" * 24,
            "id": repo,
            "modelId": repo,
            "sha": commit.sha,
            "private": repo in self.hub.config.get("private", []),
            "gated": self.hub.config.get("gated", {}).get(repo, False),
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": siblings,
        }
        self.answer_json(info)

    def tree(self, repo, rev, query, path=""):
        commit = self.repo_commit(repo, rev)
        if not commit:
            return
        prefix = path + "/" if path else ""
        folders = {p.rsplit("/", 1)[0] for p in commit.files if "/" in p}
        folder = {"type": "directory", "oid": "0" * 40, "size": 0}
        entries = [{**folder, "path": p} for p in sorted(folders)]
        entries += [f.entry() for p, f in commit.files.items() if p.startswith(prefix)]
        fault = self.fault("tree") or {}
        entries += fault.get("add", [])
        filler = {"type": "file", "oid": "0" * 40, "size": 1}
        start, page, real = int(query.get("cursor", ["0"])[0]), fault.get("page", PAGE), len(entries)
        total = real + fault.get("fill", 0)
        fill = range(max(start - real, 0), max(min(start + page, total) - real, 0))
        entries = entries[start : start + page] + [{**filler, "path": f"filler/{i:06d}.txt"} for i in fill]
        headers = {}
        if start + page < total or fault.get("endless"):
            base = f"http://{self.headers['Host']}{urlsplit(self.path).path}"
            cursor = f"recursive=true&expand=false&cursor={start + page}"
            headers["Link"] = f'<{base}?{cursor}>; rel="next"'
        self.answer_json(entries, headers)

    def paths_info(self, repo, rev, query):
        length = int(self.headers.get("Content-Length") or 0)
        form = parse_qs(self.rfile.read(length).decode())
        commit = self.repo_commit(repo, rev)
        if commit:
            wanted = form.get("paths", [])
            self.answer_json([commit.files[p].entry() for p in wanted if p in commit.files])

    def refs(self, repo, query):
        if not self.repo_commit(repo, "main"):
            return
        branches = [
            {"name": r, "ref": f"refs/heads/{r}", "targetCommit": self.hub.commit(repo, r).sha}
            for r in self.hub.revisions(repo)
        ]
        self.answer_json({"branches": branches, "tags": [], "converts": []})

    def auth_check(self, repo, query):
        if self.repo_commit(repo, "main", content=True):
            self.answer_json({})

    # --- files --------------------------------------------------------------------------------

    def resolve(self, repo, rev, path, query):
        commit = self.repo_commit(repo, rev, content=True)
        if not commit:
            return
        headers = {"X-Repo-Commit": commit.sha}
        file = commit.files.get(path)
        if not file:
            self.refuse(404, "EntryNotFound", "Entry not found", headers)
        elif file.is_lfs:
            headers["X-Linked-Etag"] = f'"{file.sha256}"'
            headers["X-Linked-Size"] = str(file.size)
            location = f"{self.hub.store_url}/repos/aa/{file.sha256}?{SIGNATURE}"
            self.redirect(302, location, headers)
        else:
            headers["ETag"] = f'"{file.oid}"'
            kind = "" if repo.startswith("datasets/") else "models/"
            cached = f"/api/resolve-cache/{kind}{quote(repo)}/{commit.sha}/"
            location = cached + quote(path, safe="")
            self.redirect(307, f"{location}?%2F{quote(repo)}=&etag=%22{file.oid}%22", headers)

    def resolve_cache(self, repo, rev, path, query):
        commit = self.repo_commit(repo, rev, content=True)
        file = commit and commit.files.get(path)
        if file:
            headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{file.oid}"'}
            self.send_content(content_of(file.disk_path), headers)
        elif commit:
            self.refuse(404, "EntryNotFound", "Entry not found")

    # --- the tests' own doors -----------------------------------------------------------------

    def control(self, path):
        hub = self.hub
        with hub.lock:
            if self.command == "POST":
                length = int(self.headers.get("Content-Length") or 0)
                hub.faults[:] = json.loads(self.rfile.read(length) or b"[]")
            elif self.command == "DELETE":
                hub.log.clear()
            value = [r for r in hub.log if not r["path"].startswith("/_fixture/")]
        self.answer_json(value if path == "/_fixture/log" else [])

    def do_POST(self):
        self.do_GET()

    def do_DELETE(self):
        self.do_GET()

    NAME = r"[\w.-]+(?:/[\w.-]+)?"
    REPO = rf"(?P<repo>datasets/{NAME}|{NAME})"
    API = rf"/api/(?:models/)?{REPO}"
    ROUTES = [
        (rf"{API}/revision/(?P<rev>[^/]+)", info),
        (rf"{API}/tree/(?P<rev>[^/]+)(?:/(?P<path>.+))?", tree),
        (rf"{API}/paths-info/(?P<rev>[^/]+)", paths_info),
        (rf"{API}/refs", refs),
        (rf"{API}/auth-check", auth_check),
        (rf"{API}", info),
        (rf"/api/resolve-cache/(?:models/)?{REPO}/(?P<rev>[^/]+)/(?P<path>.+)", resolve_cache),
        (rf"/{REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", resolve),
    ]


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


def serve(host, port, handler, hub):
    return Server((host, port), type(handler.__name__, (handler,), {"hub": hub}))


def main():
    parser = argparse.ArgumentParser(description="a small hub for tests and demonstrations")
    parser.add_argument("--root", required=True, help="folder with models/org/name/FILES")
    parser.add_argument("--port", type=int, default=0, help="0 = a free one")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--faults", help="JSON file with a list of faults")
    args = parser.parse_args()
    faults = json.loads(Path(args.faults).read_text()) if args.faults else []
    hub = Hub(args.root, faults)
    store = serve(args.host, 0, StoreHandler, hub)
    front = serve(args.host, args.port, HubHandler, hub)
    hub.store_url = f"http://{args.host}:{store.server_address[1]}"
    threading.Thread(target=store.serve_forever, daemon=True).start()
    print(f"listening on http://{args.host}:{front.server_address[1]}", flush=True)
    try:
        front.serve_forever()
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
