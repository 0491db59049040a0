"""What a run or a bug report needs to know about the machine: versions and hardware; no names, paths or secrets."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from compact_distill.errors import ConfigError

_PACKAGES = (
    "compact-distill",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "peft",
    "datasets",
    "safetensors",
    "math-verify",
    "numpy",
    "pydantic",
)
_OPTIONAL = ("flash-attn", "deepspeed", "lm-eval", "ray", "trackio", "trl", "vllm")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on; optional ones where they are installed."""
    found = {"python": platform.python_version()}
    for name in (*_PACKAGES, *_OPTIONAL):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name in _PACKAGES:
                found[name] = "not installed"
    return found


def hardware() -> dict[str, Any]:
    """System, processor, memory and accelerators (memory in GiB); this imports torch."""
    import torch

    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            gpus.append(f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute {gpu.major}.{gpu.minor}")
    elif torch.backends.mps.is_available():
        gpus.append("Apple MPS")
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": _cores(),
        "memory_gib": _memory_gib(),
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
    }


def peak_memory_mib() -> float:
    """The most memory this process held so far: the accelerator's where there is one, else the machine's."""
    import torch

    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def accelerator(asked: str = "auto", writes_only: bool = False) -> str:
    """Where a model goes: where it is asked to, or, with "auto", to the GPU where there is one, else the CPU.

    Args:
        asked: "auto", or a device as torch names it.
        writes_only: whether the model only writes texts. Apple's GPU will do for that; it has no kernels for the one
            pass and no fp64, so students are not read there.

    Raises:
        ConfigError: a CUDA GPU is asked for and torch sees none.
    """
    import torch

    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {asked} needs a GPU that torch sees; torch.cuda.is_available() is False; use cpu")
    if asked != "auto":
        return asked
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if writes_only and torch.backends.mps.is_available() else "cpu"


def _doctor_file() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "compact-distill" / "doctor.json"


def store_doctor(summary: str, device: str) -> bool:
    """Keep the doctor's last result, so that `compact env` can name it; False where the cache cannot be written.

    Args:
        summary: its result in a sentence; no paths or names.
        device: what it ran on.
    """
    from compact_distill.runs.files import atomic_write

    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    result = {"summary": summary, "device": device, "date": today, "torch": importlib.metadata.version("torch")}
    try:
        _doctor_file().parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(_doctor_file()) as file:
            file.write(json.dumps(result) + "\n")
    except OSError:
        return False
    return True


def last_doctor() -> str:
    """What `compact doctor` said last, when, on what and with which torch; or that it was not run."""
    try:
        result = json.loads(_doctor_file().read_text(encoding="utf-8"))
        said = f"{result['summary']} ({result['date']}, {result['device']}, torch {result['torch']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "not run; try: compact doctor"
    if result["torch"] != importlib.metadata.version("torch"):
        return f"{said}; torch has changed since, run it again"
    return said


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):  # a system that does not tell
        return None
