"""Checkpoints: whole or not at all, every altered byte noticed, nothing that could run code."""

import json
import logging
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import ups_model
from tests.support.runs import assert_same_tensors
from ups_model.training.checkpoint import (
    load_checkpoint,
    load_weights,
    newest_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from ups_model.training.run_folder import prune_checkpoints, write_checkpoint


def tensors(value, size=64):
    """Two groups whose every number says which checkpoint it is of."""
    return {
        "model": {"weight": torch.full((size, 3), float(value)), "count": torch.tensor(value)},
        "optimizer": {"0.step": torch.tensor(float(value))},
    }


def save(folder, step, **changes):
    return save_checkpoint(folder, step, tensors(step), {"key": "abc", "best": {"score": step / 7}, **changes})


def alter(file, position):
    raw = bytearray(file.read_bytes())
    raw[position] ^= 1
    file.write_bytes(raw)


def test_a_checkpoint_is_read_back_exactly(tmp_path):
    path = save(tmp_path, 12)
    loaded, state = load_checkpoint(path)
    assert path.name == "step-00000012" and loaded.keys() == {"model", "optimizer"}
    for group, values in tensors(12).items():
        assert_same_tensors(loaded[group], values)
    assert state["step"] == 12 and state["key"] == "abc" and state["best"] == {"score": 12 / 7}


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors"])
def test_an_altered_byte_anywhere_in_a_tensor_file_is_an_error_that_names_it(tmp_path, file):
    path = save(tmp_path, 1)
    size = (path / file).stat().st_size
    for position in {0, 8, size // 2, size - 1}:
        alter(path / file, position)
        with pytest.raises(ValueError, match=rf"{file}: corrupted checkpoint.*go on from an older one"):
            load_checkpoint(path)
        alter(path / file, position)
    load_checkpoint(path)


def test_no_altered_byte_of_the_state_gives_another_state(tmp_path):
    path = save(tmp_path, 1)
    for position in range((path / "state.json").stat().st_size):
        alter(path / "state.json", position)
        try:
            _, state = load_checkpoint(path)
        except ValueError as error:
            assert "state.json" in str(error)
        else:
            # White space may change; what it says may not.
            assert state == load_checkpoint(save(tmp_path / "other", 1))[1]
        alter(path / "state.json", position)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "missing"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, file, damage):
    path = save(tmp_path, 1)
    if damage == "missing":
        (path / file).unlink()
    else:
        os.truncate(path / file, 0 if damage == "empty" else (path / file).stat().st_size - 1)
    with pytest.raises(ValueError, match=f"{file}: .*use another checkpoint|{file}: corrupted checkpoint"):
        load_checkpoint(path)


def test_a_folder_that_is_no_checkpoint_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere/state\.json: not a readable checkpoint state"):
        load_checkpoint(tmp_path / "nowhere")


def test_the_newest_whole_checkpoint_is_taken_with_a_warning_for_each_corrupted_one(tmp_path, caplog):
    assert newest_checkpoint(tmp_path / "nothing") is None
    for step in (5, 900, 1000):
        save(tmp_path, step)
    alter(tmp_path / "step-00001000" / "model.safetensors", -1)
    (tmp_path / "step-00000900" / "state.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        path, loaded, state = newest_checkpoint(tmp_path)
    assert path.name == "step-00000005" and state["step"] == 5 and loaded["model"]["count"] == 5
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2 and "step-00001000" in warnings[0] and "step-00000900" in warnings[1]


def test_with_no_whole_checkpoint_there_is_none(tmp_path):
    (save(tmp_path, 3) / "model.safetensors").unlink()
    assert newest_checkpoint(tmp_path) is None


def test_pruning_keeps_the_newest_and_removes_what_killed_processes_left(tmp_path):
    for step in (1, 2, 10, 11):
        save(tmp_path, step)
    (tmp_path / ".step-00000012-half").mkdir()
    (tmp_path / ".step-00000012-half" / "model.safetensors").write_text("half")
    (tmp_path / "notes.txt").write_text("a user's")
    prune_checkpoints(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", "step-00000010", "step-00000011"]
    with pytest.raises(ValueError, match="at least 1 checkpoint must be kept, got keep=0"):
        prune_checkpoints(tmp_path, 0)


def test_an_unreadable_later_checkpoint_does_not_outlive_the_one_just_saved(tmp_path):
    # Resumed from step 4 because 8 is corrupted: if pruning spared 8 as the newest, a kill now would lose everything.
    save(tmp_path, 4)
    alter(save(tmp_path, 8) / "model.safetensors", -1)
    save(tmp_path, 6)
    prune_checkpoints(tmp_path, 1)
    assert newest_checkpoint(tmp_path)[0].name == "step-00000006"


def test_saving_a_step_again_replaces_it_and_leaves_nothing_else(tmp_path):
    save(tmp_path, 3, key="old")
    save(tmp_path, 3, key="new")
    prune_checkpoints(tmp_path, 5)
    assert os.listdir(tmp_path) == ["step-00000003"] and newest_checkpoint(tmp_path)[2]["key"] == "new"


def test_a_state_that_cannot_be_written_leaves_the_older_checkpoint_alone(tmp_path):
    save(tmp_path, 3)
    with pytest.raises(ValueError, match="JSON"):
        save(tmp_path, 4, best=float("nan"))
    assert os.listdir(tmp_path) == ["step-00000003"]


def test_others_can_read_a_checkpoint_as_they_can_any_new_folder(tmp_path):
    (tmp_path / "plain").mkdir()
    assert save(tmp_path, 1).stat().st_mode == (tmp_path / "plain").stat().st_mode


def _write_for_ever(folder, started):
    step = 0
    while True:
        step += 1
        save_checkpoint(folder, step, tensors(step, size=20_000), {"value": step})
        # The same step again, too: an existing one is replaced.
        save_checkpoint(folder, step, tensors(step, size=20_000), {"value": step})
        prune_checkpoints(folder, 2)
        started.set()


@pytest.mark.slow
def test_a_process_killed_at_any_moment_leaves_no_checkpoint_that_loads_and_is_wrong(tmp_path):
    # Not forked from this process: a copy of one whose OpenMP threads have run waits for them for ever.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "ups_model.training.checkpoint"])
    for trial, wait in enumerate((0.0, 0.003, 0.011, 0.017, 0.024, 0.031)):
        folder = tmp_path / str(trial)
        started = context.Event()
        process = context.Process(target=_write_for_ever, args=(folder, started), daemon=True)
        process.start()
        assert started.wait(120)
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        for path in folder.glob("step-*"):
            loaded, state = load_checkpoint(path)  # What bears a checkpoint's name is whole.
            assert state["step"] == state["value"] == int(path.name.removeprefix("step-"))
            assert (loaded["model"]["weight"] == state["step"]).all() and loaded["model"]["weight"].shape == (20_000, 3)
        step = newest_checkpoint(folder)[2]["step"]
        save(folder, step + 1)
        prune_checkpoints(folder, 1)
        assert os.listdir(folder) == [f"step-{step + 1:08d}"], "the next save clears what the kill left"


# -- optimizer and weights ---------------------------------------------------------------------------------------------


def _network():
    network = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 2), nn.Linear(2, 2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return network, torch.optim.AdamW(network.parameters(), lr=0.01, betas=(0.9, 0.98))


def _train(network, optimizer, steps, first=0):
    for step in range(first, first + steps):
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        network[1](network[0](x)).square().sum().backward()  # The third layer has no gradient, hence no state.
        optimizer.step()


def test_an_optimizer_put_back_takes_the_very_steps_of_one_that_was_not(tmp_path):
    network, optimizer = _network()
    _train(network, optimizer, 3)
    groups = {"model": network.state_dict(), "optimizer": optimizer_tensors(optimizer)}
    path = save_checkpoint(tmp_path, 3, groups, {})
    other, other_optimizer = _network()
    loaded, _ = load_checkpoint(path)
    load_weights(other, loaded["model"], path)
    restore_optimizer(other_optimizer, loaded["optimizer"])
    assert_same_tensors(optimizer_tensors(other_optimizer), optimizer_tensors(optimizer))
    _train(network, optimizer, 3, first=3)
    _train(other, other_optimizer, 3, first=3)
    assert_same_tensors(other.state_dict(), network.state_dict())


def test_an_optimizer_that_has_not_stepped_is_put_back_too(tmp_path):
    _, optimizer = _network()
    path = save_checkpoint(tmp_path, 0, {"optimizer": optimizer_tensors(optimizer)}, {})
    restore_optimizer(optimizer, load_checkpoint(path)[0]["optimizer"])
    assert optimizer_tensors(optimizer) == {}


def test_weights_of_another_shape_or_name_are_an_error_that_names_the_first(tmp_path):
    network, _ = _network()
    for other, fault in (
        (nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 2), nn.Linear(2, 2)), "first of 3: 0.bias"),
        (nn.Sequential(nn.Linear(5, 7)), "first of 4: 1.bias"),
    ):
        with pytest.raises(ValueError, match=f"here: weights do not fit this configuration, {fault}"):
            load_weights(network, other.state_dict(), Path("here"))


# -- nothing that could run code ---------------------------------------------------------------------------------------


def test_a_checkpoint_holds_safetensors_and_json_alone(tmp_path):
    path = save(tmp_path, 1)
    assert sorted(os.listdir(path)) == ["model.safetensors", "optimizer.safetensors", "state.json"]
    for file in path.glob("*.safetensors"):
        raw = file.read_bytes()
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        assert all(entry["dtype"] in ("F32", "I64") for name, entry in header.items() if name != "__metadata__")


def test_no_module_of_the_package_unpickles_anything():
    root = Path(ups_model.__file__).parent
    forbidden = (
        r"(import|from) _?pickle\b", r"\bpickle\.loads?\(", "Unpickler", r"torch\.load\(", r"torch\.save\(",
        "allow_pickle=True", "marshal", "shelve",
    )  # fmt: skip
    restricted = root / "data" / "readers" / "io" / "safe_pickle.py"  # Its restrictions: test_safe_pickle.py.
    assert restricted.exists()
    for file in set(root.rglob("*.py")) - {restricted}:
        text = file.read_text("utf-8")
        assert not [word for word in forbidden if re.search(word, text)], file


def test_a_file_of_the_name_of_the_state_is_refused(tmp_path):
    refusal = pytest.raises(ValueError, match=r"own file is state.json; give yours another name")
    with refusal, write_checkpoint(tmp_path, 3, {}) as folder:
        (folder / "state.json").write_text("{}")
    assert not list(tmp_path.glob("step-*"))
