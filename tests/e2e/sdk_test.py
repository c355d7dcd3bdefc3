#!/usr/bin/env python3
"""The official openai SDK, unchanged, against castord: base_url is all that differs.

CASTOR_BIN names the program (default build/castord). Needs the package openai.
"""
import hashlib
import io
import os
import sys
import time

import openai

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import castord as e2e  # noqa: E402

KEY = "sk-test-key-of-the-sdk-test"
server = None


def client(**kwargs):
    kwargs.setdefault("api_key", KEY)
    kwargs.setdefault("max_retries", 0)
    return openai.OpenAI(base_url="http://127.0.0.1:%d/v1" % server.port, **kwargs)


def upload(c, content=None, name="data.jsonl"):
    data = (content or e2e.data_set()).encode()
    return c.files.create(file=(name, io.BytesIO(data)), purpose="fine-tune")


def create(c, file_id=None, **kwargs):
    kwargs.setdefault("model", "test/tiny")
    return c.fine_tuning.jobs.create(training_file=file_id or upload(c).id, **kwargs)


def wait(c, job, wanted, seconds=300):
    deadline = time.time() + seconds
    while time.time() < deadline:
        job = c.fine_tuning.jobs.retrieve(job.id)
        if job.status in wanted:
            return job
        time.sleep(0.05)
    raise AssertionError("%s is still %s: %s" % (job.id, job.status, job.error))


def raises(kind, call, status, code=None, param=None):
    try:
        call()
    except kind as e:
        assert type(e) is kind, type(e)
        assert e.status_code == status, e.status_code
        assert e.request_id and e.request_id.startswith("req_"), e.request_id
        assert code is None or e.code == code, e.code
        assert param is None or e.param == param, e.param
        return e
    raise AssertionError("no %s" % kind.__name__)


def files():
    c = client()
    text = e2e.data_set(20)
    f = upload(c, text, "ä.jsonl")
    assert f.object == "file" and f.id.startswith("file-") and f.filename == "ä.jsonl", f
    assert f.bytes == len(text) and f.purpose == "fine-tune" and f.status == "processed", f
    assert f._request_id.startswith("req_")
    assert c.files.retrieve(f.id) == f
    assert c.files.wait_for_processing(f.id, max_wait_seconds=300).status == "processed"
    assert c.files.content(f.id).text == text
    more = [upload(c).id for _ in range(4)]
    listed = [x.id for x in c.files.list(purpose="fine-tune", limit=2)]  # pages by itself
    assert listed[:4] == more[::-1] and f.id in listed, listed
    assert len(set(listed)) == len(listed)
    ascending = [x.id for x in c.files.list(order="asc", limit=3)]
    assert ascending == listed[::-1]
    gone = c.files.delete(f.id)
    assert gone.deleted and gone.id == f.id and gone.object == "file"
    raises(openai.NotFoundError, lambda: c.files.retrieve(f.id), 404, None, "id")
    assert f.id not in [x.id for x in c.files.list()]


def file_with_expiry():
    c = client()
    f = c.files.create(file=("d.jsonl", e2e.data_set().encode()), purpose="fine-tune",
                       expires_after={"anchor": "created_at", "seconds": 3600})
    assert f.expires_at == f.created_at + 3600, f


def file_faults():
    c = client()
    e = raises(openai.BadRequestError, lambda: upload(c, '{"text":1}\nnot json\n'), 400,
               "invalid_file", "file")
    assert "Line 2" in e.message, e.message
    raises(openai.BadRequestError, lambda: upload(c, "\xff"), 400, "invalid_file")
    raises(openai.BadRequestError, lambda: c.files.create(file=("x", b"{}"), purpose="fun"), 400,
           None, "purpose")
    raises(openai.BadRequestError, lambda: c.files.list(limit=0).data, 400, None, "limit")


def job_to_its_end():
    c = client()
    f = upload(c)
    job = create(c, f.id, suffix="demo", seed=7, metadata={"team": "a"},
                 method={"type": "supervised",
                         "supervised": {"hyperparameters": {"n_epochs": 2}}},
                 extra_body={"optimization": {"max_steps": 4}})
    assert job.object == "fine_tuning.job" and job.id.startswith("ftjob-")
    assert job.status == "validating_files" and job.fine_tuned_model is None
    assert job.hyperparameters.n_epochs == 2 and job.hyperparameters.batch_size == "auto"
    assert job.seed == 7 and job.metadata == {"team": "a"} and job.error is None
    assert job.optimization["max_steps"] == 4
    job = wait(c, job, {"succeeded", "failed", "cancelled"})
    assert job.status == "succeeded", job.error
    assert job.fine_tuned_model.startswith("ft:test/tiny:org-castor:demo:"), job.fine_tuned_model
    assert job.finished_at >= job.created_at and job.trained_tokens == 36
    assert job.hyperparameters.batch_size == 4 and job.base_model["commit"]
    assert job.progress["step"] == 4 and job.progress["percent"] == 100
    assert job.plan["steps"] == 4 and job.phase is None

    events = list(c.fine_tuning.jobs.list_events(job.id, limit=3))
    assert len({e.id for e in events}) == len(events) >= 6, len(events)
    assert all(e.object == "fine_tuning.job.event" and e.message for e in events)
    assert {e.type for e in events} >= {"message", "metrics"}, {e.type for e in events}
    assert [e.created_at for e in events] == sorted((e.created_at for e in events), reverse=True)
    checkpoints = list(c.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
    assert [x.step_number for x in checkpoints] == [4, 2], checkpoints
    assert checkpoints[0].metrics.train_loss == 0.75, checkpoints[0].metrics
    assert checkpoints[0].fine_tuned_model_checkpoint.endswith(":ckpt-step-4")

    csv = c.files.content(job.result_files[0]).text
    assert csv.startswith("step,train_loss,"), csv[:100]
    assert len(csv.strip().split("\n")) == 5, csv
    assert c.files.retrieve(job.result_files[0]).purpose == "fine-tune-results"

    assert job.fine_tuned_model in [m.id for m in c.models.list()]
    model = c.models.retrieve(job.fine_tuned_model)
    assert model.object == "model" and model.owned_by == "org-castor"
    assert c.models.delete(job.fine_tuned_model).deleted
    raises(openai.NotFoundError, lambda: c.models.retrieve(job.fine_tuned_model), 404,
           "model_not_found")


def list_pages_by_itself():
    c = client()
    f = upload(c)
    made = [create(c, f.id, metadata={"batch": "pages", "n": str(i)}).id for i in range(5)]
    listed = [j.id for j in c.fine_tuning.jobs.list(limit=2)]
    assert listed[:5] == made[::-1], listed
    filtered = [j.id for j in c.fine_tuning.jobs.list(limit=2, metadata={"batch": "pages"})]
    assert filtered == made[::-1]
    assert [j.id for j in c.fine_tuning.jobs.list(metadata={"batch": "pages", "n": "3"})] == [made[3]]
    assert not list(c.fine_tuning.jobs.list(metadata={"batch": "none"}))
    plain = create(c, f.id)
    assert plain.id in [j.id for j in c.fine_tuning.jobs.list(extra_query={"metadata": "null"})]
    raises(openai.BadRequestError, lambda: list(c.fine_tuning.jobs.list(after="ftjob-no")), 400,
           "invalid_cursor", "after")
    for job_id in made + [plain.id]:
        wait(c, c.fine_tuning.jobs.retrieve(job_id), {"succeeded"})


def cancel_pause_resume():
    c = client()
    f = upload(c)
    slow = dict(metadata={"fake": "slow"}, extra_body={"optimization": {"max_steps": 200}})
    job = create(c, f.id, **slow)
    wait(c, job, {"running"})
    while not c.fine_tuning.jobs.retrieve(job.id).progress["step"]:
        time.sleep(0.05)
    raises(openai.ConflictError, lambda: c.files.delete(f.id), 409)
    c.fine_tuning.jobs.pause(job.id)
    job = wait(c, job, {"paused"})
    step = job.progress["step"]
    assert c.fine_tuning.jobs.resume(job.id).status in ("queued", "running")
    wait(c, job, {"running"})
    while c.fine_tuning.jobs.retrieve(job.id).progress["step"] <= step:
        time.sleep(0.05)
    c.fine_tuning.jobs.cancel(job.id)
    job = wait(c, job, {"cancelled"})
    assert c.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    # With retries on: the header on the 409 keeps the SDK from trying again.
    requests = []
    watched = openai.DefaultHttpxClient(event_hooks={"request": [requests.append]})
    raises(openai.ConflictError, lambda: client(max_retries=2, http_client=watched).fine_tuning.jobs.resume(job.id),
           409, "invalid_state")
    assert len(requests) == 1, requests
    c.files.delete(f.id)


def failing_jobs():
    c = client()
    f = upload(c)
    job = wait(c, create(c, f.id, metadata={"fake": "fail"}), {"failed"})
    assert job.error.code == "nan_loss" and "step 2" in job.error.message, job.error
    job = wait(c, create(c, f.id, model="test/missing"), {"failed"})
    assert job.error.code == "model_not_found" and job.error.param == "model", job.error
    job = wait(c, create(c, f.id, metadata={"fake": "die"}), {"failed"})
    assert job.error.code == "worker_crashed", job.error
    assert [e for e in c.fine_tuning.jobs.list_events(job.id) if e.level == "error"]


def dry_run():
    c = client()
    f = upload(c)
    before = len(list(c.fine_tuning.jobs.list()))
    plan = create(c, f.id, extra_body={"dry_run": True})
    assert plan.object == "fine_tuning.plan" and plan.fits is True and plan.steps == 4
    assert plan.memory["host"]["total"] == 47 and plan.spec["resolved"] is True
    plan = create(c, f.id, model="test/huge", extra_query={"dry_run": "true"})
    assert plan.fits is False and plan.to_dict()["error"]["reason"] == "insufficient_memory"
    estimate = c.post("/fine_tuning/estimate", body={"model": "test/huge", "training_file": f.id}, cast_to=object)
    assert estimate["fits"] is False and estimate["error"]["reason"] == "insufficient_memory", estimate
    assert len(list(c.fine_tuning.jobs.list())) == before


def error_classes():
    c = client()
    jobs = c.fine_tuning.jobs
    raises(openai.NotFoundError, lambda: jobs.retrieve("ftjob-no"), 404, "fine_tune_not_found",
           "fine_tune_id")
    raises(openai.NotFoundError, lambda: jobs.cancel("ftjob-no"), 404)
    raises(openai.NotFoundError, lambda: jobs.list_events("ftjob-no").data, 404)
    raises(openai.NotFoundError, lambda: jobs.checkpoints.list("ftjob-no").data, 404)
    raises(openai.NotFoundError, lambda: c.models.retrieve("org/none@x:y"), 404, "model_not_found")
    raises(openai.NotFoundError, lambda: c.chat.completions.create(model="x", messages=[]), 404)
    e = raises(openai.BadRequestError,
               lambda: create(c, "file-no", suffix="", seed=-1, extra_body={"colour": 1}), 400)
    params = {d["param"] for d in e.body["details"]}
    assert {"training_file", "suffix", "seed", "colour"} <= params, params
    raises(openai.BadRequestError, lambda: create(c, upload(c).id, method={"type": "dpo"}), 400,
           "unsupported_method")
    raises(openai.AuthenticationError, lambda: client(api_key="sk-wrong").models.list().data, 401,
           "invalid_api_key")
    raises(openai.PermissionDeniedError, lambda: upload(client(api_key=KEY + "-read")), 403,
           "insufficient_permissions")
    assert client(api_key=KEY + "-read").models.list().object == "list"


def retried_create_is_one_job():
    c = client()
    f = upload(c)
    made = [create(c, f.id, seed=1, extra_headers={"x-stainless-retry-count": str(n)}).id
            for n in (0, 1, 2)]
    assert len(set(made)) == 1, made
    assert create(c, f.id, seed=1).id not in made
    key = {"Idempotency-Key": "k1"}
    made = [create(c, f.id, seed=2, extra_headers=key).id for _ in range(2)]
    assert len(set(made)) == 1, made
    raises(openai.UnprocessableEntityError, lambda: create(c, f.id, seed=3, extra_headers=key), 422,
           "idempotency_key_reused")


def asynchronous_client():
    import asyncio

    async def run():
        c = openai.AsyncOpenAI(base_url="http://127.0.0.1:%d/v1" % server.port, api_key=KEY)
        made = await asyncio.gather(*(c.files.create(file=("d.jsonl", e2e.data_set().encode()),
                                                     purpose="fine-tune") for _ in range(8)))
        assert len({f.id for f in made}) == 8
        seen = [j.id async for j in c.fine_tuning.jobs.list(limit=2)]
        assert len(seen) == len(set(seen))
        await c.close()

    asyncio.run(run())


CASES = [(f.__name__, f) for f in (
    files, file_with_expiry, file_faults, job_to_its_end, list_pages_by_itself, cancel_pause_resume,
    failing_jobs, dry_run, error_classes, retried_create_is_one_job, asynchronous_client)]

if __name__ == "__main__":
    digest = [hashlib.sha256(k.encode()).hexdigest() for k in (KEY, KEY + "-read")]
    config = {"api_keys": [{"name": "test", "sha256": digest[0], "role": "admin"},
                           {"name": "reader", "sha256": digest[1], "role": "read"}]}
    with e2e.Castord(config) as server:
        e2e.main(CASES)
