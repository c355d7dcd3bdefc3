#!/usr/bin/env python3
"""Jobs in bfloat16 on the CPU, without a server: they learn as float32 ones do, resume to the bit, and export what they trained."""
import random

import rig
from rig import RESUMABLE, Job, differences, equal

BF16 = {"compute": "bf16", "master": "fp32", "optimizer_state": "fp32"}
SPLIT = {"compute": "bf16", "master": "split", "optimizer_state": "fp32"}
LEAST = {"compute": "bf16", "master": "split", "optimizer_state": "fp8"}
WITHOUT_MASTERS = {"compute": "bf16", "master": "bf16", "optimizer_state": "bf16"}
LORA = {"rank": 4, "alpha": 8, "dropout": 0.05, "rslora": False, "target_modules": ["q_proj", "v_proj", "fc1"],
        "quantize_base": "none", "export": "both"}


def learns_as_float32_does(root):
    losses = {}
    for name, precision in (("fp32", {}), ("masters", BF16), ("least", LEAST), ("without", WITHOUT_MASTERS)):
        job = Job(root, name, steps=30, validation=10, sample_prompts=["alpha"], precision=precision,
                  optimization={"eval_interval": 10})
        code, plan = job.plan()
        equal((code, plan["fits"], plan["spec"]["precision"]["compute"]), (0, True, precision.get("compute", "fp32")))
        equal(job.run().returncode, 0)
        equal([(e["step"], e["prompt_index"]) for e in job.events(type="sample")][0], (0, 0))
        for e in job.events(type="step"):
            equal((e["gpu"]["peak"], e["host"]["peak"]), (e["gpu"]["planned_peak"], e["host"]["planned_peak"]))
        losses[name] = [e["loss"] for e in job.events(type="eval")]
        equal(len(losses[name]), 4)
    for name in ("masters", "least", "without"):
        # before training only the rounding of weights and activations differs
        assert abs(losses[name][0] - losses["fp32"][0]) < 0.005 * losses["fp32"][0], losses
        assert losses[name][0] != losses["fp32"][0], losses
        assert abs(losses[name][-1] - losses["fp32"][-1]) < 0.1 * losses["fp32"][0], losses
        assert losses[name][-1] < 0.5 * losses[name][0], losses


def takes_less_memory(root):
    """A parameter: 16 bytes in float32; 2 + 4 + 12 with masters, 2 + 4 + 10 with split ones, 2 + 4 + 4 without and with
    split masters and 8-bit moments, of which 128 have two more bytes."""
    plans = {name: Job(root, name, precision=p).plan()[1]["memory"]["gpu"]
             for name, p in (("fp32", {}), ("masters", BF16), ("split", SPLIT), ("least", LEAST),
                             ("without", WITHOUT_MASTERS))}
    for purpose, fp32, *others in (("weights", 4, 2, 2, 2), ("optimizer", 8, 12, 10, 4)):
        each = plans["fp32"][purpose] / fp32
        equal([plans[name][purpose] for name in ("masters", "split", "without")], [n * each for n in others])
        # slices of the state begin at multiples of 256 bytes
        assert others[2] <= plans["least"][purpose] / each < others[2] + 0.05, plans
    equal({p["gradients"] for p in plans.values()}, {plans["fp32"]["gradients"]})
    assert plans["masters"]["activations"] < 0.6 * plans["fp32"]["activations"], plans
    assert plans["without"]["total"] < 0.7 * plans["fp32"]["total"], plans


def check_resume(root, name, **changes):
    plain = Job(root, name + "-reference", **RESUMABLE, **changes)
    equal(plain.run().returncode, 0)
    job = Job(root, name, **RESUMABLE, **changes)
    for attempt, kill_at in enumerate((random.randint(3, 9), random.randint(10, 18)), 1):  # one behind a checkpoint
        p = job.start()
        job.wait_step(kill_at, attempt=attempt)
        job.kill_rank(p)
    equal(job.run().returncode, 0)
    assert min(job.losses(3)) > 1
    want = plain.losses()
    for attempt in (1, 2, 3):
        for step, numbers in job.losses(attempt).items():
            equal((step, numbers), (step, want[step]))
    equal(differences(job.output(), plain.output()), [])


def killed_rank_resumes(root):
    check_resume(root, "masters", precision=BF16)


def killed_rank_resumes_without_masters(root):
    """Rounding at random, too: it hangs on seed, step and element alone."""
    check_resume(root, "without", precision=WITHOUT_MASTERS)


def killed_rank_resumes_with_split_masters(root):
    check_resume(root, "split", precision=SPLIT)


def killed_rank_resumes_with_fp8_moments(root):
    check_resume(root, "least", precision=LEAST)


def killed_rank_resumes_with_adapters(root):
    check_resume(root, "lora", precision=BF16, lora={**LORA, "export": "adapter"})


def split_masters_are_masters(root):
    """Losses and the exported model, equal to the bit, wherever the data lie."""
    changes = {"steps": 8, "validation": 8, "optimization": {"checkpoint_interval": 4, "eval_interval": 4}}
    whole = Job(root, "whole", precision=BF16, **changes)
    equal(whole.run().returncode, 0)
    for name, placement in (("cuda", {"policy": "cuda"}), ("cpu", {"policy": "cpu"})):
        job = Job(root, name, precision=SPLIT, placement=placement, **changes)
        equal(job.run().returncode, 0)
        equal(job.losses(), whole.losses())
        equal(differences(job.output(), whole.output()), [])


def adapters_learn(root):
    job = Job(root, steps=30, validation=10, lora=LORA, precision=BF16, optimization={"learning_rate": 0.02})
    equal(job.run().returncode, 0)
    losses = [e["loss"] for e in job.events(type="eval")]
    assert losses[-1] < losses[0] - 0.5, losses
    merged = Job(root, "merged", model=job.path("output"), steps=3, validation=10, precision=BF16)
    equal(merged.run().returncode, 0)
    again = merged.events(type="eval")[0]["loss"]
    assert abs(again - losses[-1]) < 0.02 * losses[-1], (again, losses)


def exported_model_is_the_trained_one(root):
    """In bfloat16, as its weights were at every forward: it begins again at the same loss."""
    job = Job(root, steps=20, validation=10, precision=BF16)
    equal(job.run().returncode, 0)
    tensors = rig.read_safetensors(job.path("output", "model.safetensors"))
    equal({t[0] for t in tensors.values()}, {"BF16"})
    again = Job(root, "again", model=job.path("output"), steps=3, validation=10, precision=BF16)
    equal(again.run().returncode, 0)
    equal(again.events(type="eval")[0]["loss"], job.events(type="eval")[-1]["loss"])


def placement_never_changes_the_numbers(root):
    for kind, precision in (("masters", BF16), ("least", LEAST)):
        changes = {"steps": 6, "validation": 6, "precision": precision}
        here = Job(root, kind + "-cuda", placement={"policy": "cuda"}, **changes)
        equal(here.run().returncode, 0)
        half = here.plan()[1]["memory"]["gpu"]["total"] // 2
        for name, placement in (("cpu", {"policy": "cpu"}), ("auto", {"policy": "auto", "gpu_memory_limit": half})):
            job = Job(root, "%s-%s" % (kind, name), placement=placement, **changes)
            equal(job.run().returncode, 0)
            equal(job.losses(), here.losses())
            equal(differences(job.output(), here.output()), [])


def resuming_in_another_precision_is_refused(root):
    job = Job(root, precision=BF16, **RESUMABLE)
    p = job.start()
    job.wait_event(lambda e: e["type"] == "checkpoint")
    job.kill_rank(p)
    job.spec["precision"]["compute"] = "fp32"
    rig.write_json(job.path("spec.json"), job.spec)
    equal(job.run().returncode, 1)
    assert "bf16" in job.end()["message"], job.end()


CASES = [learns_as_float32_does, takes_less_memory, killed_rank_resumes, killed_rank_resumes_without_masters,
         split_masters_are_masters, killed_rank_resumes_with_split_masters, killed_rank_resumes_with_fp8_moments,
         killed_rank_resumes_with_adapters, adapters_learn, exported_model_is_the_trained_one,
         placement_never_changes_the_numbers, resuming_in_another_precision_is_refused]

if __name__ == "__main__":
    rig.main(CASES, __doc__)
