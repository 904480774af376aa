"""That a training step does not wait for its device: it reads no value of a tensor that the device would have."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.runs import options, toy_config
from ups_model.training.run import Run

WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "item", "masked_select", "unique")


class NoWaiting(TorchDispatchMode):
    """Fails on the operations for which a GPU's queue would have to run empty."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in WAITING, f"{name} waits for the device"
        if name in ("index", "index_put", "index_put_"):
            assert all(index is None or index.dtype != torch.bool for index in args[1]), "a boolean index waits"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("task", ["pe", "ar2d", "eap", "ar3d"])
@pytest.mark.parametrize("update", ["iteration", "cycle"])
def test_no_training_step_waits_for_its_device(task, update, toy_sets, cache, tmp_path, monkeypatch):
    run = Run(toy_config(update=update, seed=3), toy_sets, options(tmp_path, cache), None, None)
    run.start_or_resume()
    cycle = run.config.optim.cycle
    while cycle[run.state.step % len(cycle)] != task:
        run.train_step()
    # What a batch is made of is drawn on the host; its making may read what was drawn.
    batch = run.parts.feeds[task].train(run.turns[task])
    assert batch.inputs.checked and batch.inputs.slots is not None
    monkeypatch.setattr(run.parts.feeds[task], "train", lambda *_: batch)
    with NoWaiting():
        run.train_step()
        run.check_finite()


def test_the_guard_sees_what_waits():
    with NoWaiting():
        for waits in (lambda x: x.item(), lambda x: x.nonzero(), lambda x: x[x > 0], bool):
            with pytest.raises(AssertionError, match="waits"):
                waits(torch.ones(1))
        assert torch.ones(2)[torch.tensor([0])].tolist() == [1.0]
