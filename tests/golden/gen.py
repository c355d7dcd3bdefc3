"""Make the golden files of tests/golden/opt with PyTorch and transformers. Run by hand:

    python tests/golden/gen.py tests/golden/opt

For each case CASE of OPT (see CASES), all with random weights:

    CASE/model/config.json, model.safetensors   the model as transformers saves it, float32
    CASE/grads/model.safetensors                under the same names, float64: the gradient of the SUM of all
                                                target tokens' losses (not their mean)
    CASE/batch.safetensors                      the batch and what came of it:
        tokens, targets, positions   int32 (B, T); target -1: no loss. Rows are right-padded with id 1
        logits                       float64 (B, T, V)
        row_loss                     float64 (B, T), 0 where there is no target
        loss                         float64 (1): the mean over the target tokens
        adamw.losses, adamw.norms    float64 (10), case "pre" only: mean loss and gradient norm (before clipping, of
                                     the mean loss) of ten steps on this batch, each loss before its update
        adamw.lr                     float64 (10): the learning rate of each step
        adamw.params                 float64 (6): beta1, beta2, eps, weight decay, clip norm, warm-up steps

Each AdamW step cuts the batch into two micro-batches of B / 2 rows whose gradients add up; both losses are divided by
the target tokens of the whole batch. Decay applies to matrices and the token table, not to biases, norms and positions.
The rate rises linearly over the warm-up steps, step t of 1.. having lr * min(1, t / warm-up). Dropout is 0.

All of it is computed in float64. The op table takes the norm's epsilon and the attention scale in float32, so the
model gets them rounded to that.
"""

import pathlib
import shutil
import sys

import numpy
import torch
from safetensors.torch import save_file
from transformers import OPTConfig, OPTForCausalLM

BASE = dict(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64,
            max_position_embeddings=40, word_embed_proj_dim=32, dropout=0.0, attention_dropout=0.0,
            bos_token_id=2, eos_token_id=2, pad_token_id=1)
CASES = {
    "pre": dict(),
    # as OPT-350m: norms after each sum, a narrow embedding
    "post": dict(do_layer_norm_before=False, word_embed_proj_dim=16, dropout=0.1),
    # as Galactica, with a head of its own
    "plain": dict(activation_function="gelu", enable_bias=False, layer_norm_elementwise_affine=False,
                  tie_word_embeddings=False),
}
B, T, LENGTHS = 4, 12, [12, 7, 10, 5]
LR, BETA1, BETA2, EPS, DECAY, CLIP, WARMUP, STEPS = 1e-2, 0.9, 0.95, 1e-8, 0.1, 1.0, 3, 10


def round_to_float(x):
    return float(numpy.float32(x))


def make_model(changes, path):
    model = OPTForCausalLM(OPTConfig(**{**BASE, **changes}, attn_implementation="sdpa"))
    with torch.no_grad():
        for name, p in model.named_parameters():
            # large enough that every path matters; norms around 1, biases not 0
            spread = 0.3 if p.ndim == 2 else 0.1
            p.copy_(torch.randn_like(p) * spread + (1.0 if "layer_norm.weight" in name else 0.0))
    model.save_pretrained(path)
    (path / "generation_config.json").unlink(missing_ok=True)
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = round_to_float(module.eps)
        if hasattr(module, "scaling"):
            module.scaling = round_to_float(module.scaling)
    # transformers leaves the row of the padding token out of the lookup's gradient; it is a row like any other here
    model.model.decoder.embed_tokens.padding_idx = None
    return model


def make_batch():
    tokens = torch.randint(3, BASE["vocab_size"], (B, T))
    tokens[:, 0] = 2
    targets = torch.full((B, T), -1)
    for row, length in enumerate(LENGTHS):
        tokens[row, length:] = 1
        targets[row, :length - 1] = tokens[row, 1:length]
    targets[0, :4] = -1  # a prompt
    positions = torch.arange(T).expand(B, T).contiguous()
    return tokens, targets, positions


def row_losses(model, tokens, targets, positions):
    logits = model(input_ids=tokens, position_ids=positions, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1,
                                             reduction="none")
    return logits, loss.view(tokens.shape)


def adamw_losses(model, batch):
    count = int((batch[1] >= 0).sum())
    decayed = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed_positions" not in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "embed_positions" not in n)]
    optimizer = torch.optim.AdamW([dict(params=decayed, weight_decay=DECAY), dict(params=others, weight_decay=0.0)],
                                  lr=LR, betas=(BETA1, BETA2), eps=EPS)
    losses, norms, rates = [], [], []
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        total = 0.0
        for part in range(2):
            rows = slice(part * B // 2, (part + 1) * B // 2)
            loss = row_losses(model, *(x[rows] for x in batch))[1].sum() / count
            loss.backward()
            total += loss.item()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item())
        rates.append(LR * min(1.0, step / WARMUP))
        for group in optimizer.param_groups:
            group["lr"] = rates[-1]
        optimizer.step()
        losses.append(total)
    return {"adamw.losses": losses, "adamw.norms": norms, "adamw.lr": rates,
            "adamw.params": [BETA1, BETA2, EPS, DECAY, CLIP, WARMUP]}


def make_case(name, changes, root):
    torch.manual_seed(20 + list(CASES).index(name))
    folder = root / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "grads").mkdir(parents=True)
    model = make_model(changes, folder / "model")
    batch = make_batch()
    logits, loss = row_losses(model, *batch)
    loss.sum().backward()
    out = dict(zip(("tokens", "targets", "positions"), (x.to(torch.int32) for x in batch)))
    out |= dict(logits=logits.detach(), row_loss=loss.detach(),
                loss=(loss.sum() / (batch[1] >= 0).sum()).detach().view(1))
    save_file({n: p.grad for n, p in model.named_parameters()}, folder / "grads" / "model.safetensors")
    if name == "pre":
        out |= {k: torch.tensor(v, dtype=torch.float64) for k, v in adamw_losses(model, batch).items()}
        print("adamw losses", out["adamw.losses"].tolist(), "norms", out["adamw.norms"].tolist())
    save_file(out, folder / "batch.safetensors")
    print(name, "loss", out["loss"].item())


if __name__ == "__main__":
    for case, case_changes in CASES.items():
        make_case(case, case_changes, pathlib.Path(sys.argv[1]))
