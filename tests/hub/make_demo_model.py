#!/usr/bin/env python3
"""Makes the demonstration's model and data from free text that Debian packages.

    tests/hub/make_demo_model.py prepare OUT              corpus, tokenizer, random weights
    tests/hub/make_demo_model.py pretrain OUT BUILD_DIR   Castor trains them, as a job through its API
    tests/hub/make_demo_model.py publish OUT              weights in fp16 and the demo's data into tests/hub

`make demo-model` runs all three. Needs dict-jargon, wordnet-base, numpy, safetensors and tokenizers.
Text: WordNet 3.0 glosses (WordNet licence) for pretraining; the Jargon File 4.4.7 (public domain) is what the
demo fine-tunes on.
"""
import gzip
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import time

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).resolve().parent
REPO = "castor/opt-3m"
VOCAB, HIDDEN, LAYERS, HEADS, FFN, POSITIONS = 4096, 192, 4, 6, 768, 256
SEED = 20
STEPS = 4000
INIT_REPO = "castor/opt-3m-init"


def wordnet():
    """'word: gloss' lines, grouped."""
    out = []
    for part in ("noun", "verb", "adj", "adv"):
        for line in open(f"/usr/share/wordnet/data.{part}", encoding="utf-8"):
            if line.startswith("  ") or "|" not in line:
                continue
            word = line.split()[4].replace("_", " ")
            out.append(f"{word}: {line.split('|', 1)[1].strip()}.")
    random.Random(SEED).shuffle(out)
    return [" ".join(out[i:i + 5]) for i in range(0, len(out), 5)]


def jargon():
    """Entries of the Jargon File: headword, then its definition as one paragraph."""
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

    def number(text):
        n = 0
        for c in text:
            n = n * 64 + digits.index(c)
        return n

    data = gzip.open("/usr/share/dictd/jargon.dict.dz").read()
    out, seen = [], set()
    for line in open("/usr/share/dictd/jargon.index", encoding="utf-8"):
        word, start, size = line.rstrip("\n").split("\t")
        start, size = number(start), number(size)
        if word.startswith("00") or start in seen:
            continue
        seen.add(start)
        lines = data[start:start + size].decode("utf-8", "replace").split("\n")
        head = lines[0].strip()
        body = re.sub(r"\s+", " ", " ".join(lines[1:])).strip()
        body = re.sub(r"[{}]", "", body)
        if 40 < len(body) < 900 and head and "\ufffd" not in head + body:
            out.append(f"{head}: {body}")
    random.Random(SEED).shuffle(out)
    return out


def write_jsonl(path, texts):
    with open(path, "w", encoding="utf-8") as f:
        for text in texts:
            f.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def make_tokenizer(texts, out):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(texts, trainer)
    tok.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    tok.save(str(out / "tokenizer.json"))
    special = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    (out / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    config = dict(special, tokenizer_class="PreTrainedTokenizerFast", model_max_length=POSITIONS, add_bos_token=True)
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def make_model(out):
    config = {"architectures": ["OPTForCausalLM"], "model_type": "opt", "activation_function": "relu",
              "vocab_size": VOCAB, "hidden_size": HIDDEN, "word_embed_proj_dim": HIDDEN, "num_hidden_layers": LAYERS,
              "num_attention_heads": HEADS, "ffn_dim": FFN, "max_position_embeddings": POSITIONS,
              "do_layer_norm_before": True, "enable_bias": True, "layer_norm_elementwise_affine": True,
              "dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.0, "init_std": 0.02,
              "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1, "tie_word_embeddings": True,
              "use_cache": True, "torch_dtype": "float16"}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}, indent=2) + "\n")
    rng = np.random.default_rng(SEED)
    t = {}

    def matrix(name, rows, cols, std=0.02):
        t[name + ".weight"] = rng.normal(0, std, (rows, cols)).astype(np.float32)

    def vector(name, n, value):
        t[name] = np.full(n, value, np.float32)

    matrix("model.decoder.embed_tokens", VOCAB, HIDDEN)
    matrix("model.decoder.embed_positions", POSITIONS + 2, HIDDEN)
    for i in range(LAYERS):
        p = f"model.decoder.layers.{i}."
        for name, rows, cols in (("self_attn.q_proj", HIDDEN, HIDDEN), ("self_attn.k_proj", HIDDEN, HIDDEN),
                                 ("self_attn.v_proj", HIDDEN, HIDDEN), ("self_attn.out_proj", HIDDEN, HIDDEN),
                                 ("fc1", FFN, HIDDEN), ("fc2", HIDDEN, FFN)):
            small = name in ("self_attn.out_proj", "fc2")
            matrix(p + name, rows, cols, 0.02 / (2 * LAYERS) ** 0.5 if small else 0.02)
            vector(p + name + ".bias", rows, 0)
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            vector(p + name + ".weight", HIDDEN, 1)
            vector(p + name + ".bias", HIDDEN, 0)
    vector("model.decoder.final_layer_norm.weight", HIDDEN, 1)
    vector("model.decoder.final_layer_norm.bias", HIDDEN, 0)
    save_file(t, str(out / "model.safetensors"), metadata={"format": "pt"})


def prepare(out):
    model = out / "hub" / "models" / INIT_REPO
    model.mkdir(parents=True, exist_ok=True)
    texts = wordnet()
    write_jsonl(out / "pretrain.jsonl", texts)
    make_tokenizer(texts + jargon(), model)
    make_model(model)
    print(f"{len(texts)} paragraphs, {sum(map(len, texts)) / 1e6:.1f} M characters in {out / 'pretrain.jsonl'}")


REQUEST = {
    "model": INIT_REPO, "seed": SEED,
    "method": {"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 32, "n_epochs": 50}}},
    "optimization": {"learning_rate": 2e-3, "schedule": "cosine", "warmup_ratio": 0.03, "weight_decay": 0.1, "beta2": 0.98,
                     "max_steps": STEPS, "micro_batch_size": 32, "checkpoint_interval": 1000, "eval_interval": STEPS},
    "dataset": {"max_seq_length": POSITIONS, "packing": True},
    "precision": {"compute": "fp32"},
}


def start(log, *command):
    """Start a program in the background; returns it and the address it listens on."""
    process = subprocess.Popen(command, stdout=open(log, "w"), stderr=subprocess.STDOUT)
    for _ in range(200):
        found = re.search(r"listening on (http\S+)", log.read_text())
        if found:
            return process, found.group(1)
        time.sleep(0.05)
    sys.exit(f"{command[0]} did not start, see {log}")


def curl(*arguments):
    return json.loads(subprocess.run(["curl", "-sS", *arguments], capture_output=True, check=True).stdout)


def pretrain(out, build):
    hub, endpoint = start(out / "hub.log", sys.executable, str(HERE / "fixture_hub.py"), "--root", str(out / "hub"),
                          "--port", "0")
    os.environ.update(HF_ENDPOINT=endpoint, HF_HUB_CACHE=str(out / "cache"), NO_PROXY="127.0.0.1")
    castord, base = start(out / "castord.log", f"{build}/castord", "--listen", "127.0.0.1:0", "--state", str(out / "state"))
    try:
        data = curl(base + "/v1/files", "-F", "purpose=fine-tune", "-F", f"file=@{out}/pretrain.jsonl")
        job = curl(base + "/v1/fine_tuning/jobs", "-d", json.dumps(dict(REQUEST, training_file=data["id"])))
        while job.get("status") not in ("succeeded", "failed", "cancelled", None):
            time.sleep(5)
            job = curl(base + "/v1/fine_tuning/jobs/" + job["id"])
            print(job["status"], (job["progress"] or {}).get("step"), (job["progress"] or {}).get("train_loss"), flush=True)
        if job.get("status") != "succeeded":
            sys.exit(f"pretraining failed: {job.get('error')}")
        shutil.copytree(out / "state" / "jobs" / job["id"] / "output", out / "trained", dirs_exist_ok=True)
    finally:
        castord.terminate()
        hub.terminate()


def publish(out):
    target = HERE / "root" / "models" / REPO
    target.mkdir(parents=True, exist_ok=True)
    source = out / "trained"
    for f in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(source / f, target / f)
    config = json.loads((source / "config.json").read_text())
    config["torch_dtype"] = "float16"
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {k: v.astype(np.float16) for k, v in load_file(str(source / "model.safetensors")).items()}
    save_file(weights, str(target / "model.safetensors"), metadata={"format": "pt"})
    data = HERE / "data"
    data.mkdir(exist_ok=True)
    entries = jargon()
    write_jsonl(data / "jargon-validation.jsonl", entries[:60])
    write_jsonl(data / "jargon-train.jsonl", entries[60:860])
    print(f"model in {target}, data in {data}")


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("prepare", "pretrain", "publish"):
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[2]).resolve()
    if sys.argv[1] == "prepare":
        prepare(folder)
    elif sys.argv[1] == "pretrain":
        pretrain(folder, sys.argv[3])
    else:
        publish(folder)
