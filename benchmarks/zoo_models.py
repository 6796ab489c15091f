"""The models of the zoo: what is common to all, and the six settings that each may try."""

from __future__ import annotations

from itertools import product

NET = "efficientnet-lite0"
SIZES = "112,224,448"
_SIZES = SIZES.replace(",", "-") + "um"
FEATURES = {
    "plain": NET,  # patches of 112 um
    "best": f"{NET}-stages-{_SIZES}",  # early stages too, patches of three sizes
}
LITE1, LITE2 = (f"efficientnet-lite{n}-stages-{_SIZES}" for n in (1, 2))
HED = f"hed-{_SIZES}"
TUNED = "fine-tuned by fold"
NORMALIZED = "best, stain normalized"
# what new_patient.py compares beside them
MORE_FEATURES = {
    "the last map, three sizes": f"{NET}-{_SIZES}",
    "four depths, one size": f"{NET}-stages",
    "best and 896 um": f"{NET}-stages-112-224-448-896um",
    "best, 8 views": f"{NET}-stages-8views-{_SIZES}",
    "best of lite1": LITE1,
    "best of lite0, lite1 and lite2": f"{FEATURES['best']}+{LITE1}+{LITE2}",
    "best beside hed": f"{FEATURES['best']}+{HED}",
    NORMALIZED: FEATURES["best"],
    TUNED: f"{NET}-tuned",
}
# Every network is trained for a number of epochs on all training slides: with one slide of another
# patient to choose by, early stopping would see the slide that settings are chosen on.
FIXED = {"val_fraction": 0.0, "refit": False}
EPOCHS, RATES = (5, 15), (1.0, 0.3, 0.1)  # of the learning rate of the small preset


def _network(model: str, lr: float, epochs=EPOCHS, rates=RATES, **more) -> dict:
    """A network with the settings that it tries: numbers of epochs x learning rates."""
    tries = [{"epochs": e, "lr": lr * r} for e, r in product(epochs, rates)]
    return {"options": {"model": model, "preset": "small"} | FIXED | more, "tries": tries}


def _fitted(model: str, **more) -> dict:
    """A closed form, which finds its penalty by cross-validation within the training slides."""
    return {"options": {"model": model} | more, "tries": [{}]}


STEM = {"epochs": (20, 100), "top_genes": 50}
STEM |= {"hidden_dim": 64, "num_layers": 3, "samples": 2, "stem_batch": 32}
REFERENCE = "ridge, neighbors"
ZOO = {
    "mean": _fitted("mean"),
    "ridge": _fitted("ridge"),
    REFERENCE: _fitted("ridge", neighbors="mean"),
    "ridge-by-gene, neighbors": _fitted("ridge-by-gene", neighbors="mean"),
    "ridge-low-rank": _fitted("ridge-low-rank", neighbors="none"),
    "ridge-low-rank, neighbors": _fitted("ridge-low-rank", neighbors="mean"),
    "knn": {
        "options": {"model": "knn"},
        "tries": [{"retrieval_k": k} for k in (10, 25, 50, 75, 100, 150)],
    },
    "mlp": _network("mlp", 5e-4),
    "stnet": _network("stnet", 5e-4),
    **{
        model: {
            "options": {"model": model, "preset": "small"} | FIXED,
            "tries": [{"epochs": e, "retrieval_k": k} for e, k in product((15, 45), (25, 50, 100))],
        }
        for model in ("bleep", "mclstexp")
    },
    "histogene": _network("histogene", 1e-4),
    "triplex": _network("triplex", 1e-4),
    "deepspot": _network("deepspot", 5e-4),
    "merge": _network("merge", 1e-3),
    "stpath": _network("stpath", 5e-4),
    "stflow": _network("stflow", 5e-4),
    # 50 genes, for they attend to each other; narrower than its preset, for 25 steps of 2 draws
    "stem, 50 genes": _network("stem", 1e-3, **STEM),
    "histoprism": _network("histoprism", 5e-4),
    "bpbooster": _network("bpbooster", 1e-3, epochs=(2, 5, 15), rates=(1.0, 0.3)),
}
LEFT_OUT = {("best", "stem, 50 genes")}  # it takes longer than all others together
# models of new_patient.py, as run_train.py has them without options
SMALL = {
    f"{name}, neighbors": _fitted(name, preset="small", neighbors="mean")
    for name in ("mlp", "bpbooster", "histoprism", "average", "auto")
}
OTHER_SCALE = "ridge-low-rank, neighbors; features standardized over all slides"
MORE = SMALL | {OTHER_SCALE: _fitted("ridge-low-rank", neighbors="mean", standardize="train")}
SPECS = ZOO | MORE
