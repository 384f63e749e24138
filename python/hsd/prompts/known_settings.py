"""Names and types of the settings that the built-in families have: what a key of a prompt file can mean.

They are also in the adapters (``models/<family>.py``), but those import torch, and a file of prompts is checked before
any model is loaded. ``tests/test_setting_types.py`` compares the two.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Collection, Mapping
from typing import Any

from .setting_values import check_value, takes_text

_PAIR = tuple[int, int]

KNOWN: dict[str, Any] = {
    "height": int,
    "width": int,
    "guidance_scale": float,
    "true_cfg_scale": float,
    "negative_prompt": str,
    "prompt_2": str,
    "prompt_3": str,
    "negative_prompt_2": str,
    "negative_prompt_3": str,
    "timesteps": tuple[int | float, ...],
    "sigmas": tuple[float, ...],
    "cross_attention_kwargs": dict[str, float],
    "joint_attention_kwargs": dict[str, float],
    "attention_kwargs": dict[str, float],
    "guidance_interval": tuple[float, float],
    "guidance_rescale": float,
    "eta": float,
    "mu": float,
    "clip_skip": int,
    "max_sequence_length": int,
    "original_size": _PAIR,
    "crops_coords_top_left": _PAIR,
    "target_size": _PAIR,
    "negative_original_size": _PAIR,
    "negative_crops_coords_top_left": _PAIR,
    "negative_target_size": _PAIR,
    "prior_steps": int,
    "super_res_steps": int,
    "prior_guidance_scale": float,
    "share_prior": bool,
    "prior_tau": float,
    "noise_level": int,
    "scale_model_input": bool,
    "clean_caption": bool,
    "use_resolution_binning": bool,
    "complex_human_instruction": list[str],
    "text_encoder_out_layers": list[int],
    "cfg_normalization": bool | float,
    "cfg_truncation": float,
    "strength": float,
    "controlnet_conditioning_scale": float | tuple[float, ...],
    "control_guidance_start": float | tuple[float, ...],
    "control_guidance_end": float | tuple[float, ...],
    "guess_mode": bool,
}
"""Settings by name. A type here takes every value that some family takes.

Settings with an image are not among them: an image belongs to all prompts, so a column ``image`` is a column.
"""

_SIDE = (1, 65_535)
"""Pixels. No image file has a longer side than JPEG's."""

_LIMITS: dict[str, tuple[float, float | None]] = {
    "height": _SIDE,
    "width": _SIDE,
    "prior_steps": (1, None),
    "super_res_steps": (1, None),
    "max_sequence_length": (1, None),
    "clip_skip": (0, None),
    "prior_tau": (0, None),
    "noise_level": (0, None),
}
"""The smallest and the largest value, whatever the model."""

_OF_THE_RUN = "it is the same for all prompts: give it to the command or to hsd.compile"

_MEANT = {
    "prompts": "did you mean 'prompt'?",
    "seeds": "did you mean 'seed'?",
    "negative": "did you mean 'negative_prompt'?",
    "neg": "did you mean 'negative_prompt'?",
    "neg_prompt": "did you mean 'negative_prompt'?",
    "cfg": "did you mean 'guidance_scale'?",
    "cfg_scale": "did you mean 'guidance_scale'?",
    "guidance": "did you mean 'guidance_scale'?",
    "steps": _OF_THE_RUN,
    "num_steps": _OF_THE_RUN,
    "num_inference_steps": _OF_THE_RUN,
    "num_images_per_prompt": _OF_THE_RUN,
    "images_per_prompt": _OF_THE_RUN,
    "tau": _OF_THE_RUN,
    "budget": _OF_THE_RUN,
    "images_per_hour": _OF_THE_RUN,
    "gpu_hours": _OF_THE_RUN,
}
"""Names that other programs use for a setting, or that are options of a run."""


def check_limits(name: str, value: Any) -> None:
    """``ValueError`` for a number outside of what the setting can be in any model."""
    if name not in _LIMITS or isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    least, most = _LIMITS[name]
    if value < least:
        raise ValueError(f"{name} is {value}: it has to be at least {least}")
    if most is not None and value > most:
        raise ValueError(f"{name} is {value}: it has to be at most {most:,}")


def checked_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one prompt from a file, each as its type; those that are None or empty are left out.

    Raises
    ------
    TypeError, ValueError
        For a value that no family takes.
    """
    out = {}
    for name, value in settings.items():
        kind = KNOWN.get(name, Any)
        if value is None or (value == "" and not takes_text(kind)):
            continue  # an empty cell of a table
        value = check_value(name, value, kind, from_file=True)
        check_limits(name, value)
        out[name] = value
    return out


def meant(name: str, names: Collection[str] = KNOWN) -> str | None:
    """What to do about a key that is no setting but was surely meant as one; None if it may be anything."""
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    if plain in _MEANT and plain not in names:
        return _MEANT[plain]
    candidates = ("prompt", "seed", *names)
    if plain in candidates:
        return f"did you mean {plain!r}?"
    near = [one for one in candidates if _is_typo(plain, one)]
    return f"did you mean {difflib.get_close_matches(plain, near, 1, 0.0)[0]!r}?" if near else None


def no_setting(key: str, advice: str) -> str:
    """The end of an error about a key that was surely meant as a setting: what to do, whichever was meant."""
    name = "with that name, or with one"
    if not advice.endswith("?"):  # it proposes no name
        advice, name = f"{advice}.", "with a name"
    way_out = f"Write --column {shlex.quote(f'NAME={key}')} {name} of your own to keep it beside the images"
    return f"{key!r}, which is no setting: {advice} {way_out}"


def perhaps_meant(name: str, names: Collection[str] = KNOWN) -> str | None:
    """The setting that a kept column may have been meant as: for a warning, since columns may have any name."""
    near = difflib.get_close_matches(name.strip().lower(), [one for one in names if len(one) > 5], 1, 0.82)
    return near[0] if near else None


def _is_typo(name: str, known: str) -> bool:
    """One wrong letter, or two in a long name; the first letter is rarely wrong, and short names are other names."""
    if len(known) < 4 or name[:1] != known[:1] or abs(len(name) - len(known)) > 2:
        return False
    return _distance(name, known) <= (2 if len(known) >= 12 else 1)


def _distance(a: str, b: str) -> int:
    """Letters inserted, left out, replaced, or swapped with their neighbour, to get from ``a`` to ``b``."""
    two, one = list(range(len(b) + 1)), list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        row = [i]
        for j, y in enumerate(b, start=1):
            best = min(one[j] + 1, row[j - 1] + 1, one[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                best = min(best, two[j - 2] + 1)
            row.append(best)
        two, one = one, row
    return one[-1]
