"""Real parts that tests share, each a fixture in a module of its own; and how hypothesis runs everywhere."""

import os

from hypothesis import HealthCheck, Phase, settings

from idlewatt.processors.tuning import tune

# stages run here as they do in a process of their own; before anything loads polars
tune()

# each of pytest's workers would read and compile every test anew, and each command that tests start all of ours
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

settings.register_profile(
    "test",
    derandomize=True,
    # how long an example takes says nothing on a machine that does something else as well
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    # to explain a failure takes longer than to find it
    phases=[phase for phase in Phase if phase is not Phase.explain],
)
settings.register_profile("soak", settings.get_profile("test"), derandomize=False, max_examples=1000)
settings.load_profile("test")

pytest_plugins = [
    "kafka_broker",
    "prometheus_server",
    "skip_report",
    "small_disk",
]


def pytest_xdist_auto_num_workers() -> int:
    """Two more than there are cores: a good part of the time, tests wait for processes that they have started."""
    return (os.cpu_count() or 1) + 2
