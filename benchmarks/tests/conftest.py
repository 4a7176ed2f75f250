"""The environment of the tests in tests/."""

import environment  # noqa: F401  (before anything that imports JAX)
