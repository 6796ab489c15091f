"""CPU threads of a stage: as many as this process may use, and none that waits by spinning.

torch takes a thread for every core that the scheduler allows, but knows nothing of a container's
quota, and numba lets torch's threads grow to all cores at its first parallel call.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

# of libgomp: turns of a loop that a thread waits at a barrier before it sleeps, not 300,000
_SPINS = "1000"


def share_machine() -> None:
    """Set the variables that bound threads, before the libraries that read them are loaded.

    What the user has set stays; ``OMP_NUM_THREADS`` bounds the others too.
    """
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    threads = given if given.isdigit() and int(given) else str(available_cpus())
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, threads)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    if "torch" in sys.modules and not given:
        sys.modules["torch"].set_num_threads(int(threads))


def available_cpus() -> int:
    """Cores that this process may run on, by affinity and by its control groups' quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, min(cores, math.ceil(min(cpu_quota(), cores))))


def cpu_quota(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")):
    """Cores' worth of time that the control groups allow, infinite without a quota.

    Args:
        groups: the file that names this process's groups, of version 1 or 2.
        root: where the groups are mounted; a container may see its own as the root.
    """
    least = math.inf
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return least
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        here = base / path.lstrip("/")
        for folder in (here, *here.parents):
            if folder.is_relative_to(base):
                least = min(least, _quota_of(folder))
    return least


def _quota_of(folder: Path) -> float:
    """Of one group; a quota that is none is "max" in version 2 and -1 in version 1."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError):
        return math.inf
