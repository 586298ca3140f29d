"""What came to be, at the times of a forecast."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from unisci.domains.series import Panel
from unisci.domains.series_frames import melt_wide, read_frame


def values_at(truth, panel: Panel, times: Sequence[pd.Index]) -> np.ndarray:
    """The values of truth for the series of panel at `times`, one index (h,) for each: (n, h, C), nan where there is
    none.

    truth: a Panel, or a table with the columns of the user's; where that had no column of times, the rows of truth are
    the steps of `times`, from the first on. Raises ValueError for other channels, and as `read_frame` does.
    """
    counted = not isinstance(truth, Panel) and panel.columns.time is None
    actual = truth if isinstance(truth, Panel) else _read(truth, panel)
    if actual.channels != panel.channels:
        raise ValueError(f"truth has channels {actual.channels} where the forecast has {panel.channels}")
    found = np.full((len(panel), len(times[0]), len(panel.channels)), np.nan)
    known = {s.name: s for s in actual}
    for values, s, ahead in zip(found, panel, times, strict=True):
        if s.name in known:
            one = known[s.name]
            at = np.arange(len(ahead)) if counted else one.times.get_indexer(ahead)
            there = (at >= 0) & (at < len(one))
            values[there] = one.y[at[there]]
    return found


def _read(truth, panel: Panel) -> Panel:
    columns = panel.columns
    if columns.wide:
        return melt_wide(truth, panel.freq, time=columns.time)
    return read_frame(truth, panel.freq, id=columns.id, time=columns.time, targets=columns.targets)
