#!/usr/bin/env python3
"""What bench_gpu.py and bench_memory.py print of a case, with runs that were made up."""
import argparse
import contextlib
import io
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
import bench_gpu  # noqa: E402
import bench_memory  # noqa: E402
import rig  # noqa: E402
from rig import equal  # noqa: E402

TOKENS = 1 << 20


def lines_of(name, **speeds):
    """Of a case whose runs had these tokens a second."""
    runs = {who: [(TOKENS / speed, 0, TOKENS, 1)] if speed else [] for who, speed in speeds.items()}
    bench_gpu.write_inputs = lambda *_: (None, None)
    bench_gpu.take_turns = lambda *_: runs
    options = argparse.Namespace(profile=False, no_profile=True)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        bench_gpu.bench(name, options, None)
    return [line for line in out.getvalue().splitlines() if "published:" not in line]


def peers_of_a_case(_):
    """PyTorch where it ran; else the fastest that was published, said to be so; else none."""
    equal(lines_of("gpt2-124m", ours=536250, torch=357500), ["bench: gpt2-124m ours 536250 peer 357500 unit tok/s ratio 1.500"])
    for failed in ({}, {"torch": 0}):
        equal(lines_of("gpt2-124m", ours=536250, **failed),
              ["bench: gpt2-124m ours 536250 peer 429000 unit tok/s ratio 1.250", "    gpt2-124m: peer llm.c as published"])
    equal(lines_of("llama-3.1-8b-lora", ours=15300),
          ["bench: llama-3.1-8b-lora ours 15300 peer 10200 unit tok/s ratio 1.500",
           "    llama-3.1-8b-lora: peer Surogate as published"])
    equal(lines_of("opt-1.3b", ours=62000), ["bench: opt-1.3b ours 62000 unit tok/s"])
    equal(lines_of("opt-1.3b", ours=62000, torch=49600, older=60784),
          ["bench: opt-1.3b ours 62000 peer 49600 unit tok/s ratio 1.250",
           "bench: opt-1.3b-older ours 62000 peer 60784 unit tok/s ratio 1.020"])


def peers_of_a_case_under_a_cap(_):
    """Measured in this run; else known from an earlier one, perhaps not for every clip; else none."""
    def lines(*arguments):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            bench_memory.report("opt-6.7b", {"off": 1500.0, "on": 1200.0}, *arguments)
        return out.getvalue().splitlines()

    share = "clipped at 80 % of clip off"
    equal(lines({"on": 600}, {"off": 1000, "on": 800}, 8.3),
          ["bench: opt-6.7b ours 1500 peer 1000 unit tok/s ratio 1.500",
           "bench: opt-6.7b-clipped ours 1200 peer 800 unit tok/s ratio 1.500",
           "    opt-6.7b: cap 8.30 GiB, peer in this run, " + share])
    equal(lines({"on": 600}, None, 8.3),
          ["bench: opt-6.7b ours 1500 unit tok/s", "bench: opt-6.7b-clipped ours 1200 peer 600 unit tok/s ratio 2.000",
           "    opt-6.7b: cap 8.30 GiB, peer measured earlier on this kind of machine, " + share])
    equal(lines({}, None, None), ["bench: opt-6.7b ours 1500 unit tok/s", "bench: opt-6.7b-clipped ours 1200 unit tok/s",
                                  "    opt-6.7b: no cap, " + share])


if __name__ == "__main__":
    rig.main([peers_of_a_case, peers_of_a_case_under_a_cap], __doc__)
