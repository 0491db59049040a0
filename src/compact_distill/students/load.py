"""Load a student (hub name, model folder or adapter folder), and say beforehand all that is wrong with it.

Weights come from safetensors only (pickles can run code), and code of a model's repository is never run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact_distill.errors import StudentError
from compact_distill.students.support import architecture_problems

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
_ADAPTER = "adapter_config.json"


def check_student(student: str | Path) -> list[str]:
    """Everything that makes a student unusable, as messages; empty where it can be loaded.

    Reads config and tokenizer, not the weights. A hub name is looked up (its small files are fetched).
    """
    folder = Path(student)
    if not folder.exists() and not _looks_like_hub_name(str(student)):
        return [f"student folder {student} does not exist; name a folder or a hub model such as Qwen/Qwen2.5-1.5B"]
    if folder.is_file():
        return [f"student must be a folder or a hub name, but {student} is a file; name the folder that holds it"]
    if folder.is_dir():
        if (folder / _ADAPTER).is_file():
            return _check_adapter(folder)
        missing = _missing_files(folder)
        if missing:
            return missing
    return _check_contents(str(student))


def _looks_like_hub_name(name: str) -> bool:
    parts = name.split("/")
    return len(parts) <= 2 and all(parts) and not name.startswith((".", "~"))


def _missing_files(folder: Path) -> list[str]:
    wrong = []
    if not (folder / "config.json").is_file():
        wrong.append(f"student folder {folder} holds no model: config.json is missing; save it with save_pretrained")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(p.name for p in [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
        if pickles:
            wrong.append(
                f"student folder {folder} holds pickle weights only ({', '.join(pickles[:3])}), which can run code "
                "when loaded; convert them with model.save_pretrained(..., safe_serialization=True)"
            )
        else:
            wrong.append(f"student folder {folder} holds no weights: *.safetensors is missing; save the model there")
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        wrong.append(f"student folder {folder} holds no tokenizer; save it there with tokenizer.save_pretrained")
    return wrong


def _check_adapter(folder: Path) -> list[str]:
    try:
        base = json.loads((folder / _ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError) as error:
        return [f"{folder / _ADAPTER} must name base_model_name_or_path ({error}); save the adapter again with peft"]
    if not any(folder.glob("*.safetensors")):
        return [f"adapter folder {folder} holds no *.safetensors; save the adapter again with peft"]
    return [f"base model of adapter {folder}: {message}" for message in check_student(base)]


def _check_contents(student: str) -> list[str]:
    from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

    try:
        raw, _ = PreTrainedConfig.get_config_dict(student)
    except (OSError, ValueError) as error:
        return [f"student {student!r}: its config cannot be read ({_first_line(error)}); check name, network or folder"]
    if "auto_map" in raw:
        return [
            f"student {student!r} brings code of its own (auto_map in config.json), which is never run; "
            "use a model that transformers implements"
        ]
    try:
        config = AutoConfig.from_pretrained(student, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        return [f"student {student!r}: transformers cannot read its config ({_first_line(error)}); check model_type"]
    wrong = architecture_problems(config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(student, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        return [*wrong, f"student {student!r}: its tokenizer cannot be loaded ({_first_line(error)}); save it again"]
    wrong += [f"student {student!r}: {message}" for message in tokenizer_problems(tokenizer)]
    size = getattr(config, "vocab_size", None)
    if size is not None and len(tokenizer) > size:
        wrong.append(
            f"student {student!r}: tokenizer has {len(tokenizer)} tokens but the model only {size}; "
            "they do not belong together, or embeddings must be resized"
        )
    return wrong


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def load_student(
    student: str | Path, dtype: torch.dtype | str = "auto", device: torch.device | str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer from a hub name, a model folder or an adapter folder (with its base model).

    Args:
        student: hub name or folder.
        dtype: of the weights; "auto": as they were saved.
        device: where the model goes; None: stays on the CPU.

    Raises:
        StudentError: with everything that `check_student` finds.
    """
    from transformers import AutoModelForCausalLM

    wrong = check_student(student)
    if wrong:
        raise StudentError(wrong)
    adapter, base = _adapter_and_base(student)
    tokenizer = load_tokenizer(student)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, trust_remote_code=False, use_safetensors=True)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
    if device is not None:
        model = model.to(device)
    return model, tokenizer


def load_tokenizer(student: str | Path) -> PreTrainedTokenizerBase:
    """Load a student's tokenizer alone: the adapter folder's own where it has one, else its base model's."""
    from transformers import AutoTokenizer

    adapter, base = _adapter_and_base(student)
    own = adapter is not None and any((adapter / name).is_file() for name in _TOKENIZER_FILES)
    return AutoTokenizer.from_pretrained(adapter if own else base, trust_remote_code=False)


def adapter_base(student: str | Path) -> str | None:
    """The base model that an adapter folder names; None where the student is a model of its own."""
    return _adapter_and_base(student)[1] if (Path(student) / _ADAPTER).is_file() else None


def _adapter_and_base(student: str | Path) -> tuple[Path | None, str]:
    """The adapter folder, or None where the student is a model of its own; and the (base) model."""
    folder = Path(student)
    if not (folder / _ADAPTER).is_file():
        return None, str(student)
    base = json.loads((folder / _ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
    return folder, base


def tokenizer_problems(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Everything that makes a tokenizer unusable here, as messages; empty where it is fine."""
    wrong = []
    if tokenizer.eos_token_id is None:
        wrong.append("tokenizer has no eos token: the student would never learn to stop; set tokenizer.eos_token")
    if not tokenizer.is_fast:
        wrong.append(
            f"tokenizer {type(tokenizer).__name__} gives no character offsets (is_fast is False); "
            "load it with use_fast=True or convert it"
        )
    return wrong
