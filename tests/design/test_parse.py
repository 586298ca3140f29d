import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisci.design.atoms import Composition, Contains, Formula, Keep, Without
from unisci.design.parse import WANTS, parse, spelled
from unisci.design.targets import Above, Below, Between, Maximize, Target
from unisci.design.wants import wants


@pytest.mark.parametrize(
    "text, where",
    [
        ("Between(logp, 1, 2) & Above(qed, .55)", Between("logp", 1, 2) & Above("qed", 0.55)),
        ("Keep(\"c1ccccc1\")&Without('F')&Contains(N,2)", Keep("c1ccccc1") & Without("F") & Contains("N", 2)),
        (
            "(Below(sa, -1e-2) & Contains(N)) & (Above(qed, +0))",
            Below("sa", -0.01) & Contains("N") & Above("qed", 0),
        ),
        (" Target(tpsa, 40, tolerance=5)\n", Target("tpsa", 40, 5)),
        ("Between(low=1, prop=qed, high=2)", Between("qed", 1, 2)),
        ("Maximize('qed', temperature=.05) & Formula(C6H6O)", Maximize("qed", 0.05) & Formula("C6H6O")),
        ("Composition(C4N) & Contains(N, least=2.0)", Composition("C4N") & Contains("N", 2)),
    ],
)
def test_a_text_is_the_wants_that_it_says_in_its_order(text, where):
    assert parse(text) == wants(where)
    assert parse(spelled(text)) == wants(where) and spelled(spelled(text)) == spelled(text)


def test_every_want_can_be_written():
    text = {
        "Between": "qed, 0, 1", "Above": "qed, 0", "Below": "qed, 1", "Target": "qed, 1, 1", "Maximize": "qed, 1",
        "Contains": "C", "Without": "C", "Formula": "CH4", "Composition": "C", "Keep": "C",
    }  # fmt: skip
    assert text.keys() == WANTS.keys()
    assert all(str(parse(f"{name}({words})")) for name, words in text.items())


def test_one_spelling_for_equal_wants_and_another_for_others():
    assert spelled("Above(qed,.50) & Contains(N)") == spelled('Above( "qed", 5e-1 )&(Contains("N", least = 1))')
    assert spelled("Above(qed, .55)") == "Above('qed', 0.55)"
    assert spelled("Above(qed, 0.1234567)") != spelled("Above(qed, 0.1234568)")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "cannot read ''"),
        ("Above(qed, .5", r"cannot read 'Above\(qed, .5'.*never closed"),
        ("Above(qed, .5) &", "cannot read"),
        ("Above(qed, .5); Below(qed, 1)", "cannot read"),
        ("Keep(CC(=O)O)", "cannot read"),
        ("a\0b", "cannot read"),
        ("Above(qed, " + "9" * 5000 + ")", "cannot read"),
        ("(" * 500, "cannot read"),
        ("-" * 5_000 + "1", "cannot read"),
        ("Without(F)&" * 5_000 + "Without(F)", "cannot read"),
        ("Above", "'Above' is no want: write Between"),
        ("qed > .5", "'qed > .5' is no want"),
        ("Above(qed, .5) and Below(logp, 2)", r"'Above\(qed, .5\) and Below\(logp, 2\)' is no want"),
        ("Above(qed, .5) | Below(logp, 2)", "is no want: write .* joined by &"),
        ("Above(qed, .5) & 3", "'3' is no want"),
        ("Foo(qed, 1)", "'Foo' is not known: write Between, Above"),
        ("Interval(qed, 1)", "'Interval' is not known"),
        ("os.system('true')", "'os.system' is not known"),
        ("__import__('os')", "'__import__' is not known"),
        ("Above(qed)", r"'Above\(qed\)': missing a required argument: 'value'; write Above\(prop, value\)"),
        ("Above(qed, 1, 2)", "too many positional arguments; write"),
        ("Above(qed, 1, value=1)", "multiple values for argument 'value'"),
        ("Above(qed, 1, high=1)", "unexpected keyword argument 'high'"),
        ("Above(**{})", r"\*\* is not allowed"),
        ("Above(qed, *[1])", r"'\*\[1\]' is no number"),
        ("Above(3, 3)", r"'3' is no name: write Above\(prop, value\)"),
        ("Above(lambda m: m, 1)", "'lambda m: m' is no name"),
        ("Above(f'{1}', 1)", "is no name"),
        ("Above(open('x'), 1)", r"'open\(\\'x\\'\)' is no name|is no name"),
        ("Above(qed, x)", "'x' is no number"),
        ("Above(qed, '1')", "is no number"),
        ("Above(qed, True)", "'True' is no number"),
        ("Above(qed, None)", "'None' is no number"),
        ("Above(qed, 2j)", "'2j' is no number"),
        ("Above(qed, 10**9)", r"'10\*\*9' is no number"),
        ("Above(qed, --1)", "'--1' is no number"),
        ("Above(qed, 1e999)", "'1e999' is no number"),
        ("Above(qed, -1e999)", "'-1e999' is no number"),
        ("Above(qed, " + "9" * 400 + ")", r"99\.\.\.' is no number"),
        ("Contains(N, 1.5)", "got 1.5"),
        ("Between(logp, 2, 1)", r"no value of logp lies in 2\.\.1"),
        ("Without(C) & Keep(CO)", "cannot both be met"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_clear_line(text, message):
    with pytest.raises(ValueError, match=message) as refused:
        parse(text)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


@given(st.text(max_size=40) | st.text("()&,.'\"[]{}:=*-+1Aabovequd _\\\n", max_size=40))
def test_any_text_is_wants_or_a_value_error(text):
    with contextlib.suppress(ValueError):
        parse(text)
