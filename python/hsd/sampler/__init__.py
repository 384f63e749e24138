"""A diffusers scheduler, compiled into a table of per-step coefficients.

A scheduler is a linear machine.  With ``s`` the latent and every tensor that the scheduler remembers,
``e`` the model output and ``z`` fresh noise, one step is ``s' = A_k s + B_k e + C_k z``.  The stages are files:

==============  =========================================================================================
`stepping`      calls a private copy of a scheduler as pipelines do, and supplies its random draws
`probe`         runs that copy on symbols, and reads the coefficients of every step from the results
`reduce`        drops memory that is never read again, and merges memory that is held twice
`table`         `SamplerTable`: the padded coefficients, and the update of lanes at different steps
`prediction`    `predictions`: the x0 that each step predicts, read in the same way; `levels` where it is not given
`build`         `compile_sampler`: all of the above, then a run that shows that table and scheduler agree
==============  =========================================================================================
"""

from hsd.sampler.build import compile_sampler
from hsd.sampler.prediction import Predictions, predictions
from hsd.sampler.table import SamplerTable

__all__ = ["Predictions", "SamplerTable", "compile_sampler", "predictions"]
