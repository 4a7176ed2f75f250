"""Config files, installed as `harmoniad_jax.configs`."""
