"""A cluster without machines: what `on_ray._drive` asks of Ray, answered by a list of ends, so
that a table of weeks runs in seconds.
"""

import heapq
import itertools
import types
from collections import deque


class VirtualRay:
    """Stands for the module `ray` with `workers` GPUs: a task takes `seconds(task)` on the first
    free one, in the order of submission.

    Each submission costs the driver `overhead` seconds. `now` is the driver's time, `busy` the
    seconds of all workers, `ends` has the end of each task by name.
    """

    exceptions = types.SimpleNamespace(RayError=RuntimeError)

    def __init__(self, workers, seconds, overhead=0.0):
        self.workers, self.free, self.seconds, self.overhead = workers, workers, seconds, overhead
        self.now, self.busy, self.ends = 0.0, 0.0, {}
        self.queue, self.running, self.finished, self.refs = deque(), [], set(), itertools.count()

    def cluster_resources(self):
        """Return the GPUs, as Ray counts them."""
        return {"GPU": float(self.workers)}

    def nodes(self):
        """Return nothing of the nodes: a task's cores do not count here."""
        return []

    def remote(self, do):
        """Return what `ray.remote` does of a function, with the options and the call that the
        engine uses.
        """
        function = types.SimpleNamespace(remote=self._submit)
        function.options = lambda **options: function
        return function

    def wait(self, refs, num_returns, timeout):
        """Return (refs that have ended, the others); with a timeout time goes on to the next
        end.
        """
        if timeout and self.running and not self.finished.intersection(refs):
            self.now = max(self.now, self.running[0][0])
            self._end()
        ready = [ref for ref in refs if ref in self.finished][:num_returns]
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, ref):
        """Return nothing: a task that has ended has ended well."""
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
