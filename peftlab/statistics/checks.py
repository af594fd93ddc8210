"""Checks of arguments shared by the statistics functions."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from peftlab.statistics.aggregates import Floats


def finite_array(values: ArrayLike, name: str, *, ndim: int) -> Floats:
    """`values` as a non-empty float64 array with `ndim` dimensions. Raises ValueError on another shape, NaN or inf."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim or not array.size:
        raise ValueError(f"{name}: expected a non-empty array with {ndim} dimensions, got shape {array.shape}")
    if bad := int((~np.isfinite(array)).sum()):
        raise ValueError(
            f"{name}: {bad} of {array.size} values are NaN or infinite; exclude diverged runs and count them separately"
        )
    return array


def positive_margin(margin: float) -> float:
    """`margin`, if it is a positive, finite difference of scores. Raises ValueError otherwise."""
    if not (margin > 0 and math.isfinite(margin)):
        raise ValueError(f"the margin must be a positive difference of scores, got {margin}")
    return margin
