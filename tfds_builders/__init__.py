"""Builders of the public data sets; importing this registers them with TFDS.

    import tensorflow_datasets as tfds
    import tfds_builders

    builder = tfds.builder("mvtec_ad")
    builder.download_and_prepare()
    source = builder.as_data_source(split="test")

`python -m tfds_builders.prepare` does the same from the command line.
"""

from tfds_builders.btad import btad_dataset_builder as _btad
from tfds_builders.mvtec_ad import mvtec_ad_dataset_builder as _mvtec_ad
from tfds_builders.visa import visa_dataset_builder as _visa

BUILDERS = {
    builder.name: builder for builder in (_mvtec_ad.Builder, _visa.Builder, _btad.Builder)
}
