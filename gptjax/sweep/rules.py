"""Rules from (params, tokens) to hyper-parameters: the formulas of papers, and constants. Every rule is rule(N, D).

N counts all parameters, unless the rule is marked `of_layers`: then a sweep gives it N without the vocabulary.
"""

from collections.abc import Callable

from gptjax.models.cost import Cost

Rule = Callable[[float, float], float]


def of_layers(rule: Rule) -> Rule:
    """Mark a rule whose paper counts in N the layers alone: neither vocabulary nor positions."""
    rule.params = "non_embedding"  # type: ignore[attr-defined]  # a function takes attributes
    return rule


def params_of(rule: Rule, cost: Cost) -> int:
    """Return the N of a model that a rule is to be given."""
    return int(getattr(cost, getattr(rule, "params", "total")))


def always(value: float) -> Rule:
    return lambda n, d: value


def power(value: float, at_params: float, exponent: float, low: float = 0.0, high: float = float("inf")) -> Rule:
    """value (N / at_params)^exponent, kept within [low, high]."""
    return lambda n, d: min(max(value * (n / at_params) ** exponent, low), high)


# Porian et al. 2024 (arXiv 2406.19146): rates and batches (sequences of 2048 tokens) tuned per size
porian_lr = power(0.0047, 108e6, -1 / 3)
porian_batch_tokens = power(160 * 2048, 108e6, 2 / 3)


@of_layers
def step_law_lr(n: float, d: float) -> float:
    """Step Law (arXiv 2503.04715): N without the vocabulary's weights, D in tokens."""
    return 1.79 * n**-0.713 * d**0.307


def step_law_batch_tokens(n: float, d: float) -> float:
    return 0.58 * d**0.571


@of_layers
def deepseek_lr(n: float, d: float) -> float:
    """DeepSeek LLM (arXiv 2401.02954), with C = 6 N D: theirs counts layers and attention, and no vocabulary."""
    return 0.3118 * (6 * n * d) ** -0.125


@of_layers
def deepseek_batch_tokens(n: float, d: float) -> float:
    return 0.2920 * (6 * n * d) ** 0.3271


def warmup_of_params(n: float, d: float) -> float:
    """Warm up over as many tokens as there are parameters (Porian et al. 2024), a tenth of D at most."""
    return min(n, d / 10)
