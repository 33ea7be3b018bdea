"""DataDream (Kim et al., ECCV 2024, arXiv 2407.10910): tune the generator on the few shots first.

As published: the two variants of section 3.2, which differ only in the images that an adapter sees:
one adapter for each class, or one for the whole dataset. As in section 4, the classifier is trained
on the synthetic images alone, or on the few real ones as well.
"""

from typing import ClassVar

from .base import Adapter, Method, Support


class ClassWise(Method):
    """One adapter for each class, tuned on that class's shots (DataDream_cls)."""

    derived: ClassVar[bool] = True

    def adapters(self, support: Support) -> list[Adapter]:
        """Return an adapter for each class."""
        return [Adapter(label) for label in range(len(support.classes))]

    def used(self, support: Support, label: int, index: int) -> tuple[Adapter, ...]:
        """Return the class's own adapter."""
        return (Adapter(label),)


class DatasetWise(ClassWise):
    """One adapter for all classes, tuned on all shots (DataDream_dset)."""

    derived: ClassVar[bool] = True

    def adapters(self, support: Support) -> list[Adapter]:
        """Return the one adapter."""
        return [Adapter()]

    def used(self, support: Support, label: int, index: int) -> tuple[Adapter, ...]:
        """Return the one adapter."""
        return (Adapter(),)


METHODS = (
    ClassWise("cls", "DataDream (class)", "#009E73", "kim2024datadream", main=True),
    DatasetWise("dset", "DataDream (dataset)", "#0072B2", "kim2024datadream", main=True),
)
