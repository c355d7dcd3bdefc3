"""Adapters beside base weights in bf16, int8 and nf4 on one GPU: speed and memory. Run by hand:

    python tests/bench/bench_lora.py --build build [--work DIR] [--steps N] [FORM[:GIB] ...]

Llama 3 8B's shape with random weights, adapters of rank 16 beside all linear layers, rows of 1,024 tokens, one
micro-batch of 8 rows a step, by castor-worker. FORM is none (bf16), int8 or nf4; GIB caps the job's GPU memory, and the
frozen weights that it does not hold lie in host memory and cross the link twice a step. Prints for each run the
step measured and predicted, peaks of memory and bytes on the link.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile

import bench_gpu as shapes
import bench_memory
from bench_gpu import rig

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "num_hidden_layers": 32,
          "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256,
          "tie_word_embeddings": False, "hidden_act": "silu", "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
          "rope_theta": 500000.0, "bos_token_id": 2, "eos_token_id": 2}
ROWS, LENGTH = 8, 1024
LORA = {"rank": 16, "alpha": 32, "dropout": 0.0, "rslora": False, "target_modules": ["all-linear"],
        "quantize_base": "none", "export": "adapter"}


def show(form, steps, plan, begun):
    measured = steps[bench_memory.WARM_UP:]
    seconds = bench_memory.median(measured, lambda s: s["seconds"])
    last, gib = measured[-1], bench_memory.GIB
    print("lora %s: %.3f s a step (predicted %.3f), %.0f tok/s; gpu peak %.2f GiB (planned %.2f), weights there %.2f, "
          "host %.2f; h2d %.2f GB a step; loss %.4f; loading %.0f s" % (
              form, seconds, plan.get("step_seconds") or float("nan"), last["tokens"] / seconds,
              last["gpu"]["peak"] / gib, last["gpu"]["planned_peak"] / gib, plan["memory"]["gpu"]["weights"] / gib,
              last["host"]["peak"] / gib, (last["h2d_bytes"] - steps[bench_memory.WARM_UP - 1]["h2d_bytes"]) /
              len(measured) / 1e9, last["loss"], begun.get("training", 0) - begun.get("loading", 0)), flush=True)


def run(form, options, work, model, data):
    kind, _, gib = form.partition(":")
    root = os.path.join(work, form.replace(":", "-"))
    shapes.write_job(root, data, model, ROWS, LENGTH, ROWS, "fp32")
    path = os.path.join(root, "spec.json")
    with open(path, encoding="utf-8") as f:
        spec = json.load(f)
    spec["lora"] = {**LORA, "quantize_base": kind}
    spec["placement"]["policy"] = "auto"
    if gib:
        spec["placement"]["gpu_memory_limit"] = int(float(gib) * bench_memory.GIB)
    rig.write_json(path, spec)
    result, why = bench_memory.run_job(os.path.join(options.build, "castor-worker"), root, options.steps)
    if result is None:
        print("%s failed: %s" % (form, why), flush=True)
        return False
    show(form, *result)
    return True


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    parser.add_argument("--work")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--layers", type=int, default=CONFIG["num_hidden_layers"], help="fewer of them")
    parser.add_argument("forms", nargs="*", default=["none", "int8", "nf4", "none:12", "nf4:12"])
    options = parser.parse_args()
    CONFIG["num_hidden_layers"] = options.layers
    subprocess.run([os.path.join(options.build, "castor-worker"), "--probe"], check=True)
    work = tempfile.mkdtemp(prefix="castor-bench-", dir=options.work)
    try:
        model, data = os.path.join(work, "model"), os.path.join(work, "train.jsonl")
        os.makedirs(model)
        rig.write_json(os.path.join(model, "config.json"), CONFIG)
        shapes.write_tokenizer(model)
        shapes.write_weights(model, CONFIG)
        shapes.write_data(data, ROWS * (bench_memory.WARM_UP + options.steps + 6), LENGTH)
        fine = [run(form, options, work, model, data) for form in options.forms]
    finally:
        shutil.rmtree(work)
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
