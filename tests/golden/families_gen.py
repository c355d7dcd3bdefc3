"""Make the golden files of the families besides OPT, with PyTorch and transformers. Run by hand:

    python tests/golden/families_gen.py tests/golden [FAMILY...]

Each case has the files that gen.py describes (model, grads, batch.safetensors, without AdamW's steps), in
FAMILY/CASE. All random weights, computed in float64, with the epsilon of norms, the attention scale and the tables of
rotary positions rounded to float32 as the op table takes them.
"""

import pathlib
import shutil
import sys

import gen
import torch
import transformers as tf
from safetensors.torch import save_file

TOKENS = dict(bos_token_id=2, eos_token_id=2, pad_token_id=1)
GPT2 = dict(vocab_size=61, n_embd=24, n_layer=2, n_head=3, n_positions=16, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, **TOKENS)
LLAMA = dict(vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=32, **TOKENS)
LLAMA3_ROPE = dict(rope_type="llama3", rope_theta=100.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=16)
CASES = {
    "gpt2": {"plain": (tf.GPT2Config, GPT2)},
    "llama": {
        "grouped": (tf.LlamaConfig, dict(LLAMA, head_dim=8, rope_parameters=LLAMA3_ROPE)),
        "biased": (tf.LlamaConfig, dict(LLAMA, num_key_value_heads=4, attention_bias=True, mlp_bias=True,
                                        tie_word_embeddings=True)),
    },
    "mistral": {"window": (tf.MistralConfig, dict(LLAMA, head_dim=8, sliding_window=4))},
    "qwen2": {"mixed": (tf.Qwen2Config, dict(LLAMA, tie_word_embeddings=True, use_sliding_window=True,
                                             sliding_window=3, max_window_layers=1))},
}


plain_softmax = torch.nn.functional.softmax
# eager attention asks for float32 whatever its input is
torch.nn.functional.softmax = lambda x, dim=None, dtype=None: plain_softmax(x, dim=dim)


class FloatTables(torch.nn.Module):
    """cos and sin as the op table has them: computed in double, rounded to float once."""

    def __init__(self, inner):
        super().__init__()
        self.inv_freq = inner.inv_freq.double()
        self.scaling = getattr(inner, "attention_scaling", 1.0)

    def forward(self, x, position_ids, layer_type=None):
        angles = position_ids[..., None].double() * self.inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * self.scaling).float().double(), (angles.sin() * self.scaling).float().double()


def exact_frequencies(module):
    """transformers computes inv_freq in float32; ours are doubles. The same formula in double."""
    saved = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    config = module.config
    parameters = config.rope_parameters
    dim = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    dim = int(dim * parameters.get("partial_rotary_factor", 1.0))
    inv = 1.0 / parameters["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if parameters["rope_type"] == "llama3":
        low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
        old, factor = parameters["original_max_position_embeddings"], parameters["factor"]
        wave = 2 * torch.pi / inv
        smooth = ((old / wave - low) / (high - low)).clamp(0, 1)
        inv = (1 - smooth) * inv / factor + smooth * inv
    torch.set_default_dtype(saved)
    assert (inv.float() - module.inv_freq.float()).abs().max() < 1e-6
    return inv


def make_double(model):
    model = model.double().eval()
    for name, module in list(model.named_modules()):
        for key in ("eps", "variance_epsilon"):
            if isinstance(getattr(module, key, None), float):
                setattr(module, key, gen.round_to_float(getattr(module, key)))
        for key in ("scaling", "scale_attn"):
            if isinstance(getattr(module, key, None), float):
                setattr(module, key, gen.round_to_float(getattr(module, key)))
        if type(module).__name__.endswith("RMSNorm"):
            def in_double(self, x):
                return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))
            module.forward = in_double.__get__(module)
        if type(module).__name__.endswith("RotaryEmbedding"):
            module.inv_freq = exact_frequencies(module)
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, FloatTables(module))
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None  # its row is a row like any other here
    return model


def make_case(root, index, config_class, changes):
    torch.manual_seed(100 + index)
    shutil.rmtree(root, ignore_errors=True)
    (root / "grads").mkdir(parents=True)
    model = tf.AutoModelForCausalLM.from_config(config_class(**changes), attn_implementation="eager")
    with torch.no_grad():
        for name, p in model.named_parameters():
            norm = p.ndim == 1 and name.endswith("weight") and getattr(model.config, "model_type") not in ("gemma", "gemma2")
            p.copy_(torch.randn_like(p) * (0.3 if p.ndim == 2 else 0.1) + (1.0 if norm else 0.0))
    model.save_pretrained(root / "model")
    (root / "model" / "generation_config.json").unlink(missing_ok=True)
    model = make_double(model)
    gen.BASE = dict(gen.BASE, vocab_size=model.config.vocab_size)
    batch = gen.make_batch()
    logits, loss = gen.row_losses(model, *batch)
    loss.sum().backward()
    out = dict(zip(("tokens", "targets", "positions"), (x.to(torch.int32) for x in batch)))
    out |= dict(logits=logits.detach(), row_loss=loss.detach(),
                loss=(loss.sum() / (batch[1] >= 0).sum()).detach().view(1))
    save_file({n: p.grad for n, p in model.named_parameters()}, root / "grads" / "model.safetensors")
    save_file(out, root / "batch.safetensors")
    print(root.parent.name, root.name, "loss", out["loss"].item())


if __name__ == "__main__":
    wanted = sys.argv[2:] or list(CASES)
    for number, (family, cases) in enumerate(CASES.items()):
        for offset, (case, (config_class, changes)) in enumerate(cases.items()):
            if family in wanted:
                make_case(pathlib.Path(sys.argv[1]) / family / case, 10 * number + offset, config_class, changes)
