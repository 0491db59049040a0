"""Load a student (hub name, model folder or adapter folder), and say beforehand all that is wrong with it, by name.

Weights come from safetensors only (pickles can run code), and code of a model's repository is never run.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact_distill.errors import StudentError
from compact_distill.runs.progress import say

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# The commit of each hub model in use: what a run has pinned, or a user has written as NAME@COMMIT. A model that changes
# on the hub changes nothing here then, and whatever loads a student (or the base under an adapter) loads the same.
_PINNED: dict[str, str] = {}

# Each of these is tested against the slow reference. Others may well work; none is trusted untested.
SUPPORTED = ("llama", "qwen2", "qwen3", "gemma3_text", "mistral", "smollm3", "olmo2", "olmo3")
_LINEAR_ATTENTION = ("linear_attention", "mamba", "recurrent", "conv", "chunked_attention")

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
_ADAPTER = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def check_student(student: str | Path) -> list[str]:
    """Everything that makes a student unusable, as messages; empty where it can be loaded.

    Reads config and tokenizer, not the weights. A hub name is looked up (its small files are fetched).
    """
    folder = Path(student)
    if not folder.exists() and not _looks_like_hub_name(str(student)):
        return [f"student folder {student} does not exist; name a folder or a hub model such as Qwen/Qwen2.5-1.5B"]
    if folder.is_file():
        return [f"student must be a folder or a hub name, but {student} is a file; name the folder that holds it"]
    if (folder / _ADAPTER).is_file():
        return _check_adapter(folder)
    missing = _missing_files(folder) if folder.is_dir() else []
    return missing or _check_contents(str(student))


def split_revision(student: str | Path) -> tuple[str, str | None]:
    """Name and revision (commit, tag or branch) of a student written `NAME@REVISION`; a folder has none."""
    name, at, revision = str(student).rpartition("@")
    return (name, revision) if at and not Path(student).exists() else (str(student), None)


def pin(name: str, commit: str | None) -> None:
    """Load this hub model as it is at `commit` from now on, in this process; None: as the hub has it."""
    _PINNED.pop(name, None)
    if commit is not None:
        _PINNED[name] = commit


def revision_of(student: str | Path) -> str | None:
    """The revision that a student is loaded at: what its name says, else what was pinned; None: the hub's newest."""
    name, revision = split_revision(student)
    return revision or _PINNED.get(name)


def _from_hub(student: str | Path) -> tuple[str, dict[str, Any]]:
    """Name and options for transformers' `from_pretrained`."""
    return split_revision(student)[0], {"revision": revision_of(student), "trust_remote_code": False}


def _looks_like_hub_name(name: str) -> bool:
    parts = split_revision(name)[0].split("/")
    return len(parts) <= 2 and all(parts) and not name.startswith((".", "~"))


def _missing_files(folder: Path) -> list[str]:
    wrong = []
    if (folder / "manifest.json").is_file() and (folder / "student").is_dir():
        return [f"student folder {folder} is a run's folder; its student is {folder / 'student'}"]
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
    return wrong + _weight_problems(folder)


def _weight_problems(folder: Path) -> list[str]:
    """What is wrong with a folder's weights as files: pointers, cut ones, an index that leads elsewhere."""
    wrong = []
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            wrong.append(f"{index} must map weights to files, but cannot be read ({error!r}); save the model again")
            continue
        for name in sorted(map(str, named)):
            if Path(name).name != name or not name.endswith(".safetensors"):
                wrong.append(
                    f"{index} names {name!r}, which is no safetensors file of this folder, so it is not opened; "
                    "convert the model with model.save_pretrained(..., safe_serialization=True)"
                )
            elif not (folder / name).is_file():
                wrong.append(f"student folder {folder} is incomplete: {name} is missing; copy or download it again")
    files = sorted(folder.glob("*.safetensors"))
    return wrong + [f"{file} {fault}" for file in files if (fault := _safetensors_fault(file))]


def _missing_layers(folder: Path, layers: int) -> list[str]:
    """Say so where a folder's weights lack whole layers: transformers would fill them with random numbers."""
    if not folder.is_dir():
        return []
    found = {
        int(number[1])
        for file in folder.glob("*.safetensors")
        for name in _header(file)
        if (number := _LAYER.search(name))
    }
    missing = sorted(set(range(layers)) - found)
    if not missing:
        return []
    shown = ", ".join(map(str, missing[:8]))
    return [
        f"student folder {folder} is incomplete: its weights lack {len(missing)} of {layers} layers ({shown}); copy or "
        "download it again"
    ]


def _header(file: Path) -> dict[str, Any]:
    """What a safetensors file says of its tensors; empty where it cannot be read (`_safetensors_fault` tells that)."""
    try:
        with file.open("rb") as stream:
            header: dict[str, Any] = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    except (OSError, ValueError, RecursionError, MemoryError, OverflowError):
        return {}
    return header


def _safetensors_fault(file: Path) -> str | None:
    """What is wrong with a file by its header: 8 bytes of length, JSON with the place of each tensor, the tensors."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            if start.startswith(b"version "):
                return "is a Git LFS pointer, not the weights; fetch them with `git lfs pull`"
            length = int.from_bytes(start, "little")
            if len(start) < 8 or not 0 < length <= size - 8:
                return f"is cut or no safetensors file ({size} bytes); copy or download it again"
            header = json.loads(stream.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        return f"has a header that cannot be read ({type(error).__name__}); copy or download it again"
    expected = 8 + length + max(ends, default=0)
    return None if size == expected else f"has {size} bytes, not {expected}; copy or download it again"


def adapter_on_adapter(folder: Path, base: str) -> str:
    """What to say of an adapter whose base is an adapter, perhaps itself: nothing follows such a chain."""
    return f"base model of adapter {folder}: {base} is an adapter itself; merge it into its own base first"


def _check_adapter(folder: Path) -> list[str]:
    try:
        base = _adapter_and_base(folder)[1]
    except StudentError as error:
        return error.problems
    if (Path(base) / _ADAPTER).is_file():
        return [adapter_on_adapter(folder, base)]
    if not (folder / _ADAPTER_WEIGHTS).is_file():  # peft would then open a pickle
        return [f"adapter folder {folder} holds no {_ADAPTER_WEIGHTS}; save the adapter again with peft"]
    return _weight_problems(folder) + [f"base model of adapter {folder}: {message}" for message in check_student(base)]


def _check_contents(student: str) -> list[str]:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig

    name, options = _from_hub(student)
    try:
        raw = dict(PreTrainedConfig.get_config_dict(name, revision=options["revision"])[0])
    except Exception as error:  # here and below: transformers may raise anything at what somebody else wrote
        what = f"student {student!r}{'' if Path(student).is_dir() else ', which is no folder here'}: its config"
        return [f"{what} cannot be read ({_first_line(error)}); check name, network or folder"]
    if "auto_map" in raw:
        return [
            f"student {student!r} brings code of its own (auto_map in config.json), which is never run; "
            "use a model that transformers implements"
        ]
    if raw.get("quantization_config"):
        return [
            f"student {student!r} is quantised (quantization_config in config.json) and cannot be trained here; name "
            "the model that it was made from"
        ]
    try:
        config = AutoConfig.from_pretrained(name, **options)
    except Exception as error:
        return [f"student {student!r}: transformers cannot read its config ({_first_line(error)}); check model_type"]
    wrong = architecture_problems(config)
    try:
        GenerationConfig.from_pretrained(name, revision=options["revision"])
    except Exception as error:
        if not isinstance(error, OSError) or (Path(name) / "generation_config.json").is_file():  # there need not be one
            told = f"generation_config.json cannot be read ({_first_line(error)}); mend or remove it"
            wrong.append(f"student {student!r}: {told}")
    wrong += [] if wrong else _missing_layers(Path(name), getattr(config, "num_hidden_layers", 0))
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except Exception as error:
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
        student: hub name, NAME@REVISION, or folder.
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
    name, options = _from_hub(base)
    read: Any = AutoModelForCausalLM.from_pretrained
    model, info = read(name, dtype=dtype, use_safetensors=True, output_loading_info=True, **options)
    if missing := sorted(info["missing_keys"]):
        raise StudentError(
            f"student {str(student)!r} is incomplete: {len(missing)} weights are missing, such as {missing[0]}, and "
            "would be random numbers; copy or download it again"
        )
    _make_savable(model)
    if adapter is not None:
        from peft import PeftModel

        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")  # what is missing would do nothing
            try:
                model = PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
            except (UserWarning, RuntimeError) as error:
                told = f"adapter {adapter} does not fit its base {base}: {' '.join(str(error).split())[:300]}"
                raise StudentError(f"{told}; save it again, or name the base that it was made for") from error
    if device is not None:
        model = model.to(device)
    return model, tokenizer


def _make_savable(model: Any) -> None:
    """Mend a generation config that transformers loads but refuses to save, or the first checkpoint would end the run.

    Most often it has a temperature and does not sample. Training does not read it; where it cannot be mended so, the
    tokens that end a text are kept and the rest goes.
    """
    from transformers import GenerationConfig

    config = getattr(model, "generation_config", None)
    if config is None or _is_savable(config):
        return
    config.do_sample = True
    done = "sampling was turned on in it, as its temperature or top_p ask"
    if not _is_savable(config):
        kept = {name: getattr(config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model.generation_config = GenerationConfig(**kept)
        done = "only its end tokens were kept"
    say(f"student: its generation_config.json is one that transformers refuses to save; {done}")


def _is_savable(config: Any) -> bool:
    try:
        config.validate(strict=True)
    except ValueError:
        return False
    return True


def load_tokenizer(student: str | Path) -> PreTrainedTokenizerBase:
    """Load a student's tokenizer alone: the adapter folder's own where it has one, else its base model's."""
    from transformers import AutoTokenizer

    adapter, base = _adapter_and_base(student)
    own = adapter is not None and any((adapter / name).is_file() for name in _TOKENIZER_FILES)
    name, options = _from_hub(adapter if own and adapter is not None else base)
    return AutoTokenizer.from_pretrained(name, **options)


def adapter_base(student: str | Path) -> str | None:
    """The base model that an adapter folder names; None where the student is a model of its own."""
    return _adapter_and_base(student)[1] if (Path(student) / _ADAPTER).is_file() else None


def _adapter_and_base(student: str | Path) -> tuple[Path | None, str]:
    """The adapter folder, or None where the student is a model of its own; and the (base) model, with its commit."""
    folder = Path(student)
    if not (folder / _ADAPTER).is_file():
        return None, str(student)
    try:
        settings = json.loads((folder / _ADAPTER).read_text(encoding="utf-8"))
        base, revision = settings["base_model_name_or_path"], settings.get("revision")
        return folder, base if Path(base).exists() or not revision else f"{base}@{revision}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        told = f"{folder / _ADAPTER} must name base_model_name_or_path ({error}); save the adapter again with peft"
        raise StudentError(f"{told}, or where it is a run's student: `compact run --verify` makes it again") from error


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


def architecture_problems(config: Any) -> list[str]:
    """Everything in a model's config that the one pass cannot follow, as messages; empty where it is fine."""
    name = getattr(config, "model_type", type(config).__name__)
    layers = set(getattr(config, "layer_types", None) or ())
    foreign = sorted(layers - {"full_attention", "sliding_attention"})
    if foreign:
        kind = "hybrid or linear-attention" if any(f in _LINEAR_ATTENTION for f in foreign) else "unknown attention"
        return [
            f"student architecture '{name}' has {kind} layers ({', '.join(foreign)}): branches cannot share a prompt "
            f"there; use one of {', '.join(SUPPORTED)}"
        ]
    if name not in SUPPORTED:
        return [f"student architecture '{name}' is not supported; use one of {', '.join(SUPPORTED)}"]
    wrong = []
    if getattr(config, "attention_dropout", 0.0):
        wrong.append(f"student config attention_dropout must be 0, got {config.attention_dropout}; set it to 0.0")
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, key, None) is not None:
            wrong.append(f"student config {key} must be null, got {getattr(config, key)}; caps are unsupported")
    if getattr(config, "use_bidirectional_attention", False):
        wrong.append("student config use_bidirectional_attention must be false: a student must read left to right")
    return wrong


def adapter_problems(model: nn.Module) -> list[str]:
    """Everything in a model's adapters that the one pass would leave out, as messages; empty where it is fine."""
    wrong = []
    for config in (getattr(model, "peft_config", None) or {}).values():
        if getattr(config, "is_prompt_learning", False):
            wrong.append(f"adapter {config.peft_type.value} adds tokens of its own, which is unsupported; use LoRA")
    if hasattr(innermost(model).get_output_embeddings(), "base_layer"):
        wrong.append(
            "an adapter on the LM head is unsupported (the head is read in chunks, past it); take lm_head out of "
            "target_modules, or train it whole with modules_to_save=['lm_head']"
        )
    return wrong


def innermost(model: nn.Module) -> Any:
    """The causal language model inside wrappers (DistributedDataParallel, torch.compile, peft)."""
    inner: Any = model
    while True:
        if hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        elif hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        elif type(inner).__name__ in ("DistributedDataParallel", "DeepSpeedEngine"):
            inner = inner.module
        else:
            return inner
