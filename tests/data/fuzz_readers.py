"""Every reader with a small good input, and mutants of it; run as a program it is the child.

    python tests/fuzz_readers.py FOLDER    # reads lines "reader<TAB>seed", answers one line each

The child may use a bounded amount of memory above what it needs to start, and answers ``ok``,
``refused`` (an InputError), or what went wrong; a crash ends it, and the parent starts another.
"""

import gzip
import json
import resource
import sys
from pathlib import Path

import h5py
import numpy as np

MEMORY = 2 << 30  # bytes of address space above what is taken at the start
TOKENS = [b"nan", b"1e999", b"-1", b"", b"\x00", "\u00e9".encode("latin-1"), b"9" * 40, b"NA", b'"',
          b"../x", b",", b"\t", b";", b"\n", b"true", b"1e-320", b"a" * 5000]  # fmt: skip


def pristine(folder: Path) -> None:
    """Write a good input of every reader."""
    import tifffile
    import torch
    from cohorts import GENES, write_cohort
    from PIL import Image
    from safetensors.torch import save_file
    from tiny_slides import counts_table, picture, write_hest
    from tiny_slides import write_cohort as write_source

    import run_train

    write_source(folder / "source")
    write_hest(folder / "hest")
    data = write_cohort(folder / "data", {"A": ("IDC", "A", 12), "B": ("IDC", "B", 11)})
    run_train.main(
        run_train.Options(data=str(data), run=str(folder / "run"), model="ridge", encoder="tiny")
    )
    table = counts_table()
    (folder / "counts.csv").write_text(table.to_csv())
    (folder / "counts.tsv.gz").write_bytes(gzip.compress(table.to_csv(sep="\t").encode()))
    (folder / "counts.h5ad").write_bytes((data / "expression/A.h5ad").read_bytes())
    with h5py.File(folder / "counts.h5", "w") as file:
        group = file.create_group("matrix")
        group["data"], group["indices"] = np.arange(1, 7), np.array([0, 2, 1, 3, 0, 3])
        group["indptr"], group["shape"] = np.array([0, 2, 4, 6]), [4, 3]
        group["barcodes"] = [b"b0", b"b1", b"b2"]
        features = group.create_group("features")
        features["id"] = [f"ENSG0000000000{i}".encode() for i in range(4)]
        features["name"] = [b"A", b"B", b"C", b"D"]
        features["feature_type"] = [b"Gene Expression"] * 4
    pixels = picture(side=256)
    for name in ("a.png", "a.jpg", "a.bmp"):
        Image.fromarray(pixels).save(folder / name)
    tifffile.imwrite(folder / "tiled.tif", pixels, tile=(64, 64), compression="zlib")
    tifffile.imwrite(folder / "strips.tif", pixels, rowsperstrip=32)
    (folder / "splits.csv").write_text("slide_id,split,fold\nA,train,1\nB,test,1\nB,train,2\n")
    (folder / "metadata.csv").write_text("id,patient,dataset_title\nA,1,x\nB,2,x\n")
    (folder / "genes.txt").write_text("\n".join(GENES[:9]) + "\n")
    (folder / "genes.json").write_text(json.dumps({"genes": GENES[:9]}))
    (folder / "sets.gmt").write_text("ONE\tna\tA\tB\tC\nTWO\tna\tB\tD\n")
    (folder / "universe.csv").write_text("gene,gene_id,symbol\nA,,A\nB,,B\n")
    (folder / "signature.txt").write_text("A|OLD\nB\n")
    state = {"layer.weight": torch.ones(3, 2), "layer.bias": torch.zeros(3)}
    torch.save({"state_dict": state, "epoch": 3}, folder / "weights.pt")
    save_file(state, folder / "weights.safetensors")


def image(path):
    """Read an image through: size, a window, a thumbnail."""
    from histokit.extract.images import naming, open_image

    opened = open_image(path)
    with naming(path):
        opened.read(0, 0, min(opened.width, 256), min(opened.height, 256))
        opened.thumbnail(64)


def readers(root: Path) -> dict:
    """Reader by name: the file that is mutated, and what reads it."""
    from histokit.audit import leaks
    from histokit.core import weights
    from histokit.data import counts, gene_sets, genes, splits
    from histokit.data.cohort import Cohort
    from histokit.data.layouts import read_source
    from histokit.data.sources import check_spots, read_spots
    from histokit.evaluate.runs import Run
    from histokit.evaluate.topics import signatures
    from histokit.extract.patches import stored_batches

    def cohort(_):
        found = Cohort(root / "data", "tiny")
        for slide in found.slides.index:
            found.load(slide)
        found.missing()

    def source(_):
        for slide in read_source(root / "source"):
            check_spots(slide.load_spots(), slide.slide_id)
            slide.load_counts()

    def hest(_):
        for slide in read_source(root / "hest"):
            spots = check_spots(slide.load_spots(), slide.slide_id)
            slide.load_counts()
            list(stored_batches(slide.image, spots["row"].to_numpy(), 20.0, 32, 4))

    def run(_):
        for fold in Run(root / "run").folds:
            fold.split, fold.genes, fold.load_model()

    fold = "run/folds/A" if (root / "run/folds/A").is_dir() else "run/folds/0"
    patch = next((root / "hest/patches").glob("*.h5")).relative_to(root)
    return {
        "cohort.csv": ("source/cohort.csv", source),
        "spots.csv": ("source/a-spots.csv", lambda p: check_spots(read_spots(p, "a"), "a")),
        **{
            name: (name, lambda p: counts.read_counts(p, "a"))
            for name in ("counts.csv", "counts.tsv.gz", "counts.h5ad", "counts.h5")
        },
        **{name: (name, image) for name in ("a.png", "a.jpg", "a.bmp", "tiled.tif", "strips.tif")},
        "HEST patches": (str(patch), hest),
        "slides.csv": ("data/slides.csv", cohort),
        "features": ("data/features/tiny/A.h5", cohort),
        "expression": ("data/expression/A.h5ad", cohort),
        "splits": ("splits.csv", splits.read_splits),
        "metadata": ("metadata.csv", leaks.read_metadata),
        "gene list": ("genes.txt", genes.read_gene_list),
        "gene json": ("genes.json", genes.read_gene_list),
        "GMT": ("sets.gmt", gene_sets.read_gmt),
        "universe": ("universe.csv", gene_sets.read_universe),
        "signature": ("signature.txt", lambda p: signatures.read_signature(str(p))),
        "config.json": ("run/config.json", run),
        "split.csv": (f"{fold}/split.csv", run),
        "genes.csv": (f"{fold}/genes.csv", run),
        "model.json": (f"{fold}/model.json", run),
        "model.safetensors": (f"{fold}/model.safetensors", run),
        "weights.pt": ("weights.pt", weights.read_state_dict),
        "weights.safetensors": ("weights.safetensors", weights.read_state_dict),
    }


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """One to three small damages of the kinds that transfers, disks and hands make."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        if not data:
            break
        at = int(rng.integers(len(data)))
        end = min(len(data), at + int(rng.integers(1, 64)))
        kind = rng.integers(8)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            for place in rng.integers(0, len(data), rng.integers(1, 20)):
                data[place] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            del data[at:end]
        elif kind == 3:
            data[at:at] = data[at:end]
        elif kind == 4:
            data[at:end] = bytes(end - at)
        elif kind == 5:
            data[at:end] = rng.integers(0, 256, end - at, dtype=np.uint8).tobytes()
        elif kind == 6:
            data[at:at] = TOKENS[rng.integers(len(TOKENS))]
        else:
            _replace_field(data, rng)
    return bytes(data)


def _replace_field(data: bytearray, rng: np.random.Generator) -> None:
    """Put another word in place of a field of a text table."""
    edges = [i for i, c in enumerate(data[:20_000]) if c in b",\t\n;:"]
    if len(edges) > 1:
        first = int(rng.integers(len(edges) - 1))
        data[edges[first] + 1 : edges[first + 1]] = TOKENS[rng.integers(len(TOKENS))]


def mutate_hdf5(path: Path, rng: np.random.Generator) -> None:
    """Delete a node of an HDF5 file, or put one of another shape, type or value in its place."""
    with h5py.File(path, "r+") as file:
        names = []
        file.visit(names.append)
        name = names[rng.integers(len(names))]
        node = file[name]
        values = node[()] if isinstance(node, h5py.Dataset) else None
        kind = rng.integers(6)
        if (
            kind == 5
            and values is not None
            and getattr(values, "dtype", np.dtype("O")).kind in "iuf"
        ):
            flat = np.array(values).reshape(-1)
            if flat.size:
                flat[rng.integers(flat.size)] = rng.choice([0, 1, 7, 120])
                node[...] = flat.reshape(np.shape(values))
            return
        if kind == 4:
            for key in list(node.attrs):
                node.attrs[key] = "strange"
            return
        del file[name]
        if kind == 1:
            file[name] = 3
        elif kind == 2:
            file[name] = [b"text", b"other"]
        elif kind == 3 and values is not None and np.ndim(values):
            file[name] = values[: max(0, len(values) - 1)]


def attempt(root: Path, reader: str, seed: int, table: dict) -> str:
    """Mutate one file, read it, put it back."""
    from histokit.core.errors import InputError

    name, read = table[reader]
    path, rng = root / name, np.random.default_rng([seed, *reader.encode()])
    content = path.read_bytes()
    try:
        if path.suffix in (".h5", ".h5ad") and seed % 2:
            mutate_hdf5(path, rng)
        else:
            path.write_bytes(mutate(content, rng))
        read(path)
    except InputError as error:
        text = str(error)
        return "refused" if "\n" not in text and len(text) < 1500 else f"no sentence: {text[:300]}"
    except Exception as error:
        return f"foreign {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    finally:
        path.write_bytes(content)
    return "ok"


def main() -> None:
    root = Path(sys.argv[1])
    table = readers(root)
    for reader in table:  # import what is imported late, before memory is bounded
        attempt(root, reader, 0, table)
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    print("ready", flush=True)
    for line in sys.stdin:
        reader, seed = line.rstrip("\n").split("\t")
        print(attempt(root, reader, int(seed), table), flush=True)


if __name__ == "__main__":
    main()
