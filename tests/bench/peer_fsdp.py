"""The PyTorch peer of bench_memory.py: whole optimizer steps of a model whose weights lie in host memory.

usage: peer_fsdp.py MODEL_DIR --rows ROWS --length LENGTH [--device cuda|cpu]

transformers' model with random weights, its head tied where config.json ties it, scaled dot product attention, every
layer checkpointed and sharded by FSDP2 with CPUOffloadPolicy over a group of one: float32 parameters, gradients and
moments in pinned host memory, bf16 on the device, fused AdamW on the CPU; one micro-batch of random tokens a step.

After a step that allocates what stays it prints a line of JSON, then one for each line that it reads:
    off    a step without clipping
    on     a step with clipping that acts
    rest   gives what the allocator keeps back to the device
{"seconds", "peak", "reserved": the allocator's peaks of that step, "allocated": what it holds after it, all in bytes},
or {"failed": why}, which is the last one. The end of the input is its end.
"""
import argparse
import json
import os
import sys
import tempfile
import time

# Registering pinned memory by several threads takes a fraction of the time and changes nothing else.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True,pinned_use_cuda_host_register:True,"
                      "pinned_num_register_threads:8")
import torch  # noqa: E402
import torch.distributed  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

NORM = 1e-3


def fill(module, device):
    """Memory and random numbers for what a module declares, its parts included."""
    for m in module.modules():
        if any(p.is_meta for p in m.parameters(recurse=False)):
            m.to_empty(device=device, recurse=False)
            for name, p in m.named_parameters(recurse=False):
                with torch.no_grad():
                    p.normal_(0, 0.02) if p.dim() > 1 else p.fill_(float(name == "weight"))


def make_model(directory, device):
    """A layer at a time goes from the device, where random numbers are made, to its place in host memory."""
    config = AutoConfig.from_pretrained(directory)
    config.use_cache = False
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    model.gradient_checkpointing_enable()
    model.train()
    policy = {"mesh": init_device_mesh(device, (1,)),
              "mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16),
              "offload_policy": CPUOffloadPolicy(pin_memory=device == "cuda")}
    for layer in max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len):
        fill(layer, device)
        fully_shard(layer, **policy)
    fill(model, device)
    model.tie_weights()
    fully_shard(model, **policy)
    return config, model


class Steps:
    def __init__(self, options):
        self.cuda = options.device == "cuda"
        config, self.model = make_model(options.model, options.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, weight_decay=0.1, fused=True)
        self.tokens = torch.randint(0, config.vocab_size, (options.rows, options.length), device=options.device)

    def step(self, clip):
        loss = self.model(input_ids=self.tokens, labels=self.tokens).loss
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def measure(self, clip):
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        loss = self.step(clip)
        if self.cuda:
            torch.cuda.synchronize()
        result = {"seconds": time.perf_counter() - start, "loss": loss, "peak": 0, "reserved": 0, "allocated": 0}
        if self.cuda:
            result.update(peak=torch.cuda.max_memory_allocated(), reserved=torch.cuda.max_memory_reserved(),
                          allocated=torch.cuda.memory_allocated())
        return result

    def answer(self, command):
        try:
            if command != "rest":
                return self.measure(command == "on")
        except torch.OutOfMemoryError as e:
            return {"failed": str(e).splitlines()[0]}
        if self.cuda:
            torch.cuda.empty_cache()
        return {}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    for name in ("rows", "length"):
        parser.add_argument("--" + name, type=int, required=True)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    with tempfile.TemporaryDirectory() as rendezvous:
        backend = "cpu:gloo,cuda:nccl" if options.device == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, rank=0, world_size=1,
                                             init_method="file://" + os.path.join(rendezvous, "group"))
        steps = Steps(options)
        steps.step(False)
        print("{}", flush=True)
        for line in sys.stdin:
            answer = steps.answer(line.strip())
            print(json.dumps(answer), flush=True)
            if "failed" in answer:
                break
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
