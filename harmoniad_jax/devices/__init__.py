"""Devices and processes: the mesh, what processes agree on, compilation."""
