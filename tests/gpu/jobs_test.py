#!/usr/bin/env python3
"""Jobs on a GPU, end to end: the same job gives the same bits, killed or not, fp16 scales its losses, what does not fit
says so, and a fault of the device fails its job and nothing else. With --device cpu those that a CPU can run, to try them
without a GPU."""
import argparse
import os
import random
import re
import shutil
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
import rig  # noqa: E402
from rig import RESUMABLE, Job, TooLate, differences, finish, same_steps  # noqa: E402
from service_test import body, create, long_job, service, upload, wait_end, wait_step  # noqa: E402

GPU = {"device": "gpu"}


def equal(got, want):
    assert got == want, "%r is not %r" % (got, want)


def job(root, name, compute, steps=24, **more):
    precision = {"compute": compute, **more.pop("precision", {})}
    return Job(root, name, steps=steps, precision=precision, resources=GPU, **more)


def same_job_same_bits(root):
    for compute, states in (("fp32", {}), ("bf16", {}), ("fp16", {}),
                            ("bf16", {"master": "bf16", "gradients": "bf16", "optimizer_state": "bf16"})):
        runs = [job(root, "%s-%d-%d" % (compute, len(states), k), compute, precision=states) for k in range(2)]
        for run in runs:
            equal(run.run().returncode, 0)
        equal(runs[0].losses(), runs[1].losses())
        equal(differences(runs[0].output(), runs[1].output()), [])


def fp8_anywhere_same_bits(root):
    runs = [job(root, policy, "fp8", placement={"policy": policy}) for policy in ("cuda", "cpu", "auto")]
    for run in runs:
        equal(run.run().returncode, 0)
        equal(run.losses(), runs[0].losses())
        equal(differences(run.output(), runs[0].output()), [])
    losses = runs[0].losses()
    assert losses[len(losses)][0] < losses[1][0] - 0.5, losses


def killed_in_a_step_resumes(root):
    """Offloaded, optimizer states on a disk. From the second attempt on the products' algorithms are known from the job's
    directory alone."""
    volume = os.path.join(root, "volume")
    os.makedirs(volume)
    changes = {**RESUMABLE, "resources": GPU, "placement": {"policy": "cpu"},
               "optimization": {**RESUMABLE["optimization"], "eval_interval": 0, "checkpoint_interval": 8}}
    host = Job(root, "planned", **changes).plan()[1]["memory"]["host"]
    changes["placement"].update(nvme_path="fast", host_memory_limit=host["total"] - host["optimizer"] // 2)

    def offloaded(name):
        job = Job(root, name, **changes)
        job.spec["files"]["nvme"]["path"] = volume
        rig.write_json(job.path("spec.json"), job.spec)
        return job

    whole, cut = offloaded("whole"), offloaded("cut")
    equal(whole.run().returncode, 0)
    assert whole.events(type="plan")[-1]["plan"]["memory"]["nvme"]["optimizer"] > 0
    for attempt, step in enumerate((random.randint(8, 14), random.randint(16, 22)), 1):
        process = cut.start()
        cut.wait_step(step, attempt=attempt)
        time.sleep(random.uniform(0, 0.02))
        cut.kill_rank(process)
        rank = cut.exit()["ranks"][0]
        equal(rank["signal"], 9)
        if not rank["where"].startswith("train "):
            raise TooLate
        shutil.rmtree(os.path.join(cut.env["XDG_CACHE_HOME"], "castor"), ignore_errors=True)
    equal(cut.run().returncode, 0)
    same_steps(cut, (1, 2, 3), whole.losses())
    equal(differences(cut.output(), whole.output()), [])
    equal(os.listdir(volume), [])


def resumes_with_its_loss_scale(root):
    whole = job(root, "whole", "fp16")
    equal(whole.run().returncode, 0)
    steps = whole.events(type="step")
    assert all(e["loss_scale"] > 0 and e["skipped_steps"] >= 0 for e in steps), steps[-1]
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.5, (steps[0]["loss"], steps[-1]["loss"])
    cut = job(root, "cut", "fp16", optimization={"checkpoint_interval": 5})
    process = cut.start()
    cut.wait_step(8)
    cut.control("pause")
    equal(finish(process), 0)
    equal(cut.end()["reason"], "paused")
    equal(cut.run().returncode, 0)
    equal({**cut.losses(1), **cut.losses(2)}, whole.losses())
    scales = {e["step"]: (e["loss_scale"], e["skipped_steps"]) for k in (1, 2) for e in cut.events(k, "step")}
    equal(scales, {e["step"]: (e["loss_scale"], e["skipped_steps"]) for e in steps})
    equal(differences(cut.output(), whole.output()), [])


def too_little_memory(root):
    small = job(root, "small", "bf16", placement={"policy": "cuda", "gpu_memory_limit": 20000})
    code, report = small.plan()
    equal((code, report["error"]["code"]), (1, "device_oom"))
    equal(small.run().returncode, 1)
    end = small.end()
    equal((end["type"], end["reason"]), ("failed", "insufficient_memory"))
    for word in ("MiB", "short"):
        assert word in end["message"], end["message"]


def memory_that_is_gone_when_it_is_claimed(root):
    """What was asked, what was free, and what fits in what is left."""
    taken = job(root, "taken", "bf16", placement={"policy": "cuda"})
    claim = taken.plan()[1]["memory"]["gpu"]["total"]
    env = dict(taken.env)
    taken.env.update(LD_PRELOAD=os.path.join(os.path.dirname(Job.worker), "tests/fault/fail_claim.so"),
                     FAULT_BYTES=str(claim))
    equal(taken.run().returncode, 1)
    end = taken.end()
    equal((end["type"], end["reason"]), ("failed", "insufficient_memory"))
    for words in ("the job's device arena needs %d bytes" % claim, "are free. In what is left now the job fits, with",
                  "start it again"):
        assert words in end["message"], end["message"]
    taken.env = env
    equal(taken.run().returncode, 0)


def profiles_a_step(root):
    profiled = job(root, "profiled", "bf16")
    done = profiled.run("--profile", profiled.dir)
    equal(done.returncode, 0)
    assert done.stdout.splitlines()[-1].startswith("profile: "), done.stdout


def plans_from_a_stored_profile(root):
    """A GPU that has been measured is not opened to plan for it: an imaginary one's memory and rates are believed."""
    planned = job(root, "planned", "bf16", placement={"policy": "cpu"})
    code, opened = planned.plan()
    equal((code, "step_seconds" in opened), (0, False))
    path = os.path.join(planned.env["XDG_CACHE_HOME"], "castor", "profile-cuda.json")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    rig.write_json(path, rig.IMAGINARY_GPU)
    code, report = planned.plan()
    equal((code, report["device"]["name"], report["basis"]), (0, "Imaginary", "measured"))
    assert 0 < report["memory"]["gpu"]["limit"] <= 79 << 30, report["memory"]["gpu"]
    assert 0 < report["step_seconds_bound"] <= report["step_seconds"] < 1, report["step_seconds"]
    rig.write_json(path, {**rig.IMAGINARY_GPU, "h2d_rate": 1e5})
    assert planned.plan()[1]["step_seconds"] > 10 * report["step_seconds"]


def a_fault_fails_its_job_alone(root):
    """Products of the running job begin to read where nothing is; castord and the next job know nothing of it."""
    armed = os.path.join(root, "armed")
    library = os.path.join(os.path.dirname(Job.worker), "tests/fault/fail_product.so")
    preload = {"LD_PRELOAD": library, "FAULT_FILE": armed}
    os.environ.update(preload)
    try:
        server = service(root)
    finally:
        for name in preload:
            del os.environ[name]
    with server as c:
        doomed = long_job(c, root, resources=GPU)
        wait_step(c, doomed, 3)
        open(armed, "w").close()
        failed = wait_end(c, doomed)
        os.remove(armed)
        equal(failed["status"], "failed")
        message = failed["error"]["message"]
        where = re.search(r"step (\d+), train (FORWARD|BACKWARD) block (\d+) ", message)
        assert where and int(where[1]) > 3, message
        healthy = create(c, body(root, upload(c), resources=GPU))
        equal(wait_end(c, healthy)["status"], "succeeded")
        equal(c.process.poll(), None)


ON_CPU = [killed_in_a_step_resumes]
ON_GPU = [same_job_same_bits, fp8_anywhere_same_bits, resumes_with_its_loss_scale, too_little_memory,
          memory_that_is_gone_when_it_is_claimed, profiles_a_step,
          plans_from_a_stored_profile, a_fault_fails_its_job_alone]

if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    own, sys.argv[1:] = parser.parse_known_args()
    GPU["device"] = own.device
    rig.main(ON_CPU + (ON_GPU if own.device == "gpu" else []), __doc__)
