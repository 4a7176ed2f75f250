"""MVTec LOCO AD."""
