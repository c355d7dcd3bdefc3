#!/usr/bin/env python3
"""Jobs whose models lie on hubs, over REST: which hub is asked, as whom, and what is kept of a job's own token."""
import json
import os
import re
import subprocess
import sys
import time
import urllib.request

import castord
import rig
from rig import equal
from service_test import JOBS, Service, all_events, get, job_dir, wait_end

FIXTURE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../hub/fixture_hub.py")
TOKENS = {"hf_granted": {"gated": True}, "hf_other": {"gated": False}}


class Hub:
    """A fixture hub of its own root; `with` ends it."""

    def __init__(self, root, name, **config):
        self.root = os.path.join(root, name)
        os.makedirs(os.path.join(self.root, "models", "org"))
        rig.write_json(os.path.join(self.root, "hub.json"), config)

    def add_model(self, name, seed=1):
        path = os.path.join(self.root, "models", name)
        rig.write_model(path, tensors=rig.model_tensors(seed=seed))
        return path

    def __enter__(self):
        self.process = subprocess.Popen([sys.executable, FIXTURE, "--root", self.root, "--port", "0"],
                                        stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().split()[-1]
        return self

    def __exit__(self, *exc):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def requests(self):
        """Since the last time."""
        with urllib.request.urlopen(self.url + "/_fixture/log") as answer:
            log = json.load(answer)
        urllib.request.urlopen(urllib.request.Request(self.url + "/_fixture/log", method="DELETE")).close()
        return log


def service(root, hub, config=None, **env):
    castord.BIN = rig.Job.castord
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": os.path.join(root, "hf"), "NO_PROXY": "127.0.0.1", **env}
    return Service({"worker": rig.Job.worker, **(config or {})}, env={**rig.environment(root), **own})


def body(file, model="org/tiny", **more):
    return {"model": model, "training_file": file, "seed": 7, "dataset": {"max_seq_length": 32},
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 4}}},
            "resources": {"device": "cpu"}, "optimization": {"learning_rate": 0.01}, **more}


def upload(c):
    return c.upload(rig.make_data(12))[2]["id"]


def run(c, request):
    status, _, job = c.request("POST", JOBS, request)
    equal((status, job.get("error")), (200, None))
    return wait_end(c, job["id"])


def refused(c, request, code):
    job = run(c, request)
    equal((job["status"], (job["error"] or {}).get("code")), ("failed", code))
    return job


def downloads(log):
    return [r["path"] for r in log if r["method"] == "GET" and ("/resolve" in r["path"] or r["server"] == "store")]


def files_with(top, text):
    """Every file below a folder that holds a text."""
    found = []
    for d, _, files in os.walk(top):
        for f in files:
            path = os.path.join(d, f)
            try:
                if text.encode() in rig.read_bytes(path):
                    found.append(path)
            except OSError:
                pass
    return found


# ---- which hub -----------------------------------------------------------------------------------------------

def only_listed_hubs_are_used(root):
    """The server's own hub unless a job names a listed one, which has its own token and cache; others are refused."""
    with Hub(root, "a", tokens=TOKENS) as a, Hub(root, "b", tokens=TOKENS, gated={"org/tiny": "auto"}) as b:
        a.add_model("org/tiny", seed=1)
        b.add_model("org/tiny", seed=2)
        token_file = os.path.join(root, "b-token")
        with open(token_file, "w") as f:
            f.write("hf_granted\n")
        listed = {"hub_endpoints": [{"url": b.url + "/", "token_file": token_file}]}
        with service(root, a, listed, HF_TOKEN="hf_other") as c:
            file = upload(c)
            own = run(c, body(file))
            equal((own["status"], own["hub"]), ("succeeded", {"endpoint": a.url, "has_token": False}))
            equal(b.requests(), [])
            assert downloads(a.requests())

            theirs = run(c, body(file, hub={"endpoint": b.url}))
            equal((theirs["status"], theirs["hub"]), ("succeeded", {"endpoint": b.url, "has_token": False}))
            equal(a.requests(), [])
            assert downloads(b.requests())
            assert theirs["base_model"]["commit"] != own["base_model"]["commit"]
            # two caches, each with its own model of that name
            equal(len(os.listdir(os.path.join(root, "hf", "hub", "models--org--tiny", "snapshots"))), 1)
            (cache,) = os.listdir(os.path.join(c.state, "hub"))
            equal(len(os.listdir(os.path.join(c.state, "hub", cache, "models--org--tiny", "snapshots"))), 1)

            request = body(file, hub={"endpoint": "http://127.0.0.1:1"})
            status, _, answer = c.request("POST", JOBS, request)
            equal((status, answer["error"]["code"], answer["error"]["param"]),
                  (400, "hub_not_allowed", "hub.endpoint"))
            assert a.url in answer["error"]["message"] and b.url in answer["error"]["message"], answer
            equal(c.request("POST", "/v1/fine_tuning/estimate", request)[0], 400)
            for secret in ("hf_granted", "hf_other"):
                equal(files_with(c.state, secret), [])
            equal(c.request("POST", "/v1/fine_tuning/estimate", body(file, hub={"endpoint": b.url}))[2]["fits"], True)


def a_hub_without_a_token_file_gets_no_token(root):
    """The server's own token must not go to another hub."""
    with Hub(root, "a", tokens=TOKENS) as a, Hub(root, "b", tokens=TOKENS, gated={"org/shut": "auto"}) as b:
        b.add_model("org/tiny")
        b.add_model("org/shut")
        for home in ("env", "file"):
            env = {"HF_TOKEN": "hf_granted"} if home == "env" else {"HF_TOKEN": ""}
            os.makedirs(os.path.join(root, "hf"), exist_ok=True)
            with open(os.path.join(root, "hf", "token"), "w") as f:
                f.write("hf_granted")
            with service(root, a, {"hub_endpoints": [{"url": b.url}]}, **env) as c:
                file = upload(c)
                equal(run(c, body(file, hub={"endpoint": b.url}))["status"], "succeeded")
                refused(c, body(file, "org/shut", hub={"endpoint": b.url}), "gated_model")
                log = b.requests()
                assert log and not any(r["authorized"] for r in log), log


# ---- as whom -------------------------------------------------------------------------------------------------

def a_jobs_own_token_is_the_one_that_counts(root):
    """What one job's token has brought into the cache is for those only whose own token may read it."""
    with Hub(root, "hub", tokens=TOKENS, gated={"org/shut": "manual"}, private=["org/hidden"]) as hub:
        hub.add_model("org/shut")
        hub.add_model("org/hidden")
        with service(root, hub) as c:
            file = upload(c)
            refused(c, body(file, "org/shut"), "gated_model")
            refused(c, body(file, "org/shut", hub={"token": "hf_other"}), "gated_model")
            refused(c, body(file, "org/shut", hub={"token": "hf_wrong"}), "hub_unauthorized")
            equal(run(c, body(file, "org/shut", hub={"token": "hf_granted"}))["status"], "succeeded")
            assert downloads(hub.requests())
            # all is in the cache now, and nothing of it is given to those who may not read it
            refused(c, body(file, "org/shut"), "gated_model")
            refused(c, body(file, "org/shut", hub={"token": "hf_other"}), "gated_model")
            equal(run(c, body(file, "org/shut", hub={"token": "hf_granted"}))["status"], "succeeded")
            log = hub.requests()
            equal(downloads(log), [])
            assert any(r["path"].endswith("/auth-check") and r["authorized"] for r in log), log
            equal(run(c, body(file, "org/hidden", hub={"token": "hf_other"}))["status"], "succeeded")
            refused(c, body(file, "org/hidden"), "model_not_found")


def a_servers_token_is_not_used_beside_a_jobs(root):
    with Hub(root, "hub", tokens=TOKENS, gated={"org/shut": "manual"}) as hub:
        hub.add_model("org/shut")
        with service(root, hub, HF_TOKEN="hf_granted") as c:
            file = upload(c)
            equal(run(c, body(file, "org/shut"))["status"], "succeeded")
            refused(c, body(file, "org/shut", hub={"token": "hf_other"}), "gated_model")


def a_token_is_never_seen_again(root):
    """Not in an answer, an event, the database, a log, a command line or an environment; and its file goes."""
    with Hub(root, "hub", tokens={"hf_granted_secret": {"gated": True}}, gated={"org/shut": "manual"}) as hub:
        hub.add_model("org/shut")
        with service(root, hub) as c:
            data = c.upload(rig.make_data(400))[2]["id"]
            secret = "hf_granted_secret"
            request = body(data, "org/shut", hub={"token": secret})
            status, _, plan = c.request("POST", "/v1/fine_tuning/estimate", request)
            equal((status, plan["fits"]), (200, True))
            assert secret not in json.dumps(plan)
            equal(files_with(c.state, secret), [])
            status, _, job = c.request("POST", JOBS, request, headers={"Idempotency-Key": "k"})
            assert status == 200 and secret not in json.dumps(job)
            equal(job["hub"], {"endpoint": hub.url, "has_token": True})
            path = os.path.join(job_dir(c, job["id"]), "hub-token")
            seen = []
            while get(c, job["id"])["status"] not in ("succeeded", "failed"):
                if os.path.exists(path):
                    equal(os.stat(path).st_mode & 0o777, 0o600)
                for pid in filter(str.isdigit, os.listdir("/proc")):
                    try:
                        command = rig.read_bytes("/proc/%s/cmdline" % pid)
                        if job["id"].encode() in command:
                            seen.append(pid)
                            assert secret.encode() not in command + rig.read_bytes("/proc/%s/environ" % pid)
                    except OSError:
                        pass
                found = set(files_with(c.state, secret))
                assert found <= {path}, found
            end = get(c, job["id"])
            equal(end["status"], "succeeded")
            if not seen:
                raise rig.TooLate
            assert secret not in json.dumps([end, all_events(c, job["id"])])
            deadline = time.time() + rig.HANGS
            while os.path.exists(path) and time.time() < deadline:
                time.sleep(0.05)
            equal(files_with(c.state, secret), [])
            equal(files_with(os.path.join(root, "hf"), secret), [])
            repeat = c.request("POST", JOBS, request, headers={"Idempotency-Key": "k"})[2]
            equal(repeat["id"], job["id"])


# ---- without the hub ------------------------------------------------------------------------------------------

def offline_jobs_use_the_cache_alone(root):
    """HF_HUB_OFFLINE of castord: what is in the cache trains, what is not is refused, and nobody is asked."""
    with Hub(root, "hub") as hub:
        hub.add_model("org/tiny")
        hub.add_model("org/other")
        with service(root, hub) as c:
            equal(run(c, body(upload(c)))["status"], "succeeded")
        hub.requests()
        with service(root, hub, HF_HUB_OFFLINE="1") as c:
            file = upload(c)
            equal(run(c, body(file))["status"], "succeeded")
            job = refused(c, body(file, "org/other"), "hub_offline")
            equal(job["error"]["param"], "model")
            equal(hub.requests(), [])


def what_a_hub_refuses_is_the_jobs_error(root):
    """What the hub says is what the job's error says: code, parameter, and a text that tells what to do."""
    with Hub(root, "hub", disabled=["org/gone"]) as hub:
        hub.add_model("org/tiny")
        hub.add_model("org/gone")
        with service(root, hub) as c:
            file = upload(c)
            for model, code, words in (("org/none", "model_not_found", "HF_TOKEN"),
                                       ("org/tiny@v9", "revision_not_found", "v9"),
                                       ("org/gone", "model_disabled", "disabled")):
                error = refused(c, body(file, model), code)["error"]
                equal((error["param"], words in error["message"]), ("model", True))
            fault = [{"match": "hub", "action": "status", "code": 429, "headers": {"Retry-After": "86400"}}]
            urllib.request.urlopen(hub.url + "/_fixture/faults", json.dumps(fault).encode()).close()
            error = refused(c, body(file), "hub_unavailable")["error"]
            equal((error["param"], "86400 seconds" in error["message"]), ("model", True))


# ---- the demonstration ---------------------------------------------------------------------------------------

def make_demo_takes_a_model_of_the_hub(root):
    """`make demo MODEL=facebook/opt-125m`, with a hub that has a small OPT of that name, laid out as the real one."""
    positions = 256
    tensors = rig.model_tensors()
    name = "model.decoder.embed_positions.weight"
    tensors[name] = ((positions + 2, rig.HIDDEN), (tensors[name][1] * 5)[:(positions + 2) * rig.HIDDEN])
    build = os.path.join(root, "build")
    os.makedirs(build)
    for program in (rig.Job.castord, rig.Job.worker):
        os.symlink(program, os.path.join(build, os.path.basename(program)))
    with Hub(root, "hub") as hub:
        model = os.path.join(hub.root, "models", "facebook", "opt-125m")
        rig.write_model(model, {"max_position_embeddings": positions}, tensors)
        with open(os.path.join(model, "tokenizer.json")) as f:
            vocab = json.load(f)["model"]["vocab"]
        os.remove(os.path.join(model, "tokenizer.json"))
        rig.write_json(os.path.join(model, "vocab.json"), vocab)
        with open(os.path.join(model, "merges.txt"), "w") as f:
            f.write("#version: 0.2\n")
        env = {**rig.environment(root), "MODEL": "facebook/opt-125m", "HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1",
               "HF_HOME": os.path.join(root, "hf")}
        demo = os.path.join(os.path.dirname(FIXTURE), "../../deploy/demo")
        p = subprocess.run([demo, build], env=env, capture_output=True, text=True, timeout=2 * rig.HANGS)
        equal((p.returncode, p.stderr.count("curl")), (0, 3))
        last = p.stdout.splitlines()[-1]
        found = re.fullmatch(r"demo: validation loss ([0-9.]+) -> ([0-9.]+), model in (.+)", last)
        assert found and float(found[2]) < float(found[1]), p.stdout[-2000:]
        assert "ft:facebook/opt-125m:" in p.stdout, p.stdout[-2000:]
        assert "model.safetensors" in os.listdir(found[3]), found[3]
        assert downloads(hub.requests())


if __name__ == "__main__":
    rig.main([only_listed_hubs_are_used, a_hub_without_a_token_file_gets_no_token,
              a_jobs_own_token_is_the_one_that_counts, a_servers_token_is_not_used_beside_a_jobs,
              a_token_is_never_seen_again, offline_jobs_use_the_cache_alone, what_a_hub_refuses_is_the_jobs_error,
              make_demo_takes_a_model_of_the_hub], __doc__)
