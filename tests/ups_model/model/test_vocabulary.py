"""The unified vocabulary, the quantiser, and the text features with their cache."""

import logging
import multiprocessing
import pickle
import shutil
import socket
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ups_model.model import text_features as text_features_module
from ups_model.model.text_features import text_features, text_identity
from ups_model.model.vocabulary import Quantiser, Vocabulary, class_prompt

SHARED_NAMES = (  # the seven names that stand in both NTU RGB+D 120 and Kinetics-400
    "brushing hair",
    "brushing teeth",
    "clapping",
    "counting money",
    "cutting nails",
    "side kick",
    "writing",
)


def small_vocabulary():
    return Vocabulary(
        (("NTU120", ("drink water", "clapping")), ("Kinetics", ("clapping", "abseiling", "zumba"))), n_bins=4
    )


# --- layout


def test_ids_are_classes_then_three_axes_then_the_ends():
    vocabulary = small_vocabulary()
    assert vocabulary.size == 5 + 3 * 4 + 3
    assert vocabulary.class_ids("NTU120") == range(0, 2)
    assert vocabulary.class_ids("Kinetics") == range(2, 5)
    assert [vocabulary.coordinate_ids(axis) for axis in range(3)] == [range(5, 9), range(9, 13), range(13, 17)]
    assert [vocabulary.eot_id(kind) for kind in ("AR", "PE", "AP")] == [17, 18, 19]


def test_prompts_stand_at_their_ids_in_the_wording_of_the_paper():
    vocabulary = small_vocabulary()
    assert vocabulary.prompts == (
        "drink water (NTU120)",
        "clapping (NTU120)",
        "clapping (Kinetics)",
        "abseiling (Kinetics)",
        "zumba (Kinetics)",
        "The first horizontal coordinate",
        "The 2-th horizontal coordinate",
        "The 3-th horizontal coordinate",
        "The 4-th horizontal coordinate",
        "The first vertical coordinate",
        "The 2-th vertical coordinate",
        "The 3-th vertical coordinate",
        "The 4-th vertical coordinate",
        "The first depth coordinate",
        "The 2-th depth coordinate",
        "The 3-th depth coordinate",
        "The 4-th depth coordinate",
        "action recognition ends here",
        "pose estimation ends here",
        "action prediction ends here",
    )


@given(st.lists(st.integers(1, 6), max_size=4), st.integers(2, 9))
def test_the_ids_of_all_parts_cover_the_vocabulary_once(class_counts, n_bins):
    classes = tuple((f"set {index}", tuple(map(str, range(count)))) for index, count in enumerate(class_counts))
    vocabulary = Vocabulary(classes, n_bins)
    ids = [id for dataset, _ in classes for id in vocabulary.class_ids(dataset)]
    ids += [id for axis in range(3) for id in vocabulary.coordinate_ids(axis)]
    ids += [vocabulary.eot_id(kind) for kind in ("AR", "PE", "AP")]
    assert ids == list(range(vocabulary.size)) == list(range(len(vocabulary.prompts)))
    assert vocabulary.size == sum(class_counts) + 3 * n_bins + 3  # section 3.2


def test_names_that_stand_in_two_data_sets_have_distinct_prompts():
    vocabulary = Vocabulary((("NTU120", SHARED_NAMES), ("Kinetics", SHARED_NAMES)), n_bins=500)
    assert len(set(vocabulary.prompts)) == vocabulary.size == 14 + 1500 + 3
    assert class_prompt("Kinetics", "brushing teeth") == "brushing teeth (Kinetics)"


@pytest.mark.open_data
def test_every_prompt_of_ntu120_and_kinetics_together_is_distinct(open_data):
    if not (open_data / "published").is_dir():
        pytest.skip(f"no published class names in {open_data}")
    names = {
        dataset: tuple((open_data / "published" / f"{stem}_classes.txt").read_text().split("\n"))
        for dataset, stem in (("NTU120", "ntu120"), ("Kinetics", "kinetics400"))
    }
    names = {dataset: tuple(filter(None, map(str.strip, lines))) for dataset, lines in names.items()}
    assert [len(lines) for lines in names.values()] == [120, 400]
    vocabulary = Vocabulary(tuple(names.items()), n_bins=500)
    assert len({prompt.casefold() for prompt in vocabulary.prompts}) == 120 + 400 + 1500 + 3


def test_a_vocabulary_is_a_value_that_travels_between_processes():
    vocabulary = small_vocabulary()
    assert vocabulary.prompts  # fills what is kept
    assert pickle.loads(pickle.dumps(vocabulary)) == small_vocabulary() == vocabulary
    assert hash(small_vocabulary()) == hash(vocabulary)


def test_the_vocabulary_imports_no_torch():
    program = (
        "import sys, ups_model.model.vocabulary as v; v.Vocabulary((), 2).prompts; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("classes", "n_bins", "rule"),
    [
        ((), 1, "n_bins must be at least 2, got n_bins=1"),
        ((("a", ("x", "")),), 5, "class 1 of 'a' must have text, got ''"),
        ((("a", ("x", " \t")),), 5, "class 1 of 'a' must have text"),
        ((("a", ("x", "y", "x")),), 5, "distinct within a data set, got 'x' 2 times in 'a'"),
        ((("a", ("side kick", "Side  Kick")),), 5, "distinct within a data set, got 'side kick' 2 times"),
        ((("a", ()),), 5, "'a' must have at least one class"),
        ((("a", ("x",)), ("a", ("y",))), 5, "each data set must appear once, got 'a' 2 times"),
        (((" ", ("x",)),), 5, "a data set must have a name"),
        ((("c", ("a (b)",)), ("b) (c", ("a",))), 5, r"prompts must be distinct, got 'a \(b\) \(c\)'"),
    ],
)
def test_faulty_vocabularies_are_refused(classes, n_bins, rule):
    with pytest.raises(ValueError, match=rule):
        Vocabulary(classes, n_bins)


def test_all_faults_are_told_at_once():
    with pytest.raises(ValueError, match=r"n_bins must be.*must have text.*distinct"):
        Vocabulary((("a", ("", "x", "x")),), 0)


def test_an_unknown_name_is_refused_with_near_ones():
    with pytest.raises(ValueError, match=r"unknown data set 'kinetics'; did you mean 'Kinetics'\?"):
        small_vocabulary().class_ids("kinetics")
    with pytest.raises(ValueError, match="unknown data set 'h36m'; known: NTU120, Kinetics"):
        small_vocabulary().class_ids("h36m")
    with pytest.raises(ValueError, match="unknown end-of-task token 'EAP'; did you mean 'AP'"):
        small_vocabulary().eot_id("EAP")
    with pytest.raises(ValueError, match="axis must be 0, 1 or 2"):
        small_vocabulary().coordinate_ids(3)


# --- quantiser

bounds = st.floats(-3000.0, 3000.0)


@given(bounds, st.floats(0.1, 5000.0), st.integers(2, 1000), st.floats(0.0, 1.0), st.integers(0, 2))
def test_a_coordinate_in_range_comes_back_within_half_a_bin(low, width, n_bins, place, axis):
    quantiser = Quantiser((low,) * 3, (low + width,) * 3, n_bins)
    x = torch.tensor([low + place * width], dtype=torch.float64)
    decoded = quantiser.decode(quantiser.encode(x, axis), axis, dtype=torch.float64)
    assert abs(decoded - x).item() <= 0.5 * width / n_bins * (1 + 1e-6)


@given(bounds, st.floats(0.1, 5000.0), st.integers(2, 1000))
def test_every_bin_comes_back_from_its_centre(low, width, n_bins):
    quantiser = Quantiser((low,) * 3, (low + width,) * 3, n_bins)
    centres = quantiser.centres(1, dtype=torch.float64)
    assert quantiser.encode(centres, 1).tolist() == list(range(n_bins))


def test_bins_are_equal_parts_of_the_range_and_coordinates_outside_go_to_the_outermost():
    quantiser = Quantiser((0.0, -1.0, 10.0), (1.0, 1.0, 18.0), n_bins=4)
    x = torch.tensor([-9.0, 0.0, 0.24, 0.25, 0.99, 1.0, 7.0])
    assert quantiser.encode(x, 0).tolist() == [0, 0, 0, 1, 3, 3, 3]
    assert quantiser.encode(x, 0).dtype == torch.int64
    assert quantiser.centres(1).tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert quantiser.decode(torch.tensor([[0, 3]]), 2).tolist() == [[11.0, 17.0]]


def test_without_an_axis_each_column_has_its_own_range():
    quantiser = Quantiser((0.0, -1.0, 10.0), (1.0, 1.0, 18.0), n_bins=4)
    pose = torch.tensor([[[0.3, -0.3, 17.9], [2.0, -2.0, 12.0]]])
    bins = quantiser.encode(pose)
    assert bins.tolist() == [[[1, 1, 3], [3, 0, 1]]]
    for axis in range(3):
        assert torch.equal(bins[..., axis], quantiser.encode(pose[..., axis], axis))
        assert torch.equal(quantiser.decode(bins)[..., axis], quantiser.decode(bins[..., axis], axis))


def test_fit_takes_the_range_of_each_axis_and_widens_it_on_both_sides():
    coords = torch.tensor([[[0.0, -1.0, 5.0], [10.0, 1.0, 6.0]], [[5.0, 0.0, 9.0], [5.0, 0.0, 7.0]]])
    quantiser = Quantiser.fit(coords, n_bins=10, margin=0.05)
    assert quantiser.low == pytest.approx((-0.5, -1.1, 4.8))
    assert quantiser.high == pytest.approx((10.5, 1.1, 9.2))
    assert quantiser.clip_rate(coords) == 0.0
    assert Quantiser.fit(coords.numpy(), n_bins=10) == quantiser


def test_the_clip_rate_is_the_share_of_coordinates_outside():
    quantiser = Quantiser((0.0,) * 3, (1.0,) * 3, n_bins=4)
    pose = torch.tensor([[0.5, 0.5, 1.5], [-0.1, 0.5, 0.5], [0.0, 1.0, 0.5]])
    assert quantiser.clip_rate(pose) == pytest.approx(2 / 9)
    assert quantiser.clip_rate(pose[:, 0], 0) == pytest.approx(1 / 3)


@pytest.mark.parametrize(("n_bins", "floor_mm"), [(200, 5.76), (500, 2.31), (1000, 1.15)])
def test_the_floor_of_a_range_of_2_4_m_is_the_mean_distance_to_the_centre_of_a_cube(n_bins, floor_mm):
    """Mean distance from a cube's centre is 0.4803 edges, half of that from a corner (0.9606)."""
    quantiser = Quantiser((-1.2,) * 3, (1.2,) * 3, n_bins)
    pose = torch.rand(100_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2.4 - 1.2
    assert quantiser.floor_mm(pose, mm_per_unit=1000.0) == pytest.approx(floor_mm, rel=0.01)
    assert quantiser.floor_mm(1000 * quantiser.decode(quantiser.encode(pose)) / 1000, mm_per_unit=1000.0) < 1e-3


def test_half_precision_is_quantised_in_single():
    quantiser = Quantiser((0.0,) * 3, (1.0,) * 3, n_bins=500)
    x = torch.rand(1000, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert torch.equal(quantiser.encode(x, 0), quantiser.encode(x.float(), 0))


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda q: Quantiser((0.0,) * 3, (1.0,) * 3, 1), "n_bins must be at least 2"),
        (lambda q: Quantiser((0.0, 0.0, 2.0), (1.0, 1.0, 2.0), 5), "low must be below high.* on axis 2"),
        (lambda q: Quantiser((0.0, 0.0, float("nan")), (1.0,) * 3, 5), "low must be below high.* on axis 2"),
        (lambda q: Quantiser((0.0, 0.0), (1.0, 1.0), 5), "one bound per axis, got 2 and 2"),
        (lambda q: Quantiser.fit(torch.zeros(0, 3), 5), "at least one point"),
        (lambda q: Quantiser.fit(torch.rand(9, 2), 5), "last dimension must be the 3 axes"),
        (lambda q: Quantiser.fit(torch.rand(9, 3), 5, margin=-0.1), "margin must be at least 0"),
        (lambda q: Quantiser.fit(torch.full((9, 3), float("nan")), 5), "must be finite, got 27 of 27"),
        (lambda q: Quantiser.fit(torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0]]), 5), "below high.* on axis 1"),
        (lambda q: q.encode(torch.tensor([0.5, float("inf")]), 0), "must be finite, got 1 of 2"),
        (lambda q: q.encode(torch.rand(4)), "last dimension must be the 3 axes"),
        (lambda q: q.encode(torch.rand(4), 3), "axis must be 0, 1 or 2"),
        (lambda q: q.decode(torch.tensor([4]), 0), r"bins must lie in 0\.\.3, got 4\.\.4"),
        (lambda q: q.decode(torch.tensor([-1]), 0), "bins must lie in"),
        (lambda q: q.decode(torch.tensor([0.5]), 0), "bins must be integers"),
        (lambda q: q.clip_rate(torch.zeros(0, 3)), "at least one coordinate"),
        (lambda q: q.floor_mm(torch.zeros(0, 3), mm_per_unit=1.0), "at least one point"),
    ],
)
def test_faulty_quantisers_and_coordinates_are_refused(call, rule):
    with pytest.raises(ValueError, match=rule):
        call(Quantiser((0.0,) * 3, (1.0,) * 3, 4))


# --- text features


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """A folder with a random two-layer BERT and MiniLM's tokenizer: the real code paths, in milliseconds."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("model")
    tokenizer = AutoTokenizer.from_pretrained(text_features_module._model_folder("minilm"), local_files_only=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        width = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **width)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def computations(monkeypatch):
    """Prompt lists that were computed rather than read."""
    calls, embed = [], text_features_module._embed
    monkeypatch.setattr(
        text_features_module, "_embed", lambda prompts, model: calls.append(prompts) or embed(prompts, model)
    )
    return calls


@pytest.fixture
def network(monkeypatch):
    """Tries to reach the network, each of which fails. Listed too, as a library may catch the failure."""
    tries = []

    def refuse(*args, **kwargs):
        tries.append(args)
        raise OSError("this test has no network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tries


def test_the_packaged_model_gives_features_without_network(tmp_path, network):
    prompts = small_vocabulary().prompts
    features = text_features(prompts, "minilm", tmp_path)
    assert features.shape == (len(prompts), 384)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert len({tuple(row) for row in features.tolist()}) == len(prompts)  # every token can be told from every other
    assert not network


def test_features_mean_something(tmp_path):
    texts = ["running", "jogging", "brushing teeth", "pose estimation ends here"]
    features = torch.nn.functional.normalize(text_features(texts, "minilm", tmp_path), dim=1)
    similarity = features @ features.T
    assert similarity[0, 1] > similarity[0, 2]
    assert similarity[0, 1] > similarity[0, 3]


def test_features_are_the_mean_hidden_state_of_the_prompts_own_tokens(tiny_model, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    prompts = ["a", "brushing teeth (Kinetics)", "The 17-th depth coordinate", "b", "pose estimation ends here"]
    features = text_features(prompts, str(tiny_model), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModel.from_pretrained(tiny_model).eval()
    for prompt, feature in zip(prompts, features, strict=True):
        with torch.no_grad():  # one at a time, specials being the first and the last token of a BERT text
            hidden = model(**tokenizer(prompt, return_tensors="pt")).last_hidden_state[0, 1:-1]
        torch.testing.assert_close(feature, hidden.mean(0), rtol=1e-4, atol=1e-5)


def test_features_are_computed_once_and_then_read_bit_for_bit(tiny_model, tmp_path, computations):
    first = text_features(["a", "b"], str(tiny_model), tmp_path / "new" / "cache")
    again = text_features(("a", "b"), str(tiny_model), tmp_path / "new" / "cache")
    assert torch.equal(first, again)
    assert computations == [["a", "b"]]
    other = text_features(["b", "a"], str(tiny_model), tmp_path / "new" / "cache")
    assert len(computations) == 2
    torch.testing.assert_close(other.flip(0), first)


def test_a_model_is_known_by_its_content_not_its_place(tiny_model, tmp_path, computations):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    assert text_identity(str(copy)) == text_identity(str(tiny_model))
    before = text_features(["a"], str(tiny_model), tmp_path)
    assert torch.equal(text_features(["a"], str(copy), tmp_path), before)
    assert len(computations) == 1

    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] += 1.0
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert text_identity(str(copy)) != text_identity(str(tiny_model))
    assert not torch.equal(text_features(["a"], str(copy), tmp_path), before)


def test_a_cache_folder_may_start_at_home(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    text_features(["a"], str(tiny_model), "~/cache")
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1


def test_identities_of_the_named_models_hold_content_and_pooling_but_no_path():
    assert text_identity("roberta-base").startswith("roberta-base@e2da8e2f")  # known without its files
    identity = text_identity("minilm")
    # sha256 over "name:sha256" lines of the package's json, txt and safetensors files, version 0.1.0
    assert identity.startswith("minilm@f9bd6085d3165343")
    assert "/" not in identity
    assert identity.endswith(text_features_module.POOLING)


def _ask_at_once(barrier, cache_dir, results):
    barrier.wait()
    features = text_features(["a", "b"], "roberta-base", cache_dir)
    results.put(features.tolist())


def test_of_four_processes_that_ask_at_once_one_computes(tmp_path, monkeypatch):
    log_file = tmp_path / "computations"

    def slow_embed(prompts, model):
        with log_file.open("a") as stream:
            stream.write("computed\n")
        time.sleep(0.5)
        return torch.tensor([[1.0, 2.0], [3.0, 4.0]])

    monkeypatch.setattr(text_features_module, "_embed", slow_embed)
    context = multiprocessing.get_context("fork")  # so that the processes see slow_embed
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_ask_at_once, args=(barrier, tmp_path / "cache", results)) for _ in range(4)]
    for process in processes:
        process.start()
    got = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert got == [[[1.0, 2.0], [3.0, 4.0]]] * 4
    assert log_file.read_text() == "computed\n"


def test_a_lock_left_by_a_killed_process_blocks_nobody(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(text_features_module, "LOCK_TIMEOUT_S", 5.0)
    file = tmp_path / f"text-{text_features_module._fingerprint(text_identity(str(tiny_model)), ['a'])}.safetensors"
    program = (
        f"import filelock, os, signal; filelock.FileLock({str(file) + '.lock'!r}).acquire(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    assert text_features(["a"], str(tiny_model), tmp_path).shape == (1, 16)


def test_a_lock_held_too_long_is_an_error_that_names_it(tiny_model, tmp_path, monkeypatch):
    from filelock import FileLock

    monkeypatch.setattr(text_features_module, "LOCK_TIMEOUT_S", 0.2)
    fingerprint = text_features_module._fingerprint(text_identity(str(tiny_model)), ["a"])
    with FileLock(tmp_path / f"text-{fingerprint}.safetensors.lock"), pytest.raises(ValueError, match="still holds"):
        text_features(["a"], str(tiny_model), tmp_path)


def flip_a_byte_of_the_features(file):
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_byte_of_the_features,
        lambda file: file.write_bytes(file.read_bytes()[:-8]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"no safetensors at all"),
    ],
    ids=["flipped byte", "cut short", "empty", "another format"],
)
def test_a_damaged_cache_is_told_and_computed_again(tiny_model, tmp_path, computations, caplog, damage):
    features = text_features(["a", "b"], str(tiny_model), tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    damage(file)
    with caplog.at_level(logging.WARNING, logger="ups_model.model.text_features"):
        assert torch.equal(text_features(["a", "b"], str(tiny_model), tmp_path), features)
    assert len(computations) == 2
    assert str(file) in caplog.text
    assert "computing it again" in caplog.text
    caplog.clear()
    assert torch.equal(text_features(["a", "b"], str(tiny_model), tmp_path), features)
    assert len(computations) == 2
    assert not caplog.records


def test_a_failed_write_leaves_nothing_behind(tiny_model, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(text_features_module.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        text_features(["a"], str(tiny_model), tmp_path)
    assert [file.suffix for file in tmp_path.iterdir()] in ([], [".lock"])


def test_cached_features_of_roberta_need_neither_its_files_nor_network(tmp_path, monkeypatch, network):
    with monkeypatch.context() as patch:
        patch.setattr(text_features_module, "_embed", lambda prompts, model: torch.ones(1, 768))
        text_features(["a"], "roberta-base", tmp_path)
    assert torch.equal(text_features(["a"], "roberta-base", tmp_path), torch.ones(1, 768))
    assert not network


def test_roberta_that_is_nowhere_is_an_error_that_says_what_to_do(tmp_path, monkeypatch, network):
    monkeypatch.setattr(text_features_module, "ROBERTA_REPO", "FacebookAI/roberta-base-that-is-not-here")
    with pytest.raises(ValueError, match="text_model='minilm' is packaged") as caught:
        text_features(["a"], "roberta-base", tmp_path)
    assert "\n" not in str(caught.value)
    assert network


@pytest.mark.parametrize(
    ("prompts", "model", "rule"),
    [
        ([], "minilm", "prompts must be texts, got none"),
        (["a", " "], "minilm", "prompts must be texts, got empty text at 1"),
        (["a"], "roberta-bse", "'roberta-base', 'minilm' or an existing folder, got 'roberta-bse'"),
    ],
)
def test_wrong_requests_are_refused(tmp_path, prompts, model, rule):
    with pytest.raises(ValueError, match=rule):
        text_features(prompts, model, tmp_path)


def test_a_folder_without_a_model_and_a_text_too_long_are_refused(tiny_model, tmp_path):
    with pytest.raises(ValueError, match=r"must hold a config\.json"):
        text_features(["a"], str(tmp_path), tmp_path)
    with pytest.raises(ValueError, match="must fit the model's 64 tokens, got 102"):
        text_features(["b", "a " * 100], str(tiny_model), tmp_path)
