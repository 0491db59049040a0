"""Merge a student's adapter into its base, and show that the merged model computes what the two did."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact_distill.errors import ConfigError, RunError
from compact_distill.students.load import adapter_base, load_student

if TYPE_CHECKING:
    import torch

# What the two are compared on: plain text that every tokenizer knows; ten tokens and more.
_TEXTS = ("Question: Ann has 7 apples and buys 5 more. How many apples does she have?\nAnswer:", "The answer is 12.")
# Of the largest logit's magnitude. Merging rounds each weight once, which moves logits a little a layer.
_TOLERANCE = {"torch.float64": 1e-10, "torch.float32": 1e-4, "torch.float16": 2e-2, "torch.bfloat16": 1e-1}


def merge(student: str | Path, out: str | Path) -> float:
    """Write the adapter folder `student`, merged into its base, as one model into `out`; the folder appears whole.

    Args:
        student: folder of an adapter.
        out: a folder that does not exist yet, or is empty.

    Returns:
        The largest difference of a logit before and after, over the largest logit.

    Raises:
        ConfigError: no adapter; `out` holds files.
        StudentError: the adapter or its base cannot be loaded.
        RunError: the merged model computes something else; nothing is written then.
    """
    import torch

    out = Path(out)
    if adapter_base(student) is None:
        raise ConfigError(f"{student} must be an adapter's folder, but has no adapter_config.json; it is whole already")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} must be a new or empty folder, but holds files; choose another")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"{out} cannot be written: folder {out.parent} does not exist; make it first")
    model: Any
    model, tokenizer = load_student(student)
    model.eval()
    dtype = str(model.dtype)
    with torch.no_grad():
        before = [_logits(model, tokenizer, text) for text in _TEXTS]
        whole = model.merge_and_unload()
        after = [_logits(whole, tokenizer, text) for text in _TEXTS]
    scale = max(float(logits.abs().max()) for logits in before)
    difference = max(float((a - b).abs().max()) for a, b in zip(after, before, strict=True)) / scale
    limit = _TOLERANCE.get(dtype, 1e-1)
    if not difference <= limit:  # also where it is not a number
        raise RunError(
            f"the merged model differs from adapter and base by {difference:.2g} of the largest logit, more than "
            f"{limit:g} for {dtype}; nothing was written. Serve the adapter unmerged"
        )
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=".merged-") as scratch:
        folder = Path(scratch) / "model"
        whole.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        card = Path(student) / "README.md"
        if card.is_file():
            shutil.copyfile(card, folder / "README.md")
        if out.exists():
            out.rmdir()
        os.replace(folder, out)
    return difference


def _logits(model: Any, tokenizer: Any, text: str) -> torch.Tensor:
    import torch

    ids = torch.tensor([tokenizer(text)["input_ids"]], device=model.device)
    return model(input_ids=ids).logits[0].double()
