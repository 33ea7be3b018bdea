"""IsSynth-style (He et al., 2023): the same generator, prompted with several templates."""

from .base import Method

TEMPLATES = {"paper": {"generate.templates": 7}, "mini": {"generate.templates": 7}}
METHODS = (
    Method("issynth", "IsSynth-style prompts", "#661100", "he2023issynth", settings=TEMPLATES),
)
