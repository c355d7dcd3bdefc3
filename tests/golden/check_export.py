"""Check that two model directories load in transformers and give equal logits:

    python tests/golden/check_export.py DIR_A DIR_B [--tolerance 0]

Loads both as float32 causal language models with no missing or unexpected weights, runs the same token ids and compares. Prints one
line and exits 0 when the largest difference is at most the tolerance (0: bit for bit, as an export in the
weights' own precision must be).
"""

import argparse
import sys

import torch
from transformers import AutoModelForCausalLM


def load(path):
    model, info = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(key):
            sys.exit(f"check_export: {path}: {key}: {sorted(info[key])[:8]}")
    return model.eval()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("a")
    parser.add_argument("b")
    parser.add_argument("--tolerance", type=float, default=0.0)
    args = parser.parse_args()
    a, b = load(args.a), load(args.b)
    if a.config.vocab_size != b.config.vocab_size:
        sys.exit("check_export: the vocabularies differ")
    length = min(16, a.config.max_position_embeddings)
    ids = torch.randint(3, a.config.vocab_size, (2, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        worst = (a(ids).logits - b(ids).logits).abs().max().item()
    print(f"check_export: largest difference of logits {worst:g}, allowed {args.tolerance:g}")
    sys.exit(0 if worst <= args.tolerance else 1)


if __name__ == "__main__":
    main()
