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
LLAMA = dict(vocab_size=41, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=32, **TOKENS)
LLAMA3_ROPE = dict(rope_type="llama3", rope_theta=100.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=16)
NEOX = dict(vocab_size=41, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=3,
            max_position_embeddings=32, rope_parameters=dict(rope_theta=1000.0, rope_type="default",
                                                            partial_rotary_factor=0.25), **TOKENS)
# heads of 4, so that the scale is a float
FALCON = dict(vocab_size=41, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, ffn_hidden_size=32, **TOKENS)
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
    "qwen3": {"normed": (tf.Qwen3Config, dict(LLAMA, head_dim=8, attention_bias=True))},
    "phi3": {"fused": (tf.Phi3Config, dict(LLAMA, sliding_window=5))},
    "gpt_neox": {
        "parallel": (tf.GPTNeoXConfig, NEOX),
        "sequential": (tf.GPTNeoXConfig, dict(NEOX, use_parallel_residual=False, num_hidden_layers=1)),
    },
    # heads of 16, likewise
    "gptj": {"plain": (tf.GPTJConfig, dict(vocab_size=41, n_embd=32, n_layer=2, n_head=2, n_positions=16, n_inner=40,
                                           rotary_dim=8, **TOKENS))},
    "phi": {"plain": (tf.PhiConfig, dict(NEOX, rope_parameters=dict(NEOX["rope_parameters"],
                                                                    partial_rotary_factor=0.5)))},
    "bloom": {"plain": (tf.BloomConfig, dict(vocab_size=41, hidden_size=24, n_layer=2, n_head=3, **TOKENS))},
    "falcon": {
        "single": (tf.FalconConfig, FALCON),
        "grouped": (tf.FalconConfig, dict(FALCON, new_decoder_architecture=True, num_ln_in_parallel_attn=1,
                                          num_kv_heads=2, bias=True)),
    },
    "gemma": {"plain": (tf.GemmaConfig, dict(LLAMA, head_dim=8, num_key_value_heads=1))},
    "gemma2": {"plain": (tf.Gemma2Config, dict(LLAMA, head_dim=8, query_pre_attn_scalar=10, sliding_window=4,
                                               attn_logit_softcapping=5.0, final_logit_softcapping=7.0))},
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


def gptj_tables(positions, dim):
    angles = torch.arange(positions).double()[:, None] * 10000.0 ** (-torch.arange(0, dim, 2).double() / dim)
    return torch.cat((angles.sin(), angles.cos()), dim=1).float().double()


def gptj_in_double(module):
    """GPT-J's attention without its casts to float32, and its tables from double: before transformers 5."""
    def attention(self, query, key, value, attention_mask=None):
        scores = query @ key.transpose(-1, -2) / self.scale_attn
        if attention_mask is not None:
            scores = scores + attention_mask
        probabilities = plain_softmax(scores, dim=-1)
        return probabilities @ value, probabilities
    module._attn = attention.__get__(module)
    module.embed_positions = gptj_tables(module.max_positions, module.rotary_dim)


def make_double(model):
    model = model.double().eval()
    for name, module in list(model.named_modules()):
        for key in ("eps", "variance_epsilon"):
            if isinstance(getattr(module, key, None), float):
                setattr(module, key, gen.round_to_float(getattr(module, key)))
        if type(module).__name__ == "GPTJAttention" and hasattr(module, "max_positions"):
            gptj_in_double(module)
        if type(module).__name__ == "GPTJRotaryEmbedding":
            module.embed_positions = gptj_tables(module.max_positions, module.pos_embd_dim)
            continue
        if type(module).__name__ == "BloomGelu":  # its constant has nine digits
            module.forward = lambda x: torch.nn.functional.gelu(x, approximate="tanh")
        for key in ("scaling", "inv_norm_factor"):
            if isinstance(getattr(module, key, None), float):
                setattr(module, key, gen.round_to_float(getattr(module, key)))
        if type(module).__name__.endswith("RMSNorm"):
            def in_double(self, x):
                plus = 1 if type(self).__name__.startswith("Gemma") else 0
                eps = getattr(self, "variance_epsilon", None) or self.eps
                return (plus + self.weight) * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))
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
    attention = "sdpa" if config_class is tf.FalconConfig else "eager"
    model = tf.AutoModelForCausalLM.from_config(config_class(**changes), attn_implementation=attention)
    with torch.no_grad():
        for name, p in model.named_parameters():
            norm = p.ndim == 1 and name.endswith("weight") and model.config.model_type not in ("gemma", "gemma2")
            p.copy_(torch.randn_like(p) * (0.3 if p.ndim == 2 else 0.1) + (1.0 if norm else 0.0))
    model.save_pretrained(root / "model")
    (root / "model" / "generation_config.json").unlink(missing_ok=True)
    model = make_double(model)
    gen.BASE = dict(gen.BASE, vocab_size=model.config.vocab_size)
    batch = gen.make_batch()
    if model.config.model_type == "bloom":  # its positions are those of the keys
        plain = model.forward
        model.forward = lambda position_ids=None, **rest: plain(**rest)
    logits, loss = gen.row_losses(model, *batch)
    loss.sum().backward()
    out = dict(zip(("tokens", "targets", "positions"), (x.to(torch.int32) for x in batch)))
    out |= dict(logits=logits.detach(), row_loss=loss.detach(),
                loss=(loss.sum() / (batch[1] >= 0).sum()).detach().view(1))
    neox = model.config.model_type == "gpt_neox"  # whose file says embed_out
    save_file({n.replace("lm_head", "embed_out") if neox else n: p.grad for n, p in model.named_parameters()},
              root / "grads" / "model.safetensors")
    save_file(out, root / "batch.safetensors")
    print(root.parent.name, root.name, "loss", out["loss"].item())


if __name__ == "__main__":
    wanted = sys.argv[2:] or list(CASES)
    for number, (family, cases) in enumerate(CASES.items()):
        for offset, (case, (config_class, changes)) in enumerate(cases.items()):
            if family in wanted:
                make_case(pathlib.Path(sys.argv[1]) / family / case, 10 * number + offset, config_class, changes)
