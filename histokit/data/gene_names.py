"""How a gene is written for people: its symbol, and its id beside it."""

from __future__ import annotations


def names_of(gene: str, symbol: str, gene_id: str) -> tuple[str, str]:
    """What to call a gene, and what else it is called.

    Args:
        gene: its name in the panel.
        symbol: its symbol, empty where unknown.
        gene_id: its Ensembl id, empty where unknown.

    Returns:
        The symbol, or the panel's name without one; and the id, or the panel's name where that is
        another; empty without any.
    """
    name = symbol or gene
    return name, next((other for other in (gene_id, gene) if other and other != name), "")


def full_name(gene: str, symbol: str, gene_id: str) -> str:
    """``ERBB2 (ENSG00000141736)``, or the one name that is known; arguments as ``names_of``."""
    name, other = names_of(gene, symbol, gene_id)
    return f"{name} ({other})" if other else name
