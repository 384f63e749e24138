"""``hsd tune``: which settings are the cheapest that are as good as the standard ones, on the user's own prompts.

=================  ==========================================================================================
`grid`             the settings that are compared
`neighbourhoods`   the prompts that they are compared on: whole subtrees of the tree of all prompts
`halving`          which settings go on to twice as many prompts
`trials`           plans, images, scores and embeddings of a setting, each made once
`cost`             rows of the network for an image, the prior's included
`decision`         paired differences with their bounds, and the choice
`report`           the files and the table
`tuning`           all of the above
=================  ==========================================================================================
"""

from __future__ import annotations

from .decision import Comparison
from .grid import Setting
from .report import Choice
from .tuning import Tuning, tune

__all__ = ["Choice", "Comparison", "Setting", "Tuning", "tune"]
