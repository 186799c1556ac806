"""What Prometheus is told: requests, jobs, streams, and whether the controller lives."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from orchestrator.controller.controller import LEASE_S

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Figures:
    """A registry of its own: several services may live in one process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "thresher_http_requests_total",
            "Requests that were answered.",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "thresher_http_request_seconds",
            "Until the answer was complete; streams among them.",
            ["method", "route"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._jobs = Gauge("thresher_jobs", "Jobs that have not ended.", ["project", "state"], registry=self._registry)
        self.submissions = Counter(
            "thresher_submissions_total", "Jobs that were accepted.", ["outcome"], registry=self._registry
        )
        self._streams = Gauge("thresher_streams", "Logs and events being followed.", registry=self._registry)
        self._controller = Gauge("thresher_controller_up", "Whether the controller lives.", registry=self._registry)
        self._leads = Gauge("thresher_leads", "Whether this service decides.", registry=self._registry)
        self._lease = Gauge(
            "thresher_lease_age_seconds", "Since this service renewed its lease.", registry=self._registry
        )
        self._nodes = Gauge("thresher_cluster_nodes", "Nodes that answer.", registry=self._registry)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        known = method if method in ("GET", "HEAD", "POST", "PUT", "DELETE") else "other"
        self._requests.labels(known, route, str(status)).inc()
        self._seconds.labels(known, route).observe(seconds)

    def text(
        self,
        jobs: dict[tuple[str, str], int],
        streams: int,
        *,
        controller: bool,
        lease_age_s: float | None,
        nodes: int | None,
    ) -> bytes:
        """In Prometheus's format.

        Args:
            jobs: by project and state.
            lease_age_s: None: this service does not lead.
            nodes: None: not known.
        """
        self._jobs.clear()
        for (project, state), count in jobs.items():
            self._jobs.labels(project, state).set(count)
        self._streams.set(streams)
        self._controller.set(controller)
        self._leads.set(controller and lease_age_s is not None and lease_age_s < LEASE_S)
        self._lease.set(float("nan") if lease_age_s is None else lease_age_s)
        self._nodes.set(float("nan") if nodes is None else nodes)
        return generate_latest(self._registry)
