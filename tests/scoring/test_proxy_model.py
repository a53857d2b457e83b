"""The proxy against transformers' Llama, which defines the model."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tamis.scoring.proxy_layers import attention
from tamis.scoring.proxy_model import ProxyModel

SHAPE = {"vocabulary": 70, "context": 24, "width": 16, "layers": 2, "heads": 2, "hidden": 20}


def made(seed: int = 0) -> ProxyModel:
    """A model with weights far from their beginnings, where errors would show."""
    model = ProxyModel(**SHAPE, seed=seed)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in model.parameters():
            part.add_(torch.randn(part.shape, generator=random) * 0.3)
    return model


def some_tokens(rows: int = 3, length: int = 24) -> tuple[Tensor, Tensor]:
    found = torch.randint(0, 70, (rows, length + 1), generator=torch.Generator().manual_seed(1))
    return found[:, :-1], found[:, 1:]


def test_logits_and_gradients_are_those_of_llama() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = made()
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=70,
            hidden_size=16,
            intermediate_size=20,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=24,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
        )
    ).float()
    pairs = [
        (model.embedding, llama.model.embed_tokens.weight),
        (model.last, llama.model.norm.weight),
    ]
    for i, layer in enumerate(llama.model.layers):
        own, mlp = layer.self_attn, layer.mlp
        for packed, parts in (
            (model.query_key_value[i], (own.q_proj, own.k_proj, own.v_proj)),
            (model.gate_up[i], (mlp.gate_proj, mlp.up_proj)),
            (model.attended[i], (own.o_proj,)),
            (model.down[i], (mlp.down_proj,)),
            (model.before_attention[i], (layer.input_layernorm,)),
            (model.before_hidden[i], (layer.post_attention_layernorm,)),
        ):
            pieces = packed.chunk(len(parts))
            pairs += [(piece, part.weight) for piece, part in zip(pieces, parts, strict=True)]
    with torch.no_grad():
        for ours, theirs in pairs:
            theirs.copy_(ours)
    tokens, targets = some_tokens()
    expected = llama(tokens).logits
    torch.testing.assert_close(model.logits(tokens), expected, atol=1e-4, rtol=1e-4)
    loss = F.cross_entropy(expected.flatten(0, 1), targets.flatten())
    found = model.mean_loss(tokens, targets)
    torch.testing.assert_close(found, loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.losses(tokens, targets).mean(), loss, atol=1e-5, rtol=1e-5)
    loss.backward()
    found.backward()
    grads = {id(p): p.grad for p in model.parameters()}
    for packed, theirs in (
        (model.embedding, [llama.model.embed_tokens]),
        (
            model.gate_up[0],
            [llama.model.layers[0].mlp.gate_proj, llama.model.layers[0].mlp.up_proj],
        ),
        (model.query_key_value[0], [llama.model.layers[0].self_attn.q_proj]),
        (model.down[1], [llama.model.layers[1].mlp.down_proj]),
        (model.before_hidden[1], [llama.model.layers[1].post_attention_layernorm]),
        (model.last, [llama.model.norm]),
    ):
        wanted = torch.cat([part.weight.grad for part in theirs])
        grad = grads[id(packed)]
        assert grad is not None
        torch.testing.assert_close(grad[: len(wanted)], wanted, atol=1e-6, rtol=1e-4)


def test_shorter_sequences_are_read_as_beginnings() -> None:
    tokens, _ = some_tokens()
    model = made()
    torch.testing.assert_close(
        model.logits(tokens[:, :7]), model.logits(tokens)[:, :7], atol=1e-5, rtol=1e-5
    )


def test_bfloat16_is_float32_but_for_rounding() -> None:
    tokens, targets = some_tokens(8)
    model = made()
    model.mean_loss(tokens, targets).backward()
    exact = {name: part.grad for name, part in model.named_parameters()}
    model.zero_grad()
    loss = model.mean_loss(tokens, targets, torch.bfloat16)
    loss.backward()
    assert abs(loss.item() - float(model.losses(tokens, targets).mean())) < 0.03
    for name, part in model.named_parameters():
        assert part.grad is not None
        assert F.cosine_similarity(part.grad.flatten(), exact[name].flatten(), 0) > 0.99, name


@pytest.mark.parametrize("length", [1, 9])
def test_scores_kept_whole_are_those_of_pytorch(length: int) -> None:
    random = torch.Generator().manual_seed(3)
    parts = torch.randn(2, length, 3, 2, 8, generator=random)
    angles = torch.randn(length, 4, generator=random)
    mask = torch.full((length, length), float("-inf")).triu(1)
    found = []
    for kind in (torch.float32, torch.bfloat16):
        given = parts.to(kind, copy=True).requires_grad_()
        mixed = attention(given, angles.cos().to(kind), angles.sin().to(kind), mask.to(kind))
        mixed.float().square().sum().backward()
        assert given.grad is not None
        found.append((mixed.float(), given.grad.float()))
    torch.testing.assert_close(found[1], found[0], atol=0.15, rtol=0.05)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    same, other = ProxyModel(**SHAPE, seed=5), ProxyModel(**SHAPE, seed=6)
    assert torch.equal(ProxyModel(**SHAPE, seed=5).embedding, same.embedding)
    assert not torch.equal(same.embedding, other.embedding)
    assert same.parameter_count == sum(p.numel() for p in same.parameters())
