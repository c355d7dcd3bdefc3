"""Training models that are larger than the GPU, or than the memory that a job may use of it. Run by `make bench-memory`.

usage: bench_memory.py --build DIR [--python PYTHON] [--work DIR] [--volume DIR] [--steps N] [--peer-steps N]
                       [--clip off|idle|on|both|all] [--no-peer] [--probed] [CASE...]

A case is a model's shape with random weights, trained by castor-worker under a cap of GPU memory. A cap is held by a
ballast: a process that takes all but that much of the GPU, so that contexts, workspaces and whatever else a run takes
count as well. "clip off" trains with max_grad_norm 0, "on" with a norm so small that every step is clipped, "idle" with
one so large that none is; "both" is off and on.
Cases that PyTorch's FSDP2 with weights in host memory can run too have it as their peer, in the same run on the same
GPU (peer_fsdp.py by PYTHON, one with torch and transformers): first the peer, whose ballast grows until it does not run
any more, or by a twentieth slower; then ours under the same cap. What it measures is the median of all its steps that
were no slower than that. The other peers, DeepSpeed and LLMQ, are not installed where this runs: LLMQ's figures, and
FSDP2's with --no-peer, were measured earlier on the same kind of machine (RESULTS.md); DeepSpeed has none.
Where a case has states on a disk, it is that of the volume's directory (the work directory if none is given).
The machine's profile (castor-worker --probe) is made first, unless --probed says that it is there. Prints for each run

  tokens a second and seconds a step, measured and predicted; T*/T, the bound over the measured time;
  peak memory of all tiers, planned and measured; bytes a step on each link; stalls of the compute queue by cause

and a line `bench: CASE ours X peer Y unit tok/s ratio R` with the median of the steps behind the warm-up, and one of
CASE-clipped; without `peer Y` and `ratio R` where there is no peer. A job that could clip but does not tries updates
ahead of the norm in its first steps; it is measured behind these. The whole takes most of an hour; cases and --clip cut
it into parts, and neighbours of one shape share its files.
"""
import argparse
import ctypes
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import bench_gpu as shapes
from bench_gpu import rig

WARM_UP, LIMIT_S = 2, 200
TRIAL = 18  # steps in which a job that never clips has tried updates ahead of the norm (worker/train/speculation.h)
GIB = 1 << 30
LINKS = ("h2d_bytes", "d2h_bytes", "disk_read_bytes", "disk_write_bytes")

# Peers' tokens a second as measured earlier, by clip. FSDP2's norm of gradients in host memory takes most of its step.
FSDP_2_7B, FSDP_6_7B = {"off": 5924, "on": 2678}, {"on": 1227}
LLMQ_65K, LLMQ_16K = ({"off": speed, "on": speed} for speed in (9515, 6370))
# name: config, rows of a step, rows of a micro-batch, states, cap of GPU memory (None = all of it), peer
CASES = {
    "opt-1.3b-4g": (shapes.opt(2048, 24, 32), 8, 8, "fp32", 4.0, {}),
    "opt-1.3b-nvme": (shapes.opt(2048, 24, 32), 8, 8, "fp32", None, {}),
    "opt-2.7b": (shapes.opt(2560, 32, 32), 8, 8, "fp32", 8.11, FSDP_2_7B),
    "opt-6.7b": (shapes.opt(4096, 32, 32), 8, 8, "fp32", 8.3, FSDP_6_7B),
    "opt-6.7b-least": (shapes.opt(4096, 32, 32), 8, 8, "least", 8.3, FSDP_6_7B),
    "opt-6.7b-80g": (shapes.opt(4096, 32, 32), 8, 8, "fp32", None, FSDP_6_7B),
    "gpt2-1558m": (shapes.gpt2(1600, 48, 25), 16, 4, "fp32", 6.0, {}),
    "gpt2-1558m-remade": (shapes.gpt2(1600, 48, 25), 16, 4, "fp32", 27.0, {}),  # all resident, layers recomputed
    "gpt2-1558m-80g": (shapes.gpt2(1600, 48, 25), 16, 4, "fp32", None, {}),
    "qwen2.5-7b-65k": (shapes.qwen2(3584, 28, 28, 4, 18944, 152064, False), 64, 8, "fp32", 23.5, LLMQ_65K),
    "qwen2.5-7b-16k": (shapes.qwen2(3584, 28, 28, 4, 18944, 152064, False), 16, 8, "fp32", 23.5, LLMQ_16K),
    "qwen2.5-7b-16k-least": (shapes.qwen2(3584, 28, 28, 4, 18944, 152064, False), 16, 8, "least", 23.5, LLMQ_16K),
    "opt-13b": (shapes.opt(5120, 40, 40), 32, 8, "fp32", None, {}),
}
FSDP = ("opt-2.7b", "opt-6.7b")  # cases with that peer; their caps are its least one as measured once, and its tensors'
SLOWER, SPARE = 1.05, 64 << 20
NORMS = {"off": 0.0, "idle": 1e9, "on": 1e-3}
POLICY = {"gpt2-1558m-remade": "cuda", "opt-1.3b-nvme": "cpu"}  # else auto
HOST_GIB = {"opt-1.3b-nvme": 8.0}  # where host memory has a limit; what it does not hold lies on the disk
LENGTH = 1024


# ---- the cap ----------------------------------------------------------------------------------------------------

def free_memory(cuda):
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    assert cuda.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)) == 0
    return free.value


def hold(gib):
    """The ballast's process: say how many bytes are free beside it, take all but so much, wait for the end of the input."""
    cuda = next(c for c in (try_load("libcudart.so.13"), try_load("libcudart.so")) if c)
    at, free = ctypes.c_void_p(), free_memory(cuda)
    take = free - int(min(gib * GIB, free))
    assert take == 0 or cuda.cudaMalloc(ctypes.byref(at), ctypes.c_size_t(take)) == 0
    print(free, flush=True)
    sys.stdin.read()


def try_load(name):
    for directory in ("", "/usr/local/cuda/lib64/"):
        try:
            return ctypes.CDLL(directory + name)
        except OSError:
            pass
    return None


class Ballast:
    """Leaves so much of the GPU free (None = all of it) until it is dropped; `free` was free before it."""

    def __init__(self, gib):
        self.process = None
        if gib is not None:
            self.process = subprocess.Popen([sys.executable, os.path.abspath(__file__), "--hold", str(gib)],
                                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.free = int(self.process.stdout.readline())

    def drop(self):
        if self.process:
            self.process.communicate()
            self.process = None


def free_now():
    ballast = Ballast(float("inf"))
    ballast.drop()
    return ballast.free


# ---- the peer ---------------------------------------------------------------------------------------------------

class Fsdp:
    """peer_fsdp.py on a model; it warms up while the caller does something else."""

    def __init__(self, python, model, rows):
        self.free = free_now() if shapes.DEVICE == "gpu" else 0
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "peer_fsdp.py")
        self.words = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [python, script, model, "--rows", str(rows), "--length", str(LENGTH), "--device",
             "cuda" if shapes.DEVICE == "gpu" else "cpu"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.words, text=True)

    def read(self):
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        self.words.seek(0)
        return {"failed": self.words.read()[-800:]}

    def ask(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.read()

    def steps(self, n, clip="off"):
        """So many, fewer where one fails."""
        answers = []
        while len(answers) < n and not (answers and "failed" in answers[-1]):
            answers.append(self.ask(clip))
        return answers

    def drop(self):
        """Also one that is not done yet."""
        self.process.kill()
        self.process.communicate()
        self.words.close()


def least_cap(peer, steps, n):
    """Under ballasts from what the allocator took to what the tensors need at least, until a step does not run, or slower
    than a twentieth. (The least cap in bytes at which it ran, the answers of all steps without clipping.)"""
    limit, first = SLOWER * min(s["seconds"] for s in steps), steps[-1]
    peer.ask("rest")
    rest, most, least = peer.free - free_now(), first["reserved"], first["peak"]
    found = rest + most - first["allocated"]
    for share in (0.0, 0.5, 1.0) if most - least > SPARE else (1.0,):
        need = most - share * (most - least) + SPARE - first["allocated"]
        ballast = Ballast(need / GIB)
        answers = peer.steps(n)
        ballast.drop()
        fast = [a for a in answers if "failed" not in a and a["seconds"] <= limit]
        print("    FSDP2 within %.2f GiB: %s" % ((rest + need) / GIB, "; ".join(
            a.get("failed") or "%.3f s" % a["seconds"] for a in answers)), flush=True)
        if not fast:
            break
        found, steps = rest + need, steps + fast
        peer.ask("rest")
    limit = SLOWER * min(s["seconds"] for s in steps)
    return found, [s for s in steps if s["seconds"] <= limit]


def measure_fsdp(name, peer, n, clipped):
    """({clip: tokens a second}, its least cap in GiB), or (None, None) where it failed; n steps at a time, of them also
    clipped ones."""
    ready = peer.read()
    by_clip = {} if "failed" in ready else {clip: peer.steps(n, clip) for clip in (("on", "off") if clipped else ("off",))}
    for answer in [ready] + [a for answers in by_clip.values() for a in answers]:
        if "failed" in answer:
            print("%s FSDP2 failed: %s" % (name, answer["failed"]), flush=True)
            return None, None
    last = by_clip["off"][-1]
    seconds = "; ".join("clip %s %s" % (clip, ", ".join("%.3f" % a["seconds"] for a in steps)) for clip, steps in by_clip.items())
    print("%s FSDP2 without a cap: %s s; tensors %.2f GiB, allocator %.2f GiB" % (
        name, seconds, last["peak"] / GIB, last["reserved"] / GIB), flush=True)
    cap = None
    if shapes.DEVICE == "gpu":
        cap, by_clip["off"] = least_cap(peer, by_clip["off"], n)
    speeds = {clip: CASES[name][1] * LENGTH / median(steps, lambda s: s["seconds"]) for clip, steps in by_clip.items()}
    print("%s FSDP2 %s; least cap %s" % (name, ", ".join("clip %s %.0f tok/s" % cs for cs in speeds.items()),
                                         "%.2f GiB" % (cap / GIB) if cap else "not sought"), flush=True)
    return speeds, cap / GIB if cap else None


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


def run_job(worker, root, steps, before=0):
    """(step events, as many as measured and WARM_UP in front, plan report, times of phases) or (None, why). Steps `before` these
    do not count."""
    path = os.path.join(root, "attempt-1", "events.jsonl")
    process = subprocess.Popen([worker, root], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline, events, done = time.monotonic() + LIMIT_S, [], []
    try:
        while len(done) < before + WARM_UP + steps and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
            events = shapes.read_events(path)
            done = [e for e in events if e["type"] == "step"]
    except SystemExit:
        process.kill()  # its rank ends with it
        raise
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
    return (done[-WARM_UP - steps:], plan["plan"], begun), None


def median(steps, key):
    return statistics.median(key(s) for s in steps)


def show(name, clip_on, config, steps, plan, begun):
    measured = steps[WARM_UP:]
    seconds, tokens = median(measured, lambda s: s["seconds"]), measured[-1]["tokens"]
    waits = clip_on and "step_seconds_clipped" in plan  # every step's updates wait for the norm
    key = "step_seconds_clipped" if waits else "step_seconds"
    predicted, bound = plan.get(key), plan.get(key + "_bound")
    n = len(measured)
    links = [(steps[-1][k] - steps[WARM_UP - 1][k]) / n / 1e9 for k in LINKS]
    mfu = shapes.token_flops(config, LENGTH) * tokens / seconds / shapes.DATASHEET
    tiers = ["%s %.2f planned %.2f measured GiB" % (t, measured[-1][t]["planned_peak"] / GIB, measured[-1][t]["peak"] / GIB)
             for t in ("gpu", "host", "nvme") if measured[-1][t]["planned_peak"] > 0]
    plain = "%s: %.3f s a step, %.0f tok/s, MFU %.1f %%" % (name, seconds, tokens / seconds, 100 * mfu)
    if predicted and bound:  # known where the machine has been probed
        plain += "; predicted %.3f s (%+.0f %%), T* %.3f s, T*/T %.2f" % (
            predicted, 100 * (predicted / seconds - 1), bound, bound / seconds)
    print(plain)
    print("    %s; h2d %.2f d2h %.2f disk read %.2f write %.2f GB a step; loss %.4f norm %.3f; loading %.0f s" % (
        "; ".join(tiers), *links, measured[-1]["loss"], measured[-1]["grad_norm"],
        begun.get("training", 0) - begun.get("loading", 0)))
    stalls = {k: median(measured, lambda s, k=k: s["stalls"][k]) for k in measured[-1].get("stalls", {})}
    print("    stalls %s s; updates on the CPU %.3f s, %.0f %% of the parameters; clipped %d steps, redone %d" % (
        ", ".join("%s %.3f" % kv for kv in stalls.items()), median(measured, lambda s: s["update_seconds"]),
        100 * measured[-1]["cpu_update_share"], steps[-1]["clipped_steps"], steps[-1]["redone_steps"]))
    sys.stdout.flush()
    return tokens / seconds


def run_clips(name, options, work, model, data, cap):
    """{clip: tokens a second} of ours within the cap, and whether every run came to its end."""
    speeds, fine = {}, True
    for clip in {"both": ["off", "on"], "all": list(NORMS)}.get(options.clip, [options.clip]):
        label, job = "%s clip %s" % (name, clip), os.path.join(work, "%s-%s" % (name, clip))
        write_job(job, data, model, name, clip, options.volume or work)
        ballast = Ballast(cap)
        try:
            run, why = run_job(os.path.join(options.build, "castor-worker"), job, options.steps, TRIAL if clip == "idle" else 0)
        finally:
            ballast.drop()
        if run is None:
            fine = False
            print("%s failed: %s" % (label, why), flush=True)
        else:
            speeds[clip] = show(label, clip == "on", CASES[name][0], *run)
        shutil.rmtree(job)
    return speeds, fine


def report(name, speeds, known, measured, cap):
    """Lines of what ran, beside the peer measured now or else the known figure."""
    for clip, speed in speeds.items():
        peer = (measured or known).get("on" if clip == "on" else "off", float("nan"))
        shapes.compare(name + {"off": "", "on": "-clipped"}.get(clip, "-" + clip), speed, peer)
    words = ["cap %.2f GiB" % cap if cap else "no cap"]
    words += ["peer in this run"] if measured else ["peer measured earlier on this kind of machine"] if known else []
    if {"on", "off"} <= set(speeds):
        words.append("clipped at %.0f %% of clip off" % (100 * speeds["on"] / speeds["off"]))
    print("    %s: %s" % (name, ", ".join(words)), flush=True)


def bench(names, options, work):
    """Cases of one model's shape."""
    config, most = CASES[names[0]][0], max(CASES[n][1] for n in names)
    peer, inputs, fine = None, None, True
    measured, least = None, None  # the peer's, also for the cases behind its own
    try:
        for name in names:
            _, rows, _, _, cap, known = CASES[name]
            if name in FSDP and not options.no_peer:
                peer = Fsdp(options.python, write_config(work, config), rows)
            inputs = inputs or shapes.write_inputs(work, config, most, LENGTH, WARM_UP + options.steps + TRIAL + 6)
            if peer:
                measured, least = measure_fsdp(name, peer, options.peer_steps, options.clip in ("on", "both", "all"))
                peer.drop()
                peer, fine = None, fine and measured is not None
            cap = cap and least or cap
            speeds, done = run_clips(name, options, work, *inputs, cap if shapes.DEVICE == "gpu" else None)
            report(name, speeds, known, measured, cap)
            fine = fine and done
    finally:
        if peer:
            peer.drop()
    return fine


def write_config(work, config):
    """For the peer, which needs no weights and begins before they are written."""
    directory = os.path.join(work, "config")
    os.makedirs(directory, exist_ok=True)
    rig.write_json(os.path.join(directory, "config.json"), config)
    return directory


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--hold", type=float)
    parser.add_argument("--build")
    parser.add_argument("--python", default="python3")
    parser.add_argument("--work", default=None)
    parser.add_argument("--volume", default=None)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--peer-steps", type=int, default=2)
    parser.add_argument("--clip", default="both")
    for name in ("no-peer", "probed"):
        parser.add_argument("--" + name, action="store_true")
    parser.add_argument("cases", nargs="*", default=list(CASES))
    options = parser.parse_args()
    if options.hold is not None:
        hold(options.hold)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no process of a run outlives this one
    volume = [options.volume or options.work] if options.volume or options.work else []
    if not options.probed:
        subprocess.run([os.path.join(options.build, "castor-worker"), "--probe", *volume], check=True)
    groups = [list(g) for _, g in itertools.groupby(options.cases or CASES, lambda name: CASES[name][0])]
    return shapes.run_cases(groups, bench, options)


if __name__ == "__main__":
    sys.exit(main())
