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
from rig import Job, TooLate, equal, finish, same_output, same_steps

HERE = os.path.dirname(os.path.abspath(__file__))


def fails(job, reason, param=None, words=(), plan_fails=True):
    """Both --plan and training refuse the job, and say why."""
    code, report = job.plan()
    if plan_fails:
        equal((code, report["fits"]), (1, False))
        failures = [report["error"]]
    else:
        equal((code, report["fits"]), (0, True))
        failures = []
    equal(job.run().returncode, 1)
    end = job.end()
    equal(end["type"], "failed")
    for f in failures + [end]:
        equal(f.get("reason") or f["code"], reason)
        equal(f.get("param"), param)
        for word in words:
            assert word in f["message"], f["message"]
    equal(job.exit()["ok"], False)
    equal(job.exit()["ranks"][0]["exit_code"], 1)
    assert not os.path.exists(job.path("output"))
    equal(job.leftovers(), [])



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


def too_little_memory(root):
    job = Job(root, placement={"policy": "auto", "gpu_memory_limit": 20000})
    fails(job, "insufficient_memory", None, ["MiB", "short"])
    need = Job(root, "enough", steps=3)
    peak = need.plan()[1]["memory"]["gpu"]["total"]
    for policy, limit, code in (("cuda", peak, 0), ("cuda", peak // 4, 1), ("auto", peak // 2, 0)):
        job = Job(root, "%s%d" % (policy, limit), steps=3, placement={"policy": policy, "gpu_memory_limit": limit})
        equal(job.run().returncode, code)
    assert "\"auto\" it fits" in Job(root, "advice", steps=3, placement={"policy": "cuda", "gpu_memory_limit": peak // 2}
                                     ).plan()[1]["error"]["message"]


PROFILE = []  # of this machine, once it was measured


def probed(job):
    """(path, profile) where the job finds it: one --probe, which takes half a minute, serves all cases."""
    path = os.path.join(job.env["XDG_CACHE_HOME"], "castor", "profile-cpu.json")
    if not PROFILE:
        p = job.run("--probe", timeout=3 * rig.HANGS)
        equal((p.returncode, json.loads(p.stdout.splitlines()[0])), (0, json.loads(rig.read_bytes(path))))
        PROFILE.append(rig.read_bytes(path))
    elif not os.path.exists(path):
        os.makedirs(os.path.dirname(path))
        with open(path, "wb") as f:
            f.write(PROFILE[0])
    return path, json.loads(PROFILE[0])


def proposals(root, name, **changes):
    """The report of a job, and its alternatives by what they change; each fits as it says when it is asked for."""
    report = with_volume(root, Job(root, name, steps=3, **changes)).plan()[1]
    for k, a in enumerate(report["alternatives"]):
        other = {**changes, **{key: {**changes.get(key, {}), **v} for key, v in a["settings"].items()}}
        named = ["%s.%s %s" % (o, m, json.dumps(v)) for o, members in a["settings"].items() for m, v in members.items()]
        equal(a["change"], ", ".join(named))
        code, there = with_volume(root, Job(root, "%s%d" % (name, k), steps=3, **other)).plan()
        equal((a["change"], code), (a["change"], 0))
        equal({t: there["memory"][t]["total"] for t in a["memory"]}, a["memory"])
    return report, {a["change"].split()[0]: a for a in report["alternatives"]}


def with_volume(root, job):
    job.spec["files"]["nvme"]["path"] = root
    rig.write_json(job.path("spec.json"), job.spec)
    return job


def least_gpu(root, name, low, **changes):
    """About the smallest limit on device memory with which a job fits; `low` is too small."""
    high = Job(root, name, steps=3, **changes).plan()[1]["memory"]["gpu"]["total"]
    while high - low > 4096:
        middle = (low + high) // 2
        other = {**changes, "placement": {**changes["placement"], "gpu_memory_limit": middle}}
        if Job(root, "%s-%d" % (name, middle), steps=3, **other).plan()[1]["fits"]:
            high = middle
        else:
            low = middle
    return high


def alternatives(root):
    """What a report proposes is faster when it is asked for; a probed machine's device is not opened."""
    report, changes = proposals(root, "fits", placement={"policy": "cpu"})
    equal((report["fits"], changes), (True, {}))  # without a profile nothing is known to be faster
    job = Job(root, "probed", steps=3, placement={"policy": "cpu"})
    path, profile = probed(job)
    profile.update(device="Imaginary", memory=1 << 30, memory_free=1 << 30, h2d_rate=1e6)
    rig.write_json(path, profile)
    report, changes = proposals(root, "measured", placement={"policy": "cpu"})
    equal((report["device"]["name"], report["memory"]["gpu"]["limit"], report["basis"]), ("Imaginary", 1 << 30, "measured"))
    auto = changes.get("placement.policy")
    assert auto and auto["step_seconds"] < 0.98 * report["step_seconds"], report["alternatives"]
    times = [a["step_seconds"] for a in report["alternatives"]]
    equal(times, sorted(times))
    half = Job(root, "whole", steps=3, placement={"policy": "cuda"}).plan()[1]["memory"]["gpu"]["total"] // 2
    profile.update(memory=half, memory_free=half)  # all that the machine has: there is nothing to move, nor to raise
    rig.write_json(path, profile)
    for policy in ("auto", "cuda"):
        report, changes = proposals(root, "whole-" + policy, placement={"policy": policy})
        equal(report["fits"], False)
        assert not any(c.startswith("placement") for c in changes), changes
        assert "policy" not in report["error"]["message"], report["error"]


def alternatives_to_a_refusal(root):
    """Whatever is too small, something that fits is proposed, and a limit of the job's is raised no further than it may be."""
    whole = Job(root, "whole", steps=3, placement={"policy": "cuda"}).plan()[1]["memory"]["gpu"]["total"]
    for policy in ("auto", "cpu", "cuda"):
        for compute in ("fp32", "bf16"):
            report, changes = proposals(root, policy + compute, placement={"policy": policy, "gpu_memory_limit": whole // 8},
                                        precision={"compute": compute})
            equal(report["fits"], False)
            more = changes["placement.gpu_memory_limit"]
            assert whole // 8 < more["settings"]["placement"]["gpu_memory_limit"] <= whole, more
    report, changes = proposals(root, "half", placement={"policy": "cuda", "gpu_memory_limit": whole // 2})
    assert "placement.policy" in changes and '"auto" it fits' in report["error"]["message"], report
    # one micro-batch, whose gradients are not summed and take half
    narrow = {"precision": {"compute": "bf16"}, "optimization": {"micro_batch_size": 4}}
    least = least_gpu(root, "narrow", 1000, placement={"policy": "cuda"}, **narrow)
    proposals(root, "one", placement={"policy": "cuda", "gpu_memory_limit": least - 8192}, **narrow)
    # one row at a time, elsewhere than on the device alone
    one = {"optimization": {"micro_batch_size": 1}}
    moved = least_gpu(root, "moved", 1000, placement={"policy": "auto"}, **one)
    report, changes = proposals(root, "both", placement={"policy": "cuda", "gpu_memory_limit": moved})
    assert 'micro_batch_size 1 and placement.policy "auto"' in report["error"]["message"], report["error"]
    equal(changes["optimization.micro_batch_size"]["settings"], {**one, "placement": {"policy": "auto"}})
    # the other tiers
    host = Job(root, "host", steps=3, placement={"policy": "cpu"}).plan()[1]["memory"]["host"]["total"]
    short = {"policy": "cpu", "host_memory_limit": host // 2}
    assert "placement.nvme_limit" not in proposals(root, "no-volume", placement=short)[1]
    short.update(nvme_path="fast", nvme_limit=4096)
    changes = proposals(root, "volume", placement=short)[1]
    assert "placement.nvme_limit" in changes and "placement.host_memory_limit" in changes, changes


def placement_never_changes_the_numbers(root):
    """The same job in device memory and in host memory, within half the device's memory, and resumed elsewhere."""
    here = Job(root, "cuda", steps=6, validation=6, placement={"policy": "cuda"})
    equal(here.run().returncode, 0)
    report = here.plan()[1]
    equal(report["memory"]["host"]["optimizer"], 0)
    peak = report["memory"]["gpu"]["total"]
    for name, placement in (("cpu", {"policy": "cpu"}), ("auto", {"policy": "auto", "gpu_memory_limit": peak // 2})):
        job = Job(root, name, steps=6, validation=6, placement=placement)
        report = job.plan()[1]
        assert report["memory"]["gpu"]["total"] <= peak // 2 or name == "cpu", report["memory"]
        assert report["memory"]["host"]["optimizer"] > 0 and report["links"]["d2h"] > 0, report
        equal(job.run().returncode, 0)
        same_steps(job, [1], here.losses())
        equal([e["loss"] for e in job.events(1, "eval")], [e["loss"] for e in here.events(1, "eval")])
        same_output(job.output(), here.output())
    moved = Job(root, "moved", steps=6, validation=6, placement={"policy": "cpu"}, optimization={"checkpoint_interval": 2})
    p = moved.start()
    moved.wait_event(lambda e: e["type"] == "checkpoint")
    p.kill()
    p.wait()
    moved.spec["placement"]["policy"] = "cuda"
    rig.write_json(moved.path("spec.json"), moved.spec)
    equal(moved.run().returncode, 0)
    same_steps(moved, range(1, moved.last_attempt() + 1), here.losses())
    same_output(moved.output(), here.output())


def micro_batch_left_open(root):
    """Rows of a micro-batch that a job leaves open are some that fit, and an attempt that goes on keeps them."""
    def job(name, rows, limit=0):
        return Job(root, name, steps=6, placement={"policy": "cuda", "gpu_memory_limit": limit},
                   optimization={"micro_batch_size": rows, "checkpoint_interval": 2})

    def rows(report):
        return report["spec"]["optimization"]["micro_batch_size"]

    whole = job("whole", "auto").plan()[1]
    equal(rows(whole), 4)
    least, limit = whole["memory"]["gpu"]["total"], 0  # for four rows; too little for them
    while least - limit > 4096:
        middle = (least + limit) // 2
        if job("four-%d" % middle, 4, middle).plan()[1]["fits"]:
            least = middle
        else:
            limit = middle
    chosen = job("chosen", "auto", limit).plan()[1]
    assert chosen["fits"] and rows(chosen) in (1, 2), chosen
    same = job("same", rows(chosen))
    equal(same.run().returncode, 0)
    moved = job("moved", "auto", limit)
    p = moved.start()
    moved.wait_event(lambda e: e["type"] == "checkpoint")
    p.kill()
    if p.wait() == 0:
        raise TooLate
    moved.spec["placement"]["gpu_memory_limit"] = 0  # now four would fit
    rig.write_json(moved.path("spec.json"), moved.spec)
    equal(moved.run().returncode, 0)
    equal([rows(e["plan"]) for e in moved.events(type="plan")], [rows(chosen)])
    same_steps(moved, range(1, moved.last_attempt() + 1), same.losses())
    same_output(moved.output(), same.output())


def placement_on_disk(root):
    """Optimizer states on a volume: the same numbers, also behind kills while states are on their way."""
    changes = {"steps": 8 * 8, "validation": 6, "hyperparameters": {"batch_size": 32},
               "optimization": {"checkpoint_interval": 2, "micro_batch_size": 1}}
    here = Job(root, "cuda", placement={"policy": "cuda"}, **changes)
    equal(here.run().returncode, 0)
    host = Job(root, "host", placement={"policy": "cpu"}, **changes).plan()[1]["memory"]["host"]
    volume = os.path.join(root, "volume")
    os.mkdir(volume)
    placement = {"policy": "cpu", "host_memory_limit": host["total"] - host["optimizer"] // 2, "nvme_path": "fast"}
    fails(Job(root, "unmounted", placement=placement, **changes), "not_found", "placement.nvme_path", ["fast"])
    job = Job(root, "disk", placement=placement, **changes)
    job.spec["files"]["nvme"]["path"] = volume
    rig.write_json(job.path("spec.json"), job.spec)
    report = job.plan()[1]
    assert report["memory"]["nvme"]["optimizer"] > 0, report["memory"]
    assert report["memory"]["host"]["total"] <= placement["host_memory_limit"], report["memory"]
    assert report["links"]["disk_read"] > 0 and report["links"]["disk_write"] > 0, report["links"]
    for step in (1, 4):
        p = job.start()
        job.wait_step(step)
        job.kill_rank(p)
        equal(os.listdir(volume), [])  # the disk's file has no name: nothing is left of it
    equal(job.run().returncode, 0)
    same_steps(job, (1, 2, 3), here.losses())
    same_output(job.output(), here.output())
    last = job.events(3, "step")[-1]
    equal((last["nvme"]["peak"], last["nvme"]["planned_peak"]), (report["memory"]["nvme"]["total"],) * 2)
    assert last["disk_read_bytes"] > 0 and last["disk_write_bytes"] > 0, last
    # fetches wait for updates, and these for the disk: the work itself is what is left
    assert last["stalls"]["disk"] > 0 and last["update_seconds"] > 0, last
    small = Job(root, "small", placement=dict(placement, nvme_limit=4096), **changes)
    small.spec["files"]["nvme"]["path"] = volume
    rig.write_json(small.path("spec.json"), small.spec)
    fails(small, "insufficient_memory", None, ["short"])


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


def probe_serves_plans(root):
    job = Job(root, steps=5)
    equal(job.plan()[1].get("step_seconds"), None)
    path, profile = probed(job)
    equal(profile["kind"], "cpu")
    for rate in ("flops_f32", "flops_fp8", "attn64_fwd", "attn128_bwd", "memory_rate", "h2d_rate", "h2d_both_rate",
                 "d2h_both_rate", "host_memory_rate", "cpu_update_rate", "cpu_update_copy_rate", "cpu_update_aside_rate", "cpu_update_fp8_rate",
                 "cpu_update_fp8_copy_rate", "copy_update_rate", "copy_update_fp8_rate", "disk_read_rate", "disk_write_rate",
                 "disk_read_both_rate", "disk_write_both_rate"):
        assert 1e6 < profile[rate] < 1e16, (rate, profile[rate])
    # AdamW reads four floats a parameter and writes three; the load changes between the two
    assert profile["cpu_update_rate"] * 28 < 100 * profile["memory_rate"], profile
    code, plan = job.plan()
    equal((code, plan["basis"]), (0, "measured"))
    assert 0 < plan["step_seconds_bound"] <= plan["step_seconds"] < 1, plan["step_seconds"]
    equal(job.run().returncode, 0)
    for e in job.events(type="step"):
        equal(e["planned_seconds"], plan["step_seconds"])
    shown = [profile["cpu_update_rate"] * 28, profile["cpu_update_copy_rate"] * 28 + 2 * profile["copy_update_rate"]]
    assert profile["host_memory_rate"] > 0.999 * max(shown), profile
    rig.write_json(path, {**profile, "v": profile["v"] - 1})  # its numbers may mean something else
    stale = job.run("--plan", job.dir)
    equal(json.loads(stale.stdout).get("step_seconds"), None)
    assert path in stale.stderr and "castor-worker --probe" in stale.stderr, stale.stderr


def steps_that_wait_for_the_norm_are_planned_apart(root):
    """Updates that take most of a step, here by the profile: ahead of the norm where nothing clips, but for the first steps."""
    for name, norm in (("clips", 1e-3), ("never", 1e9), ("off", 0.0)):
        job = Job(root, name, steps=24, placement={"policy": "cpu"}, optimization={"max_grad_norm": norm})
        path, profile = probed(job)
        profile.update(cpu_update_rate=2e6, cpu_update_copy_rate=2e6, cpu_update_aside_rate=2e6, host_memory_rate=1e15,
                       memory_rate=1e15, flops_f32=2e9, h2d_rate=1e12, d2h_rate=1e12, h2d_both_rate=1e12, d2h_both_rate=1e12,
                       copy_update_rate=1e12)
        rig.write_json(path, profile)
        plan = job.plan()[1]
        equal(job.run().returncode, 0)
        steps = job.events(type="step")
        planned = {(e["planned_seconds"], e["bound_seconds"]) for e in steps}
        fast = plan["step_seconds"], plan["step_seconds_bound"]
        if name == "off":
            equal(("step_seconds_clipped" in plan, "step_seconds_clipped_bound" in plan, planned), (False, False, {fast}))
            continue
        slow = plan["step_seconds_clipped"], plan["step_seconds_clipped_bound"]
        assert fast[0] < 0.98 * slow[0] and fast[1] <= slow[1] <= slow[0], (fast, slow)  # no bound is by updates' own rate
        equal(steps[0]["planned_seconds"], slow[0])
        equal((name, planned), (name, {slow} if name == "clips" else {slow, fast}))


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
         micro_batch_need_not_divide, epochs_reshuffle, broken_models, bad_data, unsupported_specs, too_little_memory,
         alternatives, alternatives_to_a_refusal, micro_batch_left_open, placement_never_changes_the_numbers, placement_on_disk, not_finite,
         check_command, probe_serves_plans, steps_that_wait_for_the_norm_are_planned_apart, usage, model_from_hub, hub_faults]

if __name__ == "__main__":
    rig.main(CASES, __doc__)
