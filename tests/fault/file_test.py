#!/usr/bin/env python3
"""What happens to a training run when the file system fails, each operation in turn, when a disk is full, and when memory runs out."""
import errno
import json
import os
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../e2e"))
import rig  # noqa: E402
from rig import Job, Skip, differences  # noqa: E402

CHANGES = {"steps": 6, "validation": 4, "optimization": {"checkpoint_interval": 2, "keep_checkpoints": 1}}


def equal(got, want):
    assert got == want, "%r is not %r" % (got, want)


class Fault:
    """castor-worker with fail_calls.c preloaded."""

    def __init__(self, root, source="fail_calls.c"):
        self.library = os.path.join(root, "fault.so")
        self.count = os.path.join(root, "calls")
        built = subprocess.run(["cc", "-shared", "-fPIC", "-D_GNU_SOURCE", "-O1", "-o", self.library,
                                os.path.join(HERE, source), "-ldl"], capture_output=True, text=True)
        equal((built.returncode, built.stderr), (0, ""))

    def run(self, job, path, calls, nth, every=False, number=errno.ENOSPC):
        """The exit status and how many operations there were."""
        env = dict(job.env)
        job.env.update(LD_PRELOAD=self.library, FAULT_PATH=path, FAULT_CALLS=calls, FAULT_NTH=str(nth),
                       FAULT_EVERY=str(int(every)), FAULT_ERRNO=str(number), FAULT_COUNT=self.count,
                       ASAN_OPTIONS="verify_asan_link_order=0")
        if os.path.exists(self.count):
            os.remove(self.count)
        code = job.run().returncode
        job.env = env
        return code, int(rig.read_bytes(self.count)) if os.path.exists(self.count) else 0


def stopped_at_two(root):
    """A job as if killed behind step 2, and the model that it comes to when it goes on undisturbed."""
    job = Job(root, "start", **CHANGES)
    keep = job.spec["optimization"]["keep_checkpoints"]
    job.spec["optimization"]["keep_checkpoints"] = 100
    rig.write_json(job.path("spec.json"), job.spec)
    equal(job.run().returncode, 0)
    output = job.output()
    for path in ("attempt-1", "output", "checkpoints/step-4", "checkpoints/step-6"):
        shutil.rmtree(job.path(path))
    equal(job.checkpoints(), [2])
    job.spec["optimization"]["keep_checkpoints"] = keep
    rig.write_json(job.path("spec.json"), job.spec)
    return job, output


def copy(root, job, name):
    other = Job.__new__(Job)
    other.dir, other.env = os.path.join(root, name), dict(job.env)
    shutil.rmtree(other.dir, ignore_errors=True)
    shutil.copytree(job.dir, other.dir)
    return other


def check(root, job, output, name):
    """Whatever happened: it was reported, nothing is half-written, and the next attempt gets the same model."""
    end = job.end()
    assert end["type"] in ("finished", "failed"), (name, end)
    if end["type"] == "finished":
        equal((name, differences(job.output(), output)), (name, []))
    else:
        assert end["code"] in ("nospace", "io") and root in end["message"], (name, end)
        equal((name, job.exit()["ok"]), (name, False))
    for warning in job.events(type="warning"):
        equal((name, warning["code"]), (name, "checkpoint_failed"))
        assert root in warning["message"], (name, warning)
    for step in job.checkpoints():
        state = rig.read_safetensors(job.path("checkpoints", "step-%d" % step, "state.safetensors"))
        assert len(state) > 50 and os.path.exists(job.path("checkpoints", "step-%d" % step, "checkpoint.json"))
    assert job.checkpoints(), name
    equal(job.run().returncode, 0)
    equal((name, job.end()["type"]), (name, "finished"))
    equal((name, differences(job.output(), output)), (name, []))
    equal((name, job.leftovers()), (name, []))
    return end["type"]


def each_operation(root, path, calls, number, most):
    return each_operation_of(root, *stopped_at_two(root), path, calls, number, most)


def each_operation_of(root, start, output, path, calls, number, most):
    """Fail the 1st, 2nd, ... operation of a run; beyond `most` of them a spread over all."""
    fault = Fault(root)
    code, count = fault.run(copy(root, start, "count"), path, calls, 0)
    assert code == 0 and count > 0, (code, count)
    nths = range(1, count + 1) if count <= most else sorted({1 + i * (count - 1) // (most - 1) for i in range(most)})
    ends = []
    for nth in nths:
        job = copy(root, start, "job")
        fault.run(job, path, calls, nth, number=number)
        ends.append(check(root, job, output, "%s %s %d of %d" % (path, calls, nth, count)))
    return ends


def writes_of_checkpoints(root):
    ends = each_operation(root, "/checkpoints/", "write", errno.ENOSPC, 8)
    # a full disk in the midst of training costs a checkpoint, not the run
    assert "finished" in ends and "failed" in ends, ends


def failing_writes_of_checkpoints(root):
    equal(set(each_operation(root, "/checkpoints/", "write", errno.EIO, 4)), {"failed"})


def fsyncs_of_checkpoints(root):
    each_operation(root, "/checkpoints", "fsync", errno.EIO, 12)


def renames_and_directories(root):
    each_operation(root, "/checkpoints/", "rename", errno.ENOSPC, 8)
    shutil.rmtree(os.path.join(root, "start"))
    each_operation(root, "/checkpoints", "mkdir", errno.ENOSPC, 4)


def exports(root):
    equal(set(each_operation(root, "/tmp-output/", "write", errno.ENOSPC, 6)), {"failed"})


def ends_of_exports(root):
    equal(set(each_operation(root, "/tmp-output", "fsync", errno.EIO, 6)), {"failed"})


def old_checkpoints_that_cannot_be_removed(root):
    each_operation(root, "/checkpoints/", "unlink", errno.EIO, 4)


def a_disk_that_stays_full(root):
    """Nothing can be written beside events: training goes on as far as the end, which needs a checkpoint."""
    start, output = stopped_at_two(root)
    job = copy(root, start, "job")
    equal(Fault(root).run(job, "/checkpoints/", "write", 1, every=True)[0], 1)
    equal([e["step"] for e in job.events(type="step")], [3, 4, 5, 6])
    equal([e["code"] for e in job.events(type="warning")], ["checkpoint_failed"])
    equal((job.end()["type"], job.end()["code"]), ("failed", "nospace"))
    equal(job.checkpoints(), [2])
    check(root, job, output, "full")


def events_wait_for_room(root):
    """Events that cannot be written are written later, in order; none is lost."""
    job = Job(root, **CHANGES)
    fault = Fault(root)
    count = fault.run(copy(root, job, "count"), "/events.jsonl", "write", 0)[1]
    for nth in (1, 2, count // 2, count - 1):
        again = copy(root, job, "again")
        equal(fault.run(again, "/events.jsonl", "write", nth)[0], 0)
        equal(again.end()["type"], "finished")
        equal([e["step"] for e in again.events(type="step")], list(range(1, 7)))


def tokenized_data(root):
    """It lies in files without names in the job's directory: one that cannot be written or read ends the run."""
    job = Job(root, **CHANGES)
    fault = Fault(root)
    for call, number, code, words in (("write", errno.ENOSPC, "nospace", "max_examples"), ("pread", errno.EIO, "io", "Input/output error")):
        count = fault.run(copy(root, job, "count"), " (deleted)", call, 0)[1]
        assert count > 3, (call, count)
        for nth in (1, count // 2, count):
            again = copy(root, job, "again")
            equal(fault.run(again, " (deleted)", call, nth, number=number)[0], 1)
            end = again.end()
            equal((end["type"], end["code"]), ("failed", code))
            assert words in end["message"], end
            equal(again.leftovers(), [])


def best_in_time(root, changes):
    """A job whose best evaluation is neither its first two nor after step 13: which seeds give one, rounding decides."""
    for seed in range(3, 30):
        plain = Job(root, "plain-%d" % seed, seed=seed, **changes)
        equal(plain.run().returncode, 0)
        losses = {e["step"]: e["loss"] for e in plain.events(type="eval")}
        best = min(losses, key=losses.get)
        if best < 14 and min((s for s in losses if s < best), key=losses.get, default=0) > 0:
            return seed, losses, best
    raise AssertionError("no seed of 27 has its best evaluation in time")


def the_best_before_outlives_a_full_disk(root):
    """The best evaluation's checkpoint cannot be written: the best of those that could is kept and exported."""
    changes = {"steps": 18, "validation": 8, "optimization": {
        "learning_rate": 0.2, "schedule": "constant", "dropout": 0.0, "eval_interval": 2, "checkpoint_interval": 7,
        "keep_checkpoints": 1, "export": "best"}}
    seed, losses, best = best_in_time(root, changes)  # at 14 one is written, and older ones are removed
    kept = {s: loss for s, loss in losses.items() if s != best}
    job = Job(root, seed=seed, **changes)
    equal(Fault(root).run(job, "/tmp-step-%d/" % best, "write", 1)[0], 0)
    equal([e["code"] for e in job.events(type="warning")], ["checkpoint_failed"])
    equal({e["step"]: e["loss"] for e in job.events(type="eval")}, losses)
    for e in job.events(type="checkpoint"):
        so_far = min((s for s in kept if s <= e["step"]), key=losses.get)
        assert so_far in (0, *e["kept"]), (e["step"], so_far, e["kept"])
    second = min(kept, key=losses.get)
    equal(json.loads(job.output()["castor.json"])["step"], second)
    equal(job.checkpoints(), sorted({second, 18}))


def a_small_disk(root):
    """The whole job directory on a file system that holds one checkpoint and a half."""
    start, output = stopped_at_two(root)
    state = os.path.getsize(start.path("checkpoints", "step-2", "state.safetensors"))
    total = sum(os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(start.dir) for f in files)
    job = copy(root, start, "job")
    result = os.path.join(root, "result")
    script = ('mount -t tmpfs -o size=%d none "$1" && cp -a "$2/." "$1" && { "$3" "$1"; code=$?; cp -a "$1" "$4"; '
              'exit $code; }' % (total + state // 2 + 150000))
    mount = os.path.join(root, "mount")
    os.makedirs(mount)
    p = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", mount, job.dir, Job.worker, result], env=job.env,
                       capture_output=True, text=True, timeout=rig.HANGS)
    if "unshare" in p.stderr or "mount:" in p.stderr:
        raise Skip("no right to make a mount namespace")
    equal(p.returncode, 1)
    job.dir = result
    equal((job.end()["type"], job.end()["code"]), ("failed", "nospace"))
    assert "No space left" in job.end()["message"], job.end()
    equal([e["step"] for e in job.events(type="step")], [3, 4, 5, 6])
    equal(job.checkpoints(), [2])
    equal(job.leftovers(), [])


def on_volume(root, job):
    """The directory that a job of policy cpu may put states in, and the host memory that it takes without."""
    volume = os.path.join(root, "volume")
    os.mkdir(volume)
    job.spec["placement"].update(policy="cpu")
    rig.write_json(job.path("spec.json"), job.spec)
    host = job.plan()[1]["memory"]["host"]
    job.spec["files"]["nvme"]["path"] = volume
    return volume, host


def move_to_volume(job, host, saved):
    """Limit host memory to so many bytes less."""
    job.spec["placement"].update(nvme_path="fast", host_memory_limit=host["total"] - saved)
    rig.write_json(job.path("spec.json"), job.spec)


def disks_of_states(root):
    """Optimizer states, then parameters, too, on a volume that is full, or does not give back what was written."""
    start, output = stopped_at_two(root)
    volume, host = on_volume(root, start)
    for saved in (host["optimizer"] // 2, host["optimizer"] + host["weights"] // 2):
        move_to_volume(start, host, saved)
        equal(start.plan()[1]["memory"]["nvme"]["weights"] > 0, saved > host["optimizer"])
        equal(set(each_operation_of(root, start, output, "/volume/", "reserve", errno.ENOSPC, 1)), {"failed"})
        equal(set(each_operation_of(root, start, output, "/volume/", "pread", errno.EIO, 4)), {"failed"})
        equal(set(each_operation_of(root, start, output, "/volume/", "pwrite", errno.EIO, 4)), {"failed"})
    equal(os.listdir(volume), [])


def a_slow_disk(root):
    """Reads of states that take long are what a step's metrics say it waited for, not the updates that waited with it."""
    job = Job(root, steps=6)
    _, host = on_volume(root, job)
    move_to_volume(job, host, host["optimizer"] // 2)
    equal(job.plan()[1]["memory"]["nvme"]["weights"], 0)
    job.env["FAULT_DELAY"] = "20000"
    equal(Fault(root).run(job, "/volume/", "pread", 0)[0], 0)
    for e in job.events(type="step")[1:]:  # updates end in the step behind theirs
        stalls = e["stalls"]
        assert e["seconds"] / 2 < stalls["disk"] <= e["seconds"] and stalls["updates"] < stalls["disk"] / 4, e


def memory_that_runs_out(root):
    """An allocation of the worker's own fails somewhere behind the start: the log says so and the next attempt gets the same model."""
    start, output = stopped_at_two(root)
    fault = Fault(root, "fail_memory.c")
    code, count = fault.run(copy(root, start, "count"), "", "memory", 0)
    assert code == 0 and count > 1000, (code, count)
    stopped = 0
    for nth in [count // 2 + i * (count // 2 - 1) // 7 for i in range(8)]:
        job = copy(root, start, "job")
        code, _ = fault.run(job, "", "memory", nth)
        if code != 0:
            stopped += 1
            rank = job.exit()["ranks"][0]
            said = rank["log_tail"] if rank["signal"] else job.end()["message"]
            assert "memory" in said, (nth, rank, job.events()[-1])
        assert job.checkpoints(), nth
        equal(job.run().returncode, 0)
        equal((nth, differences(job.output(), output)), (nth, []))
        equal((nth, job.leftovers()), (nth, []))
    assert stopped > 0


def device_memory_that_is_gone_when_it_is_claimed(root):
    """What was asked, what was free, and what fits in what is left; then it does."""
    job = Job(root, "job", steps=3, placement={"policy": "cuda"})
    claim = job.plan()[1]["memory"]["gpu"]["total"]
    env = dict(job.env)
    job.env.update(LD_PRELOAD=Fault(root, "fail_claim.c").library, FAULT_BYTES=str(claim),
                   ASAN_OPTIONS="verify_asan_link_order=0")
    equal(job.run().returncode, 1)
    equal((job.end()["type"], job.end()["reason"]), ("failed", "insufficient_memory"))
    for words in ("the job's device arena needs %d bytes" % claim,
                  "are free. In what is left now the job fits, with %.1f MiB of device memory" % (claim / (1 << 20)),
                  "start it again"):
        assert words in job.end()["message"], job.end()
    job.env = env
    equal(job.run().returncode, 0)


def killed_for_its_memory(root):
    """What the kernel kills when others take the memory can say nothing: the supervisor does, and the job resumes."""
    changes = {"steps": 12 * 8, "hyperparameters": {"batch_size": 32},
               "optimization": {"checkpoint_interval": 2, "micro_batch_size": 1}}
    want = Job(root, "want", **changes)
    equal(want.run().returncode, 0)
    counter = os.path.join(root, "vmstat")
    for name, kills, said in (("others", 7, False), ("memory", 8, True)):
        job = Job(root, name, **changes)
        with open(counter, "w", encoding="utf-8") as f:
            f.write("nr_free_pages 1\noom_kill 7\nx 9\n")
        env = dict(job.env)
        job.env.update(LD_PRELOAD=Fault(root).library, FAULT_VMSTAT=counter, ASAN_OPTIONS="verify_asan_link_order=0")
        process = job.start()
        job.wait_step(3)
        with open(counter, "w", encoding="utf-8") as f:
            f.write("nr_free_pages 1\noom_kill %d\nx 9\n" % kills)
        job.kill_rank(process)
        rank = job.exit()["ranks"][0]
        equal((rank["signal"], "host memory ran out" in rank["log_tail"]), (9, said))
        job.env = env
        equal(job.run().returncode, 0)
        equal(differences(job.output(), want.output()), [])


CASES = [tokenized_data, writes_of_checkpoints, failing_writes_of_checkpoints, fsyncs_of_checkpoints, renames_and_directories,
         exports, ends_of_exports, old_checkpoints_that_cannot_be_removed, a_disk_that_stays_full,
         events_wait_for_room, disks_of_states, a_slow_disk, the_best_before_outlives_a_full_disk, a_small_disk, memory_that_runs_out,
         device_memory_that_is_gone_when_it_is_claimed, killed_for_its_memory]

if __name__ == "__main__":
    rig.main(CASES, __doc__)
