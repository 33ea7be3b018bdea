"""A simulated cluster: the part of Ray's API that `on_ray._drive` uses, without machines.

Tasks end at computed times, so that a table of weeks runs in seconds.
"""

import heapq
import itertools
import types
from collections import deque


class VirtualRay:
    """A stand-in for the module `ray` with `workers` GPUs.

    A task takes `seconds(task)` on the first free GPU, in order of submission. Each submission
    costs the driver `overhead` seconds. `now` is the driver's time, `busy` the busy seconds of all
    workers, `ends` the end of each task by name.
    """

    exceptions = types.SimpleNamespace(RayError=RuntimeError)

    def __init__(self, workers, seconds, overhead=0.0):
        self.workers, self.free, self.seconds, self.overhead = workers, workers, seconds, overhead
        self.now, self.busy, self.ends = 0.0, 0.0, {}
        self.queue, self.running, self.finished, self.refs = deque(), [], set(), itertools.count()

    def cluster_resources(self):
        """Return the number of GPUs in Ray's format."""
        return {"GPU": float(self.workers)}

    def nodes(self):
        """Return no nodes: a task's cores do not count here."""
        return []

    def remote(self, do):
        """Mimic `ray.remote` for a function, with the options and the call that the engine uses."""
        function = types.SimpleNamespace(remote=self._submit)
        function.options = lambda **options: function
        return function

    def wait(self, refs, num_returns, timeout):
        """Return (refs that have ended, the others).

        With a timeout, time advances to the next end.
        """
        if timeout and self.running and not self.finished.intersection(refs):
            self.now = max(self.now, self.running[0][0])
            self._end()
        ready = [ref for ref in refs if ref in self.finished][:num_returns]
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, ref):
        """Return None: every task ends well."""
        self.finished.remove(ref)

    def _submit(self, task, root):
        self.now += self.overhead
        self._end()
        ref = next(self.refs)
        self.queue.append((ref, task))
        self._start(self.now)
        return ref

    def _start(self, at):
        while self.free and self.queue:
            ref, task = self.queue.popleft()
            length = self.seconds(task)
            self.free, self.busy = self.free - 1, self.busy + length
            heapq.heappush(self.running, (at + length, ref, task.name))

    def _end(self):
        while self.running and self.running[0][0] <= self.now:
            end, ref, name = heapq.heappop(self.running)
            self.finished.add(ref)
            self.ends[name], self.free = end, self.free + 1
            self._start(end)
