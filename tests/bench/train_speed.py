#!/usr/bin/env python3
"""A training step of SmolLM2-135M's shape in float32 beside PyTorch, on this machine's CPU.

usage: train_speed.py BUILD PEER_PYTHON [--rows N] [--length N] [--rounds N] [--steps N] [--no-peer]

Random weights of that shape, rows of LENGTH tokens that are all targets, AdamW with clipping, no recomputation asked
for, as many threads as there are cores on both sides. Ours is castor-worker on a job directory, as castord would write
it; the peer is peer_train.py, once plain and once through torch.compile. They take turns, ROUNDS times; the first step
of a turn warms up. Variables that would choose a kernel are taken out of the environment, so both sides use what their
library chooses; both are printed. Threads that wait sleep on both sides: spinning ones
cost several times the step as soon as anything else runs here, and the processor seconds of a step, which other load
hardly changes, would count them as work. A line a turn, then

  bench: train-smollm2-135m ours X peer Y unit tok/s ratio R

of the median of all steps (the peer's faster form) and its memory's counterpart with the peak resident sizes.
"""
import argparse
import ctypes
import ctypes.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import bench_gpu  # noqa: E402
from bench_gpu import rig  # noqa: E402

LIMIT_S = 1800
SMOLLM2_135M = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 576, "num_hidden_layers": 30,
                "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152,
                "tie_word_embeddings": True, "hidden_act": "silu", "max_position_embeddings": 8192,
                "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "attention_bias": False, "attention_dropout": 0.0,
                "bos_token_id": 2, "eos_token_id": 2}


class DnnlVersion(ctypes.Structure):
    _fields_ = [("major", ctypes.c_int), ("minor", ctypes.c_int), ("patch", ctypes.c_int)]


def onednn_kernel():
    library = ctypes.CDLL(ctypes.util.find_library("dnnl"))
    library.dnnl_version.restype = ctypes.POINTER(DnnlVersion)
    v = library.dnnl_version().contents
    isa = library.dnnl_get_effective_cpu_isa()
    return "oneDNN %d.%d.%d, %s" % (v.major, v.minor, v.patch, "AVX512" if isa & 0x20 else "AVX2" if isa & 4 else "SSE4.1")


def write_job(root, data, model, rows, length):
    bench_gpu.write_job(root, data, model, rows, length, rows, "fp32")
    path = os.path.join(root, "spec.json")
    with open(path, encoding="utf-8") as f:
        spec = json.load(f)
    spec["precision"]["compute"] = "fp32"
    spec["resources"]["device"] = "cpu"
    rig.write_json(path, spec)


def wait(process, limit):
    """Its status and its peak resident bytes, its children's among them."""
    deadline = time.monotonic() + limit
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, usage.ru_maxrss * 1024
        if time.monotonic() > deadline:
            process.terminate()
        time.sleep(0.05)


def rank_seconds(supervisor):
    """Processor time of the rank, the supervisor's only child."""
    with open("/proc/%d/task/%d/children" % (supervisor, supervisor), encoding="ascii") as f:
        rank = f.read().split()[0]
    with open("/proc/%s/stat" % rank, encoding="ascii") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_ours(worker, root, n):
    """Steps of one attempt, which is cancelled as soon as there are enough."""
    events = os.path.join(root, "attempt-1", "events.jsonl")
    process = subprocess.Popen([worker, root], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline, steps, busy = time.monotonic() + LIMIT_S, [], []
    while len(steps) < n and time.monotonic() < deadline and not os.path.exists(os.path.join(root, "attempt-1", "exit.json")):
        time.sleep(0.05)
        steps = [e for e in bench_gpu.read_events(events) if e["type"] == "step"]
        if len(steps) > len(busy):
            busy.append(rank_seconds(process.pid))
    with open(os.path.join(root, "control.jsonl"), "a", encoding="utf-8") as f:
        f.write(json.dumps({"v": 1, "id": "ctl-1", "t": time.time(), "type": "cancel"}) + "\n")
    _, peak = wait(process, 60)
    if len(steps) < n:
        raise SystemExit("castor-worker: %s" % bench_gpu.read_events(events)[-1])
    return {"seconds": [s["seconds"] for s in steps[:n]], "busy": [0] + [y - x for x, y in zip(busy, busy[1:])], "loss": steps[0]["loss"], "peak": peak,
            "tokens": steps[1]["tokens"]}


def run_peer(python, model, options, compiled):
    command = [python, os.path.join(HERE, "peer_train.py"), model, "--rows", str(options.rows), "--length",
               str(options.length), "--threads", str(os.cpu_count()), "--steps", str(1 + options.steps)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as words:
        process = subprocess.Popen(command + (["--compile"] if compiled else []), stdout=out, stderr=words)
        code, peak = wait(process, LIMIT_S)
        for f in (out, words):
            f.seek(0)
        if code != 0:
            raise SystemExit("peer_train.py: %s" % words.read()[-2000:].decode())
        result = json.loads(out.read().splitlines()[-1])
    return {**result, "peak": peak, "tokens": options.rows * options.length}


def show(name, run):
    seconds = sorted(run["seconds"][1:])
    print("%-13s %7.2f s a step (%.2f to %.2f; %.2f on processors)  %6.0f tok/s  peak %5.0f MiB  first loss %.3f" % (
        name, statistics.median(seconds), seconds[0], seconds[-1], statistics.median(run["busy"][1:]), run["tokens"] / statistics.median(seconds),
        run["peak"] / 2**20, run["loss"]), flush=True)


def measure(options, work):
    model, data = os.path.join(work, "model"), os.path.join(work, "train.jsonl")
    os.makedirs(model)
    rig.write_json(os.path.join(model, "config.json"), SMOLLM2_135M)
    bench_gpu.write_tokenizer(model)
    bench_gpu.write_weights(model, SMOLLM2_135M)
    bench_gpu.write_data(data, options.rows * (options.steps + 8), options.length)
    runs = {}
    for turn in range(options.rounds):
        job = os.path.join(work, "job-%d" % turn)
        write_job(job, data, model, options.rows, options.length)
        turns = [("ours", lambda: run_ours(os.path.join(options.build, "castor-worker"), job, 1 + options.steps))]
        if not options.no_peer:
            turns += [("torch", lambda: run_peer(options.python, model, options, False)),
                      ("torch.compile", lambda: run_peer(options.python, model, options, True))]
        for name, run in turns:
            runs.setdefault(name, []).append(run())
            show(name, runs[name][-1])
        shutil.rmtree(job)
    return runs


def report(runs):
    speed = {name: statistics.median(r["tokens"] / s for r in turns for s in r["seconds"][1:])
             for name, turns in runs.items()}
    peers = [name for name in runs if name != "ours"]
    if not peers:
        return
    best = max(peers, key=speed.get)
    peak = {name: max(r["peak"] for r in runs[name]) / 2**20 for name in ("ours", best)}
    print("kernel ours %s; peer %s (%s)" % (onednn_kernel(), runs[best][0]["kernel"], best))
    print("bench: train-smollm2-135m ours %.0f peer %.0f unit tok/s ratio %.3f" % (
        speed["ours"], speed[best], speed["ours"] / speed[best]))
    print("bench: train-smollm2-135m-memory ours %.0f peer %.0f unit MiB ratio %.3f" % (
        peak["ours"], peak[best], peak[best] / peak["ours"]), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build")
    parser.add_argument("python")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--no-peer", action="store_true")
    options = parser.parse_args()
    for name in ("DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY"):
        os.environ.pop(name, None)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    work = tempfile.mkdtemp(prefix="castor-bench-")
    try:
        report(measure(options, work))
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
