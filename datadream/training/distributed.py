"""One adapter trained by several processes at once, each on its part of every batch: `accelerate
launch -m datadream adapt`.

For a dataset-wise adapter of many images, whose training is one chain that more workers do not
shorten. Adapters of single classes are tasks of their own, which `engine` hands to one GPU each.
"""

from dataclasses import dataclass
from datetime import timedelta

import torch

# The others wait while the first one waits for a lock; a dead one is the launcher's to notice.
PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class Team:
    """The `size` processes that train one adapter, of which this is number `rank`; without
    others nothing is sent.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self):
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, rows):
        """Return this process's part of a step's rows."""
        return rows[self.rank :: self.size]

    def add(self, tensors):
        """Replace each of the tensors, of one device and dtype, by its sum over the processes."""
        if self.size == 1:
            return
        from accelerate.utils import reduce

        flat = reduce(torch.cat([tensor.flatten() for tensor in tensors]), "sum")
        assert isinstance(flat, torch.Tensor)  # a mapping only where it is given one
        for tensor, own in zip(
            tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True
        ):
            tensor.copy_(own.view_as(tensor))

    def first(self, number):
        """Return the integer that the first process has here."""
        if self.size == 1:
            return number
        from accelerate import PartialState
        from accelerate.utils import broadcast

        sent = broadcast(torch.tensor(number, device=PartialState().device))
        assert isinstance(sent, torch.Tensor)  # a mapping only where it is given one
        return int(sent)

    def make(self, store, key, inputs, build, **notes):
        """Return the artifact's folder as `store.make` does; the first process makes it, and the
        others call `build` beside it.

        They must see the work folder too, in which they write nothing. Raises what `store.make` and
        `build` do.
        """
        begun = []

        def lead(folder):
            begun.append(self.first(1))
            build(folder)

        if self.leads:
            store.make(
                key, inputs, lead, **notes, **({"processes": self.size} if self.size > 1 else {})
            )
        if not begun and self.first(0):  # the first process found it finished, or has begun
            build(store.work(key))
        return store.folder(key)


ALONE = Team()


def gather():
    """Return the team of the processes that `accelerate launch` or `torchrun` started: this one
    alone where neither did.
    """
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    return Team(state.process_index, state.num_processes)
