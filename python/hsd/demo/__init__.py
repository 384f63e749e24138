"""The demo models and prompts: coloured shapes on patterned backgrounds, small enough to run anywhere.

``demo`` is a Kandinsky 2.2 model in miniature, which ships in the package. ``demo-sd`` is one in Stable Diffusion's
format, for comparison: it is conditioned on the tokens of a prompt instead of an image embedding. It is in the
repository and not in the package. Both are loaded by the adapters of their families. See ``docs/demo-model.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UnknownModel

FOLDER = Path(__file__).parent / "model"
"""What ``KandinskyV22CombinedPipeline.from_pretrained`` reads."""

PROMPTS = Path(__file__).parent / "prompts.txt"
"""The built-in example prompts, one per line."""

CALIBRATION = Path(__file__).parent / "calibration.safetensors"
"""What ``hsd calibrate demo`` measured of the model."""

CALIBRATION_PROMPTS = Path(__file__).parent / "calibration.txt"
"""The prompts of that, one per line; none of them is used elsewhere."""

SETTINGS: dict[str, Any] = {"height": 64, "width": 64, "guidance_scale": 2.0, "prior_guidance_scale": 1.0}
"""The settings with which the model draws best, as :func:`hsd.load` takes them."""

TAU = 0.3
"""The default threshold for cosine distances. This model's embeddings encode every attribute separately, so it
tolerates less sharing."""

_IN_REPOSITORY = Path("tools") / "models"


@dataclass(frozen=True)
class DemoModel:
    """A demo model: where it is, and how it draws best."""

    name: str
    folders: tuple[Path, ...]
    """Where it may be; the first that exists is it."""
    settings: dict[str, Any]
    tau: float
    """The default threshold for cosine distances."""
    calibration: str | Path
    """Its calibration file: a path, or a name beside its folder."""

    @property
    def folder(self) -> Path:
        """The folder that ``from_pretrained`` reads.

        Raises
        ------
        UnknownModel
            If it is not here: only ``demo`` is in the package.
        """
        if (folder := self._found()) is not None:
            return folder.absolute()
        raise UnknownModel(
            f"{self.name} is not in the installed package: it is in the folder {_IN_REPOSITORY / self.name} of HSD's "
            "repository. Run this from a clone of the repository"
        )

    @property
    def is_here(self) -> bool:
        """Whether its files are on this machine."""
        return self._found() is not None

    def _found(self) -> Path | None:
        return next((folder for folder in self.folders if (folder / "model_index.json").is_file()), None)

    @property
    def calibration_file(self) -> Path:
        """What ``hsd calibrate`` measured of it; it may be missing."""
        return self.folder.parent / self.calibration


def _beside_the_source(name: str) -> tuple[Path, ...]:
    # An editable installation finds the repository that it belongs to; any other one, that in which it is run.
    return Path(__file__).parents[3] / _IN_REPOSITORY / name, _IN_REPOSITORY / name


MODELS: dict[str, DemoModel] = {
    "demo": DemoModel("demo", (FOLDER,), SETTINGS, TAU, CALIBRATION),
    "demo-sd": DemoModel(
        "demo-sd",
        _beside_the_source("demo-sd"),
        {"height": 64, "width": 64, "guidance_scale": 2.0},
        0.3,
        "demo-sd-calibration.safetensors",
    ),
}
"""The demo models, by the names that :func:`hsd.load` takes."""


def present() -> list[str]:
    """The names of those whose files are on this machine."""
    return [name for name, model in MODELS.items() if model.is_here]
