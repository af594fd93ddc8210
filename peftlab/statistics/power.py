"""Power of the tests: the smallest difference that a design detects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy  # type: ignore[import-untyped, unused-ignore]  # scipy.stats loads at first use: it takes most of a second

from peftlab.statistics.intervals import Estimate


def minimum_detectable_difference(difference: Estimate, *, level: float = 0.05, power: float = 0.8) -> float:
    """Smallest true difference that a two-sided test at `level` detects with probability `power` under this design.

    For the strictest step of Holm's correction over m comparisons, set `level` to 0.05 / m.

    >>> estimate = Estimate(0.0, seed_variance=1e-4, seed_degrees=8, example_variance=0.0, example_degrees=99)
    >>> round(minimum_detectable_difference(estimate), 4)
    0.032
    """
    half_widths = np.array([difference.half_width(level / 2)])
    if difference.seed_variance is not None:
        # The half-width varies with the seeds: their sample variance follows a scaled chi-squared distribution.
        quantiles = (np.arange(400) + 0.5) / 400
        factors = scipy.stats.chi2.ppf(quantiles, difference.seed_degrees) / difference.seed_degrees
        designs = [replace(difference, seed_variance=difference.seed_variance * factor) for factor in factors]
        half_widths = np.array([design.half_width(level / 2) for design in designs])
    error = difference.standard_error
    if not error:
        return 0.0
    return float(
        scipy.optimize.brentq(
            lambda gap: float(np.mean(scipy.special.ndtr((gap - half_widths) / error))) - power,
            0.0,
            half_widths.max() + 10 * error,
        )
    )
