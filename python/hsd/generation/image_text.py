"""What an image file says of itself: the prompt, the seed and all settings, where other programs look for them.

A PNG has text chunks, JPEG and WebP have EXIF. The same call writes the same bytes, so no text holds a date.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
from PIL import ExifTags
from PIL.PngImagePlugin import PngInfo

from .. import _core
from ..planning.plan import Plan
from ..planning.rows import columns_beside
from ..work.text import shortened

_MOST_EXIF = 65_500
"""Bytes of EXIF that a JPEG file has room for, which is one segment."""

_SHORT = 8_000
"""Characters of a prompt in a JPEG that has no room for all of it. ``metadata.jsonl`` has the whole."""

_UTF_16 = b"UNICODE\0"
"""How a comment in EXIF begins that is not ASCII."""


@dataclass(frozen=True)
class Text:
    """What one image file says."""

    document: dict[str, Any]
    """All of it, as JSON."""
    size: tuple[int, int]
    """Width and height of the image."""

    def parameters(self, longest: int | None = None) -> str:
        """The form that most programs for image generation read: the prompt, the negative prompt, then one line of
        ``name: value`` pairs. ``longest`` cuts the prompts.
        """
        document, settings = self.document, dict(self.document["settings"])
        prompt, negative = document["prompt"], settings.pop("negative_prompt", None) or ""
        if longest is not None:
            prompt, negative = shortened(prompt, longest), shortened(negative, longest)
        pairs = {
            "Steps": document["steps"],
            "Sampler": document["scheduler"],
            "CFG scale": settings.pop("guidance_scale", None),
            "Seed": document["seed"],
            "Size": f"{self.size[0]}x{self.size[1]}",
            "Model": document["model"],
            "Version": f"hsd {document['hsd']}",
            "HSD tau": document["tau"],
            "HSD catch-up": document["catch_up"],
            "HSD index": document["index"],
            **{name: value for name, value in settings.items() if name not in ("height", "width")},
        }
        lines = [prompt, f"Negative prompt: {negative}"] if negative else [prompt]
        return "\n".join([*lines, ", ".join(f"{k}: {_quoted(v)}" for k, v in pairs.items() if v is not None)])

    def for_png(self) -> PngInfo:
        """Text chunks: ``parameters``, ``prompt``, ``seed``, ``hsd`` (the JSON) and ``Software``."""
        info = PngInfo()
        info.add_itxt("prompt", self.document["prompt"])
        info.add_text("seed", str(self.document["seed"]))
        info.add_text("Software", "hsd")
        info.add_text("parameters", _writable(self.parameters()))  # Latin text as tEXt, all other as iTXt
        info.add_text("hsd", json.dumps(self.document))
        return info

    def for_exif(self, most: int | None = None) -> bytes:
        """EXIF: ``UserComment`` has the text of ``parameters``, ``ImageDescription`` the JSON; at most ``most`` bytes.

        Where there is no room for both, the JSON is left out, and the prompts are cut.
        """
        for comment, description in self._by_length():
            exif = PIL.Image.Exif()
            exif[ExifTags.Base.Software] = "hsd"
            if description is not None:
                exif[ExifTags.Base.ImageDescription] = description
            if comment is not None:
                exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = _UTF_16 + _writable(comment).encode(
                    "utf-16-be"
                )
            data = exif.tobytes()
            if most is None or len(data) <= most:
                break
        return data

    def _by_length(self) -> Iterator[tuple[str | None, str | None]]:
        yield self.parameters(), json.dumps(self.document)
        yield self.parameters(), None
        yield self.parameters(_SHORT), None
        yield None, None

    def options(self, pil_format: str) -> dict[str, Any]:
        """Arguments of ``PIL.Image.Image.save`` that write it."""
        if pil_format == "PNG":
            return {"pnginfo": self.for_png()}
        return {"exif": self.for_exif(_MOST_EXIF if pil_format == "JPEG" else None)}


class Texts:
    """What the image files of one folder say.

    Parameters
    ----------
    plan
        The plan of the images.
    model
        What made them, as :func:`hsd.models.identity.image_identity` records it, or its part that people read.
    """

    def __init__(self, plan: Plan, model: dict[str, Any]) -> None:
        self.plan, self._model, self._beside = plan, model, columns_beside(plan)
        scheduler = model.get("scheduler") or {}
        if isinstance(scheduler, str):
            scheduler = {"class": scheduler}
        self._common = {
            "model": _shown(model.get("name")),
            "pipeline": model.get("pipeline"),
            "scheduler": scheduler.get("class"),
            # Another than the pipeline's own is not known by the model's name.
            **({"scheduler_config": scheduler.get("config")} if scheduler.get("given") else {}),
            "steps": plan.request["steps"],
            "tau": plan.tau,
            "catch_up": model.get("catch_up", 0.0),
            "noise": plan.noise,
            "hsd": (model.get("versions") or {}).get("hsd", _core.__version__),
        }

    def of(self, index: int, size: tuple[int, int]) -> Text:
        """What the image of a prompt says."""
        plan = self.plan
        document = {
            "prompt": plan.prompts[index],
            "seed": int(plan.seeds[index]),
            "index": index,
            **self._common,
            "settings": {**(self._model.get("settings") or {}), **plan.settings[plan.setting[index]]},
            "columns": {name: values[index] for name, values in self._beside.items()},
        }
        return Text(json.loads(json.dumps(document, default=str)), size)

    def shared_with(self, index: int) -> dict[int, int]:
        """The prompts with which the image of a prompt shared steps, and how many, see :meth:`hsd.Plan.shared_with`."""
        return self.plan.shared_with(index)

    def only(self, index: int) -> TextsOfOne:
        """These of one image, without the plan, which may be large."""
        return TextsOfOne(self.of(index, (0, 0)).document, self.shared_with(index))


@dataclass(frozen=True)
class TextsOfOne:
    """:class:`Texts` of one image, which need no plan."""

    _document: dict[str, Any]
    _shared_with: dict[int, int]

    def of(self, index: int, size: tuple[int, int]) -> Text:
        """What the image says."""
        return Text(self._document, size)

    def shared_with(self, index: int) -> dict[int, int]:
        """The prompts with which it shared steps, and how many."""
        return self._shared_with

    def only(self, index: int) -> TextsOfOne:
        """Itself."""
        return self


def _shown(name: str | None) -> str | None:
    """The name of a model; of a folder its last part: where somebody keeps it is told to nobody."""
    return Path(name).name if name and (Path(name).is_absolute() or name.startswith((".", "~"))) else name


def _quoted(value: Any) -> str:
    """A value as a JSON string where it has characters that separate values."""
    text = value if isinstance(value, str) else json.dumps(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ',:\n"') else text


def _writable(text: str) -> str:
    """Text that has a form in UTF-8: half a surrogate pair is escaped."""
    return text.encode("utf-8", "backslashreplace").decode()
