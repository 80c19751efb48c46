"""Rules from (params, tokens) to hyper-parameters: the formulas of papers, and constants. Every rule is rule(N, D).

N counts all parameters, unless the rule is marked `of_layers`: then a sweep gives it N without the vocabulary. A rule
that is `sourced` says what it was fitted on and over which range; outside it is an extrapolation, which the smallest
sizes should be tuned against (`SweepConfig.lr_factors`).

All of them were fitted for AdamW, and none of the literature transfers to Muon unchanged. Measured here (docs/laws.md):
at widths 24 and 56, Muon with `consistent_rms` wanted 2.2 times the rate of `small_lr` at both, and AdamW 1.8 and 1.2.
"""

from collections.abc import Callable

from gptjax.models.cost import Cost

Rule = Callable[[float, float], float]


def of_layers(rule: Rule) -> Rule:
    """Mark a rule whose paper counts in N the layers alone: neither vocabulary nor positions."""
    rule.params = "non_embedding"  # type: ignore[attr-defined]  # a function takes attributes
    return rule


def sourced(rule: Rule, source: str) -> Rule:
    """Mark a rule with where it comes from and the range that it was fitted on."""
    rule.source = source  # type: ignore[attr-defined]
    return rule


def params_of(rule: Rule, cost: Cost) -> int:
    """Return the N of a model that a rule is to be given."""
    return int(getattr(cost, getattr(rule, "params", "total")))


def always(value: float) -> Rule:
    return lambda n, d: value


def power(value: float, at_params: float, exponent: float, low: float = 0.0, high: float = float("inf")) -> Rule:
    """value (N / at_params)^exponent, kept within [low, high]."""
    return lambda n, d: min(max(value * (n / at_params) ** exponent, low), high)


# Tuned here for the quick sweep: AdamW, wsd, two layers, batches of 512 tokens, four sizes of 14k to 459k parameters at
# 3e11 FLOPs, three to four rates each; width 32 again at 3.2e12 (experiments/LOG.md, 2026-11-21). The exponent is known
# to about .1. Batches of 256 and 1024 tokens gave the same losses to .04.
small_lr = sourced(power(0.0085, 14.4e3, -0.3), "tuned here on 14k to 459k parameters: experiments/LOG.md")
small_batch_tokens = sourced(always(512), "256 to 1024 gave the same: experiments/LOG.md")

# Porian et al. 2024 (arXiv 2406.19146): rate and batch (in sequences of 2048 tokens) swept for each size, 5M to 108M
# parameters and used to 901M; AdamW at constant rate, D/N near 20, RefinedWeb. b2 was swept too: .99 or .999 at small
# batches. Below 5M the rate is an extrapolation, and ten times that of `small_lr` at 14k.
porian_lr = sourced(power(0.0047, 108e6, -1 / 3), "Porian et al. 2024, tuned from 5M parameters on")
porian_batch_tokens = sourced(power(160 * 2048, 108e6, 2 / 3), "Porian et al. 2024, tuned from 5M parameters on")


@of_layers
def step_law_lr(n: float, d: float) -> float:
    """Step Law (arXiv 2503.04715): N without the vocabulary's weights, D in tokens; AdamW, cosine to a fixed floor.

    Its authors gave out runs of 17 cells (N, D); a refit of these has N^-.77 to -.82, D^.20 to .29: the exponents are
    soft.
    """
    return 1.79 * n**-0.713 * d**0.307


def step_law_batch_tokens(n: float, d: float) -> float:
    """Step Law's batch: from the same cells, and known no better (D^.50 to .61 when fitted again)."""
    return 0.58 * d**0.571


@of_layers
def deepseek_lr(n: float, d: float) -> float:
    """DeepSeek LLM (arXiv 2401.02954), with C = 6 N D: theirs counts layers and attention, and no vocabulary.

    AdamW with steps in the rate, fitted to the best rates of grids of small budgets.
    """
    return 0.3118 * (6 * n * d) ** -0.125


@of_layers
def deepseek_batch_tokens(n: float, d: float) -> float:
    """DeepSeek LLM's batch, from the same grids."""
    return 0.2920 * (6 * n * d) ** 0.3271


def warmup_of_params(n: float, d: float) -> float:
    """Warm up over as many tokens as there are parameters (Porian et al. 2024), a tenth of D at most."""
    return min(n, d / 10)
