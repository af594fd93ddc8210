"""How numbers are written in tables. An empty string stands for a value that was not measured."""

from __future__ import annotations

DASH = "–"
"""Shown in place of a value that was not measured."""


def count(value: float | None) -> str:
    """
    >>> count(22568841), count(None)
    ('22,568,841', '')
    """
    return "" if value is None else f"{value:,.0f}"


def decimal(value: float | None) -> str:
    """
    >>> decimal(1234.5), decimal(None)
    ('1,234.50', '')
    """
    return "" if value is None else f"{value:,.2f}"


def scientific(value: float | None) -> str:
    """
    >>> scientific(1.5e-6), scientific(None)
    ('1.5e-06', '')
    """
    return "" if value is None else f"{value:.1e}"


def probability(p: float | None) -> str:
    """
    >>> probability(0.01234), probability(1e-9), probability(None)
    ('0.012', '< 0.001', '')
    """
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def byte_size(value: float | None) -> str:
    """
    >>> byte_size(2_700_000), byte_size(14_000), byte_size(None)
    ('2.6 MiB', '13.7 KiB', '')
    """
    if value is None:
        return ""
    return f"{value / 2**20:.1f} MiB" if value >= 2**20 else f"{value / 2**10:.1f} KiB"


def percent(fraction: float | None) -> str:
    """
    >>> percent(0.03), percent(0.000153), percent(None)
    ('3.00 %', '0.0153 %', '')
    """
    if fraction is None:
        return ""
    return f"{fraction * 100:.2f} %" if fraction >= 0.001 or not fraction else f"{fraction * 100:.3g} %"
