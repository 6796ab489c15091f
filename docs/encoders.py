"""Write docs/encoders.md from the registry.

python docs/encoders.py
"""

from __future__ import annotations

from pathlib import Path

from histokit.extract.registry import REGISTRY, page_of

PAGE = Path(__file__).with_suffix(".md")
HEAD = """# Encoders

`run_extract.py --encoder NAME --weights FILE_OR_FOLDER`. FILE is the file of the column below, as
it was downloaded; a folder may hold it under that name. Without `--weights` the Hugging Face hub's
cache is looked into (`HF_HOME`), then the hub itself (`HF_TOKEN` for gated models; not with
`HF_HUB_OFFLINE=1`). Names and shapes of all tensors have to fit. `python -m histokit.doctor` lists
what is at hand, and `--check-weights FILE` tells which encoder a file is of.

Patches are read at their microns (`--patch-um`, 112 by default; CONCH was trained on 256) and
resampled once, bicubic, to the pixels of the column: no resizing or cropping follows. On CUDA the
precision is the authors' own (`--precision`), elsewhere float32. What makes two features comparable
(checksum of the file, transform, pooling, precision) is stored with them, and training refuses a
mixture.

`--features best` (for `efficientnet-lite0`) is 24 passes a spot: .32 s instead of .016 s on two
cores (`run_extract.py --slides SKCM-2` of the demo's cohort, as it prints).

Features that TRIDENT, CLAM or HEST made are taken as they are: `--features-from FOLDER --encoder
NAME`, one `SLIDE.h5` each; they are called `NAME@trident` (or `@clam`, `@hest`) and mix with no
others. A spot takes the patch that contains its center. Ours have the same layout.

Beside these: `efficientnet-lite0`, `-lite1` and `-lite2` (their ImageNet weights come with the
installation), `efficientnet-lite0-random`, `hed` (no weights), and any model of timm as
`timm:NAME`.

"""
TAIL = """
Libraries disagree on some of them; `name@reading` are the other readings, with the same file.
Counts are of the network that gives the features. Built at full size without memory and compared
with these figures in the tests; run on small networks of random weights under the authors' names,
for no gated weights were at hand.

Not here: Hibou, MUSK, KEEP and GenBio-PathFM, whose networks are code on the hub.
"""


def table() -> str:
    """One row an encoder."""
    lines = [
        "| name | dimension | pixels | parameters | on CUDA | file | license | features |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in REGISTRY.items():
        pool = {"token": "class token", "token_and_mean": "class token and mean of patch tokens"}
        what = entry.note or pool.get(entry.pool.__name__, "as published")
        lines.append(
            f"| `{name}` | {entry.dim:,} | {entry.size} | {entry.parameters / 1e6:,.1f} M "
            f"| {entry.precision} | [{' or '.join(entry.files)}]({page_of(entry)}) "
            f"| {entry.license} | {what} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(HEAD + table() + TAIL)
