import numpy as np
import pytest

from unisci.domains.synthetic_series import _season, mixtures


def test_a_series_depends_on_the_seed_and_its_number_alone():
    few, many = mixtures(3, 100, 1), mixtures(7, 100, 1)
    for a, b in zip(few, many, strict=False):
        assert a.name == b.name and np.array_equal(a.y, b.y)
    assert not np.array_equal(mixtures(1, 100, 2).series[0].y, few.series[0].y)
    assert not np.array_equal(few.series[0].y, few.series[1].y)


def test_seasons_repeat_and_noise_is_of_all_kinds():
    rng = np.random.default_rng(0)
    for m in (5, 24):
        pattern = _season(rng, 3 * m + 2, m)
        assert np.array_equal(pattern[m:], pattern[:-m]) and pattern.std() > 0
    y = np.stack([s.y[:, 0] for s in mixtures(64, 600)])
    assert np.isfinite(y).all() and (y.std(1) > 0).all()
    z = (y - y.mean(1, keepdims=True)) / y.std(1, keepdims=True)
    correlation = (z[:, 1:] * z[:, :-1]).mean(1)
    assert correlation.min() < 0.5 and correlation.max() > 0.99


@pytest.mark.parametrize(("n", "steps"), [(0, 10), (2, 0)])
def test_sizes_are_checked(n, steps):
    with pytest.raises(ValueError, match="at least 1"):
        mixtures(n, steps)
