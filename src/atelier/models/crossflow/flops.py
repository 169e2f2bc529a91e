"""Floating-point operations of CrossFlow, by its configuration alone (1 MAC = 2 FLOP; matrix products only)."""

from math import prod

from atelier.models.crossflow.configs import CrossFlowConfig
from atelier.models.crossflow.dimr import Stage
from atelier.models.crossflow.heads import MAP, needs_adaptor
from atelier.models.crossflow.text_encoder import COMPRESSED, T5_WIDTH


def flow_flops(config: CrossFlowConfig) -> float:
    """One sample's forward pass through the flow network, with the indicator."""
    return _dit(config) if config.backbone == "dit" else _dimr(config)


def text_flops(config: CrossFlowConfig) -> float:
    """One prompt's forward pass through the variational text encoder."""
    text = config.text
    width, tokens = text.get("width", 768), text.get("tokens", 77)
    hidden, layers, reductions = text.get("hidden", 1024), text.get("num_layers", 11), text.get("num_reductions", 3)
    total, dim = 0.0, width
    if width == T5_WIDTH:
        dim = COMPRESSED
        total += 2 * tokens * (width * dim + dim * dim)

    def layer(dim: int) -> float:
        return 2 * tokens * 4 * dim * dim + 4 * tokens**2 * dim + 4 * tokens * dim * hidden

    total += layers * layer(dim)
    for halvings in range(reductions):
        own = dim >> halvings
        total += layer(own) + 2 * tokens * own * (own // 2)
    flat, size = tokens * (dim >> reductions), 2 * prod(config.latent_shape)
    return total + (_adaptor(flat, size) if needs_adaptor(size) else 2 * flat * size)


def tower_flops(config: CrossFlowConfig) -> float:
    """One picture's forward pass through the image tower and its head; 0 without one."""
    if config.tower is None:
        return 0.0
    tower = {"channels": 3, "image_size": 256, "patch": 16, "width": 1024, "layers": 24, **config.tower}
    dim, places = tower["width"], (tower["image_size"] // tower["patch"]) ** 2
    block = 2 * places * 4 * dim * dim + 4 * places**2 * dim + 2 * places * 8 * dim * dim
    pool = 2 * dim * dim + 4 * places * dim * dim + 4 * places * dim + 2 * dim * dim + 2 * 8 * dim * dim
    patches = 2 * places * dim * tower["channels"] * tower["patch"] ** 2
    size = prod(config.latent_shape)
    head = _adaptor(dim, size) if needs_adaptor(size) else 2 * (dim * size + size * size)
    return patches + tower["layers"] * block + pool + head


def training_flops(config: CrossFlowConfig) -> float:
    """One sample's forward and backward pass through all parts: three times the forward pass."""
    return 3 * (flow_flops(config) + text_flops(config) + tower_flops(config))


def _adaptor(width: int, size: int) -> float:
    places = MAP * MAP
    convolutions = 2 * places * 9 * (32 + 32 * 64 + 64 * (size // places))
    return 2 * (width * places + places * places) + convolutions


def _dit(config: CrossFlowConfig) -> float:
    flow = {"patch_size": 2, "mlp_ratio": 4.0, **config.flow}
    dim, patch, channels = flow["hidden_size"], flow["patch_size"], config.latent_shape[0]
    tokens = (flow["latent_size"] // patch) ** 2
    hidden, pixels = int(dim * flow["mlp_ratio"]), channels * patch**2
    block = 2 * tokens * 4 * dim * dim + 4 * tokens**2 * dim + 4 * tokens * dim * hidden + 12 * dim * dim
    time = 2 * (256 * dim + dim * dim)
    ends = 2 * tokens * dim * pixels * 2 + 4 * dim * dim
    return flow["depth"] * block + time + ends


def _dimr(config: CrossFlowConfig) -> float:
    stages = [Stage(**fields) for fields in config.flow["stage_configs"]]
    return sum(
        _stage(stage, stages[number - 1] if number else None, config.latent_shape[0])
        for number, stage in enumerate(stages)
    )


def _stage(stage: Stage, lower: Stage | None, channels: int) -> float:
    dim, places = stage.dim, stage.max_height * stage.max_width
    transformer = stage.block_type == "TransformerBlock"
    tokens = places + transformer
    mixing = (
        2 * tokens * 4 * dim * dim + 4 * tokens**2 * dim if transformer else 2 * places * dim * stage.kernel_size**2
    )
    blocks = (2 * stage.half + 1) * (mixing + 2 * tokens * 3 * dim * stage.hidden_dim)
    skips = stage.half * 2 * tokens * 2 * dim * dim
    ends = 2 * places * dim * channels * (stage.input_feature_ratio**2 + stage.final_kernel_size**2)
    upsampling = 0.0
    if lower is not None:
        low, ratio = lower.max_height * lower.max_width, stage.max_height // lower.max_height
        upsampling = 2 * low * lower.states * lower.dim * dim * ratio**2
    return blocks + skips + ends + upsampling
