"""HarmoniAD for JAX: finds and localises defects in images of industrial products."""

__version__ = "0.1.0"
