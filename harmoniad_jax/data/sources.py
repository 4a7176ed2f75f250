"""The public data sets that can be prepared, by name, and what their splits are called.

To know them takes no library; to read them takes TFDS, which is slow to load.
"""

# The builders of `tfds_builders`.
PREPARED = (
    *("mvtec_ad", "visa", "btad", "mpdd"),
    *("mvtec_ad_2", "mvtec_loco", "real_iad", "robust_ad"),
)
TEST = "test"
VALIDATION = "validation"
