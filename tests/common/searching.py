"""How a long run searches: programs drawn from a seed, and the smallest that fails."""

from hypothesis import HealthCheck, Phase, settings

BATCH = 200
"""How many are drawn from one seed."""


def search():
    """Return the settings of a run that keeps nothing, and tells one failure."""
    return settings(
        max_examples=BATCH,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
    )
