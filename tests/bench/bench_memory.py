"""Training models that are larger than the GPU, or than the memory that a job may use of it. Run by `make bench-memory`.

usage: bench_memory.py --build DIR [--work DIR] [--volume DIR] [--steps N] [--clip off|idle|on|both|all] [CASE...]

A case is a model's shape with random weights, trained by castor-worker under a cap of GPU memory. A cap is held by a
ballast: a process that takes all but that much of the GPU, so that contexts, workspaces and whatever else a run takes
count as well. "clip off" trains with max_grad_norm 0, "on" with a norm so small that every step is clipped, "idle" with
one so large that none is; "both" is off and on.
Where a case has states on a disk, it is that of the volume's directory (the work directory if none is given).
The machine's profile (castor-worker --probe) is made first. Prints for each run

  tokens a second and seconds a step, measured and predicted; T*/T, the bound over the measured time;
  peak memory of all tiers, planned and measured; bytes a step on each link; stalls of the compute queue by cause

and one line `bench: CASE ours X peer Y unit tok/s ratio R` with the median of the steps behind the warm-up. The peers'
figures are published ones, or were measured on the same kind of machine by themselves (RESULTS.md says which).
"""
import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time

import bench_gpu as shapes
from bench_gpu import rig

WARM_UP, LIMIT_S = 2, 200
GIB = 1 << 30
LINKS = ("h2d_bytes", "d2h_bytes", "disk_read_bytes", "disk_write_bytes")

# name: config, rows of a step, rows of a micro-batch, states, cap of GPU memory (None = all of it), peer's tokens a second
CASES = {
    "opt-1.3b-4g": (shapes.opt(2048, 24, 32), 8, 8, "fp32", 4.0, None),
    "opt-1.3b-nvme": (shapes.opt(2048, 24, 32), 8, 8, "fp32", None, None),
    "opt-2.7b": (shapes.opt(2560, 32, 32), 8, 8, "fp32", 7.0, 3002),
    "opt-6.7b": (shapes.opt(4096, 32, 32), 8, 8, "fp32", 8.3, 1227),
    "opt-6.7b-least": (shapes.opt(4096, 32, 32), 8, 8, "least", 8.3, 1227),
    "opt-6.7b-80g": (shapes.opt(4096, 32, 32), 8, 8, "fp32", None, 1227),
    "gpt2-1558m": (shapes.gpt2(1600, 48, 25), 16, 4, "fp32", 6.0, None),
    "gpt2-1558m-remade": (shapes.gpt2(1600, 48, 25), 16, 4, "fp32", 30.0, None),  # all resident, layers recomputed
    "gpt2-1558m-80g": (shapes.gpt2(1600, 48, 25), 16, 4, "fp32", None, None),
    "qwen2.5-7b-65k": (shapes.qwen2(3584, 28, 28, 4, 18944, 152064, False), 64, 8, "fp32", 23.5, 9515),
    "qwen2.5-7b-16k": (shapes.qwen2(3584, 28, 28, 4, 18944, 152064, False), 16, 8, "fp32", 23.5, 6370),
    "qwen2.5-7b-16k-least": (shapes.qwen2(3584, 28, 28, 4, 18944, 152064, False), 16, 8, "least", 23.5, 6370),
    "opt-13b": (shapes.opt(5120, 40, 40), 32, 8, "fp32", None, None),
}
NORMS = {"off": 0.0, "idle": 1e9, "on": 1e-3}
POLICY = {"gpt2-1558m-remade": "cuda", "opt-1.3b-nvme": "cpu"}  # else auto
HOST_GIB = {"opt-1.3b-nvme": 8.0}  # where host memory has a limit; what it does not hold lies on the disk
LENGTH = 1024


# ---- the cap ----------------------------------------------------------------------------------------------------

def hold(gib):
    """The ballast's process: take all of the GPU but so much, say so, and wait for the end of the input."""
    cuda = next(c for c in (try_load("libcudart.so.13"), try_load("libcudart.so")) if c)
    free, total, at = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_void_p()
    assert cuda.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)) == 0
    take = free.value - int(gib * GIB)
    assert take > 0 and cuda.cudaMalloc(ctypes.byref(at), ctypes.c_size_t(take)) == 0
    print("held", flush=True)
    sys.stdin.read()


def try_load(name):
    for directory in ("", "/usr/local/cuda/lib64/"):
        try:
            return ctypes.CDLL(directory + name)
        except OSError:
            pass
    return None


class Ballast:
    def __init__(self, gib):
        self.process = None
        if gib is not None:
            self.process = subprocess.Popen([sys.executable, os.path.abspath(__file__), "--hold", str(gib)],
                                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert self.process.stdout.readline() == "held\n"

    def drop(self):
        if self.process:
            self.process.communicate()
            self.process = None


# ---- runs -------------------------------------------------------------------------------------------------------

def write_job(root, data, model, name, clip, volume):
    _, rows, micro, states, _, _ = CASES[name]
    shapes.write_job(root, data, model, rows, LENGTH, micro, states)
    path = os.path.join(root, "spec.json")
    with open(path, encoding="utf-8") as f:
        spec = json.load(f)
    spec["placement"]["policy"] = POLICY.get(name, "auto")
    if name in HOST_GIB:
        spec["placement"].update(host_memory_limit=int(HOST_GIB[name] * GIB), nvme_path="bench")
        spec["files"]["nvme"] = {"path": volume}
    spec["optimization"]["max_grad_norm"] = NORMS[clip]
    if rows == micro:  # gradients that travel in bf16 anyway: no number changes
        spec["precision"]["gradients"] = "bf16"
    rig.write_json(path, spec)


def run_job(worker, root, steps):
    """(step events behind the warm-up, plan report) or (None, why)."""
    path = os.path.join(root, "attempt-1", "events.jsonl")
    process = subprocess.Popen([worker, root], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline, events, done = time.monotonic() + LIMIT_S, [], []
    while len(done) < WARM_UP + steps and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
        events = shapes.read_events(path)
        done = [e for e in events if e["type"] == "step"]
    with open(os.path.join(root, "control.jsonl"), "a", encoding="utf-8") as f:
        f.write(json.dumps({"v": 1, "id": "ctl-1", "t": time.time(), "type": "cancel"}) + "\n")
    try:
        words = process.communicate(timeout=60)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        words = process.communicate()[1]
    if len(done) < WARM_UP + steps:
        failed = [e for e in shapes.read_events(path) if e["type"] == "failed"]
        return None, failed[-1]["message"] if failed else "%d steps; %s" % (len(done), words[-1500:])
    plan = next(e for e in events if e["type"] == "plan")
    begun = {e["phase"]: e["t"] for e in events if e["type"] == "phase"}
    return (done, plan["plan"], begun), None


def median(steps, key):
    return statistics.median(key(s) for s in steps)


def show(name, config, steps, plan, begun):
    measured = steps[WARM_UP:]
    seconds, tokens = median(measured, lambda s: s["seconds"]), measured[-1]["tokens"]
    predicted, bound = plan.get("step_seconds"), plan.get("step_seconds_bound")
    n = len(measured)
    links = [(steps[-1][k] - steps[WARM_UP - 1][k]) / n / 1e9 for k in LINKS]
    mfu = shapes.token_flops(config, LENGTH) * tokens / seconds / shapes.DATASHEET
    tiers = ["%s %.2f planned %.2f measured GiB" % (t, measured[-1][t]["planned_peak"] / GIB, measured[-1][t]["peak"] / GIB)
             for t in ("gpu", "host", "nvme") if measured[-1][t]["planned_peak"] > 0]
    print("%s: %.3f s a step, %.0f tok/s, MFU %.1f %%; predicted %.3f s (%+.0f %%), T* %.3f s, T*/T %.2f" % (
        name, seconds, tokens / seconds, 100 * mfu, predicted, 100 * (predicted / seconds - 1), bound, bound / seconds))
    print("    %s; h2d %.2f d2h %.2f disk read %.2f write %.2f GB a step; loss %.4f norm %.3f; loading %.0f s" % (
        "; ".join(tiers), *links, measured[-1]["loss"], measured[-1]["grad_norm"],
        begun.get("training", 0) - begun.get("loading", 0)))
    stalls = {k: median(measured, lambda s, k=k: s["stalls"][k]) for k in measured[-1].get("stalls", {})}
    print("    stalls %s s; updates on the CPU %.3f s, %.0f %% of the parameters; clipped %d of %d, redone %d" % (
        ", ".join("%s %.3f" % kv for kv in stalls.items()), median(measured, lambda s: s["update_seconds"]),
        100 * measured[-1]["cpu_update_share"], steps[-1]["clipped_steps"], len(steps), steps[-1]["redone_steps"]))
    sys.stdout.flush()
    return tokens / seconds


def bench(name, options, work):
    config, rows, _, _, cap, peer = CASES[name]
    model, data = os.path.join(work, "model"), os.path.join(work, "train.jsonl")
    os.makedirs(model)
    rig.write_json(os.path.join(model, "config.json"), config)
    shapes.write_tokenizer(model)
    shapes.write_weights(model, config)
    shapes.write_data(data, rows * (WARM_UP + options.steps + 6), LENGTH)
    fine, best = True, 0
    for clip in {"both": ["off", "on"], "all": list(NORMS)}.get(options.clip, [options.clip]):
        label = "%s clip %s" % (name, clip)
        job = os.path.join(work, "job-" + clip)
        write_job(job, data, model, name, clip, options.volume or work)
        ballast = Ballast(cap)
        try:
            run, why = run_job(os.path.join(options.build, "castor-worker"), job, options.steps)
        finally:
            ballast.drop()
        fine &= run is not None
        if run is None:
            print("%s failed: %s" % (label, why), flush=True)
            continue
        speed = show(label, config, *run)
        best = max(best, speed)
    if best > 0:
        print("bench: %s ours %.0f peer %.0f unit tok/s ratio %.3f" % (
            name, best, peer or float("nan"), best / (peer or float("nan"))), flush=True)
    return fine


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--hold", type=float)
    parser.add_argument("--build")
    parser.add_argument("--work", default=None)
    parser.add_argument("--volume", default=None)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--clip", default="both")
    parser.add_argument("cases", nargs="*", default=list(CASES))
    options = parser.parse_args()
    if options.hold is not None:
        hold(options.hold)
        return 0
    volume = [options.volume or options.work] if options.volume or options.work else []
    subprocess.run([os.path.join(options.build, "castor-worker"), "--probe", *volume], check=True)
    return shapes.run_cases(options.cases or CASES, bench, options)


if __name__ == "__main__":
    sys.exit(main())
