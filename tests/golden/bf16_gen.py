"""Write what PyTorch makes of the golden models in bfloat16, beside their gradients in double. Run by hand:

    python tests/golden/bf16_gen.py tests/golden [FAMILY...]

For every case that gen.py and families_gen.py made (they go first), CASE/bf16/model.safetensors holds, under the names
of CASE/grads and in bfloat16, the gradient of the sum of all target tokens' losses as transformers computes it with
weights and activations in bfloat16. How far these lie from CASE/grads is what a test of our own bfloat16 may differ by:
the noise that the type itself makes. Prints that by norm, per case, beside the one of autocast over float32 weights.
"""

import pathlib
import sys

import torch
import transformers as tf
from safetensors.torch import load_file, save_file


def gradients(case, dtype, autocast):
    model = tf.AutoModelForCausalLM.from_pretrained(case / "model", dtype=dtype).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None  # its row is a row like any other here
    batch = load_file(case / "batch.safetensors")
    tokens, targets = batch["tokens"].long(), batch["targets"].long()
    places = {} if model.config.model_type == "bloom" else {"position_ids": batch["positions"].long()}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(input_ids=tokens, use_cache=False, **places).logits
    torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-1,
                                      reduction="sum").backward()
    neox = model.config.model_type == "gpt_neox"  # whose file says embed_out
    return {n.replace("lm_head", "embed_out") if neox else n: p.grad for n, p in model.named_parameters()
            if p.grad is not None}


def distance(got, want):
    """Of all gradients together, and of the worst one, relative to the norm."""
    off = {n: (got[n].double() - want[n]).norm() for n in want}
    whole = torch.stack(list(off.values())).norm() / torch.stack([want[n].norm() for n in want]).norm()
    worst = max(off, key=lambda n: off[n] / want[n].norm())
    return "whole %.4f, worst %.4f (%s)" % (whole, off[worst] / want[worst].norm(), worst)


def make_case(case):
    want = load_file(case / "grads" / "model.safetensors")
    got = gradients(case, torch.bfloat16, False)
    assert set(got) == set(want), set(got) ^ set(want)
    (case / "bf16").mkdir(exist_ok=True)
    save_file({n: g.contiguous() for n, g in got.items()}, case / "bf16" / "model.safetensors")
    print(case.parent.name, case.name, "bf16", distance(got, want), "autocast",
          distance(gradients(case, torch.float32, True), want), flush=True)


if __name__ == "__main__":
    root = pathlib.Path(sys.argv[1])
    for batch in sorted(root.glob("*/*/batch.safetensors")):
        if not sys.argv[2:] or batch.parent.parent.name in sys.argv[2:]:
            make_case(batch.parent)
