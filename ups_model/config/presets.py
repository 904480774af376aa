"""The presets: `tiny` on the embedded synthetic sets, `small` on open data, `paper` as published, and `paper_twin`,
which is `paper` in small on open data."""

from ups_model.config import Config, DataConfig, EvalConfig, ModelConfig, OptimConfig, TaskData, TaskName

PRESETS = ("tiny", "small", "paper", "paper_twin")

LIFTING_CYCLE: tuple[TaskName, ...] = ("pe", "ar2d", "pe", "eap", "pe", "ar3d")
"""Pose estimation has every second iteration: it is the task that needs the steps."""


def preset(name: str) -> Config:
    """The configuration of a preset; ValueError for another name."""
    makers = {"tiny": tiny, "small": small, "paper": paper, "paper_twin": paper_twin}
    if name not in makers:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return makers[name]()


def _compact(**changes: object) -> ModelConfig:
    """What tiny and small share: the paper's shape with a bottleneck in the TEM, sized for a CPU."""
    base = ModelConfig(
        token_width=32,
        tem_width=128,
        tem_heads=4,
        tem_mlp_ratio=2,
        decoder_layers=2,
        decoder_width=128,
        decoder_heads=4,
        decoder_memory="frames+joints",
        decoder_dropout=0.0,
        decoder_alignment=True,
        input_features=("position", "relative", "velocity", "bone"),
        n_bins=200,
        vocabulary_ordinal=True,
        routing_explore_share=0.1,
        text_model="minilm",
    )
    return base.replace(**changes)


def tiny() -> Config:
    """All four tasks on synthetic motion, about a minute on two cores: to see that everything works."""
    clips = TaskData(("synthetic_ntu25",), frames=16, batch_size=16, crop_min=0.7, rotation_deg=30, scale=0.1)
    return Config(
        model=_compact(token_width=16, tem_width=64, decoder_width=64, n_bins=64, encoder_layers=2),
        data=DataConfig(
            pe=TaskData(
                ("synthetic_h36m17",),
                frames=9,
                frame_stride=2,
                batch_size=16,
                targets_per_window=4,
                evaluate_targets=8,
                evaluate_stride=16,
                rotation_deg=180,
                scale=0.1,
                flip=True,
            ),
            ar2d=TaskData(("synthetic_openpose18",), frames=16, batch_size=16, crop_min=0.7, tilt_deg=10, scale=0.1),
            eap=clips.replace(crop_min=0.15),
            ar3d=clips,
            validation_folds=2,
        ),
        optim=OptimConfig(
            steps=480,
            learning_rate=2e-3,
            mask_inputs=True,
            bin_sigma=1.0,
            expectation_weight=10.0,
            label_smoothing=0.1,
        ),
    )


def small() -> Config:
    """All four tasks on the open sets UI-PRMD, UTD-MHAD and J-HMDB, for two CPU cores or one GPU."""
    clips = TaskData(
        ("utd_mhad",), frames=32, batch_size=32, crop_min=0.7, rotation_deg=30, tilt_deg=10, scale=0.15, jitter=0.02
    )
    return Config(
        model=_compact(),
        data=DataConfig(
            pe=TaskData(
                ("uiprmd",),
                frames=27,
                frame_stride=2,
                batch_size=16,
                targets_per_window=6,
                evaluate_targets=8,
                evaluate_stride=16,
                rotation_deg=180,
                scale=0.1,
                bone_scale=0.05,
                translation_m=0.3,
                flip=True,
            ),
            ar2d=TaskData(
                ("jhmdb",), frames=32, batch_size=32, crop_min=0.7, tilt_deg=15, scale=0.2, jitter=0.05, flip=True
            ),
            eap=clips.replace(crop_min=0.15),
            ar3d=clips,
            validation_subjects=1,
            validation_folds=2,
        ),
        optim=OptimConfig(
            cycle=LIFTING_CYCLE,
            steps=4_200,
            learning_rate=1e-3,
            mask_inputs=True,
            bin_sigma=1.0,
            expectation_weight=10.0,
            label_smoothing=0.1,
        ),
    )


def paper() -> Config:
    """The published sizes and batch on Human3.6M, Kinetics-400 and NTU RGB+D 120.

    The published rate of 1e-2 is a row of the study `published_rate`, which trains `paper_twin` with both.
    """
    clips = TaskData(("ntu120",), frames=64, batch_size=1024, crop_min=0.5, rotation_deg=17)
    return Config(
        model=ModelConfig(),
        data=DataConfig(
            pe=TaskData(("h36m",), frames=81, batch_size=1024, detections="stored", flip=True),
            ar2d=TaskData(("kinetics",), frames=150, batch_size=1024, crop_min=0.5),
            eap=clips.replace(crop_min=0.1),
            ar3d=clips,
        ),
        optim=OptimConfig(steps=80_000, learning_rate=5e-4, evaluate_every=4_000),
        evaluation=EvalConfig(coordinates="argmax"),
    )


def paper_twin() -> Config:
    """`paper` in small: the same recipe, loss, memory and decoding, small widths and batches, on the open sets."""
    whole, open_sets = paper(), small().data
    widths = {"token_width": 16, "decoder_width": 128, "decoder_heads": 4, "n_bins": 200, "text_model": "minilm"}
    poses = {"sources": ("uiprmd",), "frames": 27, "frame_stride": 2, "batch_size": 32, "detections": "project"}
    measured = {"targets_per_window": 1, "evaluate_targets": 8, "evaluate_stride": 16}
    clips = {"sources": ("utd_mhad",), "frames": 32, "batch_size": 32}
    return whole.replace(
        model=whole.model.replace(**widths),
        data=open_sets.replace(
            pe=whole.data.pe.replace(**poses, **measured),
            ar2d=whole.data.ar2d.replace(**{**clips, "sources": ("jhmdb",)}),
            eap=whole.data.eap.replace(**clips),
            ar3d=whole.data.ar3d.replace(**clips),
        ),
        optim=whole.optim.replace(steps=1_200, evaluate_every=0),
    )
