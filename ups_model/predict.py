"""Ask a trained model about one clip: python -m ups_model.predict MODEL FILE.

The clip comes from a file in any format that is read here (docs/your-data.md), or from a prepared clip set, and goes
through the code that evaluates: the answer to a clip of a test split is the one that was counted.

Shape suffixes: B windows, R target frames, N frames of the clip, J joints of the answer, K classes.
"""

import argparse
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ups_model.cli import check_output, command_parser, start_logging
from ups_model.config import TASK_NAMES, Config, TaskData, TaskName, set_of
from ups_model.data.batching.batches import Feed
from ups_model.data.batching.device_clips import Source
from ups_model.data.batching.in_memory import ONLY, class_set, pose_set
from ups_model.data.format.clip_data import ClipData
from ups_model.data.prepare.jobs import Recording, seen_frames
from ups_model.data.readers.detect import clip_names, read_recording
from ups_model.device import pick_device
from ups_model.evaluation.measure import MM, predict_poses
from ups_model.evaluation.metrics import mpjpe_mm, p_mpjpe_mm
from ups_model.inference.find_weights import DEFAULT_STORAGE, find_weights
from ups_model.inference.predictions import ClassPrediction, PosePrediction, Prediction
from ups_model.model.decoding import classify
from ups_model.model.ups import UPS
from ups_model.pipes import end_with, refuse
from ups_model.skeletons import SKELETONS, Skeleton
from ups_model.tasks import TASKS
from ups_model.training.build import load_model

logger = logging.getLogger(__name__)

EXAMPLES = """examples:
  python -m ups_model.predict runs/small S001C001P001R001A001.skeleton
  python -m ups_model.predict 3f2a91c0 walk.bvh --storage runs/ablations --task eap --observed 0.4
  python -m ups_model.predict runs/small data_2d_h36m_gt.npz --clip "S9/Walking 1/0" --out poses.npz --out poses.gif
  python -m ups_model.predict runs/small keypoints.json --task pe --size 1920x1080 --out poses.json
  python -m ups_model.predict runs/small ~/.cache/ups/clips/utd_mhad --list

exit status: 0 done, 2 usage, a file that can't be read, or a model that can't answer"""

OUTPUTS = (".json", ".npz", ".png", ".gif")


def choose_task(config: Config, recording: Recording, wanted: str | None = None) -> TaskName:
    """The wanted task, else the first trained one that takes such coordinates; keypoints in pixels are lifted.
    ValueError where the model was not trained for the task, or none that it was trained for fits."""
    trained = config.optim.tasks
    if wanted is not None:
        if wanted not in trained:
            raise ValueError(f"--task {wanted}: the model was trained for {', '.join(trained)} alone")
        return wanted
    order: tuple[TaskName, ...] = ("ar3d", "eap") if recording.dims == 3 else ("ar2d", "pe")
    if recording.dims == 2 and recording.units == "pixel":
        order = ("pe", "ar2d")
    for task in order:
        if task in trained:
            return task
    raise ValueError(
        f"{recording.name!r} has {recording.dims}D {recording.units} coordinates, which serve {' and '.join(order)}; "
        f"the model was trained for {', '.join(trained)}; "
        + (recording.way_to_poses if "pe" in trained else "use another model, or other clips")
    )


def predict_class(
    model: UPS, config: Config, recording: Recording, task: TaskName, data_set: str | None = None, observed: float = 1.0
) -> ClassPrediction:
    """Class probabilities of a clip, of whose persons the two that are there longest are used.

    Args:
        model, config: from `ups_model.training.build.load_model`.
        task: a class task that the model was trained for.
        data_set: whose classes to choose from; None takes the task's first clip set.
        observed: share of the clip, from its start, that the model sees.

    Raises:
        ValueError: the task needs other coordinates, or the model doesn't know the data set.
    """
    data = getattr(config.data, task)
    data_set = data_set or set_of(data.sources[0])
    classes = dict(model.vocabulary.classes).get(data_set)
    if classes is None:
        raise ValueError(
            f"--classes {data_set}: the model knows those of {', '.join(dict(model.vocabulary.classes))} alone"
        )
    if not 0 < observed <= 1:
        raise ValueError(f"--observed must lie in (0, 1], got {observed}")
    feed = _feed(model, task, data, class_set(recording), config)
    batch = next(iter(feed.evaluate("test", observed)))
    scores_K = classify(model, batch.inputs, data_set).logits_BK[0].double().softmax(dim=0)
    return ClassPrediction(task, data_set, classes, scores_K.cpu().numpy())


def predict_clip_poses(model: UPS, config: Config, recording: Recording, person: int = 0) -> PosePrediction:
    """3D poses of every frame in which a person is there, decoded as `config.evaluation` says. ValueError where the
    recording has no keypoints in pixels, or no such person."""
    # Detections are used as they are, without augmentation, and every frame is predicted.
    data = config.data.pe.replace(
        detections="stored", rotation_deg=0.0, scale=0.0, bone_scale=0.0, translation_m=0.0, evaluate_stride=1
    )
    if config.data.pe.detections == "project" and recording.projected is not None:
        recording = replace(recording, tracks=(recording.projected,))  # As the model was measured.
    clips = pose_set(recording, person)
    feed = _feed(model, "pe", data, clips, config)
    skeleton = _pose_skeleton(model)
    frames = int(clips.clip_length[0])
    pose_NJ3 = torch.full((frames, model.pose_joints, 3), float("nan"))
    truth_NJ3 = torch.zeros(frames, clips.skeleton.joints, 3)
    for batch in feed.evaluate("test"):
        pose_BJ3, _ = predict_poses(model, batch, skeleton, config.evaluation)
        assert batch.frame_BR is not None and batch.pose_BRJ3 is not None, "a batch of pose estimation has both"
        frame_B = batch.frame_BR.flatten()
        kept_B = frame_B >= 0
        pose_NJ3[frame_B[kept_B].cpu()] = pose_BJ3[kept_B].float().cpu()
        truth_NJ3[frame_B[kept_B].cpu()] = batch.pose_BRJ3.flatten(0, 1)[kept_B].float().cpu()
    assert bool(pose_NJ3.isfinite().all()), "a frame was not predicted"
    errors = {}
    if recording.truth is not None and clips.skeleton == skeleton:
        errors = {metric.__name__: float(metric(MM * pose_NJ3, MM * truth_NJ3)) for metric in (mpjpe_mm, p_mpjpe_mm)}
    track = sorted(recording.tracks, key=lambda track: -len(track.positions))[person]
    assert clips.keypoints is not None, "`pose_set` has made it of keypoints"
    return PosePrediction(
        pose_NJ3.numpy(),
        np.asarray(clips.keypoints[:, 0]),
        seen_frames(track),
        recording.first_frame + track.offset,
        recording.fps,
        skeleton,
        clips.skeleton,
        errors,
    )


def _feed(model: UPS, task: TaskName, data: TaskData, clips: ClipData, config: Config) -> Feed:
    """One clip for a model, which is put into evaluation mode."""
    model.eval()
    return Feed(task, data, [Source(clips, ONLY, next(model.parameters()).device)], config.seed)


def _pose_skeleton(model: UPS) -> Skeleton:
    """The layout whose joints the model predicts."""
    for skeleton in SKELETONS.values():
        if skeleton.joints == model.pose_joints and tuple(skeleton.native_slot.tolist()) == tuple(model.pose_slots):
            return skeleton
    raise ValueError(f"the model predicts {model.pose_joints} joints of a layout that is not known here")


def write(file: Path, prediction: Prediction, recording: Recording, about: dict[str, Any]) -> None:
    """Write a prediction as JSON, npz, PNG or GIF, as the file's ending says."""
    if file.suffix in (".png", ".gif"):
        from ups_model.inference import visualize  # Matplotlib takes a second to import.

        visualize.draw(file, prediction, recording)
        return
    facts, arrays = {**about, **prediction.facts}, prediction.arrays
    if file.suffix == ".npz":
        # numpy's types take any name for `allow_pickle`.
        np.savez_compressed(file, **arrays, about=json.dumps(facts))  # type: ignore[arg-type]
    else:
        lists = {name: array.tolist() for name, array in arrays.items()}
        file.write_text(json.dumps({**facts, **lists}, indent=1, allow_nan=False) + "\n", "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = command_parser(
        "ups_model.predict",
        "Ask a trained model about one clip: its class with probabilities, or its 3D poses.",
        EXAMPLES,
    )
    parser.add_argument("model", metavar="MODEL", help="a checkpoint, a run's folder, or a unit's key (see --storage)")
    parser.add_argument("file", type=Path, metavar="FILE", help="a file, a folder of OpenPose's, or a clip set")
    parser.add_argument("--clip", metavar="NAME", help="which clip, where FILE holds several")
    parser.add_argument("--list", action="store_true", help="list the clips in FILE and end")
    parser.add_argument("--task", choices=TASK_NAMES, help="(what fits the clip)")
    parser.add_argument("--classes", metavar="SET", help="whose classes (the task's first clip set)")
    parser.add_argument("--observed", type=float, default=1.0, metavar="F", help="share of the clip to look at (1)")
    parser.add_argument("--person", type=int, default=0, metavar="N", help="whose poses, longest there first (0)")
    parser.add_argument("--size", metavar="WxH", help="image size in pixels, where the file doesn't tell")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes to show (5)")
    parser.add_argument("--out", type=Path, action="append", default=[], metavar="FILE", help=f"{', '.join(OUTPUTS)}")
    parser.add_argument("--storage", type=Path, default=DEFAULT_STORAGE, metavar="DIR", help=f"({DEFAULT_STORAGE})")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (auto)")
    options = parser.parse_args(arguments)
    start_logging()
    try:
        if options.list:
            print("\n".join(clip_names(options.file)))
            return 0
        size = _check(options)
        place = pick_device(options.device)
        checkpoint = find_weights(options.model, options.storage)
        recording = read_recording(options.file, options.clip, size)
        model, config, state = load_model(checkpoint, place)
        task = choose_task(config, recording, options.task)
        _check_fits(options, task)
        prediction: Prediction
        if TASKS[task].kind == "pose":
            prediction = predict_clip_poses(model, config, recording, options.person)
        else:
            prediction = predict_class(model, config, recording, task, options.classes, options.observed)
        about = {"task": task, "clip": recording.name, "file": options.file.name, "model": state["key"]}
        for file in options.out:
            write(file, prediction, recording, about)
    except (ValueError, OSError) as error:
        return refuse(error)
    print(prediction.text(options.top))
    for file in options.out:
        print(f"written to {file}")
    return 0


def _check(options: argparse.Namespace) -> tuple[float, float] | None:
    """ValueError for options that can't be; the image size."""
    for file in options.out:
        if file.suffix not in OUTPUTS:
            raise ValueError(f"--out must end in {', '.join(OUTPUTS)}, got {file}")
        check_output(file)
        if file.resolve() == options.file.expanduser().resolve() or options.out.count(file) > 1:
            raise ValueError(f"--out {file}: would write over what is read or written already; give another name")
    if options.top < 1:
        raise ValueError(f"--top must be at least 1, got {options.top}")
    if options.size is None:
        return None
    match = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", options.size.lower())
    if not match:
        raise ValueError(f"--size must be WIDTHxHEIGHT in pixels such as 1920x1080, got {options.size[:40]!r}")
    return float(match[1]), float(match[2])


def _check_fits(options: argparse.Namespace, task: TaskName) -> None:
    """ValueError for an option without effect on the task."""
    idle = {"--observed": options.observed != 1, "--classes": options.classes is not None}
    if TASKS[task].kind != "pose":
        idle = {"--person": options.person != 0, "--size": options.size is not None}
    for option, is_set in idle.items():
        if is_set:
            raise ValueError(f"{option} says nothing to {TASKS[task].title}; leave it out, or choose another --task")


if __name__ == "__main__":
    end_with(main)
