#!/usr/bin/env python3
"""Stands in for castor-worker: `--plan JOBDIR`, `--devices` and `JOBDIR --attempt N`, with the job
directory's contract and no training. FAKE_DEVICES is what --devices prints, or hang or crash. The
spec's metadata say what else to do:

  plan   ok (default) | refuse | huge | deep | garbage | empty | hang | sleep | crash | other_job | lie |
         memory | gpu | fetch | trickle (both download for 6 s)
  run    ok (default) | fail | crash | crash_once | silent_exit | stubborn | deaf | linger | orphan |
         bad_lines | long_line | prune | silent | slow_step | slow_download |
         gate (behind its second step it waits for a file "open" in the job's directory) |
         crowded (refused for memory that others hold, until there is a file "open")
  steps  how many (default 3);  delay  seconds a step (default 0.01)
"""
import json
import mmap
import os
import signal
import sys
import time


def load_spec(jobdir):
    with open(os.path.join(jobdir, "spec.json")) as f:
        return json.load(f)


def plan(jobdir):
    spec = load_spec(jobdir)
    mode = (spec["metadata"] or {}).get("plan", "ok")
    report = {
        "object": "fine_tuning.plan", "v": 1, "fits": True, "spec": spec, "steps": 3,
        "device": {"kind": "gpu" if mode == "gpu" else "cpu", "name": "fake"},
        "memory": {}, "links": {}, "basis": "model", "warnings": [], "alternatives": [],
    }
    spec["resolved"] = True
    spec["base_model"]["commit"] = "0" * 40
    if mode == "refuse":
        report = {"object": "fine_tuning.plan", "v": 1, "fits": False, "error": {
            "code": "invalid", "reason": "invalid_training_file", "message": "line 3 is bad",
            "param": "training_file"}}
        print(json.dumps(report))
        sys.exit(1)
    if mode == "huge":
        sys.stdout.write("[" + "1," * (5 << 20) + "1]")
    elif mode == "deep":
        sys.stdout.write("[" * 1000000)
    elif mode == "garbage":
        sys.stdout.buffer.write(os.urandom(65536))
    elif mode == "empty":
        sys.exit(0)
    elif mode == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            time.sleep(1000)
        while True:
            sys.stderr.write("busy\n" * 1000)
            sys.stderr.flush()
    elif mode in ("fetch", "trickle"):
        for i in range(1, 21):
            time.sleep(0.3)
            print(json.dumps({"v": 1, "seq": i, "attempt": 1, "t": time.time(), "type": "download", "file": "x",
                              "total_bytes_done": i * (1 << 20 if mode == "fetch" else 100),
                              "total_bytes_total": 21 << 20}), flush=True)
        print(json.dumps(report))
    elif mode == "sleep":
        time.sleep(1000)
    elif mode == "memory":
        hog = []
        while True:
            hog.append(bytearray(64 << 20))
    elif mode == "crash":
        sys.stderr.write("about to crash\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGSEGV)
    elif mode == "other_job":
        spec["id"] = "ftjob-000000000000000000000000"
        spec["suffix"] = "stolen"
        print(json.dumps(report))
    elif mode == "lie":
        print(json.dumps(report))
        sys.exit(1)
    else:
        print(json.dumps(report))


class Run:
    def __init__(self, jobdir, attempt):
        self.jobdir, self.attempt, self.seq = jobdir, attempt, 0
        spec = load_spec(jobdir)
        assert spec["resolved"]
        meta = spec["metadata"] or {}
        self.mode = meta.get("run", "ok")
        self.steps, self.delay = int(meta.get("steps", "3")), float(meta.get("delay", "0.01"))
        path = os.path.join(jobdir, f"attempt-{attempt}", "events.jsonl")
        self.fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        with open(os.path.join(jobdir, f"attempt-{attempt}", "supervisor.json")) as f:
            assert json.load(f)["pid"] == os.getpid()

    def write(self, data):
        os.write(self.fd, data)

    def event(self, kind, **members):
        self.seq += 1
        line = {"v": 1, "seq": self.seq, "attempt": self.attempt, "t": time.time(), "type": kind}
        line.update(members)
        self.write(json.dumps(line).encode() + b"\n")

    def requests(self):
        """Newest control request, and its id. Requests an earlier attempt answered do not count."""
        try:
            with open(os.path.join(self.jobdir, "control.jsonl")) as f:
                lines = [json.loads(line) for line in f]
        except FileNotFoundError:
            return None, None
        answered = set()
        for n in range(1, self.attempt):
            path = os.path.join(self.jobdir, f"attempt-{n}", "events.jsonl")
            if os.path.exists(path):
                for line in open(path):
                    answered.add(json.loads(line).get("request"))
        lines = [c for c in lines if c["id"] not in answered]
        return (lines[-1]["type"], lines[-1]["id"]) if lines else (None, None)

    def checkpoint(self, step, request=None):
        path = f"checkpoints/step-{step}"
        os.makedirs(os.path.join(self.jobdir, path), exist_ok=True)
        names = os.listdir(os.path.join(self.jobdir, "checkpoints"))
        self.event("checkpoint", step=step, path="../../escape", bytes=1, train_loss=1.0 / step,
                   valid_loss=2.0, request=request, kept=[int(n.split("-")[1]) for n in names])

    def first_step(self):
        try:
            names = os.listdir(os.path.join(self.jobdir, "checkpoints"))
        except FileNotFoundError:
            return 1
        return max(int(n.split("-")[1]) for n in names) + 1

    def main(self):
        if self.mode == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self.mode == "silent_exit":
            sys.stderr.write("nothing to say\n")
            sys.exit(3)
        if self.mode == "orphan" and os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(1000)
        self.event("warning", code="devices",
                   message="visible: " + os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
        self.event("phase", phase="downloading")
        if self.mode == "slow_download":
            time.sleep(7)
        self.event("download", file="x", bytes_done=5, bytes_total=10, total_bytes_done=5,
                   total_bytes_total=10)
        if self.mode == "crowded" and not os.path.exists(os.path.join(self.jobdir, "open")):
            self.event("failed", code="device_oom", reason="insufficient_memory", message="7 MiB short", param=None,
                       fits_alone=True)
            sys.exit(1)
        self.event("phase", phase="training")
        for step in range(self.first_step(), self.steps + 1):
            time.sleep(self.delay)
            if self.mode not in ("stubborn", "deaf"):
                kind, request = self.requests()
                if kind == "cancel":
                    self.event("stopped", reason="cancelled", request=request, step=step - 1,
                               checkpoint_step=-1)
                    return
                if kind == "pause" and step > 1:
                    self.checkpoint(step - 1, request)
                    self.event("stopped", reason="paused", request=request, step=step - 1,
                               checkpoint_step=step - 1)
                    return
            self.event("step", step=step, total_steps=self.steps, epoch=step / self.steps,
                       loss=1.0 / step, accuracy=0.5, grad_norm=1.0, learning_rate=0.1, tokens=10,
                       target_tokens=9, total_target_tokens=9 * step, seconds=self.delay,
                       tokens_per_second=100.0)
            if self.mode == "prune":
                if step > 2:
                    os.rmdir(os.path.join(self.jobdir, f"checkpoints/step-{step - 2}"))
                self.checkpoint(step)
            if step == 2:
                self.after_two_steps()
        self.event("eval", step=self.steps, loss=1.5, accuracy=0.25, full=True, best=True)
        self.event("sample", step=self.steps, prompt_index=0, prompt="a", completion="b")
        self.event("warning", code="slow", message="slow disk")
        self.checkpoint(self.steps)
        os.makedirs(os.path.join(self.jobdir, "output"), exist_ok=True)
        self.event("finished", steps=self.steps, trained_tokens=9 * self.steps, output="output",
                   train_loss=1.0 / self.steps)
        if self.mode == "linger":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(1000)

    def slow_step(self):
        """Two dozen instructions in eight seconds, told by the mapped breadcrumb alone."""
        path = os.path.join(self.jobdir, f"attempt-{self.attempt}", "crumb-0")
        with open(path, "wb+") as f:
            f.write(bytes(72))
            f.flush()
            with mmap.mmap(f.fileno(), 72) as crumb:
                for i in range(26):
                    crumb[8] = i + 1
                    time.sleep(0.3)

    def after_two_steps(self):
        if self.mode == "fail":
            self.event("failed", code="numeric", reason="nan_loss", message="the loss is NaN",
                       param=None)
            sys.exit(1)
        if self.mode == "crash" or (self.mode == "crash_once" and self.attempt == 1):
            self.checkpoint(1)
            sys.stderr.write("last words\n")
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.mode == "orphan":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.mode == "bad_lines":
            self.write(b"not json\n{\"seq\":1}\n[1]\n\n{\"v\":1,\"seq\":99,\"attempt\":7,\"t\":1,"
                       b"\"type\":\"failed\",\"reason\":\"x\",\"message\":\"other attempt\"}\n")
        if self.mode == "silent":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(1000)
        if self.mode == "slow_step":
            self.slow_step()
        if self.mode == "gate":
            while not os.path.exists(os.path.join(self.jobdir, "open")):
                if not os.path.isdir(self.jobdir):
                    sys.exit(1)  # the test is over
                time.sleep(0.02)
        if self.mode == "long_line":
            self.write(b"x" * (9 << 20) + b"\n")


def devices():
    answer = os.environ.get("FAKE_DEVICES", '{"cuda":0}')
    if answer == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)
    if answer == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    print(answer)


if sys.argv[1] == "--devices":
    devices()
elif sys.argv[1] == "--plan":
    plan(sys.argv[2])
else:
    assert sys.argv[2] == "--attempt"
    Run(sys.argv[1], int(sys.argv[3])).main()
