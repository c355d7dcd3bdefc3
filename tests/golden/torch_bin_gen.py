"""Make the files of tests/golden/torch_bin with PyTorch and transformers. Run by hand:

    python tests/golden/torch_bin_gen.py tests/golden/torch_bin

    views.bin            a dictionary of tensors of many types, views that share a storage, and a parameter; element i
                         of the storage of 12 floats is i
    reference/           a tiny OPT as config.json and model.safetensors, float16
    single/, sharded/    the same weights as pytorch_model.bin, and as an index with two shards
"""

import json
import pathlib
import shutil
import sys

import torch
from safetensors.torch import save_file
from transformers import OPTConfig, OPTForCausalLM


def make_views(path):
    base = torch.arange(12, dtype=torch.float32)
    matrix = base.view(3, 4)
    torch.save({
        "base": base,
        "matrix": matrix,
        "turned": matrix.t(),
        "column": matrix[:, 1],
        "block": matrix[1:, 2:],
        "box": base.view(2, 3, 2).permute(2, 0, 1),
        "parameter": torch.nn.Parameter(matrix[2]),
        "scalar": base[7],
        "nothing": torch.zeros(0, 5),
        "double": torch.tensor([1.5, -2.0], dtype=torch.float64),
        "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
        "bfloat": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "long": torch.tensor([7, -8]),
        "int": torch.tensor([7, -8], dtype=torch.int32),
        "char": torch.tensor([7, -8], dtype=torch.int8),
        "byte": torch.tensor([7, 200], dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
    }, path)


def make_models(root):
    model = OPTForCausalLM(OPTConfig(
        vocab_size=19, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, ffn_dim=12, max_position_embeddings=6,
        word_embed_proj_dim=8, bos_token_id=2, eos_token_id=2, pad_token_id=1)).half()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p))
    for folder in ("reference", "single", "sharded"):
        model.config.save_pretrained(root / folder)
    state = {n: p for n, p in model.state_dict().items() if n != "lm_head.weight"}
    save_file({n: p.contiguous() for n, p in state.items()}, root / "reference" / "model.safetensors")
    # as the original repositories have it: no "model." in front, the head once more, sharing the table's storage
    named = {n.removeprefix("model."): p for n, p in state.items()}
    torch.save({**named, "lm_head.weight": named["decoder.embed_tokens.weight"]}, root / "single" / "pytorch_model.bin")
    names = sorted(named)
    shards = {f"pytorch_model-0000{i + 1}-of-00002.bin": names[i::2] for i in range(2)}
    for shard, content in shards.items():
        torch.save({n: named[n] for n in content}, root / "sharded" / shard)
    index = {"metadata": {"total_size": sum(p.numel() * 2 for p in named.values())},
             "weight_map": {n: shard for shard, content in shards.items() for n in content}}
    (root / "sharded" / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    out = pathlib.Path(sys.argv[1])
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    torch.manual_seed(5)
    make_views(out / "views.bin")
    make_models(out)
