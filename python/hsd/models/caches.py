"""Step caches are refused: they take the previous call for the previous step, but here it is of other prompts."""

from __future__ import annotations

from ..errors import UnsupportedPipeline
from ..replay.denoiser import Denoiser


def refuse_step_caches(denoiser: Denoiser) -> None:
    """``UnsupportedPipeline`` if a hook of diffusers keeps state between the calls of the denoiser.

    First Block Cache and similar caches compare a call with the previous call. Here the previous call held other
    prompts at other steps: if its number of lanes differs, the cache fails, and if it is equal, the images are wrong.
    One cache context for each prompt would be right only for calls of one lane, because the cache decides for a whole
    batch whether to skip.
    """
    for module in denoiser.modules():
        for name, part in module.named_modules():
            hooks = getattr(getattr(part, "_diffusers_hook", None), "hooks", {})
            for hook in hooks.values():
                if getattr(hook, "_is_stateful", False):
                    config = getattr(module, "_cache_config", None)
                    cache = type(config).__name__.removesuffix("Config") if config is not None else type(hook).__name__
                    where = f"{type(module).__name__}{f' ({name})' if name else ''}"
                    raise UnsupportedPipeline(
                        f"{where} has a step cache ({cache}): it takes the previous call for the previous step, but in "
                        "HSD that call holds other prompts at other steps, so images would be wrong. Turn it off with "
                        f"{type(module).__name__}.disable_cache(), and save steps by sharing instead"
                    )
