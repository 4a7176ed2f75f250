"""Which packages are installed. Everything else is in setup.cfg."""

from setuptools import find_packages, setup

# The config files stay at the top of a checkout, where users look for them, but a package
# called "configs" would collide with those of other projects.
setup(
    packages=[
        *find_packages(include=["harmoniad_jax*", "harmoniad_runtime*", "tfds_builders*"]),
        "harmoniad_jax.configs",
    ],
    package_dir={"harmoniad_jax.configs": "configs"},
)
