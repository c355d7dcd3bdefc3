#!/usr/bin/env python3
"""castord, its scheduler and castor-worker together: jobs from upload to model, and what survives when parts die."""
import csv
import json
import os
import shutil
import signal
import subprocess
import time

import castord
import rig
from castord import Castord
from rig import Skip, TooLate, equal, read_events, wait_gone

JOBS = "/v1/fine_tuning/jobs"


class Service(Castord):
    """Attempts outlive castord, so the end of a test has to end them."""

    def close(self):
        jobs = os.path.join(self.state, "jobs")
        records = [os.path.join(jobs, id, a, "supervisor.json") for id in os.listdir(jobs)
                   for a in os.listdir(os.path.join(jobs, id)) if a.startswith("attempt-")] \
            if os.path.isdir(jobs) else []
        try:
            return super().stop()
        finally:
            for record in filter(os.path.exists, records):
                with open(record) as f:
                    kill_worker(json.load(f)["pid"], self.state)
            shutil.rmtree(self.state, ignore_errors=True)


def kill_worker(pid, state):
    """Unless that process is another one by now."""
    try:
        if state.encode() in rig.read_bytes("/proc/%d/cmdline" % pid):
            os.kill(pid, signal.SIGKILL)
    except OSError:
        pass


def service(root, **more):
    """A castord with the real worker, whose local models lie in root/models."""
    castord.BIN = more.pop("binary", rig.Job.castord)
    models = os.path.join(root, "models")
    if not os.path.isdir(models):
        shutil.copytree(rig.Job.model, os.path.join(models, "tiny"))
    config = {"worker": rig.Job.worker, "local_model_dirs": [models], "limits": more.pop("limits", {}),
              "slots": more.pop("slots", {})}
    return Service(config, env=rig.environment(root), **more)


def upload(c, steps=20, name="train.jsonl", batch=4):
    status, _, file = c.upload(rig.make_data(batch * steps), name=name)
    equal((status, file["status"]), (200, "processed"))
    return file["id"]


def body(root, training_file, batch=4, epochs=1, **more):
    return {"model": os.path.join(root, "models", "tiny"), "training_file": training_file, "seed": 7,
            "method": {"type": "supervised", "supervised": {"hyperparameters": {
                "n_epochs": epochs, "batch_size": batch}}},
            "dataset": {"max_seq_length": 32}, "resources": {"device": "cpu"},
            "optimization": {"learning_rate": 0.01, "micro_batch_size": 1, **more.pop("optimization", {})}, **more}


def create(c, request):
    status, _, job = c.request("POST", JOBS, request)
    equal((status, job.get("error")), (200, None))
    return job["id"]


def long_job(c, root, epochs=30, **more):
    """Some seconds of training in steps of some milliseconds, ten an epoch."""
    return create(c, body(root, upload(c, steps=10, batch=64), batch=64, epochs=epochs, **more))


def get(c, id, what=""):
    status, _, answer = c.request("GET", "%s/%s%s" % (JOBS, id, what))
    equal(status, 200)
    return answer


def wait_end(c, id):
    return c.wait_status(id, ("succeeded", "failed", "cancelled"), 2 * rig.HANGS)


def wait_step(c, id, step, seconds=rig.HANGS):
    deadline = time.time() + seconds
    while time.time() < deadline:
        job = get(c, id)
        if job["progress"]["step"] >= step:
            return job
        if job["status"] == "succeeded":
            raise TooLate
        assert job["status"] in ("validating_files", "queued", "running"), job
        time.sleep(0.02)
    raise AssertionError("step %d did not come" % step)


def all_events(c, id):
    """Oldest first, over all pages."""
    out, after = [], ""
    while True:
        page = get(c, id, "/events?limit=100" + after)
        out += page["data"]
        if not page["has_more"]:
            return out[::-1]
        after = "&after=" + page["data"][-1]["id"]


def job_dir(c, id):
    return os.path.join(c.state, "jobs", id)


def worker_events(c, id, attempt=1):
    return read_events(os.path.join(job_dir(c, id), "attempt-%d" % attempt, "events.jsonl"))


def same_events(c, id, attempts=1):
    """Every step, evaluation and checkpoint that workers reported is an event of the job, once and in order."""
    want = [(e["type"], e["step"]) for a in range(1, attempts + 1) for e in worker_events(c, id, a)
            if e["type"] in ("step", "eval", "checkpoint")]
    kinds = {"train_loss": "step", "full_valid_loss": "eval"}
    got = []
    for e in all_events(c, id):
        if e["type"] == "metrics":
            got.append((kinds["full_valid_loss" if "full_valid_loss" in e["data"] else "train_loss"],
                        e["data"]["step"]))
        elif e["message"].startswith("Checkpoint created"):
            got.append(("checkpoint", e["data"]["step"]))
    equal(got, want)


def described(value, schema, schemas, path):
    """Every member of a value is a property of its schema, of the right type, and those that must be there are."""
    schema = schemas[schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema
    kinds = {"object": dict, "integer": int, "number": (int, float), "boolean": bool}
    assert isinstance(value, kinds[schema["type"]]), (path, value, schema)
    if schema["type"] != "object":
        assert isinstance(value, bool) == (schema["type"] == "boolean"), (path, value)
        return
    equal((path, set(value) - set(schema["properties"])), (path, set()))
    equal((path, set(schema["required"]) - set(value)), (path, set()))
    for key in value:
        described(value[key], schema["properties"][key], schemas, path + "." + key)


def metrics_are_described(c, id):
    """Returns the members of steps, as the OpenAPI document of the server has them, that were not met."""
    schemas = c.request("GET", "/openapi.json")[2]["components"]["schemas"]
    unmet = set(schemas["StepMetrics"]["properties"])
    for e in all_events(c, id):
        if e["type"] == "metrics":
            step = "seconds" in e["data"]
            described(e["data"], schemas["StepMetrics" if step else "EvaluationMetrics"], schemas, "data")
            unmet -= set(e["data"]) if step else set()
    return unmet


def supervisor(c, id, attempt=1):
    with open(os.path.join(job_dir(c, id), "attempt-%d" % attempt, "supervisor.json")) as f:
        return json.load(f)["pid"]


def rank(c, id, attempt=1):
    pid = supervisor(c, id, attempt)
    try:
        with open("/proc/%d/task/%d/children" % (pid, pid)) as f:
            return int(f.read().split()[0])
    except (OSError, IndexError):
        raise TooLate from None


def kill_castord(c):
    c.process.kill()
    c.process.wait()
    c.log.close()


# ---- cases ---------------------------------------------------------------------------------------------------

def from_upload_to_model(root):
    with service(root) as c:
        train, valid = upload(c), upload(c, steps=3, name="valid.jsonl")
        id = create(c, body(root, train, epochs=2, validation_file=valid, suffix="mine"))
        job = wait_end(c, id)
        equal((job["status"], job["error"], job["attempt"]), ("succeeded", None, 1))
        events = worker_events(c, id)
        evals = [e["loss"] for e in events if e["type"] == "eval"]
        assert len(evals) == 3 and evals[2] < evals[1] < evals[0] and evals[2] < 0.5 * evals[0], evals
        equal(job["progress"]["valid_loss"], evals[2])
        equal(job["trained_tokens"], events[-1]["trained_tokens"])
        assert job["created_at"] <= job["started_at"] <= job["finished_at"]
        same_events(c, id)
        equal(metrics_are_described(c, id), {"planned_seconds", "bound_seconds", "efficiency",  # with a profile
                                             "loss_scale", "skipped_steps"})  # in fp16

        checkpoints = get(c, id, "/checkpoints")["data"]
        equal([k["step_number"] for k in checkpoints], [40, 20])
        equal(checkpoints[0]["metrics"]["valid_loss"], evals[2])
        model = job["fine_tuned_model"]
        assert model.startswith("ft:") and ":mine:" in model, model
        assert model in [m["id"] for m in c.request("GET", "/v1/models")[2]["data"]]
        assert os.path.exists(os.path.join(job_dir(c, id), "output", "model.safetensors"))

        status, _, text = c.request("GET", "/v1/files/%s/content" % job["result_files"][0])
        equal(status, 200)
        rows = list(csv.DictReader(text.decode().splitlines()))
        steps = [e for e in events if e["type"] == "step"]
        got = {int(r["step"]): r for r in rows}
        equal(sorted(s for s in got if got[s]["train_loss"]), [e["step"] for e in steps])
        for e in steps:
            assert abs(float(got[e["step"]]["train_loss"]) - e["loss"]) <= 1e-8 * e["loss"], (got[e["step"]], e)
        equal([s for s in sorted(got) if got[s]["full_valid_loss"]], [0, 20, 40])


def adapters_from_upload_to_model(root):
    """`lora` in the request: the adapter comes out, and the job says what was trained."""
    with service(root) as c:
        train, valid = upload(c), upload(c, steps=3, name="valid.jsonl")
        lora = {"rank": 4, "alpha": 8, "target_modules": "all-linear", "export": "both"}
        id = create(c, body(root, train, epochs=2, validation_file=valid, lora=lora))
        job = wait_end(c, id)
        equal((job["status"], job["error"]), ("succeeded", None))
        evals = [e["loss"] for e in worker_events(c, id) if e["type"] == "eval"]
        assert evals[2] < evals[1] < evals[0] - 0.2, evals
        modules = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
        equal(job["lora"], {"rank": 4, "alpha": 8, "dropout": 0, "rslora": False, "target_modules": modules,
                            "quantize_base": "none", "export": "both"})
        assert 0 < job["plan"]["model"]["trainable_parameters"] < job["plan"]["model"]["parameters"]
        output = os.path.join(job_dir(c, id), "output")
        assert os.path.exists(os.path.join(output, "model.safetensors"))
        equal(sorted(os.listdir(os.path.join(output, "adapter"))),
              ["adapter_config.json", "adapter_model.safetensors"])
        id = create(c, body(root, train, lora={"target_modules": ["c_attn"]}))
        job = wait_end(c, id)
        equal((job["status"], job["error"]["param"]), ("failed", "lora.target_modules"))


def alternatives_of_an_estimate(root):
    """What is proposed for a job that does not fit is a request that does."""
    with service(root) as c:
        small = {"policy": "cuda", "gpu_memory_limit": "100KiB"}
        request = body(root, upload(c), placement=small)
        status, _, plan = c.request("POST", "/v1/fine_tuning/estimate", request)
        equal((status, plan["fits"], plan["error"]["reason"]), (200, False, "insufficient_memory"))
        changes = {a["change"].split()[0]: a["settings"] for a in plan["alternatives"]}
        assert "placement.gpu_memory_limit" in changes and "placement.nvme_limit" not in changes, changes
        for settings in changes.values():
            other = {**request, **{key: {**request.get(key, {}), **members} for key, members in settings.items()}}
            status, _, plan = c.request("POST", "/v1/fine_tuning/estimate", other)
            equal((status, plan["fits"]), (200, True))


def columns_of_a_parquet_file(root):
    """Mapped columns of an uploaded Parquet file train as the same rows in JSON lines do."""
    golden = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden", "parquet", "pairs_brotli_v2")
    mapped = {"max_seq_length": 64, "column_mapping": {"prompt": "question", "completion": "answer"}}

    def job_of(c, kind, dataset):
        status, _, file = c.upload(rig.read_bytes(golden + kind), name="pairs" + kind)
        equal((status, file["status"]), (200, "processed"))
        return wait_end(c, create(c, body(root, file["id"], dataset=dataset)))

    with service(root) as c:
        losses = []
        for kind in (".parquet", ".jsonl"):
            job = job_of(c, kind, mapped)
            equal((job["status"], job["error"]), ("succeeded", None))
            losses.append([e["loss"] for e in worker_events(c, job["id"]) if e["type"] == "step"])
        assert len(losses[0]) > 5, losses
        equal(losses[0], losses[1])
        for wrong, words in (({"column_mapping": {"text": "story"}}, '"story"'), ({}, "no columns make an example")):
            error = job_of(c, ".parquet", wrong)["error"]
            assert words in error["message"] and '"question"' in error["message"], error
            equal(error["param"], "dataset.column_mapping")


def castord_killed_while_training(root):
    c = service(root)
    try:
        c.wait_ready()
        id = long_job(c, root, epochs=20, optimization={"checkpoint_interval": 100})
        wait_step(c, id, 20)
        pid = rank(c, id)
        for _ in range(3):
            kill_castord(c)
            alive = os.path.exists("/proc/%d" % pid)  # the worker goes on
            time.sleep(0.2)
            c = service(root, state=c.state)
            c.wait_ready()
            job = get(c, id)
            if job["status"] == "succeeded":
                raise TooLate
            equal((job["status"], alive), ("running", True))
            at = job["progress"]["step"]
            wait_step(c, id, at + 20)
        job = wait_end(c, id)
        equal((job["status"], job["attempt"]), ("succeeded", 1))
        equal([e["step"] for e in worker_events(c, id) if e["type"] == "step"], list(range(1, 201)))
        same_events(c, id)
    finally:
        c.close()


def finished_while_castord_was_dead(root):
    c = service(root)
    try:
        c.wait_ready()
        id = long_job(c, root, epochs=6)
        wait_step(c, id, 5)
        pid = supervisor(c, id)
        kill_castord(c)
        wait_gone(pid)
        c = service(root, state=c.state)
        c.wait_ready()
        job = wait_end(c, id)
        equal((job["status"], job["attempt"]), ("succeeded", 1))
        same_events(c, id)
    finally:
        c.close()


def worker_killed(root):
    with service(root) as c:
        id = long_job(c, root)
        wait_step(c, id, 5)
        os.kill(rank(c, id), signal.SIGKILL)
        job = wait_end(c, id)
        equal((job["status"], job["error"]["code"]), ("failed", "worker_crashed"))
        assert "SIGKILL" in job["error"]["message"] or "signal 9" in job["error"]["message"], job["error"]
        equal(job["fine_tuned_model"], None)
        id = long_job(c, root)
        wait_step(c, id, 5)
        pid = rank(c, id)
        os.kill(supervisor(c, id), signal.SIGKILL)
        job = wait_end(c, id)
        equal((job["status"], job["error"]["code"]), ("failed", "worker_crashed"))
        wait_gone(pid)


def worker_killed_and_restarted(root):
    with service(root) as c:
        id = long_job(c, root, epochs=8, scheduling={"max_restarts": 1}, optimization={"checkpoint_interval": 10})
        wait_step(c, id, 30)
        os.kill(rank(c, id), signal.SIGKILL)
        job = wait_end(c, id)
        equal((job["status"], job["attempt"], job["progress"]["step"]), ("succeeded", 2, 80))
        first = [e["step"] for e in worker_events(c, id, 2) if e["type"] == "step"][0]
        assert first > 20 and first % 10 == 1, first
        same_events(c, id, 2)


def cancels(root):
    with service(root) as c:
        running = long_job(c, root)
        wait_step(c, running, 5)
        queued = long_job(c, root)
        equal(c.wait_status(queued, ("queued", "running", "failed"))["status"], "queued")
        equal(c.request("POST", "%s/%s/cancel" % (JOBS, queued))[0], 200)
        equal(c.wait_status(queued, ("cancelled",))["attempt"], 0)
        equal(c.request("POST", "%s/%s/cancel" % (JOBS, running))[0], 200)
        job = wait_end(c, running)
        equal((job["status"], job["fine_tuned_model"], job["error"]), ("cancelled", None, None))
        end = worker_events(c, running)[-1]
        equal((end["type"], end["reason"]), ("stopped", "cancelled"))
        same_events(c, running)
        id = create(c, body(root, upload(c)))  # the slot is free again
        equal(wait_end(c, id)["status"], "succeeded")


def queue_runs_in_order(root):
    """The most urgent first, then the oldest. Jobs are validated side by side, so all wait until all are ready: behind
    one that ends when it is told to."""
    with service(root) as c:
        first = create(c, body(root, upload(c, steps=50, batch=64), batch=64, epochs=50))
        wait_step(c, first, 1)
        file = upload(c)
        ids = [create(c, body(root, file)) for _ in range(3)]
        urgent = create(c, body(root, file, scheduling={"priority": 10}))
        for id in [*ids, urgent]:
            equal(c.wait_status(id, ("queued", "failed", "running"))["status"], "queued")
        equal(c.request("POST", "%s/%s/cancel" % (JOBS, first))[0], 200)
        order = [first, urgent, *ids]
        equal([wait_end(c, id)["status"] for id in order], ["cancelled"] + ["succeeded"] * 4)
        spans = [(worker_events(c, id)[0]["t"], worker_events(c, id)[-1]["t"]) for id in order]
        for before, behind in zip(spans, spans[1:]):
            assert before[1] <= behind[0], "not in order, or two jobs at once on one slot"


def pauses_and_resumes(root):
    c = service(root)
    try:
        c.wait_ready()
        plain = create(c, body(root, upload(c, steps=10, batch=32), batch=32, epochs=6))
        want = wait_end(c, plain)
        id = create(c, body(root, upload(c, steps=10, batch=32), batch=32, epochs=6))
        wait_step(c, id, 20)
        equal(c.request("POST", "%s/%s/pause" % (JOBS, id))[0], 200)
        job = c.wait_status(id, ("paused", "failed", "succeeded"))
        if job["status"] == "succeeded":
            raise TooLate
        equal((job["status"], job["finished_at"]), ("paused", None))
        c.stop()
        c = service(root, state=c.state)
        c.wait_ready()
        equal(get(c, id)["status"], "paused")
        equal(c.request("POST", "%s/%s/resume" % (JOBS, id))[0], 200)
        job = wait_end(c, id)
        equal((job["status"], job["attempt"]), ("succeeded", 2))
        # the very same training as without the pause
        equal([job["progress"]["train_loss"], job["trained_tokens"]],
              [want["progress"]["train_loss"], want["trained_tokens"]])
        equal(rig.read_bytes(os.path.join(job_dir(c, id), "output", "model.safetensors")),
              rig.read_bytes(os.path.join(job_dir(c, plain), "output", "model.safetensors")))
        steps = [e["step"] for a in (1, 2) for e in worker_events(c, id, a) if e["type"] == "step"]
        equal(steps, list(range(1, 61)))
        same_events(c, id, 2)
    finally:
        c.close()


def failures_say_why(root):
    with service(root) as c:
        file = upload(c)
        tensors = rig.model_tensors(["model.decoder.layers.1.fc1.weight"])
        rig.write_model(os.path.join(root, "models", "missing"), tensors=tensors)
        request = body(root, file)
        request["model"] = os.path.join(root, "models", "missing")
        job = wait_end(c, create(c, request))
        equal((job["status"], job["error"]["param"], job["attempt"]), ("failed", "model", 1))
        assert "layers.1.fc1.weight" in job["error"]["message"], job["error"]
        request = body(root, file, dataset={"max_seq_length": 65})
        job = wait_end(c, create(c, request))
        equal((job["status"], job["error"]["param"], job["attempt"]), ("failed", "dataset.max_seq_length", 0))
        request = body(root, file, placement={"policy": "cuda", "gpu_memory_limit": 100000})
        job = wait_end(c, create(c, request))
        equal((job["status"], job["error"]["code"], job["attempt"]), ("failed", "insufficient_memory", 0))


def time_limit(root):
    with service(root) as c:
        id = long_job(c, root, scheduling={"max_runtime_seconds": 1})
        job = wait_end(c, id)
        equal(job["status"], "failed")
        assert "max_runtime_seconds" in job["error"]["message"], job["error"]


def disk_full_at_upload(root):
    """castord's state on a file system of 6 MiB, in a mount namespace of its own."""
    def wrapped():
        service(root).close()  # sets castord.BIN, makes the models
        path = os.path.join(root, "wrapped")
        with open(path, "w") as f:
            f.write('#!/bin/sh\nstate="$4" config="$(cat "$6")"\n'
                    'exec unshare -m sh -c \'mount -t tmpfs -o size=6m none "$1" && printf %%s "$2" > "$1/config.json"'
                    ' && shift 2 && exec "$@"\' sh "$state" "$config" %s "$@"\n' % castord.BIN)
        os.chmod(path, 0o755)
        return path

    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        raise Skip("no right to make a mount namespace")
    path = wrapped()
    with service(root, binary=path, limits={"free_bytes": 0}) as c:
        status, _, answer = c.upload(rig.make_data(300000))
        equal((status, answer["error"]["code"]), (507, "disk_full"))
        equal(c.request("GET", "/v1/files")[2]["data"], [])
        file = upload(c)  # what was received is gone again, so this fits
        job = wait_end(c, create(c, body(root, file)))
        equal(job["status"], "succeeded")


CASES = [from_upload_to_model, adapters_from_upload_to_model, alternatives_of_an_estimate, columns_of_a_parquet_file, castord_killed_while_training, finished_while_castord_was_dead, worker_killed,
         worker_killed_and_restarted, cancels, queue_runs_in_order, pauses_and_resumes, failures_say_why, time_limit,
         disk_full_at_upload]

if __name__ == "__main__":
    rig.main(CASES, __doc__)
