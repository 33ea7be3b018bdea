"""DataDream, reproduced: few-shot guided dataset generation (Kim et al., ECCV 2024, arXiv 2407.10910)."""

__version__ = "0.1.0"
