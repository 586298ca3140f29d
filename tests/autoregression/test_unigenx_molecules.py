"""Molecules as sequences: nothing is lost, frames are of the shape alone, and molecules are learned by heart."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch

from unisci.autoregression.frames3d import own_frame, random_rotation
from unisci.autoregression.molecule_sequences import (
    ATOM,
    BOS,
    COORD,
    EOS,
    PROPERTY,
    Layout,
    Property,
    begin,
    place,
    positions,
    words_of,
    write,
)
from unisci.autoregression.unigenx import UniGenXConfig
from unisci.autoregression.unigenx_generator import conformers, generate
from unisci.autoregression.unigenx_molecules import MoleculeUniGenX
from unisci.autoregression.word_drawing import nucleus
from unisci.domains.molecule import Molecule, MoleculeError
from unisci.domains.smiles_words import spell
from unisci.domains.spelling import Spelling
from unisci.networks.sequence_transformer import SequenceTransformerConfig
from unisci.rng import Rng
from unisci.training.fit import FitConfig, fit

SMALL = UniGenXConfig(SequenceTransformerConfig(width=16, layers=2, heads=2), head_width=16, head_depth=2)
GAP = (Property("gap", 5.0, 2.0),)


def in_space(smiles: str, seed: int = 0) -> Molecule:
    from rdkit.Chem import AllChem

    mol = Molecule.from_smiles(smiles, hydrogens=True).rdkit
    AllChem.EmbedMolecule(mol, randomSeed=seed + 1)
    AllChem.MMFFOptimizeMolecule(mol)
    return Molecule.from_rdkit(mol, hydrogens=True)


ETHANOL, NITRILE, RING, WATER = (in_space(s) for s in ("CCO", "N#CC#CC", "c1ccoc1", "O"))
MOLECULES = [ETHANOL, NITRILE, RING, WATER]
SPELLINGS = [spell(m) for m in MOLECULES]
WORDS = words_of(SPELLINGS)
LAYOUTS = [Layout(WORDS, offsets=o, framed=f) for o in (True, False) for f in (True, False)]
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda v: f"offsets={v.offsets} framed={v.framed}")


def model(layout: Layout = LAYOUTS[0], std: float = 0.1) -> MoleculeUniGenX:
    torch.manual_seed(0)
    m = MoleculeUniGenX(SMALL, layout)
    for p in m.parameters():
        torch.nn.init.normal_(p, std=std)
    return m.eval()


def distances(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x[:, None] - x, axis=-1)


def test_words_of_spellings():
    assert WORDS == ("C", "c", "#", "1", "O", "N", "o")


def test_what_a_molecule_says():
    layout = Layout(WORDS, GAP)
    batch = write(SPELLINGS[:1] + SPELLINGS[3:], layout, np.array([[7.0], [2.0]]))
    names = np.array(layout.vocabulary, object)
    sites = ["C", "C", "O", *["<h>"] * 6]
    assert names[batch.state["word"][0]].tolist() == [
        *("<bos>", "<gap>", "<gap>", "C", "C", "O", "<coord>"),
        *sites,
        "<eos>",
    ]
    assert names[batch.state["word"][1][batch.mask[1]]].tolist() == [
        *("<bos>", "<gap>", "<gap>", "O", "<coord>", "O", "<h>", "<h>", "<eos>")
    ]
    assert batch.given["slot"][1].tolist() == [0, 0, PROPERTY, 0, 0, ATOM, ATOM, ATOM, 0] + [0] * 8
    assert batch.given["up"][0].tolist() == [0] * 7 + [0, 1, 1, 3, 4, 5, 5, 6, 6] + [0]
    assert batch.given["back"][0].tolist() == [0] * 7 + [4, 4, 4, 7, 8, 9, 9, 10, 10] + [0]
    assert batch.state["value"][:, 2].tolist() == [[1, 0, 0], [-1.5, 0, 0]]
    own = SPELLINGS[0].positions
    np.testing.assert_allclose(batch.state["value"][0, 7:16], own - own[0], atol=1e-5)
    assert (names[BOS], names[EOS], names[COORD]) == ("<bos>", "<eos>", "<coord>")


def test_writing_is_checked():
    with pytest.raises(ValueError, match=r"words \['Cl'\] are not in the layout"):
        write([spell(Molecule.from_smiles("CCl"))], LAYOUTS[0])
    for values in (None, np.zeros((3, 1)), np.zeros((4, 2))):
        with pytest.raises(ValueError, match=r"values have shape .*, expected \(4, 1\)"):
            write(SPELLINGS, Layout(WORDS, GAP), values)
    with pytest.raises(ValueError, match="need finite numbers, at most one for each of"):
        write(SPELLINGS, Layout(WORDS, GAP), np.full((4, 1), np.nan))
    with pytest.raises(ValueError, match="need finite numbers, at most one for each of"):
        begin(np.zeros((4, 2)), Layout(WORDS, GAP))


@each_layout
def test_positions_are_read_back(layout):
    """Up to a rotation, which keeps the hand: distances and signed volumes are those of the molecule."""
    batch = write(SPELLINGS, layout)
    placed = place(batch, layout, Rng(0, batch.ids))
    out = positions(placed.state["value"].double(), batch, layout)
    for x, atom, s in zip(out.numpy(), (batch.given["slot"] == ATOM).numpy(), SPELLINGS, strict=True):
        assert np.abs(distances(x[atom]) - distances(s.positions)).max() < 2e-3
        assert np.abs(x[~atom]).max() == 0 and np.abs(x[atom][0]).max() == 0
        v, w = (np.linalg.det(y[1:4] - y[0]) if len(y) > 3 else 0 for y in (x[atom], s.positions))
        assert v == pytest.approx(w, abs=5e-3)


def test_free_numbers():
    """The first atom is known, and in a frame of its own the zeros of the next two."""
    batch = write(SPELLINGS, Layout(WORDS, GAP), np.zeros((4, 1)))
    for layout, expected in ((LAYOUTS[0], [0, 1, 2, 3, 3]), (LAYOUTS[1], [0, 3, 3, 3, 3])):
        layout = dataclasses.replace(layout, properties=GAP)
        placed = place(batch, layout, Rng(0, batch.ids))
        assert placed.given["free"].sum(-1)[0, 7:12].tolist() == expected
        assert placed.given["free"].sum(-1)[0, :7].tolist() == [0, 0, 1, 0, 0, 0, 0]
        known = ~placed.given["free"] & (placed.given["slot"] == ATOM)[..., None]
        assert bool((placed.state["value"][known] == 0).all())
        assert torch.equal(placed.state["word"] % len(layout.vocabulary), batch.state["word"])


def test_properties_that_are_not_given_are_drawn():
    layout = Layout(WORDS, (*GAP, Property("mu", -1.0, 3.0)))
    head = begin(np.array([[7.0], [2.0]]), layout)
    assert head.given["free"].int().tolist() == [[[0] * 3] * 4 + [[1, 0, 0]]] * 2
    assert head.state["value"][:, :, 0].tolist() == [[0, 0, 1, 0, 0], [0, 0, -1.5, 0, 0]]
    assert head.state["word"].tolist() == [[BOS, 4, 4, 5, 5]] * 2 and layout.vocabulary[4:6] == ("<gap>", "<mu>")
    rng = Rng(0, torch.arange(2))
    drawn, both = (
        model(layout).draw_values(np.array([[7.0], [2.0]]), rng, 4),
        model(layout).draw_values(np.zeros((2, 0)), rng, 4),
    )
    assert drawn[:, 0].tolist() == [7, 2] and len({*drawn[:, 1], *both.flat, 5.0, -1.0}) == 8
    plain = model(Layout(WORDS, (Property("gap"), Property("mu")))).draw_values(np.zeros((2, 0)), rng, 4)
    np.testing.assert_allclose(both, plain * [2, 3] + [5, -1], atol=1e-5)


def test_conformers_are_told_the_values():
    m, rng = model(Layout(WORDS, GAP)), Rng(0, torch.arange(1))
    low, high, again = (conformers(m, [ETHANOL], rng, np.array([[v]]), 4)[0].positions for v in (3.0, 8.0, 3.0))
    assert np.array_equal(low, again) and np.abs(low - high).max() > 1e-5


def test_a_shape_has_one_sequence_in_its_own_frame():
    """Turned and moved it is the same; its mirror image differs."""
    turn = random_rotation(Rng(3, torch.arange(4))).double().numpy()
    moved = [dataclasses.replace(s, positions=s.positions @ r + 5) for s, r in zip(SPELLINGS, turn, strict=True)]
    mirror = [dataclasses.replace(s, positions=-s.positions) for s in SPELLINGS]
    for layout in (LAYOUTS[0], LAYOUTS[2]):
        a, b, c = (place(write(s, layout), layout).state["value"] for s in (SPELLINGS, moved, mirror))
        assert float((a - b).abs().max()) < 1e-4
        assert float((a - c)[0].abs().max()) > 0.1 and float((a - c)[3].abs().max()) < 1e-4


def test_frames_are_rotations():
    x = torch.zeros(5, 6, 3)
    x[0, 2], x[0, 3] = torch.tensor([0.0, 2, 0]), torch.tensor([0.0, 3, 1e-3])
    x[0, 4] = torch.tensor([1.0, 1, 1])
    x[1, 2] = torch.tensor([1.0, 1, 1])
    x[2, 5] = torch.tensor([0.0, 0, 1])
    x[3] = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    x[3, :2] = 0
    frame = own_frame(x, torch.tensor([1, 1, 5, 1, 1]))
    torch.testing.assert_close(frame.transpose(1, 2) @ frame, torch.eye(3).expand(5, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(frame), torch.ones(5))
    out = x @ frame
    assert out[0, 2].tolist() == [2, 0, 0] and float(out[0, 4, 1]) > 1 and abs(float(out[0, 4, 2])) < 1e-6
    assert float(out[1, 2, 0]) == pytest.approx(3**0.5) and float(out[3, 2, 0]) > 0 and float(out[3, 3, 1]) > 0
    assert float(out[3, 2, 1:].abs().max()) < 1e-6 and abs(float(out[3, 3, 2])) < 1e-6


def test_rotations_are_haar():
    """Of 20,000 the mean of R_ij is 0, of R_ij R_kl is d_ik d_jl / 3, of tr R squared is 1."""
    r = random_rotation(Rng(0, torch.arange(20_000)))
    flat = r.flatten(1)
    assert float(flat.mean(0).abs().max()) < 0.02
    torch.testing.assert_close(flat.T @ flat / len(r), torch.eye(9) / 3, atol=0.015, rtol=0)
    torch.testing.assert_close(torch.linalg.det(r), torch.ones(len(r)))
    assert float(r.diagonal(dim1=1, dim2=2).sum(1).square().mean()) == pytest.approx(1, abs=0.03)


@each_layout
def test_the_loss_teaches_every_weight_and_an_example_is_its_own(layout):
    layout = dataclasses.replace(layout, properties=GAP)
    m, batch = model(layout), write(SPELLINGS, layout, np.arange(4.0)[:, None])
    loss = m.loss(batch, Rng(0, batch.ids))
    loss.backward()
    assert bool(loss.isfinite()) and not torch.equal(m.loss(batch, Rng(1, batch.ids)), loss)
    dull = [k for k, p in m.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert dull == []
    rows = torch.tensor([2])
    alone = place(batch[rows].trim(int(batch.sites[2])), layout, Rng(0, rows)).state["value"]
    whole = place(batch, layout, Rng(0, batch.ids)).state["value"][rows, : int(batch.sites[2])]
    torch.testing.assert_close(alone, whole, rtol=0, atol=1e-6)
    again = place(batch, layout, Rng(5, batch.ids)).state["value"]
    assert torch.equal(again, place(batch, layout, Rng(0, batch.ids)).state["value"]) == layout.framed


@each_layout
def test_conformers_depend_on_seed_and_id_alone(layout):
    """Sites stay where they were; a cache changes nothing."""
    m, rng = model(layout, 0.05), Rng(3, torch.tensor([4, 8, 6, 1]))
    out = conformers(m, MOLECULES, rng, steps=4)
    for a, b in zip(out, MOLECULES, strict=True):
        assert a.atoms == b.atoms and np.array_equal(a.bonds, b.bonds) and a.conformers == 1
        assert np.abs(a.positions[0].mean(0)).max() < 1e-6 and distances(a.positions[0]).max() > 0.5
    alone = conformers(m, [RING.with_positions(None)], rng[torch.tensor([2])], steps=4)[0]
    assert np.abs(alone.positions - out[2].positions).max() < 1e-4
    order = np.random.default_rng(0).permutation(len(RING.atoms))
    other = Molecule(tuple(RING.atoms[k] for k in order), RING.bonds[np.ix_(order, order)])
    shuffled = conformers(m, [other], rng[torch.tensor([2])], steps=4)[0]
    drawn = m.draw_positions([spell(other)], np.zeros((1, 0)), rng[torch.tensor([2])].at(2), 4)[0]
    np.testing.assert_allclose(spell(shuffled).positions, drawn, atol=1e-6)
    batch = write(SPELLINGS, layout)
    placed = dataclasses.replace(place(batch, layout), ids=rng.ids)
    on, off = (m.sequence.draw(placed, rng, 4, cached=c).state["value"] for c in (True, False))
    torch.testing.assert_close(on, off, rtol=0, atol=1e-5)


def test_numbers_of_rows_are_checked():
    m, rng = model(), Rng(0, torch.arange(2))
    with pytest.raises(ValueError, match="4 molecules for 2 samples"):
        conformers(m, MOLECULES, rng)
    for values in (np.zeros((3, 0)), np.zeros(2)):
        with pytest.raises(ValueError, match="for 2 samples: give one row for each"):
            generate(m, rng, values)
    with pytest.raises(MoleculeError, match="no spelling"):
        conformers(m, [Molecule(("C", "F"), np.array([[0, 3], [3, 0]], np.int8))] * 2, rng)


def test_words_that_are_no_molecule_are_rows_with_a_reason():
    """An untrained model; every sample depends on its seed and id alone."""
    m = model(dataclasses.replace(LAYOUTS[0], properties=GAP), 0.05)
    rng = Rng(0, torch.arange(60))
    rows = generate(m, rng, limit=6, steps=2)
    reasons = {r.reason for r in rows if r.molecule is None}
    assert len(rows) == 60 and {"unfinished after 6 words", "RDKit cannot parse it"} <= reasons
    good = [i for i, r in enumerate(rows) if r.molecule is not None]
    assert good and all(rows[i].reason is None and rows[i].molecule.conformers == 1 for i in good)
    assert all(r.molecule is None or r.molecule.explicit for r in rows)
    assert all(set(r.words) <= set(WORDS) and len(r.words) <= 6 for r in rows)
    pick = torch.tensor([good[-1], good[0], 3])
    for one, k in zip(generate(m, rng[pick], limit=6, steps=2), pick.tolist(), strict=True):
        assert one.words == rows[k].words and one.reason == rows[k].reason
        assert one.values == pytest.approx(rows[k].values, abs=1e-4)
        if one.molecule is not None:
            assert np.abs(one.molecule.positions - rows[k].molecule.positions).max() < 1e-3
    given = generate(m, rng[pick], np.array([[1.0], [2.0], [3.0]]), hydrogens=False, limit=6, steps=2)
    assert [r.values for r in given] == [(1.0,), (2.0,), (3.0,)]
    assert all(r.molecule is None or "H" not in r.molecule.atoms for r in given)
    assert generate(m, Rng(0, torch.arange(1)), np.zeros((1, 1)), limit=1, steps=2)[0].reason is not None


def learn(spellings: list[Spelling], layout: Layout, steps: int, values: np.ndarray | None = None) -> MoleculeUniGenX:
    torch.manual_seed(0)
    config = dataclasses.replace(
        SMALL, trunk=SequenceTransformerConfig(width=32, layers=2, heads=2), head_width=64, smoothing=0.0, draws=8
    )
    data = write(spellings * 8, layout, None if values is None else np.tile(values, (8, 1)))
    fitting = FitConfig(steps, batch_size=16, lr=8e-3, ema=0.95, warmup=10, checkpoint_every=0, weight_decay=0)
    return fit(MoleculeUniGenX(config, layout), data, fitting, progress=False).eval()


def test_it_learns_two_molecules_and_their_values():
    """Given the value it draws its molecule, lengths of bonds within 0.05 A; and from nothing both."""
    chosen, values = [in_space("CO"), in_space("C#N")], np.array([[3.0], [8.0]])
    spellings = [spell(m) for m in chosen]
    m = learn(spellings, Layout(words_of(spellings), GAP), 300, values)
    rng = Rng(0, torch.arange(20))
    rows = generate(m, rng, np.repeat(values, 10, 0), limit=5, law=lambda x: nucleus(x, 0.7, 0.9))
    assert [r.molecule and r.molecule.smiles for r in rows] == ["CO"] * 10 + ["C#N"] * 10
    for row, spelling in zip(rows, np.repeat(spellings, 10), strict=True):
        x, child = row.molecule.positions[0], np.arange(1, len(spelling))
        lengths = [np.linalg.norm(y[child] - y[spelling.parents[1:]], axis=1) for y in (x, spelling.positions)]
        assert np.median(np.abs(lengths[0] - lengths[1])) < 0.05
    free = generate(m, rng, limit=5)
    smiles = [r.molecule and r.molecule.smiles for r in free]
    assert min(smiles.count(s) for s in ("CO", "C#N")) >= 3
    mean = {s: np.mean([r.values[0] for r, t in zip(free, smiles, strict=True) if s == t]) for s in ("CO", "C#N")}
    assert mean["CO"] < 5 and mean["C#N"] > 6
    found = conformers(m, chosen, Rng(1, torch.arange(2)), values)
    for a, b in zip(found, chosen, strict=True):
        bonded = b.bonds > 0
        assert np.abs(distances(a.positions[0]) - distances(b.positions[0]))[bonded].max() < 0.05


def test_training_and_drawing_positions_need_no_rdkit():
    code = "import sys, unisci.autoregression.unigenx_molecules; print('rdkit' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"
