"""Builders of the public data sets; importing this registers them with TFDS.

    import tensorflow_datasets as tfds
    import tfds_builders

    builder = tfds.builder("mvtec_ad")
    builder.download_and_prepare()
    source = builder.as_data_source(split="test")

`python -m tfds_builders.prepare` does the same from the command line.
"""

from tfds_builders.btad import btad_dataset_builder as _btad
from tfds_builders.mpdd import mpdd_dataset_builder as _mpdd
from tfds_builders.mvtec_ad import mvtec_ad_dataset_builder as _mvtec_ad
from tfds_builders.mvtec_ad_2 import mvtec_ad_2_dataset_builder as _mvtec_ad_2
from tfds_builders.mvtec_loco import mvtec_loco_dataset_builder as _mvtec_loco
from tfds_builders.real_iad import real_iad_dataset_builder as _real_iad
from tfds_builders.robust_ad import robust_ad_dataset_builder as _robust_ad
from tfds_builders.visa import visa_dataset_builder as _visa

BUILDERS = {
    builder.name: builder
    for builder in (
        _mvtec_ad.Builder,
        _visa.Builder,
        _btad.Builder,
        _mpdd.Builder,
        _mvtec_ad_2.Builder,
        _mvtec_loco.Builder,
        _real_iad.Builder,
        _robust_ad.Builder,
    )
}
