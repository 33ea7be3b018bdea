"""Names of folders that the library `datasets` does not take for a split or for hidden."""

import re

# What its `imagefolder` looks for in the names of folders, between the signs of BESIDE: images of a
# class in "test tube" would be the split test, and the others train (datasets 5.2, data_files.py).
WORDS = (
    *("train", "training", "validation", "valid", "dev", "val"),
    *("test", "testing", "eval", "evaluation"),
)
BESIDE = "-._ 0-9"
_SPLIT = re.compile(rf"(?<![^{BESIDE}])({'|'.join(WORDS)})(?![^{BESIDE}])")


def without_split_words(name: str) -> str:
    """Return a folder's name with the words of a split in the plural, "tests tube" for "test tube".

    Two underscores in front, by which `datasets` passes a folder over, become one.
    """
    return _SPLIT.sub(r"\1s", re.sub("^_{2,}", "_", name))
