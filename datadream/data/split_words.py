"""Folder names that the `datasets` library takes neither for a split nor for hidden."""

import re

# What `imagefolder` looks for in folder names, between the characters of BESIDE: the class "test
# tube" would become the test split, and the others train (datasets 5.2, data_files.py).
WORDS = (
    *("train", "training", "validation", "valid", "dev", "val"),
    *("test", "testing", "eval", "evaluation"),
)
BESIDE = "-._ 0-9"
_SPLIT = re.compile(rf"(?<![^{BESIDE}])({'|'.join(WORDS)})(?![^{BESIDE}])")


def without_split_words(name: str) -> str:
    """Put the split words of a folder name in the plural: "tests tube" for "test tube".

    Leading double underscores, which make `datasets` skip a folder, become one.
    """
    return _SPLIT.sub(r"\1s", re.sub("^_{2,}", "_", name))
