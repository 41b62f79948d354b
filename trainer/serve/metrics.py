"""What the server tells Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_ROWS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class Metrics:
    """All metrics of one server; each is described by its own text.

    Attributes:
        registry: what `/metrics` shows.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "cetnet_requests",
            "Requests for scores, by what became of them.",
            ["protocol", "outcome"],  # ok, invalid, too_large, rejected, cancelled, failed
            registry=registry,
        )
        self.seconds = Histogram(
            "cetnet_request_seconds",
            "From a request's last byte to its answer, of those that were answered with scores.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "cetnet_queue_seconds",
            "Wait of a request for its batch to start.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.encode_seconds = Histogram(
            "cetnet_encode_seconds",
            "Encoding of a batch's raw rows.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.model_seconds = Histogram(
            "cetnet_model_seconds", "The model's time for a batch.", buckets=_SECONDS, registry=registry
        )
        self.batch_rows = Histogram("cetnet_batch_rows", "Rows of a batch.", buckets=_ROWS, registry=registry)
        self.batch_requests = Histogram(
            "cetnet_batch_requests", "Requests of a batch.", buckets=_ROWS[:8], registry=registry
        )
        self.waiting_rows = Gauge("cetnet_waiting_rows", "Rows that wait for a batch.", registry=registry)
        self.waiting_requests = Gauge(
            "cetnet_waiting_requests", "Requests that wait for a batch.", registry=registry
        )
        self.rows = Counter("cetnet_rows", "Rows scored.", registry=registry)
        self.predictions = Counter(
            "cetnet_prediction_sum",
            "Sum of the probabilities of all rows; over cetnet_rows_total it is their mean.",
            ["output"],
            registry=registry,
        )
        self.missing = Counter(
            "cetnet_missing_rows",
            "Rows in which a raw column has no value, or an empty list.",
            ["column"],
            registry=registry,
        )
        self.unknown = Counter(
            "cetnet_unknown_ids",
            "Values of a feature that the model doesn't know (id 0), without missing ones.",
            ["feature"],
            registry=registry,
        )
        self.values = Counter(
            "cetnet_ids", "Values of a feature that were looked up.", ["feature"], registry=registry
        )
        self.model = Gauge(
            "cetnet_model_info",
            "1 for the version that answers.",
            ["version", "run", "step"],
            registry=registry,
        )
        self.loaded = Gauge(
            "cetnet_model_loaded_timestamp_seconds", "When it began to answer.", registry=registry
        )
        self.swaps = Counter("cetnet_model_swaps", "Versions that took another's place.", registry=registry)
        self.refused = Counter(
            "cetnet_model_refused",
            "Versions that couldn't be loaded, or didn't give their examples' answers.",
            registry=registry,
        )
