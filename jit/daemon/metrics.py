"""Prometheus metrics of the daemon, on a loopback port or in a file: JITD_DAEMON_METRICS.

Needs prometheus_client (`pip install 'jitd[metrics]'`).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..errors import JitdError

Facts = Callable[[], Mapping[str, Any]]


class Metrics:
    """Shows `facts()`, which is what `jitctl daemon status` shows, to Prometheus."""

    def __init__(self, where: str, facts: Facts) -> None:
        """`where`: a port of 127.0.0.1, or a file for node_exporter. Raises JitdError."""
        try:
            import prometheus_client  # noqa: PLC0415  (optional, and 50 ms)
        except ImportError as error:
            raise JitdError(
                f"JITD_DAEMON_METRICS={where} needs prometheus_client: pip install 'jitd[metrics]'"
            ) from error
        self._client = prometheus_client
        self._registry = prometheus_client.CollectorRegistry()
        self._registry.register(_Collector(facts))
        self.where, self._file = where, not where.isdigit()
        self._server: Any = None
        if not self._file:
            try:
                self._server, _ = prometheus_client.start_http_server(
                    int(where), addr="127.0.0.1", registry=self._registry
                )
            except (OSError, OverflowError) as error:
                raise JitdError(f"no metrics on 127.0.0.1:{where}: {error}.") from error

    def write(self) -> None:
        """Bring the file up to date, if it is one. Raises OSError."""
        if self._file:
            self._client.write_to_textfile(self.where, self._registry)

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


class _Collector:
    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def collect(self) -> Iterable[Any]:
        from prometheus_client.core import (  # noqa: PLC0415
            CounterMetricFamily,
            GaugeMetricFamily,
        )

        facts = self._facts()
        for name, meaning in (
            ("uptime_seconds", "Since the daemon started."),
            ("connections", "Clients that are connected."),
            ("queued", "Builds that wait."),
            ("running", "Builds under way."),
            ("resident_bytes", "Memory of the server process."),
        ):
            yield GaugeMetricFamily(f"jitd_{name}", meaning, value=facts[name])
        events = CounterMetricFamily("jitd_events", "What happened, by name.", labels=["event"])
        for name, count in sorted(facts["counts"].items()):
            events.add_metric([name], count)
        yield events
