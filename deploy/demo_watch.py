"""Poll a fine-tuning job with a progress line, then say what came of it. Standard library only.

usage: demo_watch.py BASE_URL JOB_ID OUTPUT_DIR
"""
import json
import sys
import time
import urllib.request

BASE, JOB, OUTPUT = sys.argv[1:4]


def get(path):
    with urllib.request.urlopen(BASE + path, timeout=30) as answer:
        return json.load(answer)


def watch():
    live = sys.stdout.isatty()
    last = ""
    while True:
        job = get(f"/v1/fine_tuning/jobs/{JOB}")
        p = job["progress"] or {}
        line = f"  {job['status']:<17} {job['phase'] or '':<13}"
        if p.get("step"):
            line += f" step {p['step']}/{p['total_steps']}"
        if p.get("train_loss") is not None:
            line += f"  loss {p['train_loss']:.3f}"
        if p.get("tokens_per_second"):
            line += f"  {p['tokens_per_second']:,.0f} tokens/s"
        if p.get("seconds_remaining") is not None and job["status"] == "running":
            line += f"  {p['seconds_remaining']:.0f} s left"
        if live:
            print("\r\x1b[K" + line, end="", flush=True)
        elif line != last:
            print(line, flush=True)
        last = line
        if job["status"] in ("succeeded", "failed", "cancelled"):
            if live:
                print()
            return job
        time.sleep(0.5 if live else 5)


def events():
    out, after = [], ""
    while True:
        page = get(f"/v1/fine_tuning/jobs/{JOB}/events?limit=100{after}")
        out += page["data"]
        if not page["has_more"]:
            return out[::-1]  # newest first on the wire
        after = f"&after={page['data'][-1]['id']}"


def main():
    job = watch()
    if job["status"] != "succeeded":
        sys.exit(f"demo: the job {job['status']}: {json.dumps(job['error'])}")
    data = [e["data"] or {} for e in events()]
    losses = [d["full_valid_loss"] for d in data if "full_valid_loss" in d]
    samples = [d for d in data if "completion" in d]
    for prompt in dict.fromkeys(s["prompt"] for s in samples):
        mine = [s for s in samples if s["prompt"] == prompt]
        print(f"\nThe model goes on from {prompt!r}")
        for when, s in (("before", mine[0]), ("after", mine[-1])):
            print(f"  {when:<7}{s['completion'].strip()}")
    print(f"\n{job['fine_tuned_model']}, {job['trained_tokens']:,} tokens. Load it with")
    print(f"  transformers.AutoModelForCausalLM.from_pretrained({OUTPUT!r})")
    print(f"demo: validation loss {losses[0]:.3f} -> {losses[-1]:.3f}, model in {OUTPUT}")


if __name__ == "__main__":
    main()
