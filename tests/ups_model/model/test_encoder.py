"""SEM-TEM blocks against plain arithmetic, and the routing of tasks."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.support.small_models import clips, generator, small_config, small_model, stir
from ups_model.config import ModelConfig
from ups_model.model.encoder import Encoder, FrameAttention, Router, SemTemBlock, Tem
from ups_model.model.layers import Scene, initialise, linear
from ups_model.tasks import TASK_INDEX

SLOTS_J = (0, 1, 4, 8, 20)
MASK_BN = torch.tensor([[True] * 4, [True, True, False, False]])


def scene(task=0, slots=SLOTS_J, mask=None):
    return Scene(task, torch.tensor(list(slots)), mask)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def encoder(stirred=True, **changes):
    built = Encoder(small_config(**changes))
    initialise(built, seed=1)
    return (stir(built) if stirred else built).double()


# --- TEM


def layer_norm_by_hand(norm, x_W):
    centred = x_W - x_W.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * norm.weight + norm.bias


def gelu(x):
    return torch.tensor([0.5 * v * (1 + math.erf(v / 2**0.5)) for v in x.tolist()], dtype=torch.float64)


def frames_by_hand(block, x_BNW, mask_BN):
    """Pre-norm transformer block over frames: every softmax written out, padded frames left out of it."""
    out = torch.zeros_like(x_BNW)
    batch, frames, width = x_BNW.shape
    part = width // block.heads
    for b in range(batch):
        there = [n for n in range(frames) if mask_BN is None or mask_BN[b, n]]
        qkv = [block.query_key_value(layer_norm_by_hand(block.attention_norm, x_BNW[b, n])) for n in range(frames)]
        for n in range(frames):
            heads = []
            for h in range(block.heads):
                own = slice(h * part, (h + 1) * part)
                query = qkv[n][:width][own]
                scores = [float(query @ qkv[m][width : 2 * width][own]) / math.sqrt(part) for m in there]
                total = sum(math.exp(score) for score in scores)
                values = [qkv[m][2 * width :][own] for m in there]
                heads.append(sum(math.exp(s) / total * value for s, value in zip(scores, values, strict=True)))
            x_W = x_BNW[b, n] + block.merge(torch.cat(heads))
            out[b, n] = x_W + block.mlp.outer(gelu(block.mlp.inner(layer_norm_by_hand(block.mlp_norm, x_W))))
    return out


@pytest.mark.parametrize("mask", [None, MASK_BN], ids=["whole", "padded"])
@torch.no_grad()
def test_attention_over_frames_equals_a_plain_softmax_loop(mask):
    block = FrameAttention(12, heads=3, mlp_ratio=2, dropout=0.1)
    initialise(block, seed=0)
    block = stir(block).double().eval()
    x_BNW = random(2, 4, 12)
    torch.testing.assert_close(block(x_BNW, mask), frames_by_hand(block, x_BNW, mask))


@torch.no_grad()
def test_a_full_width_tem_is_a_transformer_block_over_frames_with_zeros_for_absent_slots():
    tem = Tem(small_config(token_width=4, tem_width=0, tem_heads=4, tem_mlp_ratio=1))
    initialise(tem, seed=0)
    tem = stir(tem).double().eval()
    x_BNJD = random(1, 2, 5, 4)
    full = torch.zeros(1, 2, 25, 4, dtype=torch.float64)
    full[:, :, list(SLOTS_J)] = x_BNJD
    expected = frames_by_hand(tem.frames, full.flatten(2), None).unflatten(2, (25, 4))[:, :, list(SLOTS_J)]
    torch.testing.assert_close(tem(x_BNJD, scene()), expected)


@torch.no_grad()
def test_a_bottleneck_tem_adds_to_its_input_what_attention_over_narrow_frames_says():
    tem = Tem(small_config(tem_width=6, tem_heads=2))
    initialise(tem, seed=0)
    tem = stir(tem).double().eval()
    x_BNJD = random(2, 4, 5, 8)
    full = torch.zeros(2, 4, 25, 8, dtype=torch.float64)
    full[:, :, list(SLOTS_J)] = F.layer_norm(x_BNJD, (8,), tem.norm.weight, tem.norm.bias)
    narrow = full.flatten(2) @ tem.down.weight.flatten(1).T + tem.down.bias
    wide = frames_by_hand(tem.frames, narrow, MASK_BN) @ tem.up.weight.flatten(0, 1).T + tem.up.bias.flatten()
    expected = x_BNJD + wide.unflatten(2, (25, 8))[:, :, list(SLOTS_J)]
    torch.testing.assert_close(tem(x_BNJD, scene(mask=MASK_BN)), expected)


def matrices(module):
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, torch.nn.Linear))


def test_a_full_width_tem_has_12_times_the_square_of_25_d_weights():
    with torch.device("meta"):  # The paper's size: counted, not held in memory.
        config = ModelConfig(token_width=64, tem_width=0, tem_mlp_ratio=4)
        layers = Encoder(config).layers
    assert matrices(layers[0][0].tem) == 12 * (25 * 64) ** 2 == 30_720_000
    assert [len(blocks) for blocks in layers] == [2, 2, 2]
    assert sum(matrices(block.tem) for blocks in layers for block in blocks) == 184_320_000


@torch.no_grad()
def test_a_block_is_two_graph_units_and_then_the_tem():
    block = SemTemBlock(small_config())
    initialise(block, seed=0)
    block = stir(block).double().eval()
    x_BNJD = random(2, 4, 5, 8)
    first, second = block.sem
    torch.testing.assert_close(block(x_BNJD, scene()), block.tem(second(first(x_BNJD, scene()), scene()), scene()))


# --- scores and the choice


def test_router_scores_are_scaled_dot_products_with_standard_deviation_near_1_at_the_start():
    router = Router(small_config(router_width=256, encoder_layers=50, blocks_per_layer=20))
    initialise(router, seed=0)
    scores = torch.stack([router.scores(task) for task in range(4)]).detach()
    by_hand = sum(a * b for a, b in zip(router.block_LHQ[3, 1].tolist(), router.task_TQ[2].tolist(), strict=True)) / 16
    assert float(scores[2, 3, 1]) == pytest.approx(by_hand, rel=1e-5)
    # 4,000 scores, but 1,000 share each task's length, itself known to 1 / sqrt(2 * 256) = 4.4 %: 4 standard errors.
    assert float(scores.std()) == pytest.approx(1, abs=4 * 0.044 / 2 + 4 / math.sqrt(8000))


def test_eq_1_as_printed_is_the_plain_dot_product_whose_scores_drown_the_gumbel_noise():
    raw = Router(small_config(router_width=256, encoder_layers=50, blocks_per_layer=20, router_scaled=False))
    initialise(raw, 0)
    scores = torch.stack([raw.scores(task) for task in range(4)]).detach()
    by_hand = sum(float(b) * float(t) for b, t in zip(raw.block_LHQ[3, 1], raw.task_TQ[2], strict=True))
    assert float(scores[2, 3, 1]) == pytest.approx(by_hand, rel=1e-5)
    # Two N(0, 1) vectors of width 256: deviation 16, against pi / sqrt(6) = 1.28 of the noise.
    assert float(scores.std()) == pytest.approx(16, rel=0.15)


def test_choices_of_noisy_scores_are_as_frequent_as_their_softmax():
    router = Router(small_config(encoder_layers=1, blocks_per_layer=3))
    initialise(router, seed=4)
    source, draws = generator(0), 5_000
    noise = -torch.log(-torch.log(torch.rand(draws, 1, 3, generator=source)))
    with torch.no_grad():
        expected = F.softmax(router.scores(1)[0].double(), dim=0)
        for temperature in (5.0, 0.5):  # Temperature shapes weights, never the choice.
            chosen = torch.stack([router.sample(1, one, temperature)[0] for one in noise]).argmax(dim=1)
            counts = torch.bincount(chosen, minlength=3)
            chi_square = float(((counts - draws * expected) ** 2 / (draws * expected)).sum())
            assert chi_square < 13.8, (counts.tolist(), expected.tolist())  # p = 0.001 with 2 degrees of freedom


def test_with_one_block_a_layer_the_route_is_always_block_0():
    router = Router(small_config(blocks_per_layer=1, encoder_layers=3))
    initialise(router, seed=0)
    noise = random(3, 1).float()
    for task in range(4):
        assert router.routes(task) == [0, 0, 0]
        assert (router.sample(task, noise, 0.5) == 1).all()


def test_the_best_score_is_the_route_that_inference_takes():
    built = encoder()
    for task in range(4):
        x_BNJD = random(2, 4, 5, 8, seed=task)
        expected = x_BNJD
        for layer, blocks in enumerate(built.layers):
            scores = [(vector @ built.router.task_TQ[task]).item() for vector in built.router.block_LHQ[layer]]
            expected = blocks[scores.index(max(scores))].eval()(expected, scene(task))
        torch.testing.assert_close(built.eval()(x_BNJD, scene(task)), expected)


def test_all_samples_of_a_task_take_one_route():
    built = encoder(dropout=0.0).train()
    x_BNJD = random(6, 4, 5, 8)
    noise = random(2, 2, seed=1)
    together = built(x_BNJD, scene(), noise, 1.0)
    apart = torch.cat([built(x_B, scene(), noise, 1.0) for x_B in x_BNJD.split(1)])
    torch.testing.assert_close(together, apart)


def test_frozen_routes_stay_when_the_embeddings_change_and_noise_is_ignored():
    built = encoder(blocks_per_layer=3, dropout=0.0)
    before = [built.router.routes(task) for task in range(4)]
    built.router.freeze()
    x_BNJD = random(2, 4, 5, 8)
    expected = built(x_BNJD, scene(2))
    with torch.no_grad():
        built.router.task_TQ.mul_(-1)
    assert [built.router.scores(task).argmin(dim=1).tolist() for task in range(4)] == before
    assert [built.router.routes(task) for task in range(4)] == before
    torch.testing.assert_close(built.train()(x_BNJD, scene(2), 100 * random(2, 3, seed=9), 1.0), expected)


def test_frozen_routes_are_kept_with_the_weights():
    first, second = encoder(blocks_per_layer=3), encoder(blocks_per_layer=3)
    first.router.freeze()
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        second.router.task_TQ.mul_(-1)
    assert [second.router.routes(task) for task in range(4)] == [first.router.routes(task) for task in range(4)]


# --- sparse and dense execution


def both_modes(**changes):
    sparse, dense = (encoder(routing_execution=mode, dropout=0.0, **changes) for mode in ("sparse", "dense"))
    dense.load_state_dict(sparse.state_dict())
    return sparse, dense


def gradients(built, x_BNJD, *how):
    built.zero_grad()
    out = built(x_BNJD, scene(1), *how)
    (out * random(*out.shape, seed=8)).sum().backward()
    return out.detach(), {name: parameter.grad for name, parameter in built.named_parameters()}


def test_in_evaluation_sparse_and_dense_give_equal_outputs_and_gradients():
    sparse, dense = both_modes()
    x_BNJD = random(2, 4, 5, 8)
    (one, one_grad), (two, two_grad) = gradients(sparse.eval(), x_BNJD), gradients(dense.eval(), x_BNJD)
    assert torch.equal(one, two)
    reached = {name for name, grad in one_grad.items() if grad is not None}
    assert reached == {name for name, grad in two_grad.items() if grad is not None}
    routes = sparse.router.routes(1)
    assert {name.split(".")[2] for name in reached if name.startswith("layers.1")} == {str(routes[1])}
    for name in reached:
        assert torch.equal(one_grad[name], two_grad[name]), name


@pytest.mark.parametrize("temperature", [5.0, 0.5])
def test_in_training_sparse_and_dense_agree_in_output_and_in_the_gradient_of_chosen_blocks(temperature):
    sparse, dense = both_modes(blocks_per_layer=3)
    x_BNJD, noise = random(2, 4, 5, 8), random(2, 3, seed=1)
    (one, one_grad), (two, two_grad) = (
        gradients(built.train(), x_BNJD, noise, temperature) for built in (sparse, dense)
    )
    torch.testing.assert_close(one, two)
    chosen = (sparse.router.scores(1) + noise).argmax(dim=1).tolist()
    own = [name for name in one_grad if name.startswith(tuple(f"layers.{n}.{h}." for n, h in enumerate(chosen)))]
    assert len(own) > 30
    for name in own:
        torch.testing.assert_close(one_grad[name], two_grad[name], msg=name)


@pytest.mark.parametrize("execution", ["sparse", "dense"])
def test_the_straight_through_gradient_reaches_task_and_block_embeddings(execution):
    built = encoder(routing_execution=execution, dropout=0.0).train()
    x_BNJD, noise, temperature = random(2, 4, 5, 8), random(2, 2, seed=1), 0.7
    out, gradient = gradients(built, x_BNJD, noise, temperature)
    assert gradient["router.task_TQ"][1].abs().max() > 1e-4
    assert not gradient["router.task_TQ"][[0, 2, 3]].any()
    assert (gradient["router.block_LHQ"].abs().amax(dim=2) > 1e-6).all()  # Softmax weights pull on every block's score.
    # By hand for the last layer: d loss / d soft_h times the softmax' Jacobian, d soft / d score = (diag - outer) / T.
    hidden = x_BNJD
    scores = (built.router.scores(1) + noise).detach()
    chosen = scores.argmax(dim=1)
    hidden = built.layers[0][int(chosen[0])](hidden, scene(1))
    weight = random(*out.shape, seed=8)
    pull_H = torch.stack([(block(hidden, scene(1)) * weight).sum() for block in built.layers[1]]).detach()
    if execution == "sparse":
        pull_H = pull_H * F.one_hot(chosen[1], 2)
    soft_H = F.softmax(scores[1] / temperature, dim=0)
    slope_H = (torch.diag(soft_H) - soft_H[:, None] * soft_H) @ pull_H / temperature
    expected_HQ = slope_H[:, None] * built.router.task_TQ[1].detach() / 4  # sqrt(q) = 4
    torch.testing.assert_close(gradient["router.block_LHQ"][1], expected_HQ)


def test_dense_training_alone_runs_the_blocks_that_were_not_chosen():
    sparse, dense = both_modes(blocks_per_layer=3)
    x_BNJD, noise = random(2, 4, 5, 8), random(2, 3, seed=1)
    _, one = gradients(sparse.train(), x_BNJD, noise, 1.0)
    _, two = gradients(dense.train(), x_BNJD, noise, 1.0)
    assert sum(grad is None for grad in one.values()) > 60
    assert all(grad is not None for grad in two.values())


# --- routing off


def test_routing_off_is_the_mean_of_all_blocks_with_the_same_parameters():
    routed, off = encoder(blocks_per_layer=3).eval(), encoder(blocks_per_layer=3, routing=False).eval()
    assert {name: p.shape for name, p in routed.named_parameters()} == {
        name: p.shape for name, p in off.named_parameters()
    }
    x_BNJD = random(2, 4, 5, 8)
    expected = x_BNJD
    for blocks in off.layers:
        expected = sum(block(expected, scene()) for block in blocks) / 3
    torch.testing.assert_close(off(x_BNJD, scene()), expected)
    torch.testing.assert_close(off(x_BNJD, scene(), random(2, 3), 1.0), expected)


def test_a_model_without_routing_names_no_routes_and_one_with_routing_names_all_tasks():
    assert small_model(small_config(routing=False)).routes() == {}
    model = small_model(small_config(blocks_per_layer=3))
    routes = model.routes()
    assert list(routes) == list(TASK_INDEX)
    scores = torch.einsum("lhq,tq->tlh", model.encoder.router.block_LHQ, model.encoder.router.task_TQ)
    assert list(routes.values()) == scores.argmax(dim=2).tolist()


def test_a_clip_takes_the_same_route_whatever_else_is_in_its_batch():
    model = small_model()
    batch = clips(batch=3)
    alone = clips(batch=3)
    one = type(alone)(alone.task, alone.pose_BPNSC[1:2], alone.slot_mask_S)
    torch.testing.assert_close(model.encode(batch)[1][1:2], model.encode(one)[1])


def test_layers_of_one_shape_are_drawn_differently():
    first, second = linear(3, 4), linear(3, 4)
    holder = torch.nn.ModuleDict({"one": first, "two": second})
    initialise(holder, seed=0)
    assert not torch.equal(first.weight, second.weight)
