"""The rules of orbits: what may be taken, by hand, and that whatever is taken stays within them."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unisci.autoregression.orbit_rules import OrbitRules
from unisci.domains.orbit_batches import WyckoffTable
from unisci.domains.wyckoff import Wyckoff

FORMS = {  # multiplicities in the primitive cell: 1, 1, 2, 6, 8; 1, 3, 3; 1, 2, 4; 2
    225: {"a": "0,0,0", "b": "1/2,1/2,1/2", "c": "1/4,1/4,1/4", "e": "x,0,0", "f": "x,x,x"},
    221: {"a": "0,0,0", "c": "0,1/2,1/2", "d": "1/2,0,0"},
    47: {"c": "0,0,1/2", "i": "x,0,0", "y": "x,y,0"},
    2: {"i": "x,y,z"},
}
TABLE = WyckoffTable(tuple(Wyckoff(g, k, form) for g in sorted(FORMS) for k, form in FORMS[g].items()))
NAMES = [f"{p.group}{p.letter}" for p in TABLE.positions]
RULES = OrbitRules(TABLE)
CAPITAL = WyckoffTable((Wyckoff(47, "A", "x,y,z"), Wyckoff(47, "i", "x,0,0")))


def rows(*names: str) -> torch.Tensor:
    return torch.tensor([[NAMES.index(n) for n in names]], dtype=torch.long).reshape(1, len(names))


def allowed(group: int, species: list[int], counts: list[int], element: list[int], taken: list[str]) -> set[str]:
    """What the orbit after `taken` may be; element: of all orbits, it included."""
    rules = RULES
    wyckoff, z = rows(*taken, "2i"), torch.tensor([element])
    mask = torch.ones_like(z, dtype=torch.bool)
    left = rules.left(z, wyckoff, torch.tensor([species]), torch.tensor([counts]), mask)
    found = rules.allowed(torch.tensor([group]), z, left, rules.before(wyckoff))[0, -1]
    return {NAMES[i] for i in found.nonzero()[:, 0]}


def test_facts_of_the_table():
    rules = OrbitRules(TABLE)
    facts = dict(zip(NAMES, rules.multiplicity.tolist(), strict=True))
    assert [facts[n] for n in ("225a", "225c", "225e", "225f", "221c", "47i", "47y", "2i")] == [1, 2, 6, 8, 3, 2, 4, 2]
    assert [n for n, f in zip(NAMES, rules.fixed, strict=True) if f] == [
        "47c",
        "221a",
        "221c",
        "221d",
        "225a",
        "225b",
        "225c",
    ]
    assert rules.free[NAMES.index("47y")].tolist() == [True, True, False] and len(rules) == len(TABLE)
    assert list(rules.state_dict()) == []


@pytest.mark.parametrize(
    "counts, element, taken, expected",
    [
        ([1, 1], [8], [], {"a", "b"}),
        ([1, 1], [8, 9], ["225a"], {"b"}),
        ([1, 1], [8, 9], ["225b"], {"a"}),
        ([2, 1], [8], [], {"a", "c"}),  # b leaves one, which only a before it can hold
        ([2, 1], [8, 8], ["225a"], {"b"}),
        ([4, 1], [8], [], {"a"}),  # a b c; without a nothing makes four
        ([5, 1], [8], [], set()),  # no fixed position twice
        ([8, 1], [8], [], {"a", "c", "f"}),  # a b e, c e, f
        ([8, 1], [8, 8], ["225c"], {"e"}),
        ([12, 1], [8], [], {"a", "e"}),  # a b c f; a free one as often as one likes
        ([12, 1], [8, 8], ["225e"], {"e"}),
        ([14, 1], [8, 8], ["225e"], {"f"}),
        ([6, 6], [8, 9], ["225e"], {"e"}),
    ],
)
def test_allowed_by_hand(counts, element, taken, expected):
    assert allowed(225, [8, 9], counts, element, taken) == {f"225{letter}" for letter in expected}


def test_a_new_element_starts_at_the_first_letter():
    assert allowed(47, [8, 9], [4, 4], [8, 9], ["47y"]) == {"47i", "47y"}
    assert allowed(47, [8, 9], [8, 4], [8, 8], ["47y"]) == {"47y"}
    assert allowed(47, [8, 9], [5, 1], [8], []) == {"47c"}


def test_capital_letters_have_their_place():
    """ "A" comes before "a", as in the order of sorted orbits."""
    rules = OrbitRules(CAPITAL)
    z, left = torch.tensor([[8]]), torch.tensor([[10]])
    first = rules.allowed(torch.tensor([47]), z, left, torch.tensor([[2]]))
    assert first[0, 0].tolist() == [True, True]
    z, left = torch.tensor([[8, 8]]), torch.tensor([[10, 8]])
    assert rules.allowed(torch.tensor([47]), z, left, torch.tensor([[2, 1]]))[0, 1].tolist() == [False, True]


def sums(group: int) -> set[int]:
    """Sums of sites of one element up to 64, by all choices of fixed positions and whole numbers of the others."""
    positions = [(p.multiplicity, not p.free.any()) for p in TABLE.positions if p.group == group]
    found = {0}
    for m, fixed in positions:
        found = {n + k * m for n in found for k in range(2 if fixed else 65) if n + k * m <= 64}
    return found


def test_possible_groups():
    rules = OrbitRules(TABLE)
    for n in range(65):
        found = rules.possible(torch.tensor([[n, 0]]))[0]
        assert set(found.nonzero()[:, 0].tolist()) == {g for g in FORMS if n in sums(g)}
    both = rules.possible(torch.tensor([[2, 5]]))[0]
    assert set(both.nonzero()[:, 0].tolist()) == {47}


@pytest.mark.parametrize(
    "group, counts, expected",
    [
        (225, [1, 1], True),
        (225, [1, 1, 1], False),  # two positions of one site
        (225, [2, 1, 1], True),
        (225, [2, 2], True),  # c, and a with b
        (225, [2, 2, 1], False),  # each of them could be held beside the others alone
        (225, [5], False),
        (225, [9, 7], True),  # a e c, b e
        (225, [6, 6, 6], True),  # a free one as often as one likes
        (221, [3, 3, 1], True),
        (221, [4, 3], True),
        (221, [3, 3, 3], False),
        (2, [2, 64], True),
        (2, [2, 1], False),
        (47, [], True),
        (99, [1], False),  # no position of the group is known
    ],
)
def test_a_group_holds_all_counts_at_once(group, counts, expected):
    assert RULES.holds(group, counts) is expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.sampled_from(sorted(FORMS)))
def test_a_group_holds_what_a_search_over_all_choices_finds(counts, group):
    positions = [
        (int(m), bool(f))
        for m, f, g in zip(TABLE.multiplicities, RULES.fixed, RULES.of_group, strict=True)
        if g == group
    ]

    @cache
    def found(left: tuple[int, ...], k: int = 0) -> bool:
        if not any(left):
            return True
        if k == len(positions):
            return False
        m, fixed = positions[k]
        takes = [i for i, n in enumerate(left) if n >= m]
        less = (tuple(n - m * (j == i) for j, n in enumerate(left)) for i in takes)
        return found(left, k + 1) or any(found(one, k + fixed) for one in less)

    assert RULES.holds(group, counts) == found(tuple(counts))


def test_left_and_held_and_before():
    rules = OrbitRules(TABLE)
    z, w = torch.tensor([[8, 8, 9, 0]]), torch.cat([rows("225a", "225e", "225b"), torch.zeros(1, 1).long()], 1)
    mask = z > 0
    assert rules.held(w, mask).tolist() == [[1, 6, 1, 0]]
    assert rules.left(z, w, torch.tensor([[8, 9]]), torch.tensor([[7, 1]]), mask).tolist() == [[7, 6, 1, 0]]
    assert rules.before(w).tolist() == [[len(TABLE), *w[0, :3].tolist()]]
    assert rules.before(w[:, :0]).shape == (1, 0)


def test_any_walk_keeps_the_rules():
    """Random choices among what is allowed end in the formula, or nowhere to go."""
    rules, rng, stuck, walks = RULES, np.random.default_rng(0), 0, 0
    for _ in range(60):
        counts = rng.integers(1, 9, rng.integers(1, 4)).tolist()
        species = sorted(rng.choice(np.arange(1, 101), len(counts), replace=False).tolist())
        groups = rules.possible(torch.tensor([counts]))[0].nonzero()[:, 0].tolist()
        if not groups:
            continue
        walks += 1
        group, element, taken = int(rng.choice(groups)), [], []
        while sum(TABLE.multiplicities[NAMES.index(n)] for n in taken) < sum(counts):
            placed = sum(TABLE.multiplicities[NAMES.index(n)] for n in taken)
            element.append(species[int((np.cumsum(counts) <= placed).sum())])
            choices = sorted(allowed(group, species, counts, element, taken))
            if not choices:
                stuck += 1
                break
            taken.append(str(rng.choice(choices)))
        else:
            for z, n in zip(species, counts, strict=True):
                own = [name for name, e in zip(taken, element, strict=True) if e == z]
                assert sum(TABLE.multiplicities[NAMES.index(name)] for name in own) == n and own == sorted(own)
        fixed = [n for n in taken if not TABLE.positions[NAMES.index(n)].free.any()]
        assert len(fixed) == len(set(fixed))
        assert all(TABLE.positions[NAMES.index(n)].group == group for n in taken)
    assert walks > 30 and stuck < 0.5 * walks  # of so few positions, most of them fixed


def test_one_element_always_ends():
    """Where no other element takes positions, nothing that is allowed is a dead end."""
    for group in FORMS:
        for n in sorted(sums(group) - {0})[:12]:
            open_ = [[]]
            while open_:
                taken = open_.pop()
                placed = sum(TABLE.multiplicities[NAMES.index(name)] for name in taken)
                if placed == n:
                    continue
                found = allowed(group, [8], [n], [8] * (len(taken) + 1), taken)
                assert found, (group, n, taken)
                open_ += [[*taken, name] for name in found]
