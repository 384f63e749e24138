"""What two models differ in: short texts for the message that refuses to mix their images."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import Error, OtherVersions, PlanMismatch
from ..models import Adapter
from ..planning.differences import entry_differences, shown
from ..work.files import STUDY, write_json
from ..work.reading import read_object
from ..work.text import listed

_TOLERANCE = 1e-4
"""Relative difference of a sampler's coefficients from which it is another sampler; processors round differently."""

MODEL = "model.json"
"""In a folder of several sets of images: the model of all of them, see :func:`claim_model`."""

OTHER_STEPS = "scheduler: other steps"
"""The beginning of a difference that follows from another number of steps, if the plan has one."""

_CHOOSE_STEPS = ("strength:", "timesteps:", "sigmas:")
"""Settings that change the steps of one and the same scheduler."""


def model_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What an image depends on that differs between two models; empty if their images may be mixed.

    Names are no reason to refuse: the weights say which model it is, wherever it comes from. Nor are the versions of
    packages and the kind of device, see :func:`rounding_differences`.

    Parameters
    ----------
    before, now
        :func:`hsd.models.identity.image_identity` as JSON gives it back. ``before`` may be what earlier versions of
        HSD recorded: name, settings, catch-up, and the class of a scheduler that was given. Then the rest is not known
        and counts as equal.

    Returns
    -------
    list
        Texts such as ``guidance_scale: 3.0 before, 8.0 now`` or ``unet: other weights``.
    """
    if "networks" not in before or "networks" not in now:
        return _with_an_early_one(before, now)
    same = before.get("versions") == now.get("versions")
    found = _settings(before, now) + _catch_up(before, now)
    found += entry_differences("", {"pipeline": before["pipeline"]}, {"pipeline": now["pipeline"]})
    found += entry_differences("", before["options"], now["options"], missing=same)
    found += _scheduler("scheduler", before["scheduler"], now["scheduler"], same)
    found += _each(before["schedulers"], now["schedulers"], lambda name, a, b: _scheduler(name, a, b, same))
    explained = any("scheduler" in text or text.startswith(_CHOOSE_STEPS) for text in found)
    # Prompts of another size, that were added, have another table.
    changed = any(not any(_close(table, other) for other in now["tables"]) for table in before["tables"])
    if not explained and (changed or not _close(before.get("prior_table"), now.get("prior_table"))):
        found.append(f"{OTHER_STEPS}, with the same configuration (it was changed in place)")
    found += _each(before["networks"], now["networks"], lambda name, a, b: _network(name, a, b, same))
    found += _each(before["tokenizers"], now["tokenizers"], lambda name, a, b: _tokenizer(name, a, b, same))
    return found


def compared(before: Any, now: dict[str, Any]) -> list[str]:
    """:func:`model_differences` with what was read from a file: one text if it does not describe a model."""
    try:
        rounding_differences(before, now)  # it reads the rest
        return model_differences(before, now)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        return [f"the record of the model is damaged: {type(error).__name__}: {error}"]


def warn_of_rounding(folder: Path | str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Warn with :class:`OtherVersions` if new images in ``folder`` may be rounded differently than those there."""
    found = rounding_differences(before, now)
    if found:
        warnings.warn(
            f"{folder} holds images that were made differently ({listed(found)}): the new ones may differ from what "
            "they would have been",
            OtherVersions,
            stacklevel=3,
        )


def claim_model(folder: Path, now: dict[str, Any]) -> None:
    """Record which model all the images below ``folder`` are of, or check that it is this one.

    For folders of several plans, whose images are used again without another look at them.

    Raises
    ------
    PlanMismatch
        If it is another, naming what differs.
    Error
        If the record cannot be read.
    """
    path = folder / MODEL
    if path.exists():
        try:
            before = read_object(path)
            if "networks" not in before:
                raise ValueError("it does not describe a model")
        except (OSError, ValueError) as error:
            raise Error(
                f"{path} cannot be read ({error}): choose another folder, or delete the file if the model is the one "
                "that made the images there"
            ) from None
        found = compared(before, now)
        if found:
            raise PlanMismatch(
                f"{folder} holds images of another model ({listed(found)}): continue with the model and the settings "
                "that they were made with, or choose another folder"
            )
        warn_of_rounding(folder, before, now)
    else:
        write_json(path, now)


def early_identity(folder: Path, adapter: Adapter) -> dict[str, Any]:
    """What ``study.json`` of an earlier version has to say of its model; empty where :func:`claim_model` knows it."""
    try:
        recorded = {} if (folder / MODEL).exists() else read_object(folder / STUDY)
    except (OSError, ValueError):  # none, or one that `claim` refuses
        return {}
    now = {
        "model": adapter.name,
        "settings": json.loads(json.dumps(adapter.settings, default=repr)),
        "scheduler": type(adapter.scheduler()).__name__,
    }
    return {name: value for name, value in now.items() if name in recorded}


def rounding_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What may change the rounding of images, or what an image depends on and cannot be compared: for a warning."""
    old, new = before.get("versions") or {}, now.get("versions") or {}
    found = [f"{name} {old[name]} before, {new[name]} now" for name in old if name in new and old[name] != new[name]]
    if before.get("device") not in (None, now.get("device")):
        found.append(f"on {before['device']} before, on {now.get('device')} now")
    was, is_now = before.get("networks", {}), now.get("networks", {})
    hidden = [name for name in was if name in is_now and None in (was[name]["weights"], is_now[name]["weights"])]
    if hidden:
        found.append(f"the weights of {', '.join(hidden)} are not in memory, so nobody knows whether they are the same")
    return found


def _with_an_early_one(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Compare with what earlier versions recorded."""
    found = [f"model: {shown(a)} before, {shown(b)} now"] if (a := before.get("name")) != (b := now.get("name")) else []
    found += _settings(before, now)
    found += _catch_up(before, now)
    names = []
    for one in (before, now):  # recorded where one was given in place of the pipeline's own
        entry = one.get("scheduler")
        names.append(entry if not isinstance(entry, dict) else entry["class"] if entry.get("given") else None)
    if names[0] != names[1]:
        found.append(f"scheduler: {shown(names[0])} before, {shown(names[1])} now")
    return found


def _catch_up(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """It is recorded where it is not 0."""
    was = before.get("catch_up", 0.0)
    found = entry_differences("", {"catch_up": was}, {"catch_up": now.get("catch_up", 0.0)})
    if was == 0:  # it was off by default once
        return [f"{text}, a plan that was compiled with catch_up=0 (--catch-up 0) has none" for text in found]
    return found


def _settings(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Settings; one that only one version of HSD has counts as its default."""
    old, new = before.get("settings", {}), now.get("settings", {})
    defaults = {**before.get("defaults", {}), **now.get("defaults", {})}
    absent = {name: defaults[name] for name in {*old, *new} if name in defaults}
    return entry_differences("", {**absent, **old}, {**absent, **new})


def _scheduler(name: str, before: dict[str, Any], now: dict[str, Any], same_versions: bool) -> list[str]:
    if before["class"] != now["class"]:
        return [f"{name}: {before['class']} before, {now['class']} now"]
    found = entry_differences(f"{name} ", before["config"], now["config"], missing=same_versions)
    rest = {"class", "config", "given"}
    return found + entry_differences(f"{name} ", _but(before, rest), _but(now, rest))


def _network(name: str, before: dict[str, Any], now: dict[str, Any], same_versions: bool) -> list[str]:
    if before["class"] != now["class"] and same_versions:  # libraries rename classes
        return [f"{name}: {before['class']} before, {now['class']} now"]
    found = []
    weights = before["weights"], now["weights"]
    if before["dtype"] != now["dtype"]:
        found.append(f"{name} dtype: {before['dtype']} before, {now['dtype']} now")
    elif None not in weights and weights[0] != weights[1]:
        found.append(f"{name}: other weights")
    found += _lora(name, before.get("lora", []), now.get("lora", []))
    found += entry_differences(f"{name} ", before["config"], now["config"], missing=same_versions)
    rest = {"class", "dtype", "weights", "lora", "config", "layers"}
    found += entry_differences(f"{name} ", _but(before, rest), _but(now, rest))
    if not found and same_versions and before["layers"] != now["layers"]:
        found.append(f"{name}: other settings of its layers (they were changed in place)")
    return found


def _lora(name: str, before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[str]:
    """LoRA layers; their names do not count."""
    if [_but(one, {"name"}) for one in before] == [_but(one, {"name"}) for one in now]:
        return []
    shown = []
    for side in (before, now):
        shown.append(", ".join(f"{one['name']} at {' and '.join(f'{s:g}' for s in one['scales'])}" for one in side))
    if shown[0] == shown[1]:
        return [f"{name} LoRA: other weights of {shown[0]}"]
    return [f"{name} LoRA: {shown[0] or 'none'} before, {shown[1] or 'none'} now"]


def _tokenizer(name: str, before: dict[str, Any], now: dict[str, Any], same_versions: bool) -> list[str]:
    old, new = set(before["added"]), set(now["added"])
    found = []
    for tokens, which in ((sorted(new - old), "added"), (sorted(old - new), "removed")):
        if tokens:
            found.append(f"{name}: tokens {', '.join(tokens[:3])}{'...' if len(tokens) > 3 else ''} were {which}")
    own = {"added", "vocabulary", "tokens", "examples"}
    found += entry_differences(f"{name} ", _but(before, own), _but(now, own), missing=same_versions)
    if not found and any(before[key] != now[key] for key in ("vocabulary", "examples")):
        found.append(f"{name}: another vocabulary")
    return found


def _each(before: dict[str, Any], now: dict[str, Any], compare: Callable[[str, Any, Any], list[str]]) -> list[str]:
    """Compare parts of the same name; a part that only one side has differs."""
    found = []
    for name in dict.fromkeys([*before, *now]):
        if name in before and name in now:
            found += compare(name, before[name], now[name])
        else:
            kinds = [side[name].get("class", "present") if name in side else "none" for side in (before, now)]
            found.append(f"{name}: {kinds[0]} before, {kinds[1]} now")
    return found


def _close(a: Any, b: Any) -> bool:
    """Whether two pieces of JSON are equal, numbers to a tolerance."""
    if isinstance(a, dict) and isinstance(b, dict):
        return all(_close(a[key], b[key]) for key in a.keys() & b.keys())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_close, a, b))
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=_TOLERANCE, abs_tol=1e-6) or (math.isnan(a) and math.isnan(b))
    return bool(a == b)


def _but(entries: dict[str, Any], names: Any) -> dict[str, Any]:
    return {name: value for name, value in entries.items() if name not in names}
