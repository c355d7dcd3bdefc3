"""Times PyTorch's causal attention, forward and backward, with each of its backends, at the shapes
of tests/bench/gpu_ops.c. Prints microseconds (median) and TFLOP/s, counted as there."""
import statistics
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
import torch.nn.functional as F

SHAPES = [(32, 1024, 12, 64), (8, 1024, 32, 64), (4, 4096, 32, 128)]
BACKENDS = [("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION)]


def median_us(run, groups=9, calls=4):
    for _ in range(3):
        run()
    times = []
    for _ in range(groups):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        for _ in range(calls):
            run()
        b.record()
        b.synchronize()
        times.append(a.elapsed_time(b) * 1e3 / calls)
    return statistics.median(times)


print(torch.cuda.get_device_name(), "torch", torch.__version__, "cudnn",
      torch.backends.cudnn.version())
for deterministic in (False, True):
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    for B, T, H, D in SHAPES:
        for name, backend in BACKENDS:
            try:
                q, k, v = (torch.randn(B, H, T, D, device="cuda", dtype=torch.bfloat16,
                                       requires_grad=True) for _ in range(3))
                with sdpa_kernel(backend):
                    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                    dout = torch.randn_like(out)
                    fwd = median_us(
                        lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))
                    bwd = median_us(lambda: torch.autograd.grad(out, (q, k, v), dout,
                                                                retain_graph=True))
            except RuntimeError as e:
                print(f"{name} B{B} T{T} H{H} D{D}: {str(e).splitlines()[0]}")
                continue
            flops = 2.0 * B * H * T * T * D
            print(f"{name}{' deterministic' if deterministic else ''} B{B} T{T} H{H} D{D}: "
                  f"fwd {fwd:.1f} us {flops / fwd * 1e-6:.0f} TFLOP/s, "
                  f"bwd {bwd:.1f} us {2.5 * flops / bwd * 1e-6:.0f} TFLOP/s")
