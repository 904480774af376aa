"""Measure a trained model: python -m ups_model.evaluate CHECKPOINT.

The checkpoint brings configuration, vocabulary and coordinate range; the clip sets are those it was trained with, or
others of the same name and content.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from ups_model import cli
from ups_model.config import Config
from ups_model.config.identity import configured_sets, configured_sources
from ups_model.data.prepare.catalog import default_cache
from ups_model.device import pick_device
from ups_model.evaluation.measure import measure
from ups_model.evaluation.outcomes import Outcomes, save_outcomes
from ups_model.inference.find_weights import find_weights
from ups_model.pipes import end_with, refuse
from ups_model.training.build import build, data_identity, load_model
from ups_model.training.result import check_same_data

logger = logging.getLogger(__name__)

EXAMPLES = """examples:
  python -m ups_model.evaluate runs/tiny
  python -m ups_model.evaluate runs/tiny/best/step-00000480
  python -m ups_model.evaluate runs/small/best/step-00004200 --set evaluation.flip=true --set pe.evaluate_stride=2
  python -m ups_model.evaluate runs/small/best/step-00004200 --part validation --out scores.json

exit status: 0 done, 2 usage or configuration"""


def evaluate(
    checkpoint: Path,
    paths: dict[str, Path],
    part: str = "test",
    device: str = "auto",
    changes: Mapping[str, object] | None = None,
    outcomes: Outcomes | None = None,
) -> tuple[dict[str, float], Config, dict[str, str]]:
    """Metrics of a checkpoint's trained tasks on a split, the configuration used and the clip sets' fingerprints.

    Args:
        checkpoint: a folder under `best/`.
        paths: folder of each clip set of the configuration.
        part: "test" or "validation".
        changes: fields of the sections `evaluation` and `data` to change, e.g. {"evaluation.flip": True}.
        outcomes: takes the results by clip (`ups_model.evaluation.outcomes`).

    Raises:
        ValueError: an unusable checkpoint, clip set or change.
    """
    place = pick_device(device)
    model, config, state = load_model(checkpoint, place)
    changed = config.with_fields(changes or {})
    if (changed.model, changed.optim, changed.seed) != (config.model, config.optim, config.seed):
        names = ", ".join(changes or {})
        raise ValueError(f"only evaluation and data fields can be changed after training, got {names}")
    if changed.held_out != config.held_out:
        raise ValueError(
            "validation_subjects, split_seed and validation_folds cannot be changed after training: training clips "
            f"would be evaluated; held out were {config.held_out}, the change holds out {changed.held_out}"
        )
    others = [source for source in configured_sources(changed) if source not in configured_sources(config)]
    if others:
        raise ValueError(
            f"sources after training must be among those of the training, {', '.join(configured_sources(config))}, got "
            f"{', '.join(others)}: training clips could be evaluated"
        )
    parts = build(changed, paths, place, default_cache() / "text", model)
    check_same_data(parts, checkpoint, state)
    classes = dict(model.vocabulary.classes)
    for clips, _ in parts.sets.values():
        if tuple(clips.info.classes) != classes.get(clips.name, clips.info.classes):
            raise ValueError(
                f"{paths[clips.name]}: its classes are not those trained on; use the training run's clip set"
            )
    metrics = measure(model, parts.feeds, part, changed.evaluation, outcomes)
    return metrics, changed, data_identity(parts.sets)


def clips_file(out: Path) -> Path:
    """Where the results by clip go; never the file that a training run left."""
    return out.with_name(f"{out.stem}_clips.npz")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = cli.command_parser(
        "ups_model.evaluate", "Measure a trained UPS model on the test or validation split.", EXAMPLES
    )
    parser.add_argument(
        "checkpoint", type=Path, help="a run's folder, or chosen weights, e.g. runs/tiny/best/step-00000480"
    )
    parser.add_argument("--part", choices=("test", "validation"), default="test", help="(test)")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change how it is measured")
    cli.add_data_arguments(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (auto)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="also write the metrics as JSON, and results by clip as FILE_clips.npz"
    )
    options = parser.parse_args(arguments)
    cli.start_logging()
    try:
        if options.out is not None:
            cli.check_output(options.out)
            cli.check_output(clips_file(options.out))
        checkpoint = options.checkpoint
        if checkpoint.is_dir():
            checkpoint = find_weights(str(checkpoint))
        _, config, _ = load_model(checkpoint, pick_device("cpu"))
        paths = cli.data_paths(options.data, configured_sets(config))
        changes = cli.assignments(options.set, "--set", "FIELD=VALUE")
        outcomes: Outcomes = {}
        metrics, config, data = evaluate(checkpoint, paths, options.part, options.device, changes, outcomes=outcomes)
        if options.out is not None:
            digest = save_outcomes(clips_file(options.out), outcomes)
            content = {
                "part": options.part,
                "metrics": metrics,
                "data": data,
                "config": config.canonical(),
                "outcomes": digest,
            }
            options.out.write_text(json.dumps(content, indent=1, allow_nan=False), "utf-8")
    except (ValueError, OSError) as error:
        return refuse(error)
    print(cli.metric_table({f"{options.part}/{name}": value for name, value in metrics.items()}))
    return 0


if __name__ == "__main__":
    end_with(main)
