"""What an ``@`` in the name of an encoder means.

``NAME@READING``, such as ``conch@lazyslide``, ``h0-mini@cls`` or ``h-optimus-0@mean``, is an
encoder of its own: other features of the same network. ``NAME@MAKER`` is the encoder NAME, whose
features another program made (``--features-from``).
"""

from __future__ import annotations

MAKERS = ("trident", "clam", "hest", "histokit")


def split_maker(name: str) -> tuple[str, str]:
    """The encoder, and which of MAKERS made its features; empty where none is named."""
    encoder, _, tag = name.rpartition("@")
    return (encoder, tag) if tag in MAKERS else (name, "")
