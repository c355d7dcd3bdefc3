#!/usr/bin/env python3
"""Host memory that is too small for a model, or that another process takes while it is trained."""
import os
import random
import signal
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../e2e"))
import rig  # noqa: E402
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
        write(self.limit, limit)
        for name, most in (("memory.memsw.limit_in_bytes", limit), ("memory.swap.max", 0)):  # nothing goes to a swap
            path = os.path.join(self.path, name)
            if os.path.exists(path):
                write(path, most)

    def join(self):
        """Of the calling process: for a child that is about to become a program."""
        write(os.path.join(self.path, "cgroup.procs"), os.getpid())

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


CASES = [memory_taken_by_another_process, killed_with_parameters_on_the_disk]

if __name__ == "__main__":
    rig.main(CASES, __doc__)
