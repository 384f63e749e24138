"""Every option of every scheduler that HSD compiles: table and scheduler agree, or diffusers itself cannot."""

from __future__ import annotations

from collections import Counter

import pytest

from sampler_options import Outcome, attempt, configurations, options, scheduler_classes

pytestmark = [
    # DEIS and KDPM2 pass 0-dim tensors to numpy, and NumPy 2 warns thousands of times.
    pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning"),
    # Custom timesteps off the training grid, and betas that end at 0: diffusers divides, numpy warns.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


@pytest.mark.parametrize("cls", scheduler_classes(), ids=lambda cls: cls.__name__)
def test_options(cls: type) -> None:
    tried = [attempt(case) for case in configurations(cls)]
    wrong = [f"{each.case.name}: {each.detail}" for each in tried if each.outcome is Outcome.WRONG]
    assert not wrong, "\n".join(wrong)
    counts = Counter(each.outcome for each in tried)
    assert tried[0].outcome is Outcome.AGREES, f"as it is: {tried[0].detail}"
    # A sweep that diffusers mostly refuses would prove little.
    impossible = [f"{each.case.name}: {each.detail}" for each in tried if each.outcome is Outcome.IMPOSSIBLE]
    assert counts[Outcome.AGREES] > len(tried) / 2, "\n".join([str(counts), *impossible])


def test_the_sweep_reads_the_signatures() -> None:
    """The options are those of the class: if diffusers renamed its options, the sweep would shrink unnoticed."""
    import diffusers

    names = {name for _, name, _ in options(diffusers.DPMSolverMultistepScheduler)}
    assert {"use_karras_sigmas", "use_flow_sigmas", "algorithm_type", "final_sigmas_type", "mu", "timesteps"} <= names
    assert ("step_kwargs", "eta", 1.0) in options(diffusers.DDIMScheduler)
    assert sum(len(options(cls)) for cls in scheduler_classes()) > 500
