"""A small causal language model in the manner of Llama, for runs on a processor.

RMSNorm before attention and before a SwiGLU layer, rotary positions, one matrix for the embedding
and the output, no biases: the same numbers as transformers' `LlamaForCausalLM` of that shape.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

#: As in Llama: what keeps the root mean square from 0, and the base of the rotary angles.
EPSILON, ROTARY_BASE = 1e-5, 10_000.0


class ProxyModel(nn.Module):
    """The model.

    Args:
        vocabulary: tokens.
        context: most tokens of a sequence.
        width: of the residual stream.
        layers: of attention and SwiGLU.
        heads: of attention, width / heads must be even.
        hidden: width inside the SwiGLU layer.
        seed: of the initialisation: normal, 0.02, and 0.02 / sqrt(2 layers) for what is added to
            the residual stream (GPT-2).

    Example:
        >>> model = ProxyModel(vocabulary=11, context=8, width=4, layers=1, heads=2, hidden=6)
        >>> tokens = torch.tensor([[1, 2, 3]])
        >>> model.losses(tokens, torch.tensor([[2, 3, 4]])).shape
        torch.Size([1, 3])
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        context: int,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.heads = heads
        random = torch.Generator().manual_seed(seed)

        def matrix(rows: int, columns: int, scale: float = 0.02) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns, generator=random) * scale)

        small = 0.02 / math.sqrt(2 * layers)
        self.embedding = matrix(vocabulary, width)
        self.query_key_value = nn.ParameterList(matrix(3 * width, width) for _ in range(layers))
        self.attended = nn.ParameterList(matrix(width, width, small) for _ in range(layers))
        self.gate_up = nn.ParameterList(matrix(2 * hidden, width) for _ in range(layers))
        self.down = nn.ParameterList(matrix(width, hidden, small) for _ in range(layers))
        self.before_attention = nn.ParameterList(torch.ones(width) for _ in range(layers))
        self.before_hidden = nn.ParameterList(torch.ones(width) for _ in range(layers))
        self.last = nn.Parameter(torch.ones(width))
        size = width // heads
        rates = ROTARY_BASE ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        angles = torch.arange(context, dtype=torch.float64)[:, None] * rates
        self.cosine: Tensor
        self.sine: Tensor
        self.register_buffer("cosine", angles.cos().float(), persistent=False)
        self.register_buffer("sine", angles.sin().float(), persistent=False)

    @property
    def parameter_count(self) -> int:
        """Weights in all, those of the embedding counted once."""
        return sum(part.numel() for part in self.parameters())

    def hidden_states(self, tokens: Tensor) -> Tensor:
        """The normalised last states, float32 [sequences, tokens, width].

        Args:
            tokens: int64 [sequences, tokens].
        """
        rows, length = tokens.shape
        state = F.embedding(tokens, self.embedding)
        width = state.shape[-1]
        cosine, sine = self.cosine[:length], self.sine[:length]
        for layer in range(len(self.down)):
            normed = F.rms_norm(state, (width,), self.before_attention[layer], EPSILON)
            parts = F.linear(normed, self.query_key_value[layer])
            split = parts.view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            query, key = _turned(split[0], cosine, sine), _turned(split[1], cosine, sine)
            mixed = F.scaled_dot_product_attention(query, key, split[2], is_causal=True)
            mixed = mixed.transpose(1, 2).reshape(rows, length, width)
            state = state + F.linear(mixed, self.attended[layer])
            normed = F.rms_norm(state, (width,), self.before_hidden[layer], EPSILON)
            gate, up = F.linear(normed, self.gate_up[layer]).chunk(2, -1)
            state = state + F.linear(F.silu(gate) * up, self.down[layer])
        return F.rms_norm(state, (width,), self.last, EPSILON)

    def logits(self, tokens: Tensor) -> Tensor:
        """Of the next token, float32 [sequences, tokens, vocabulary]."""
        return F.linear(self.hidden_states(tokens), self.embedding)

    def losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of every target in nats, float32 [sequences, tokens]."""
        logits = self.logits(tokens).flatten(0, 1)
        found: Tensor = F.cross_entropy(logits, targets.flatten(), reduction="none")
        return found.view(targets.shape)


def _turned(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """States turned by the angles of their positions; a pair is half a head apart."""
    first, second = states.chunk(2, -1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)
