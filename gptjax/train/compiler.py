"""What a compiler is told besides the program."""

# A GPU's library adds biases, residuals and GELU in the product itself. XLA's own products (Triton) and products that
# it merges into one do not, so both are off. To be dropped when Triton's products fuse what follows them; until then
# benchmarks/gpu_compiled.py lists the kernels that a step is compiled to.
GPU = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_dot_merger_threshold_mb": 0}
# A CPU makes new weights once, in milliseconds, and would compile that for longer than the training step: at a lower
# level it takes 2 s instead of 7.7 for a size of the quick sweep.
CPU_ONCE = {"xla_backend_optimization_level": 1}


def options(platform: str, kind: str) -> dict[str, bool | int] | None:
    """Return the options of a program of a kind ("init", "train" or "evaluate") for a platform; None is the default."""
    if platform == "gpu" and kind == "train":
        return dict(GPU)
    return dict(CPU_ONCE) if platform == "cpu" and kind == "init" else None
