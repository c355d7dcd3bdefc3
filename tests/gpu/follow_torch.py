"""Some hundred steps of GPT-2 on one GPU, ours and PyTorch's, from the same weights over the same rows in the same order.

usage: follow_torch.py --build DIR [--work DIR] [--steps N] [--rows N] [--length N] [--device cpu] [--layers N --width N]
                       [COMPUTE...]

COMPUTE: fp32, bf16, fp16, bf16-states (all of them); the last is bf16 with weights, gradients and moments in bf16 too,
rounded stochastically, where PyTorch keeps them in float32. The weights are transformers' random ones of a fixed seed, written by PyTorch;
a row is one example, a chain of words in which the next one mostly follows from the last, so that there is something to
learn. Ours is castor-worker on a job directory; PyTorch's is transformers' model, AdamW and clipping by norm, in float32
or by autocast (fp16 with GradScaler), its rows in the order that worker/text/rows.c gives them.

What is compared with PyTorch's float32 losses: ours, and PyTorch's own of the same COMPUTE, whose distance is the noise of
that type (of bf16-states: bf16's; of float32: its attention written out instead of fused, since two runs that differ in rounding alone part
company after some dozen steps). Passes where the losses' mean distance over all steps is at most twice that noise and 1e-4 of the loss more, and
the mean of the last fifty losses likewise; there the noise is that mean's own distance or, where that is larger, what fifty such distances of
either sign leave of their mean by chance (their root mean square over the square root of fifty): one mean that happens to
come out close says nothing of the next. Prints a line for each COMPUTE and `N passed, N failed`; needs torch,
transformers and safetensors.
"""
import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "e2e"), os.path.join(HERE, "..", "bench")]
import bench_gpu  # noqa: E402
import rig  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import GPT2Config, GPT2LMHeadModel  # noqa: E402

RATE, WORDS, SEED, LAST = 3e-4, 512, 7, 50
EOS = 2
STATES = "-states"


# ---- the order of rows: worker/text/rows.c over core/rng.h ---------------------------------------------------------

def philox(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xffffffff, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xffffffff]
        k = [(k[0] + 0x9E3779B9) & 0xffffffff, (k[1] + 0xBB67AE85) & 0xffffffff]
    return c


def shuffled(index, n, seed, epoch):
    half = 1
    while 1 << 2 * half < n:
        half += 1
    mask, x = (1 << half) - 1, index
    while True:
        left, right = x >> half & mask, x & mask
        for site in range(8):
            draw = philox((right >> 2, 0, epoch, site | 3 << 28), (seed, 0))[right & 3]
            left, right = right, left ^ (draw & mask)
        x = left << half | right
        if x < n:
            return x


# ---- weights and data ----------------------------------------------------------------------------------------------

def write_model(directory, o):
    config = GPT2Config(n_embd=o.width, n_layer=o.layers, n_head=o.width // 64, resid_pdrop=0.0, embd_pdrop=0.0,
                        attn_pdrop=0.0, bos_token_id=EOS, eos_token_id=EOS)
    torch.manual_seed(1)
    model = GPT2LMHeadModel(config)
    os.makedirs(directory)
    rig.write_json(os.path.join(directory, "config.json"), bench_gpu.gpt2(o.width, o.layers, o.width // 64))
    bench_gpu.write_tokenizer(directory)
    weights = {k[len("transformer."):]: v.contiguous() for k, v in model.state_dict().items()
               if k.startswith("transformer.")}
    save_file(weights, os.path.join(directory, "model.safetensors"))
    return config, model.state_dict()


def write_data(path, directory, n, length):
    """The rows' tokens, as ours will see them: (n, length)."""
    with open(os.path.join(directory, "tokenizer.json"), encoding="utf-8") as f:
        vocab = json.load(f)["model"]["vocab"]
    bank = bench_gpu.words()[:WORDS]
    ids = [vocab[bench_gpu.SPACE + w] for w in bank]
    rng, rows = random.Random(3), []
    with open(path, "w", encoding="utf-8") as f:
        for _ in range(n):
            at, row = rng.randrange(WORDS), []
            for _ in range(length - 2):
                at = (5 * at + 17) % WORDS if rng.random() < 0.8 else rng.randrange(WORDS)
                row.append(at)
            f.write(json.dumps({"text": " " + " ".join(bank[w] for w in row)}) + "\n")
            rows.append([EOS] + [ids[w] for w in row] + [EOS])
    return torch.tensor(rows)


# ---- the two ------------------------------------------------------------------------------------------------------

def ours(o, work, model, data, compute):
    root = os.path.join(work, "job-" + compute)
    bench_gpu.DEVICE = o.device
    compute, states = (compute.removesuffix(STATES), "bf16" if compute.endswith(STATES) else "fp32")
    bench_gpu.write_job(root, data, model, o.rows, o.length, o.rows, states)
    path = os.path.join(root, "spec.json")
    with open(path, encoding="utf-8") as f:
        spec = json.load(f)
    spec["seed"] = SEED
    spec["precision"]["compute"] = compute
    spec["dataset"]["packing"] = False
    spec["optimization"].update(learning_rate=RATE, weight_decay=0.0, schedule="constant", warmup_ratio=0.0)
    rig.write_json(path, spec)
    subprocess.run([os.path.join(o.build, "castor-worker"), root], check=True, stdout=subprocess.DEVNULL)
    steps = [e for e in rig.read_events(os.path.join(root, "attempt-1", "events.jsonl")) if e["type"] == "step"]
    return [e["loss"] for e in steps], steps[-1].get("skipped_steps")


def torch_losses(o, config, weights, rows, compute):
    device = "cuda" if o.device == "gpu" else "cpu"
    torch.set_float32_matmul_precision("highest")
    model = GPT2LMHeadModel._from_config(config, attn_implementation="eager" if compute == "fp32-eager" else "sdpa")
    model.load_state_dict(weights)
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    scaler = torch.amp.GradScaler(device, enabled=compute == "fp16")
    kind = {"fp32": None, "fp32-eager": None, "bf16": torch.bfloat16, "fp16": torch.float16}[compute]
    losses = []
    for step in range(o.steps):
        batch = rows[[shuffled(step * o.rows + k, len(rows), SEED, 0) for k in range(o.rows)]].to(device)
        with torch.autocast(device, kind, enabled=kind is not None):
            loss = model(input_ids=batch, labels=batch).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def mean(x):
    return sum(x) / len(x)


def compare(compute, got, want, noisy, skipped):
    far, noise = mean([abs(a - b) for a, b in zip(got, want)]), mean([abs(a - b) for a, b in zip(noisy, want)])
    end, noisy_end = (abs(mean(x[-LAST:]) - mean(want[-LAST:])) for x in (got, noisy))
    chance = (mean([(a - b) ** 2 for a, b in zip(noisy[-LAST:], want[-LAST:])]) / LAST) ** 0.5
    end_noise = max(noisy_end, chance)
    room = 1e-4 * mean(want)
    fine = len(got) == len(want) and far <= 2 * noise + room and end <= 2 * end_noise + room
    print("%s %s: losses %.4f to %.4f, PyTorch's %.4f to %.4f; mean distance from its float32 %.2e, its own %.2e; of the "
          "last %d's mean %.2e, its own %.2e, by chance %.2e%s" % (
              "ok  " if fine else "FAIL", compute, got[0], mean(got[-LAST:]), noisy[0], mean(noisy[-LAST:]), far, noise,
              LAST, end, noisy_end, chance, "; %d steps skipped" % skipped if skipped else ""), flush=True)
    return fine


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--build", required=True)
    p.add_argument("--work")
    p.add_argument("--device", default="gpu")
    for name, value in (("steps", 300), ("rows", 8), ("length", 256), ("layers", 12), ("width", 768)):
        p.add_argument("--" + name, type=int, default=value)
    p.add_argument("compute", nargs="*", default=["fp32", "bf16", "fp16", "bf16-states"])
    o = p.parse_args()
    work = tempfile.mkdtemp(prefix="castor-follow-", dir=o.work)
    model, data = os.path.join(work, "model"), os.path.join(work, "train.jsonl")
    results = []
    try:
        config, weights = write_model(model, o)
        rows = write_data(data, model, o.steps * o.rows, o.length)
        want = torch_losses(o, config, weights, rows, "fp32")
        for compute in o.compute:
            noisy = torch_losses(o, config, weights, rows,
                                 "fp32-eager" if compute == "fp32" else compute.removesuffix(STATES))
            got, skipped = ours(o, work, model, data, compute)
            results.append(compare(compute, got, want, noisy, skipped))
    finally:
        shutil.rmtree(work)
    print("%d passed, %d failed" % (sum(results), len(results) - sum(results)))
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
