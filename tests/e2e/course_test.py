#!/usr/bin/env python3
"""The course of a run, without a server: the order of its data, evaluations and samples, what it keeps, and kills at any moment."""
import json
import os
import random
import re
import shutil
import signal
import time

import rig
from rig import Job, TooLate, differences, equal, finish

STILL = {"learning_rate": 1e-30, "schedule": "constant", "weight_decay": 0.0, "dropout": 0.0}  # weights stay: a loss shows its rows


def texts(n):
    """Examples of different words and lengths, so that no two rows have the same loss."""
    rng = random.Random(5)
    return "".join(json.dumps({"text": "".join(rng.choice("abcdefghij ") for _ in range(rng.randint(9, 28)))}) + "\n"
                   for _ in range(n))


def row_losses(job):
    """Of a job with one row a step: (target tokens, loss), in order."""
    return [(e["target_tokens"], e["loss"]) for e in job.events(type="step")]


def order_hangs_on_the_seed_alone(root):
    def rows(name, **changes):
        job = Job(root, name, data=texts(48), hyperparameters={"batch_size": 1, "n_epochs": 2},
                  optimization={**STILL, "micro_batch_size": 1}, **changes)
        equal(job.run().returncode, 0)
        return row_losses(job)

    seven, again, eight = rows("seven"), rows("again"), rows("eight", seed=8)
    equal(seven, again)
    first, second = seven[:48], seven[48:]
    equal(sorted(first), sorted(second))  # every row once an epoch
    equal(len(set(first)), 48)
    assert sum(a == b for a, b in zip(first, second)) < 8, "the second epoch repeats the first one's order"
    equal(sorted(eight[:48]), sorted(first))
    assert sum(a == b for a, b in zip(first, eight)) < 8, "another seed, the same order"


def order_is_independent_of_batches(root):
    """Batches of any size, cut into micro-batches in any way, take the rows in the order that single ones do."""
    runs = {}
    for batch, micro in ((1, 1), (2, 2), (4, 1), (4, 4), (8, 3), (16, 16)):
        job = Job(root, "b%d-m%d" % (batch, micro), data=texts(48), hyperparameters={"batch_size": batch},
                  optimization={**STILL, "micro_batch_size": micro})
        equal(job.run().returncode, 0)
        runs[batch, micro] = row_losses(job)
    singles = runs.pop((1, 1))
    for (batch, micro), steps in runs.items():
        equal(len(steps), 48 // batch)
        for k, (targets, loss) in enumerate(steps):
            rows = singles[k * batch:(k + 1) * batch]
            equal(((batch, micro), k, targets), ((batch, micro), k, sum(n for n, _ in rows)))
            want = sum(n * x for n, x in rows) / targets
            assert abs(loss - want) < 1e-5 * want, (batch, micro, k, loss, want)


def samples_come_with_evaluations(root):
    job = Job(root, steps=10, sample_prompts=["alpha", "beta beta"], optimization={"eval_interval": 4})
    equal(job.run().returncode, 0)  # without a validation set, too
    want = [(s, p) for s in (0, 4, 8, 10) for p in (0, 1)]
    samples = job.events(type="sample")
    equal([(e["step"], e["prompt_index"]) for e in samples], want)
    equal([e["prompt"] for e in samples[:2]], ["alpha", "beta beta"])
    assert samples[0]["completion"] != samples[-2]["completion"], samples
    slow = {"steps": 10 * 8, "sample_prompts": ["alpha", "beta beta"], "hyperparameters": {"batch_size": 32},
            "optimization": {"eval_interval": 4, "checkpoint_interval": 4, "micro_batch_size": 1}}  # time to interfere
    plain, same = Job(root, "plain", **slow), Job(root, "killed", **slow)
    equal(plain.run().returncode, 0)
    p = same.start()
    same.wait_event(lambda e: e["type"] == "checkpoint" and e["step"] == 4)
    same.kill_rank(p)
    if same.checkpoints()[-1] != 4:
        raise TooLate
    equal(same.run().returncode, 0)
    text = {(e["step"], e["prompt_index"]): e["completion"] for e in plain.events(type="sample")}
    equal([(e["step"], e["prompt_index"]) for e in same.events(2, "sample")], want[4:])  # those of step 4 were written
    for attempt in (1, 2):
        for e in same.events(attempt, "sample"):
            equal(e["completion"], text[e["step"], e["prompt_index"]])


def samples_end_at_any_end_of_generation(root):
    """At each eos_token_id of generation_config.json, of which the tokenizer's own eos is one."""
    changes = {"steps": 30, "sample_prompts": ["alpha", "beta"], "sample_tokens": 20, "optimization": {"eval_interval": 10}}
    plain = Job(root, "plain", **changes)
    equal(plain.run().returncode, 0)
    model = os.path.join(root, "model")
    shutil.copytree(Job.model, model)
    rig.write_json(os.path.join(model, "generation_config.json"), {"eos_token_id": [2] + [4 + ord(c) for c in "lt"]})
    stopped = Job(root, "stopped", model=model, **changes)
    equal(stopped.run().returncode, 0)
    whole = [e["completion"] for e in plain.events(type="sample")]
    assert any(c in text for text in whole for c in "lt"), whole
    equal([e["completion"] for e in stopped.events(type="sample")], [re.split("[lt]", text)[0] for text in whole])


def early_stopping_wants_min_delta(root):
    """Losses that fall by less than min_delta count as no gain, and what is best stays the last that was one."""
    changes = {"steps": 40, "validation": 8, "seed": 3}
    free = Job(root, "free", **changes, optimization={"eval_interval": 2})
    equal(free.run().returncode, 0)
    losses = {e["step"]: e["loss"] for e in free.events(type="eval")}
    patience, delta = 2, 0.3
    best, gained, stop = None, 0, None
    for step, loss in sorted(losses.items()):
        if best is None or loss < losses[best] - delta:
            best, gained = step, 0
        else:
            gained += 1
        if gained == patience:
            stop = step
            break
    assert stop and best > 0 and losses[stop] < losses[best], (stop, best, losses)  # still falling, but too slowly
    job = Job(root, **changes, optimization={"eval_interval": 2, "early_stopping": {"patience": patience, "min_delta": delta}})
    equal(job.run().returncode, 0)
    evals = job.events(type="eval")
    equal((evals[-1]["step"], [e["step"] for e in evals if e["best"]][-1]), (stop, best))
    equal({e["step"]: e["loss"] for e in evals}, {s: x for s, x in losses.items() if s <= stop})
    equal(json.loads(job.output()["castor.json"])["step"], best)


def patience_survives_kills(root):
    changes = {"steps": 60 * 8, "validation": 8, "seed": 3, "hyperparameters": {"batch_size": 32}, "optimization": {
        "learning_rate": 0.2, "schedule": "constant", "eval_interval": 2, "checkpoint_interval": 1, "micro_batch_size": 1,
        "keep_checkpoints": 1, "early_stopping": {"patience": 4, "min_delta": 0.0}}}
    plain = Job(root, "reference", **changes)
    equal(plain.run().returncode, 0)
    stop = plain.events(type="eval")[-1]["step"]
    assert stop < 60, stop
    job = Job(root, **changes)
    for attempt, at in enumerate((stop - 5, stop - 2), 1):  # while evaluations without gain are being counted
        p = job.start()
        job.wait_step(at, attempt=attempt)
        job.kill_rank(p)
    equal(job.run().returncode, 0)
    equal(job.events(3, "eval")[-1]["step"], stop)
    equal(differences(job.output(), plain.output()), [])


def best_is_kept_and_exported_when_asked(root):
    # a rate this large soon makes it worse; nothing stops it
    changes = {"steps": 18, "validation": 8, "seed": 3}
    numbers = {"learning_rate": 0.2, "schedule": "constant", "dropout": 0.0, "eval_interval": 3, "checkpoint_interval": 8,
               "keep_checkpoints": 1}
    last = Job(root, "last", **changes, optimization=numbers)
    best = Job(root, "best", **changes, optimization={**numbers, "export": "best"})
    equal([last.run().returncode, best.run().returncode], [0, 0])
    evals = best.events(type="eval")
    lowest = min(evals, key=lambda e: e["loss"])
    assert 0 < lowest["step"] < 18 and lowest["step"] % 8, [(e["step"], e["loss"]) for e in evals]
    equal(best.checkpoints(), sorted({lowest["step"], 18}))
    equal(json.loads(last.output()["castor.json"])["step"], 18)
    equal(json.loads(best.output()["castor.json"])["step"], lowest["step"])
    again = Job(root, "again", model=best.path("output"), steps=3, validation=8)
    equal(again.run().returncode, 0)
    equal(again.events(type="eval")[0]["loss"], lowest["loss"])
    for name, optimization, param in (("blind", {"export": "best"}, "optimization.export"),
                                      ("deaf", {"early_stopping": {"patience": 1}}, "optimization.early_stopping.patience")):
        job = Job(root, name, steps=3, optimization=optimization)
        code, report = job.plan()
        equal((code, report["error"]["param"]), (1, param))
        assert "validation_file" in report["error"]["message"], report


def never_better_says_so(root):
    """The model before training is the best: there is no checkpoint of that."""
    job = Job(root, steps=12, validation=8, optimization={"eval_interval": 2, "export": "best",
                                                         "early_stopping": {"patience": 2, "min_delta": 1000.0}})
    equal(job.run().returncode, 0)
    equal([e["code"] for e in job.events(type="warning")], ["best_not_kept"])
    equal(json.loads(job.output()["castor.json"])["step"], 4)


def something_to_resume_from_is_never_removed(root):
    """Watched from outside while checkpoints come and go: once there is one, there is always one, and it is whole."""
    job = Job(root, steps=40, validation=8,
              optimization={"checkpoint_interval": 1, "keep_checkpoints": 1, "eval_interval": 5, "export": "best"})
    p, seen = job.start(), set()
    while p.poll() is None:
        steps = job.checkpoints()
        assert steps or not seen, "no checkpoint is left of %r" % sorted(seen)
        assert len(steps) <= 4, steps  # the newest, the best, one that is coming and one that is going
        seen |= set(steps)
        time.sleep(0.001)
    equal(finish(p), 0)
    if len(seen) < 5:
        raise TooLate
    best = min(job.events(type="eval"), key=lambda e: e["loss"])["step"]
    equal(job.checkpoints(), sorted({40, best}))


def killed_at_random_again_and_again(root):
    """Six kills at any moment: in steps, evaluations, samples, checkpoints or loading. The same numbers, the same model."""
    changes = {"steps": 20 * 4, "validation": 12, "sample_prompts": ["alpha"], "hyperparameters": {"batch_size": 16, "n_epochs": 2},
               "optimization": {"eval_interval": 3, "checkpoint_interval": 2, "keep_checkpoints": 2, "dropout": 0.1,
                                "micro_batch_size": 4, "export": "best"}}
    plain = Job(root, "reference", **changes)
    started = time.monotonic()
    equal(plain.run().returncode, 0)
    whole = time.monotonic() - started
    job = Job(root, **changes)
    rng = random.Random()
    for _ in range(6):
        p = job.start(process_group=0)  # there from its first moment
        time.sleep(rng.uniform(0.2, 0.9) * whole / 2)
        if p.poll() is None:
            os.killpg(p.pid, signal.SIGKILL)
        p.communicate()
    equal(job.run().returncode, 0)
    want = plain.losses()
    evals = {e["step"]: (e["loss"], e["best"]) for e in plain.events(type="eval")}
    for attempt in range(1, job.last_attempt() + 1):
        if not os.path.exists(job.path("attempt-%d" % attempt, "events.jsonl")):
            continue  # killed before it said anything
        for step, numbers in job.losses(attempt).items():
            equal((attempt, step, numbers), (attempt, step, want[step]))
        for e in job.events(attempt, "eval"):
            equal((attempt, e["step"], e["loss"], e["best"]), (attempt, e["step"], *evals[e["step"]]))
    equal(differences(job.output(), plain.output()), [])
    equal(job.checkpoints(), plain.checkpoints())
    equal(job.leftovers(), [])


CASES = [order_hangs_on_the_seed_alone, order_is_independent_of_batches, samples_come_with_evaluations,
         samples_end_at_any_end_of_generation, early_stopping_wants_min_delta, patience_survives_kills, best_is_kept_and_exported_when_asked, never_better_says_so,
         something_to_resume_from_is_never_removed, killed_at_random_again_and_again]

if __name__ == "__main__":
    rig.main(CASES, __doc__)
