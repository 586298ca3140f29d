"""The score of a denoiser and the entries that count, by hand."""

import pytest
import torch

from tests.oracles import three_modes
from unisci.batch import Field
from unisci.processes.categorical import absorbing
from unisci.processes.gaussian import EDM, VE, VP
from unisci.processes.poisson_flow import StudentT
from unisci.solvers.score import check_gaussian, counted, exists, score_of, site_axes, time_for, total

F64 = torch.float64


class Known:
    def __init__(self, process, schema=None):
        self.process, self.schema = process, schema


@pytest.mark.parametrize("process", [VP(), VE()])
def test_score(process):
    """The gradient of the log density; a time for each entry; 0 without noise, whatever the denoiser says."""
    oracle, t = three_modes(process), torch.tensor(0.4, dtype=F64)
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=F64).requires_grad_()
    (want,) = torch.autograd.grad(oracle.logp(x, t).sum(), x)
    clean = oracle(x, t).detach()
    torch.testing.assert_close(score_of(clean, x.detach(), process, t), want)
    mixed = torch.stack([t, 0 * t]).expand(8, 2)
    got = score_of(clean, x, process, mixed)
    torch.testing.assert_close(got[:, 0], want[:, 0])
    assert (got[:, 1] == 0).all()
    assert torch.autograd.grad(got.sum(), x)[0].isfinite().all()


def test_what_counts():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    site, pair, whole = torch.zeros(2, 3, 2), torch.zeros(2, 3, 3, 2), torch.zeros(2)
    axes = {"site": 1, "pair": 2, "whole": 0}
    x = {"site": site, "pair": pair, "whole": whole}
    counts = counted(x, axes, mask)
    assert {k: v.shape for k, v in counts.items()} == {k: v.shape for k, v in x.items()}
    assert total(counts).tolist() == [2 * 2 + 2 * 1 + 1, 3 * 2 + 2 * 3 + 1]
    assert total(counted(x, axes, None)).tolist() == [13, 13] and counted(whole, 0, None).tolist() == [1, 1]
    assert counts["pair"][0, 1, 0].tolist() == [1, 1] and counts["pair"][0, 0, 1].tolist() == [0, 0]
    there = exists(pair, 2, mask)[..., 0]
    assert there.sum((1, 2)).tolist() == [2, 6] and torch.equal(there, there.transpose(1, 2))


def test_times():
    t = torch.tensor(0.3, dtype=F64)
    assert time_for(t, torch.zeros(2)).dtype == torch.float32
    assert time_for(t, torch.zeros(2, dtype=torch.int64)) == t
    assert time_for(t.expand(2), torch.zeros(2)).tolist() == pytest.approx([0.3, 0.3])
    x = {"atom": torch.zeros(2, dtype=torch.int64), "position": torch.zeros(2)}
    assert time_for(t, x).dtype == torch.float32
    both = time_for({"atom": t, "position": t / 2}, x)
    assert both["atom"] == t and both["position"].item() == pytest.approx(0.15)
    assert both["position"].dtype == torch.float32


def test_what_is_refused():
    check_gaussian(Known({"a": VP(), "b": absorbing(3)}), "it", (type(absorbing(3)),))
    with pytest.raises(ValueError, match="it needs the score, which field 'b' does not have"):
        check_gaussian(Known({"a": VP(), "b": absorbing(3)}), "it")
    with pytest.raises(ValueError, match="field 'x' does not have: its process StudentT"):
        check_gaussian(Known(StudentT(EDM(), 8.0)), "it", (type(absorbing(3)),))
    with pytest.raises(ValueError, match=r"fields \['a'\] have no layout"):
        site_axes(Known(VP()), {"a": torch.zeros(2)})
    assert site_axes(Known(VP(), {"a": Field("pair")}), {"a": torch.zeros(2, 3, 3)}) == {"a": 2}
