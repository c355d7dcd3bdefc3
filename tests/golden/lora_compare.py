"""Check that PEFT and transformers load what jobs with adapters leave, for every family. Run by hand, with torch:

    python tests/golden/lora_compare.py --build build/cpu [--quantize nf4|int8] [FAMILY...]

For each case of families_gen.py and some of OPT: a model with random weights and a byte-level tokenizer, a job of
some steps with lora.export "both", and then, in float32 on random tokens, the largest difference of logits between
  peft      the base model with the adapter that PeftModel.from_pretrained loads
  merged    the merged model that the job wrote
  unloaded  PEFT's own merge_and_unload
as a share of the largest logit, beside how far the adapter moved the base model's logits. Fails beyond 1e-5. With
--quantize the base model is that of lora.quantize_base, whose layers quant_gen.py quantises and decodes.
"""

import argparse
import pathlib
import sys
import tempfile

import families_gen
import gen
import torch
import transformers as tf
from peft import PeftModel

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "e2e"))
import rig  # noqa: E402

TOLERANCE = 1e-5
LORA = {"rank": 5, "alpha": 8, "dropout": 0.0, "rslora": False, "target_modules": ["all-linear"],
        "quantize_base": "none", "export": "both"}
OPT = {name: (tf.OPTConfig, {**gen.BASE, **changes}) for name, changes in gen.CASES.items()}
SETTINGS = {  # of single cases, over LORA
    "opt/plain": {"target_modules": "auto", "rslora": True},
    "gpt2/plain": {"target_modules": ["attn.c_proj", "mlp.c_fc"]},
    "llama/biased": {"target_modules": "auto"},
    "cohere/palm": {"rank": 3},  # keys of 4
}


def make_model(config_class, changes, path):
    torch.manual_seed(5)
    config = config_class(**{**changes, "vocab_size": rig.VOCAB})
    model = tf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            norm = p.ndim == 1 and name.endswith("weight") and not config.model_type.startswith("gemma")
            p.copy_(torch.randn_like(p) * (0.3 if p.ndim == 2 else 0.1) + (1.0 if norm else 0.0))
    model.save_pretrained(path)
    rig.write_tokenizer(str(path))


def load(path):
    model, info = tf.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    assert not any(info.get(k) for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def load_base(path, form):
    if form == "none":
        return load(path)
    import quant_gen  # needs bitsandbytes
    return quant_gen.quantise_layers(load(path), form)


def compare(case, config_class, changes, root, form):
    base = root / "base"
    make_model(config_class, changes, base)
    lora = {**LORA, **SETTINGS.get(case, {}), "quantize_base": form}
    job = rig.Job(str(root), steps=10, model=str(base), lora=lora,
                  dataset={"max_seq_length": 16}, optimization={"learning_rate": 0.02})
    done = job.run()
    assert done.returncode == 0, done.stderr
    output = root / "job" / "output"
    ids = torch.randint(4, rig.VOCAB, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = load_base(base, form)(ids).logits
        adapted = PeftModel.from_pretrained(load_base(base, form), output / "adapter").eval()
        peft = adapted(ids).logits
        merged = load(output)(ids).logits
        unloaded = adapted.merge_and_unload()(ids).logits
    scale = peft.abs().max()
    moved, a, b = ((x / scale).item() for x in ((peft - plain).abs().max(), (peft - merged).abs().max(),
                                               (unloaded - merged).abs().max()))
    fine = a <= TOLERANCE and b <= TOLERANCE and moved > 0.01
    print("%-20s moved %.2f, peft - merged %.1e, unloaded - merged %.1e%s" % (case, moved, a, b,
                                                                          "" if fine else "  FAILED"))
    return fine


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    parser.add_argument("--quantize", default="none")
    parser.add_argument("families", nargs="*")
    args = parser.parse_args()
    rig.Job.worker = str(pathlib.Path(args.build).resolve() / "castor-worker")
    failed = 0
    for family, cases in {"opt": OPT, **families_gen.CASES}.items():
        for name, (config_class, changes) in cases.items():
            if name == "images" or (args.families and family not in args.families):
                continue  # of models with images the text model alone is trained
            with tempfile.TemporaryDirectory() as root:
                failed += not compare("%s/%s" % (family, name), config_class, changes, pathlib.Path(root), args.quantize)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
