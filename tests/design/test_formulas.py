from unisci.design.formulas import parse_formula


def test_parse_formula():
    assert parse_formula("C6H6O") == {"C": 6, "H": 6, "O": 1}
    assert parse_formula("CH3CH2Cl") == {"C": 2, "H": 5, "Cl": 1} and parse_formula("C2N0") == {"C": 2}
