import json

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_slides import write_cohort, write_hest

import run_eval
import run_extract
import run_finetune
import run_predict
import run_train
from histokit.core.errors import InputError
from histokit.data.cohort import Cohort
from histokit.evaluate.runs import Run
from histokit.evaluate.views import load_held_out
from histokit.extract.encoders import make_encoder
from histokit.extract.finetune import Patches
from histokit.extract.timm_import import import_timm
from histokit.models import STNet
from histokit.train.finetune import (
    PatchBatch,
    PatchedSlide,
    PatchSource,
    Tuned,
    augment,
    squared_error,
    tune,
)
from histokit.train.trainer import Settings

ENCODER = "timm:test_resnet"  # of 0.4 million weights
TUNED = f"{ENCODER}-tuned"
FOLDS = "slide_id,split,fold\n" + "".join(
    f"{slide},{role},{fold}\n"
    for fold, roles in (("x", "train train val test"), ("y", "test train train val"))
    for slide, role in zip("abcd", roles.split(), strict=True)
)
SETTINGS = Settings(lr=0.1, weight_decay=0.0, epochs=2, patience=9, clip=1e9, seed=0)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Slides of four patients, extracted; weights, folds, and a run of two tuned encoders."""
    place = tmp_path_factory.mktemp("finetune")
    torch.manual_seed(0)
    network = import_timm().create_model("test_resnet", num_classes=0)
    save_file(network.state_dict(), place / "weights.safetensors")
    (place / "folds.csv").write_text(FOLDS)
    write_cohort(place / "in", "abcd")
    options = {"encoder": ENCODER, "weights": str(place / "weights.safetensors")}
    run_extract.main(
        run_extract.Options(source=str(place / "in"), out=str(place / "data"), **options)
    )
    finetune(place)
    return place


def finetune(place, run="run", **options):
    given = {"epochs": 2, "lr": 1e-3, "slides_together": 2, "patience": 9, "views": 1} | options
    run_finetune.main(
        run_finetune.Options(
            data=str(place / "data"),
            run=str(place / run),
            encoder=ENCODER,
            weights=str(place / "weights.safetensors"),
            folds=str(place / "folds.csv"),
            **given,
        )
    )


def train(place, run, **options):
    given = {"model": "mean", "encoder": TUNED, "folds": str(place / "folds.csv")} | options
    run_train.main(
        run_train.Options(data=str(place / "data"), run=str(place / "runs" / run), **given)
    )


def features(place, fold, slide):
    return place / "data/features/timm-test_resnet-tuned" / fold / f"{slide}.h5"


def test_each_fold_has_the_features_of_its_own_encoder(world):
    run = Run(world / "run")
    assert [fold.id for fold in run.folds] == ["x", "y"]
    digests = set()
    for fold, tuners in (("x", {"train": ["a", "b"], "val": ["c"]}),
                         ("y", {"train": ["b", "c"], "val": ["d"]})):  # fmt: skip
        path = world / "run/folds" / fold / "encoder.safetensors"
        with safe_open(path, "pt") as file:
            assert json.loads(file.metadata()["tuned_on"]) == tuners
        for slide in "abcd":
            base = world / "data/features/timm-test_resnet" / f"{slide}.h5"
            with h5py.File(features(world, fold, slide)) as own, h5py.File(base) as before:
                assert json.loads(own.attrs["tuned_on"]) == tuners
                assert own.attrs["encoder"] == TUNED
                assert own.attrs["source"] == before.attrs["source"]
                np.testing.assert_array_equal(own["coords"], before["coords"])
                np.testing.assert_array_equal(own["barcodes"].asstr(), before["barcodes"].asstr())
                assert np.abs(own["features"][:] - before["features"][:]).max() > 1e-3
                digests.add(own.attrs["weights_sha256"])
    assert len(digests) == 2


def test_the_run_predicts_what_the_tuned_network_does(world):
    """The head on the features in the file is the whole network on the patches."""
    fold = Run(world / "run").folds[0]
    encoder = make_encoder(ENCODER, fold.folder / "encoder.safetensors")
    base = make_encoder(ENCODER, world / "weights.safetensors")
    patches = Patches(Cohort(world / "data", ENCODER), base)("d")
    whole = Tuned(encoder.model, encoder.embed, fold.load_model())(patches)
    slide = Cohort(world / "data", TUNED).of_fold("x").load("d")
    torch.testing.assert_close(
        whole, fold.load_model().predict(slide.features, "IDC"), rtol=1e-3, atol=1e-4
    )


def test_the_weights_are_those_of_the_best_epoch_on_the_validation_slides(world):
    cohort, bests = Cohort(world / "data", ENCODER), []
    patches = Patches(cohort, make_encoder(ENCODER, world / "weights.safetensors"))
    for fold, slide in zip(Run(world / "run").folds, "cd", strict=True):
        history = pd.read_csv(fold.folder / "metrics.csv")
        encoder = make_encoder(ENCODER, fold.folder / "encoder.safetensors")
        whole = Tuned(encoder.model, encoder.embed, fold.load_model())
        read = PatchSource(cohort, fold.genes[["gene", "gene_id", "symbol"]], "counts10k-log1p",
                           patches).read(slide)  # fmt: skip
        target = torch.from_numpy(read.target.toarray())
        batch = PatchBatch(read.patches, target, torch.ones(target.shape, dtype=torch.bool))
        error = squared_error(whole(read.patches), batch).item()
        assert error == pytest.approx(history["val_loss"].min(), rel=1e-4)
        bests.append(int(history["val_loss"].argmin()))
    assert min(bests) < len(history) - 1  # or the last epoch would do as well


def test_a_test_slide_has_the_features_of_the_fold_that_tests_it(world):
    run, cohort = Run(world / "run"), Cohort(world / "data", TUNED)
    for fold, slide in zip(run.folds, "da", strict=True):
        with h5py.File(features(world, fold.id, slide)) as file:
            expected = file["features"][:]
        found = load_held_out(fold, cohort, slide, fold.genes).features
        np.testing.assert_array_equal(found.numpy(), expected)


def test_eight_views_average_the_predictions_as_the_authors_do(world):
    fold = Run(world / "run").folds[0]
    options = run_finetune.Options(data="", run="", encoder=ENCODER)
    encoder = make_encoder(ENCODER, fold.folder / "encoder.safetensors")
    patches = np.random.default_rng(0).integers(0, 255, (2, 160, 160, 3), dtype=np.uint8)
    ways = [np.rot90(w, k, (1, 2)) for w in (patches, patches[:, :, ::-1]) for k in range(4)]
    head = fold.load_model()
    alone = [head.predict(torch.from_numpy(encoder.encode(way)), "IDC") for way in ways]
    found = run_finetune.tuned(encoder, options)
    together = head.predict(torch.from_numpy(found.encode(patches)), "IDC")
    torch.testing.assert_close(together, torch.stack(alone).mean(0), rtol=1e-4, atol=1e-5)
    assert found.name == TUNED
    assert "mean over 8 turns and mirrors" in found.provenance()["transform"]


@pytest.mark.parametrize("kind", ["image", "stored"])
@pytest.mark.parametrize("patch", [{"patch_um": 80.0}, {"patch_px": 100}])
def test_patches_are_those_that_were_extracted(world, tmp_path, kind, patch):
    """Every patch gives the very features of its spot, also from an image that was moved."""
    if kind == "stored":
        write_hest(tmp_path / "in")
    else:
        write_cohort(tmp_path / "in", "a")
    options = {"encoder": ENCODER, "weights": str(world / "weights.safetensors")} | patch
    out = tmp_path / "out"
    run_extract.main(run_extract.Options(source=str(tmp_path / "in"), out=str(out), **options))
    (tmp_path / "in").rename(tmp_path / "moved")
    cohort, encoder = Cohort(out, ENCODER), make_encoder(ENCODER, options["weights"])
    source = run_finetune.Options(data="", run="", source=str(tmp_path / "moved"))
    reader = Patches(cohort, encoder, run_finetune.images(source), batch_size=5)
    (name,) = cohort.slides.index
    reader.check(name)
    features = cohort.load(name).features.numpy()
    np.testing.assert_allclose(encoder.encode(reader(name)), features, rtol=1e-3, atol=1e-4)


def test_features_of_another_encoder_are_refused(world):
    other = make_encoder("efficientnet-lite0-random")
    with pytest.raises(InputError, match=r"extract the slides with it .*without --scales"):
        Patches(Cohort(world / "data", ENCODER), other).check("a")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"encoder": "hed"}, "nothing to tune"),
        ({"encoder": "hed+hed"}, "one at a time"),
        ({"name": "a/b"}, "cannot name a folder"),
        ({"name": ENCODER.replace(":", "-")}, "features of another encoder"),
    ],
)
def test_what_cannot_be_tuned_is_refused(world, tmp_path, options, said):
    given = {"data": str(world / "data"), "run": str(tmp_path), "folds": "2"} | options
    ask = run_finetune.features_folder if "name" in options else run_finetune.network
    with pytest.raises(InputError, match=said):
        ask(run_finetune.Options(**given))


def test_it_is_evaluated_and_trained_on_fold_by_fold(world, call):
    train(world, "ridge", model="ridge")
    train(world, "booster", model="bpbooster", preset="small", epochs=1, num_prototypes=2,
          latent_dim=8)  # fmt: skip
    runs = [str(world / "run"), str(world / "runs/ridge"), str(world / "runs/booster")]
    made = call(run_eval, "--run", *runs, "--no-pictures", "--no-predictions")
    assert made.returncode == 0, made.stderr
    assert set(pd.read_csv(world / "comparison/comparison.csv")["run"]) >= {"run", "ridge"}
    for name in ("run", "runs/ridge"):
        known = [fold.features["weights_sha256"] for fold in Run(world / name).folds]
        assert len(set(known)) == 2
    x, y = (Cohort(world / "data", TUNED).of_fold(fold).load("b").features for fold in "xy")
    assert not torch.equal(x, y)


def test_a_fold_that_tests_what_tuned_its_encoder_is_refused(world, tmp_path, call):
    swapped = tmp_path / "folds.csv"
    swapped.write_text(FOLDS.replace("b,train,x", "b,test,x").replace("d,test,x", "d,train,x"))
    with pytest.raises(InputError, match="was tuned on slide b, which fold x tests"):
        train(world, "leak", folds=str(swapped), allow_leakage=True)
    # a validation slide chose the epoch, so it is no test slide either
    swapped.write_text(FOLDS.replace("c,val,x", "c,test,x").replace("d,test,x", "d,val,x"))
    with pytest.raises(InputError, match="was tuned on slide c, which fold x tests"):
        train(world, "leak", folds=str(swapped), allow_leakage=True)
    swapped.write_text(FOLDS.replace(",x\n", ",z\n"))
    with pytest.raises(InputError, match="no features tuned for fold z"):
        train(world, "leak", folds=str(swapped))
    assert not (world / "runs/leak").exists()


def test_the_refusal_follows_copied_features_and_extracted_weights(world, tmp_path):
    """Features in a plain folder, and those that tuned weights make, still say who tuned them."""
    flat = world / "data/features/copied"
    flat.mkdir()
    for slide in "abcd":
        (flat / f"{slide}.h5").write_bytes(features(world, "x", slide).read_bytes())
    with pytest.raises(InputError, match="copied was tuned on slide a, which fold y tests"):
        train(world, "copied", encoder="copied")
    with pytest.raises(InputError, match="was tuned on slide a"):
        train(world, "copied", encoder=f"{ENCODER}+copied")
    weights = world / "run/folds/x/encoder.safetensors"
    renamed = tmp_path / "weights.bin"
    renamed.write_bytes(weights.read_bytes())
    assert json.loads(make_encoder(ENCODER, renamed).provenance()["tuned_on"])["val"] == ["c"]
    with pytest.raises(InputError, match="tuned already"):
        run_finetune.network(
            run_finetune.Options(data="", run="", encoder=ENCODER, weights=str(weights))
        )


def test_a_patient_whose_other_slide_tuned_the_encoder_is_a_leak(world):
    table = world / "data/slides.csv"
    before = table.read_text()
    rows = pd.read_csv(table)
    rows.loc[rows["slide_id"] == "b", "patient"] = "P3"  # that of d, which fold x tests
    rows.to_csv(table, index=False)
    folds = world / "without-b.csv"
    folds.write_text("".join(line for line in FOLDS.splitlines(True) if not line.startswith("b")))
    try:
        with pytest.raises(InputError, match="fold x tests d and trains or validates on b"):
            train(world, "patient", folds=str(folds))
    finally:
        table.write_text(before)


def test_evaluation_refuses_features_tuned_on_test_slides(world, call):
    """Such as those that took the place of a fold's features after the training."""
    train(world, "mean")
    path = features(world, "x", "d")
    before = path.read_bytes()
    with h5py.File(path, "r+") as file:
        file.attrs["tuned_on"] = json.dumps({"train": ["d"]})
    made = call(run_eval, "--run", world / "runs/mean")
    assert "was tuned on slide d, which fold x tests" in made.stderr
    path.write_bytes(features(world, "y", "d").read_bytes())
    with h5py.File(path, "r+") as file:  # of another encoder, and not saying so
        del file.attrs["tuned_on"]
    made = call(run_eval, "--run", world / "runs/mean")
    path.write_bytes(before)
    assert "the features of slide d have weights_sha256" in made.stderr


def test_predictions_controls_and_uses_without_a_fold_are_refused(world, tmp_path, call):
    made = call(run_predict, "--run", world / "run", "--source", world / "in", "--out", tmp_path)
    assert "an encoder that was tuned for each fold" in made.stderr
    with pytest.raises(InputError, match="--controls shuffles"):
        train(world, "controls", controls=True)
    with pytest.raises(InputError, match="tuned for each fold"):
        Cohort(world / "data", TUNED).load("a")


def test_test_slides_are_not_read_before_the_encoder_is_tuned(world):
    """Without fold x's test image all is as before, up to the features of that slide."""
    image = world / "in/d.png"
    away = image.rename(world / "in/d.gone")
    with pytest.raises(InputError, match=r"d\.png"):
        finetune(world, "blind", name="blind")
    weights = world / "blind/folds/x/encoder.safetensors"
    same, again = load_file(world / "run/folds/x/encoder.safetensors"), load_file(weights)
    assert all(torch.equal(same[name], again[name]) for name in same)
    assert not Run(world / "blind").folds[0].is_finished()
    away.rename(image)
    finetune(world, "blind", name="blind")  # goes on: the encoder is tuned, its features are not
    assert all(fold.is_finished() for fold in Run(world / "blind").folds)


def test_another_image_is_refused(world):
    image = world / "in/b.png"
    before = image.read_bytes()
    image.write_bytes((world / "in/a.png").read_bytes())
    with pytest.raises(InputError, match="are not those that were extracted"):
        finetune(world, "swapped", name="swapped", allow_leakage=True)
    image.write_bytes(before)


def test_other_options_do_not_go_into_the_same_folders(world):
    with pytest.raises(InputError, match="--epochs was 2, not 3"):
        finetune(world, epochs=3)
    with pytest.raises(InputError, match="says that --run was"):
        finetune(world, "other")
    finetune(world)  # finished: nothing to do


def small(rows=6, genes=3, seed=0):
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 255, (rows, 8, 8, 3), dtype=np.uint8)
    target = sp.csr_matrix(rng.random((rows, genes)).astype(np.float32))
    return PatchedSlide(patches, target, np.ones(genes, bool))


class Kept(PatchSource):
    """Slides that are in memory; notes which are read."""

    def __init__(self, **slides):
        self.__dict__.update(slides=slides, seen=[])

    def read(self, slide_id):
        self.seen.append(slide_id)
        return self.slides[slide_id]


def small_net(genes=3, seed=1):
    torch.manual_seed(seed)
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(192, 4), torch.nn.Dropout(0.2)
    )
    net = Tuned(network, lambda x: network(torch.from_numpy(x).float() / 255), STNet(4, genes))
    net.head.start_at(torch.full((genes,), 0.5))
    return net


def test_untuned_the_network_predicts_the_training_mean():
    predicted = small_net()(small().patches)
    assert torch.equal(predicted, torch.full((6, 3), 0.5))


def test_error_by_hand_skips_genes_that_a_slide_did_not_measure():
    target = torch.tensor([[1.0, 2.0], [3.0, 99.0]])
    batch = PatchBatch(np.zeros(2), target, torch.tensor([[True, True], [True, False]]))
    predicted = torch.tensor([[2.0, 2.0], [1.0, 0.0]], requires_grad=True)
    loss = squared_error(predicted, batch)
    loss.backward()
    assert loss.item() == pytest.approx((1 + 0 + 4) / 3)
    torch.testing.assert_close(predicted.grad, torch.tensor([[2.0, 0.0], [-4.0, 0.0]]) / 3)


def test_augmentation_draws_each_of_eight_ways_for_each_patch():
    patch = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    turned = [np.rot90(way, k) for way in (patch, patch[:, ::-1]) for k in range(4)]
    found = augment(np.repeat(patch[None], 800, axis=0))
    counts = [int((found == way).all(axis=(1, 2, 3)).sum()) for way in turned]
    assert sum(counts) == 800
    assert min(counts) > 60


@pytest.mark.parametrize("together", [1, 2, 5])
def test_an_epoch_has_every_patch_once_with_its_own_target(together):
    slides = {name: small(rows, seed=rows) for name, rows in (("a", 5), ("b", 1), ("c", 7))}
    shuffle = torch.Generator().manual_seed(0)
    batches = list(Kept(**slides).batches(["a", "b", "c"], together, 4, shuffle))
    known = {s.patches[i].tobytes(): s.target[i].toarray().tobytes()
             for s in slides.values() for i in range(len(s.patches))}  # fmt: skip
    found = {p.tobytes(): y.numpy().tobytes()
             for b in batches for p, y in zip(b.patches, b.target, strict=True)}  # fmt: skip
    assert found == known
    assert max(len(b.patches) for b in batches) <= 4


def test_literal_descends_the_sum_over_the_batch(tmp_path):
    slide, net = small(rows=4), small_net()
    net.network[2].p = 0.0
    weight = net.head.head.bias.detach().clone()
    wrong = 0.5 - slide.target.toarray()
    literal = Settings(**vars(SETTINGS) | {"lr": 1e-3, "epochs": 1, "stnet_literal": True})
    tune(net, Kept(a=slide), ["a"], [], literal, tmp_path / "x.ckpt")
    # squared errors summed over four patches and divided by three genes
    step = weight - net.head.head.bias.detach()
    np.testing.assert_allclose(step, 1e-3 * 2 * wrong.sum(axis=0) / 3, rtol=1e-3)


@pytest.mark.parametrize("literal", [False, True])
def test_a_tuning_that_was_stopped_goes_on_to_the_same_weights(tmp_path, literal):
    slides = {"a": small(seed=1), "b": small(seed=2), "v": small(seed=3)}
    whole = Settings(**vars(SETTINGS) | {"lr": 1e-2, "epochs": 4, "stnet_literal": literal})
    begun, found = Settings(**vars(whole) | {"stop_after": 2}), []
    for name, stages in (("whole", [whole]), ("parts", [begun, whole])):
        for settings in stages:
            source = Kept(**slides, t=small(seed=4))
            place = tmp_path / f"{name}.ckpt"
            result = tune(small_net(), source, ["a", "b"], ["v"], settings, place, 4, 1)
            assert set(source.seen) == {"a", "b", "v"}
        found.append(result)
    assert found[0].history == found[1].history
    assert all(torch.equal(found[0].weights[k], found[1].weights[k]) for k in found[0].weights)


def test_a_tuning_killed_within_an_epoch_goes_on_to_the_same_weights(tmp_path):
    class Dies(Kept):
        def read(self, slide_id):
            if len(self.seen) == 2:
                raise InputError("gone")
            return super().read(slide_id)

    slides = {"a": small(seed=1), "b": small(seed=2), "c": small(seed=3)}
    settings = Settings(**vars(SETTINGS) | {"lr": 1e-2, "checkpoint_seconds": 0.0})
    whole = tune(small_net(), Kept(**slides), list("abc"), [], settings, tmp_path / "a", 4, 1)
    with pytest.raises(InputError, match="gone"):
        tune(small_net(), Dies(**slides), list("abc"), [], settings, tmp_path / "b", 4, 1)
    parts = tune(small_net(), Kept(**slides), list("abc"), [], settings, tmp_path / "b", 4, 1)
    assert all(torch.equal(whole.weights[k], parts.weights[k]) for k in whole.weights)
    assert whole.history == parts.history


def test_tuning_learns_what_a_frozen_network_cannot_say(tmp_path):
    """Brightness of a patch is the expression; the random network has to learn to see it."""
    rng = np.random.default_rng(0)
    level = rng.uniform(0, 255, 48)
    patches = np.broadcast_to(level[:, None, None, None], (48, 8, 8, 3)).astype(np.uint8)
    target = sp.csr_matrix((level[:, None] / 255 * [[1, 2, 3]]).astype(np.float32))
    slide, net = PatchedSlide(np.array(patches), target, np.ones(3, bool)), small_net()
    net.network[2].p = 0.0
    before = net.network[1].weight.detach().clone()
    settings = Settings(**vars(SETTINGS) | {"lr": 1e-2, "epochs": 30})
    result = tune(net, Kept(a=slide, v=slide), ["a"], ["v"], settings, tmp_path / "c", 16, 1)
    assert (
        min(row["val_loss"] for row in result.history) < 0.2 * target.toarray().var(axis=0).mean()
    )
    assert not torch.equal(result.weights["network.1.weight"], before)
