"""The frames of an XYZ file, and how reading goes on after one that is broken."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unisci.domains.xyz import frames

A = "2\nfirst\nH 0 0 0\nCl 1.5 -2e-1 .25\n"
B = "1\nlast\nHe 0 0 1\n"


def test_frames():
    one, two = frames(f"\n{A}\n\n{B}\n")
    assert one.numbers == (1, 17) and one.comment == "first" and one.error is None
    assert np.array_equal(one.positions, [[0, 0, 0], [1.5, -0.2, 0.25]])
    assert two.numbers == (2,) and two.positions.shape == (1, 3) and two.comment == "last"
    assert list(frames("")) == [] == list(frames("\n \n"))


def test_elements_are_symbols_in_any_case_or_numbers_and_more_columns_are_left():
    (frame,) = frames(" 3 \r\n\r\nCL 0 0 0 9 x\r\n17 1 0 0\r\n\tcl\t2 0 0\r\n")
    assert frame.numbers == (17, 17, 17) and frame.positions[:, 0].tolist() == [0, 1, 2] and frame.comment == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("3\nbad\nH 0 0 0\nH 0 0 1\n", "line 9 is not 'element x y z' but '1'"),  # the count of the next frame
        ("1\nbad\nH 0 0 0\nH 0 0 1\n", "line 8 is beyond the 1 atoms of its frame"),
        ("2\n3\nH 0 0 0\nH 0 zero 1\n", "line 8 is not 'element x y z' but 'H 0 zero 1'"),
        ("2\nbad\nH 0 0\nH 0 0 1\n", "line 7 is not 'element x y z' but 'H 0 0'"),
        ("1\nbad\n0 0 0 0\n", "line 7 is not 'element x y z' but '0 0 0 0'"),
        ("1\nbad\n999 0 0 0\n", "line 7 is not 'element x y z' but '999 0 0 0'"),
        ("two\nbad\nH 0 0 0\nH 0 0 1\n", "line 5 is beyond the 2 atoms of its frame"),
        ("0\nbad\n", "no atoms"),
    ],
)
def test_a_broken_frame_is_one_error_and_the_next_one_is_read(text, reason):
    got = list(frames(A + text + B))
    assert [f.error for f in got if f.error] == [reason] or text.startswith("two")
    assert next(f for f in got if f.error).error == reason and got[-1].error is None
    assert got[-1].numbers == (2,) and all(f.positions.shape == (0, 3) for f in got if f.error)


def test_a_file_that_breaks_off_or_is_none():
    assert [f.error for f in frames(A + B[:7])] == [None, "the file ends after 0 of 1 atoms"]
    assert [f.error for f in frames(A + "3\n")] == [None, "the file ends after 0 of 3 atoms"]
    assert [f.error for f in frames("C 0 0 0\nno\n" + A)] == ["line 1 is no number of atoms", None]


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(1, 100), min_size=1, max_size=5),
            st.text(st.sampled_from("0123 ab"), max_size=6),
            st.integers(0, 2),
        )
    )
)
@settings(max_examples=60, deadline=None)
def test_any_frames_with_any_comments_are_read_back(given):
    text = ""
    for numbers, comment, blank in given:
        text += f"{len(numbers)}\n{comment}\n" + "".join(f"{z} {z / 7!r} 0 -1\n" for z in numbers) + "\n" * blank
    got = list(frames(text))
    assert [(list(f.numbers), f.comment, f.error) for f in got] == [(n, c.strip(), None) for n, c, _ in given]
    assert all(np.array_equal(f.positions[:, 0], np.array(n) / 7) for f, (n, _, _) in zip(got, given, strict=True))
