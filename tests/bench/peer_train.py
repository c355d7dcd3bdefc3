"""The PyTorch peer of train_speed.py: whole optimizer steps in float32 on the CPU, on random tokens.

usage: peer_train.py MODEL_DIR --rows ROWS --length LENGTH --threads N --steps N [--compile]

transformers' model with random weights, its head tied where config.json ties it, scaled dot product attention, fused
AdamW and clipping by norm; with --compile through torch.compile. Prints one line of JSON: seconds and processor
seconds of each step (the first one warms up), the first loss, and what multiplies matrices here.
"""
import argparse
import json
import re
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    for name in ("rows", "length", "threads", "steps"):
        parser.add_argument("--" + name, type=int, required=True)
    parser.add_argument("--compile", action="store_true")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(a.model)
    config.use_cache = False
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    model.tie_weights()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.1, fused=True)
    forward = torch.compile(model) if a.compile else model
    tokens = torch.randint(0, config.vocab_size, (a.rows, a.length))
    seconds, busy, losses = [], [], []
    for _ in range(a.steps):
        start, start_busy = time.perf_counter(), time.process_time()
        loss = forward(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
        busy.append(time.process_time() - start_busy)
    blas = re.search(r"Math Kernel Library Version \S+|BLAS_INFO=\w+", torch.__config__.show())
    kernel = "%s, %s" % (blas.group(0) if blas else "BLAS unknown", torch.backends.cpu.get_cpu_capability())
    print(json.dumps({"seconds": seconds, "busy": busy, "loss": losses[0], "kernel": kernel}))


if __name__ == "__main__":
    main()
