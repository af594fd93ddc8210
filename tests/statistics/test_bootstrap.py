"""The bootstrap over test examples."""

import numpy as np
import pytest
from scipy import stats

from peftlab.statistics.aggregates import f1
from peftlab.statistics.bootstrap import bootstrap
from peftlab.statistics.intervals import mean_score
from tests.statistics.simulated import entities


def test_a_metric_undefined_on_some_resample_is_rejected() -> None:
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=r"resampled counts: .* NaN"):
        bootstrap([[[1.0], [0.0]]], lambda sums: sums[..., 0] / sums[..., 0])


@pytest.mark.parametrize(("counts", "message"), [([0.9, 0.8], r"\(2,\)"), ([[]], r"\(1, 0\)"), ([[1.0]], "1 example")])
def test_counts_of_a_wrong_shape_are_rejected(counts: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap(counts)


def test_f1_has_the_standard_error_of_scipys_bootstrap() -> None:
    generator = np.random.default_rng(0)
    counts = entities(generator, generator.poisson(1.7, 150), 0.1)[:1]
    columns = tuple(counts[0].T)
    reference = stats.bootstrap(
        columns,
        lambda tp, pred, gold, axis: 2 * tp.sum(axis) / (pred.sum(axis) + gold.sum(axis)),
        paired=True,
        n_resamples=3000,
        rng=generator,
    )
    assert mean_score(bootstrap(counts, f1)).standard_error == pytest.approx(reference.standard_error, rel=0.05)
