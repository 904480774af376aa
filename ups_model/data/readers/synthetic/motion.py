"""The actions of the synthetic sets: what joints of a body do over time, in the style of a person.

An action is a few key poses between which joint angles move smoothly, and some oscillations. Several actions begin
alike (wave, throw, drink, arm raise and punch all lift the hand; clap and punch lift both; squat and bow bend the hips;
kick and lunge lift a knee) and two differ mostly in pace (walk, jog), so that early prediction is harder the less is
seen.

Angles are in degrees. `d.` is the person's dominant side and `o.` the other one. Shape suffixes: N frames, A angles.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ups_model.data.readers.io.files import packaged_table

TRUNK = ("lean", "turn", "sway", "bend", "twist", "side", "nod", "look")
"""lean, turn, sway: the whole body pitches forward, turns, tilts. bend, twist, side: the spine. nod, look: the head."""

LIMB = ("flex", "abd", "rot", "elbow", "hip", "splay", "knee")
"""flex, abd, rot, elbow: arm forward, arm sideways, upper arm inward, elbow. hip, splay, knee: the leg likewise."""

ANGLES = (*TRUNK, *(f"{side}.{limb}" for side in "do" for limb in LIMB))
_ARM = LIMB[:4]
_COLUMN = {name: index for index, name in enumerate(ANGLES)}
_SIGNED = [_COLUMN[name] for name in ("turn", "sway", "twist", "side", "look")]


@dataclass(frozen=True)
class Cycle:
    """An oscillation of one angle."""

    angle: str
    amplitude: float
    count: float
    """Periods between start and end."""
    start: float = 0.2
    end: float = 0.85
    phase: float = 0.0
    """In periods."""
    rectified: bool = False
    """Only the positive half waves: a leg that is lifted and put down."""


@dataclass(frozen=True)
class Action:
    """A class of motion. Times are fractions of the action; every angle starts and ends at rest (0)."""

    name: str
    seconds: float
    keys: tuple[tuple[float, Mapping[str, float]], ...]
    cycles: tuple[Cycle, ...] = ()


def _steps(hip: float, knee: float, arm: float, count: float) -> list[Cycle]:
    """Steps in place: a leg rises with the other side's arm."""
    legs = [
        Cycle(f"{side}.{angle}", size, count, 0.05, 0.95, phase, rectified=True)
        for side, phase in (("d", 0.0), ("o", 0.5))
        for angle, size in (("hip", hip), ("knee", knee))
    ]
    arms = [Cycle(f"{side}.flex", arm, count, 0.05, 0.95, phase) for side, phase in (("d", 0.5), ("o", 0.0))]
    return legs + arms


def _read_actions(facts: dict[str, Any]) -> Iterator[Action]:
    for action in facts["actions"]:
        keys = []
        for time, *parts in action["keys"]:
            pose: dict[str, float] = {}
            for part in parts:
                pose |= facts["poses"][part] if isinstance(part, str) else part
            keys.append((time, pose))
        cycles = _steps(**action["steps"]) if "steps" in action else [Cycle(**one) for one in action.get("cycles", ())]
        yield Action(action["name"], action["seconds"], tuple(keys), tuple(cycles))


ACTIONS: tuple[Action, ...] = tuple(_read_actions(packaged_table("synthetic/actions.toml")))
"""The classes, in label order."""


@dataclass(frozen=True, eq=False)
class Style:
    """How one person moves."""

    gain: np.ndarray
    """[A], what each angle of a key pose is multiplied by."""
    posture: np.ndarray
    """[A] degrees, added to every pose."""
    pace: float
    """What durations are multiplied by."""
    right_handed: bool

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Style":
        """A person's style."""
        # One gain for the person and one for each angle: people differ in vigour as well as in how they do a thing.
        # Legs and trunk carry the body and vary less than arms.
        spread = np.array([0.25 if name[2:] in _ARM else 0.1 for name in ANGLES])
        gain = np.exp(rng.normal(0, 0.15) + rng.normal(0, 1, len(ANGLES)) * spread)
        posture = rng.normal(0, 6.0, len(ANGLES))
        return cls(gain, posture, float(np.exp(rng.normal(0, 0.15))), bool(rng.random() < 0.8))


def angles(action: Action, style: Style, fps: float, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
    """One repetition: [N, A] degrees in the order of ANGLES, and whether the right side was the dominant one."""
    # The idle time before and after the action is what annotators leave when they cut clips by hand.
    before, after = rng.uniform(0.0, 0.3), rng.uniform(0.0, 0.4)
    seconds = action.seconds * style.pace * float(np.exp(rng.normal(0, 0.08)))
    frames = round((before + seconds + after) * fps)
    time_N = (np.arange(frames) / fps - before) / seconds
    gain = style.gain * np.exp(rng.normal(0, 0.08, len(ANGLES)))
    posture = style.posture + rng.normal(0, 2.0, len(ANGLES))

    motion_NA = np.zeros((frames, len(ANGLES)))
    key_times = np.array([time for time, _ in action.keys]) + rng.normal(0, 0.025, len(action.keys))
    key_times = np.concatenate([[0.0], np.maximum.accumulate(np.clip(key_times, 0.05, 0.95)), [1.0]])
    for name in {name for _, pose in action.keys for name in pose}:
        values = np.array([0.0, *(pose.get(name, 0.0) for _, pose in action.keys), 0.0])
        motion_NA[:, _COLUMN[name]] += _smooth(time_N, key_times, values)
    for cycle in action.cycles:
        phase_N = (time_N - cycle.start) / (cycle.end - cycle.start)
        wave_N = np.sin(2 * np.pi * (cycle.count * phase_N + cycle.phase))
        wave_N = np.maximum(wave_N, 0) if cycle.rectified else wave_N
        inside_N = np.clip(np.minimum(phase_N, 1 - phase_N) * 8, 0, 1)
        motion_NA[:, _COLUMN[cycle.angle]] += cycle.amplitude * wave_N * inside_N

    # Nobody stands still: slow drifts of every angle.
    drift_hz, drift_phase = rng.uniform(0.1, 0.7, len(ANGLES)), rng.uniform(0, 2 * np.pi, len(ANGLES))
    seconds_N1 = np.arange(frames)[:, None] / fps
    drift_NA = rng.normal(0, 2.0, len(ANGLES)) * np.sin(2 * np.pi * drift_hz * seconds_N1 + drift_phase)

    right = style.right_handed ^ bool(rng.random() < 0.1)
    result_NA = motion_NA * gain + posture + drift_NA
    if not right:
        result_NA[:, _SIGNED] *= -1
    return result_NA, right


def _smooth(time_N: np.ndarray, key_times: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values between keys along 3 u^2 - 2 u^3, which starts and ends at rest; constant outside."""
    segment = np.clip(np.searchsorted(key_times, time_N, side="right") - 1, 0, len(key_times) - 2)
    span = np.maximum(key_times[segment + 1] - key_times[segment], 1e-9)
    u = np.clip((time_N - key_times[segment]) / span, 0, 1)
    return values[segment] + (values[segment + 1] - values[segment]) * u * u * (3 - 2 * u)
