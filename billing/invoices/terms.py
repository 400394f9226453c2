"""The terms of tax as a line of a document says them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LineTax:
    """By which terms a line is taxed; an empty jurisdiction: by none."""

    jurisdiction: str
    rate_basis_points: int
    treatment: str
    note: str


UNTAXED = LineTax(jurisdiction="", rate_basis_points=0, treatment="standard", note="")
