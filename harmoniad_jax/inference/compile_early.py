"""Compiling what evaluation will call, while a run starts.

XLA compiles a program on one core for the most part. While the step is compiled, another
core can do the same for what follows the last step.
"""

import jax
import numpy as np

from harmoniad_jax.devices.mesh import abstract_on, batched
from harmoniad_jax.inference.predictor import predict_program
from harmoniad_jax.inference.trained import distance_program
from harmoniad_jax.run.run import Run


def compile_evaluation(run: Run, encoder_params: object) -> None:
    """Leaves in JAX's compilation cache what calibration and evaluation will call.

    Nothing is done where there is no such cache, or where several processes would compile
    one program after the other anyway.

    Args:
      run: the parts of the run.
      encoder_params: the encoder's weights on all devices, or their shapes there.
    """
    if not jax.config.jax_compilation_cache_dir or jax.process_count() > 1:
        return
    state = run.abstract_state
    for shape in run.preprocessor.all_shapes:
        batch = _batch(run, shape)
        distance_program(run).lower(state.params, encoder_params, batch).compile()
        if run.dataset.test:
            arguments = (state.params, state.statistics, encoder_params, batch)
            predict_program(run).lower(*arguments).compile()


def _batch(run: Run, shape: tuple[int, int]) -> object:
    """Shapes of a batch as `Run` reads its test images: images, or stored features."""
    size, sharding = run.evaluation_batch_size, batched(run.mesh)
    if not run.config.cache.evaluation:
        return jax.ShapeDtypeStruct((size, *shape, 3), np.uint8, sharding=sharding)
    return abstract_on(sharding, run.stored_features(size, shape))
