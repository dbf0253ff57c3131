"""Metrics of the processes of a worker's ranks, read whenever metrics are scraped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_ALIVE = (psutil.STATUS_RUNNING, psutil.STATUS_SLEEPING, psutil.STATUS_DISK_SLEEP, psutil.STATUS_IDLE)


class RankFigures(Collector):
    """Collects state, memory and processor time of the processes `pids`, in order of rank."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = tuple(pids)

    def collect(self) -> Iterable[Metric]:
        """The metrics as they are now."""
        up = GaugeMetricFamily("cutline_rank_up", "1 for a rank whose process can run, 0 if not", labels=["rank"])
        memory = GaugeMetricFamily("cutline_rank_resident_bytes", "Memory of a rank's process", labels=["rank"])
        seconds = CounterMetricFamily("cutline_rank_cpu_seconds", "Processor time of a rank", labels=["rank"])
        for rank, pid in enumerate(self._pids):
            label = [str(rank)]
            try:
                process = psutil.Process(pid)
                with process.oneshot():
                    up.add_metric(label, float(process.status() in _ALIVE))
                    memory.add_metric(label, process.memory_info().rss)
                    times = process.cpu_times()
                    seconds.add_metric(label, times.user + times.system)
            except psutil.Error:
                up.add_metric(label, 0.0)
        return up, memory, seconds
