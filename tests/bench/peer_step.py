"""The PyTorch peer of bench_gpu.py: whole optimizer steps of a model of the same shape, on random tokens.

usage: peer_step.py MODEL_DIR --rows ROWS --length LENGTH --micro MICRO [--states fp32|bf16] [--steps N]

transformers' model with random weights, its head tied where config.json ties it, torch.compile, scaled dot product
attention, fused AdamW and clipping by norm; bf16 by autocast over float32 parameters, or with --states bf16
parameters and moments in bf16 (rounded to nearest: PyTorch has no stochastic rounding here). Prints one line of
JSON: seconds (median of the steps behind the warm-up), peak bytes.
"""
import argparse
import json
import os
import time

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
import torch  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

WARM_UP = 4


def make_model(directory, states):
    config = AutoConfig.from_pretrained(directory)
    config.use_cache = False
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation="sdpa",
            dtype=torch.bfloat16 if states == "bf16" else torch.float32)
    model.tie_weights()
    model.train()
    return config, model


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    for name in ("rows", "length", "micro"):
        parser.add_argument("--" + name, type=int, required=True)
    parser.add_argument("--states", default="fp32")
    parser.add_argument("--steps", type=int, default=10)
    a = parser.parse_args()
    config, model = make_model(a.model, a.states)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.1, fused=True)
    compiled = torch.compile(model)
    micros = a.rows // a.micro
    tokens = torch.randint(0, config.vocab_size, (micros, a.micro, a.length), device="cuda")

    def step():
        for micro in range(micros):
            with torch.autocast("cuda", torch.bfloat16, enabled=a.states == "fp32"):
                loss = compiled(input_ids=tokens[micro], labels=tokens[micro]).loss / micros
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(WARM_UP):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(a.steps):
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    seconds.sort()
    print(json.dumps({"seconds": seconds[len(seconds) // 2], "peak": torch.cuda.max_memory_allocated()}))


if __name__ == "__main__":
    main()
