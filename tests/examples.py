"""How many examples a property test tries: few that never change in `make test`, ten times as many new ones in `make soak`."""

from hypothesis import settings


def examples(count: int) -> settings:
    """Settings for `count` examples in `make test`, and for as many more as the profile asks for."""
    return settings(max_examples=count * settings.default.max_examples // 100)
