#!/usr/bin/env python3
"""Training that is broken off: killed, terminated, paused, cancelled; checkpoints, and what goes on from them."""
import contextlib
import json
import os
import random
import shutil
import signal
import time

import rig
from rig import RESUMABLE, RESUMABLE_STEPS, Job, TooLate, equal, finish, same_output, same_steps, wait_gone


def reference(root):
    job = Job(root, "reference", **RESUMABLE)
    equal(job.run().returncode, 0)
    return job.losses(), job.output(), {e["step"]: e["loss"] for e in job.events(type="eval")}


def killed_rank_resumes(root):
    want, output, evals = reference(root)
    job = Job(root, **RESUMABLE)
    rng = random.Random()
    kills = sorted(rng.sample(range(3, 19), 2))
    for attempt, kill_at in enumerate(kills, 1):
        p = job.start()
        job.wait_step(kill_at, attempt=attempt)
        job.kill_rank(p)
        rank = job.exit()["ranks"][0]
        equal((job.exit()["ok"], job.exit()["first_failed_rank"], rank["signal"]), (False, 0, 9))
        assert rank["step"] >= kill_at and rank["where"].split()[0] in ("train", "eval", "save"), rank
    equal(job.run().returncode, 0)
    same_steps(job, (1, 2, 3), want)
    first, last = min(job.losses(3)), max(job.losses(2))
    equal(first % 4, 1)  # behind a checkpoint, the last or the one before it
    assert last - 8 < first <= last + 2, (first, last, kills)
    equal({e["step"]: e["loss"] for a in (1, 2, 3) for e in job.events(a, "eval")}, evals)
    equal(job.events(3, "step")[-1]["total_target_tokens"], sum(n[4] for n in want.values()))
    same_output(job.output(), output)
    equal(job.leftovers(), [])


def killed_supervisor_resumes(root):
    want, output, _ = reference(root)
    job = Job(root, **RESUMABLE)
    p = job.start()
    job.wait_step(random.Random().randint(5, 18))
    try:
        rank = job.rank_pid(p)
    except (OSError, IndexError):
        raise TooLate from None
    os.kill(p.pid, signal.SIGKILL)
    p.communicate()
    if p.returncode == 0:
        raise TooLate
    wait_gone(rank)  # dies with its supervisor
    assert not os.path.exists(job.path("attempt-1", "exit.json"))
    equal(job.run().returncode, 0)
    same_steps(job, (1, 2), want)
    same_output(job.output(), output)


def killed_while_writing_resumes(root):
    """Killed at moments that are mostly inside checkpoints, which come behind every step."""
    changes = {"steps": 10, "optimization": {"checkpoint_interval": 1, "keep_checkpoints": 2}}
    plain = Job(root, "reference", **changes)
    equal(plain.run().returncode, 0)
    job = Job(root, **changes)
    rng = random.Random()
    for attempt in range(1, 7):
        p = job.start()
        job.wait_event(lambda e: e["type"] in ("step", "finished"), attempt=attempt)
        time.sleep(rng.uniform(0, 0.06))
        os.killpg(p.pid, signal.SIGKILL)
        p.communicate()
    equal(job.run().returncode, 0)
    same_steps(job, range(1, 8), plain.losses())
    same_output(job.output(), plain.output())
    equal(job.checkpoints(), [9, 10])
    equal(job.leftovers(), [])


def terminated_stops_and_resumes(root):
    want, output, evals = reference(root)
    job = Job(root, **RESUMABLE)
    for attempt in (1, 2):
        p = job.start()
        job.wait_event(lambda e: e["type"] == ("step" if attempt == 1 else "eval"), attempt=attempt)
        p.send_signal(signal.SIGTERM)
        end = job.stopped(p)
        equal((end["reason"], end.get("request")), ("preempted", None))
        equal(end["checkpoint_step"], end["step"])
        equal(max(job.checkpoints()), end["step"])
    equal(job.run().returncode, 0)
    steps = [s for a in (1, 2, 3) for s in sorted(job.losses(a))]
    equal(steps, list(range(1, RESUMABLE_STEPS + 1)))  # none twice, none left out
    same_steps(job, (1, 2, 3), want)
    equal({e["step"]: e["loss"] for a in (1, 2, 3) for e in job.events(a, "eval")}, evals)
    same_output(job.output(), output)


def signals_leave_the_numbers_alone(root):
    """However many: the arithmetic of a CPU may use memory that a signal's handler would write to."""
    want, output, _ = reference(root)
    job = Job(root, **RESUMABLE)
    p = job.start()
    job.wait_event(lambda e: e["type"] == "step")
    rank = job.rank_pid(p)
    with contextlib.suppress(ProcessLookupError):
        for _ in range(3000):
            os.kill(rank, signal.SIGTERM)
    equal(job.stopped(p)["reason"], "preempted")
    equal(job.run().returncode, 0)
    same_steps(job, (1, 2), want)
    same_output(job.output(), output)


def pauses_and_goes_on(root):
    want, output, _ = reference(root)
    job = Job(root, **RESUMABLE)
    p = job.start()
    job.wait_step(7)
    job.control("pause", "ctl-p")
    end = job.stopped(p)
    equal((end["reason"], end["request"], end["checkpoint_step"]), ("paused", "ctl-p", end["step"]))
    equal(job.events(type="checkpoint")[-1].get("request"), "ctl-p" if end["step"] % 4 else None)
    equal(job.run().returncode, 0)  # the request was answered: it counts no more
    equal(job.end()["type"], "finished")
    equal([s for a in (1, 2) for s in sorted(job.losses(a))], list(range(1, RESUMABLE_STEPS + 1)))
    same_steps(job, (1, 2), want)
    same_output(job.output(), output)


def cancels(root):
    job = Job(root, steps=200, hyperparameters={"n_epochs": 50}, optimization={"checkpoint_interval": 5})
    p = job.start()
    job.wait_step(7)
    job.control("cancel", "ctl-c")
    end = job.stopped(p)
    equal((end["reason"], end["request"]), ("cancelled", "ctl-c"))
    equal(end["checkpoint_step"], end["step"] // 5 * 5)
    assert not os.path.exists(job.path("output"))


def cancelled_before_it_starts(root):
    job = Job(root, steps=20)
    job.control("cancel", "ctl-0")
    equal(job.run().returncode, 0)
    end = job.end()
    equal((end["reason"], end["request"], end["step"], end["checkpoint_step"]), ("cancelled", "ctl-0", 0, -1))
    equal(job.events(type="step"), [])


def checkpoints_on_request(root):
    job = Job(root, **RESUMABLE)
    p = job.start()
    job.wait_step(5)
    with open(job.path("control.jsonl"), "a") as f:
        f.write('{"v":1,"id":"ctl-new","t":1,"type":"dance"}\nnot JSON\n')  # a newer castord's, and rubbish
    job.control("checkpoint", "ctl-1")
    job.wait_event(lambda e: e.get("request") == "ctl-1" or e["type"] == "finished")
    job.control("checkpoint", "ctl-2")
    equal(finish(p), 0)
    made = job.events(type="checkpoint")
    answered = [e["request"] for e in made if "request" in e]
    if answered in ([], ["ctl-1"]):
        raise TooLate
    equal(answered, ["ctl-1", "ctl-2"])
    for e in made[-3:]:
        equal(os.path.getsize(job.path(e["path"], "state.safetensors")), e["bytes"])
    equal(job.end()["type"], "finished")


def keeps_newest_checkpoints(root):
    job = Job(root, steps=12, validation=8,
              optimization={"checkpoint_interval": 2, "keep_checkpoints": 2, "eval_interval": 4})
    equal(job.run().returncode, 0)
    best = [e["step"] for e in job.events(type="eval") if e["best"]][-1]
    equal(job.checkpoints(), sorted({10, 12, best}))
    equal([e["step"] for e in job.events(type="checkpoint")], [2, 4, 6, 8, 10, 12])


def early_stopping_exports_best(root):
    # a rate this large soon makes it worse
    job = Job(root, steps=60, validation=8, seed=3, optimization={
        "learning_rate": 0.05, "schedule": "constant", "eval_interval": 2, "checkpoint_interval": 50,
        "keep_checkpoints": 1, "early_stopping": {"patience": 3, "min_delta": 0.0}})
    equal(job.run().returncode, 0)
    evals = job.events(type="eval")
    best = min(evals, key=lambda e: e["loss"])
    last = evals[-1]
    assert last["step"] < 60 and last["step"] == best["step"] + 6, [(e["step"], e["loss"]) for e in evals]
    equal([e["step"] for e in evals if e["best"]][-1], best["step"])
    equal(job.end()["type"], "finished")
    equal(json.loads(job.output()["castor.json"])["step"], best["step"])
    again = Job(root, "again", model=job.path("output"), steps=3, validation=8)
    equal(again.run().returncode, 0)
    equal(again.events(type="eval")[0]["loss"], best["loss"])
    shutil.rmtree(job.path("output"))  # as if killed before the export
    equal(job.run().returncode, 0)
    equal((job.last_attempt(), job.events(type="step")), (2, []))
    equal(json.loads(job.output()["castor.json"])["step"], best["step"])


def two_attempts_at_once(root):
    """The second waits for the first one's ranks, then gives up; the first goes on."""
    job = Job(root, steps=1600, hyperparameters={"n_epochs": 50, "batch_size": 32},
              optimization={"micro_batch_size": 1})
    p = job.start()
    job.wait_step(2)
    equal(job.run("--attempt", "2", job.dir).returncode, 1)
    end = job.end(2)
    equal((end["type"], job.exit(2)["ok"]), ("failed", False))
    assert "another" in json.dumps(end), end
    job.control("cancel")
    equal(finish(p), 0)
    equal(job.end(1).get("reason"), "cancelled")


def damaged_checkpoint(root):
    job = Job(root, **RESUMABLE)
    p = job.start()
    job.wait_step(4)
    p.send_signal(signal.SIGTERM)
    job.stopped(p)
    step = job.checkpoints()[-1]
    state = job.path("checkpoints", "step-%d" % step, "state.safetensors")
    os.truncate(state, 1000)
    equal(job.run().returncode, 1)
    end = json.dumps(job.end())
    assert "step %d" % step in end and "state.safetensors" in end, end


CASES = [killed_rank_resumes, killed_supervisor_resumes, killed_while_writing_resumes, terminated_stops_and_resumes,
         signals_leave_the_numbers_alone, pauses_and_goes_on, cancels, cancelled_before_it_starts, checkpoints_on_request,
         keeps_newest_checkpoints, early_stopping_exports_best, two_attempts_at_once, damaged_checkpoint]

if __name__ == "__main__":
    rig.main(CASES, __doc__)
