"""One clip set under several protocols: each source has its own split, and nothing evaluated is trained on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.support.runs import motion, options, set_info, toy_config
from ups_model.config import Config, DataConfig, ModelConfig, OptimConfig, TaskData
from ups_model.config.presets import preset
from ups_model.data.batching.batches import build_feeds
from ups_model.data.batching.configured import open_sets
from ups_model.data.format.writer import Clip, Track, write_clip_set
from ups_model.evaluate import evaluate
from ups_model.training.build import build_vocabulary, data_identity
from ups_model.training.run import train


def write(folder, name, clips, ids=lambda row: f"S{row:03d}", origin="ntu"):
    """Subjects row % 4; by default subject 0 is for testing, by protocol "view" every third clip."""
    made = (
        Clip(
            ids(row),
            (Track(motion(row, row % 2, 5, 25)),),
            row % 2,
            row % 4,
            split_test=row % 4 == 0,
            extra={"split_test_xsub": int(row % 4 == 0), "split_test_view": int(row % 3 == 0)},
        )
        for row in clips
    )
    return write_clip_set(folder / name, set_info(name, "ntu25", origin=origin), made).path


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    nameless = write(folder, "nameless", range(20, 40), ids=lambda row: f"content-{row:016x}")
    return {"few": write(folder, "few", range(24)), "many": write(folder, "many", range(48)), "nameless": nameless}


def config(ar3d: str, eap: str, **data) -> Config:
    return Config(
        ModelConfig(text_model="minilm"),
        DataConfig(
            ar3d=TaskData((ar3d,), frames=4, batch_size=4),
            eap=TaskData((eap,), frames=4, batch_size=4),
            validation_subjects=0,
            **data,
        ),
        OptimConfig(cycle=("ar3d", "eap"), steps=2),
    )


def test_a_source_is_split_by_the_protocol_it_names(paths):
    sets = open_sets(config("few:view", "few:view"), paths)
    clips, split = sets["few:view"]
    assert clips.clip_id[split.test].tolist() == [f"S{row:03d}" for row in range(0, 24, 3)]
    sets = open_sets(config("few", "few:xsub"), paths)
    assert sets["few"][1].test.tolist() == sets["few:xsub"][1].test.tolist() == list(range(0, 24, 4))


def test_an_unknown_protocol_is_refused_with_those_there_are(paths):
    with pytest.raises(ValueError, match="few has no protocol 'xset'; it has default, view, xsub"):
        open_sets(config("few:xset", "few"), paths)


@pytest.mark.parametrize("source", ["few:", "few:a:b", ":view", ""])
def test_a_source_that_is_no_set_and_protocol_is_refused(source):
    with pytest.raises(ValueError, match="sources must be written SET or SET:PROTOCOL"):
        TaskData((source,))


def test_protocols_that_train_on_each_others_test_clips_are_refused(paths):
    with pytest.raises(ValueError, match=r"ntu/S\d+ is trained on in few .* data.leaks=drop"):
        open_sets(config("few:view", "few:xsub"), paths)


def test_dropped_leaks_leave_the_test_splits_whole_and_the_training_splits_clean(paths):
    sets = open_sets(config("few:view", "many:xsub", leaks="drop"), paths)
    evaluated = {row for row in range(48) if row % 4 == 0} | {row for row in range(24) if row % 3 == 0}
    for source, count, test in (("few:view", 24, 3), ("many:xsub", 48, 4)):
        _, split = sets[source]
        assert split.test.tolist() == list(range(0, count, test))
        assert split.train.tolist() == [row for row in range(count) if row not in evaluated]


def test_clips_known_by_content_alone_are_not_mixed_with_named_ones(paths):
    with pytest.raises(ValueError, match="clip sets of ntu must all name their clips or none"):
        open_sets(config("few", "nameless"), paths)
    open_sets(config("nameless", "nameless"), paths)


def test_one_set_under_two_protocols_is_loaded_once_named_once_and_fed_apart(paths):
    chosen = config("few:view", "few:xsub", leaks="drop")
    sets = open_sets(chosen, paths)
    feeds = build_feeds(chosen, sets, torch.device("cpu"))
    one, other = feeds["ar3d"].sources[0], feeds["eap"].sources[0]
    assert one.positions_FJC is other.positions_FJC and one.name == "few:view" and other.name == "few:xsub"
    assert sum(len(batch.clip_B) for batch in feeds["ar3d"].evaluate("test")) == 8
    assert sum(len(batch.clip_B) for batch in feeds["eap"].evaluate("test")) == 6
    assert next(feeds["ar3d"].evaluate("test")).source == "few"
    assert build_vocabulary(chosen, sets).classes == (("few", ("wave", "kick")),)
    assert list(data_identity(sets)) == ["few"]


def test_a_field_that_came_later_leaves_keys_as_they_were_until_it_is_used():
    start = preset("tiny")
    assert "leaks" not in json.dumps(start.canonical())
    used = start.with_fields({"data.leaks": "drop"})
    assert used.canonical()["data"]["leaks"] == "drop" and used.fingerprint() != start.fingerprint()
    for one in (start, used):
        assert Config.from_canonical(one.canonical()) == one
    # Of recipe 2: python -c "from ups_model.config.presets import preset; print(preset('tiny').fingerprint())".
    # Whoever adds a field that changes it trains everything again.
    assert start.fingerprint() == "c373b867e05d0002"


@pytest.mark.slow
def test_training_and_evaluation_go_through_protocols(paths, tmp_path):
    chosen = toy_config(
        **{
            "data.ar3d.sources": ("few:view", "many:view"),
            "data.eap.sources": ("few:view",),
            "data.pe.sources": (),
            "data.ar2d.sources": (),
            "optim.cycle": ("eap", "ar3d"),
            "optim.steps": 4,
            "data.validation_subjects": 0,
            "eap.frames": 4,
            "ar3d.frames": 4,
        }
    )
    used = {name: paths[name] for name in ("few", "many")}
    result = train(chosen, used, options(tmp_path / "run", tmp_path / "cache"))
    assert result.metrics["test/ar3d/few:view/clips"] == 8 and result.metrics["test/ar3d/many:view/clips"] == 16
    assert result.metrics["test/eap/clips"] == 8
    again, _, data = evaluate(tmp_path / "run" / "best" / "step-00000004", paths, device="cpu")
    assert again["ar3d/top1"] == result.metrics["test/ar3d/top1"] and sorted(data) == ["few", "many"]
    assert np.isfinite(list(again.values())).all()
    again_made = {**used, "many": write(tmp_path / "again", "many", range(52))}
    message = (
        "was trained on the clip set many of fingerprint [0-9a-f]{16}, the one given has [0-9a-f]{16}: clips for t"
    )
    with pytest.raises(ValueError, match=message):
        evaluate(tmp_path / "run" / "best" / "step-00000004", again_made, device="cpu")
    child = chosen.with_fields({"optim.cycle": ("ar3d",), "data.ar3d.sources": ("many:view",)})
    parent = tmp_path / "run" / "best" / "step-00000004"
    assert train(child, used, options(tmp_path / "child", tmp_path / "cache"), parent).status == "finished"
    with pytest.raises(ValueError, match=message):
        train(child, again_made, options(tmp_path / "stale", tmp_path / "cache"), parent)
    other = chosen.with_fields({"data.ar3d.sources": ("many:xsub",), "data.eap.sources": ("few:xsub",)})
    with pytest.raises(ValueError, match="was trained on few:view, many:view, clips of which may be evaluated as few:"):
        train(other, used, options(tmp_path / "other", tmp_path / "cache"), parent)
    held = child.with_fields({"data.validation_subjects": 1, "data.leaks": "drop"})
    with pytest.raises(ValueError, match=r"held out other subjects for validation \(validation_subjects=0"):
        train(held, used, options(tmp_path / "held", tmp_path / "cache"), parent)
    with pytest.raises(ValueError, match=r"sources after training must be among .* few:view, many:view, got few:xsub"):
        evaluate(
            tmp_path / "run" / "best" / "step-00000004", paths, device="cpu", changes={"ar3d.sources": ("few:xsub",)}
        )
