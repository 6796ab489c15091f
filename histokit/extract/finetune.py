"""Patches of an extraction read again, and features of them by an encoder that was tuned."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from anndata.io import read_elem
from safetensors.torch import save_file
from torch import nn

from histokit.core.errors import InputError
from histokit.core.files import atomic_path, open_hdf5
from histokit.core.weights import file_sha256
from histokit.data.cohort import Cohort
from histokit.data.features import difference
from histokit.extract import writer
from histokit.extract.encoders import TUNED_ON, NetworkEncoder
from histokit.extract.encoding import Encoding
from histokit.extract.patches import stored_microns

COMPARED = 4  # patches of a slide that are encoded again before its patches are used
APART = 0.05  # of the size of features: beyond it the patches are others


@dataclasses.dataclass(frozen=True)
class Spots:
    """What the reader of patches asks of a slide and of its spots."""

    image: Path
    obsm: Mapping[str, np.ndarray]
    obs: pd.DataFrame | None = None


class Patches:
    """The very patches that an extraction encoded, in the order of its features.

    Args:
        cohort: the extraction, with the features of ``encoder``.
        encoder: the encoder as it was then; nothing changes it.
        images: where images lie that are no longer where the extraction found them, by slide id.
        batch_size: patches read at a time.
        workers: threads that read.
    """

    def __init__(
        self,
        cohort: Cohort,
        encoder: NetworkEncoder,
        images: Mapping[str, Path] | None = None,
        batch_size: int = 16,
        workers: int = 1,
    ):
        self.cohort, self.encoder, self.images = cohort, encoder, images or {}
        self.batch_size, self.workers = batch_size, workers
        self._compared: set[str] = set()

    def check(self, slide_id: str) -> None:
        """Raises InputError for features that the encoder did not make; opens no image."""
        about = self.cohort.provenance(slide_id)
        made = self.encoder.provenance()
        del made["precision"]  # half precision made the same features, for this purpose
        if found := difference(made, about):
            raise InputError(
                f"the features of slide {slide_id} have {found[0]} {found[2]!r} and the encoder to "
                f"tune {found[1]!r}; extract the slides with it (run_extract.py), without --scales"
            )

    def batches(self, slide_id: str) -> Iterator[np.ndarray]:
        """Patches uint8 (B, size, size, 3), in the order of the features.

        Raises:
            InputError: the image is not there, unreadable, or not the one that was extracted.
        """
        slide, about = self.cohort.load(slide_id, counts=False), self.cohort.provenance(slide_id)
        image = Path(self.images.get(slide_id, self.cohort.slides.loc[slide_id, "image"]))
        spots, scale = Spots(image, {"spatial": slide.centers}), float(about["patch_um"])
        if writer.has_stored_patches(spots):
            spots = dataclasses.replace(spots, obs=self._rows(slide_id, slide.barcodes))
        if writer.has_stored_patches(spots) and not scale:
            scale = stored_microns(image, int(about["patch_px"]), float(about["mpp"]) or None)
        read = writer.slide_batches(
            spots,
            spots,
            [int(about["patch_size_level0"])],
            [scale],
            self.encoder.size,
            self.batch_size,
            self.workers,
        )
        for (patches,) in read:
            if slide_id not in self._compared:
                self._compare(slide_id, image, patches[:COMPARED], slide.features[:COMPARED])
            yield patches

    def __call__(self, slide_id: str) -> np.ndarray:
        """All patches of a slide, uint8 (N, size, size, 3)."""
        return np.concatenate(list(self.batches(slide_id)))

    def _rows(self, slide_id: str, barcodes: list[str]) -> pd.DataFrame:
        """The column ``row`` of spots: where they are among stored patches."""
        path = self.cohort.folder / "expression" / f"{slide_id}.h5ad"
        with open_hdf5(path, "expression file") as file:
            return read_elem(file["obs"])[["row"]].loc[barcodes]

    def _compare(self, slide_id: str, image: Path, patches: np.ndarray, features) -> None:
        again = self.encoder.encode(patches)
        if np.abs(again - features.numpy()).mean() > APART * np.abs(again).mean():
            raise InputError(
                f"the patches of slide {slide_id} in {image} are not those that were extracted; "
                "give the image that was, or extract the slide again"
            )
        self._compared.add(slide_id)


def save_weights(network: nn.Module, tuned_on: str, path: Path) -> str:
    """Write a network's weights with the slides that tuned it; returns the file's SHA-256."""
    state = {k: v.detach().cpu().clone().contiguous() for k, v in network.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary, {TUNED_ON: tuned_on})
    return file_sha256(path)


def write_tuned(slide_id: str, patches: Patches, encoder: NetworkEncoder, path: Path) -> bool:
    """Write the features of a slide by a tuned encoder; False where they are there already.

    The file has the attributes of the untuned features, but for what the encoder changes, and
    ``tuned_on``, the slides by role that tuned it.

    Raises:
        InputError: the features there are of other weights, or those made are none of tissue.
    """
    made = encoder.provenance()
    if there := writer.feature_attributes(path):
        if there["weights_sha256"] != made["weights_sha256"]:
            raise InputError(
                f"{path} was made by an encoder that was tuned before; delete {path.parent}, or "
                "give another --name"
            )
        return False
    encoding = Encoding(encoder, str(patches.batch_size), encoder.how.device)
    features = np.concatenate([encoding.encode(batch) for batch in patches.batches(slide_id)])
    finite = np.isfinite(features).all()
    faults = encoding.faults(features, 1) if finite else [f"{encoder.name} gave values like NaN"]
    if faults:
        raise InputError(f"slide {slide_id}: {faults[0]} after tuning; tune with a smaller --lr")
    (before,) = patches.cohort.feature_files(slide_id)
    with open_hdf5(before, "feature file") as file:
        corners, barcodes = file["coords"][:], file["barcodes"].asstr()[:]
    attributes = writer.feature_attributes(before) | made
    writer.write_features(path, features, corners, barcodes, attributes)
    return True
