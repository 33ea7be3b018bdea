"""BOB, Beyond Objects (Yang et al., CVPR 2026): no class owns the contexts of its few shots.

Published, and here: one adapter on all shots, tuned with the class and the context of each image in
its prompt; then each image of a class takes the context of a shot drawn among those of all classes,
background and pose together. The draw does not depend on the class, so all classes get the same
contexts. Guidance, steps, the number of images and the classifier are DataDream's, and its prompts
stay plain.

Not here: 400 epochs (the profile's are kept), the same noise for all classes, and Qwen2.5-VL-7B,
which wrote the captions. For photographs, captions are read from a file `captions.tsv`, whoever
wrote them. For drawn characters the context is measured, a proposal of this project
(`methods.contexts`), and follows the class after a comma. There the method needs two shots a class:
one image does not tell what belongs to the class and what to the context, and in a trial the
generator only drew that shot again.
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


# As in the paper. Without guidance the embedded model, which knows no such prompts, often draws the
# shot that a context is of: seen at four shots.
GUIDED = {"mini": {"generate.guidance": 2.0}}
METHODS = (Bob("bob", "BOB", "#CC0022", "yang2025bob", settings=GUIDED),)
