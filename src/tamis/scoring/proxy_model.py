"""A small causal language model in the manner of Llama, for runs on a processor.

RMSNorm before attention and before a SwiGLU layer, rotary positions, one matrix for the embedding
and the output, no biases: the same numbers as transformers' `LlamaForCausalLM` of that shape.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tamis.scoring.onednn import product
from tamis.scoring.proxy_layers import attention, blocks, gated, linear, mean_loss, norm

#: As in Llama: what keeps the root mean square from 0, and the base of the rotary angles.
EPSILON, ROTARY_BASE = 1e-5, 10_000.0
#: GPT-2's deviation of initial weights and the width it is for.
DEVIATION, DEVIATION_WIDTH = 0.02, 768


class ProxyModel(nn.Module):
    """The model.

    Args:
        vocabulary: tokens.
        context: most tokens of a sequence.
        width: of the residual stream.
        layers: of attention and SwiGLU.
        heads: of attention, width / heads must be even.
        hidden: width inside the SwiGLU layer.
        seed: of the initialisation: normal, with GPT-2's 0.02 at its width of 768 and in inverse
            proportion to the square root at others, as the variance of a product is the width times
            that of the weights; divided by sqrt(2 layers) for what is added to the residual stream.
            With 0.02 at a width of 64 training stays on a plateau, which seeds leave at random.

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

        usual = DEVIATION * math.sqrt(DEVIATION_WIDTH / width)

        def matrix(rows: int, columns: int, scale: float = usual) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns, generator=random) * scale)

        small = usual / math.sqrt(2 * layers)
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
        above = torch.full((context, context), float("-inf")).triu(1)
        self.mask: Tensor
        self.register_buffer("mask", above, persistent=False)

    @property
    def parameter_count(self) -> int:
        """Weights in all, those of the embedding counted once."""
        return sum(part.numel() for part in self.parameters())

    def hidden_states(self, tokens: Tensor, kind: torch.dtype = torch.float32) -> Tensor:
        """The normalised last states, [sequences * tokens, width].

        Args:
            tokens: int64 [sequences, tokens].
            kind: numbers of matrix products and what goes into them; the residual stream, norms
                and weights are float32.
        """
        rows, length = tokens.shape
        state = F.embedding(tokens.flatten(), self.embedding)
        cosine, sine = (part[:length].to(kind) for part in (self.cosine, self.sine))
        mask = self.mask[:length, :length].to(kind)
        for layer in range(len(self.down)):
            normed = norm(state, self.before_attention[layer], EPSILON, kind)
            parts = linear(normed, self.query_key_value[layer])
            split = parts.view(rows, length, 3, self.heads, -1)
            mixed = attention(split, cosine, sine, mask)
            state = state + linear(mixed, self.attended[layer])
            normed = norm(state, self.before_hidden[layer], EPSILON, kind)
            hidden = gated(linear(normed, self.gate_up[layer]))
            state = state + linear(hidden, self.down[layer])
        return norm(state, self.last, EPSILON, kind)

    def mean_loss(
        self, tokens: Tensor, targets: Tensor, kind: torch.dtype = torch.float32
    ) -> Tensor:
        """Mean cross-entropy of all targets in nats, for training.

        Args:
            tokens, targets: int64 [sequences, tokens].
        """
        return mean_loss(self.hidden_states(tokens, kind), self.embedding, targets.flatten())

    def logits(self, tokens: Tensor) -> Tensor:
        """Of the next token, float32 [sequences, tokens, vocabulary]."""
        found: Tensor = F.linear(self.hidden_states(tokens), self.embedding)
        return found.view(*tokens.shape, -1)

    @torch.no_grad()
    def losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of every target in nats, for measuring: float32 [sequences, tokens]."""
        states, wanted = self.hidden_states(tokens), targets.flatten()
        found = [
            F.cross_entropy(product(states[here], self.embedding), wanted[here], reduction="none")
            for here in blocks(len(wanted), len(self.embedding))
        ]
        return torch.cat(found).view(targets.shape)
