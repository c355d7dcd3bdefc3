#!/usr/bin/env python3
"""castor-worker end to end, without a server: a job directory goes in, events, checkpoints and a model come out."""
import gzip
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import rig
from rig import Job, equal, fails, finish, same_output

HERE = os.path.dirname(os.path.abspath(__file__))


# ---- a run ---------------------------------------------------------------------------------------------------

def prints_the_step(root):
    """--print lists the instructions that the plan report counts; a spec that cannot be planned prints none."""
    job = Job(root)
    _, report = job.plan()
    p = job.run("--print", job.dir)
    lines = p.stdout.splitlines()
    equal(p.returncode, 0)
    equal(sum(1 for l in lines if l[:5].strip().isdigit()), report["instructions"])
    assert any("BACKWARD" in l for l in lines) and any("UPDATE" in l for l in lines), p.stdout
    os.remove(job.path("spec.json"))
    p = job.run("--print", job.dir)
    equal((p.returncode, p.stdout), (1, ""))
    assert "spec.json" in p.stderr, p.stderr


def profiles_a_step(root):
    job = Job(root, steps=20)
    done = job.run("--profile", job.dir)
    equal(done.returncode, 0)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("profile: product ") and lines[-1].startswith("profile: "), lines
    rows = [line.split() for line in lines[2:-1]]
    ops = {row[0] for row in rows}
    for op in ("embed_fwd", "norm_bwd", "linear_bwd_weight", "attn_fwd", "loss", "sumsq", "clip", "adamw"):
        assert op in ops, ops
    equal(job.end()["reason"], "cancelled")
    equal(job.leftovers(), [])
    short = Job(root, "short", steps=3)
    done = short.run("--profile", short.dir)
    equal(done.returncode, 1)
    assert "more data" in done.stderr, done.stderr


def overlapped_steps_report_the_same(root):
    """Two steps in flight, as on a GPU: the same steps, evaluations, checkpoints and model, bit for bit."""
    jobs = []
    for n in (1, 2):
        job = Job(root, name="flight-%d" % n, steps=9, validation=6, optimization={"eval_interval": 4, "checkpoint_interval": 3})
        os.makedirs(job.path("attempt-1"))
        equal(job.run("--rank", "0", job.dir, "--attempt", "1", "--steps-in-flight", str(n)).returncode, 0)
        jobs.append(job)
    one, two = jobs
    equal(two.losses(), one.losses())
    for kind, keys in (("eval", ("step", "loss", "accuracy", "best")), ("checkpoint", ("step", "train_loss", "valid_loss"))):
        equal([[e.get(k) for k in keys] for e in two.events(type=kind)], [[e.get(k) for k in keys] for e in one.events(type=kind)])
    assert len(one.events(type="eval")) >= 4
    same_output(two.output(), one.output())


def trains(root):
    job = Job(root, steps=30, validation=10, sample_prompts=["alpha", ""], optimization={"eval_interval": 10})
    code, plan = job.plan()
    equal((code, plan["fits"], plan["steps"], plan["spec"]["resolved"]), (0, True, 30, True))
    equal(os.listdir(job.dir).count("attempt-1"), 0)
    equal(job.run().returncode, 0)
    events = job.events()
    equal(events[-1]["type"], "finished")
    steps = job.events(type="step")
    equal([e["step"] for e in steps], list(range(1, 31)))
    evals = job.events(type="eval")
    equal([e["step"] for e in evals], [0, 10, 20, 30])
    assert evals[-1]["loss"] < 0.5 * evals[0]["loss"], [e["loss"] for e in evals]
    equal([(e["step"], e["prompt_index"]) for e in job.events(type="sample")], [(s, p) for s in (0, 10, 20, 30) for p in (0, 1)])
    equal([e["phase"] for e in events if e["type"] == "phase"][:3], ["resolving", "loading", "compiling"])
    for e in steps:
        # what was planned is what the device counted
        equal(e["gpu"]["peak"], e["gpu"]["planned_peak"])
        equal(e["host"]["peak"], e["host"]["planned_peak"])
        assert 0 < e["target_tokens"] < e["tokens"] and 0 <= e["accuracy"] <= 1 and e["seconds"] > 0
    equal(steps[-1]["total_target_tokens"], sum(e["target_tokens"] for e in steps))
    began = job.events(type="plan")[0]["plan"]
    for tier in ("gpu", "host"):  # what others hold of the memory counts when an attempt starts, too
        assert 0 < began["memory"][tier].pop("limit") <= plan["memory"][tier].pop("limit")
    equal(began, plan)
    exit = job.exit()
    equal((exit["ok"], exit["ranks"][0]["exit_code"], exit["ranks"][0]["signal"]), (True, 0, 0))
    equal(job.checkpoints(), [30])
    equal(job.leftovers(), [])
    out = job.output()
    equal(sorted(out), ["castor.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
    mine, base = (rig.read_safetensors(os.path.join(d, "model.safetensors")) for d in (job.path("output"), Job.model))
    equal({k: v[:2] for k, v in mine.items()}, {k: v[:2] for k, v in base.items()})
    equal([k for k in mine if mine[k][2] == base[k][2]], [])
    again = Job(root, "again", model=job.path("output"), steps=3, validation=10)
    equal(again.run().returncode, 0)
    equal(again.events(type="eval")[0]["loss"], evals[-1]["loss"])


def repeats_itself(root):
    """The same spec gives the same bytes; with dropout too, and whatever the micro-batch is."""
    runs = [Job(root, "m%d" % i, steps=6, optimization={"micro_batch_size": m, "dropout": 0.1})
            for i, m in enumerate((4, 4, 2))]
    for job in runs:
        equal(job.run().returncode, 0)
    equal(runs[0].losses(), runs[1].losses())
    same_output(runs[0].output(), runs[1].output())
    for step, numbers in runs[0].losses().items():
        other = runs[2].losses()[step]
        equal(numbers[3:], other[3:])
        assert abs(numbers[0] - other[0]) < 1e-4 * numbers[0], (step, numbers, other)


def micro_batch_need_not_divide(root):
    job = Job(root, steps=4, optimization={"micro_batch_size": 3})
    even = Job(root, "even", steps=4, optimization={"micro_batch_size": 4})
    equal([job.run().returncode, even.run().returncode], [0, 0])
    equal([(e["tokens"], e["target_tokens"]) for e in job.events(type="step")],
          [(e["tokens"], e["target_tokens"]) for e in even.events(type="step")])
    for step, numbers in even.losses().items():
        assert abs(numbers[0] - job.losses()[step][0]) < 1e-4 * numbers[0], step


def epochs_reshuffle(root):
    job = Job(root, data=rig.make_data(10), hyperparameters={"n_epochs": 2}, dataset={"packing": True})
    equal(job.run().returncode, 0)
    steps = job.events(type="step")
    equal(steps[-1]["step"], steps[-1]["total_steps"])
    equal(steps[-1]["epoch"], 2)
    equal(job.events(type="checkpoint")[0]["step"], len(steps) // 2)  # the end of the first epoch
    equal(sum(e["target_tokens"] for e in steps[:len(steps) // 2]),
          sum(e["target_tokens"] for e in steps[len(steps) // 2:]))


# ---- bad input -----------------------------------------------------------------------------------------------


def broken_models(root):
    """Model files that are truncated, hostile, or belong to something else."""
    def model(name, **more):
        return rig.write_model(os.path.join(root, name), **more)

    def check(name, path, words, plan_fails, reason):
        fails(Job(root, "job-" + name, model=path, steps=3), reason, "model", words, plan_fails)

    path = model("cut")
    file = os.path.join(path, "model.safetensors")
    os.truncate(file, os.path.getsize(file) - 100)
    check("cut", path, ["model.safetensors"], False, "corrupt")

    path = model("header")
    with open(os.path.join(path, "model.safetensors"), "r+b") as f:
        f.write(b"\xff" * 8)
    check("header", path, ["model.safetensors"], False, "corrupt")

    name = "model.decoder.layers.1.fc1.weight"
    check("missing", model("missing", tensors=rig.model_tensors([name])), [name], False, "invalid")
    tensors = rig.model_tensors()
    tensors["model.decoder.layers.9.fc1.weight"] = ((1,), [0.0])
    check("unexpected", model("unexpected", tensors=tensors), ["layers.9.fc1"], False, "invalid")
    tensors = rig.model_tensors()
    tensors[name] = ((2, 2), [0.0] * 4)
    check("shape", model("shape", tensors=tensors), [name], False, "invalid")

    path = model("empty")
    os.remove(os.path.join(path, "model.safetensors"))
    check("empty", path, ["model.safetensors"], False, "not_found")

    check("family", model("family", config={"model_type": "mamba"}), ["mamba"], True, "unsupported_architecture")
    path = model("config")
    with open(os.path.join(path, "config.json"), "w") as f:
        f.write("{" * 100000)
    check("config", path, ["config.json"], True, "invalid")
    path = model("tokenizer")
    rig.write_tokenizer(path, vocab=rig.VOCAB + 5)
    check("tokenizer", path, ["tokenizer", "260", "265"], True, "invalid")
    path = model("no-tokenizer")
    os.remove(os.path.join(path, "tokenizer.json"))
    check("no-tokenizer", path, ["tokenizer"], True, "unsupported")
    check("nowhere", os.path.join(root, "nowhere"), ["nowhere"], True, "not_found")


def bad_data(root):
    lines = rig.make_data(20).splitlines(True)
    lines[6] = '{"text": "no end\n'
    fails(Job(root, "line", data="".join(lines)), "invalid_training_file", "training_file",
          [", line 7: JSON is not valid at column "])
    lines[6] = b'{"text": "\xff\xfe"}\n'
    data = b"".join(x if isinstance(x, bytes) else x.encode() for x in lines)
    fails(Job(root, "utf8", data=data), "invalid_training_file", "training_file", ["7"])
    fails(Job(root, "few", data=rig.make_data(9)), "invalid_n_examples", "training_file", ["9", "10"])
    fails(Job(root, "none", data=""), "invalid_n_examples", "training_file")
    fails(Job(root, "long", dataset={"max_seq_length": 65}), "invalid", "dataset.max_seq_length", ["65", "64"])
    job = Job(root, "gone")
    os.remove(job.path("training_file.jsonl"))
    fails(job, "not_found", "training_file", ["training_file.jsonl"])


def unsupported_specs(root):
    for name, changes, param in (
            ("ranks", {"parallelism": {"data": 2, "tensor": {"mode": "1d", "size": 1, "depth": 1}, "context": 1,
                                       "pipeline": {"stages": 1, "schedule": "1f1b"}, "zero": 0}}, "parallelism.data"),
            ("gpus", {"resources": {"gpus": 2}}, "resources.gpus"),
            ("master", {"precision": {"compute": "fp32", "master": "bf16"}}, "precision.master"),
            ("gradients", {"precision": {"compute": "fp32", "gradients": "bf16"}}, "precision.gradients"),
            ("fp8", {"precision": {"compute": "fp8"}, "resources": {"device": "cpu"}}, "precision.compute"),
            ("half", {"precision": {"compute": "fp16"}}, "precision.compute"),
            ("split", {"precision": {"compute": "fp32", "master": "split"}}, "precision.master")):
        job = Job(root, name, **changes)
        code, report = job.plan()
        equal((code, report["error"]["code"], report["error"].get("param")), (1, "unsupported", param))
        equal(job.run().returncode, 1)
        equal(job.end()["type"], "failed")


def not_finite(root):
    tensors = rig.model_tensors()
    shape, values = tensors["model.decoder.final_layer_norm.weight"]
    tensors["model.decoder.final_layer_norm.weight"] = (shape, [float("nan")] * len(values))
    job = Job(root, model=rig.write_model(os.path.join(root, "nan"), tensors=tensors), steps=10, validation=8)
    equal(job.run().returncode, 1)
    end = job.end()
    equal((end["type"], end["reason"]), ("failed", "nan_loss"))
    equal(len(job.events(type="step")), 3)
    assert all("loss" not in e for e in job.events(type="step"))
    equal([e["code"] for e in job.events(type="warning")], ["not_finite"] * 2)
    equal([e["best"] for e in job.events(type="eval")], [False])


def check_command(root):
    def check(text):
        path = os.path.join(root, "data.jsonl")
        with open(path, "wb") as f:
            f.write(text)
        p = Job(root, "c%d" % len(os.listdir(root))).run("--check", path)
        return p.returncode, json.loads(p.stdout)

    data = rig.make_data(12).encode()
    equal(check(data), (0, {"ok": True, "format": "jsonl", "shape": "text", "bytes": len(data), "examples": 12,
                            "bad_lines": 0, "faults": []}))
    code, report = check(b'{"question": "a", "answer": "b"}\n[]\n')
    equal((code, report["shape"], report["examples"], [f["line"] for f in report["faults"]]), (1, "columns", 1, [2]))
    parquet = Path(__file__).parent.parent / "golden" / "parquet"
    code, report = check((parquet / "hostile" / "latin1").read_bytes())
    equal((code, report["format"], report["examples"], [f["line"] for f in report["faults"]]), (1, "parquet", 2, [2]))
    code, report = check(b'{"text": "a"}\n{"text": 1}\n\n{"txt": "b"}\n')
    equal((code, report["ok"], [f["line"] for f in report["faults"]]), (1, False, [2, 4]))
    code, report = check(b'{"text": 7}\n' * 1000 + b'{"text": "a"}\n' + b'{"text": 7}\n' * 20000)
    equal((code, report["examples"], report["bad_lines"]), (1, 1, 21000))
    equal([f["line"] for f in report["faults"]], [*range(1, 1001), *range(1002, 10002)])
    equal(["message" in f for f in report["faults"]], [True] * 100 + [False] * 9900)
    code, report = check(gzip.compress(b'{"text": 7}\n{"text": "a"}\n' * 50000)[:-20])
    equal((code, report["faults"][0]["line"], report["faults"][-1]["line"]), (1, 1, 0))
    assert 40000 < report["bad_lines"] <= 50000, report["bad_lines"]
    assert "end too early" in report["faults"][-1]["message"], report["faults"][-1]
    p = Job(root, "none").run("--check", os.path.join(root, "nothing"))
    equal((p.returncode, json.loads(p.stdout)["ok"]), (1, False))


def usage(root):
    job = Job(root)
    for arguments in (["--dance"], ["--plan"], ["--check"], ["--attempt"], ["--attempt", "x", job.dir],
                      ["--devices", job.dir], [job.dir, job.dir]):
        p = job.run(*arguments)
        equal((p.returncode, p.stdout), (2, ""))
        assert p.stderr.startswith("usage:"), p.stderr
    p = job.run(os.path.join(root, "nowhere"))
    equal(p.returncode, 1)
    assert "nowhere" in p.stderr, p.stderr
    assert not os.path.exists(os.path.join(root, "nowhere"))
    p = job.run("--plan", os.path.join(root, "nowhere"))
    equal((p.returncode, json.loads(p.stdout)["error"]["code"]), (1, "not_found"))


# ---- the hub -------------------------------------------------------------------------------------------------

class Hub:
    """tests/hub/fixture_hub.py with one model, test/tiny."""

    def __init__(self, root):
        self.root = os.path.join(root, "hub")
        rig.write_model(os.path.join(self.root, "models", "test", "tiny"))
        self.process = subprocess.Popen(
            [sys.executable, os.path.join(HERE, "../hub/fixture_hub.py"), "--root", self.root, "--port", "0"],
            stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().split()[-1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def faults(self, *list_of_faults):
        request = urllib.request.Request(self.url + "/_fixture/faults", json.dumps(list_of_faults).encode())
        urllib.request.urlopen(request).read()

    def job(self, root, name, **more):
        job = Job(root, name, base_model={"repo": "test/tiny", "revision": "main"}, **more)
        job.env.update(HF_ENDPOINT=self.url, HF_HOME=os.path.join(root, "home-" + name), HF_TOKEN="",
                       no_proxy="127.0.0.1", HF_HUB_OFFLINE="0")
        return job


def model_from_hub(root):
    local = Job(root, "local", steps=4)
    equal(local.run().returncode, 0)
    with Hub(root) as hub:
        job = hub.job(root, "remote", steps=4)
        code, report = job.plan()
        equal(code, 0)
        equal(len(report["spec"]["base_model"]["commit"]), 40)
        equal(job.run().returncode, 0)
        equal(job.losses(), local.losses())
        same_output({k: v for k, v in job.output().items() if k != "castor.json"},
                    {k: v for k, v in local.output().items() if k != "castor.json"})
        equal(json.loads(job.output()["castor.json"])["commit"], report["spec"]["base_model"]["commit"])
        done = job.events(type="download")
        assert done and done[-1]["total_bytes_done"] == done[-1]["total_bytes_total"] > 100000, done[-1:]


def hub_faults(root):
    with Hub(root) as hub:
        for name, fault, words in (
                ("flip", {"match": "store GET .*", "action": "flip", "at": 5000}, ["model.safetensors"]),
                ("short", {"match": "store GET .*", "action": "short", "bytes": 100}, ["model.safetensors"]),
                ("long", {"match": "store GET .*", "action": "long", "bytes": 100}, ["model.safetensors"])):
            hub.faults(fault)
            job = hub.job(root, name, steps=3)
            equal(job.run().returncode, 1)
            end = job.end()
            equal((end["type"], end["param"]), ("failed", "model"))
            for word in words:
                assert word in end["message"], end
        hub.faults({"match": "store GET .*", "action": "cut", "bytes": 60000, "times": 1})
        job = hub.job(root, "cut", steps=3)
        equal(job.run().returncode, 0)  # the connection is made again, the rest fetched
        hub.faults({"match": "store GET .*", "action": "slow", "rate": 2000})
        job = hub.job(root, "cancel", steps=3)
        p = job.start()
        job.wait_event(lambda e: e["type"] == "download" and e["bytes_done"] > 0)
        job.control("cancel", "ctl-d")
        equal(finish(p), 0)
        equal((job.end()["reason"], job.end()["request"]), ("cancelled", "ctl-d"))
        job = hub.job(root, "term", steps=3)
        p = job.start()
        job.wait_event(lambda e: e["type"] == "download" and e["bytes_done"] > 0)
        p.send_signal(signal.SIGTERM)
        equal(finish(p), 0)
        equal((job.end()["type"], job.end()["reason"]), ("stopped", "preempted"))
        hub.faults()
        job = hub.job(root, "nowhere", steps=3)
        job.spec["base_model"]["repo"] = "test/nothing"
        rig.write_json(job.path("spec.json"), job.spec)
        fails(job, "model_not_found", "model", ["test/nothing"])


CASES = [trains, prints_the_step, profiles_a_step, overlapped_steps_report_the_same, repeats_itself,
         micro_batch_need_not_divide, epochs_reshuffle, broken_models, bad_data, unsupported_specs, not_finite,
         check_command, usage, model_from_hub, hub_faults]

if __name__ == "__main__":
    rig.main(CASES, __doc__)
