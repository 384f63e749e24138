"""Exceptions that HSD raises. Bad arguments are ``ValueError`` or ``TypeError`` too, so either base catches them."""


class Error(Exception):
    """Base of HSD's own errors. ``str()`` says what happened and what to do about it."""


class PromptError(Error, ValueError):
    """A prompt, or a file of prompts, that cannot be used. Names the index or the line."""


class UnknownModel(Error, ValueError):
    """A model name that is neither known, nor a folder, nor a pipeline that has an adapter."""


class UnsupportedPipeline(Error, TypeError):
    """A diffusers pipeline that no adapter knows how to drive."""


class UnsupportedScheduler(Error, ValueError):
    """A diffusers scheduler that the sampler table cannot express exactly. It is never approximated."""


class PlanMismatch(Error, ValueError):
    """A plan that does not fit the model, the prompts, or the folder it is to be written to."""


class OutOfMemory(Error, RuntimeError):
    """Even one latent at a time does not fit into the device's memory."""


class OutputError(Error, OSError):
    """An output folder that cannot be written to, or that holds something else."""


class OtherVersions(UserWarning):
    """Images are continued with other versions of packages, or on another kind of device: rounding may differ."""
