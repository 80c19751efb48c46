"""Hardware by name: "v5p:8x8x8", "2x v5e:16x16", "h200:8" or "cpu-core:8", and its devices for compiling without it."""

import importlib.util
import math
import os
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from gptjax.devices import Device
from gptjax.errors import BadInput

NAME = re.compile(r"(?:([1-9]\d*) *x *)?([a-z][\w.-]*):([1-9]\d*(?:x[1-9]\d*)*)")
TORUS = {"v4": (3, 4096), "v5e": (2, 256), "v5p": (3, 6144), "v6e": (2, 256)}  # dimensions, most chips of a slice
NODE = 8  # GPUs that NVLink joins
HINT = "write CHIP:AxB, CHIP:AxBxC or GPU:COUNT, as v5p:8x8x8, 2x v5e:16x16 or h200:8"
HOPPER = {"sms": 132, "l2": 50 << 20, "ghz": 1.98, "shared_block": 227 << 10, "shared_sm": 228 << 10, "capability": 9}
AMPERE = {"sms": 108, "l2": 40 << 20, "ghz": 1.41, "shared_block": 163 << 10, "shared_sm": 164 << 10, "capability": 8}
GPUS = {"h200": HOPPER, "h100": HOPPER, "a100-80g": AMPERE, "a100-40g": AMPERE}  # NVIDIA's datasheets and CUDA guide


@dataclass(frozen=True)
class Topology:
    """So many slices (or nodes) of a chip; `shape` is a slice's torus, or the GPUs of a node."""

    device: Device
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        return self.slices * math.prod(self.shape)

    @property
    def name(self) -> str:
        several = f"{self.slices}x " if self.slices > 1 else ""
        return f"{several}{self.device.name}:{'x'.join(map(str, self.shape))}"

    @property
    def platform(self) -> str:
        """The compiler for it: tpu, cuda or cpu; empty where none is known."""
        kind = self.device.device_kind
        return {"TPU": "tpu", "NVIDIA": "cuda", "": "cpu"}.get(kind.partition(" ")[0], "")

    @property
    def uncompiled(self) -> str:
        """Say why no compiler serves this hardware here, with the remedy; empty where one does."""
        if self.platform == "tpu" and importlib.util.find_spec("libtpu") is None:
            return f"{self.name} needs the TPU compiler; make install EXTRAS=test,tpu (Linux, x86-64)"
        if self.platform == "cuda":
            if self.device.name not in GPUS:
                return f"the CUDA compiler is described {', '.join(GPUS)} here, and not {self.device.name}"
            if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
                return f"{self.name} needs the CUDA compiler; make install EXTRAS=test,cuda12"
        return ""

    @property
    def environment(self) -> dict[str, str]:
        """What a process that compiles for it needs before jax starts."""
        wanted = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        if self.platform == "cpu":
            wanted["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={self.chips}"
        kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")}
        return kept | wanted

    def devices(self) -> list[Any]:
        """Return the devices to compile for; call it only in a process started with `environment`."""
        import jax
        from jax.experimental import topologies

        if self.platform == "cpu":
            return jax.devices()
        name = f"{self.device.name}:{'x'.join(map(str, self.shape))}"
        options: dict[str, Any] = {"num_slices": self.slices} if self.slices > 1 else {}
        if self.platform == "cuda":
            nodes = f"1x{self.slices}x{math.prod(self.shape)}"
            name, options = "", {"target_config": gpu_target(self.device), "topology": nodes}
        elif self.device.name == "v4":
            options["chip_config_name"] = "megacore"  # both cores of a chip as one device
        if self.platform == "tpu" and math.prod(self.shape) == 1:
            options["chips_per_host_bounds"] = (1, 1, 1)
        try:
            return topologies.get_topology_desc(name, self.platform, **options).devices
        except jax.errors.JaxRuntimeError as error:
            raise BadInput(
                f"{self.name} is no topology of the compiler ({str(error).splitlines()[0]}); {HINT}"
            ) from None


def parse(text: str, table: dict[str, Device]) -> Topology:
    """Read a topology; BadInput for an unknown chip or a shape that it cannot have."""
    match = NAME.fullmatch(text.strip())
    if not match:
        raise BadInput(f"topology {text!r} is not understood; {HINT}")
    slices, chip, shape = match[1], match[2], tuple(int(n) for n in match[3].split("x"))
    if chip not in table:
        raise BadInput(f"topology {text!r}: no device is named {chip!r}; the table has {', '.join(table)}")
    topology = Topology(table[chip], shape, int(slices or 1))
    dimensions, most = TORUS.get(chip, (1, 2**31 if topology.platform == "cpu" else NODE))
    if topology.platform == "tpu" and chip not in TORUS:
        raise BadInput(f"topology {text!r}: the TPUs known here are {', '.join(TORUS)}; name the row of devices as one")
    if len(shape) != dimensions:
        raise BadInput(f"topology {text!r}: {chip} has {dimensions} dimension{'s' * (dimensions > 1)}; {HINT}")
    if not topology.platform:
        raise BadInput(f"topology {text!r}: no compiler is known for {topology.device.device_kind!r}; use predict")
    if math.prod(shape) > most:
        many = f"{-(-math.prod(shape) // most)}x {chip}:{most}" if dimensions == 1 else f"2x {chip}:..."
        raise BadInput(f"topology {text!r}: {chip} has at most {most:,} chips in a slice or node; write {many}")
    if topology.slices > 1 and not topology.device.network_gb_per_s:
        raise BadInput(f"topology {text!r}: the table has no network_gb_per_s for {chip}; add that column")
    return topology


@cache
def gpu_target(device: Device) -> str:
    """Describe a GPU to the CUDA compiler, as the text of XLA's GpuTargetConfigProto."""
    gpu = GPUS[device.name]
    facts = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 << 10,
        "shared_memory_per_core": gpu["shared_sm"],
        "shared_memory_per_block_optin": gpu["shared_block"],
        "threads_per_core_limit": 2048,
        "core_count": gpu["sms"],
        "fpus_per_core": 128 if gpu["capability"] == 9 else 64,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
        "registers_per_core_limit": 1 << 16,
        "registers_per_block_limit": 1 << 16,
        "memory_bandwidth": int(device.hbm_gb_per_s * 1e9),
        "l2_cache_size": gpu["l2"],
        "clock_rate_ghz": gpu["ghz"],
        "device_memory_size": int(device.hbm_gib * 2**30),
    }
    versions = {"driver_version": "13.0.0", "runtime_version": "12.9.0", "dnn_version": "9.10.0"}
    words = {"device_vendor": "NVIDIA Corporation", "name": device.device_kind, **versions}
    lines = [f"  {name}: {value}" for name, value in facts.items()]
    lines += [f'  {name}: "{value}"' for name, value in words.items()]
    lines += [f"  cuda_compute_capability {{ major: {gpu['capability']} minor: 0 }}"]
    versions_of_dnn = "dnn_version_info { major: 9 minor: 10 patch: 0 }"
    return "\n".join(["gpu_device_info {", *lines, "}", 'platform_name: "CUDA"', versions_of_dnn])
