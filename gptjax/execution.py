"""How a model is computed, apart from what it is: the same weights give the same answers under each of these."""

from dataclasses import dataclass
from typing import Literal

from gptjax.errors import BadInput
from gptjax.fields import check_values

Kernel = Literal["auto", "xla", "cudnn"]


@dataclass(frozen=True)
class Execution:
    """What trades speed for memory or for another order of the same sums; no fingerprint knows of it."""

    remat: Literal["none", "dots", "full"] = "none"  # what the backward pass computes again, to save memory
    attention: Kernel = "auto"  # the kernel of attention; auto: the fastest that fits (on a TPU splash attention)
    microbatches: int = 0  # parts of the batch in flight through pipeline stages; 0: two for each stage
    scan: bool | None = None  # compile one layer and loop over all; null: on a GPU, up to 24 layers are unrolled
    vocab_multiple: int = 1  # pad embedding and head to a multiple; padded ids get no probability
    kernels: Literal["fast", "plain"] = "fast"  # plain: every fast form of gptjax/kernels is off

    def __post_init__(self) -> None:
        check_values(self, "execution.")
        if self.microbatches < 0:
            raise BadInput(f"execution.microbatches = {self.microbatches} must be at least 0")
        if self.vocab_multiple < 1:
            raise BadInput(f"execution.vocab_multiple = {self.vocab_multiple} must be at least 1")

    def padded(self, vocab_size: int) -> int:
        """Return the rows of an embedding for so many ids."""
        return -(-vocab_size // self.vocab_multiple) * self.vocab_multiple

    def in_flight(self, stages: int) -> int:
        """Return in how many parts a batch goes through so many pipeline stages."""
        return (self.microbatches or 2 * stages) if stages > 1 else 1


DEFAULT_EXECUTION = Execution()
