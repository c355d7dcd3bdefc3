"""Make the golden files of adapters beside quantised weights, with bitsandbytes and PEFT. Run by hand behind lora_gen.py:

    python tests/golden/quant_gen.py tests/golden [FAMILY...]

quant/nf4.safetensors               float32 x and, by bitsandbytes' quantize_4bit in blocks of 64, codes and absmax
FAMILY/CASE/lora/nf4.safetensors    row_loss, and of some cases the gradients, as lora_gen.py has them, of the same
FAMILY/CASE/lora/int8.safetensors   adapters beside layers whose matrices were quantised and decoded: nf4 by
                                    bitsandbytes, int8 by absmax / 127 of each block
"""

import pathlib
import sys

import bitsandbytes.functional as bnb
import gen
import lora_gen
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

BLOCK = 64
GRADS = ["opt/pre", "gpt2/plain", "llama/grouped", "qwen3/normed", "gpt_neox/parallel"]


def row_order(config, name, rows):
    """A stacked matrix is quantised as Castor stores it: all queries, then keys, then values."""
    if not name.endswith("query_key_value"):
        return torch.arange(rows)
    heads = groups = config.num_attention_heads
    if config.model_type == "falcon" and config.new_decoder_architecture:
        groups = config.num_kv_heads
    elif config.model_type == "falcon" and config.multi_query:
        return torch.arange(rows)
    per = heads // groups
    row = torch.arange(rows).view(groups, per + 2, rows // (heads + 2 * groups))
    return torch.cat([row[:, :per].reshape(-1), row[:, per].reshape(-1), row[:, per + 1].reshape(-1)])


def decoded(w, form):
    """float32 (rows, cols), quantised over its elements in row-major order and decoded."""
    flat = w.reshape(-1)
    if form == "nf4":
        codes, state = bnb.quantize_4bit(flat.clone(), blocksize=BLOCK, quant_type="nf4", compress_statistics=False)
        return bnb.dequantize_4bit(codes, state).reshape(w.shape)
    out = torch.empty_like(flat)
    for at in range(0, len(flat), BLOCK):
        block = flat[at:at + BLOCK]
        scale = block.abs().max() / 127
        out[at:at + BLOCK] = (block / scale).round().clamp(-127, 127) * scale
    return out.reshape(w.shape)


def quantise_layers(model, form):
    for name, module in model.named_modules():
        w = getattr(module, "weight", None)
        if w is None or w.ndim != 2 or "norm" in name or not any(part in name for part in (".layers.", ".h.")):
            continue
        turned = type(module).__name__ == "Conv1D"
        ours = (w.detach().T if turned else w.detach()).float().contiguous()
        order = row_order(model.config, name, len(ours))
        left = torch.empty_like(ours)
        left[order] = decoded(ours[order], form)
        with torch.no_grad():
            w.copy_(left.T if turned else left)
    return model


def make_case(folder, form):
    case = f"{folder.parent.name}/{folder.name}"
    golden = load_file(folder / "batch.safetensors")
    batch = [golden[k].long() for k in ("tokens", "targets", "positions")]
    base = quantise_layers(lora_gen.load_base(folder), form)
    model = PeftModel.from_pretrained(base, folder / "lora", is_trainable=True).double()
    loss = gen.row_losses(model, *batch)[1]
    loss.sum().backward()
    plain = load_file(folder / "lora" / "results.safetensors")["row_loss"]
    out = dict(row_loss=loss.detach())
    if case in GRADS:
        out |= {n: p.grad for n, p in lora_gen.named(model).items()}
    save_file(out, folder / "lora" / f"{form}.safetensors")
    print(case, form, "largest change of a loss", (loss - plain).abs().max().item())


def make_codes(folder):
    torch.manual_seed(3)
    x = torch.randn(96, 64) * torch.logspace(-8, 8, 96)[:, None]
    x[5, 9] = 0
    codes, state = bnb.quantize_4bit(x.clone(), blocksize=BLOCK, quant_type="nf4", compress_statistics=False)
    folder.mkdir(exist_ok=True)
    save_file(dict(x=x, codes=codes.flatten(), absmax=state.absmax.float(), decoded=bnb.dequantize_4bit(codes, state)),
              folder / "nf4.safetensors")


if __name__ == "__main__":
    root = pathlib.Path(sys.argv[1])
    make_codes(root / "quant")
    for path in sorted(root.glob("*/*/lora/results.safetensors")):
        if not sys.argv[2:] or path.parent.parent.parent.name in sys.argv[2:]:
            make_case(path.parent.parent, "nf4")
            make_case(path.parent.parent, "int8")
