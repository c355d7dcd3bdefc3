"""Make the golden files of the families besides OPT, with PyTorch and transformers. Run by hand:

    python tests/golden/families_gen.py tests/golden [FAMILY...]

Each case has the files that gen.py describes (model, grads, batch.safetensors, without AdamW's steps), in
FAMILY/CASE. All random weights, computed in float64, with the epsilon of norms, the attention scale and the tables of
rotary positions rounded to float32 as the op table takes them.
"""

import math
import pathlib
import shutil
import sys

import gen
import torch
import transformers as tf
from safetensors.torch import save_file
from transformers.models.cohere import modeling_cohere

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
YARN = dict(rope_type="yarn", rope_theta=100.0, factor=4.0, original_max_position_embeddings=16, beta_fast=2.0,
            beta_slow=0.25)
LINEAR = dict(rope_type="linear", rope_theta=100.0, factor=2.0)
# one long list in use (12 tokens, trained on 8), one short
LONGROPE = dict(rope_type="longrope", rope_theta=100.0, short_factor=[1.0, 1.5, 2.0, 3.0],
                long_factor=[2.0, 2.5, 4.0, 7.0])
GEMMA3 = dict(LLAMA, head_dim=8, query_pre_attn_scalar=16, sliding_window=4, num_hidden_layers=3,
              sliding_window_pattern=3,
              rope_parameters=dict(full_attention=LINEAR, sliding_attention=dict(rope_type="default", rope_theta=50.0)))
# heads of 4, so that the scale is a float
FALCON = dict(vocab_size=41, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, ffn_hidden_size=32, **TOKENS)
CASES = {
    "gpt2": {
        "plain": (tf.GPT2Config, GPT2),
        "by_layer": (tf.GPT2Config, dict(GPT2, scale_attn_by_inverse_layer_idx=True, n_head=6, n_inner=20)),
    },
    "llama": {
        "grouped": (tf.LlamaConfig, dict(LLAMA, head_dim=8, rope_parameters=LLAMA3_ROPE)),
        "biased": (tf.LlamaConfig, dict(LLAMA, num_key_value_heads=4, attention_bias=True, mlp_bias=True,
                                        tie_word_embeddings=True)),
    },
    "mistral": {
        "window": (tf.MistralConfig, dict(LLAMA, head_dim=8, sliding_window=4)),
    },
    "qwen2": {
        "mixed": (tf.Qwen2Config, dict(LLAMA, tie_word_embeddings=True, use_sliding_window=True, sliding_window=3,
                                       max_window_layers=1)),
        "yarn": (tf.Qwen2Config, dict(LLAMA, hidden_size=32, rope_parameters=YARN)),
    },
    "qwen3": {"normed": (tf.Qwen3Config, dict(LLAMA, head_dim=8, attention_bias=True))},
    "phi3": {
        "fused": (tf.Phi3Config, dict(LLAMA, sliding_window=5)),
        "long": (tf.Phi3Config, dict(LLAMA, hidden_size=32, original_max_position_embeddings=8,
                                     rope_parameters=LONGROPE)),
        "short": (tf.Phi3Config, dict(LLAMA, hidden_size=32, original_max_position_embeddings=32,
                                      rope_parameters=dict(LONGROPE, factor=4.0))),
    },
    "gpt_neox": {
        "parallel": (tf.GPTNeoXConfig, NEOX),
        "sequential": (tf.GPTNeoXConfig, dict(NEOX, use_parallel_residual=False, num_hidden_layers=1)),
    },
    # heads of 16, likewise
    "gptj": {"plain": (tf.GPTJConfig, dict(vocab_size=41, n_embd=32, n_layer=2, n_head=2, n_positions=16, n_inner=40,
                                           rotary_dim=8, **TOKENS))},
    "phi": {"plain": (tf.PhiConfig, dict(NEOX, rope_parameters=dict(NEOX["rope_parameters"],
                                                                    partial_rotary_factor=0.5)))},
    "bloom": {
        "plain": (tf.BloomConfig, dict(vocab_size=41, hidden_size=24, n_layer=2, n_head=3, **TOKENS)),
        "stream": (tf.BloomConfig, dict(vocab_size=41, hidden_size=24, n_layer=2, n_head=3,
                                        apply_residual_connection_post_layernorm=True, **TOKENS)),
    },
    "falcon": {
        "single": (tf.FalconConfig, FALCON),
        "grouped": (tf.FalconConfig, dict(FALCON, new_decoder_architecture=True, num_ln_in_parallel_attn=1,
                                          num_kv_heads=2, bias=True)),
        "two_norms": (tf.FalconConfig, dict(FALCON, new_decoder_architecture=True, num_kv_heads=2)),
        "sequential": (tf.FalconConfig, dict(FALCON, parallel_attn=False, multi_query=False, bias=True)),
        # as the RW models, with heads whose slopes bfloat16 rounds
        "alibi": (tf.FalconConfig, dict(FALCON, parallel_attn=False, multi_query=False, bias=True, alibi=True,
                                        hidden_size=40, num_attention_heads=10)),
    },
    "gemma": {"plain": (tf.GemmaConfig, dict(LLAMA, head_dim=8, num_key_value_heads=1))},
    "gemma2": {"plain": (tf.Gemma2Config, dict(LLAMA, head_dim=8, query_pre_attn_scalar=10, sliding_window=4,
                                               attn_logit_softcapping=5.0, final_logit_softcapping=7.0))},
    "gemma3": {
        "text": (tf.Gemma3TextConfig, GEMMA3),
        # with a (tiny) model of images around it, whose weights are passed over
        "images": (tf.Gemma3Config, dict(text_config=GEMMA3, mm_tokens_per_image=4, vision_config=dict(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8,
            patch_size=2))),
    },
    # PaLM's anatomy: one key-value head
    "cohere": {"palm": (tf.CohereConfig, dict(LLAMA, head_dim=4, num_key_value_heads=1, logit_scale=0.25,
                                              rope_parameters=dict(rope_type="default", rope_theta=100.0))),
               # as Command R+
               "normed": (tf.CohereConfig, dict(LLAMA, logit_scale=0.25, use_qk_norm=True, rope_parameters=dict(
                   rope_type="default", rope_theta=100.0)))},
}


plain_softmax = torch.nn.functional.softmax
# eager attention asks for float32 whatever its input is
torch.nn.functional.softmax = lambda x, dim=None, dtype=None: plain_softmax(x, dim=dim)


def rotate_in_double(q, k, cos, sin, unsqueeze_dim=1):
    """Cohere's without its casts to float32."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return tuple(x * cos + modeling_cohere.rotate_half(x) * sin for x in (q, k))


modeling_cohere.apply_rotary_pos_emb = rotate_in_double


class FloatTables(torch.nn.Module):
    """cos and sin as the op table has them: computed in double, rounded to float once."""

    def __init__(self, inner):
        super().__init__()
        config = inner.config
        self.paired = type(inner).__name__.startswith("Cohere")
        nested = {k: v for k, v in config.rope_parameters.items() if isinstance(v, dict)}
        self.tables = {kind: exact_frequencies(config, parameters, inner, f"{kind}_" if nested else "")
                       for kind, parameters in (nested or {None: config.rope_parameters}).items()}

    def forward(self, x, position_ids, layer_type=None):
        inv_freq, scaling = self.tables[layer_type]
        angles = position_ids[..., None].double() * inv_freq
        angles = angles.repeat_interleave(2, dim=-1) if self.paired else torch.cat((angles, angles), dim=-1)
        return (angles.cos() * scaling).float().double(), (angles.sin() * scaling).float().double()


def exact_frequencies(config, parameters, module, prefix):
    """transformers computes inv_freq in float32; ours are doubles. The same formulas in double, checked against it."""
    head = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    dim = int(head * parameters.get("partial_rotary_factor", 1.0))
    base, kind = parameters["rope_theta"], parameters["rope_type"]
    old, factor = parameters.get("original_max_position_embeddings"), parameters.get("factor")
    inv = 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    want, scaling = getattr(module, f"{prefix}inv_freq"), 1.0
    if kind == "llama3":
        low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
        wave = 2 * torch.pi / inv
        smooth = ((old / wave - low) / (high - low)).clamp(0, 1)
        inv = (1 - smooth) * inv / factor + smooth * inv
    elif kind == "linear":
        inv = inv / factor
    elif kind == "yarn":
        def turning(rotations):
            return dim * math.log(old / (rotations * 2 * math.pi)) / (2 * math.log(base))
        low = max(math.floor(turning(parameters["beta_fast"])), 0)
        high = min(math.ceil(turning(parameters["beta_slow"])), dim - 1)
        assert 0 < low + 1 < high, (low, high)
        ramp = ((torch.arange(dim // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
        inv = inv / factor * ramp + inv * (1 - ramp)
        scaling = 0.1 * math.log(factor) + 1
    elif kind == "longrope":
        factor = factor or config.max_position_embeddings / old
        scaling = math.sqrt(1 + math.log(factor) / math.log(old))
        lists = [parameters[k] for k in ("long_factor", "short_factor")]
        long, short = (inv / torch.tensor(x, dtype=torch.float64) for x in lists)
        inv, plain = (long if gen.T > old else short), short
        assert (plain.float() - want.float()).abs().max() < 1e-6
        want = inv  # transformers makes the long list's in its forward
    assert (inv.float() - want.float()).abs().max() < 1e-6
    assert abs(getattr(module, f"{prefix}attention_scaling", 1.0) - scaling) < 1e-9
    return inv, scaling


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
        if type(module).__name__ == "CohereLayerNorm":
            def layer_norm(self, x):
                y = x - x.mean(-1, keepdim=True)
                return self.weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))
            module.forward = layer_norm.__get__(module)
        if type(module).__name__.endswith("RMSNorm"):
            def in_double(self, x):
                plus = 1 if type(self).__name__.startswith("Gemma") else 0
                eps = getattr(self, "variance_epsilon", None) or self.eps
                return (plus + self.weight) * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))
            module.forward = in_double.__get__(module)
        if type(module).__name__.endswith("RotaryEmbedding"):
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
            norm = p.ndim == 1 and name.endswith("weight") and not model.config.model_type.startswith("gemma")
            norm = norm or name.endswith(("q_norm.weight", "k_norm.weight")) and p.ndim == 2
            p.copy_(torch.randn_like(p) * (0.3 if p.ndim == 2 and not norm else 0.1) + (1.0 if norm else 0.0))
    model.save_pretrained(root / "model")
    (root / "model" / "generation_config.json").unlink(missing_ok=True)
    model = make_double(model)
    gen.BASE = dict(gen.BASE, vocab_size=model.config.get_text_config().vocab_size)
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
    save_file({n.replace("lm_head", "embed_out") if neox else n: p.grad for n, p in model.named_parameters() if p.grad is not None},
              root / "grads" / "model.safetensors")
    save_file(out, root / "batch.safetensors")
    print(root.parent.name, root.name, "loss", out["loss"].item())


if __name__ == "__main__":
    wanted = sys.argv[2:] or list(CASES)
    for number, (family, cases) in enumerate(CASES.items()):
        for offset, (case, (config_class, changes)) in enumerate(cases.items()):
            if family in wanted:
                make_case(pathlib.Path(sys.argv[1]) / family / case, 10 * number + offset, config_class, changes)
