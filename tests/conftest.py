"""Real parts that tests share, each a fixture in a module of its own; and how hypothesis runs everywhere."""

from hypothesis import settings

from idlewatt.processors.tuning import tune

# stages run here as they do in a process of their own; before anything loads polars
tune()

# how long an example takes says nothing on a machine that does something else as well
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

pytest_plugins = [
    "kafka_broker",
    "prometheus_server",
    "skip_report",
    "small_disk",
]
