#!/usr/bin/env python3
"""What castor-worker plans for a job, by itself and when it trains: memory, its limits and what else would fit, disks, a probed machine's seconds."""
import json
import os

import rig
from rig import Job, TooLate, equal, fails, same_output, same_steps


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
    assert 1 <= profile["disk_best"] < 100, profile["disk_best"]
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


CASES = [too_little_memory, alternatives, alternatives_to_a_refusal, micro_batch_left_open,
         placement_never_changes_the_numbers, placement_on_disk, probe_serves_plans,
         steps_that_wait_for_the_norm_are_planned_apart]

if __name__ == "__main__":
    rig.main(CASES, __doc__)
