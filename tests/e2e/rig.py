"""Job directories, tiny models and castor-worker, for tests of training. Python's standard library only.

A model here is an OPT of two layers with random weights and a byte-level tokenizer without merges; it learns the
pattern of make_data within some dozen steps. Job writes the directory that castord would write; run() and start()
call castor-worker on it; events() and exit() read what it left, and events() insists on the rules of api/event.h.
"""
import argparse
import copy
import functools
import json
import math
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback

VOCAB, HIDDEN, LAYERS, HEADS, FFN, POSITIONS = 260, 32, 2, 4, 64, 64

SPEC = {
    "v": 1, "id": "ftjob-test", "created_at": 1.0, "resolved": False, "model": "test/tiny",
    "base_model": {"repo": None, "revision": None, "commit": None, "path": None},
    "training_file": "file-train", "validation_file": None,
    "files": {**{which: {"path": None, "filename": None, "bytes": 0, "repo": None, "revision": None, "commit": None,
                         "folder": None} for which in ("training_file", "validation_file")}, "nvme": {"path": None}},
    "metadata": None, "suffix": None, "seed": 7,
    "hyperparameters": {"n_epochs": 1, "batch_size": 4, "learning_rate_multiplier": "auto"},
    "dataset": {"format": "auto", "loss_on": "auto", "max_seq_length": 32, "packing": False, "max_examples": 0,
                "min_examples": 10, "column_mapping": None, "config": None, "split": None, "validation_split": None,
                "validation_fraction": 0.0},
    "optimization": {"learning_rate": 0.01, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-08, "weight_decay": 0.01,
                     "schedule": "linear", "warmup_ratio": 0.0, "max_grad_norm": 1.0, "max_steps": 0,
                     "micro_batch_size": 2, "eval_interval": 0, "checkpoint_interval": 0, "keep_checkpoints": 3,
                     "early_stopping": {"patience": 0, "min_delta": 0.0}, "export": "last", "dropout": "auto"},
    "precision": {"compute": "auto", "master": "fp32", "gradients": "fp32", "optimizer_state": "fp32"},
    "parallelism": "auto",
    "placement": {"policy": "auto", "gpu_memory_limit": 0, "host_memory_limit": 0, "nvme_limit": 0,
                  "nvme_path": None, "prefetch_depth": 0},
    "resources": {"device": "cpu", "gpus": "auto", "nodes": 1, "backend": "local"},
    "scheduling": {"priority": 0, "max_runtime_seconds": 0, "max_restarts": 0},
    "hub": {"endpoint": None, "has_token": False},
    "lora": None, "sample_tokens": 8, "sample_prompts": [],
}


# What castor-worker --probe writes of a GPU.
IMAGINARY_GPU = {
    "v": 12, "device": "Imaginary", "kind": "cuda", "memory": 80 << 30, "memory_free": 79 << 30,
    "flops_f32": 5.1e13, "flops_bf16": 8e14, "flops_layer": 8e14, "flops_fp8": 1.3e15, "layer_passes": 50,
    "multiprocessors": 132, "attn64_fwd": 2.7e14, "attn64_bwd": 2.4e14, "attn128_fwd": 4e14, "attn128_bwd": 3e14,
    "memory_rate": 2.85e12, "h2d_rate": 5.5e10, "d2h_rate": 5.5e10, "h2d_both_rate": 4.6e10, "d2h_both_rate": 4.6e10,
    "host_memory_rate": 8.4e10, "cpu_update_rate": 5.8e9, "cpu_update_copy_rate": 4.3e9, "cpu_update_fp8_rate": 8e9,
    "cpu_update_fp8_copy_rate": 7e9, "copy_update_rate": 4.3e10, "copy_update_fp8_rate": 4.4e10,
    "cpu_update_aside_rate": 5e9, "disk_read_rate": 2e9, "disk_write_rate": 2.6e9, "disk_read_both_rate": 1.2e9,
    "disk_write_both_rate": 1.2e9, "disk_best": 1.1
}


# ---- models --------------------------------------------------------------------------------------------------

def byte_alphabet():
    """The printable characters that stand for bytes in byte-level BPE."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in keep]
    table = {b: chr(b) for b in keep}
    table.update({b: chr(256 + i) for i, b in enumerate(others)})
    return [table[b] for b in range(256)]


def write_tokenizer(path, vocab=VOCAB):
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    ids = {t: i for i, t in enumerate(special)}
    ids.update({c: len(special) + b for b, c in enumerate(byte_alphabet())})
    for extra in range(len(ids), vocab):
        ids["extra%d" % extra] = extra
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True} for i, t in enumerate(special)],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": {"type": "TemplateProcessing",
                           "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}},
                                      {"Sequence": {"id": "A", "type_id": 0}}],
                           "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                           "special_tokens": {"</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": False, "vocab": ids, "merges": []}}
    write_json(os.path.join(path, "tokenizer.json"), tokenizer)
    write_json(os.path.join(path, "tokenizer_config.json"),
               {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"})


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f)


def write_safetensors(path, tensors):
    """tensors: {name: (shape, list of floats)}, stored as float32."""
    header, offset = {}, 0
    for name, (shape, values) in tensors.items():
        assert len(values) == math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + 4 * len(values)]}
        offset += 4 * len(values)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, values in tensors.values():
            f.write(struct.pack("<%df" % len(values), *values))


def read_safetensors(path):
    """{name: (dtype, shape, bytes)}"""
    with open(path, "rb") as f:
        data = f.read()
    n = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + n])
    header.pop("__metadata__", None)
    return {k: (v["dtype"], v["shape"], data[8 + n + v["data_offsets"][0]:8 + n + v["data_offsets"][1]])
            for k, v in header.items()}


def model_tensors(dropped=(), seed=1):
    return {k: v for k, v in drawn_tensors(seed).items() if k not in dropped}


@functools.lru_cache(maxsize=None)
def drawn_tensors(seed):
    rng = random.Random(seed)
    t = {}

    def matrix(name, rows, cols):
        t[name] = ((rows, cols), [rng.gauss(0, 0.05) for _ in range(rows * cols)])

    def vector(name, n, value):
        t[name] = ((n,), [value] * n)

    matrix("model.decoder.embed_tokens.weight", VOCAB, HIDDEN)
    matrix("model.decoder.embed_positions.weight", POSITIONS + 2, HIDDEN)
    for i in range(LAYERS):
        p = "model.decoder.layers.%d." % i
        for name, rows, cols in (("self_attn.q_proj", HIDDEN, HIDDEN), ("self_attn.k_proj", HIDDEN, HIDDEN),
                                 ("self_attn.v_proj", HIDDEN, HIDDEN), ("self_attn.out_proj", HIDDEN, HIDDEN),
                                 ("fc1", FFN, HIDDEN), ("fc2", HIDDEN, FFN)):
            matrix(p + name + ".weight", rows, cols)
            vector(p + name + ".bias", rows, 0.0)
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            vector(p + name + ".weight", HIDDEN, 1.0)
            vector(p + name + ".bias", HIDDEN, 0.0)
    vector("model.decoder.final_layer_norm.weight", HIDDEN, 1.0)
    vector("model.decoder.final_layer_norm.bias", HIDDEN, 0.0)
    return t


def write_model(path, config=None, tensors=None):
    os.makedirs(path, exist_ok=True)
    base = {"architectures": ["OPTForCausalLM"], "model_type": "opt", "activation_function": "relu",
            "vocab_size": VOCAB, "hidden_size": HIDDEN, "word_embed_proj_dim": HIDDEN, "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS, "ffn_dim": FFN, "max_position_embeddings": POSITIONS,
            "do_layer_norm_before": True, "enable_bias": True, "dropout": 0.1, "attention_dropout": 0.0,
            "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1, "tie_word_embeddings": True,
            "torch_dtype": "float32"}
    write_json(os.path.join(path, "config.json"), {**base, **(config or {})})
    write_tokenizer(path)
    write_safetensors(os.path.join(path, "model.safetensors"), tensors or model_tensors())
    return path


def make_data(n, seed=3):
    rng = random.Random(seed)
    words = ["alpha", "beta", "gamma", "delta"]
    return "".join(json.dumps({"text": " ".join([rng.choice(words)] * 4)}) + "\n" for _ in range(n))


# ---- jobs ----------------------------------------------------------------------------------------------------

def environment(root):
    """For castor-worker."""
    return {**os.environ, "XDG_CACHE_HOME": os.path.join(root, "cache")}


def merge(into, changes):
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value
    return into


# Changes that make a job of RESUMABLE_STEPS steps of some milliseconds: two epochs, and so many that one who waits for
# a step of the first mostly comes before the last.
RESUMABLE = {"steps": 24 * 8, "validation": 8, "hyperparameters": {"batch_size": 32, "n_epochs": 2},
             "optimization": {"eval_interval": 6, "checkpoint_interval": 4, "dropout": 0.1, "micro_batch_size": 1}}
RESUMABLE_STEPS = 2 * 24

# Seconds after which something hangs: longer than all that comes in the end takes on a busy machine.
HANGS = 300


class TooLate(Exception):
    """On a busy machine what was to be disturbed was over already. Nothing was tested: the case is run again."""


class Job:
    """One job directory; `changes` are merged over SPEC. `steps` sets the size of the data: batches of 4."""

    worker = castord = None  # paths of the programs, set by main()
    model = None   # directory of the model that jobs use unless told otherwise

    def __init__(self, root, name="job", steps=8, validation=0, data=None, model=None, **changes):
        self.dir = os.path.join(root, name)
        os.makedirs(self.dir)
        self.spec = merge(copy.deepcopy(SPEC), changes)
        if not self.spec["base_model"]["repo"]:
            self.spec["base_model"]["path"] = model or Job.model
        self.add_file("training_file", data if data is not None else make_data(4 * steps))
        if validation:
            self.spec["validation_file"] = "file-valid"
            self.add_file("validation_file", make_data(validation, seed=9))
        write_json(os.path.join(self.dir, "spec.json"), self.spec)
        self.env = environment(root)

    def add_file(self, which, text):
        path = os.path.join(self.dir, which + ".jsonl")
        with open(path, "wb") as f:
            f.write(text if isinstance(text, bytes) else text.encode())
        self.spec["files"][which].update({"path": path, "filename": which + ".jsonl", "bytes": os.path.getsize(path)})

    def start(self, *arguments, **more):
        """The supervisor of a new attempt, not waited for."""
        return subprocess.Popen([Job.worker, self.dir, *arguments], env=self.env, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, **more)

    def run(self, *arguments, timeout=HANGS):
        p = subprocess.run([Job.worker, *(arguments or [self.dir])], env=self.env, capture_output=True, text=True,
                           timeout=timeout)
        check_sanitizers(self.dir, p.stderr)
        return p

    def plan(self):
        p = self.run("--plan", self.dir)
        return p.returncode, json.loads(p.stdout.splitlines()[-1])  # events of downloads stand before the report

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    def last_attempt(self):
        numbers = [int(n[8:]) for n in os.listdir(self.dir) if n.startswith("attempt-")]
        return max(numbers, default=0)

    def events(self, attempt=None, type=None):
        out = read_events(self.path("attempt-%d" % (attempt or self.last_attempt()), "events.jsonl"))
        return [e for e in out if e["type"] == type] if type else out

    def end(self, attempt=None):
        """The attempt's last event."""
        return self.events(attempt)[-1]

    def losses(self, attempt=None):
        """{step: every number of the step that depends on nothing but the training}"""
        return {e["step"]: (e["loss"], e["accuracy"], e["grad_norm"], e["learning_rate"], e["target_tokens"])
                for e in self.events(attempt, "step")}

    def exit(self, attempt=None):
        with open(self.path("attempt-%d" % (attempt or self.last_attempt()), "exit.json")) as f:
            return json.load(f)

    def checkpoints(self):
        parent = self.path("checkpoints")
        return sorted(int(n[5:]) for n in os.listdir(parent) if n.startswith("step-")) if os.path.isdir(parent) else []

    def output(self):
        """{file name: bytes} of the fine-tuned model"""
        return {n: read_bytes(self.path("output", n)) for n in sorted(os.listdir(self.path("output")))}

    def control(self, kind, id="ctl-1"):
        line = json.dumps({"v": 1, "id": id, "t": time.time(), "type": kind}) + "\n"
        with open(self.path("control.jsonl"), "a") as f:
            f.write(line)

    def leftovers(self):
        """Half-written things that an attempt should not leave, nor find. (A killed supervisor's own stay.)"""
        found = []
        for d, dirs, files in os.walk(self.dir):
            dirs[:] = [n for n in dirs if not n.startswith("attempt-")]
            found += [os.path.join(d, n) for n in dirs + files if "tmp" in n]
        return found

    def wait_event(self, wanted, seconds=HANGS, attempt=None):
        """The first event for which wanted(event) holds, while the attempt runs."""
        deadline = time.time() + seconds
        rest, read_of, at = b"", None, 0
        while time.time() < deadline:
            n = attempt or self.last_attempt()
            path = self.path("attempt-%d" % n, "events.jsonl")
            if n != read_of:
                rest, read_of, at = b"", n, 0
            if os.path.exists(path) and os.path.getsize(path) > at:
                with open(path, "rb") as f:
                    f.seek(at)
                    text = f.read()
                at += len(text)
                *lines, rest = (rest + text).split(b"\n")
                for e in map(json.loads, lines):
                    if wanted(e):
                        return e
            time.sleep(0.002)
        raise AssertionError("the event did not come")

    def wait_step(self, step, **more):
        return self.wait_event(lambda e: e["type"] == "step" and e["step"] >= step, **more)

    def rank_pid(self, supervisor):
        children = "/proc/%d/task/%d/children" % (supervisor.pid, supervisor.pid)
        return int(open(children).read().split()[0])

    def kill_rank(self, supervisor):
        """SIGKILL to the rank of a started attempt, which then fails; TooLate where it was done."""
        try:
            os.kill(self.rank_pid(supervisor), signal.SIGKILL)
        except (OSError, IndexError):
            pass
        code = finish(supervisor)
        if code == 0 or self.end()["type"] == "finished":
            raise TooLate
        equal(code, 1)

    def stopped(self, supervisor):
        """The last event of a started attempt that was told to stop; TooLate where it was done before."""
        equal(finish(supervisor), 0)
        if self.end()["type"] == "finished":
            raise TooLate
        equal(self.end()["type"], "stopped")
        return self.end()


def read_bytes(path):
    with open(path, "rb") as f:
        return f.read()


def read_events(path):
    """The complete lines; seq counts from 1 without gaps, nothing follows a final event."""
    lines = read_bytes(path).split(b"\n")[:-1]
    events = [json.loads(line) for line in lines]
    for i, e in enumerate(events):
        assert e["seq"] == i + 1, (path, i, e)
        assert e["v"] == 1 and e["t"] > 0 and path.endswith("attempt-%d/events.jsonl" % e["attempt"]), e
        assert e["type"] not in ("finished", "failed", "stopped") or i == len(events) - 1, (path, e)
    return events


def finish(process, seconds=HANGS):
    """Wait for a started attempt; its exit status."""
    out, err = process.communicate(timeout=seconds)
    check_sanitizers(None, err)
    return process.returncode


def check_sanitizers(jobdir, text):
    """Reports of sanitizers are failures, wherever they were printed."""
    texts = [text]
    for d, _, files in os.walk(jobdir) if jobdir else []:
        texts += [read_bytes(os.path.join(d, f)).decode(errors="replace") for f in files if f.endswith(".log")]
    for t in texts:
        for word in ("Sanitizer", "runtime error:", "Assertion"):
            assert word not in t, t[-6000:]


def wait_gone(pid, seconds=HANGS):
    deadline = time.time() + seconds
    while time.time() < deadline:
        try:
            with open("/proc/%d/stat" % pid) as f:
                if f.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return
        except OSError:
            return
        time.sleep(0.01)
    raise AssertionError("process %d is still there" % pid)


def equal(got, want):
    assert got == want, "%r is not %r" % (got, want)


def fails(job, reason, param=None, words=(), plan_fails=True):
    """Both --plan and training refuse the job, and say why."""
    code, report = job.plan()
    if plan_fails:
        equal((code, report["fits"]), (1, False))
        failures = [report["error"]]
    else:
        equal((code, report["fits"]), (0, True))
        failures = []
    equal(job.run().returncode, 1)
    end = job.end()
    equal(end["type"], "failed")
    for f in failures + [end]:
        equal(f.get("reason") or f["code"], reason)
        equal(f.get("param"), param)
        for word in words:
            assert word in f["message"], f["message"]
    equal(job.exit()["ok"], False)
    equal(job.exit()["ranks"][0]["exit_code"], 1)
    assert not os.path.exists(job.path("output"))
    equal(job.leftovers(), [])


def same_steps(job, attempts, want):
    """Every step of these attempts is one of an uninterrupted run, to the last digit."""
    for attempt in attempts:
        for step, numbers in job.losses(attempt).items():
            equal((step, numbers), (step, want[step]))


def same_output(got, want):
    equal(differences(got, want), [])


def differences(a, b):
    """Names of the files in which two outputs differ."""
    return [n for n in sorted(set(a) | set(b)) if a.get(n) != b.get(n)]


class Skip(Exception):
    pass


def run_case(case, root):
    for _ in range(10):
        shutil.rmtree(root, ignore_errors=True)
        os.makedirs(root)
        try:
            return case(root)
        except TooLate:
            print("again %s: it came too late" % case.__name__, flush=True)
    raise AssertionError("it came too late ten times")


def main(cases, doc):
    """Run the functions of `cases`, each in a fresh directory; the last line counts."""
    p = argparse.ArgumentParser(description=doc)
    p.add_argument("--build", default="build")
    p.add_argument("--worker", help="another build's, as castord's limits leave AddressSanitizer no room in a worker")
    p.add_argument("--keep", action="store_true", help="keep the directories of failed cases")
    p.add_argument("only", nargs="*")
    o = p.parse_args()
    Job.worker = os.path.abspath(o.worker or os.path.join(o.build, "castor-worker"))
    Job.castord = os.path.abspath(os.path.join(o.build, "castord"))
    passed = failed = skipped = 0
    top = tempfile.mkdtemp(prefix="castor-train-")
    Job.model = write_model(os.path.join(top, "model"))
    for case in cases:
        if o.only and case.__name__ not in o.only:
            continue
        root = os.path.join(top, case.__name__)
        started = time.time()
        try:
            run_case(case, root)
            passed += 1
            print("ok    %-44s %.1f s" % (case.__name__, time.time() - started), flush=True)
        except Skip as why:
            skipped += 1
            print("skip  %-44s %s" % (case.__name__, why), flush=True)
        except Exception:
            failed += 1
            print("FAIL  %s" % case.__name__, flush=True)
            traceback.print_exc()
            if o.keep:
                print("kept: %s" % root)
                continue
        shutil.rmtree(root, ignore_errors=True)
    if not (o.keep and failed):
        shutil.rmtree(top, ignore_errors=True)
    print("%d passed, %d failed, %d skipped" % (passed, failed, skipped))
    sys.exit(1 if failed or not passed else 0)
