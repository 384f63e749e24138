"""Images as settings: one image, or one for each network that reads one, for a whole set of prompts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import PIL.Image
import PIL.ImageOps

from ..work.paths import user_path

NAMES = ("image", "ip_adapter_image")
"""Settings that are images. They are the same for all prompts of a set."""


class SharedImage(str):
    """An image as the value of a setting.

    Its text is its size and a digest of its pixels. By this text settings are compared and recorded, so equal images
    are one, wherever they came from.

    Attributes
    ----------
    pil
        The image, in RGB.
    """

    pil: PIL.Image.Image

    def __new__(cls, image: PIL.Image.Image) -> SharedImage:
        """From an image in any mode of 8 bits; ``ValueError`` for others, whose values Pillow would clip."""
        if image.mode.startswith(("I", "F")):
            raise ValueError(
                f"an image of mode {image.mode} has more than 8 bits a value, and would be clipped to black and white: "
                "scale its values to 0 to 255 and convert it to the mode L or RGB"
            )
        rgb = image.convert("RGB")
        width, height = rgb.size
        digest = hashlib.sha256(f"{width} {height} ".encode() + rgb.tobytes()).hexdigest()[:32]
        made = super().__new__(cls, f"{width} x {height} pixels, sha256 {digest}")
        made.pil = rgb
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedImage, (self.pil,)


def shared_images(name: str, value: Any, n: int, each: str) -> tuple[SharedImage, ...]:
    """The images of the setting ``name``, one for each of ``n`` networks; ``each`` says what such a network is.

    Parameters
    ----------
    value
        An image, or ``n`` of them in a list: PIL images, or paths of image files. A file is turned as its EXIF data
        say.

    Raises
    ------
    ValueError
        For a path without an image, and for another number of images.
    TypeError
        For another type.
    """
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(values) != n:
        count = f"{len(values)} image{'' if len(values) == 1 else 's'}"
        raise ValueError(
            f"{name} has {count}, and {n} {'is' if n == 1 else 'are'} needed, one for each {each}: an image belongs to "
            "all prompts of a set. For several images, make one set for each of them, each in its own folder"
        )
    return tuple(_opened(name, each) for each in values)


def with_images(adapter: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with their images read, so that a wrong path, or none, is found before anything is computed.

    ``adapter`` is the class that they are for.

    Raises
    ------
    ValueError, TypeError
        As :func:`shared_images`; and if an image that the adapter needs is missing.
    """
    out = opened_images(settings)
    for name in adapter.needed_images:
        if out.get(name) is None:
            raise missing(name, adapter.pipelines[0])
    return out


def opened_images(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with their images read, for a model that another process loads: it has another working folder.

    Raises
    ------
    ValueError, TypeError
        For a path without an image, and for another type.
    """
    out = dict(settings)
    for name in NAMES:
        value = out.get(name)
        if isinstance(value, (list, tuple)):
            out[name] = tuple(_opened(name, each) for each in value)
        elif value is not None:
            out[name] = _opened(name, value)
    return out


def missing(name: str, pipeline: str) -> ValueError:
    """The error for an image that is not given."""
    return ValueError(
        f"{pipeline} needs an image, the same for all prompts, and there is none: give the setting {name}, a PIL image "
        f"or the path of an image file (--set {name}=FILE)"
    )


def size_of(adapter: Any, image: SharedImage) -> tuple[int, int]:
    """Height and width of what is made from ``image``: those of the adapter, where they are None those of the image.

    As in the pipelines, the latter are rounded down to whole pixels of the latent.

    Raises
    ------
    ValueError
        If the image has not even one.
    """
    height, width = own_size(adapter, image)
    if not (width and height):
        side = adapter.pipe.vae_scale_factor
        raise ValueError(f"image has {image.pil.width} x {image.pil.height} pixels, and {side} x {side} are the least")
    return adapter.height or height, adapter.width or width


def own_size(adapter: Any, image: SharedImage) -> tuple[int, int]:
    """Height and width of ``image`` itself, rounded down to whole pixels of the latent."""
    side = adapter.pipe.vae_scale_factor
    width, height = (each - each % side for each in image.pil.size)
    return height, width


def sized_by_image(adapter: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` that change ``adapter``; with another image, a size that came from the first one does not stay."""
    out, image = dict(settings), getattr(adapter, "image", None)
    if "image" in settings and image is not None and "image" in adapter.needed_images:
        height, width = own_size(adapter, image[0] if isinstance(image, tuple) else image)
        for name, side in (("height", height), ("width", width)):
            if getattr(adapter, name) == side:
                out.setdefault(name, None)
    return out


def refuse_images(adapter: Any, own: Mapping[str, Any]) -> None:
    """``TypeError`` if the settings of single prompts have an image that ``adapter`` would take."""
    for name in NAMES:
        if own.get(name) is not None and name in adapter.setting_names():
            raise TypeError(
                f"{name} is given for single prompts, and an image belongs to all prompts of a set: give it to "
                f"hsd.load or by --set {name}=FILE, and make one set for each image"
            )


def _opened(name: str, value: Any) -> SharedImage:
    if isinstance(value, SharedImage):
        return value
    if isinstance(value, PIL.Image.Image):
        return SharedImage(value)
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} is a {type(value).__name__}: it has to be a PIL image, or the path of an image file")
    path = user_path(value)
    if not path.is_file():
        raise ValueError(f"{name} is {os.fspath(value)!r}: there is no such file. Give the path of an image file")
    try:
        with PIL.Image.open(path) as image:
            return SharedImage(PIL.ImageOps.exif_transpose(image))
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"{name} is {os.fspath(value)!r}, which cannot be used: {error}") from error
