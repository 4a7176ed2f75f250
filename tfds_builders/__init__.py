"""TFDS builders of MVTec AD, VisA and BTAD. None is here yet; see README.md."""
