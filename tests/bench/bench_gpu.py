"""Training steps of real models' shapes on one GPU, ours and PyTorch's in turn. Run by `make bench-gpu`.

usage: bench_gpu.py --build DIR [--against DIR] [--python PYTHON] [--work DIR] [--no-peer] [--no-profile | --profile] [CASE...]

A case is a model's shape with random weights. Ours is castor-worker on a job directory, as castord would write it:
packed rows without padding, every token a target, AdamW with clipping. The peer is peer_step.py (see there), run
between two runs of ours on the same GPU; PYTHON is one that has torch and transformers. With --against, another
build's castor-worker, that of an older commit, takes turns with ours: ours, older, peer, older, ours. Prints for each run
milliseconds a step, tokens a second, model FLOP utilisation (6 N_matmul + 6 L h T flops a token over the datasheet's
989 TFLOP/s), peak memory and the rows of a micro-batch, which our planner chooses where a case leaves them open; then
for each case

  bench: CASE ours X peer Y unit tok/s ratio R

with the median of the steps behind the warm-up, the same for CASE-older with the older build as the peer, and where a
step's time goes, op by op beside each op's floor, with the ceilings that floors are taken from measured behind that
step (--no-profile leaves that out, --profile everything else). Where a case names published figures of peers that
cannot run here, they are printed beside it; where PyTorch did not run either, the fastest of them is Y, and a line
behind says so. Where there is no peer at all, the line has neither `peer Y` nor `ratio R`.
"""
import argparse
import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
import rig  # noqa: E402

WARM_UP, STEPS, LIMIT_S = 6, 12, 240
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
SPACE = "\u0120"  # how byte-level tokenizers write a space
DATASHEET = 989e12
DEVICE = "gpu"


def opt(hidden, layers, heads):
    return {"model_type": "opt", "architectures": ["OPTForCausalLM"], "hidden_size": hidden, "ffn_dim": 4 * hidden,
            "num_hidden_layers": layers, "num_attention_heads": heads, "word_embed_proj_dim": hidden,
            "max_position_embeddings": 2048, "vocab_size": 50272, "do_layer_norm_before": True, "dropout": 0.0,
            "attention_dropout": 0.0, "activation_function": "relu", "bos_token_id": 2, "eos_token_id": 2,
            "pad_token_id": 1, "tie_word_embeddings": True}


def gpt2(hidden, layers, heads):
    return {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": hidden, "n_layer": layers,
            "n_head": heads, "n_positions": 1024, "n_ctx": 1024, "vocab_size": 50257, "resid_pdrop": 0.0,
            "embd_pdrop": 0.0, "attn_pdrop": 0.0, "activation_function": "gelu_new", "bos_token_id": 2,
            "eos_token_id": 2, "layer_norm_epsilon": 1e-5}


def qwen2(hidden, layers, heads, kv, ffn, vocab, tied):
    return {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": hidden,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
            "intermediate_size": ffn, "vocab_size": vocab, "tie_word_embeddings": tied, "hidden_act": "silu",
            "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "bos_token_id": 2,
            "eos_token_id": 2, "attention_dropout": 0.0, "use_sliding_window": False}


def llama(hidden, layers, heads, kv, ffn, vocab):
    return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
            "intermediate_size": ffn, "vocab_size": vocab, "tie_word_embeddings": False, "hidden_act": "silu",
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "bos_token_id": 2,
            "eos_token_id": 2, "attention_bias": False}


# name: master weights, gradients and moments
STATES = {"fp32": ("fp32", "fp32", "fp32"), "bf16": ("bf16", "bf16", "bf16"), "least": ("split", "fp32", "fp8")}
# name: config, rows and tokens of a row in a step, rows of a micro-batch (ours, or the planner's choice; the peer's),
# states, published figures
CASES = {
    "opt-125m": (opt(768, 12, 12), 32, 1024, 32, 32, "fp32", {}),
    "gpt2-124m": (gpt2(768, 12, 12), 32, 1024, 32, 32, "fp32", {"llm.c": 429000}),
    "opt-1.3b": (opt(2048, 24, 32), 8, 1024, 8, 8, "fp32", {}),
    "gpt2-1558m": (gpt2(1600, 48, 25), 8, 1024, 8, 8, "fp32", {"llm.c": 44200}),
    "qwen2.5-1.5b": (qwen2(1536, 28, 12, 2, 8960, 151936, True), 32, 1024, "auto", 8, "bf16", {"LLMQ": 57500}),
    "qwen2.5-7b": (qwen2(3584, 28, 28, 4, 18944, 152064, False), 16, 1024, "auto", 2, "bf16", {"LLMQ": 13030}),
    "llama-3.1-8b-lora": (llama(4096, 32, 32, 8, 14336, 128256), 4, 4096, 4, 0, "fp32", {"Unsloth": 8900, "Surogate": 10200}),
}
FP8 = "-fp8"  # behind a case's name: ours computes in fp8, the peer and the published figures in bf16 as before
CASES.update({name + FP8: CASES[name] for name in ("qwen2.5-1.5b", "qwen2.5-7b")})
# Cases that train adapters of this rank on all linear layers; these have no PyTorch peer here.
LORA_RANK = {"llama-3.1-8b-lora": 16}


# ---- the model and its data -----------------------------------------------------------------------------------

def words():
    """Three letters behind a space: one token each, 45,000 of them, so that the tokens of a step spread as real ones do."""
    return ["".join(w) for w in itertools.islice(itertools.product(LETTERS, repeat=3), 45000)]


def write_tokenizer(directory):
    rig.write_tokenizer(directory)
    path = os.path.join(directory, "tokenizer.json")
    with open(path, encoding="utf-8") as f:
        tokenizer = json.load(f)
    vocab, merges = tokenizer["model"]["vocab"], []
    for text in itertools.chain(LETTERS, map("".join, itertools.product(LETTERS, repeat=2)), words()):
        vocab[SPACE + text] = len(vocab)
        merges.append("%s %s" % (SPACE + text[:-1], text[-1]))
    tokenizer["model"]["merges"] = merges
    rig.write_json(path, tokenizer)


def write_data(path, rows, length):
    """Examples that are a row each: their words, and the token that the tokenizer puts in front and at the end."""
    bank = words()
    with open(path, "w", encoding="utf-8") as f:
        at = 0
        for _ in range(rows):
            chosen = []
            for _ in range(length - 2):
                at = (at * 6364136223846793005 + 1442695040888963407) % 2**63
                chosen.append(bank[(at >> 30) % len(bank)])
            f.write(json.dumps({"text": " " + " ".join(chosen)}) + "\n")


def tensor_shapes(c):
    """Names and shapes as transformers publishes them."""
    shapes = {}
    if c["model_type"] == "opt":
        h, p = c["hidden_size"], "model.decoder."
        shapes[p + "embed_tokens.weight"] = (c["vocab_size"], h)
        shapes[p + "embed_positions.weight"] = (c["max_position_embeddings"] + 2, h)
        for i in range(c["num_hidden_layers"]):
            q = p + "layers.%d." % i
            for name, out, into in [("self_attn.%s_proj" % k, h, h) for k in ("q", "k", "v", "out")] + [
                    ("fc1", 4 * h, h), ("fc2", h, 4 * h)]:
                shapes[q + name + ".weight"], shapes[q + name + ".bias"] = (out, into), (out,)
            for name in ("self_attn_layer_norm", "final_layer_norm"):
                shapes[q + name + ".weight"] = shapes[q + name + ".bias"] = (h,)
        shapes[p + "final_layer_norm.weight"] = shapes[p + "final_layer_norm.bias"] = (h,)
    elif c["model_type"] == "gpt2":
        h = c["n_embd"]
        shapes["wte.weight"], shapes["wpe.weight"] = (c["vocab_size"], h), (c["n_positions"], h)
        for i in range(c["n_layer"]):
            q = "h.%d." % i
            for name, into, out in (("attn.c_attn", h, 3 * h), ("attn.c_proj", h, h), ("mlp.c_fc", h, 4 * h),
                                    ("mlp.c_proj", 4 * h, h)):
                shapes[q + name + ".weight"], shapes[q + name + ".bias"] = (into, out), (out,)
            for name in ("ln_1", "ln_2"):
                shapes[q + name + ".weight"] = shapes[q + name + ".bias"] = (h,)
        shapes["ln_f.weight"] = shapes["ln_f.bias"] = (h,)
    else:
        h, f = c["hidden_size"], c["intermediate_size"]
        kv = h // c["num_attention_heads"] * c["num_key_value_heads"]
        shapes["model.embed_tokens.weight"] = (c["vocab_size"], h)
        if not c["tie_word_embeddings"]:
            shapes["lm_head.weight"] = (c["vocab_size"], h)
        for i in range(c["num_hidden_layers"]):
            q = "model.layers.%d." % i
            for name, out in (("q", h), ("k", kv), ("v", kv)):
                shapes[q + "self_attn.%s_proj.weight" % name] = (out, h)
                if c["model_type"] == "qwen2":
                    shapes[q + "self_attn.%s_proj.bias" % name] = (out,)
            shapes[q + "self_attn.o_proj.weight"] = (h, h)
            shapes[q + "mlp.gate_proj.weight"] = shapes[q + "mlp.up_proj.weight"] = (f, h)
            shapes[q + "mlp.down_proj.weight"] = (h, f)
            shapes[q + "input_layernorm.weight"] = shapes[q + "post_attention_layernorm.weight"] = (h,)
        shapes["model.norm.weight"] = (h,)
    return shapes


def write_weights(directory, config):
    """bf16, uniform in +-0.035 (a standard deviation of 0.02), norms' scales 1: one block of random numbers over and over."""
    header, offset = {}, 0
    shapes = tensor_shapes(config)
    for name, shape in shapes.items():
        n = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + n]}
        offset += n
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    noise = bytearray(os.urandom(1 << 23))
    for k in range(1, len(noise), 2):  # sign and exponent of 2^-5 to 2^-9, mantissa as it came
        noise[k] = (noise[k] & 0x80) | 0x3c | (noise[k] & 1)
    with open(os.path.join(directory, "model.safetensors"), "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            n = 2 * math.prod(shape)
            if len(shape) == 1:
                scale = name.endswith("weight")
                f.write((b"\x80\x3f" if scale else b"\0\0") * shape[0])
                continue
            while n > 0:
                f.write(noise[:n])
                n -= len(noise)


def parameters(config):
    """Elements of all matrices that a token is multiplied with: everything but embeddings, and the head."""
    n = sum(math.prod(s) for s in tensor_shapes(config).values() if len(s) == 2)
    positions = config.get("n_positions") or (config["max_position_embeddings"] + 2 if config["model_type"] == "opt" else 0)
    width = config.get("n_embd") or config["hidden_size"]
    return n - positions * width - (0 if config.get("tie_word_embeddings", True) else config["vocab_size"] * width)


def token_flops(config, length, frozen=False):
    """Frozen matrices have no gradient of their own."""
    layers = config.get("n_layer") or config["num_hidden_layers"]
    width = config.get("n_embd") or config["hidden_size"]
    return (4 if frozen else 6) * parameters(config) + 6 * layers * width * length


# ---- runs -----------------------------------------------------------------------------------------------------

def write_job(root, data, model, rows, length, micro, states, compute="bf16", lora_rank=0):
    spec = json.loads(json.dumps(rig.SPEC))
    os.makedirs(root)
    spec["model"] = "bench/model"
    spec["base_model"]["path"] = model
    spec["files"]["training_file"].update(path=data, filename="train.jsonl", bytes=os.path.getsize(data))
    spec["hyperparameters"]["batch_size"] = rows
    spec["dataset"].update(max_seq_length=length, packing=True)
    spec["optimization"].update(learning_rate=1e-5, weight_decay=0.1, micro_batch_size=micro)
    master, gradients, moments = STATES[states]
    spec["precision"] = {"compute": compute, "master": master, "gradients": gradients, "optimizer_state": moments}
    spec["resources"]["device"] = DEVICE
    if lora_rank:
        spec["lora"] = {"rank": lora_rank, "alpha": 2 * lora_rank, "dropout": 0.0, "rslora": False,
                        "target_modules": "all-linear", "export": "adapter"}
    rig.write_json(os.path.join(root, "spec.json"), spec)


def read_events(path):
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f if line.endswith("\n")]


def events_of(root):
    return os.path.join(root, "attempt-1", "events.jsonl")


def worker_of(build):
    return os.path.join(build, "castor-worker")


def run_ours(worker, root, cache=None):
    """Steps of one attempt, which is cancelled as soon as there are enough: (seconds, peak bytes, tokens of a step, rows
    of a micro-batch), or None and the worker's words."""
    events = events_of(root)
    environment = {**os.environ, **({"XDG_CACHE_HOME": cache} if cache else {})}
    process = subprocess.Popen([worker, root], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    deadline, steps = time.monotonic() + LIMIT_S, []
    while len(steps) < WARM_UP + STEPS and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
        steps = [e for e in read_events(events) if e["type"] == "step"]
    with open(os.path.join(root, "control.jsonl"), "a", encoding="utf-8") as f:
        f.write(json.dumps({"v": 1, "id": "ctl-1", "t": time.time(), "type": "cancel"}) + "\n")
    try:
        words = process.communicate(timeout=60)[1]
    except subprocess.TimeoutExpired:
        process.terminate()
        words = process.communicate()[1]
    if len(steps) < WARM_UP + STEPS:
        failed = [e for e in read_events(events) if e["type"] == "failed"]
        return None, str(failed[-1]) if failed else words[-2000:]
    measured = steps[WARM_UP:]
    short = [s for s in measured if s["tokens"] != measured[0]["tokens"]]
    assert not short, short
    return (statistics.median(s["seconds"] for s in measured), measured[-1]["gpu"]["peak"], measured[-1]["tokens"],
            planned_rows(events)), None


def planned_rows(events):
    """Of a micro-batch."""
    plan = next(e["plan"] for e in read_events(events) if e["type"] == "plan")
    return plan["spec"]["optimization"]["micro_batch_size"]


def profile(worker, root, title):
    done = subprocess.run([worker, "--profile", root], capture_output=True, text=True, timeout=LIMIT_S)
    if done.returncode != 0:
        print("%s\n%s" % (title, done.stderr[-2000:]), flush=True)
        return False
    print("%s in micro-batches of %d\n%s" % (title, planned_rows(events_of(root)), done.stdout), flush=True)
    return True


def run_peer(python, model, rows, length, micro, states):
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "peer_step.py")
    done = subprocess.run([python, script, model, "--rows", str(rows), "--length", str(length), "--micro", str(micro),
                           "--states", states], capture_output=True, text=True, timeout=LIMIT_S)
    if done.returncode != 0:
        return None, done.stderr[-800:]
    result = json.loads(done.stdout.splitlines()[-1])
    return (result["seconds"], result["peak"], rows * length, micro), None


def show(name, who, run, why, config, length):
    if run is None:
        print("%-14s %-6s failed: %s" % (name, who, why), flush=True)
        return
    seconds, peak, tokens, micro = run
    mfu = token_flops(config, length, name in LORA_RANK) * tokens / seconds / DATASHEET
    print("%-14s %-6s %8.1f ms  %9.0f tok/s  MFU %4.1f %%  peak %5.1f GiB  micro-batches of %d" % (
        name, who, seconds * 1e3, tokens / seconds, 100 * mfu, peak / 2**30, micro), flush=True)


def write_inputs(work, config, rows, length, steps):
    """The model's directory and the data of so many steps."""
    model, data = os.path.join(work, "model"), os.path.join(work, "train.jsonl")
    os.makedirs(model)
    rig.write_json(os.path.join(model, "config.json"), config)
    write_tokenizer(model)
    write_weights(model, config)
    write_data(data, rows * steps, length)
    return model, data


def take_turns(name, options, work, model, data):
    """{who: runs} of ours, an older build and the peer. Builds keep the tuned plans of products apart: an older one may
    not know what a newer one chooses."""
    config, rows, length, micro, peer_micro, states, _ = CASES[name]
    builds, order, runs = {"ours": options.build}, ["ours"], {}
    if options.against:
        builds["older"], order = options.against, ["ours", "older"]
    if not (options.no_peer or name in LORA_RANK):
        order += ["torch"]
    if len(order) > 1:
        order += [who for who in reversed(order) if who != "torch"]
    for turn, who in enumerate(order):
        if who == "torch":
            run, why = run_peer(options.python, model, rows, length, peer_micro, states)
        else:
            job = os.path.join(work, "job-%d" % turn)
            write_case(job, name, model, data)
            run, why = run_ours(worker_of(builds[who]), job, os.path.join(work, "cache-" + who) if options.against else None)
        show(name, who, run, why, config, length)
        runs.setdefault(who, []).extend([run] if run else [])
    return runs


def write_case(job, name, model, data):
    _, rows, length, micro, _, states, _ = CASES[name]
    write_job(job, data, model, rows, length, micro, states, "fp8" if name.endswith(FP8) else "bf16", LORA_RANK.get(name, 0))


def speed_of(runs):
    return statistics.median(tokens / seconds for seconds, _, tokens, _ in runs) if runs else float("nan")


def compare(name, ours, peer):
    """A case's line; without a peer where its speed is NaN."""
    if math.isnan(peer):
        print("bench: %s ours %.0f unit tok/s" % (name, ours), flush=True)
    else:
        print("bench: %s ours %.0f peer %.0f unit tok/s ratio %.3f" % (name, ours, peer, ours / peer), flush=True)


def bench(name, options, work):
    config, rows, length, _, _, _, published = CASES[name]
    model, data = write_inputs(work, config, rows, length, WARM_UP + STEPS + 24)
    fine = True
    if not options.profile:
        runs = take_turns(name, options, work, model, data)
        for who, speed in published.items():
            print("%-14s %-6s published: %d tok/s" % (name, who, speed))
        x, fine = speed_of(runs["ours"]), bool(runs["ours"])
        if fine and not runs.get("torch") and published:
            who = max(published, key=published.get)
            compare(name, x, published[who])
            print("    %s: peer %s as published" % (name, who), flush=True)
        elif fine or "torch" in runs:
            compare(name, x, speed_of(runs.get("torch")))
        if "older" in runs:
            compare(name + "-older", x, speed_of(runs["older"]))
    if not options.no_profile:
        job = os.path.join(work, "job-profile")
        write_case(job, name, model, data)
        fine &= profile(worker_of(options.build), job, "%s, %d x %d" % (name, rows, length))
    return fine


def run_cases(names, bench, options):
    """Each case in a directory of its own; the exit status."""
    fine = True
    for name in names:
        work = tempfile.mkdtemp(prefix="castor-bench-", dir=options.work)
        try:
            fine &= bench(name, options, work)
        finally:
            shutil.rmtree(work)
    return 0 if fine else 1


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    parser.add_argument("--python", default="python3")
    parser.add_argument("--work", default=None)
    parser.add_argument("--against")
    for name in ("no-peer", "no-profile", "profile"):
        parser.add_argument("--" + name, action="store_true")
    parser.add_argument("cases", nargs="*", default=list(CASES))
    options = parser.parse_args()
    return run_cases(options.cases or CASES, bench, options)


if __name__ == "__main__":
    sys.exit(main())
