"""Softmax attention on TPUs that holds no square of scores, by jax's Pallas kernel "splash attention".

The kernel goes through blocks of queries and keys with a running softmax (Dao et al. 2022), forward and backward, and
leaves out blocks that the mask hides. This file gives it this library's masks, shapes and layouts. It compiles for TPUs
only; elsewhere `interpret=True` runs the same kernel slowly, for tests.

Shapes: B batch, T positions, N heads, G key/value heads, K head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as library
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as library_masks
from jax.sharding import PartitionSpec

from gptjax.errors import BadInput
from gptjax.kernels.layers import SPLASH
from gptjax.kernels.mask import CausalMask, FullMask, Mask, WindowMask
from gptjax.sharding import Layout

LANES = 128  # of a TPU's vector unit: blocks are multiples of them
BLOCK = 512  # positions of a block at most: twice as many exceed the vector memory with heads of HEAD in float32
BLOCKS = 512  # of queries, and of keys, at most: what is to be done for each pair lies in 1 MiB of scalar memory
HEAD = 256  # the widest head for which the kernels have been compiled


def fits(q_shape: Sequence[int], k_shape: Sequence[int], dtype: Any, mask: Mask, layout: Layout | None) -> bool:
    """Say whether `splash_attend` takes queries (B, T, N, K) and keys (B, S, G, K) of these shapes, so split."""
    B, T, N, K = q_shape
    S, G = k_shape[1:3]
    known = isinstance(mask, CausalMask | FullMask | WindowMask) and dtype in (jnp.bfloat16, jnp.float32) and K <= HEAD
    if not known or S != T or T % LANES or T // block_of(T) > BLOCKS or N % G:
        return False
    if layout is None:
        return True
    rules = layout.rules
    batch, heads, groups = (layout.parts(split) for split in (rules.batch, rules.heads, rules.kv_heads))
    together = rules.heads == rules.kv_heads or heads == groups == 1 or G == 1  # a head lies where its keys lie
    whole = layout.parts(rules.seq) * layout.parts(rules.keys) == 1
    return together and whole and not (B % batch or N % heads or G % groups)


def block_of(T: int) -> int:
    """Return the most positions that a block can have: a multiple of the lanes that divides T."""
    return max(size for size in range(LANES, BLOCK + 1, LANES) if T % size == 0)


def splash_attend(
    q_BTNK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    mask: Mask,
    scale: float,
    segments_BT: jax.Array | None,
    layout: Layout | None,
    interpret: bool = False,
) -> jax.Array:
    """Softmax attention under a mask, within segments where given; returns (B, T, N, K). Only for what `fits`."""
    if not fits(q_BTNK.shape, k_BTGK.shape, q_BTNK.dtype, mask, layout):
        raise BadInput(
            f"splash attention does not take queries {q_BTNK.shape} and keys {k_BTGK.shape} of {q_BTNK.dtype} under "
            f"{type(mask).__name__} in this layout; use the plain form"
        )
    _, T, N, _ = q_BTNK.shape
    heads = N // (layout.parts(layout.rules.heads) if layout else 1)
    attend = partial(_attend, kernel=_kernel(mask, T, heads, block_of(T), interpret))
    inputs = (q_BTNK * scale, k_BTGK, v_BTGK, segments_BT)
    if layout is None:
        return attend(*inputs)
    queries = layout.spec(("batch", None, "heads", None))
    keys = layout.spec(("batch", None, "kv_heads", None))
    segments = PartitionSpec() if segments_BT is None else layout.spec(("batch", None))
    specs = (queries, keys, keys, segments)
    return jax.shard_map(attend, mesh=layout.mesh, in_specs=specs, out_specs=queries, check_vma=False)(*inputs)


def _attend(
    q_BTNK: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array, segments_BT: jax.Array | None, *, kernel: Any
) -> jax.Array:
    """Attend where all arrays are whole: those of one device."""

    def one_row(q_NTK: jax.Array, k_GTK: jax.Array, v_GTK: jax.Array, segments_T: jax.Array | None) -> jax.Array:
        return kernel(q_NTK, k_GTK, v_GTK, None if segments_T is None else library.SegmentIds(segments_T, segments_T))

    q_BNTK, k_BGTK, v_BGTK = (x.swapaxes(1, 2) for x in (q_BTNK, k_BTGK, v_BTGK))
    return jax.vmap(one_row)(q_BNTK, k_BGTK, v_BGTK, segments_BT).swapaxes(1, 2)


@dataclass(frozen=True)
class _Positions(library_masks.Mask):
    """A mask of positions, as the library reads it: block by block on the host, and pair by pair in the kernel."""

    mask: CausalMask | WindowMask
    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.size, self.size

    @property
    def q_sequence(self) -> np.ndarray:
        return np.arange(self.size, dtype=np.int32)

    def mask_function(self, query: jax.Array, key: jax.Array) -> jax.Array:
        return self.mask.sees(query, key)

    def __getitem__(self, block: tuple[slice, slice]) -> np.ndarray:
        queries, keys = (range(*side.indices(self.size)) for side in block)
        if self.mask.none(queries, keys):  # most blocks are settled as wholes, else long sequences take minutes
            return np.zeros((len(queries), len(keys)), bool)
        if self.mask.every(queries, keys):
            return np.ones((len(queries), len(keys)), bool)
        return np.asarray(self.mask.sees(np.asarray(queries)[:, None], np.asarray(keys)))  # type: ignore[arg-type]


@lru_cache
def _kernel(mask: CausalMask | FullMask | WindowMask, T: int, heads: int, block: int, interpret: bool) -> Any:
    """Make the kernel, and the tables of the blocks that it goes through; kept, as jax compiles it once for each."""
    positions = library_masks.FullMask((T, T)) if isinstance(mask, FullMask) else _Positions(mask, T)
    sizes = library.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
    )
    with jax.ensure_compile_time_eval():  # tables are numbers, though a caller is being traced
        kernel = library.make_splash_mha(
            library_masks.MultiHeadMask([positions] * heads),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            residual_checkpoint_name=SPLASH,
            interpret=interpret,
        )
        return jax.tree.map(np.asarray, kernel)
