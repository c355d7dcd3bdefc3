#!/usr/bin/env python3
"""Host memory that is too small for a model, or that another process takes while it is trained."""
import json
import math
import os
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../e2e"))
import rig  # noqa: E402
import service_test as service  # noqa: E402
from rig import Job, Skip, differences  # noqa: E402

STEPS = 120
CHANGES = {"steps": STEPS, "validation": 4, "optimization": {"checkpoint_interval": 10, "keep_checkpoints": 2}}
MIB = 1 << 20


def equal(got, want):
    assert got == want, "%r is not %r" % (got, want)


# ---- a memory cgroup ------------------------------------------------------------------------------------------

def write(path, text):
    with open(path, "w", encoding="utf-8") as f:
        f.write(str(text))


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def own_group(controller):
    """This process's group in a hierarchy of version 1, or "" in that of version 2."""
    for line in read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path
    return None


def hierarchies():
    """(parent of a new group, names of its limit and its usage) of each hierarchy that may limit memory."""
    for line in read("/proc/self/mounts").splitlines():
        _, mount, kind, options = line.split()[:4]
        if kind == "cgroup" and "memory" in options.split(","):
            yield mount + (own_group("memory") or "").rstrip("/"), "memory.limit_in_bytes", "memory.usage_in_bytes"
        elif kind == "cgroup2":
            yield mount + (own_group("") or "").rstrip("/"), "memory.max", "memory.current"


class Group:
    """A cgroup of its own below this process's; Skip says why there is none."""

    def __init__(self):
        reasons = []
        for parent, limit, usage in hierarchies():
            self.path = os.path.join(parent, "castor-test-%d" % os.getpid())
            self.limit, self.usage = os.path.join(self.path, limit), os.path.join(self.path, usage)
            try:
                os.mkdir(self.path)
            except OSError as why:
                reasons.append("%s: %s" % (parent, why))
                continue
            try:
                if not os.path.exists(self.limit):
                    write(os.path.join(parent, "cgroup.subtree_control"), "+memory")
                self.set_limit(1 << 40)
                return
            except OSError as why:
                reasons.append("%s: %s" % (parent, why))
                os.rmdir(self.path)
        raise Skip("no memory cgroup can be made: " + ("; ".join(reasons) or "none is mounted"))

    def set_limit(self, limit):
        swap = os.path.join(self.path, "memory.memsw.limit_in_bytes")  # nothing goes to a swap
        both = [self.limit, swap] if os.path.exists(swap) else [self.limit]
        if len(both) > 1 and limit > int(read(self.limit)):  # which is never more than that with swap
            both.reverse()
        for path in both:
            write(path, limit)
        if os.path.exists(os.path.join(self.path, "memory.swap.max")):
            write(os.path.join(self.path, "memory.swap.max"), 0)

    def join(self):
        """Of the calling process: for a child that is about to become a program."""
        self.take(os.getpid())

    def take(self, pid):
        """That process, and what it starts from now on."""
        write(os.path.join(self.path, "cgroup.procs"), pid)

    def remove(self):
        for pid in read(os.path.join(self.path, "cgroup.procs")).split():
            os.kill(int(pid), signal.SIGKILL)
            rig.wait_gone(int(pid))
        os.rmdir(self.path)


# Takes memory, a MiB at a time, when told to; as any other process it knows nothing of the job.
TAKE = """
import sys
sys.stdin.readline()
held = []
while len(held) < %d:
    held.append(bytearray(b"x" * (1 << 20)))
print("held", flush=True)
sys.stdin.readline()
"""


# ---- cases ----------------------------------------------------------------------------------------------------

def memory_taken_by_another_process(root):
    """The kernel ends the rank to give its memory to another: the job says so, keeps its checkpoints and goes on."""
    want = Job(root, "want", **CHANGES)
    equal(want.run().returncode, 0)
    group = Group()
    try:
        other = subprocess.Popen([sys.executable, "-c", TAKE % 4096], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                 text=True, preexec_fn=group.join)
        job = Job(root, **CHANGES)
        process = job.start(preexec_fn=group.join)
        job.wait_event(lambda e: e["type"] == "checkpoint")
        scores = ["/proc/%d/oom_score_adj" % pid for pid in (job.rank_pid(process), other.pid, process.pid)]
        equal(int(read(scores[0])), int(read(scores[2])) + 100)
        # Where it matters a job is the largest process and the other the next; here all are of a size. The other goes
        # on when it has the rank's memory and must not have the supervisor's.
        for path, score in zip(scores, (1000, 500)):
            write(path, score)
        group.set_limit(int(read(group.usage)) + 8 * MIB)
        other.stdin.write("\n")
        other.stdin.flush()
        code = rig.finish(process)
        other.kill()
        other.communicate()
    finally:
        group.remove()
    if code == 0:
        raise rig.TooLate
    equal(code, 1)
    rank = job.exit()["ranks"][0]
    equal((rank["signal"], job.exit()["ok"]), (signal.SIGKILL, False))
    for words in ("host memory ran out", "placement.host_memory_limit", "resumes from its last checkpoint"):
        assert words in rank["log_tail"], rank
    kept = job.checkpoints()
    assert kept and kept[-1] < STEPS, kept
    equal(job.run().returncode, 0)
    equal(job.events(type="step")[0]["step"], kept[-1] + 1)
    equal({**job.losses(1), **job.losses(2)}, want.losses())
    equal((differences(job.output(), want.output()), job.leftovers()), ([], []))


def wide_model(path):
    """One whose states are some hundred MiB; the numbers do not matter."""
    hidden, ffn, layers = 384, 1536, 5
    chance = random.Random(4)
    some = [chance.gauss(0, 0.02) for _ in range(997)]
    wide = {rig.HIDDEN: hidden, rig.FFN: ffn}
    tensors = {}
    for name, (shape, values) in rig.model_tensors().items():
        rows = shape[0] if "embed" in name else wide[shape[0]]
        shape = (rows, *(wide[n] for n in shape[1:]))
        n = math.prod(shape)
        tensors[name] = (shape, (some * (n // len(some) + 1))[:n] if len(shape) == 2 else values[:1] * n)
    for layer in range(rig.LAYERS, layers):
        tensors.update({k.replace("layers.0.", "layers.%d." % layer): v for k, v in list(tensors.items()) if "layers.0." in k})
    config = {"hidden_size": hidden, "word_embed_proj_dim": hidden, "ffn_dim": ffn, "num_hidden_layers": layers}
    return rig.write_model(path, config, tensors)


def run_in(group, job, *arguments):
    p = subprocess.run([Job.worker, *(arguments or [job.dir])], env=job.env, capture_output=True, text=True,
                       timeout=rig.HANGS, preexec_fn=group.join)
    return p.returncode, p.stdout


def plan_in(group, job):
    code, text = run_in(group, job, "--plan", job.dir)
    return code, json.loads(text)


def no_more_than_the_group_has(root):
    """What a control group does not allow is not promised, and what is promised within one is there."""
    model = wide_model(os.path.join(root, "model"))
    changes = {"steps": 6, "validation": 4, "model": model}
    want = Job(root, "want", **changes)
    equal(want.run().returncode, 0)
    job = Job(root, **changes)
    group = Group()
    try:
        group.set_limit(300 * MIB)
        host = plan_in(group, Job(root, "small", steps=6))[1]["memory"]["host"]
        assert 150 * MIB < host["limit"] < 280 * MIB, host
        low, high = 64 * MIB, 1 << 30
        while high - low > MIB:
            middle = (low + high) // 2
            group.set_limit(middle)
            code, report = plan_in(group, job)
            low, high = (low, middle) if code == 0 else (middle, high)
        group.set_limit(low)
        code, report = plan_in(group, job)
        message = report["error"]["message"]
        for word in ("short", "MiB that the control group /", "castor-test-%d is limited to" % os.getpid()):
            assert word in message, message
        group.set_limit(high)
        code, report = plan_in(group, job)
        claim = sum(report["memory"][tier]["total"] for tier in ("gpu", "host"))
        assert high - 0.07 * high - 66 * MIB < claim < high - 0.07 * high - 64 * MIB, (claim, high)
        equal(run_in(group, job)[0], 0)
        equal(job.losses(), want.losses())
    finally:
        group.remove()


def what_others_hold_is_not_counted_on(root):
    """An attempt that finds less than the estimate did is refused, not killed; and runs when it is given back."""
    model = wide_model(os.path.join(root, "model"))
    job = Job(root, steps=6, model=model)
    group = Group()
    try:
        group.set_limit(400 * MIB)
        other = subprocess.Popen([sys.executable, "-c", TAKE % 250], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                 text=True, preexec_fn=group.join)
        other.stdin.write("\n")
        other.stdin.flush()
        equal(other.stdout.readline(), "held\n")
        equal(plan_in(group, job)[0], 0)
        equal(run_in(group, job)[0], 1)
        message = job.end()["message"]
        equal(job.end()["reason"], "insufficient_memory")
        assert "castor-test-%d has left now of its limit of 400.0 MiB" % os.getpid() in message, message
        equal(job.end()["fits_alone"], True)
        other.kill()
        other.communicate()
        equal(run_in(group, job)[0], 0)
    finally:
        group.remove()


def two_that_start_at_a_time(root):
    """Of two jobs that fit alone and not both, one trains and the other is told why it does not."""
    model = wide_model(os.path.join(root, "model"))
    jobs = [Job(root, "job%d" % k, steps=40, model=model) for k in range(2)]
    group = Group()
    try:
        group.set_limit(300 * MIB)
        processes = [j.start(preexec_fn=group.join) for j in jobs]
        codes = [rig.finish(p) for p in processes]
    finally:
        group.remove()
    if codes == [0, 0]:  # one after the other
        raise rig.TooLate
    equal(sorted(codes), [0, 1])
    refused = jobs[codes.index(1)]
    equal(refused.end()["reason"], "insufficient_memory")
    assert "has left now" in refused.end()["message"], refused.end()
    equal(refused.end()["fits_alone"], True)


def one_that_waits_for_another(root):
    """A job that a server starts beside another, and that would fit alone, is queued until that one has ended."""
    wide_model(os.path.join(root, "models", "wide"))
    group = Group()
    try:
        group.set_limit(350 * MIB)
        with service.service(root, slots={"cpu": 2}) as c:
            group.take(c.process.pid)
            requests = [service.body(root, service.upload(c, steps=steps), epochs=epochs)
                        for steps, epochs in ((400, 50), (6, 1))]
            for request in requests:
                request["model"] = os.path.join(root, "models", "wide")
            first = service.create(c, requests[0])
            service.wait_step(c, first, 1)
            second = service.create(c, requests[1])
            while not any("Waiting for memory" in e["message"] for e in service.all_events(c, second)):
                assert service.get(c, second)["status"] in ("validating_files", "queued", "running")
                time.sleep(0.05)
            job = service.get(c, second)
            equal((job["status"], job["attempt"], job["error"]), ("queued", 1, None))
            equal(service.get(c, first)["status"], "running")
            equal(c.request("POST", "%s/%s/cancel" % (service.JOBS, first))[0], 200)
            job = service.wait_end(c, second)
            equal((job["status"], job["attempt"]), ("succeeded", 2))
    finally:
        group.remove()


def least_host(job):
    """The smallest placement.host_memory_limit that is accepted, to a KiB."""
    refused, fits = 0, job.plan()[1]["memory"]["host"]["total"]
    while fits - refused > 1024:
        limit = (refused + fits) // 2
        job.spec["placement"]["host_memory_limit"] = limit
        rig.write_json(job.path("spec.json"), job.spec)
        if job.plan()[0] == 0:
            fits = limit
        else:
            refused = limit
    return fits


def killed_with_parameters_on_the_disk(root):
    """In host memory that does not hold the parameters, killed while they are on their way: the same model in the end."""
    model = rig.write_model(os.path.join(root, "model"))
    for name, lora in (("whole", None), ("adapters", {"rank": 4, "alpha": 8, "dropout": 0.0, "rslora": False,
                                                      "target_modules": "all-linear", "export": "merged",
                                                      "quantize_base": "none"})):
        changes = dict(CHANGES, lora=lora, model=model)
        want = Job(root, name + "-want", **changes)
        equal(want.run().returncode, 0)
        volume = os.path.join(root, name + "-volume")
        os.mkdir(volume)
        job = Job(root, name, placement={"policy": "cpu", "nvme_path": "fast"}, **changes)
        job.spec["files"]["nvme"]["path"] = volume
        rig.write_json(job.path("spec.json"), job.spec)
        job.spec["placement"]["host_memory_limit"] = least_host(job)
        rig.write_json(job.path("spec.json"), job.spec)
        report = job.plan()[1]
        assert report["memory"]["nvme"]["weights"] > 0, report
        assert lora or report["memory"]["host"]["total"] < report["memory"]["nvme"]["weights"], report
        chance = random.Random(5)
        losses = {}
        for attempt, step in enumerate(sorted(chance.sample(range(STEPS // 10, STEPS - 20), 2)), 1):
            process = job.start()
            job.wait_step(step, attempt=attempt)
            job.kill_rank(process)
            losses.update(job.losses())
        equal(job.run().returncode, 0)
        losses.update(job.losses())
        equal(losses, want.losses())
        equal((differences(job.output(), want.output()), job.leftovers(), os.listdir(volume)), ([], [], []))


CASES = [memory_taken_by_another_process, no_more_than_the_group_has, what_others_hold_is_not_counted_on,
         two_that_start_at_a_time, one_that_waits_for_another, killed_with_parameters_on_the_disk]

if __name__ == "__main__":
    rig.main(CASES, __doc__)
