"""sentence-transformers models in batches of fixed shapes.

A text is padded to its own token count rounded up to a multiple of 8; texts of one padded length form batches of at
most 8 rows. Under one torch thread a vector then has the same bits whatever its neighbours, its place or the number of
rows (measured; a batch padded to its longest text doesn't have that), so an updated index equals a rebuilt one. It
costs nothing: batches that stay in the cache are the fastest on a CPU. An accelerator gets full batches only, so that
its shapes are fixed as well.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from aaflow.errors import DependencyError, InputError
from aaflow.operators.embedders import folder

#: Texts tokenised in one call, sorted by size so that the padded token matrix stays small.
_TOKENISED = 512
_ACCELERATOR_ROWS = 64


class SentenceEmbedder:
    """A sentence-transformers model on one device and one thread.

    Raises:
        InputError: the model can't be loaded, or it has another dimension than asked for.
        DependencyError: torch or sentence-transformers is missing.
    """

    def __init__(self, model: folder.Model, dimension: int | None, device: str) -> None:
        self.dimension = folder.dimension_of(model, dimension)
        self.fingerprint: Mapping[str, Any] = folder.fingerprint(model)
        self._model = _load(model, device)
        self._device = device
        # A fast tokenizer can't be used by two threads at once.
        self._tokenizing = threading.Lock()
        self._prompt = self._model.prompts.get(self._model.default_prompt_name) or None
        self._longest = int(self._model.max_seq_length or 1 << 30)
        tokenizer = self._model.tokenizer
        self._pad_left = tokenizer.padding_side == "left"
        self._padding = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": tokenizer.pad_token_type_id}

    def embed(self, texts: pa.Array, out: npt.NDArray[np.float32]) -> None:
        """See :class:`aaflow.operators.embedders.base.Embedder`."""
        by_size = pc.sort_indices(pc.fill_null(pc.binary_length(texts), 0)).to_numpy()
        for start in range(0, len(texts), _TOKENISED):
            rows = by_size[start : start + _TOKENISED]
            self._embed_rows(texts.take(pa.array(rows)).fill_null("").to_pylist(), rows, out)

    def _embed_rows(self, texts: list[str], rows: npt.NDArray[np.uint64], out: npt.NDArray[np.float32]) -> None:
        import torch

        with self._tokenizing:
            features = self._model.preprocess(texts, prompt=self._prompt)
        lengths = features["attention_mask"].sum(dim=1).numpy()
        torch.set_num_threads(1)
        with torch.inference_mode():
            for batch, length in _batches(lengths, self._longest, self._rows_at_most):
                shaped = self._shape(features, torch.from_numpy(self._filled(batch)), length)
                vectors = self._model(shaped)["sentence_embedding"][: len(batch), : self.dimension]
                out[rows[batch]] = vectors.float().cpu().numpy()

    @property
    def _rows_at_most(self) -> int:
        return folder.ROWS if self._device == "cpu" else _ACCELERATOR_ROWS

    def _filled(self, batch: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The rows of a batch; on an accelerator the last one is repeated until the batch is full."""
        if self._device == "cpu":
            return batch
        return np.concatenate([batch, np.full(self._rows_at_most - len(batch), batch[-1])])

    def _shape(self, features: Mapping[str, Any], batch: Any, length: int) -> dict[str, Any]:
        """The features of the rows ``batch`` with exactly ``length`` tokens each."""
        import torch

        shape = features["input_ids"].shape
        shaped: dict[str, Any] = {}
        for name, value in features.items():
            if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == shape[0]:
                value = value[batch]
                if value.shape[1:] == shape[1:]:
                    missing = max(0, length - shape[1])
                    value = value[:, max(0, shape[1] - length) :] if self._pad_left else value[:, :length]
                    edges = (missing, 0) if self._pad_left else (0, missing)
                    value = torch.nn.functional.pad(value, edges, value=self._padding.get(name, 0))
                value = value.to(self._device)
            shaped[name] = value
        return shaped


def _batches(lengths: npt.NDArray[np.int64], longest: int, rows: int) -> Iterator[tuple[npt.NDArray[np.int64], int]]:
    """Rows that share a batch, and the tokens they are padded to.

    A text that fills its shape never meets one that is padded: models take another path where nothing is masked.
    """
    step = folder.TOKEN_STEP
    padded = np.maximum(np.minimum((lengths + step - 1) // step * step, longest), lengths)
    shape = padded * 2 + (padded == lengths)
    order = np.argsort(shape, kind="stable")
    cuts = np.flatnonzero(np.diff(shape[order])) + 1
    for group in np.split(order, cuts):
        for start in range(0, len(group), rows):
            yield group[start : start + rows], int(padded[group[0]])


def _load(model: folder.Model, device: str) -> Any:
    try:
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as transformers_logging
    except ImportError as error:
        raise DependencyError(
            f"model {model.name!r} needs torch and sentence-transformers ({error}): pip install 'aaflow[models]'"
        ) from error
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]
    torch.set_num_threads(1)
    try:
        loaded = SentenceTransformer(str(model.path), device=device, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"model {model.name!r} in {model.path} can't be loaded on {device!r}: {error}") from error
    return loaded.float().eval()
