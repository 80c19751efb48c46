"""The law that places a sweep's cells where no other is given: of the scale that the sweep will have."""

from gptjax.laws.forms import ChinchillaLaw
from gptjax.laws.law import Law
from gptjax.laws.published import BESIROGLU_2024
from gptjax.sweep.plan import Sized, SweepConfig
from gptjax.sweep.proposal import Allowance

QUICK_LAW = ChinchillaLaw(335, 138, 1.78, 0.585, 0.371)  # the quick sweep's, 1e11 to 3e12 FLOPs: experiments/README.md
QUICK_NAME = "the quick sweep's, measured from 1e11 to 3e12 FLOPs: experiments/README.md"
SMALL_FLOPS = 1e15  # of the largest budget: below it the quick sweep's law is nearer than a published one
TOP_SHARE = 0.1  # of a sweep's FLOPs, about, go to a cell of its largest budget
MOST_RATIO = 30  # tokens a parameter, about, of the best run of the largest size


def law_by_scale(base: SweepConfig, allowance: Allowance, workers: int) -> Law:
    """Choose the law that places cells by the largest budget that an allowance could pay for."""
    by_time = allowance.seconds * base.speed.flops_per_second * workers
    largest = max(Sized.of(base, size).params for size in (*base.sizes, *base.holdout_sizes))
    top = min(TOP_SHARE * allowance.flops, TOP_SHARE * by_time, 6 * MOST_RATIO * largest**2)
    return QUICK_LAW if top < SMALL_FLOPS else BESIROGLU_2024
