"""What a run ran on: recorded with every report, so that its figures can be judged."""

import os
import platform
import sys
from pathlib import Path
from typing import Any

from jobs import hardware
from orchestrator.runs import versions


def host() -> dict[str, Any]:
    """Processor, its instruction sets, cores and memory of this machine."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = (line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line)
        model = next(names, model)
    found = hardware.flags()
    cuda = hardware.has_cuda()
    return {
        "processor": model,
        "instructions": list(found),
        "abilities": hardware.abilities(found, cuda=cuda).words,
        "cuda": cuda,
        "cpus": os.cpu_count() or 1,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": sys.version.split()[0],
    }


def environment() -> dict[str, Any]:
    return {"versions": versions(), "host": host()}


def timing_host() -> dict[str, Any]:
    """What latencies depend on: a measurement is reused on the same kind of host only."""
    return {key: value for key, value in host().items() if key in ("processor", "instructions", "cpus")}
