#!/usr/bin/env python3
"""What bench_gpu.py prints of a case, with runs that were made up."""
import argparse
import contextlib
import io
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
import bench_gpu  # noqa: E402
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
    equal(lines_of("opt-1.3b", ours=62000), ["bench: opt-1.3b ours 62000 peer nan unit tok/s ratio nan"])
    equal(lines_of("opt-1.3b", ours=62000, torch=49600, older=60784),
          ["bench: opt-1.3b ours 62000 peer 49600 unit tok/s ratio 1.250",
           "bench: opt-1.3b-older ours 62000 peer 60784 unit tok/s ratio 1.020"])


if __name__ == "__main__":
    rig.main([peers_of_a_case], __doc__)
