"""BOB, Beyond Objects (Yang et al., CVPR 2026): draw every class in the contexts of all classes.

As published: one adapter is tuned on all shots, with each image's class and context in its prompt.
Each generated image then takes the context, background and pose together, of a shot drawn from all
classes. The draw does not depend on the class, so all classes get the same contexts. Guidance,
steps, number of images and classifier are DataDream's, and DataDream's own prompts stay plain.

Left out: 400 epochs (the profile's are kept), the same noise for all classes, and Qwen2.5-VL-7B,
which wrote the captions. For photographs, captions are read from a file `captions.tsv`, whoever
wrote it. For drawn characters the context is measured, a proposal of this project
(`methods.contexts`), and follows the class after a comma. This needs two shots per class: a single
image does not tell what belongs to the class and what to the context, and in a trial the generator
only reproduced that shot.
"""

import numpy as np

from ..seeds import seed_for
from .base import Adapter, Draw, Support
from .contexts import contexts
from .datadream import DatasetWise


class Bob(DatasetWise):
    """Tune with the context in the prompt, and sample with the contexts of all classes."""

    def tuning_prompts(self, support: Support, adapter: Adapter) -> list[str]:
        """Return each image's own class and context."""
        plain = adapter.prompts(support)
        return [text + own for text, own in zip(plain, contexts(support), strict=True)]

    def draw(self, support: Support, label: int, index: int, rng: np.random.Generator) -> Draw:
        """Return the class in a context that depends on the index alone."""
        known = contexts(support)
        own = known[seed_for("context", support.recipe.seed, index) % len(known)]
        return Draw(support.prompt(label) + own, self.used(support, label, index))


# As in the paper. Without guidance the embedded model, which has not seen such prompts, often
# reproduces the shot that the context comes from (seen at four shots).
GUIDED = {"mini": {"generate.guidance": 2.0}}
METHODS = (Bob("bob", "BOB", "#CC0022", "yang2025bob", settings=GUIDED),)
