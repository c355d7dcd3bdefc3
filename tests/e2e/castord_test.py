#!/usr/bin/env python3
"""castord as a program: a second one, restarts, orderly ends, strangers, a full disk. CASTOR_BIN names it (default
build/castord)."""
import hashlib
import os
import shutil
import signal
import socket
import tempfile
import time

import castord as e2e
from castord import expect

JOBS = "/v1/fine_tuning/jobs"


def a_second_castord_on_the_same_state_is_refused():
    with e2e.Castord() as one:
        second = e2e.Castord(state=one.state)
        code = second.process.wait(300)
        assert code == 1, code
        expect(one.upload(e2e.data_set()), 200)


def restart_keeps_everything():
    state = tempfile.mkdtemp(prefix="castor-e2e-")
    try:
        with e2e.Castord(state=state) as one:
            f = one.upload(e2e.data_set())[2]
            body = {"model": "test/tiny", "training_file": f["id"], "metadata": {"fake": "slow"},
                    "optimization": {"max_steps": 15}}
            job = one.request("POST", JOBS, body, {"Idempotency-Key": "again"})[2]
            one.wait_status(job["id"], {"running"})
            while not one.request("GET", JOBS + "/" + job["id"])[2]["progress"]["step"]:
                time.sleep(0.02)
            os.kill(one.process.pid, signal.SIGKILL)  # the attempt goes on
            one.process.wait()
            os.makedirs(os.path.join(state, "spool"), exist_ok=True)
            open(os.path.join(state, "spool", "upload-left"), "w").close()
            with e2e.Castord(state=state) as two:
                assert not os.listdir(os.path.join(state, "spool"))
                again = two.request("POST", JOBS, body, {"Idempotency-Key": "again"})[2]
                assert again["id"] == job["id"], again
                done = two.wait_status(job["id"], {"succeeded", "failed"})
                assert done["status"] == "succeeded" and done["attempt"] == 1, done
                assert two.request("GET", "/v1/files/" + f["id"])[2] == f
                assert two.stop() == 0
    finally:
        shutil.rmtree(state, ignore_errors=True)


def stop_is_orderly():
    with e2e.Castord() as one:
        sockets = [socket.create_connection(("127.0.0.1", one.port)) for _ in range(5)]
        assert one.stop(30) == 0  # before the sockets' 60 idle seconds are over
        for s in sockets:
            s.close()
        assert "stopping" in one.log_text()


def strangers_need_keys():
    for listen in ("0.0.0.0:0", "[::]:0"):
        open_door = e2e.Castord(listen=listen)
        try:
            assert open_door.process.wait(300) == 1
            assert "API keys" in open_door.log_text(), open_door.log_text()
        finally:
            open_door.close_quietly()
    digest = hashlib.sha256(b"sk-x").hexdigest()
    keys = {"api_keys": [{"name": "a", "sha256": digest}]}
    with e2e.Castord(keys, listen="0.0.0.0:0") as closed:
        assert closed.request("GET", "/v1/files")[0] == 401
        assert closed.request("GET", "/v1/files", headers={"Authorization": "Bearer sk-x"})[0] == 200
        assert closed.request("GET", "/v1/files", headers={"api-key": "sk-x"})[0] == 200
        assert "sk-x" not in closed.log_text()
    with e2e.Castord() as one:
        expect(one.request("GET", "/v1/files", headers={"Host": "evil.example"}), 403)
        expect(one.request("GET", "/v1/files", headers={"Origin": "https://evil.example"}), 403)


def a_nearly_full_disk_takes_no_uploads():
    with e2e.Castord({"limits": {"free_bytes": 1 << 50}}) as full:
        expect(full.upload(e2e.data_set()), 507, "disk_full")
        assert full.request("GET", "/readyz")[0] == 503
        assert full.request("GET", "/healthz")[0] == 200
        assert not os.listdir(os.path.join(full.state, "spool"))


def a_job_without_a_slot_is_told_so_by_all():
    """By an estimate, a dry run and a created job alike; one that was queued before stays and is told."""
    state = tempfile.mkdtemp(prefix="castor-e2e-")
    try:
        with e2e.Castord(state=state) as one:
            body = {"model": "test/tiny", "training_file": one.upload(e2e.data_set())[2]["id"]}
            slow = dict(body, metadata={"fake": "slow"}, optimization={"max_steps": 2000})
            running = one.request("POST", JOBS, slow)[2]["id"]
            one.wait_status(running, {"running"})
            queued = one.request("POST", JOBS, body)[2]["id"]
            one.wait_status(queued, {"queued"})
        with e2e.Castord({"slots": {"cpu": 0}}, state=state) as two:
            job = two.wait_status(two.request("POST", JOBS, body)[2]["id"], {"failed"})
            assert job["error"]["code"] == "no_cpu" and job["error"]["param"] == "resources.device", job["error"]
            for path, asked in (("/v1/fine_tuning/estimate", {}), (JOBS, {"dry_run": True}), (JOBS + "?dry_run=true", {})):
                plan = expect(two.request("POST", path, dict(body, **asked)), 200)
                assert plan["fits"] is False and plan["alternatives"] == [], plan
                assert plan["error"]["reason"] == job["error"]["code"], plan
                assert (plan["error"]["message"], plan["error"]["param"]) == (job["error"]["message"], job["error"]["param"])
            missing = expect(two.request("POST", "/v1/fine_tuning/estimate", dict(body, model="test/missing")), 200)
            assert missing["error"]["reason"] == "model_not_found", missing
            told = [e for e in two.request("GET", "%s/%s/events" % (JOBS, queued))[2]["data"] if e["level"] == "warn"]
            assert len(told) == 1 and told[0]["data"]["code"] == "no_cpu", told
            assert job["error"]["message"] in told[0]["message"], told
            assert two.wait_status(queued, {"queued"})["attempt"] == 0
        with e2e.Castord(state=state) as three:
            expect(three.request("POST", "%s/%s/cancel" % (JOBS, running)), 200)
            three.wait_status(queued, {"succeeded"})
    finally:
        shutil.rmtree(state, ignore_errors=True)


CASES = [(f.__name__, f) for f in (
    a_second_castord_on_the_same_state_is_refused, restart_keeps_everything, stop_is_orderly, strangers_need_keys,
    a_nearly_full_disk_takes_no_uploads, a_job_without_a_slot_is_told_so_by_all)]

if __name__ == "__main__":
    e2e.main(CASES)
