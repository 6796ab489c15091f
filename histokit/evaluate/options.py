"""Options of an evaluation."""

from __future__ import annotations

import dataclasses

from histokit.core.options import Checked, option, required
from histokit.core.precision import PRECISIONS


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """Options of an evaluation."""

    run: list[str] = required("folders that run_train.py wrote")
    data: str | None = option(
        None, "folder that run_extract.py wrote", shown="the one a run was trained on"
    )
    out: str | None = option(
        None,
        "folder of the evaluation of one run, or of the comparison of several",
        shown="RUN/eval (eval-context with --context-genes), or comparison beside the first run",
    )
    num_hvg: int = option(
        50, "genes of the headline PCC, most variable on training slides first", least=1
    )
    hvg_file: str | None = option(
        None,
        "file with one gene a line that replaces that choice, or a folder with "
        "CODE/var_50genes.json for each oncotree code, as HEST-Bench has them",
    )
    protocol: str = option(
        "histokit",
        "also score as a paper does: hest-bench, histoprism, stpath or stem-topk, which fix "
        "target, genes, pooling and what is undefined; --hvg-file replaces its genes",
        choices=("histokit", "hest-bench", "histoprism", "stpath", "stem-topk"),
    )
    context_genes: str | None = option(
        None,
        "show stpath the measured genes of some spots of each test slide, which are then left out "
        "of every figure: a share of the spots, such as 0.05, or a CSV slide_id,barcode",
    )
    context_seed: int = option(0, "seed of that draw of spots", least=0, most=2**32 - 1)
    published: str | None = option(
        None, "also list published results for this task (e.g. IDC) and mark the comparable ones"
    )
    gene_sets: list[str] = option(
        [],
        "pathways to score: GMT files, plain or gzipped, or names of libraries for gseapy",
        shown="none",
    )
    curate: bool = option(
        True,
        "take of each file sets of 50 to 100 genes of the panel that overlap little, as GPC does; "
        "Hallmark is never filtered; other limits: python -m histokit.evaluate.curation",
    )
    signature: list[str] = option(
        [], "signatures to score: files with one gene a line, or pam50", shown="none"
    )
    clusters: bool = option(
        False, "compare clusters of predicted expression with the cancer types (AMI, ARI)"
    )
    predictions: bool = option(True, "write predicted expression as .h5ad")
    predict_genes: str = option(
        "hvg",
        "genes in those files: hvg, those of the headline PCC, or all, 8 bytes a spot and gene",
        choices=("hvg", "all"),
    )
    pictures: bool = option(True, "draw expression on tissue")
    max_pictures: int = option(6, "slides drawn at most, one a fold", least=0)
    device: str = option(
        "cpu", "torch device on which networks run, such as cpu or cuda", group="machine"
    )
    precision: str = option(
        "float32",
        "of the networks' matrix products; scores are computed from what comes of them, in "
        "float32; tf32 is for CUDA",
        choices=PRECISIONS,
        group="machine",
    )
