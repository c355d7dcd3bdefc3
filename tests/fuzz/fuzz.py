#!/usr/bin/env python3
"""Runs one libFuzzer target for a while: tests/fuzz/fuzz.py TARGET FOUND_DIR SECONDS

Starts from the seeds (tests/fuzz/fuzz.h) and what earlier runs found in FOUND_DIR/NAME/corpus; new inputs go to the
latter, failing ones to FOUND_DIR/NAME. An input may take 10 s and the process 1 GiB. The last line is
`1 passed, 0 failed`.
"""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

SEEDS = Path(__file__).resolve().parent / "corpus"
ROOT = SEEDS.parents[2]


def gather_seeds(name, to):
    """libFuzzer takes folders: one of links to all seeds."""
    patterns = SEEDS / f"{name}.seeds"
    seeds = [*(SEEDS / name).glob("*")]
    for pattern in patterns.read_text().split() if patterns.exists() else []:
        seeds += ROOT.glob(pattern)
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir()
    for i, seed in enumerate(sorted(seeds)):
        (to / f"{i}-{seed.name}").symlink_to(seed)


def main():
    target, seconds = Path(sys.argv[1]), int(sys.argv[3])
    name = target.name
    found = Path(sys.argv[2]).resolve() / name
    (found / "corpus").mkdir(parents=True, exist_ok=True)
    command = [str(target.resolve()), f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=1024", "-max_len=65536",
               "-print_final_stats=1", "-verbosity=1", f"-artifact_prefix={found}/"]
    dictionary = SEEDS / f"{name}.dict"
    if dictionary.exists():
        command.append(f"-dict={dictionary}")
    gather_seeds(name, found / "seeds")
    command += [str(found / "corpus"), str(found / "seeds")]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                          env={**os.environ, "TMPDIR": str(found)})
    if done.returncode != 0:
        print(done.stdout + done.stderr[-12000:])
        print(f"{name}: failed; the input is in {found}")
        print("0 passed, 1 failed")
        return 1
    runs = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    cover = re.findall(r"cov: (\d+)", done.stderr)
    print(f"{name}: {runs[1] if runs else '?'} inputs, {cover[-1] if cover else '?'} edges covered")
    print("1 passed, 0 failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
