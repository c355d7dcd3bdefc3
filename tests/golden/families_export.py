"""Export every golden model and load the result in transformers, where its logits must be those of the original:

    L=build/cpu/lib; gcc -std=gnu11 -I. -o /tmp/export_main tests/golden/export_main.c $L/libworker_model.a \\
        $L/libkernels.a $L/libapi.a $L/libcore.a -ljansson -lnettle -ldnnl -lm -fopenmp
    python tests/golden/families_export.py /tmp/export_main

In float32, bfloat16 and float16, both sides loaded in that type, no weight missing or left over, every bit equal. Prints
one line a model; exits 1 if any differs.
"""

import pathlib
import subprocess
import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM

GOLDEN = pathlib.Path(__file__).parent
TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def load(path, dtype):
    model, info = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, output_loading_info=True,
                                                       attn_implementation="eager")
    wrong = {key: sorted(info[key])[:4] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[key]}
    return model.eval(), wrong


def difference(program, source, out, kind):
    subprocess.run([program, source, out, kind], check=True)
    base, _ = load(source, TYPES[kind])
    ours, wrong = load(out, "auto")
    assert not wrong, (source, wrong)
    assert next(ours.parameters()).dtype == TYPES[kind], "config.json names another type"
    ids = torch.randint(3, ours.config.vocab_size, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a, b = (model(input_ids=ids, use_cache=False).logits.float() for model in (base, ours))
    assert torch.isfinite(a).all() and a.abs().max() > 0.1
    return (a - b).abs().max().item()


def main():
    failed = 0
    for config in sorted(GOLDEN.glob("*/*/model/config.json")):
        with tempfile.TemporaryDirectory() as out:
            worst = [difference(sys.argv[1], config.parent, f"{out}/{kind}", kind) for kind in TYPES]
        failed += max(worst) > 0
        print("export", "/".join(config.parts[-4:-2]), *(f"{kind} {x:g}" for kind, x in zip(TYPES, worst)))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
