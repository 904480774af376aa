"""The network's part of a configuration. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

from ups_model.config.schema import Section, above, at_least, between, next_multiple


@dataclass(frozen=True)
class ModelConfig(Section):
    """The network (paper section 3.3 and 3.4; what the paper leaves open is in docs/paper-differences.md)."""

    token_width: int = 64
    """d, the width of a joint token."""
    tokenizer_layers: int = 3
    """TCN-GCN layers of the joint tokenizer."""
    encoder_layers: int = 3
    """SEM-TEM layers, L_encoder in the paper (Table 7)."""
    blocks_per_layer: int = 2
    """H, parallel SEM-TEM blocks of a layer (Table 8)."""
    routing: bool = True
    """Per-task choice of one block a layer (Table 9). Off: all blocks run and their outputs are averaged."""
    routing_execution: Literal["sparse", "dense"] = "sparse"
    """In training: run the chosen block alone, or all H of them weighted by the Gumbel-Softmax sample."""
    router_width: int = 256
    """q, the width of task and block embeddings."""
    router_scaled: bool = True
    """Divide the scores of Eq. 1 by sqrt(q); false is the paper's equation as printed, whose routes hardly move."""
    gumbel_start: float = 5.0
    """Gumbel-Softmax temperature at the first step."""
    gumbel_end: float = 0.5
    """Gumbel-Softmax temperature that the run ends at (geometric decay)."""
    gumbel_fades: bool = True
    """Whether the Gumbel noise of Eq. 2 fades; false keeps it at full strength to the end."""
    routing_explore_share: float = 0.5
    """Share of training over which the Gumbel noise fades to 0. Temperature shapes gradients, not choices: with full
    noise to the end a task would still be trained on routes that inference never takes."""
    tem_width: int = 0
    """Width of the frame tokens inside a TEM; 0 is the paper's J*d without a bottleneck."""
    tem_heads: int = 8
    """Heads of a TEM's attention over frames."""
    tem_mlp_ratio: int = 4
    """Hidden width of a TEM's MLP over its frame-token width."""
    decoder_layers: int = 3
    """Transformer blocks of the decoder, L_decoder in the paper."""
    decoder_width: int = 256
    """Width of the decoder's tokens and of the projected vocabulary."""
    decoder_heads: int = 8
    """Heads of the decoder's self- and cross-attention."""
    decoder_mlp_ratio: int = 2
    """Hidden width of the decoder's MLP over its token width."""
    decoder_memory: Literal["joints", "frames", "frames+joints"] = "joints"
    """What the decoder attends to: all N*J tokens; N frame tokens; or N frame tokens and J joint tokens, the latter
    taken at the target frame (pose estimation) or averaged over time (class tasks)."""
    decoder_alignment: bool = False
    """Pose estimation: add the encoded token of a step's own joint at the target frame to the decoder's input of that
    step, beside attention to the memory; the paper has attention alone."""
    input_features: tuple[Literal["position", "relative", "velocity", "bone"], ...] = ("position",)
    """What a joint's input vector holds; the paper gives positions alone."""
    normalisation: Literal["layer", "task_batch"] = "layer"
    """Inside GCN and TCN-GCN units: LayerNorm, or BatchNorm with running statistics of each task's own."""
    n_bins: int = 500
    """Coordinate bins an axis."""
    text_model: str = "roberta-base"
    """Frozen language model of the vocabulary: roberta-base (paper), minilm (packaged) or a local folder."""
    vocabulary_whitening: bool = True
    """Whiten the frozen text features before projecting them: prompts that differ in one number are nearly parallel."""
    vocabulary_residual: bool = False
    """Add a learned vector to each token's projected text feature; the paper's vocabulary is the frozen text alone."""
    vocabulary_ordinal: bool = False
    """Add to each coordinate token a learned smooth function of its bin's place on the axis. Text features of bins know
    next to nothing of their order, so that each bin would have to be learned by itself."""
    dropout: float = 0.1
    """Dropout in the TEM and after the tokenizer."""
    decoder_dropout: float = 0.1
    """Dropout in the decoder."""

    def faults(self) -> list[str]:
        faults = at_least(self, 1, "token_width", "encoder_layers", "blocks_per_layer", "decoder_layers")
        faults += at_least(self, 1, "tokenizer_layers", "router_width")
        if self.n_bins < 2:
            faults.append(f"n_bins must be at least 2, got {self.n_bins}; the paper's order is 500")
        if self.token_width >= 1 and self.token_width % 4:
            faults.append(
                f"token_width must be divisible by the 4 branches of a temporal convolution, got {self.token_width}; "
                f"try {next_multiple(self.token_width, 4)}"
            )
        tem_width = self.tem_width or 25 * self.token_width
        for width_name, width, heads_name in (
            ("tem_width" if self.tem_width else "25 * token_width", tem_width, "tem_heads"),
            ("decoder_width", self.decoder_width, "decoder_heads"),
        ):
            heads = getattr(self, heads_name)
            if heads < 1 or width < 1 or width % heads:
                hint = f"; try {next_multiple(max(width, 1), heads)}" if heads >= 1 else ""
                faults.append(f"{width_name} must be divisible by {heads_name}, got {width} and {heads}{hint}")
        faults += at_least(self, 1, "tem_mlp_ratio", "decoder_mlp_ratio")
        faults += above(self, 0, "gumbel_start", "gumbel_end")
        faults += between(self, 0, 0.99, "dropout", "decoder_dropout") + between(self, 0, 1, "routing_explore_share")
        if "position" not in self.input_features or len(set(self.input_features)) < len(self.input_features):
            faults.append(f"input_features must hold 'position' and no feature twice, got {self.input_features}")
        return faults
