"""The bounds that a series was seen to have, such as no rain or full humidity. Its paths are clipped there: a censored
law (Tobin, 1958, DOI 10.2307/1907382), whose mass beyond a bound lies on it.

The lowest known value is a bound where it is reached again and again: by at least SHARE of the known values, more often
than the value next to it, in SPELLS stretches or more; the highest alike. A step to a new level is one stretch only.
"""

import numpy as np

SHARE, SPELLS = 0.01, 3


def bounds(y: np.ndarray) -> np.ndarray:
    """Bounds (C, 2) of a series y (T, C), nan where missing: lowest and highest, -inf and inf where there is none."""
    known = [column[~np.isnan(column)] for column in y.T]
    return np.array([(-_upper(-v), _upper(v)) for v in known])


def _upper(v: np.ndarray) -> float:
    """The upper bound of values v (T,), inf where they have none."""
    if not len(v):
        return np.inf
    at = v == v.max()
    spells = at[0] + (at[1:] & ~at[:-1]).sum()
    rare = at.sum() < SHARE * len(v) or spells < SPELLS or at.all()
    return np.inf if rare or at.sum() <= (v == v[~at].max()).sum() else float(v.max())
