"""Starts castord for a test: a temporary state, a free port, the fake worker; and counts results."""
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
BIN = os.environ.get("CASTOR_BIN", os.path.join(HERE, "../../build/castord"))
WORKER = os.path.join(HERE, "fake_worker.py")


class Castord:
    """One running castord; `config` is merged over the defaults for tests."""

    def __init__(self, config=None, state=None, listen="127.0.0.1:0", env=None):
        self.own_state = state is None
        self.state = state or tempfile.mkdtemp(prefix="castor-e2e-")
        self.config_path = os.path.join(self.state, "config.json")
        # The fake worker is a Python program: no address-space limits for it.
        merged = {"worker": WORKER, "limits": {"plan_bytes": 0, "check_bytes": 0}}
        for key, value in (config or {}).items():
            merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
        with open(self.config_path, "w") as f:
            json.dump(merged, f)
        self.log_path = os.path.join(self.state, "castord.log")
        self.log = open(self.log_path, "ab")
        self.log_start = len(self.log_text())  # an earlier castord of this state wrote there too
        self.process = subprocess.Popen(
            [BIN, "--listen", listen, "--state", self.state, "--config", self.config_path],
            stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL,
            env={**os.environ, **(env or {})})
        self.port = None

    def wait_ready(self, seconds=300):
        deadline = time.time() + seconds
        text = ""
        while time.time() < deadline:
            text = self.log_text()[self.log_start:]
            found = re.findall(r"listening on http://\S+:(\d+)", text)
            if found and self.process.poll() is None:
                self.port = int(found[-1])
                return self
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise RuntimeError("castord did not start:\n" + text[-2000:])

    def stop(self, seconds=300):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(seconds)
        self.log.close()
        text = self.log_text()
        if "Sanitizer" in text or "runtime error:" in text:
            raise AssertionError("a sanitizer complained:\n" + text[-8000:])
        return code

    def close_quietly(self):
        """For one that has ended by itself."""
        self.log.close()
        if self.own_state:
            shutil.rmtree(self.state, ignore_errors=True)

    def log_text(self):
        with open(self.log_path, errors="replace") as f:
            return f.read()

    def close(self):
        try:
            return self.stop()
        finally:
            if self.own_state:
                shutil.rmtree(self.state, ignore_errors=True)

    def __enter__(self):
        return self.wait_ready()

    def __exit__(self, *exc):
        if exc[0] is not None and not (exc[0] is SystemExit and not exc[1].code):
            sys.stderr.write("castord's log:\n" + self.log_text()[-4000:] + "\n")
        self.close()

    def request(self, method, path, body=None, headers=None, timeout=300):
        """(status, headers, parsed JSON or bytes)"""
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        headers = dict(headers or {})
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
            headers.setdefault("Content-Type", "application/json")
        c.request(method, path, body, headers)
        r = c.getresponse()
        data = r.read()
        c.close()
        if r.headers.get("Content-Type", "").startswith("application/json"):
            data = json.loads(data) if data else None
        return r.status, r.headers, data

    def upload(self, content, name="data.jsonl", purpose="fine-tune", headers=None):
        body, kind = multipart([("purpose", None, purpose), ("file", name, content)])
        return self.request("POST", "/v1/files", body, {"Content-Type": kind, **(headers or {})})

    def wait_status(self, job_id, wanted, seconds=300):
        deadline = time.time() + seconds
        while time.time() < deadline:
            job = self.request("GET", "/v1/fine_tuning/jobs/" + job_id)[2]
            if job["status"] in wanted:
                return job
            time.sleep(0.05)
        raise AssertionError("job %s is still %s" % (job_id, job["status"]))


def multipart(parts, boundary="xxBOUNDARYxx"):
    """parts: (name, filename or None, text or bytes)"""
    out = b""
    for name, filename, content in parts:
        content = content.encode() if isinstance(content, str) else content
        out += ("--%s\r\nContent-Disposition: form-data; name=\"%s\"" % (boundary, name)).encode()
        if filename is not None:
            out += ("; filename=\"%s\"\r\nContent-Type: application/octet-stream" % filename).encode()
        out += b"\r\n\r\n" + content + b"\r\n"
    return out + ("--%s--\r\n" % boundary).encode(), "multipart/form-data; boundary=" + boundary


def data_set(lines=12):
    return "".join(json.dumps({"text": "line %d" % i}) + "\n" for i in range(lines))


def expect(answer, status, code=None, param=None):
    """The body of an answer with that status; of an error, which has to have its form, the error."""
    got, headers, body = answer
    assert got == status, (got, body)
    if status >= 400:
        error = (body if isinstance(body, dict) else json.loads(body))["error"]
        assert set(error) >= {"message", "type", "param", "code"} and error["message"], error
        assert code is None or error["code"] == code, error
        assert param is None or error["param"] == param, error
        assert (headers.get("x-request-id") or "").startswith("req_"), dict(headers)
        return error
    return body


def main(cases):
    """Run (name, function) pairs; the last line says how many passed."""
    only = sys.argv[1:]
    passed = failed = 0
    for name, case in cases:
        if only and name not in only:
            continue
        started = time.time()
        try:
            case()
            passed += 1
            print("ok    %-44s %.1f s" % (name, time.time() - started), flush=True)
        except Exception:
            failed += 1
            print("FAIL  %s" % name, flush=True)
            traceback.print_exc()
    print("%d passed, %d failed" % (passed, failed))
    sys.exit(1 if failed or not passed else 0)
