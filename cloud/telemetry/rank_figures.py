"""How the ranks of a worker are, as their processes show it whenever metrics are read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_AWAKE = (psutil.STATUS_RUNNING, psutil.STATUS_SLEEPING, psutil.STATUS_DISK_SLEEP, psutil.STATUS_IDLE)


class RankFigures(Collector):
    """Of the processes `pids`, those of ranks 0 and up."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = tuple(pids)

    def collect(self) -> Iterable[Metric]:
        """Anew at each reading."""
        up = GaugeMetricFamily("cutline_rank_up", "1 for a rank whose process can run, 0 if not", labels=["rank"])
        memory = GaugeMetricFamily("cutline_rank_resident_bytes", "Memory of a rank's process", labels=["rank"])
        seconds = CounterMetricFamily("cutline_rank_cpu_seconds", "Processor time of a rank", labels=["rank"])
        for rank, pid in enumerate(self._pids):
            label = [str(rank)]
            try:
                process = psutil.Process(pid)
                with process.oneshot():
                    up.add_metric(label, float(process.status() in _AWAKE))
                    memory.add_metric(label, process.memory_info().rss)
                    times = process.cpu_times()
                    seconds.add_metric(label, times.user + times.system)
            except psutil.Error:
                up.add_metric(label, 0.0)
        return up, memory, seconds
