"""Losses of Qwen2.5-0.5B's layers computed in fp8 beside bf16's, from the same random weights over the same rows.

usage: fp8_losses.py --build DIR [--work DIR] [--steps N] [--rows N] [--length N] [--device cpu]
                     [--layers N --width N --columns N]

The text is the sources of this Python and its packages, in tokens of a BPE of VOCAB that is trained on it first (the
`tokenizers` package). Three jobs of castor-worker: bf16, fp8, and bf16 from weights that were moved by a thousandth of
themselves, whose distance from the first is what runs part by anyhow. Prints each one's means of WINDOW steps, the last
two as distances from the first, and last `1 passed, 0 failed` where fp8's mean loss over all steps, and that over the
second half of them, is within LIMIT of bf16's.
"""
import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "e2e"), os.path.join(HERE, "..", "bench")]
import bench_gpu  # noqa: E402
import rig  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402

VOCAB, WINDOW, LIMIT, RATE, SEED, MOVED = 8192, 50, 0.003, 6e-4, 7, 1e-3
BYTES_A_TOKEN = 6  # more than a token has, so that the text is enough for one epoch


def sources(least):
    """Texts of so many bytes in all, in an order that does not follow the packages'."""
    paths = []
    for root in sorted({sysconfig.get_path(k) for k in ("stdlib", "purelib", "platlib")} | {os.path.dirname(torch.__path__[0])}):
        for folder, _, names in os.walk(root):
            paths += [os.path.join(folder, n) for n in names if n.endswith(".py")]
    random.Random(SEED).shuffle(paths)
    texts, have = [], 0
    for path in paths:
        if have >= least:
            return texts
        with open(path, encoding="utf-8", errors="ignore") as f:
            text = f.read(200_000)
        if len(text) > 500:
            texts.append(text)
            have += len(text)
    sys.exit("fp8_losses: %d bytes of sources here, %d are needed: take fewer --steps" % (have, least))


def write_inputs(work, o):
    model, data = os.path.join(work, "model"), os.path.join(work, "train.jsonl")
    os.makedirs(model)
    texts = sources(BYTES_A_TOKEN * o.steps * o.rows * o.length)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>"]
    tokenizer.train_from_iterator(texts[:400], trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.save(os.path.join(model, "tokenizer.json"))
    with open(data, "w", encoding="utf-8") as f:
        f.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    heads = o.width // 64
    config = bench_gpu.qwen2(o.width, o.layers, heads, heads // 7 or 1, o.columns, VOCAB, True)
    rig.write_json(os.path.join(model, "config.json"), config)
    bench_gpu.write_weights(model, config)
    moved = os.path.join(work, "moved")
    shutil.copytree(model, moved)
    torch.manual_seed(SEED)
    weights = {name: w.float() for name, w in load_file(os.path.join(model, "model.safetensors")).items()}
    save_file({name: w * (1 + MOVED * torch.randn_like(w)) for name, w in weights.items()},
              os.path.join(moved, "model.safetensors"))
    return model, moved, data


def losses(o, work, model, data, compute):
    root = os.path.join(work, "job")
    bench_gpu.write_job(root, data, model, o.rows, o.length, o.rows, "fp32", compute)
    path = os.path.join(root, "spec.json")
    with open(path, encoding="utf-8") as f:
        spec = json.load(f)
    spec["seed"] = SEED
    spec["optimization"].update(learning_rate=RATE, schedule="cosine", warmup_ratio=0.1, max_steps=o.steps)
    rig.write_json(path, spec)
    subprocess.run([os.path.join(o.build, "castor-worker"), root], check=True, stdout=subprocess.DEVNULL)
    steps = [e for e in rig.read_events(os.path.join(root, "attempt-1", "events.jsonl")) if e["type"] == "step"]
    shutil.rmtree(root)
    assert len(steps) == o.steps, "%d steps of %d" % (len(steps), o.steps)
    return [e["loss"] for e in steps]


def mean(x):
    return sum(x) / len(x)


def apart(got, want):
    return mean(got) / mean(want) - 1


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--build", required=True)
    p.add_argument("--work")
    p.add_argument("--device", default="gpu")
    for name, value in (("steps", 300), ("rows", 16), ("length", 1024), ("layers", 24), ("width", 896), ("columns", 4864)):
        p.add_argument("--" + name, type=int, default=value)
    o = p.parse_args()
    bench_gpu.DEVICE = o.device
    work = tempfile.mkdtemp(prefix="castor-fp8-", dir=o.work)
    try:
        model, moved, data = write_inputs(work, o)
        runs = {"bf16": losses(o, work, model, data, "bf16"), "fp8": losses(o, work, model, data, "fp8"),
                "bf16 moved": losses(o, work, moved, data, "bf16")}
    finally:
        shutil.rmtree(work)
    windows = [slice(at, at + WINDOW) for at in range(0, o.steps, WINDOW)]
    want = runs.pop("bf16")
    print("bf16: " + ", ".join("%.4f" % mean(want[w]) for w in windows))
    for who, got in runs.items():
        print("%s: %s %%; of all steps %+.2f, of the second half %+.2f" % (
            who, ", ".join("%+.2f" % (100 * apart(got[w], want[w])) for w in windows), 100 * apart(got, want),
            100 * apart(got[o.steps // 2:], want[o.steps // 2:])), flush=True)
    fine = all(abs(apart(runs["fp8"][at:], want[at:])) <= LIMIT for at in (0, o.steps // 2))
    print("%d passed, %d failed" % (fine, not fine))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
