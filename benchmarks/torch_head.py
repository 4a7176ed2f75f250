"""The trained head in PyTorch, a yardstick for its speed; see time_torch.py.

The default variant as one would write it there: `nn.Linear` and `F.layer_norm` over the
last axis, depthwise `F.conv2d` on a channels-last view, `F.interpolate`, fused and in-place
operations. Attributes have the names of the flax modules in lower case, so that parameters
are copied by name. Shapes are those of harmoniad_jax/model, images first, channels last.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harmoniad_jax.config import Config, LossConfig, ModelConfig, OptimizerConfig

LAYER_NORM_EPSILON = 1e-6  # flax's, not torch's
SMALLEST_NORM = 1e-8  # as in model/scoring.py


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, and dropout after each."""

    def __init__(self, width: int, ratio: float = 4.0, dropout: float = 0.0):
        super().__init__()
        hidden = round(ratio * width)
        self.dense_0, self.dense_1 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = dropout

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = F.gelu(self.dense_0(tokens), approximate="tanh")
        if self.dropout:
            hidden = F.dropout(hidden, self.dropout)
        output = self.dense_1(hidden)
        return F.dropout(output, self.dropout) if self.dropout else output


class Norm(nn.LayerNorm):
    def __init__(self, width: int):
        super().__init__(width, eps=LAYER_NORM_EPSILON)


class LinearAttention(nn.Module):
    """Multi-head attention in linear time, with the feature map elu + 1."""

    def __init__(self, width: int, heads: int, epsilon: float = 1e-6):
        super().__init__()
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        self.heads, self.epsilon = heads, epsilon

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        def split(values: Tensor) -> Tensor:
            return values.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        sources = tokens if context is None else torch.cat([tokens, context], dim=1)
        key, value = self.key_value(sources).chunk(2, dim=-1)
        query = split(F.elu(self.query(tokens)) + 1)
        key, value = split(F.elu(key) + 1), split(value)
        mixed = query @ (key.transpose(-1, -2) @ value)
        weight = query @ key.sum(dim=2).unsqueeze(-1)
        mixed = mixed / (weight + self.epsilon)
        return self.output(mixed.transpose(1, 2).flatten(2))


class GscmBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.layernorm_0, self.layernorm_1 = Norm(width), Norm(width)
        self.linearattention_0, self.mlp_0 = LinearAttention(width, heads), Mlp(width)

    def forward(self, tokens: Tensor, class_token: Tensor) -> Tensor:
        normalised = self.layernorm_0(tokens)
        context = torch.cat([class_token, normalised.mean(dim=1, keepdim=True)], dim=1)
        tokens = tokens + self.linearattention_0(normalised, context)
        return tokens + self.mlp_0(self.layernorm_1(tokens))


class MultiScaleEdges(nn.Module):
    """Depthwise filters of three supports, added to one kernel and applied once."""

    def __init__(self, width: int):
        super().__init__()
        self.fine = nn.Parameter(torch.empty(3, 3, width))
        self.coarse = nn.Parameter(torch.empty(5, 5, width))
        self.dilated = nn.Parameter(torch.empty(3, 3, width))

    def forward(self, features: Tensor) -> Tensor:
        kernel = self.coarse.clone()
        kernel[1:4, 1:4] += self.fine
        kernel[::2, ::2] += self.dilated
        kernel = kernel.permute(2, 0, 1)[:, None]
        channels_last = features.permute(0, 3, 1, 2)
        mixed = F.conv2d(channels_last, kernel, padding=2, groups=kernel.shape[0])
        return mixed.permute(0, 2, 3, 1)


class ChannelGate(nn.Module):
    def __init__(self, width: int, squeeze: int = 4):
        super().__init__()
        self.dense_0 = nn.Linear(width, width // squeeze)
        self.dense_1 = nn.Linear(width // squeeze, width)

    def forward(self, texture: Tensor) -> Tensor:
        magnitude = texture.abs().mean(dim=(1, 2), keepdim=True)
        return torch.sigmoid(self.dense_1(F.relu(self.dense_0(magnitude))))


class SpatialGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_0 = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, texture: Tensor) -> Tensor:
        mean, peak = texture.mean(dim=-1), texture.abs().amax(dim=-1)
        energy = texture.square().mean(dim=-1)
        statistics = torch.stack([mean, peak, energy], dim=1)
        return torch.sigmoid(self.conv_0(statistics)).permute(0, 2, 3, 1)


class FsamBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attends = heads > 0
        if self.attends:
            self.attention_norm = Norm(width)
            self.attention = LinearAttention(width, heads)
        self.layernorm_0, self.layernorm_1 = Norm(width), Norm(width)
        self.multiscaleedges_0 = MultiScaleEdges(width)
        self.channelgate_0, self.spatialgate_0 = ChannelGate(width), SpatialGate()
        self.project, self.mlp_0 = nn.Linear(width, width), Mlp(width)
        for name in ("threshold", "structure_gate", "mlp_gate"):
            self.register_parameter(name, nn.Parameter(torch.empty(width)))

    def forward(self, features: Tensor) -> Tensor:
        if self.attends:
            attended = self.attention(self.attention_norm(features).flatten(1, 2))
            features = features + attended.view_as(features)
        texture = self.multiscaleedges_0(self.layernorm_0(features))
        gated = texture * self.channelgate_0(texture) * self.spatialgate_0(texture)
        threshold = F.softplus(self.threshold)
        gated = torch.sign(gated) * F.relu(gated.abs() - threshold)
        features = features + self.structure_gate * self.project(gated)
        return features + self.mlp_gate * self.mlp_0(self.layernorm_1(features))


def group_outputs(outputs: list[Tensor], groups: int) -> Tensor:
    """Averages the outputs of a stack of blocks into groups, the last blocks first."""
    size = len(outputs) // groups
    mirrored = outputs[::-1]
    return torch.stack(
        [
            sum(mirrored[start : start + size]) / size
            for start in range(0, len(outputs), size)
        ],
        dim=1,
    )


class Fsam(nn.Module):
    def __init__(self, width: int, depth: int, groups: int, heads: int, dropout: float):
        super().__init__()
        self.bottleneck = Mlp(width, dropout=dropout)
        self.depth, self.groups = depth, groups
        for index in range(depth):
            begins_group = index % (depth // groups) == 0
            block = FsamBlock(width, heads if begins_group else 0)
            self.add_module(f"block_{index}", block)

    def forward(self, features: Tensor) -> Tensor:
        features, outputs = self.bottleneck(features), []
        for index in range(self.depth):
            features = self.get_submodule(f"block_{index}")(features)
            outputs.append(features)
        return group_outputs(outputs, self.groups)


def resize(features: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Resizes [B, h, w, D]; with `antialias` the kernels are those of `jax.image`."""
    channels_first = features.permute(0, 3, 1, 2)
    resized = F.interpolate(channels_first, size, mode=mode, antialias=True)
    return resized.permute(0, 2, 3, 1)


class Gscm(nn.Module):
    def __init__(self, width: int, depth: int, groups: int, heads: int, dropout: float):
        super().__init__()
        self.bottleneck = Mlp(width, dropout=dropout)
        self.class_bottleneck = Mlp(width, 1.0, dropout)
        self.depth, self.groups = depth, groups
        for index in range(depth):
            self.add_module(f"block_{index}", GscmBlock(width, heads))

    def forward(self, features: Tensor, class_token: Tensor) -> Tensor:
        height, width = features.shape[1:3]
        half = ((height + 1) // 2, (width + 1) // 2)
        tokens = resize(features, half, "bilinear").flatten(1, 2)
        tokens, outputs = self.bottleneck(tokens), []
        context = self.class_bottleneck(class_token[:, None])
        for index in range(self.depth):
            tokens = self.get_submodule(f"block_{index}")(tokens, context)
            outputs.append(tokens)
        predicted = group_outputs(outputs, self.groups).flatten(0, 1)
        full = resize(predicted.unflatten(1, half), (height, width), "bicubic")
        return full.unflatten(0, (-1, self.groups))


class FrequencySplit(nn.Module):
    """Splits features into two bands with a sigmoid gate."""

    def __init__(self, cutoff: float, softness: float):
        super().__init__()
        self.cutoff, self.softness = torch.tensor(cutoff), torch.tensor(softness)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        size = features.shape[2:4]
        vertical = torch.fft.fftfreq(size[0])[:, None] / 0.5
        horizontal = torch.fft.rfftfreq(size[1])[None, :] / 0.5
        radius = torch.sqrt(vertical**2 + horizontal**2)
        gain = torch.sigmoid((self.cutoff - radius) / self.softness)
        gain = gain / torch.sigmoid(self.cutoff / self.softness)
        spectrum = torch.fft.rfft2(features, dim=(2, 3)) * gain[..., None]
        low = torch.fft.irfft2(spectrum, s=size, dim=(2, 3))
        return low, features - low


def cosine_distance(first: Tensor, second: Tensor) -> Tensor:
    """One minus the cosine along the last axis."""
    product = torch.linalg.vecdot(first, second)
    square = torch.linalg.vecdot(first, first) * torch.linalg.vecdot(second, second)
    return 1 - product * torch.rsqrt(square.clamp_min(SMALLEST_NORM**2))


class ScaleGradient(torch.autograd.Function):
    """The values themselves; their gradient is multiplied by a factor."""

    @staticmethod
    def forward(context, values: Tensor, factor: Tensor) -> Tensor:
        context.save_for_backward(factor)
        return values.view_as(values)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * context.saved_tensors[0], None


def hard_cosine(target: Tensor, prediction: Tensor, easy: float, factor: float) -> Tensor:
    """Cosine distance of the flattened maps, the gradient of the easy share held back."""
    with torch.no_grad():
        distance = cosine_distance(target, prediction)
        by_group = distance.transpose(0, 1).flatten(1)
        threshold = torch.quantile(by_group, easy, dim=1)[:, None, None]
        scale = torch.where(distance < threshold, factor, 1.0)[..., None]
    prediction = ScaleGradient.apply(prediction, scale)
    return cosine_distance(target.flatten(2), prediction.flatten(2)).mean()


class Head(nn.Module):
    """Features to the weighted loss of the three comparisons."""

    def __init__(self, config: ModelConfig, loss: LossConfig, width: int, groups: int):
        super().__init__()
        heads, dropout = width // config.head_width, config.dropout
        high_heads = heads if config.high_attention else 0
        self.split = FrequencySplit(config.cutoff, config.softness)
        self.fsam = Fsam(width, config.high_depth, groups, high_heads, dropout)
        self.gscm = Gscm(width, config.low_depth, groups, heads, dropout)
        self.loss = loss

    def forward(self, patches: Tensor, class_token: Tensor, easy: float) -> Tensor:
        low, high = self.split(patches)
        predicted_high = self.fsam(patches.mean(dim=1))
        predicted_low = self.gscm(low.mean(dim=1), class_token)
        loss = self.loss
        return sum(
            weight * hard_cosine(target, prediction, easy, loss.easy_gradient)
            for weight, target, prediction in (
                (1.0, patches, predicted_low + predicted_high),
                (loss.high_weight, high.detach(), predicted_high),
                (loss.low_weight, low.detach(), predicted_low),
            )
        )


def from_flax(tree: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters of `HarmoniAD`, or their gradients, named and laid out as `Head`'s.

    Args:
      tree: values by path, such as "fsam/block_0/project/kernel".
    """
    renamed = {}
    for path, value in tree.items():
        stem, _, leaf = path.lower().replace("/", ".").rpartition(".")
        if leaf == "kernel":  # inputs before outputs; torch has them the other way round
            value = value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)
        leaf = "weight" if leaf in ("kernel", "scale") else leaf
        renamed[f"{stem}.{leaf}".lstrip(".")] = value
    return renamed


class StableAdamW(torch.optim.Optimizer):
    """training/optimizer.py in place: clipped gradient, AMSGrad, clipped update."""

    def __init__(self, parameters, config: OptimizerConfig):
        super().__init__(parameters, {"lr": config.learning_rate})
        self.config = config
        self.count = 0

    @torch.no_grad()
    def step(self) -> None:
        config = self.config
        self.count += 1
        first_share = 1 - config.b1**self.count
        second_share = 1 - config.b2**self.count
        (group,) = self.param_groups
        rate, parameters = group["lr"], group["params"]
        nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
        for parameter in parameters:
            gradient, state = parameter.grad, self.state[parameter]
            if not state:
                for name in ("mu", "nu", "nu_max"):
                    state[name] = torch.zeros_like(parameter)
            mu, nu, nu_max = state["mu"], state["nu"], state["nu_max"]
            mu.lerp_(gradient, 1 - config.b1)
            nu.mul_(config.b2).addcmul_(gradient, gradient, value=1 - config.b2)
            torch.maximum(nu_max, nu, out=nu_max)
            scale = (nu_max / second_share).sqrt_().add_(config.epsilon)
            norm = torch.linalg.vector_norm(gradient.div_(scale)).item()
            rms = norm / parameter.numel() ** 0.5
            step_size = rate / first_share / max(1.0, rms / config.update_clip)
            parameter.mul_(1 - rate * config.weight_decay)
            parameter.addcdiv_(mu, scale, value=-step_size)


class Training:
    """A head and its optimizer on one batch, one step at a time.

    Args:
      config: of the run.
      params: of `HarmoniAD`, by path.
      patches, class_token: as in `Features`.
      easy: the share of easy positions.
    """

    def __init__(
        self,
        config: Config,
        params: Mapping[str, np.ndarray],
        patches: np.ndarray,
        class_token: np.ndarray,
        easy: float,
    ):
        groups, width = patches.shape[1], patches.shape[-1]
        self._head = Head(config.model, config.loss, width, groups)
        state = {name: torch.tensor(value) for name, value in from_flax(params).items()}
        self._head.load_state_dict(state)
        self._optimizer = StableAdamW(self._head.parameters(), config.optimizer)
        self._inputs = torch.tensor(patches), torch.tensor(class_token), easy
        self._forward = self._head

    def compile(self) -> None:
        """Runs forward and backward through `torch.compile` from now on."""
        self._forward = torch.compile(self._head)

    def gradients(self) -> tuple[float, dict[str, np.ndarray]]:
        """The loss, and its gradient by the parameters' names."""
        self._optimizer.zero_grad()
        loss = self._forward(*self._inputs)
        loss.backward()
        return loss.item(), {
            name: value.grad.numpy() for name, value in self._head.named_parameters()
        }

    def step(self) -> float:
        """Updates the parameters; returns the loss before."""
        loss, _ = self.gradients()
        self._optimizer.step()
        return loss

    def parameters(self) -> dict[str, np.ndarray]:
        """A copy of the parameters by name."""
        named = self._head.named_parameters()
        return {name: value.detach().numpy().copy() for name, value in named}
