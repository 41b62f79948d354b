"""How hypothesis tries: no test is timed; `--hypothesis-profile thorough` takes many examples."""

from hypothesis import settings

settings.register_profile("suite", deadline=None)
settings.register_profile("thorough", deadline=None, max_examples=10_000)
settings.load_profile("suite")
