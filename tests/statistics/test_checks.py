"""Arguments that every statistics function rejects, and what importing them costs."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from peftlab.statistics.aggregates import f1
from peftlab.statistics.bootstrap import bootstrap
from peftlab.statistics.expected_best import expected_best
from peftlab.statistics.hypothesis_tests import equivalence, holm, mcnemar, noninferiority
from peftlab.statistics.intervals import Estimate, summarize


@pytest.mark.parametrize(
    "use",
    [
        summarize,
        lambda values: bootstrap([values]),
        lambda values: bootstrap([[[v, 1, 1] for v in values]], f1),
        holm,
        lambda values: mcnemar(values, [1, 0, 1]),
        expected_best,
    ],
)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinite_scores_are_rejected(use: Callable[[list[float]], object], bad: float) -> None:
    use([1.0, 0.0, 1.0])
    with pytest.raises(ValueError, match=r"1 of \d values are NaN or infinite; exclude diverged runs"):
        use([1.0, bad, 0.0])


@pytest.mark.parametrize("margin", [0.0, -0.01, float("nan")])
@pytest.mark.parametrize("test", [noninferiority, equivalence])
def test_a_margin_must_be_positive(test: Callable[[Estimate, float], float], margin: float) -> None:
    with pytest.raises(ValueError, match="margin must be a positive"):
        test(Estimate(0.0, 1e-4, 4, 0.0, 99), margin)


def test_importing_the_statistics_loads_neither_torch_nor_scipy_stats() -> None:
    check = "import sys, peftlab.statistics.hypothesis_tests, peftlab.statistics.power; "
    check += "sys.exit(bool({'torch', 'scipy.stats'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
