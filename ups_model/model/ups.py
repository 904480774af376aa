"""UPS: joint tokenizer, routed encoder, auto-regressive decoder over one text vocabulary (paper section 3).

Shape suffixes: B clips, P persons, N frames, J joint slots present, S all 25 slots, C coordinates or features, D token
width, R target frames of a window, K target steps, W decoder width, V vocabulary, E text-feature width.
"""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups_model.config import ModelConfig
from ups_model.model.decoder import Decoder, DecoderCache, Memory
from ups_model.model.encoder import Encoder
from ups_model.model.inputs import Inputs, Slots, check_inputs, row_numbers
from ups_model.model.layers import Dropout, Scene, SlotsToToken, drawn, initialise, linear
from ups_model.model.tokenizer import JointTokenizer, time_mean
from ups_model.model.vocabulary import Quantiser, Vocabulary
from ups_model.skeletons import ROOT_SLOT, SLOT_PARENTS, SLOTS
from ups_model.tasks import MAX_PERSONS, POSE_AXES, TASK_INDEX, TASKS


class UPS(nn.Module):
    """The unified pose sequence model: one set of weights, four tasks, all answers as token sequences."""

    if TYPE_CHECKING:
        input_mean_TC: Tensor
        input_scale_TC: Tensor
        text_VE: Tensor
        waves_QF: Tensor
        parents_S: Tensor
        pose_slots_J: Tensor

    def __init__(
        self,
        config: ModelConfig,
        vocabulary: Vocabulary,
        quantiser: Quantiser | None,
        text_VE: Tensor,
        max_frames: int,
        pose_joints: int = 17,
        seed: int = 0,
        pose_slots: Iterable[int] = (),
    ) -> None:
        """Build and initialise.

        Args:
            text_VE: frozen features of `vocabulary.prompts`: of `text_features`, put through `whiten` where the
                configuration asks for it, or those kept with a checkpoint.
            max_frames: longest clip or window.
            pose_joints: joints of a predicted pose; its target sequence has 3 * pose_joints + 1 tokens.
            seed: of the initial weights; parameters that two configurations share start equal.
            pose_slots: slot of each joint of a predicted pose, which `decoder_alignment` needs.

        Raises:
            ValueError: text features that do not fit the vocabulary, bins that differ from the configuration's, or
                sizes out of range.
        """
        super().__init__()
        if not 1 <= pose_joints <= SLOTS:
            raise ValueError(f"pose_joints must lie in 1..{SLOTS}, got {pose_joints}")
        if max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, got {max_frames}")
        if text_VE.shape[0] != vocabulary.size:
            raise ValueError(f"text features must have one row a token, got {text_VE.shape[0]} for {vocabulary.size}")
        if vocabulary.n_bins != config.n_bins:
            raise ValueError(f"vocabulary and model must agree in n_bins, got {vocabulary.n_bins} and {config.n_bins}")
        self.config, self.vocabulary, self.quantiser = config, vocabulary, quantiser
        self.pose_joints, self.max_frames = pose_joints, max_frames
        width, decoder_width = config.token_width, config.decoder_width
        features = 3 * len(config.input_features)
        self.register_buffer("input_mean_TC", torch.zeros(len(TASKS), features))
        self.register_buffer("input_scale_TC", torch.ones(len(TASKS), features))
        self.tokenizer = JointTokenizer(features, width, config.tokenizer_layers, config.normalisation)
        self.slot_SD = drawn(SLOTS, width, std=0.02)
        self.frame_ND = drawn(max_frames, width, std=0.02)
        self.dropout = Dropout(config.dropout)
        self.encoder = Encoder(config)
        self.memory_norm = nn.LayerNorm(width)
        if config.decoder_memory != "joints":
            self.frame_memory = SlotsToToken(width, decoder_width)
        if config.decoder_memory != "frames":
            self.joint_memory = linear(width, decoder_width)
            self.joint_memory_SW = drawn(SLOTS, decoder_width, std=0.02)
        self.person_PW = drawn(MAX_PERSONS, decoder_width, std=0.02)
        self.pose_slots = tuple(map(int, pose_slots))
        if config.decoder_alignment:
            # Without a coordinate range no pose is ever decoded, so there is nothing to align.
            if quantiser is not None and (len(self.pose_slots) != pose_joints or min(self.pose_slots) < 0):
                raise ValueError(
                    f"decoder_alignment needs the slot of each of the {pose_joints} predicted joints, got {pose_slots}"
                )
            self.align = linear(width, decoder_width)
            slots_J = torch.tensor(self.pose_slots, dtype=torch.int64)
            self.register_buffer("pose_slots_J", slots_J, persistent=False)
        self.start = linear(config.router_width, decoder_width)
        self.decoder = Decoder(config, POSE_AXES * SLOTS + 1, max_frames)
        self.register_buffer("text_VE", text_VE.float())
        self.project_text = linear(text_VE.shape[1], decoder_width, bias=False)
        if config.vocabulary_residual:
            self.residual_VW = drawn(vocabulary.size, decoder_width, std=0.02)
        if config.vocabulary_ordinal:
            waves_QF = bin_waves(config.n_bins)
            self.register_buffer("waves_QF", waves_QF, persistent=False)
            self.ordinal_AFW = drawn(POSE_AXES, waves_QF.shape[1], decoder_width, std=waves_QF.shape[1] ** -0.5)
        self.logit_scale = nn.Parameter(torch.tensor(decoder_width**-0.5))
        self.register_buffer("parents_S", torch.tensor(SLOT_PARENTS).clamp(min=0), persistent=False)
        initialise(self, seed)

    # -- parts ---------------------------------------------------------------------------------------------------

    def vocabulary_VW(self) -> Tensor:
        """The vocabulary as decoder tokens: projected frozen text features, and the learned residual if any."""
        tokens_VW = self.project_text(self.text_VE)
        if self.config.vocabulary_residual:
            tokens_VW = tokens_VW + self.residual_VW
        if self.config.vocabulary_ordinal:
            classes = self.vocabulary.n_classes
            places_VW = (self.waves_QF @ self.ordinal_AFW).flatten(0, 1)
            ends = len(tokens_VW) - classes - len(places_VW)
            tokens_VW = tokens_VW + F.pad(places_VW, (0, 0, classes, ends))
        return tokens_VW

    def features(self, pose_BNSC: Tensor) -> Tensor:
        """[B, N, 25, C'] input features of each joint: position, the same relative to the root, velocity (from
        last frame), bone (from parent)."""
        parts = {
            "position": lambda: pose_BNSC,
            "relative": lambda: pose_BNSC - pose_BNSC[:, :, ROOT_SLOT : ROOT_SLOT + 1],
            "velocity": lambda: F.pad(pose_BNSC[:, 1:] - pose_BNSC[:, :-1], (0, 0, 0, 0, 1, 0)),
            "bone": lambda: pose_BNSC - pose_BNSC[:, :, self.parents_S],
        }
        return torch.cat([parts[name]() for name in self.config.input_features], dim=-1)

    @torch.no_grad()
    def set_input_statistics(self, inputs: Inputs) -> None:
        """Take mean and scale of the task's input features from a batch of training clips."""
        there_BP = self._present(inputs)
        features_BNSC = self.features(inputs.pose_BPNSC[there_BP] * inputs.slot_mask_S[:, None])
        features_BNSC = features_BNSC[:, :, inputs.slot_mask_S]
        if inputs.frame_mask_BN is not None:
            person_frames_BPN = inputs.frame_mask_BN[:, None].expand(-1, there_BP.shape[1], -1)
            features_BNSC = features_BNSC[person_frames_BPN[there_BP]]
        flat = features_BNSC.reshape(-1, features_BNSC.shape[-1]).double()
        row = TASK_INDEX[inputs.task]
        self.input_mean_TC[row] = flat.mean(dim=0)
        self.input_scale_TC[row] = flat.std(dim=0).clamp(min=1e-6).where(flat.std(dim=0) > 1e-6, 1.0)

    def encode(
        self, inputs: Inputs, noise_LH: Tensor | None = None, temperature: float = 1.0
    ) -> tuple[Memory, Tensor, Scene]:
        """Pose sequences to the decoder's memory; also the encoded tokens [B*P, N, J, D] and their scene.

        Raises:
            ValueError: wrong shapes, or coordinates that are not finite.
        """
        check_inputs(inputs, self.max_frames)
        # Chosen first and read after the tokenizer: a device then has work while the host waits for the choice.
        route = None
        if self.config.routing:
            route = self.encoder.router.choose(TASK_INDEX[inputs.task], noise_LH, temperature)
        persons, frames = inputs.pose_BPNSC.shape[1:3]
        there_BP = self._present(inputs)
        all_there = inputs.person_mask_BP is None or bool(there_BP.all())
        pose_XNSC = inputs.pose_BPNSC.flatten(0, 1) if all_there else inputs.pose_BPNSC[there_BP]
        frame_mask = inputs.frame_mask_BN
        if frame_mask is not None and bool(frame_mask.all()):
            frame_mask = None
        mask_XN = None
        if frame_mask is not None:
            mask_XN = frame_mask[:, None].expand(-1, persons, -1)[there_BP]
            # Padded frames may hold huge values: they would overflow, and NaN times a mask of 0 is NaN.
            pose_XNSC = pose_XNSC * mask_XN[:, :, None, None]
        pose_XNSC = pose_XNSC * inputs.slot_mask_S[:, None]  # A bone may start at an absent slot.
        slots = inputs.slots or Slots.of(inputs.slot_mask_S)
        row_BP = row_numbers(inputs, persons)
        row_X = row_BP.flatten() if all_there else row_BP[there_BP]
        scene = Scene(TASK_INDEX[inputs.task], slots.index_J, mask_XN, row_X)
        row = scene.task
        features_XNJC = self.features(pose_XNSC)[:, :, scene.slots]
        features_XNJC = (features_XNJC - self.input_mean_TC[row]) / self.input_scale_TC[row]
        x_XNJD = self.tokenizer(features_XNJC, scene)
        x_XNJD = self.dropout(x_XNJD + self.slot_SD[scene.slots] + self.frame_ND[:frames, None], scene.row_B)
        x_XNJD = self.encoder(x_XNJD, scene, noise_LH, temperature, route)
        memory = self._memory(inputs, self.memory_norm(x_XNJD), scene, slots, there_BP, all_there)
        return memory, x_XNJD, scene

    def _present(self, inputs: Inputs) -> Tensor:
        if inputs.person_mask_BP is not None:
            return inputs.person_mask_BP
        return torch.ones(inputs.pose_BPNSC.shape[:2], dtype=torch.bool, device=inputs.pose_BPNSC.device)

    def _memory(
        self, inputs: Inputs, x_XNJD: Tensor, scene: Scene, slots: Slots, there_BP: Tensor, all_there: bool
    ) -> Memory:
        batch, persons, frames = inputs.pose_BPNSC.shape[:3]
        joints = len(scene.slots)
        device = x_XNJD.device
        target_BR = inputs.target_frame_BR
        if target_BR is None:
            # Over the unpadded frames, so that padding a clip does not move its centre.
            mask_BN = inputs.frame_mask_BN
            whole_B1 = torch.full((batch, 1), frames, device=device)
            count_B1 = whole_B1 if mask_BN is None else mask_BN.sum(dim=1, keepdim=True)
            target_BR = (count_B1 - 1) // 2
        target_X = target_BR.flatten()
        frame_N = torch.arange(frames, device=device)
        window, per_target = [], None
        pose = TASKS[inputs.task].kind == "pose"
        kind = self.config.decoder_memory
        if kind == "joints":
            tokens = self.joint_memory(x_XNJD) + self.joint_memory_SW[scene.slots]
            window, frame_M = tokens.flatten(1, 2), frame_N.repeat_interleave(joints)
        else:
            window, frame_M = self.frame_memory(x_XNJD, scene), frame_N
        if kind == "frames+joints":
            if pose:
                rows = torch.arange(batch, device=device).repeat_interleave(target_BR.shape[1])
                own_XJD = x_XNJD[rows, target_X]
            else:
                own_XJD = time_mean(x_XNJD, scene.frame_mask_BN)
            per_target = self.joint_memory(own_XJD) + self.joint_memory_SW[scene.slots]
        offset_XM = frame_M[None] - target_X[:, None] + self.max_frames - 1
        mask_BM = None
        if scene.frame_mask_BN is not None:
            mask_BM = scene.frame_mask_BN[:, frame_M]
        if persons > 1 or not all_there:
            # Persons are encoded one by one and attended to together: tokens are concatenated, absent persons masked.
            present = mask_BM if mask_BM is not None else torch.ones(window.shape[:2], dtype=torch.bool, device=device)
            extra = [] if per_target is None else [per_target]
            tokens = torch.cat([window, *extra], dim=1)
            present = F.pad(present, (0, tokens.shape[1] - present.shape[1]), value=True)
            full = tokens.new_zeros(batch, persons, *tokens.shape[1:])
            full[there_BP] = tokens
            full = full + self.person_PW[:persons, None]
            mask = torch.zeros(full.shape[:3], dtype=torch.bool, device=device)
            mask[there_BP] = present
            # Tokens of the target's own stand at the target frame: offset 0.
            offset_XM = F.pad(offset_XM, (0, full.shape[2] - offset_XM.shape[1]), value=self.max_frames - 1)
            offset_XM = offset_XM.repeat(1, persons)
            window, mask_BM, per_target = full.flatten(1, 2), mask.flatten(1, 2), None  # type: ignore[assignment]  # was [] at first
        aligned = self._aligned(x_XNJD, slots, target_BR) if pose and self.config.decoder_alignment else None
        row_B = row_numbers(inputs, target_BR.shape[1]).flatten()
        return Memory(window, mask_BM, offset_XM, per_target, aligned, row_B)

    def _aligned(self, x_XNJD: Tensor, slots: Slots, target_BR: Tensor) -> Tensor:
        """[B*R, 3J + 1, W] for each step the token of its joint at the target frame; nothing for the closing step."""
        absent = sorted(set(self.pose_slots) - set(slots.numbers))
        if absent:
            raise ValueError(
                f"decoder_alignment needs every predicted joint in the input, got none in slots {absent}; give "
                "clips of the predicted skeleton, or train with decoder_alignment=false"
            )
        rows = torch.arange(len(target_BR), device=x_XNJD.device).repeat_interleave(target_BR.shape[1])
        places_J = torch.searchsorted(slots.index_J, self.pose_slots_J)  # Slots are in order.
        joints_XJD = x_XNJD[rows, target_BR.flatten()][:, places_J]
        steps_XKW = self.align(joints_XJD).repeat_interleave(POSE_AXES, dim=1)
        return F.pad(steps_XKW, (0, 0, 0, 1))

    def start_W(self, task: str) -> Tensor:
        """The start token of a task's sequences."""
        return self.start(self.encoder.router.task_TQ[TASK_INDEX[task]])

    def embed_prefix(self, task: str, tokens_BK: Tensor, mask_BK: Tensor | None, vocabulary_VW: Tensor) -> Tensor:
        """[B, K + 1, W] decoder input: the task's start token, then the given tokens (mask token where `mask_BK`)."""
        start_W = self.start_W(task)
        given_BKW = F.embedding(tokens_BK, vocabulary_VW)
        if mask_BK is not None:
            given_BKW = torch.where(mask_BK[..., None], self.decoder.mask_W, given_BKW)
        return torch.cat([start_W.expand(len(tokens_BK), 1, -1).to(given_BKW.dtype), given_BKW], dim=1)

    def logits(self, output_BKW: Tensor, vocabulary_VW: Tensor) -> Tensor:
        """Match output tokens with the vocabulary: [B, K, V]."""
        return (output_BKW * self.logit_scale) @ vocabulary_VW.T

    def forward(
        self,
        inputs: Inputs,
        target_BK: Tensor,
        mask_BK: Tensor | None = None,
        noise_LH: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Teacher-forced logits [B*R, K, V] of the target sequences, one step ahead each (Eq. 3).

        Args:
            target_BK: [B*R, K] token ids; the last one is never an input.
            mask_BK: [B*R, K-1] True where an input token is replaced by the mask token.
            noise_LH: Gumbel noise of a training step; None takes the best route.
        """
        memory, _, _ = self.encode(inputs, noise_LH, temperature)
        vocabulary_VW = self.vocabulary_VW()
        prefix_BKW = self.embed_prefix(inputs.task, target_BK[:, :-1], mask_BK, vocabulary_VW)
        return self.logits(self.decoder(prefix_BKW, self.decoder.start(memory)), vocabulary_VW)

    def set_activation_checkpointing(self, on: bool) -> None:
        """Whether layers of tokenizer and encoder keep their inputs alone between the passes of a training step."""
        self.tokenizer.activation_checkpointing = self.encoder.activation_checkpointing = on

    def routes(self) -> dict[str, list[int]]:
        """The block that each task takes in each layer (the paper's Figure 4); empty without routing."""
        if not self.config.routing:
            return {}
        return {task: self.encoder.router.routes(index) for task, index in TASK_INDEX.items()}

    def new_cache(self, memory: Memory) -> DecoderCache:
        """A decoding cache for `memory`."""
        return self.decoder.start(memory)


def whiten(text_VE: Tensor) -> Tensor:
    """Centre and whiten features, [V, E] -> [V, rank]: orthogonal columns of unit variance.

    Features of prompts that differ in one number have cosines above 0.9; a learned projection of them is badly
    conditioned. Whitening keeps what the frozen text distinguishes and gives every direction the same scale.
    Directions below 1e-3 of the largest singular value are noise of the language model's arithmetic and are dropped.
    """
    centred = text_VE.double() - text_VE.double().mean(dim=0)
    left, scale, _ = torch.linalg.svd(centred, full_matrices=False)
    kept = scale > 1e-3 * scale[0]
    left = left[:, kept]
    sign = left.gather(0, left.abs().argmax(dim=0, keepdim=True)).sign()  # A singular vector's sign is arbitrary.
    return (left * sign * len(text_VE) ** 0.5).float()


def bin_waves(n_bins: int) -> Tensor:
    """[Q, F] smooth functions of a bin's place p in [-1, 1]: p, p^2, and sines and cosines of 1 to 32 half turns.

    With p and p^2 alone a normal density over the bins is a linear function of its mean: log-density = a p + b p^2.
    """
    # On the CPU whatever the default device: under `meta` these two were seen to end up on different devices.
    place_Q = torch.linspace(-1, 1, n_bins, device="cpu")
    turns_QH = place_Q[:, None] * math.pi * torch.tensor([2.0**doubled for doubled in range(6)], device="cpu")
    waves_QF = torch.cat([place_Q[:, None], place_Q[:, None].square(), turns_QH.sin(), turns_QH.cos()], dim=1)
    return (waves_QF - waves_QF.mean(dim=0)) / waves_QF.std(dim=0).clamp(min=1e-3)
