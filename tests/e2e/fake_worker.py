#!/usr/bin/env python3
"""A worker for tests of castord: it keeps castor-worker's contract and trains nothing.

  --check FILE          0 when every line is a JSON object in UTF-8, else 1 and the faults
  --devices             no GPUs
  --plan JOBDIR         a plan report; model "test/missing" cannot be found, "test/huge" does not fit
  JOBDIR --attempt N    events of an attempt; metadata {"fake": "slow" | "fail" | "die"} changes how

Every step takes FAKE_STEP_SECONDS (0.02) seconds, or 0.2 in a slow job.
"""
import json
import math
import os
import signal
import sys
import time

STEP_SECONDS = float(os.environ.get("FAKE_STEP_SECONDS", "0.02"))


def check(path):
    faults = []
    with open(path, "rb") as f:
        for number, line in enumerate(f, 1):
            try:
                if not isinstance(json.loads(line.decode("utf-8")), dict):
                    raise ValueError("not an object")
            except ValueError as e:
                faults.append({"line": number, "message": type(e).__name__ + ": " + str(e)[:100]})
            if len(faults) == 5:
                break
    print(json.dumps({"ok": not faults, "faults": faults}))
    return 1 if faults else 0


def no_plan(code, reason, message, param):
    print(json.dumps({"object": "fine_tuning.plan", "v": 1, "fits": False,
                      "error": {"code": code, "reason": reason, "message": message, "param": param}}))
    return 1


def resolve(spec):
    """What the service leaves open gets a number, as a real plan would do."""
    hyper = spec["hyperparameters"]
    hyper["n_epochs"] = 2 if hyper["n_epochs"] == "auto" else hyper["n_epochs"]
    hyper["batch_size"] = 4 if hyper["batch_size"] == "auto" else hyper["batch_size"]
    if hyper["learning_rate_multiplier"] == "auto":
        hyper["learning_rate_multiplier"] = 1.0
    optimization = spec["optimization"]
    for key, value in (("learning_rate", 1e-4), ("micro_batch_size", 1), ("dropout", 0.0)):
        if optimization[key] == "auto":
            optimization[key] = value
    if spec["precision"]["compute"] == "auto":
        spec["precision"]["compute"] = "fp32"
    if spec["resources"]["gpus"] == "auto":
        spec["resources"]["gpus"] = 1
    if spec["resources"]["device"] == "auto":
        spec["resources"]["device"] = "cpu"
    spec["base_model"]["commit"] = "0123456789abcdef0123456789abcdef01234567"
    spec["resolved"] = True


def plan(jobdir):
    with open(os.path.join(jobdir, "spec.json")) as f:
        spec = json.load(f)
    repo = spec["base_model"]["repo"]
    if repo == "test/missing":
        return no_plan("not_found", "model_not_found", "there is no model test/missing", "model")
    if repo == "test/huge":
        return no_plan("device_oom", "insufficient_memory", "7 GiB are missing on the gpu", None)
    resolve(spec)
    tier = {"weights": 10, "gradients": 10, "optimizer": 20, "activations": 5, "workspace": 1,
            "buffers": 1, "total": 47, "limit": 0}
    none = dict.fromkeys(tier, 0)
    steps = spec["optimization"]["max_steps"] or 4
    print(json.dumps({
        "object": "fine_tuning.plan", "v": 1, "fits": True, "spec": spec,
        "model": {"family": "test", "parameters": 1000, "trainable_parameters": 1000, "layers": 2, "vocabulary": 100,
                  "context_length": 128},
        "data": {"examples": 10, "tokens": 100, "target_tokens": 90, "rows": 10,
                 "validation_examples": 0, "validation_tokens": 0},
        "steps": steps, "steps_per_epoch": max(1, steps // 2),
        "device": {"kind": "cpu", "name": "test"}, "instructions": 12,
        "memory": {"gpu": none, "host": tier, "nvme": none},
        "links": dict.fromkeys(("h2d", "d2h", "disk_read", "disk_write", "network"), 0),
        "step_seconds": 0.02, "step_seconds_bound": 0.01, "basis": "model",
        "warnings": [], "alternatives": []}))
    return 0


class Attempt:
    def __init__(self, jobdir, number):
        self.jobdir, self.number = jobdir, number
        self.dir = os.path.join(jobdir, "attempt-%d" % number)
        self.events = open(os.path.join(self.dir, "events.jsonl"), "ab", buffering=0)
        self.seq = 0
        with open(os.path.join(jobdir, "spec.json")) as f:
            self.spec = json.load(f)
        self.how = (self.spec["metadata"] or {}).get("fake", "")
        self.steps = self.spec["optimization"]["max_steps"] or 4

    def emit(self, kind, **members):
        self.seq += 1
        line = {"v": 1, "seq": self.seq, "attempt": self.number, "t": time.time(), "type": kind}
        line.update(members)
        self.events.write((json.dumps(line) + "\n").encode())

    def answered(self):
        """Ids of requests that an earlier attempt has acted on."""
        ids = set()
        for n in range(1, self.number):
            path = os.path.join(self.jobdir, "attempt-%d" % n, "events.jsonl")
            if os.path.exists(path):
                with open(path) as f:
                    ids.update(json.loads(line).get("request") for line in f if line.endswith("\n"))
        return ids

    def request(self):
        path = os.path.join(self.jobdir, "control.jsonl")
        if not os.path.exists(path):
            return None
        done = self.answered()
        with open(path) as f:
            requests = [json.loads(line) for line in f if line.endswith("\n")]
        requests = [r for r in requests if r["id"] not in done and r["type"] != "checkpoint"]
        return requests[-1] if requests else None

    def first_step(self):
        folder = os.path.join(self.jobdir, "checkpoints")
        names = os.listdir(folder) if os.path.isdir(folder) else []
        return max([int(name.split("-")[1]) for name in names] or [0]) + 1

    def checkpoint(self, step, request=None):
        path = "checkpoints/step-%d" % step
        os.makedirs(os.path.join(self.jobdir, path), exist_ok=True)
        self.emit("checkpoint", step=step, path=path, bytes=10, seconds=0.01,
                  train_loss=3.0 / step, train_accuracy=0.5, valid_loss=3.1 / step,
                  valid_accuracy=0.4, **({"request": request} if request else {}))

    def train(self):
        self.emit("phase", phase="loading")
        self.emit("phase", phase="training")
        if self.how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        seconds = 0.2 if self.how == "slow" else STEP_SECONDS
        for step in range(self.first_step(), self.steps + 1):
            request = self.request()
            if request:
                if request["type"] == "pause":
                    self.checkpoint(step - 1 or 1, request["id"])
                self.emit("stopped", reason={"pause": "paused"}.get(request["type"], "cancelled"),
                          request=request["id"], step=step - 1, checkpoint_step=step - 1)
                return
            time.sleep(seconds)
            self.emit("step", step=step, total_steps=self.steps, epoch=2.0 * step / self.steps,
                      loss=3.0 / math.sqrt(step), accuracy=0.1 * min(step, 9), grad_norm=1.0,
                      learning_rate=1e-4, tokens=10, target_tokens=9, total_target_tokens=9 * step,
                      seconds=seconds, tokens_per_second=10 / seconds,
                      seconds_remaining=seconds * (self.steps - step))
            if self.how == "fail" and step == 2:
                self.emit("failed", code="numeric", reason="nan_loss",
                          message="the loss is not a number at step 2", param=None)
                return
            if step % 2 == 0 or step == self.steps:
                self.emit("eval", step=step, loss=3.1 / step, accuracy=0.4, target_tokens=9,
                          full=True, best=True)
                self.checkpoint(step)
        os.makedirs(os.path.join(self.jobdir, "output"), exist_ok=True)
        with open(os.path.join(self.jobdir, "output", "config.json"), "w") as f:
            f.write("{}\n")
        self.emit("finished", steps=self.steps, trained_tokens=9 * self.steps, output="output",
                  train_loss=3.0 / math.sqrt(self.steps), valid_loss=1.0)

    def write_exit(self):
        path = os.path.join(self.dir, "exit.json")
        with open(path + ".tmp", "w") as f:
            json.dump({"v": 1, "t": time.time(), "ok": True, "first_failed_rank": -1,
                       "ranks": [{"rank": 0, "pid": os.getpid(), "exit_code": 0, "signal": 0,
                                  "step": self.steps, "where": "", "log_tail": ""}]}, f)
        os.rename(path + ".tmp", path)


def main(argv):
    if len(argv) == 3 and argv[1] == "--check":
        return check(argv[2])
    if argv[1:] == ["--devices"]:
        print('{"cuda":0}')
        return 0
    if len(argv) == 3 and argv[1] == "--plan":
        return plan(argv[2])
    if len(argv) == 4 and argv[2] == "--attempt":
        attempt = Attempt(argv[1], int(argv[3]))
        attempt.train()
        attempt.write_exit()
        return 0
    print("fake_worker: unknown arguments", argv[1:], file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv))
