r"""Time, memory and operations of the models, as published and as they are here: one table.

    python run_profile.py --patches 10000
    python run_profile.py --patches 1000 2000 4000 8000 --rows histoprism stpath --out work/curve
    python run_profile.py --patches 4000 --rows stpath-layer --train

Every model is timed in three forms: as published, as a careful engineer writes it with stock torch
(blocks, algebra, fused optimizer), and as it is here. Every row runs in a process of its own, which
first checks on few patches that its results equal those of the form it is compared with. Times are
medians, in a process that keeps the memory it freed; long calls are repeated less, one whose first
takes over ten seconds is timed by that, and its expected wait is said before it. Peak memory is
what a call needs beyond model and inputs; operations are those of matrix products and attention,
N^2 terms included (the line for HistoPrism in Figure 3 of its paper leaves them out). With several
sizes, HistoPrism's time is set against c1 N + c2 N^2, where c2 is what the measured rate of
attention asks for. A row that does not fit the memory or takes longer than --limit stays in the
table with the reason. Writes OUT/profile.csv and OUT/profile.png.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
import traceback
import warnings

from histokit.core.options import Checked, option, run
from histokit.core.precision import PRECISIONS

CHECKED, FEW_GENES = 300, 1000  # patches and genes of the comparison with the other form
WARM = 64  # patches of a call before the memory is measured: it loads what is loaded once
SLOW = 10.0  # seconds of a call that is not repeated, and of all calls that are
TOLERANCE = {"float32": 1e-4, "float64": 1e-9, "float16": 3e-2, "bfloat16": 1e-1}
GROUPS = ("histoprism", "stpath", "stpath-layer", "bpbooster", "gpc", "train")
KEYS = ("calls", "ms_p20", "ms_p50", "ms_p80", "peak_mb", "gflop")  # that a row's process finds


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """Options of a profile."""

    patches: list[int] = option([10_000], "patches of a slide; several for curves", least=1)
    genes: int = option(38_982, "genes that are predicted", least=1)
    rows: list[str] = option(
        ["histoprism", "stpath-layer", "bpbooster", "gpc"],
        f"groups of rows to measure, of {', '.join(GROUPS)}; stpath is all four of its layers",
    )
    train: bool = option(False, "also one training step of HistoPrism")
    train_patches: int = option(3_000, "patches of the training step", least=1)
    out: str = option("work/profile", "folder for profile.csv and profile.png")
    device: str = option("cpu", "torch device, such as cpu or cuda", group="machine")
    dtype: str = option("float32", "type of weights and data", tuple(TOLERANCE), group="machine")
    precision: str = option(
        "float32",
        "of the products of float32 factors, in all rows; what it changes in their results is in "
        "the table; tf32 is for CUDA",
        PRECISIONS,
        group="machine",
    )
    repeat: int = option(3, "timed calls, of which the median counts", group="machine", least=1)
    limit: float = option(
        600.0, "seconds that all of one row may take", group="machine", above=0, most=1e6
    )
    threads: int = option(2, "CPU threads", group="machine", least=1, most=1024)


def main(cfg: Options) -> None:
    """Measure every row at every size; print and write the table, draw the figure."""
    from histokit.core.distributed import check_device
    from histokit.core.errors import InputError
    from histokit.core.files import make_folder, write_rows

    check_device(cfg.device)
    if cfg.precision != "float32" and cfg.dtype != "float32":
        raise InputError(
            f"--precision {cfg.precision} is of float32 factors, got --dtype {cfg.dtype}; give one "
            "of the two"
        )
    if cfg.precision == "tf32" and not cfg.device.startswith("cuda"):
        print(f"--precision tf32 changes nothing on {cfg.device}: float32", flush=True)
    unknown = set(cfg.rows) - set(GROUPS)
    if unknown:
        raise InputError(f"--rows {sorted(unknown)[0]} is none of {', '.join(GROUPS)}")
    from histokit.profile.cases import ROWS
    from histokit.profile.plots import draw_profile

    folder = make_folder(cfg.out)
    limits = _measure(cfg, "rates", WARM)
    if "machine" not in limits:
        raise InputError(f"the machine's rates could not be measured: {limits['note']}")
    print(
        f"{limits['machine']}: {limits['matrix']:.0f} GFLOP/s in {cfg.dtype} products, "
        f"{limits['copy']:.1f} GB/s in copies"
    )
    rows = []
    wanted = {*cfg.rows, *(["train"] if cfg.train else [])}
    for name, row in ROWS.items():
        if row.group not in wanted:
            continue
        for patches in [cfg.train_patches] if row.group == "train" else cfg.patches:
            rows.append(_row(cfg, name, patches, limits, rows))
            _show(rows[-1])
            write_rows(folder / "profile.csv", rows)
    _grow(rows, limits)
    write_rows(folder / "profile.csv", rows)
    curves = [row for row in rows if ROWS[row["row"]].curve]
    draw_profile(curves or rows, folder / "profile.png")
    print(f"wrote {folder / 'profile.csv'} and {folder / 'profile.png'}")


def _row(cfg: Options, name: str, patches: int, limits, rows) -> dict:
    from histokit.profile.cases import ROWS

    found = _measure(cfg, name, patches)
    by_name = {row["row"]: row for row in rows if row["patches"] == patches}
    published, careful = (by_name.get(r, {}) for r in (ROWS[name].against, ROWS[name].careful))

    def ratio(other: dict, key: str):
        both = other.get(key) and found.get(key)
        return round(other[key] / found[key], 2) if both else ""

    seconds = found.get("ms_p50", 0) / 1e3
    gflops = found["gflop"] / seconds if seconds else 0
    return {
        "row": name,
        "patches": patches,
        "genes": cfg.genes,
        **{key: found.get(key, "") for key in KEYS},
        "against": ROWS[name].against or "",
        "time_ratio": ratio(published, "ms_p50"),
        "memory_ratio": ratio(published, "peak_mb"),
        "careful": ROWS[name].careful or "",
        "careful_time_ratio": ratio(careful, "ms_p50"),
        "careful_memory_ratio": ratio(careful, "peak_mb"),
        "gflop_per_s": round(gflops, 1) if seconds else "",
        "of_matrix_rate": round(gflops / limits["matrix"], 3) if seconds else "",
        "of_copy_rate": round(found["gb"] / seconds / limits["copy"], 3) if seconds else "",
        "of_model": "",  # _grow fills it in
        "error": found.get("error", ""),
        "note": found.get("note", ""),
        "machine": limits["machine"],
        "matrix_gflop_per_s": round(limits["matrix"], 1),
        "attention_gflop_per_s": round(limits["attention"], 1),
        "copy_gb_per_s": round(limits["copy"], 1),
        "dtype": cfg.dtype,
        "precision": cfg.precision,
        "max_difference": found.get("max_difference", ""),
        "rms_difference": found.get("rms_difference", ""),
        "torch": limits["torch"],
        "kernels": limits["kernels"],
    }


def _grow(rows: list[dict], limits: dict) -> None:
    """Compare HistoPrism's time with its model in N, where several N were measured."""
    from histokit.profile.cases import LAYERS, WIDTH
    from histokit.profile.measure import growth

    here = {r["patches"]: r for r in rows if r["row"] == "HistoPrism here" and r["ms_p50"]}
    if len(here) < 2:
        return
    quadratic = 4 * LAYERS * WIDTH / (limits["attention"] * 1e9)
    found = growth({n: row["ms_p50"] / 1e3 for n, row in here.items()}, quadratic)
    for patches, ratio in found.items():
        here[patches]["of_model"] = round(ratio, 3)
    print(
        f"HistoPrism here over c1 N + c2 N^2, attention at {limits['attention']:.0f} GFLOP/s: "
        + ", ".join(f"{n:,} patches {ratio:.2f}" for n, ratio in found.items())
    )


def _measure(cfg: Options, name: str, patches: int) -> dict:
    """What a process of its own found, or a note why it found nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["histokit.profile.cases"])  # imported once for all rows
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(cfg, name, patches, theirs), daemon=True)
    child.start()
    theirs.close()
    end = time.monotonic() + cfg.limit
    try:
        while ours.poll(max(0.0, end - time.monotonic())):
            kind, what = ours.recv()
            if kind == "found":
                return what
            if kind == "wait":
                print(f"{name}, {patches:,} patches: about {what:.0f} s", flush=True)
                continue
            if kind == "memory":
                return {"note": "left out: does not fit the memory"}
            raise RuntimeError(f"{name} at {patches} patches failed:\n{what[-3000:]}")
        return {"note": f"left out: takes longer than {cfg.limit:g} s"}
    except EOFError:  # the kernel ended it
        return {"note": "left out: does not fit the memory"}
    finally:
        child.kill()
        child.join()


def _work(cfg: Options, name: str, patches: int, pipe) -> None:
    """A row's process: sends its expected wait, then what it found or a traceback."""
    from histokit.core.memory import is_out_of_memory

    warnings.simplefilter("ignore")  # torch's on sparse tensors, scipy's on constant genes
    try:
        pipe.send(("found", _child(cfg, name, patches, lambda wait: pipe.send(("wait", wait)))))
    except Exception as error:
        kind = "memory" if is_out_of_memory(error) else "failed"
        pipe.send((kind, traceback.format_exc()))


def _child(cfg: Options, name: str, patches: int, tell) -> dict:
    """Measure one row, or the machine's rates, in this process: the check, memory, time."""
    import torch

    from histokit.core.memory import keep_freed_memory
    from histokit.core.precision import products
    from histokit.profile import measure
    from histokit.profile.cases import ROWS, attention_rate

    torch.set_num_threads(cfg.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, cfg.dtype)
    if name == "rates":
        about = {"machine": measure.machine(cfg.device), "torch": torch.__version__}
        with products(cfg.precision, cfg.device):
            about |= {"kernels": _kernels(), "attention": attention_rate(cfg.device, dtype)}
            return about | measure.rates(cfg.device, dtype)
    at = measure.Setting(patches, cfg.genes, cfg.device, dtype)
    build = ROWS[name].build

    def few(patches: int, genes: int = FEW_GENES):
        """The row at a size that takes little time."""
        patches, genes = min(patches, at.patches), min(genes, at.genes)
        return build(dataclasses.replace(at, patches=patches, genes=genes))

    measure.bound_memory(cfg.device)
    with torch.no_grad():
        few(WARM).call()
        wait = _expected_seconds(few, at)
        if wait > SLOW:
            tell(wait)
        small = few(CHECKED)
        ours, theirs = small.check()
        error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        if not error <= TOLERANCE[cfg.dtype]:  # NaN is none either
            raise RuntimeError(f"relative difference {error:.1e} from the other form")
    with torch.no_grad(), products(cfg.precision, cfg.device):
        changed = {}
        if cfg.precision != "float32":
            changed = _difference(small.check()[0].float(), ours)
        del ours, theirs, small
        case, peak = build(at), []
        start = time.perf_counter()
        gflop = measure.operations(lambda: peak.append(measure.peak_memory(case.call, cfg.device)))
        seconds = [time.perf_counter() - start]
        if seconds[0] <= SLOW:
            keep_freed_memory()
            case.call()
            repeat = max(1, min(cfg.repeat, int(SLOW / seconds[0])))
            seconds = measure.seconds_of(case.call, repeat, cfg.device)
    p20, p50, p80 = (
        round(seconds[min(len(seconds) - 1, int(len(seconds) * q))] * 1e3, 2)
        for q in (0.2, 0.5, 0.8)
    )
    found = {"ms_p20": p20, "ms_p50": p50, "ms_p80": p80, "calls": len(seconds)}
    gflop = (gflop + case.uncounted) / 1e9
    found |= {"peak_mb": round(peak[0], 1), "gflop": round(gflop, 2), "gb": case.traffic / 1e9}
    return found | {"error": float(f"{error:.1e}")} | changed


def _difference(found, expected) -> dict[str, float]:
    """The largest and the root mean square difference, of the expected results' own."""
    error, size = (found - expected).double(), expected.double()
    most = (error.abs().max() / size.abs().max()).item()
    mean = (error.square().mean() / size.square().mean()).sqrt().item()
    return {"max_difference": float(f"{most:.1e}"), "rms_difference": float(f"{mean:.1e}")}


def _expected_seconds(few, at) -> float:
    """Seconds of a call, from four small ones: a N + b N^2 + c G + d N G for N patches, G genes."""
    import numpy as np
    from scipy.optimize import nnls

    def terms(n: int, g: int) -> list[float]:
        return [n, n**2, g, n * g]

    sizes, seconds = [], []
    for patches in (CHECKED, 2 * CHECKED):
        for genes in (FEW_GENES, 2 * FEW_GENES):
            call = few(patches, genes).call
            start = time.perf_counter()
            call()
            sizes.append(terms(min(patches, at.patches), min(genes, at.genes)))
            seconds.append(time.perf_counter() - start)
    return float(np.dot(terms(at.patches, at.genes), nnls(np.array(sizes), seconds)[0]))


def _kernels() -> str:
    import histokit

    if not histokit.has_kernels():
        return "reference"
    from histokit import _C

    return _C.build_info()["instruction_set"]


def _show(row: dict) -> None:
    """Print one line of the table."""
    start = f"{row['row']:30} {row['patches']:7,} patches "
    if row["note"]:
        print(start, row["note"], flush=True)
        return
    ratios = ""
    if row["time_ratio"]:
        ratios = f"{row['time_ratio']:.1f}x time, {row['memory_ratio']:.1f}x memory"
    if row["max_difference"] != "":
        ratios += f"; {row['precision']} changes {row['rms_difference']:.0e} (RMS)"
    if row["careful_time_ratio"]:
        ratios += f"; against the careful form {row['careful_time_ratio']:.1f}x time"
    print(
        f"{start}{row['ms_p50']:11,.1f} ms {row['peak_mb']:10,.0f} MB {row['gflop']:10,.1f} GFLOP "
        f"= {row['of_matrix_rate']:5.0%} of the matrix rate  {ratios}",
        flush=True,
    )


if __name__ == "__main__":
    run(main, Options, __doc__)
