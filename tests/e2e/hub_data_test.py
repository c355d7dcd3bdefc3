#!/usr/bin/env python3
"""Jobs whose data lie on a hub, over REST: which files of a data set, at which commit, and what is said otherwise."""
import json
import os
import random

import parquet_file
import rig
from castord import Castord
from hub_test import Hub, downloads, run, service
from rig import Job, equal
from service_test import JOBS, all_events, get, job_dir, wait_end

CARD = """---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/*.jsonl
  - split: dev
    path: en/held-out.txt
- config_name: fr
  data_dir: french
---
"""


def put(hub, repo, name, content):
    path = os.path.join(hub.root, "datasets", repo, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if isinstance(content, dict):
        parquet_file.write(path, content)
    else:
        with open(path, "w") as f:
            f.write(content)


def questions(n, seed):
    """Columns of no shape that Castor knows, of which two make one."""
    rng = random.Random(seed)
    words = [rng.choice(["alpha", "beta", "gamma", "delta"]) for _ in range(n)]
    return {"id": [str(i) for i in range(n)], "question": ["say %s" % w for w in words],
            "answer": [" ".join([w] * 3) for w in words]}


def add_questions(hub, repo="org/qa", seed=1):
    put(hub, repo, "README.md", "---\nlicense: mit\n---\n# Questions\n")
    for i in (0, 1):
        put(hub, repo, "data/train-0000%d-of-00002.parquet" % i, questions(40, seed + i))
    put(hub, repo, "data/validation-00000-of-00001.parquet", questions(12, 3))
    put(hub, repo, "data/test-00000-of-00001.parquet", questions(12, 4))


def body(training_file, dataset=None, epochs=2, batch=4, **more):
    return {"model": "org/tiny", "training_file": training_file, "seed": 7,
            "dataset": {"max_seq_length": 32, "packing": False, **(dataset or {})},
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": epochs, "batch_size": batch}}},
            "resources": {"device": "cpu"}, "optimization": {"learning_rate": 0.01}, **more}


MAPPING = {"column_mapping": {"prompt": "question", "completion": "answer"}}


def commit_of(hub, repo, revision="main"):
    import urllib.parse
    import urllib.request
    url = "%s/api/datasets/%s/revision/%s" % (hub.url, repo, urllib.parse.quote(revision, safe=""))
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)["sha"]


def a_job_learns_from_parquet_of_the_hub(root):
    """Two shards of Parquet, their columns mapped, and the set's own validation split."""
    with Hub(root, "hub") as hub:
        hub.add_model("org/tiny")
        add_questions(hub)
        with service(root, hub) as c:
            status, _, plan = c.request("POST", "/v1/fine_tuning/estimate",
                                        body("hf://datasets/org/qa", {**MAPPING, "validation_split": "validation"}))
            equal((status, plan["fits"], plan.get("error")), (200, True, None))
            equal((plan["data"]["examples"], plan["data"]["validation_examples"]), (80, 12))
            commit = commit_of(hub, "org/qa")
            equal(plan["spec"]["files"]["training_file"]["commit"], commit)
            log = hub.requests()
            assert not any("test-00000" in r["path"] for r in log), log
            job = run(c, body("hf://datasets/org/qa", {**MAPPING, "validation_split": "validation"}))
            equal((job["status"], job["error"]), ("succeeded", None))
            equal(job["training_file"], "hf://datasets/org/qa")
            equal(job["training_dataset"], {"repo": "org/qa", "revision": "main", "commit": commit})
            equal((job["validation_dataset"], job["dataset"]["validation_split"]), (None, "validation"))
            equal(downloads([r for r in hub.requests() if "/datasets/" in r["path"]]), [])
            losses = [e["data"]["full_valid_loss"] for e in all_events(c, job["id"])
                      if "full_valid_loss" in (e["data"] or {})]
            assert len(losses) >= 2 and losses[-1] < 0.7 * losses[0], losses
            equal(job["progress"]["total_steps"], 40)


def what_is_named_is_what_is_read(root):
    """Files, folders, configurations, splits, the converter's branch: by the number of examples of each."""
    with Hub(root, "hub", tokens={"hf_granted": {"gated": True}}, gated={"datasets/org/shut": "auto"}) as hub:
        hub.add_model("org/tiny")
        add_questions(hub)
        put(hub, "org/card", "README.md", CARD)
        put(hub, "org/card", "en/a.jsonl", rig.make_data(20))
        put(hub, "org/card", "en/b.jsonl", rig.make_data(11))
        put(hub, "org/card", "en/held-out.txt", "alpha beta\n\ngamma delta\n")
        put(hub, "org/card", "french/train.jsonl", rig.make_data(13))
        put(hub, "org/script", "script.py", "raise SystemExit\n")
        put(hub, "org/script@refs%2Fconvert%2Fparquet", "default/train/0000.parquet", questions(17, 1))
        put(hub, "org/shut", "train.jsonl", rig.make_data(14))
        with service(root, hub) as c:
            def estimate(training_file, dataset=None, **more):
                status, _, plan = c.request("POST", "/v1/fine_tuning/estimate", body(training_file, dataset, **more))
                equal(status, 200)
                if not plan["fits"]:
                    return plan["error"]["reason"], plan["error"]["param"]
                return plan["data"]["examples"], plan["data"]["validation_examples"]

            d = "hf://datasets/"
            equal(estimate(d + "org/card", {"config": "en"}), (31, 0))
            equal(estimate(d + "org/card", {"config": "en", "validation_split": "dev"}), (31, 2))
            equal(estimate(d + "org/card", {"config": "fr"}), (13, 0))
            equal(estimate(d + "org/card/en/b.jsonl"), (11, 0))
            equal(estimate(d + "org/card@main/french", validation_file=d + "org/card/en/a.jsonl"), (13, 20))
            equal(estimate(d + "org/qa", {**MAPPING, "split": "test"}), (12, 0))
            equal(estimate(d + "org/qa", MAPPING, validation_file=d + "org/qa"), (80, 12))
            equal(estimate(d + "org/script", MAPPING), (17, 0))
            equal(estimate(d + "org/script@refs/convert/parquet", MAPPING), (17, 0))
            equal(estimate(d + "org/shut", hub={"token": "hf_granted"}), (14, 0))
            equal(estimate(d + "org/shut"), ("gated_dataset", "training_file"))
            equal(estimate(d + "org/none"), ("dataset_not_found", "training_file"))
            equal(estimate(d + "org/qa@v9"), ("revision_not_found", "training_file"))
            equal(estimate(d + "org/qa/data/none"), ("data_file_not_found", "training_file"))
            equal(estimate(d + "org/card"), ("config_not_found", "training_file"))
            equal(estimate(d + "org/qa", {**MAPPING, "validation_split": "dev"}),
                  ("split_not_found", "dataset.validation_split"))
            equal(estimate(d + "org/card/en/b.jsonl", {"validation_split": "dev"}),
                  ("split_not_found", "dataset.validation_split"))
            equal(estimate(d + "org/qa"), ("invalid_training_file", "dataset.column_mapping"))
            status, _, answer = c.request("POST", JOBS, body("hf://spaces/org/qa"))
            equal((status, answer["error"]["param"]), (400, "training_file"))
            job = run(c, body(d + "org/script", MAPPING))
            equal((job["status"], job["training_dataset"]), ("succeeded", {
                "repo": "org/script", "revision": "refs/convert/parquet",
                "commit": commit_of(hub, "org/script", "refs/convert/parquet")}))


def a_job_keeps_the_commit_that_was_checked(root):
    """The set changes while the job waits for its turn, castord is restarted: it trains on what was planned."""
    with Hub(root, "hub") as hub:
        hub.add_model("org/tiny")
        add_questions(hub)
        c = service(root, hub)
        try:
            c.wait_ready()
            # 4,000 steps, if it is left alone
            before = c.request("POST", JOBS, body("hf://datasets/org/qa", MAPPING, epochs=50, batch=1))[2]["id"]
            equal(c.wait_status(before, ("running", "failed"))["status"], "running")
            id = c.request("POST", JOBS, body("hf://datasets/org/qa", MAPPING))[2]["id"]
            planned = c.wait_status(id, ("queued", "failed"))
            equal(planned["status"], "queued")
            for i in (0, 1):
                put(hub, "org/qa", "data/train-0000%d-of-00002.parquet" % i, questions(10, 9))
            assert commit_of(hub, "org/qa") != planned["training_dataset"]["commit"]
            c.stop()
            again = service_of(root, hub, c.state)
            with again as c2:
                equal(c2.request("POST", "%s/%s/cancel" % (JOBS, before))[0], 200)
                job = wait_end(c2, id)
                equal((job["status"], job["training_dataset"]), ("succeeded", planned["training_dataset"]))
                equal(job["progress"]["total_steps"], 40)
        finally:
            c.close()


def service_of(root, hub, state):
    """A second castord on the state of a first."""
    env = {**rig.environment(root), "HF_ENDPOINT": hub.url, "HF_HOME": os.path.join(root, "hf"), "NO_PROXY": "127.0.0.1"}
    return Castord({"worker": Job.worker}, state=state, env=env)


def check_reports_every_bad_line(root):
    """castor-worker --check hf://datasets/...: each bad line with its file."""
    with Hub(root, "hub") as hub:
        put(hub, "org/bad", "train-1.jsonl", rig.make_data(3) + "{\"text\": 5}\n")
        put(hub, "org/bad", "train-2.jsonl", "{\"text\": nonsense\n" + rig.make_data(2))
        put(hub, "org/bad", "test.jsonl", "not looked at\n")
        add_questions(hub)
        job = Job(root)
        job.env.update({"HF_ENDPOINT": hub.url, "HF_HOME": os.path.join(root, "hf"), "NO_PROXY": "127.0.0.1"})
        p = job.run("--check", "hf://datasets/org/bad")
        report = json.loads(p.stdout)
        equal((p.returncode, report["ok"], report["examples"]), (1, False, 5))
        equal([(f["file"], f["line"]) for f in report["faults"]], [("train-1.jsonl", 4), ("train-2.jsonl", 1)])
        p = job.run("--check", "hf://datasets/org/qa")
        report = json.loads(p.stdout)
        equal((p.returncode, report["format"], report["shape"], report["examples"]), (0, "parquet", "columns", 80))
        p = job.run("--check", "hf://datasets/org/none")
        equal((p.returncode, "org/none" in json.loads(p.stdout)["faults"][0]["message"]), (1, True))


if __name__ == "__main__":
    rig.main([a_job_learns_from_parquet_of_the_hub, what_is_named_is_what_is_read,
              a_job_keeps_the_commit_that_was_checked, check_reports_every_bad_line], __doc__)
