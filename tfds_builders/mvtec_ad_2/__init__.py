"""MVTec AD 2."""
