"""Step caches take the previous call for the previous step, but here it is of other prompts.

Those of diffusers are refused. Other packages replace the ``forward`` of parts of a network: such parts are named.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from torch import nn

from ..errors import Notice, UnsupportedPipeline
from ..replay.denoiser import Denoiser
from ..work.text import listed


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


def tell_of_replaced_forwards(networks: Iterable[nn.Module]) -> None:
    """A :class:`hsd.Notice` if parts of networks have a ``forward`` of their own that no known library has put there.

    Whether it keeps something between calls cannot be seen: :func:`hsd.models.check` tries it.
    """
    found = [
        f"{type(network).__name__}{f'.{name}' if name else ''}"
        for network in networks
        for name, part in network.named_modules()
        if _is_replaced(part)
    ]
    if found:
        has, it = ("have", "they keep") if len(found) > 1 else ("has", "it keeps")
        warnings.warn(
            f"{listed(found, 3)} {has} a forward of another package or of your own. If {it} something of the last "
            "call, as step caches such as DeepCache do, images will be wrong: take it off. hsd check MODEL, or "
            "hsd.models.check(pipe), tests it",
            Notice,
            stacklevel=4,
        )


def _is_replaced(module: nn.Module) -> bool:
    """Whether ``forward`` is set on the object, and by none of accelerate, diffusers, PEFT or ``torch.compile``."""
    own = vars(module).get("forward")
    if own is None or any(hasattr(module, name) for name in ("_hf_hook", "_diffusers_hook", "_orig_mod")):
        return False
    if getattr(own, "__self__", None) is module and getattr(own, "__func__", None) is type(module).forward:
        return False  # a hook that was removed has put it back
    return not (getattr(own, "__module__", None) or "").startswith("peft.")
