"""What each slide brings: genes, zeros, spots, scale and features, measured and judged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from histokit.audit.gathering import gathered, on_codes
from histokit.core.files import open_hdf5
from histokit.core.progress import progress_bar
from histokit.core.tables import read_table
from histokit.data.cohort import Cohort, Slide
from histokit.data.placement import nearest_pitch
from histokit.data.technologies import PITCH_UM, technology_kind

# Codes of HEST's metadata, of HEST-Bench and of TCGA, then those HistoPrism fills gaps with.
CANCER_CODES = frozenset(
    "ACYC ALL BLCA CCRCC CESC COAD COADREAD CSCC EPM GBM HCC HGSOC IDC ILC LIHB LNET LUAD LUNG "
    "LUSC LYMPH_IDC PAAD PRAD PRCC READ SCCRCC SKCM SOC BRCA HNSC OV STAD THCA UCEC MEL "
    "Healthy Cancer_Unspecified Diseased_Unspecified Treated_Unspecified".split()
)
_MEASURED = ["outside_image", "off_tissue", "black", "white", "gray"]
_UNKNOWN = dict.fromkeys(["spots_dropped", *_MEASURED], np.nan)
_SHARES = {"black": 0.05, "white": 0.5, "gray": 0.5}  # of pixels at the spots
_OFF_TISSUE = 0.1  # share of spots off the tissue
_DROPPED = 0.1  # share of selected spots lost at the join
_LIBRARY = 5.0  # factor between a slide's median library size and the cohort's
_MPP = (0.1, 2.0)  # um per pixel; outside, cells are not what an encoder was trained to see
_PITCH = 0.1  # relative deviation of the spot pitch
_DUPLICATED = 0.01  # share of feature vectors that repeat an earlier one
_COSINE = 0.99  # mean pairwise cosine of feature vectors
_SPREAD = 0.1  # feature spread relative to the cohort's median slide
_UNMEASURED = 0.5  # share of the panel that is not measured
_NARROW = 0.5  # genes measured relative to the cohort's median slide
_CONSTANT = 0.5  # share of the measured panel that is the same in every spot


def measure_slides(cohort: Cohort, slides: Sequence[str], genes: pd.DataFrame) -> pd.DataFrame:
    """One row a slide; each is read once and let go.

    Args:
        cohort: the cohort that holds the slides.
        slides: ids.
        genes: the panel: gene, gene_id, symbol.

    Returns:
        Index slide_id; columns:
        cancer, cancer_known, patient, technology, spots;
        spots_dropped, those selected and lost at the join, outside_image, off_tissue (spots), and
        black, white, gray (shares of the pixels at the spots), all NaN without reconciliation.csv;
        genes_measured of the slide, panel, panel_measured, zero_filled (share of the panel's
        targets that would be zeros filled in because the gene was not measured), zeros (share of
        zeros among measured targets), genes_constant (of the measured panel, the same raw count in
        every spot);
        empty_spots, library_min, library_median, library_max (counts of a spot over all genes);
        mpp, pitch_px and pitch_um (median distance to the nearest spot);
        features_bad (vectors with NaN or infinity), features_duplicated (share that repeat an
        earlier vector), features_cosine (mean over pairs of vectors), features_spread (deviation
        from the mean vector relative to the length of vectors), features_dead (share of dimensions
        that do not vary).
    """
    joined, rows = _reconciled(cohort), []
    for slide_id in progress_bar(slides, desc="auditing", unit="slide"):
        row = {"slide_id": slide_id} | _described(cohort.slides.loc[slide_id])
        row |= joined.loc[slide_id].to_dict() if slide_id in joined.index else _UNKNOWN
        row |= feature_statistics(_features(cohort, slide_id))
        row["panel"] = len(genes)
        if row["features_bad"] == 0:
            row |= _expression(cohort.load(slide_id, genes))
            row["genes_measured"] = len(cohort.gene_table(slide_id))
            row["pitch_um"] = row["pitch_px"] * row["mpp"]
        rows.append(row)
    return pd.DataFrame(rows).set_index("slide_id")


def feature_statistics(x: np.ndarray) -> dict:
    """The columns ``features_*`` of ``measure_slides`` from the vectors x (N, D)."""
    finite = np.isfinite(x).all(axis=1)
    x = x[finite].astype(np.float64)
    count = len(x)
    result = {"spots": len(finite), "features_bad": int((~finite).sum())}
    if count < 2:
        return result
    lengths = np.linalg.norm(x, axis=1)
    total = (x / np.maximum(lengths, 1e-12)[:, None]).sum(axis=0)
    variance = x.var(axis=0)
    return result | {
        "features_duplicated": 1 - len({row.tobytes() for row in x}) / count,
        "features_cosine": (total @ total - count) / (count * (count - 1)),
        "features_spread": float(np.sqrt(variance.sum() / max(np.mean(lengths**2), 1e-12))),
        "features_dead": float(np.mean(variance == 0)),
    }


def judge_slides(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Findings (severity, slide or ``cohort``, sentence) on the table of ``measure_slides``.

    What most slides share, such as genes of several species in one panel, is one finding of the
    cohort; so is a cancer code that several slides lack, as healthy tissue has none.
    """
    found = []
    library = table["library_median"].median()
    genes = table["genes_measured"].median()
    spread = table["features_spread"].median()
    pitch = table.groupby("technology")["pitch_um"].median()
    for slide_id, row in table.iterrows():
        said = (
            _on_expression(row, library)
            + _on_genes(row, genes)
            + _on_picture(row)
            + _on_scale(row, pitch)
            + _on_features(row, spread)
        )
        found += [(severity, slide_id, text) for severity, text in said]
    return on_codes(table) + gathered(found, len(table))


def _on_expression(row: pd.Series, library: float) -> list[tuple[str, str]]:
    found = []
    selected = row["spots"] + row["spots_dropped"]
    if row["spots_dropped"] > _DROPPED * selected:
        lost = f"{int(row['spots_dropped']):,} of {int(selected):,}"
        found.append(("warning", f"{lost} spots were lost when images and counts were joined"))
    if row["features_bad"]:
        return found
    if row["zero_filled"] > _UNMEASURED:
        shown = f"{row['panel_measured']:,} of {row['panel']:,}"
        found.append(("warning", f"only {shown} genes of the panel were measured"))
    if row["genes_constant"] > _CONSTANT * row["panel_measured"]:
        shown = f"{row['genes_constant']:,} of {row['panel_measured']:,}"
        found.append(
            ("warning", f"{shown} measured genes are the same in every spot and have no PCC")
        )
    if row["empty_spots"]:
        found.append(("warning", f"{row['empty_spots']:,} spots have no counts at all"))
    ratio = row["library_median"] / library if library else 1.0
    if not 1 / _LIBRARY <= ratio <= _LIBRARY:
        factor = f"{ratio:.1f} times" if ratio > 1 else f"1/{1 / max(ratio, 1e-9):.0f} of"
        found.append(
            (
                "warning",
                f"the median library size, {row['library_median']:,.0f}, is {factor} the "
                "cohort's: noise differs and raw-count targets are on another level",
            )
        )
    return found


def _on_picture(row: pd.Series) -> list[tuple[str, str]]:
    found = []
    if row["off_tissue"] > _OFF_TISSUE * row["spots"]:
        count = f"{row['off_tissue']:,.0f} of {row['spots']:,}"
        found.append(("warning", f"{count} spots lie off the tissue; see overlays"))
    if row["outside_image"] > 0:
        found.append(("warning", f"{row['outside_image']:,.0f} spots lie outside the image"))
    for name, limit in _SHARES.items():
        if row[name] > limit:
            found.append(("warning", f"{row[name]:.0%} of the pixels at the spots are {name}"))
    return found


def _on_genes(row: pd.Series, usual: float) -> list[tuple[str, str]]:
    if row["features_bad"] or row["genes_measured"] >= _NARROW * usual:
        return []
    return [
        (
            "warning",
            f"only {row['genes_measured']:,.0f} genes were measured where the cohort's median "
            f"slide has {usual:,.0f}: a common panel is narrowed to them",
        )
    ]


def _on_scale(row: pd.Series, pitches: pd.Series) -> list[tuple[str, str]]:
    if np.isnan(row["mpp"]):
        return [("note", "the pixel size is unknown, so patches were cut in pixels")]
    found = []
    if not _MPP[0] <= row["mpp"] <= _MPP[1]:
        found.append(("warning", f"a pixel size of {row['mpp']:.3g} um is implausible"))
    pitch, technology = row["pitch_um"], row["technology"]
    expected = PITCH_UM.get(technology_kind(technology), pitches.get(technology, np.nan))
    if abs(pitch - expected) > _PITCH * expected:
        found.append(
            (
                "warning",
                f"spots are {pitch:.0f} um apart where {technology} has {expected:.0f}: pixel "
                "size or coordinates may be wrong",
            )
        )
    return found


def _on_features(row: pd.Series, spread: float) -> list[tuple[str, str]]:
    if row["features_bad"]:
        count = f"{int(row['features_bad']):,} of {int(row['spots']):,}"
        return [("error", f"{count} feature vectors hold NaN or infinity; extract the slide again")]
    found = []
    if row["features_duplicated"] > _DUPLICATED:
        share = f"{row['features_duplicated']:.0%}"
        found.append(("warning", f"{share} of the feature vectors repeat another of the slide"))
    if row["features_cosine"] > _COSINE:
        found.append(
            (
                "warning",
                f"feature vectors are nearly one (mean cosine {row['features_cosine']:.4f}): "
                "patches may be cut from the wrong place, or the encoder is untrained",
            )
        )
    if row["features_spread"] < _SPREAD * spread:
        found.append(
            (
                "warning",
                f"features vary {spread / max(row['features_spread'], 1e-12):.0f} times less than "
                "on the cohort's median slide: patches may be cut from the wrong place",
            )
        )
    return found


def _described(row: pd.Series) -> dict:
    mpp = pd.to_numeric(row["mpp"], errors="coerce")
    return {
        "cancer": row["cancer"],
        "cancer_known": row["cancer"] in CANCER_CODES,
        "patient": row["patient"],
        "technology": row["technology"],
        "mpp": float(mpp),
    }


def _reconciled(cohort: Cohort) -> pd.DataFrame:
    """What extraction measured of each slide; NaN where it did not."""
    path = cohort.folder / "reconciliation.csv"
    if not path.is_file():
        return pd.DataFrame(columns=list(_UNKNOWN))
    table = read_table(path, ("slide_id",), "reconciliation table").set_index("slide_id")
    numbers = table.apply(pd.to_numeric, errors="coerce")
    numbers = numbers.reindex(columns=["spots_selected", "joined", *_MEASURED])
    dropped = numbers["spots_selected"] - numbers["joined"]
    return numbers[_MEASURED].assign(spots_dropped=dropped)[list(_UNKNOWN)]


def _features(cohort: Cohort, slide_id: str) -> np.ndarray:
    cohort.provenance(slide_id)  # names a file that is missing or damaged
    parts = []
    for path in cohort.feature_files(slide_id):
        with open_hdf5(path, "feature file", "delete it and extract the slide again") as file:
            parts.append(file["features"][:])
    rows = min(map(len, parts))  # Cohort.load refuses encoders that saw different spots
    return np.concatenate([part[:rows] for part in parts], axis=1)


def _expression(slide: Slide) -> dict:
    counts = slide.counts[:, np.flatnonzero(slide.measured)].tocsc()
    measured, spots = counts.shape[1], counts.shape[0]
    low, high = (np.asarray(f(axis=0).todense()).ravel() for f in (counts.min, counts.max))
    return {
        "panel_measured": measured,
        "zero_filled": 1 - measured / max(1, len(slide.measured)),
        "zeros": 1 - counts.count_nonzero() / max(1, spots * measured),
        "genes_constant": int((low == high).sum()),
        "empty_spots": int((slide.library_size == 0).sum()),
        "library_min": float(slide.library_size.min()),
        "library_median": float(np.median(slide.library_size)),
        "library_max": float(slide.library_size.max()),
        "pitch_px": nearest_pitch(slide.centers),
    }
