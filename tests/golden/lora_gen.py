"""Make the golden files of adapters, with PEFT, from the models that gen.py and families_gen.py made. Run by hand:

    python tests/golden/lora_gen.py tests/golden [FAMILY...]

For each case FAMILY/CASE, in FAMILY/CASE/lora, all on the batch of that case and computed in float64:

    adapter_model.safetensors, adapter_config.json   random A and B, float32, as PEFT saves them
    grads.safetensors        under the same names, float64: the gradient of the SUM of all target tokens' losses
    results.safetensors      row_loss float64 (B, T); and for opt/pre adamw.losses, adamw.norms, adamw.lr, adamw.params
                             of steps on A and B alone, as gen.py has them for whole models
"""

import json
import pathlib
import sys

import families_gen
import gen
import torch
import transformers as tf
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

gen.STEPS = 5
SETTINGS = {  # what differs from all linear layers
    "opt/plain": dict(target_modules=["k_proj", "fc2"]),
    "llama/biased": dict(target_modules=None, use_rslora=True),
    "gpt2/plain": dict(target_modules=["attn.c_attn", "mlp.c_proj"]),
}


def load_base(folder):
    family = folder.parent.name
    attention = "sdpa" if family in ("opt", "falcon", "gptj") else "eager"
    model = tf.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32,
                                                    attn_implementation=attention)
    model = families_gen.make_double(model)
    if family == "bloom":  # its positions are those of the keys
        plain = model.forward
        model.forward = lambda position_ids=None, **rest: plain(**rest)
    return model


def named(model):
    """The trainable parameters under the names of PEFT's files."""
    return {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}


def make_case(folder):
    case = f"{folder.parent.name}/{folder.name}"
    golden = load_file(folder / "batch.safetensors")
    batch = [golden[k].long() for k in ("tokens", "targets", "positions")]
    base = load_base(folder)
    with torch.no_grad():
        was = (gen.row_losses(base, *batch)[1] - golden["row_loss"]).abs().max().item()
    torch.manual_seed(7)
    config = LoraConfig(**{**dict(r=4, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM"),
                           **SETTINGS.get(case, {})})
    model = get_peft_model(base, config).double()
    with torch.no_grad():
        for p in named(model).values():
            p.copy_((torch.randn_like(p) * 0.3).float())
    loss = gen.row_losses(model, *batch)[1]
    loss.sum().backward()
    out = folder / "lora"
    out.mkdir(exist_ok=True)
    save_file({n: p.detach().float().contiguous() for n, p in get_peft_model_state_dict(model).items()},
              out / "adapter_model.safetensors")
    config.inference_mode = True
    config.save_pretrained(out)
    saved = json.loads((out / "adapter_config.json").read_text())
    saved["base_model_name_or_path"] = None
    saved["target_modules"] = sorted(saved["target_modules"])
    (out / "adapter_config.json").write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")
    save_file({n: p.grad for n, p in named(model).items()}, out / "grads.safetensors")
    results = dict(row_loss=loss.detach())
    if case == "opt/pre":
        results |= {k: torch.tensor(v, dtype=torch.float64) for k, v in gen.adamw_losses(model, batch).items()}
    save_file(results, out / "results.safetensors")
    print(case, "base differs by", was, "largest change of a loss", (loss - golden["row_loss"]).abs().max().item(),
          "modules", len(named(model)) // 2)


if __name__ == "__main__":
    root = pathlib.Path(sys.argv[1])
    for path in sorted(root.glob("*/*/model")):
        if not sys.argv[2:] or path.parent.parent.name in sys.argv[2:]:
            if path.parent.name != "images":  # what is trained there is the text model alone
                make_case(path.parent)
