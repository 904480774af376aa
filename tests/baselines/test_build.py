"""Between batches and networks: the joints a network gets, averaging with the mirror image, sizes."""

import dataclasses

import pytest
import torch

from baselines.build import Baseline, BaselineAnswers, NetworkShape
from baselines.config import LIFTERS, SYSTEMS
from tests.support.runs import make_feed
from tests.support.small_models import stir
from ups_model.data.batching.augment import mirror_joints
from ups_model.data.format.clip_set import ClipSet
from ups_model.evaluation.measure import mirror_inputs
from ups_model.tasks import TASKS


def made(system, toy_baseline, toy_sets, **changes):
    """A stirred network, and a batch of its task."""
    config = toy_baseline(system, **changes)
    clips = ClipSet.open(toy_sets[config.task_data.sources[0]])
    model = stir(Baseline(config, NetworkShape.of(config, clips)).eval(), scale=0.1)
    return model, make_feed(clips, config.optim.task, config.task_data).train(0), clips


@pytest.mark.parametrize("system", LIFTERS)
def test_with_flip_the_answer_to_a_mirrored_window_is_the_mirrored_answer(system, toy_baseline, toy_sets):
    model, batch, clips = made(system, toy_baseline, toy_sets, **{"evaluation.flip": True})
    answers = BaselineAnswers(model)
    pose_BJ3, _ = answers.poses(batch, clips.skeleton)
    mirrored_BJ3, _ = answers.poses(dataclasses.replace(batch, inputs=mirror_inputs(batch.inputs)), clips.skeleton)
    assert torch.allclose(mirrored_BJ3, mirror_joints(pose_BJ3, clips.skeleton), atol=1e-5)
    plain, *_ = made(system, toy_baseline, toy_sets, **{"evaluation.flip": False})
    assert not torch.allclose(BaselineAnswers(plain).poses(batch, clips.skeleton)[0], pose_BJ3, atol=1e-3)


@pytest.mark.parametrize("system", SYSTEMS)
def test_slots_that_the_skeleton_does_not_fill_are_not_seen(system, toy_baseline, toy_sets):
    model, batch, clips = made(system, toy_baseline, toy_sets)
    pose = batch.inputs.pose_BPNSC.clone()
    absent = [slot for slot in range(25) if slot not in clips.skeleton.slots_present]
    pose[:, :, :, absent] = 9.0
    if TASKS[batch.inputs.task].input_dims == 2:
        pose[..., 2] = 9.0
    with torch.no_grad():
        assert torch.equal(model(batch.inputs), model(dataclasses.replace(batch.inputs, pose_BPNSC=pose)))


def test_making_a_network_leaves_the_global_generator_as_it_was(toy_baseline, toy_sets):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    made("dd_net", toy_baseline, toy_sets)
    assert torch.equal(torch.rand(3), expected)
