"""Real parts that tests share: each is a fixture in a module of its own."""

pytest_plugins = [
    "kafka_broker",
    "prometheus_server",
    "skip_report",
    "small_disk",
]
