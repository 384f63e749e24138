"""Step caches remember what a network computed at the step before; lanes that fork and mix steps have no such step."""

from __future__ import annotations

from ..errors import UnsupportedPipeline
from ..replay.denoiser import Denoiser


def refuse_step_caches(denoiser: Denoiser) -> None:
    """``UnsupportedPipeline`` if a hook of diffusers keeps state between the calls of the denoiser.

    First Block Cache and its like compare a call with the call before it. Here that one held other prompts at other
    steps: where their number differs it fails, and where it happens to be equal the images are wrong. One cache context
    a prompt would be right only for calls of one lane, as the decision to skip is taken for a whole batch.
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
                        f"{where} has a step cache ({cache}): it takes the call before for the step before, but HSD's "
                        "calls hold other prompts at other steps, so images would be wrong. Turn it off with "
                        f"{type(module).__name__}.disable_cache(), and save steps by sharing instead"
                    )
