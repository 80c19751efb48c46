"""Published shapes, a row each: `preset("gpt2-xl")` is a `GPTConfig`, and `ROWS` compares its count with the paper's.

Every paper here counts the embedding in its parameters, and so does the comparison.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from gptjax.errors import BadInput
from gptjax.models.gpt import GPTConfig


@dataclass(frozen=True)
class Published:
    """A published shape, its parameters in its paper's digits ("1.32B"), and why an exact count may differ."""

    name: str
    config: GPTConfig
    published: str
    reason: str = ""

    @property
    def params(self) -> int:
        return self.config.cost(self.config.context).total

    @property
    def published_params(self) -> float:
        return float(self.published[:-1]) * self._scale

    @property
    def difference(self) -> float:
        """How far our count lies from the paper's, as a share of the paper's."""
        return self.params / self.published_params - 1

    @property
    def note(self) -> str:
        """Say why the counts differ, or nothing where the paper's digits round ours."""
        decimals = len(self.published.partition(".")[2][:-1])
        return "" if f"{self.params / self._scale:.{decimals}f}" == self.published[:-1] else self.reason

    @property
    def _scale(self) -> float:
        return {"M": 1e6, "B": 1e9}[self.published[-1]]


def _family(base: GPTConfig, columns: str, rows: Iterable[tuple[Any, ...]], reason: str = "") -> list[Published]:
    """Read a table whose rows are a name, a published count and the settings that `columns` names."""
    names = columns.split()
    return [
        Published(name, replace(base, **dict(zip(names, settings, strict=True))), published, reason)
        for name, published, *settings in rows
    ]


# Radford et al. 2018, section 4.1, with the count of Radford et al. 2019, Table 2.
GPT1 = Published("gpt1", GPTConfig(vocab_size=40478, context=512, norm_place="post", scaled_residual=False), "117M")

# Radford et al. 2019, Table 2, with heads of 64. The counts there have GPT-1's vocabulary (put in, it gives all four);
# OpenAI has since called the models 124M, 355M, 774M and 1558M.
GPT2 = _family(
    GPTConfig(),
    "n_layers d_model n_heads",
    (
        ("gpt2", "117M", 12, 768, 12),
        ("gpt2-medium", "345M", 24, 1024, 16),
        ("gpt2-large", "762M", 36, 1280, 20),
        ("gpt2-xl", "1542M", 48, 1600, 25),
    ),
    reason="the paper counts GPT-1's vocabulary",
)

# Brown et al. 2020, Table 2.1, with the counts of their Table D.1. Where Table 2.1 contradicts itself, the shape here
# is the one that gives their count: 16 heads of 128 for 1.3B, not 24, and a width of 5120 for 13B, not 5140. Every
# other layer of theirs attends in a local band; here all are dense, which changes no count.
GPT3 = _family(
    GPTConfig(context=2048),
    "n_layers d_model n_heads",
    (
        ("gpt3-125m", "125M", 12, 768, 12),
        ("gpt3-350m", "356M", 24, 1024, 16),
        ("gpt3-760m", "760M", 24, 1536, 16),
        ("gpt3-1.3b", "1.32B", 24, 2048, 16),
        ("gpt3-2.7b", "2.65B", 32, 2560, 32),
        ("gpt3-6.7b", "6.66B", 32, 4096, 32),
        ("gpt3-13b", "12.85B", 40, 5120, 40),
        ("gpt3-175b", "174.6B", 96, 12288, 96),
    ),
)

# Hoffmann et al. 2022, Table A9 (parameters in millions; every MLP is 4 d_model wide) and Table 4. Gopher's kind of
# model: Rae et al. 2021, section 3.1. Rotary positions stand in for its relative ones (Dai et al. 2019), which project
# d_model to n_heads d_head once more in each layer: with that projection all these counts come out.
TABLE_A9 = (
    (44, 512, 64, 8, 8),
    (57, 576, 64, 9, 9),
    (74, 640, 64, 10, 10),
    (90, 640, 64, 10, 13),
    (106, 640, 64, 10, 16),
    (117, 768, 64, 12, 12),
    (140, 768, 64, 12, 15),
    (163, 768, 64, 12, 18),
    (175, 896, 64, 14, 14),
    (196, 896, 64, 14, 16),
    (217, 896, 64, 14, 18),
    (251, 1024, 64, 16, 16),
    (278, 1024, 64, 16, 18),
    (306, 1024, 64, 16, 20),
    (425, 1280, 128, 10, 18),
    (489, 1280, 128, 10, 21),
    (509, 1408, 128, 11, 18),
    (552, 1280, 128, 10, 24),
    (587, 1408, 128, 11, 21),
    (632, 1536, 128, 12, 19),
    (664, 1408, 128, 11, 24),
    (724, 1536, 128, 12, 22),
    (816, 1536, 128, 12, 25),
    (893, 1792, 128, 14, 20),
    (1018, 1792, 128, 14, 23),
    (1143, 1792, 128, 14, 26),
    (1266, 2048, 128, 16, 22),
    (1424, 2176, 128, 17, 22),
    (1429, 2048, 128, 16, 25),
    (1593, 2048, 128, 16, 28),
    (1609, 2176, 128, 17, 25),
    (1731, 2304, 128, 18, 24),
    (1794, 2176, 128, 17, 28),
    (2007, 2304, 128, 18, 28),
    (2283, 2304, 128, 18, 32),
    (2298, 2560, 128, 20, 26),
    (2639, 2560, 128, 20, 30),
    (2980, 2560, 128, 20, 34),
    (3530, 2688, 128, 22, 36),
    (3802, 2816, 128, 22, 36),
    (4084, 2944, 128, 22, 36),
    (4516, 3072, 128, 24, 36),
    (6796, 3584, 128, 28, 40),
    (9293, 4096, 128, 32, 42),
    (11452, 4352, 128, 32, 47),
    (12295, 4608, 128, 36, 44),
    (12569, 4608, 128, 32, 47),
    (13735, 4864, 128, 32, 47),
    (14940, 4992, 128, 32, 49),
    (16183, 5120, 128, 40, 47),
)
CHINCHILLA = _family(
    GPTConfig(vocab_size=32000, context=2048, norm="rmsnorm", positions="rope"),
    "d_model d_head n_heads n_layers",
    (
        *((f"chinchilla-{millions}m", f"{millions}M", *shape) for millions, *shape in TABLE_A9),
        ("chinchilla-70b", "70B", 8192, 128, 64, 80),
        ("gopher-280b", "280B", 16384, 128, 128, 80),
    ),
    reason="the paper counts relative positions' projections",
)

# Touvron et al. 2023a, Table 2; Touvron et al. 2023b, Table 1; Grattafiori et al. 2024, Table 3. Widths of the MLPs,
# vocabularies and norm_eps are those of the released weights. Llama 3.1 is Llama 3 with a longer context.
LLAMA = GPTConfig(
    vocab_size=32000,
    context=2048,
    norm="rmsnorm",
    bias=False,
    positions="rope",
    activation="silu",
    gated=True,
    tied=False,
)
LLAMA1 = _family(
    LLAMA,
    "n_layers d_model n_heads d_mlp norm_eps",
    (
        ("llama-7b", "6.7B", 32, 4096, 32, 11008, 1e-6),
        ("llama-13b", "13.0B", 40, 5120, 40, 13824, 1e-6),
        ("llama-33b", "32.5B", 60, 6656, 52, 17920, 1e-6),
        ("llama-65b", "65.2B", 80, 8192, 64, 22016, 1e-5),
    ),
    reason="the paper truncates",
)
LLAMA2 = _family(
    replace(LLAMA, context=4096),
    "n_layers d_model n_heads n_kv_heads d_mlp",
    (
        ("llama2-7b", "7B", 32, 4096, 32, 32, 11008),
        ("llama2-13b", "13B", 40, 5120, 40, 40, 13824),
        ("llama2-70b", "70B", 80, 8192, 64, 8, 28672),
    ),
    reason="the published size is a name",
)
LLAMA3 = _family(
    replace(LLAMA, context=8192, vocab_size=128256, rope_theta=5e5),
    "n_layers d_model n_heads n_kv_heads d_mlp",
    (
        ("llama3-8b", "8B", 32, 4096, 32, 8, 14336),
        ("llama3-70b", "70B", 80, 8192, 64, 8, 28672),
        ("llama3-405b", "405B", 126, 16384, 128, 8, 53248),
    ),
    reason="the published size is a name",
)
LLAMA31 = [
    replace(
        row,
        name=row.name.replace("llama3", "llama3.1"),
        config=replace(row.config, context=131072, rope_scaling=(8.0, 1.0, 4.0, 8192)),
    )
    for row in LLAMA3
]

ROWS = (GPT1, *GPT2, *GPT3, *CHINCHILLA, *LLAMA1, *LLAMA2, *LLAMA3, *LLAMA31)
PRESETS: dict[str, GPTConfig] = {row.name: row.config for row in ROWS}
PUBLISHED_PARAMS: dict[str, float] = {row.name: row.published_params for row in ROWS}


def preset(name: str) -> GPTConfig:
    """Return the published shape of this name; raise BadInput, with the nearest names, where there is none."""
    if name not in PRESETS:
        near = get_close_matches(name.lower(), PRESETS, n=4, cutoff=0.5)
        remedy = f"did you mean {', '.join(near)}?" if near else "`gptjax presets` lists them"
        raise BadInput(f"no preset is named {name!r}; {remedy}")
    return PRESETS[name]
