#!/usr/bin/env python3
"""Jobs with low-rank adapters, without a server: what is trained, kept, resumed and exported."""
import json
import os
import random
import struct

import rig
from rig import Job, equal

LORA = {"rank": 4, "alpha": 8, "dropout": 0.05, "rslora": False, "target_modules": ["q_proj", "v_proj", "fc1"],
        "quantize_base": "none", "export": "adapter"}
MODULES = [("self_attn.q_proj", 32, 32), ("self_attn.v_proj", 32, 32), ("fc1", 64, 32)]
# What the adapters hold: layers x (rank x in + out x rank)
PARAMETERS = sum(2 * (4 * i + o * 4) for _, o, i in MODULES)
FAST = {"optimization": {"learning_rate": 0.02}}


def lora(**changes):
    return {**LORA, **changes}


def floats(tensor):
    dtype, _, data = tensor
    equal(dtype, "F32")
    return struct.unpack("<%df" % (len(data) // 4), data)


def trains_adapters_alone(root):
    job = Job(root, steps=30, validation=10, lora=lora(), **FAST)
    code, plan = job.plan()
    equal((code, plan["fits"]), (0, True))
    equal(plan["model"]["trainable_parameters"], PARAMETERS)
    equal(plan["spec"]["lora"], lora())
    full = Job(root, "full", steps=30, validation=10)
    whole = full.plan()[1]
    equal(whole["model"]["trainable_parameters"], whole["model"]["parameters"])
    equal(plan["model"]["parameters"], whole["model"]["parameters"])
    for purpose in ("gradients", "optimizer"):
        assert plan["memory"]["gpu"][purpose] < 0.25 * whole["memory"]["gpu"][purpose], purpose
    equal(job.run().returncode, 0)
    losses = [e["loss"] for e in job.events(type="eval")]
    assert losses[-1] < losses[0] - 0.5, losses
    for e in job.events(type="step"):
        equal((e["gpu"]["peak"], e["host"]["peak"]), (e["gpu"]["planned_peak"], e["host"]["planned_peak"]))
    equal(sorted(job.output()), ["adapter_config.json", "adapter_model.safetensors", "castor.json", "tokenizer.json",
                                 "tokenizer_config.json"])
    # the checkpoint holds parameters and two moments of what was trained, by name, and nothing else
    state = rig.read_safetensors(job.path("checkpoints", "step-30", "state.safetensors"))
    equal(sum(len(t[2]) for t in state.values()), 3 * 4 * PARAMETERS)
    assert all("_lora_" in name for name in state), sorted(state)


def adapter_is_written_for_peft(root):
    job = Job(root, steps=3, lora=lora(rslora=True, alpha=3.5))
    equal(job.run().returncode, 0)
    config = json.loads(job.output()["adapter_config.json"])
    want = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 3.5, "lora_dropout": 0.05,
            "use_rslora": True, "target_modules": LORA["target_modules"], "fan_in_fan_out": False, "bias": "none",
            "base_model_name_or_path": Job.model, "revision": None, "inference_mode": True, "use_dora": False}
    equal(config, want)
    tensors = rig.read_safetensors(job.path("output", "adapter_model.safetensors"))
    shapes = {}
    for layer in range(rig.LAYERS):
        for name, o, i in MODULES:
            p = "base_model.model.model.decoder.layers.%d.%s" % (layer, name)
            shapes[p + ".lora_A.weight"], shapes[p + ".lora_B.weight"] = [4, i], [o, 4]
    equal({n: t[1] for n, t in tensors.items()}, shapes)
    assert all(any(floats(t)) for t in tensors.values())


def merged_model_is_the_adapted_one(root):
    job = Job(root, steps=20, validation=10, lora=lora(export="both", target_modules=["all-linear"]), **FAST)
    equal(job.run().returncode, 0)
    equal(job.events(type="plan")[0]["plan"]["spec"]["lora"]["target_modules"],
          ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"])
    equal(sorted(os.listdir(job.path("output"))), ["adapter", "castor.json", "config.json", "model.safetensors",
                                                   "tokenizer.json", "tokenizer_config.json"])
    base, merged = (rig.read_safetensors(os.path.join(d, "model.safetensors")) for d in (Job.model, job.path("output")))
    adapter = rig.read_safetensors(job.path("output", "adapter", "adapter_model.safetensors"))
    equal(sorted(base), sorted(merged))
    adapted = {n[len("base_model.model."):-len("lora_A.weight")] + "weight" for n in adapter if "lora_A" in n}
    equal(len(adapted), 6 * rig.LAYERS)
    equal({n for n in base if base[n] != merged[n]}, adapted)
    for name in sorted(adapted)[:4]:
        a, b = (floats(adapter["base_model.model.%slora_%s.weight" % (name[:-len("weight")], k)]) for k in "AB")
        w, m = floats(base[name]), floats(merged[name])
        cols = base[name][1][1]
        for at in range(0, len(w), 97):
            row, col = divmod(at, cols)
            want = w[at] + 2 * sum(b[row * 4 + k] * a[k * cols + col] for k in range(4))
            assert abs(m[at] - want) < 1e-6, (name, at, m[at], want)
    again = Job(root, "again", model=job.path("output"), steps=3, validation=10)
    equal(again.run().returncode, 0)
    mine, theirs = job.events(type="eval")[-1]["loss"], again.events(type="eval")[0]["loss"]
    assert abs(mine - theirs) < 1e-5 * mine, (mine, theirs)
    alone = Job(root, "merged", steps=20, validation=10, lora=lora(export="merged", target_modules=["all-linear"]),
                **FAST)
    equal(alone.run().returncode, 0)
    equal(alone.output()["model.safetensors"], rig.read_bytes(job.path("output", "model.safetensors")))
    assert not os.path.exists(alone.path("output", "adapter"))


NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]


def quantised(values, form):
    """What is left of weights in nf4 or int8, block by block."""
    out = []
    for at in range(0, len(values), 64):
        block = values[at:at + 64]
        top = max(map(abs, block))
        levels = [top * x for x in NF4] if form == "nf4" else [top * k / 127 for k in range(-127, 128)]
        out += [min(levels, key=lambda x: abs(x - v)) for v in block]
    return out


def is_matrix_of_a_layer(name):
    return ".layers." in name and name.endswith(".weight") and "layer_norm" not in name


def quantised_base_takes_less_and_trains(root):
    weights = {}
    for form in ("none", "nf4", "int8"):
        job = Job(root, form, steps=20, validation=10, lora=lora(quantize_base=form), **FAST)
        code, plan = job.plan()
        equal((code, plan["spec"]["lora"]["quantize_base"]), (0, form))
        weights[form] = plan["memory"]["gpu"]["weights"]
        equal(job.run().returncode, 0)
        losses = [e["loss"] for e in job.events(type="eval")]
        assert losses[-1] < losses[0] - 0.3, losses
        for e in job.events(type="step"):
            equal((e["gpu"]["peak"], e["host"]["peak"]), (e["gpu"]["planned_peak"], e["host"]["planned_peak"]))
    elements = rig.LAYERS * (4 * 32 * 32 + 2 * 32 * 64)
    equal(weights["none"] - weights["nf4"], elements * 4 - elements // 2 - elements // 16)
    equal(weights["none"] - weights["int8"], elements * 4 - elements - elements // 16)


def quantised_base_is_what_would_fit(root):
    """Of a job that does not, the estimate says so; of one that asks for it already, it does not."""
    for form in ("none", "nf4"):
        limit = 0
        for gpu in range(4, 20):
            job = Job(root, "%s-%d" % (form, gpu), lora=lora(quantize_base=form),
                      placement={"policy": "cuda", "gpu_memory_limit": gpu << 15})
            report = job.plan()[1]
            changes = {a["change"]: a for a in report["alternatives"]}
            if not report["fits"] and 'lora.quantize_base "nf4"' in changes:
                limit = gpu << 15
                a = changes['lora.quantize_base "nf4"']
                equal(a["settings"], {"lora": {"quantize_base": "nf4"}})
                assert a["memory"]["gpu"] <= limit, (a, limit)
                fits = Job(root, "fits-%d" % gpu, lora=lora(quantize_base="nf4"),
                           placement={"policy": "cuda", "gpu_memory_limit": limit})
                equal(fits.plan()[1]["fits"], True)
                break
        equal(limit > 0, form == "none")


def merged_model_has_the_quantised_base(root):
    base = rig.read_safetensors(os.path.join(Job.model, "model.safetensors"))
    for form in ("nf4", "int8"):
        job = Job(root, form, steps=20, validation=10, lora=lora(quantize_base=form, export="both"), **FAST)
        equal(job.run().returncode, 0)
        merged = rig.read_safetensors(job.path("output", "model.safetensors"))
        adapter = rig.read_safetensors(job.path("output", "adapter", "adapter_model.safetensors"))
        equal(sorted(base), sorted(merged))
        for name in sorted(base):
            if not is_matrix_of_a_layer(name):
                equal(base[name], merged[name])
                continue
            want, got, cols = quantised(floats(base[name]), form), floats(merged[name]), base[name][1][1]
            a, b = (adapter.get("base_model.model.%slora_%s.weight" % (name[:-len("weight")], k)) for k in "AB")
            if a:
                a, b = floats(a), floats(b)
                want = [w + 2 * sum(b[i // cols * 4 + k] * a[k * cols + i % cols] for k in range(4))
                        for i, w in enumerate(want)]
            worst = max(abs(w - g) for w, g in zip(want, got))
            assert worst < 1e-6, (form, name, worst)
        # it gives the losses that training ended with
        again = Job(root, form + "-again", model=job.path("output"), steps=3, validation=10)
        equal(again.run().returncode, 0)
        mine, theirs = job.events(type="eval")[-1]["loss"], again.events(type="eval")[0]["loss"]
        assert abs(mine - theirs) < 1e-5 * mine, (mine, theirs)


def killed_rank_resumes(root, **settings):
    changes = {"steps": 24 * 8, "validation": 8, "hyperparameters": {"batch_size": 32}, "lora": lora(**settings),
               "optimization": {"eval_interval": 6, "checkpoint_interval": 4, "dropout": 0.1, "micro_batch_size": 1}}
    plain = Job(root, "reference", **changes)
    equal(plain.run().returncode, 0)
    job = Job(root, **changes)
    p = job.start()
    job.wait_step(random.Random().randint(5, 18))
    job.kill_rank(p)
    equal(job.run().returncode, 0)
    assert min(job.losses(2)) > 1
    for attempt in (1, 2):
        for step, numbers in job.losses(attempt).items():
            equal((step, numbers), (step, plain.losses()[step]))
    equal(rig.differences(job.output(), plain.output()), [])


def killed_rank_resumes_on_nf4(root):
    killed_rank_resumes(root, quantize_base="nf4")


def micro_batches_do_not_show(root):
    jobs = [Job(root, "m%d" % m, steps=4, lora=lora(), optimization={"micro_batch_size": m}) for m in (1, 4)]
    equal([j.run().returncode for j in jobs], [0, 0])
    for step, numbers in jobs[0].losses().items():
        other = jobs[1].losses()[step][0]
        assert abs(numbers[0] - other) < 1e-4 * other, step


def learning_rate_of_adapters(root):
    job = Job(root, lora=lora(target_modules="auto"), optimization={"learning_rate": "auto"})
    spec = job.plan()[1]["spec"]
    equal((spec["optimization"]["learning_rate"], spec["lora"]["target_modules"]), (2e-4, ["q_proj", "v_proj"]))


def what_cannot_be_is_refused(root):
    for name, changes, param, words in (
            ("unknown", {"target_modules": ["q_proj", "gate_proj"]}, "lora.target_modules",
             ["gate_proj", "q_proj, k_proj, v_proj, out_proj, fc1, fc2"]),
            ("head", {"target_modules": ["lm_head"]}, "lora.target_modules", ["lm_head"]),
            ("rank", {"rank": 33}, "lora.rank", ["33", "32 x 32", "at most 32"])):
        job = Job(root, name, lora=lora(**changes))
        code, report = job.plan()
        equal((code, report["fits"], report["error"]["param"]), (1, False, param))
        for word in words:
            assert word in report["error"]["message"], report["error"]["message"]
        equal(job.run().returncode, 1)
        equal((job.end()["type"], job.end()["param"]), ("failed", param))


CASES = [trains_adapters_alone, adapter_is_written_for_peft, merged_model_is_the_adapted_one, killed_rank_resumes,
         quantised_base_takes_less_and_trains, quantised_base_is_what_would_fit,
         merged_model_has_the_quantised_base, killed_rank_resumes_on_nf4,
         micro_batches_do_not_show, learning_rate_of_adapters, what_cannot_be_is_refused]

if __name__ == "__main__":
    rig.main(CASES, __doc__)
