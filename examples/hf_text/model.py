"""A BERT of two layers that learns which of two names stands first in a sentence, written as one would without any
orchestrator: settings, data, a loop. `run` is where it meets the orchestrator."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from orchestrator.simple_project import Run

CLASSES, WORDS, LENGTH = 2, 30, 12
TRAIN, VALIDATION, TEST = range(800), range(800, 1000), range(1000, 1200)


@dataclass(frozen=True)
class Settings:
    """Of one run."""

    layers: int = 2
    width: int = 32
    positions: bool = True
    """Tell the model where in the sentence a word stands."""
    steps: int = 200
    batch_size: int = 32
    learning_rate: float = 3e-3
    seed: int = 0


def sentences() -> tuple[Tensor, Tensor]:
    """Word numbers [1200, 12] and classes [1200]; the same in every run. Words 0 and 1 are the names."""
    generator = np.random.default_rng(1)
    words_NL = generator.integers(2, WORDS, (1200, LENGTH))
    label_N = generator.integers(0, CLASSES, 1200)
    for words_L, label in zip(words_NL, label_N, strict=True):
        first, second = np.sort(generator.choice(LENGTH, 2, replace=False))
        words_L[first], words_L[second] = label, 1 - label
    return torch.from_numpy(words_NL), torch.from_numpy(label_N)


def build(settings: Settings) -> BertForSequenceClassification:
    """A new model; its weights follow from the seed."""
    torch.manual_seed(settings.seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=WORDS,
            hidden_size=settings.width,
            num_hidden_layers=settings.layers,
            num_attention_heads=2,
            intermediate_size=2 * settings.width,
            max_position_embeddings=LENGTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=CLASSES,
        )
    )


def train(settings: Settings, run: Run) -> Mapping[str, float] | None:
    """Train, and measure on validation and test sentences."""
    words_NL, label_N = sentences()
    model = build(settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate)
    if run.checkpoint is not None:
        load_model(model, run.checkpoint / "model.safetensors")
        optimizer.load_state_dict(torch.load(run.checkpoint / "optimizer.pt", weights_only=True))
    run.describe(parameters=sum(value.numel() for value in model.parameters()), device="cpu")
    if not settings.positions:
        torch.nn.init.zeros_(model.bert.embeddings.position_embeddings.weight.requires_grad_(False))

    for step in range(run.step + 1, settings.steps + 1):
        if run.should_stop():
            return None
        # Drawn from the step, so that a resumed run sees what an undisturbed one does.
        rows_B = np.random.default_rng((settings.seed, step)).choice(TRAIN, settings.batch_size)
        loss = model(input_ids=words_NL[rows_B], labels=label_N[rows_B]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0 or step == settings.steps:
            run.log(step, train_loss=loss.item(), **measure(model, words_NL[VALIDATION], label_N[VALIDATION]))
        if run.is_due(step, settings.steps) or step == settings.steps:
            with run.save(step) as folder:
                save_model(model, folder / "model.safetensors")
                torch.save(optimizer.state_dict(), folder / "optimizer.pt")

    parts = {"validation": VALIDATION} | ({"test": TEST} if run.test else {})
    return {
        f"{part}/{name}": value
        for part, rows in parts.items()
        for name, value in measure(model, words_NL[rows], label_N[rows]).items()
    }


@torch.no_grad()
def measure(model: BertForSequenceClassification, words_NL: Tensor, label_N: Tensor) -> dict[str, float]:
    """Accuracy in %, and mean loss."""
    answer = model(input_ids=words_NL, labels=label_N)
    right = (answer.logits.argmax(dim=1) == label_N).float().mean()
    return {"accuracy": 100 * right.item(), "loss": answer.loss.item()}
