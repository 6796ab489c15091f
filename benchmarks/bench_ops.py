"""Verify, then time every op against what people write today: one run, one table.

    python benchmarks/bench_ops.py                      # all ops on CPU, two threads
    python benchmarks/bench_ops.py --device cuda        # beside torch.compile of the reference
    python benchmarks/bench_ops.py --only linear_mse    # one op

Every op is measured against two kinds of rivals: "naive", the form that is published or written
first, and "careful", those of an engineer who looks for the fastest that stock torch gives (in
blocks, in place, compiled). Times are medians, after a first call; the naive forms run with the C
library's allocator as it is, which gives large tensors back to the kernel, the careful ones with
freed memory kept, and ours with both. Our result is verified against the reference, and every
rival's against ours. Peak memory is what a call needs beyond its inputs, measured in a child
process of its own, on CUDA by torch's allocator. There times are the device's, of CUDA graphs of
twenty calls where that is what a call does, on inputs past the second-level cache; ``host_ms`` is
what the host takes to issue a call, ``predicted_ms`` what arithmetic says of our kernels on an H100
(predicted.py). Writes benchmarks/results/ops-cuda.csv or ops-cpu-SET.csv
(of the instruction set: HISTOKIT_INSTRUCTIONS=avx2 asks for a lesser one), one row for each op,
provider and allocator; with --only the other ops' rows stay.
"""

import csv
import datetime
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from device_time import copies_past_cache, device_seconds, host_seconds
from op_cases import CASES, CUDA_ALONE
from predicted import beside, predicted

from histokit import _C, ops
from histokit.core.files import write_rows
from histokit.core.memory import keep_freed_memory
from histokit.core.options import option, run
from histokit.ops import dispatch
from histokit.profile import measure as profile_measure

HERE = Path(__file__).resolve()
RESULTS = HERE.parent / "results"


@dataclass(frozen=True)
class Options:
    """Command line."""

    device: str = option("cpu", "where to measure", choices=("cpu", "cuda"))
    threads: int = option(2, "CPU threads")
    only: str = option("", "one op of the table; empty for all")
    repeat: int = option(9, "timed calls of each provider")
    scale: float = option(1.0, "size of the inputs as a fraction of the table's")
    memory: bool = option(True, "measure peak memory too")
    child: str = option("", "internal: measure the memory of this provider and print it")


def times(calls: list, repeat: int, device: str, graph: bool) -> tuple[list[float], dict]:
    """Seconds of each call after a first one that is not counted, ascending; on CUDA also how.

    Args:
        calls: the same call, on each copy of its inputs.
        repeat: timed calls; 1 for one that is timed once, without a first.
        device: cpu or cuda.
        graph: whether a CUDA graph may be made of it.
    """
    if repeat > 1:
        for call in calls:
            call()
    if device == "cpu":
        return profile_measure.seconds_of(calls[0], repeat, device), {}
    if repeat == 1:
        return profile_measure.seconds_of(calls[0], 1, device), {"timed_by": "events, one call"}
    host = host_seconds(calls, repeat)
    found, how = device_seconds(calls, repeat, graph)
    about = {"timed_by": f"{how}, {len(calls)} copies of the inputs"}
    return found, about | {"host_ms": round(host * 1e3, 3)}


def peak_memory(call, repeat: int, device: str) -> float:
    """MB that a call needs beyond what was there before it; a median, after a first call."""
    if repeat > 1:
        call()
    return sorted(profile_measure.peak_memory(call, device) for _ in range(repeat))[repeat // 2]


def in_child(cfg: Options, name: str, provider: str) -> float:
    """Peak memory of one provider in a process of its own."""
    command = [sys.executable, str(HERE), "--only", name, "--child", provider]
    command += ["--device", cfg.device, "--threads", str(cfg.threads), "--scale", str(cfg.scale)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])


def memory_of(cfg: Options, name: str, provider: str, case, calls) -> float:
    """Peak memory of one provider; on CUDA the allocator tells, whatever ran before."""
    if cfg.device == "cpu":
        return in_child(cfg, name, provider)
    return peak_memory(calls[provider][1], 1 if provider in case.once else 3, cfg.device)


def providers(cfg: Options, name: str):
    """The case, and the kind and call of every provider by its name."""
    case = CASES[name](cfg.device, cfg.scale)
    calls = {"histokit": ("ours", case.ours)}
    calls |= {key: ("naive", call) for key, call in case.others.items()}
    calls |= {key: ("careful", call) for key, call in case.careful.items()}
    if cfg.device == "cuda":
        calls.pop("scipy per gene", None)  # minutes, on the CPU
        compiled = torch.compile(case.ours)
        calls["the reference, compiled"] = ("careful", lambda: by_reference(compiled))
    return case, calls


def copies(cfg: Options, name: str, case, calls) -> dict[str, list]:
    """Of each provider the call on every copy of the inputs, the first as given."""
    found = {provider: [call] for provider, (_, call) in calls.items()}
    if cfg.device == "cuda":
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        for _ in range(copies_past_cache(case.inputs, cache) - 1):
            for provider, (_, call) in providers(cfg, name)[1].items():
                found[provider].append(call)
    return found


def by_reference(call):
    """Result of a call by the op's definition."""
    with ops.use("reference"):
        return call()


def verify(name: str, case, calls) -> None:
    """Compare our result with the reference's, and those of all others with ours."""
    ours = case.ours()

    def compare(provider: str, call) -> None:
        found, bound = call(), case.loose.get(provider, case.tolerance)
        try:
            torch.testing.assert_close(found, ours, rtol=bound, atol=bound)
        except AssertionError as error:
            same = [_equal(case.ours(), ours), _equal(call(), found)]
            raise AssertionError(
                f"{name}, {provider}: {error}\n"
                f"the same when called again: ours {same[0]}, the other {same[1]}"
            ) from None

    compare("reference", lambda: by_reference(case.ours))
    for provider, (kind, call) in calls.items():
        if kind != "ours" and not provider.startswith("scipy"):
            compare(provider, call)  # scipy takes longer than all the others; the tests compare it


def _equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return all(map(torch.equal, a, b))


def measure(cfg: Options, name: str, limits: dict[str, float]) -> list[dict]:
    """Rows of one op: verified first, then timed."""
    case, calls = providers(cfg, name)
    verify(name, case, calls)
    in_turn, rows = copies(cfg, name, case, calls), []
    for kept, kinds in ((False, ("ours", "naive")), (True, ("ours", "careful"))):
        keep_freed_memory(kept)
        own = None
        for provider, (kind, _) in calls.items():
            if kind in kinds:
                repeat = 1 if provider in case.once else cfg.repeat
                found, about = times(in_turn[provider], repeat, cfg.device, case.graph)
                own = own or found[len(found) // 2]
                rows.append(_row(name, case, provider, kind, kept, found, own, limits) | about)
    if cfg.device == "cuda":
        for row in rows:
            row["predicted_ms"] = predicted_of(row)
    careful = [row for row in rows if row["kind"] == "careful"]
    best = min(careful, key=lambda row: row["ms_p50"])
    for row in rows:
        row["best_rival"] = "yes" if row is best else ""
    if cfg.memory:
        peaks = {provider: memory_of(cfg, name, provider, case, calls) for provider in calls}
        for row in rows:
            row["peak_mb"] = round(peaks[row["provider"]], 1)
            row["memory_ratio"] = round(row["peak_mb"] / max(rows[0]["peak_mb"], 0.1), 1)
    return rows


def predicted_of(row: dict) -> str:
    """Milliseconds that arithmetic gives our kernels on an H100; empty for rivals."""
    if row["kind"] != "ours":
        return ""
    return predicted(row["op"], row["size"], dispatch.TENSOR_CORES == "1")


def _row(name, case, provider, kind, kept, found, own, limits) -> dict:
    median = found[len(found) // 2]
    rate = case.work / median / 1e9
    ours = kind == "ours"
    return {
        "op": name,
        "size": case.size,
        "provider": provider,
        "kind": kind,
        "freed_memory": "kept" if kept else "given back",
        "ms_p20": round(found[len(found) // 5] * 1e3, 3),
        "ms_p50": round(median * 1e3, 3),
        "ms_p80": round(found[len(found) * 4 // 5] * 1e3, 3),
        "ratio": round(median / own, 2),
        "ratio_wanted": case.at_least.get(provider, ""),
        "rate": round(rate, 1) if ours else "",
        "rate_unit": "GFLOP/s" if case.limit == "matrix" else "GB/s",
        "fraction": round(rate / limits[case.limit], 2) if ours else "",
        "fraction_of": f"{case.limit} {limits[case.limit]:.0f}",
        "fraction_wanted": (case.fraction or "") if ours else "",
        "fresh_copy_rate": round(limits["fresh"], 1),
        "host_ms": "",
        "timed_by": "",
        "peak_mb": "",
        "memory_ratio": "",
        "memory_ratio_wanted": case.memory_at_least.get(provider, ""),
    }


def show(rows: list[dict]) -> None:
    """Print the table."""
    for row in rows:
        wanted = f"(wanted {row['ratio_wanted']})" if row["ratio_wanted"] else ""
        rate = f"{row['rate']} {row['rate_unit']} = {row['fraction']} of {row['fraction_of']}"
        rate = beside(rate, row.get("predicted_ms", "")) if row["rate"] else ""
        kind = f"{row['kind']}, {row['freed_memory']}"
        memory = f"{row.get('peak_mb', '')} MB x{row.get('memory_ratio', '')}"
        print(
            f"{row['op']:26} {row['provider']:36} {kind:18} {row['ms_p50']:10.2f} ms  "
            f"x{row['ratio']:<7} {wanted:14} {memory:20} {rate}"
        )


def main(cfg: Options) -> None:
    """Measure what was asked for, print it and write the CSV."""
    torch.set_num_threads(cfg.threads)
    torch.manual_seed(0)
    with torch.no_grad(), ops.use("kernels"):
        if cfg.child:
            case, calls = providers(cfg, cfg.only)
            repeat = 1 if cfg.child in case.once else 3
            print(json.dumps(peak_memory(calls[cfg.child][1], repeat, cfg.device)))
            return
        limits = profile_measure.rates(cfg.device, torch.float32)
        print("  ".join(f"{key} {value:.1f}" for key, value in limits.items()), "(GB/s, GFLOP/s)")
        about = _about(cfg)
        names = [name for name in CASES if cfg.device == "cuda" or name not in CUDA_ALONE]
        for name in [cfg.only] if cfg.only else names:
            found = measure(cfg, name, limits)
            show(found)
            if cfg.scale == 1:
                write({**row, **about} for row in found)


def _about(cfg: Options) -> dict:
    """Machine and versions, of every row."""
    device = torch.cuda.get_device_name() if cfg.device == "cuda" else f"{cfg.threads} threads"
    return {
        "device": device,
        "cpu": profile_measure.machine("cpu"),
        "instruction_set": _C.build_info()["instruction_set"],
        "torch": torch.__version__,
        "revision": _C.build_info()["git_revision"],
        "date": datetime.date.today().isoformat(),
    }


def _kind(row: dict) -> str:
    """cuda, or cpu and its instruction set, for each has kernels of its own: ``cpu-avx2``."""
    if "threads" not in row["device"]:
        return "cuda"
    name = row["instruction_set"].split("(")[-1].lower()
    return "cpu-" + "".join(letter for letter in name if letter.isalnum())


def write(rows) -> None:
    """Replace the rows of the same op and device in the CSV; the others stay."""
    rows = list(rows)
    out = RESULTS / f"ops-{_kind(rows[0])}.csv"
    out.parent.mkdir(exist_ok=True)
    new = {row["op"] for row in rows}
    if out.exists():
        with open(out, newline="") as handle:
            kept = [row for row in csv.DictReader(handle) if row["op"] not in new]
        rows = [dict.fromkeys(rows[0], "") | row for row in kept] + rows
    rows.sort(key=lambda row: list(CASES).index(row["op"]))
    write_rows(out, rows)
    print(f"wrote {out}")


if __name__ == "__main__":
    run(main, Options, __doc__)
