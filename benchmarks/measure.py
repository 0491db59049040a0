"""Measuring tools: memory, the machine's matmul rate, and a description of the machine that names nothing private."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def describe_machine(device: str) -> dict[str, Any]:
    """Processor, memory, accelerator and versions; no host name, user or path."""
    machine: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
    }
    if device == "cuda":
        machine["accelerator"] = torch.cuda.get_device_name()
        machine["cuda"] = torch.version.cuda
    return machine


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def matmul_rate(device: str, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Fastest rate, in floating-point operations a second, of matrix products of some sizes; each runs `seconds`."""
    return max(_rate(shape, device, dtype, seconds) for shape in _sizes(device))


def _sizes(device: str) -> list[tuple[int, int, int]]:
    if device == "cuda":
        return [(8192, 8192, 8192), (16384, 4096, 4096)]
    return [(1024, 1024, 1024), (2048, 2048, 2048), (2048, 256, 1024)]


def _rate(shape: tuple[int, int, int], device: str, dtype: torch.dtype, seconds: float) -> float:
    m, k, n = shape
    a, b = torch.randn(m, k, device=device, dtype=dtype), torch.randn(k, n, device=device, dtype=dtype)
    out = a @ b
    fastest, end = float("inf"), time.perf_counter() + seconds
    repeats = max(1, 2**31 // (m * k * n))
    while time.perf_counter() < end:
        synchronise(device)
        start = time.perf_counter()
        for _ in range(repeats):
            torch.mm(a, b, out=out)
        synchronise(device)
        fastest = min(fastest, (time.perf_counter() - start) / repeats)
    return 2 * m * k * n / fastest


def synchronise(device: str) -> None:
    """Wait until the accelerator has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


class MemoryMeter:
    """Peak memory of this process since `start`, in bytes above what it held then.

    CPU: the kernel's high-water mark of the resident set, reset at the start (Linux; elsewhere it is not measured).
    Caches are emptied and freed memory is given back to the system first. CUDA: the allocator's own peak.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._baseline = 0

    def start(self) -> None:
        """Take the baseline."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self._baseline = torch.cuda.memory_allocated()
        elif _STATUS.exists():
            _trim()
            self._baseline = _status("VmRSS")
            # Where this is forbidden the mark is that of the whole process, which training exceeds.
            with contextlib.suppress(OSError):
                _CLEAR.write_text("5", encoding="ascii")

    def stop(self) -> int:
        """Peak above the baseline, bytes; 0 where it cannot be measured."""
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() - self._baseline
        return _status("VmHWM") - self._baseline if _STATUS.exists() else 0


def _status(key: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} must have {key}")


def _trim() -> None:
    """Give memory that was freed back to the system, where the C library can (glibc)."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return
