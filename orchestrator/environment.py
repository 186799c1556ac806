"""What a run ran on: recorded with every report, so that its figures can be judged."""

import os
import platform
import sys
from pathlib import Path
from typing import Any

from orchestrator.runs import versions

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16", "asimd")
"""Instruction sets that decide which number formats are fast."""


def host() -> dict[str, Any]:
    """Processor, its instruction sets, cores and memory of this machine."""
    model, flags = platform.processor() or platform.machine(), set[str]()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = set(value.split())
                break
    return {
        "processor": model,
        "instructions": [flag for flag in _FLAGS if flag in flags],
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
