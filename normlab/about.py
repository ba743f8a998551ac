"""What the reference table says of a method: title, formula, source, property, and its test."""

from dataclasses import dataclass


@dataclass(frozen=True)
class About:
    """One row of docs/norms.md, kept beside the thing it describes.

    Args:
        title: the method's name as the field writes it.
        formula: in one line of plain text, in the catalogue's notation.
        source: authors and year, arXiv id, and equation or section; "unconfirmed: …" where a fact
            of it was read in no primary text.
        property: what distinguishes a right implementation from a wrong one, in one sentence.
        test: the test of that property: "tests/norms/test_walk.py::test_name".
    """

    title: str
    formula: str
    source: str
    property: str
    test: str
