"""What every architecture must satisfy: checks of its token mixer, for its tests or by command.

    python -m models.contract my_gla            # my_gla.py in the working directory

    from models.contract import MixerContract   # the same as tests of pytest
    class TestGLA(MixerContract):
        config = toy_config("my_gla", 64, vocab_size=61, layers=2)

Exactness is asked for in float64: two ways through the same weights may differ only by the order
of summation, so 1e-9 absolute on logits of order 1 leaves four digits of room.
"""

from __future__ import annotations

import copy
import sys
import traceback
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from linscale.code_search import search_also
from models import accounting
from models.config import ModelConfig, toy_config
from models.language_model import LanguageModel, State, build
from models.ranks import as_ranks

LENGTH = 320
EXACT = 1e-9


def parallel(model: LanguageModel, tokens: Tensor, state: State | None = None) -> Tensor:
    logits = model(tokens, state)
    assert isinstance(logits, Tensor)
    return logits


def prefill(
    model: LanguageModel,
    tokens: Tensor,
    state: State | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, State]:
    return model(tokens, state, return_state=True, cu_seqlens=cu_seqlens)


def recur(model: LanguageModel, tokens: Tensor, state: State) -> tuple[Tensor, State]:
    """Logits (B, T, V) of tokens fed one by one."""
    outputs = []
    for t in range(tokens.shape[1]):
        logits, state = model.step(tokens[:, t], state)
        outputs.append(logits)
    return torch.stack(outputs, 1), state


def boundaries(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def assert_exact(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=EXACT)


class MixerContract:
    """Checks of one configuration; subclass it and set `config`."""

    config: ModelConfig
    bfloat16_cosine: float = 0.9986
    """Least cosine between the gradients in float32 and under bfloat16 autocast: 3 degrees."""
    bfloat16_eps: float | None = None
    """`norm_eps` of that check, where a norm of the mixer's own amplifies the rounding of single
    tokens by up to 1 / sqrt(eps). None: the configuration's."""

    def setup_method(self) -> None:
        torch.manual_seed(0)
        # Larger weights than at the start of training, so that every term matters.
        self.model = build(self.config.replace(init_std=0.15), dtype=torch.float64)
        # Parameters that start alike across heads, layers or channels must not hide mistakes.
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.ndim < 2:
                    parameter.add_(0.1 * torch.rand_like(parameter))

    def tokens(self, batch: int, length: int) -> Tensor:
        return torch.randint(0, self.config.vocab_size, (batch, length))

    def test_is_causal(self) -> None:
        tokens = self.tokens(2, 70)
        logits = parallel(self.model, tokens)
        changed = tokens.clone()
        changed[:, 33:] = (changed[:, 33:] + 1) % self.config.vocab_size
        after = parallel(self.model, changed)
        assert_exact(after[:, :33], logits[:, :33])
        assert (after[:, 33] - logits[:, 33]).abs().max() > 1e-3

    def test_reads_its_past(self) -> None:
        tokens = self.tokens(1, 12)
        changed = tokens.clone()
        changed[:, 3] = (changed[:, 3] + 1) % self.config.vocab_size
        difference = parallel(self.model, tokens) - parallel(self.model, changed)
        assert (difference[0, 3:].abs().amax(-1) > 1e-6).all()

    def test_order_matters(self) -> None:
        tokens = torch.tensor([[1, 2, 3, 4, 5, 6]])
        swapped = torch.tensor([[1, 3, 2, 4, 5, 6]])
        difference = parallel(self.model, tokens) - parallel(self.model, swapped)
        assert difference[0, -1].abs().max() > 1e-6

    def test_recurrent_equals_parallel(self) -> None:
        tokens = self.tokens(2, LENGTH)
        logits, state = prefill(self.model, tokens)
        assert_exact(parallel(self.model, tokens), logits)
        steps, stepped = recur(self.model, tokens, self.model.initial_state(2))
        assert_exact(steps, logits)
        # Both states continue alike.
        more = self.tokens(2, 3)
        assert_exact(recur(self.model, more, stepped)[0], recur(self.model, more, state)[0])

    def test_carried_state(self) -> None:
        tokens = self.tokens(2, LENGTH)
        logits = parallel(self.model, tokens)
        for cut in (1, 64, 151):
            _, state = prefill(self.model, tokens[:, :cut])
            assert_exact(parallel(self.model, tokens[:, cut:], state), logits[:, cut:])
            _, middle = prefill(self.model, tokens[:, cut : cut + 90], state)
            assert_exact(recur(self.model, tokens[:, cut + 90 :], middle)[0], logits[:, cut + 90 :])

    def test_steps_then_parallel(self) -> None:
        tokens = self.tokens(2, 100)
        _, state = recur(self.model, tokens[:, :40], self.model.initial_state(2))
        rest = parallel(self.model, tokens[:, 40:], state)
        assert_exact(rest, parallel(self.model, tokens)[:, 40:])

    def test_gradients_flow_through_a_carried_state(self) -> None:
        tokens = self.tokens(2, 24)
        weight = torch.randn(2, 12, self.config.vocab_size, dtype=torch.float64)
        (parallel(self.model, tokens)[:, 12:] * weight).sum().backward()
        whole = [p.grad.clone() for p in self.model.parameters() if p.grad is not None]
        self.model.zero_grad()
        _, state = prefill(self.model, tokens[:, :12])
        (parallel(self.model, tokens[:, 12:], state) * weight).sum().backward()
        parts = [p.grad for p in self.model.parameters() if p.grad is not None]
        assert len(parts) == len(whole) > 0
        for part, expected in zip(parts, whole, strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-9, atol=1e-9)

    def test_packed_equals_separate(self) -> None:
        lengths = [37, 1, 90, 64, 5]
        cu_seqlens = boundaries(lengths)
        tokens = self.tokens(1, sum(lengths))
        logits, state = prefill(self.model, tokens, cu_seqlens=cu_seqlens)
        assert_exact(self.model(tokens, cu_seqlens=cu_seqlens), logits)
        alone = [prefill(self.model, part) for part in tokens.split(lengths, dim=1)]
        assert_exact(torch.cat([part for part, _ in alone], 1), logits)
        assert state.position.tolist() == lengths

        # Continue each sequence: packed, as a ragged batch, and one at a time.
        following = [4, 30, 2, 1, 11]
        more = self.tokens(1, sum(following))
        expected = [
            parallel(self.model, part, kept)
            for part, (_, kept) in zip(more.split(following, dim=1), alone, strict=True)
        ]
        packed = self.model(more, state, cu_seqlens=boundaries(following))
        assert_exact(packed, torch.cat(expected, 1))
        ragged = self.tokens(5, 7)
        expected = [
            parallel(self.model, ragged[i : i + 1], kept) for i, (_, kept) in enumerate(alone)
        ]
        assert_exact(parallel(self.model, ragged, state), torch.cat(expected))
        assert_exact(recur(self.model, ragged, state)[0], torch.cat(expected))

    def test_packed_loss_and_gradients_equal_separate(self) -> None:
        lengths = [19, 2, 43]
        tokens, targets = self.tokens(1, 64), self.tokens(1, 64)
        packed = self.model.loss(tokens, targets, cu_seqlens=boundaries(lengths))
        packed.sum().backward()
        gradients = [p.grad.clone() for p in self.model.parameters() if p.grad is not None]
        self.model.zero_grad()
        separate = [
            self.model.loss(x, y)
            for x, y in zip(tokens.split(lengths, 1), targets.split(lengths, 1), strict=True)
        ]
        assert_exact(packed, torch.cat(separate, 1))
        torch.cat(separate, 1).sum().backward()
        expected = [p.grad for p in self.model.parameters() if p.grad is not None]
        for actual, wanted in zip(gradients, expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-9)

    def test_state_is_a_batch(self) -> None:
        """Rows can be copied, chosen and continued apart."""
        tokens = self.tokens(3, 20)
        _, state = prefill(self.model, tokens)
        assert all(leaf.shape[0] == 3 for leaf in tree_leaves(state))
        chosen = tree_map(lambda leaf: leaf[[2, 0]].clone(), state)
        more = self.tokens(2, 5)
        expected = parallel(self.model, torch.cat((tokens[[2, 0]], more), 1))[:, 20:]
        kept = tree_map(torch.clone, chosen)
        assert_exact(recur(self.model, more, chosen)[0], expected)
        assert_exact(recur(self.model, more, kept)[0], expected)

    def test_splits_sequences_if_it_says_so(self) -> None:
        """On two ranks with half of every sequence each, losses and gradients are those of one."""
        if self.config.whole_sequences:
            return
        tokens, targets = self.tokens(2, 96), self.tokens(2, 96)
        whole = self.model.loss(tokens, targets)
        whole.mean().backward()
        whole = whole.detach()
        expected = [p.grad for p in self.model.parameters()]
        twins = [copy.deepcopy(self.model), copy.deepcopy(self.model)]

        def work(rank: int) -> Tensor:
            twins[rank].zero_grad()
            part = slice(48 * rank, 48 * (rank + 1))
            losses = twins[rank].loss(tokens[:, part], targets[:, part])
            losses.mean().backward()
            return losses.detach()

        losses = torch.cat(as_ranks(2, work), dim=1)
        assert losses.allclose(whole, rtol=0, atol=EXACT), (
            f"{self.config.group} declares splits_sequences=True, and split over two devices it "
            f"has other losses, by up to {float((losses - whole).abs().max()):.3g}: it reads "
            "earlier tokens by another way than the primitives of models.kernels.api; declare False"
        )
        parameters = zip(*(twin.parameters() for twin in twins), expected, strict=True)
        for first, second, wanted in parameters:
            assert first.grad is not None
            assert second.grad is not None
            mean = (first.grad + second.grad) / 2
            torch.testing.assert_close(mean, wanted, rtol=1e-9, atol=1e-9)

    def test_accounting(self) -> None:
        parameters = sum(p.numel() for p in build(self.config, device="meta").parameters())
        assert parameters == sum(accounting.parameters(self.config).values())
        model = build(self.config)
        for batch, length in [(1, 3), (2, 17)]:
            _, state = prefill(model, self.tokens(batch, length))
            size = sum(leaf.nbytes for leaf in tree_leaves((state.stem, state.blocks)))
            assert size == accounting.state_bytes(self.config, batch) + accounting.kv_cache_bytes(
                self.config, length, batch, itemsize=4
            )

    def test_every_parameter_learns(self) -> None:
        model = build(self.config)
        loss = model.loss(self.tokens(2, 65), self.tokens(2, 65))
        assert loss.shape == (2, 65)
        assert loss.dtype == torch.float32
        loss.mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name

    def test_bfloat16_autocast(self) -> None:
        """Loss within 1 % of float32, and the gradient's direction within some degrees of its.

        Not from the small initial weights: where q.k is nearly 0, the norm that follows amplifies
        the rounding of single tokens without bound.
        """
        eps = self.config.norm_eps if self.bfloat16_eps is None else self.bfloat16_eps
        model = build(self.config.replace(norm_eps=eps))
        model.load_state_dict(self.model.state_dict())
        tokens, targets = self.tokens(4, 129), self.tokens(4, 129)
        exact = model.loss(tokens, targets).mean()
        exact.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model.loss(tokens, targets).mean()
        assert rounded.dtype == torch.float32
        rounded.backward()
        noisy = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        torch.testing.assert_close(rounded, exact, rtol=0.01, atol=0)
        assert torch.cosine_similarity(noisy, gradient, dim=0) > self.bfloat16_cosine

    def test_bfloat16_model_keeps_its_state(self) -> None:
        model = build(self.config, dtype=torch.bfloat16)
        tokens = self.tokens(2, 65)
        logits, state = prefill(model, tokens)
        assert logits.dtype == torch.bfloat16
        logits, after = model.step(tokens[:, 0], state)
        assert logits.isfinite().all()
        for name in state.blocks[0]:
            assert after.blocks[0][name].dtype == state.blocks[0][name].dtype
            fresh = model.initial_state(2).blocks[0][name]
            assert fresh.dtype == state.blocks[0][name].dtype

    def test_meta_then_materialise(self) -> None:
        torch.manual_seed(3)
        direct = build(self.config)
        torch.manual_seed(3)
        late = build(self.config, device="meta").to_empty(device="cpu")
        late.init_weights()
        tokens = self.tokens(1, 9)
        torch.testing.assert_close(late(tokens), direct(tokens), rtol=0, atol=0)

    def test_state_dict_round_trip(self) -> None:
        other = build(self.config, dtype=torch.float64)
        other.load_state_dict(self.model.state_dict())
        tokens = self.tokens(1, 9)
        assert_exact(other(tokens), self.model(tokens))

    def test_compiles_without_graph_breaks(self) -> None:
        """Forward, loss with backward, and step trace as one graph with the same results."""
        self.check_compiled("eager")

    def check_compiled(self, backend: str) -> None:
        torch._dynamo.reset()
        model, twin = self.model, copy.deepcopy(self.model)
        tokens, targets = self.tokens(2, 48), self.tokens(2, 48)

        def compiled(function):
            return torch.compile(function, fullgraph=True, backend=backend)

        assert_exact(compiled(twin)(tokens), model(tokens))
        packing = boundaries([20, 28])
        packed = compiled(lambda x, cu: twin(x, cu_seqlens=cu))(tokens[:1], packing)
        assert_exact(packed, model(tokens[:1], cu_seqlens=packing))
        compiled(twin.loss)(tokens, targets).mean().backward()
        model.loss(tokens, targets).mean().backward()
        for actual, expected in zip(twin.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-9, atol=1e-12)
        with torch.no_grad():
            _, state = prefill(model, tokens)
        state = model.reserve(state, 1)
        again = tree_map(torch.clone, state)
        logits, _ = compiled(lambda x, s: twin.step(x, s, reserve=False))(tokens[:, 0], again)
        assert_exact(logits, model.step(tokens[:, 0], state)[0])


def check(config: ModelConfig) -> dict[str, str]:
    """Run every check on one configuration: name -> what went wrong, empty where nothing did."""
    kind = type("Contract", (MixerContract,), {"config": config})
    found: dict[str, str] = {}
    for name in (name for name in dir(kind) if name.startswith("test_")):
        case = kind()
        case.setup_method()
        try:
            getattr(case, name)()
        except Exception as error:  # an AssertionError, or whatever the mixer raises
            last = traceback.extract_tb(error.__traceback__)[-1]
            found[name] = f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"
        else:
            found[name] = ""
    return found


def main() -> None:
    """Check an architecture by name; exit status 1 where it breaks the contract."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m models.contract ARCHITECTURE, such as my_gla or my_package.gla")
    search_also(Path())
    found = check(toy_config(sys.argv[1], 64, vocab_size=61, layers=2))
    for name, problem in found.items():
        words = name.removeprefix("test_").replace("_", " ")
        print(f"{'FAILED' if problem else 'ok':7}{words}" + (f"\n       {problem}" * bool(problem)))
    sys.exit(1 if any(found.values()) else 0)


if __name__ == "__main__":
    main()
