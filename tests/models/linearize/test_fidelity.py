"""Where linear attention can be exact it is the teacher; and it recurs as it trains, by any method.

Beside the window that covers the sequence (`test_linearize`): the Taylor map. A key that is its
query turned by a quarter has score 0 with it. With a window of that one token, and all of its
factor, softmax part and linear part have the same measure, and the student differs from the teacher
by the remainder of the series alone.
"""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from models.architectures.lolcats import LoLCATs
from models.architectures.supra import Supra
from models.contract import prefill, recur
from models.language_model import LanguageModel
from models.linearize.distill import distillation_loss, hidden_losses
from models.linearize.initialise import fit_outputs, from_attention
from models.linearize.lora import add_lora, merge_lora
from models.linearize.surgery import linearize
from models.linearize.transfer import freeze_for_transfer, layer_losses
from tests.support.linearize_oracles import teacher, tokens

OPTIONS = LoLCATs(feature_map="taylor", window=1, arrangement="sliding", window_factor=1 - 1e-13)


class Taylor(nn.Module):
    """exp(q.k / sqrt(K)) up to any order: powers of x, by outer products."""

    def __init__(self, order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        x = x * x.shape[-1] ** -0.25
        power = torch.ones_like(x[..., :1])
        features = [power]
        for n in range(1, self.order + 1):
            power = (power[..., :, None] * x[..., None, :]).flatten(-2)
            features.append(power / math.factorial(n) ** 0.5)
        return torch.cat(features, -1)


def quarter_turned(largest: float) -> LanguageModel:
    """A teacher whose keys are its queries turned by a quarter; no score exceeds `largest`."""
    model = teacher(kv_heads=None, head_size=2)
    text, turn = tokens(2, 50), torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    for block in model.blocks:
        mixer = cast(Any, block).mixer
        q = mixer.qkv.weight.data[:8]
        # The norm before it makes |x|^2 = d: |q.k| / sqrt(2) is at most d |W_q|^2 / sqrt(2).
        bound = 32 * torch.linalg.matrix_norm(q.view(4, 2, 32), 2).square().max() / 2**0.5
        q.mul_((largest / bound).sqrt())
        mixer.qkv.weight.data[8:16] = (turn @ q.view(4, 2, 32)).flatten(0, 1)
    assert model(text).isfinite().all()
    return model


def difference(largest: float, order: int | None = None) -> float:
    """Largest difference of the logits; `order` of another Taylor map than the model's own."""
    model, text = quarter_turned(largest), tokens(2, 50)
    student = linearize(copy.deepcopy(model), OPTIONS)
    if order is not None:
        for block in student.blocks:
            mixer = cast(Any, block).mixer
            mixer.query_map = mixer.key_map = Taylor(order)
    with torch.no_grad():
        return float((student(text) - model(text)).abs().max())


def test_taylor_attention_on_small_scores_is_the_teacher() -> None:
    """The remainder of second order is cubic in the scores: an eighth at half of them."""
    errors = [difference(largest) for largest in (0.4, 0.2, 0.1)]
    assert 0 < errors[0] < 0.4**3 / 6 * 10  # logits are of order 10
    for larger, smaller in itertools.pairwise(errors):
        assert 6.5 < larger / smaller < 9.5
    # At order n the remainder is s^(n+1) / (n+1)!, at 0.4 and order 9 1e-10 and less.
    assert difference(0.4, 2) == pytest.approx(errors[0], rel=1e-9)
    assert difference(0.4, 5) < 1e-5 * 0.4**3
    assert difference(0.4, 9) < 1e-9


def test_taylor_attention_recurs_as_the_teacher_does() -> None:
    model, text = quarter_turned(0.01), tokens(2, 30)
    student = linearize(copy.deepcopy(model), OPTIONS)
    steps, _ = recur(student, text, student.initial_state(2))
    torch.testing.assert_close(steps, model(text), rtol=0, atol=0.01**3 * 10)


@pytest.mark.parametrize(
    "method", ["supra", "lolcats", "matched supra", "tnl", "hgrn2", "cosformer2"]
)
def test_recurrent_equals_parallel_after_every_method(method: str) -> None:
    """Learned, merged, fitted: what the parallel form has become, the recurrent one is too."""
    model, text = teacher(), tokens(2, 26)
    own = copy.deepcopy(model)

    def learn(parameters: list[nn.Parameter], loss: Any) -> None:
        optimizer = torch.optim.Adam(parameters, lr=0.02)
        for _ in range(3):
            optimizer.zero_grad()
            for part in loss():
                part.backward()
            optimizer.step()

    def text_loss() -> list[Tensor]:
        return [student.loss(text[:, :-1], text[:, 1:]).mean()]

    if method == "lolcats":
        student = linearize(own, LoLCATs(window=4, softmax_layers=(1,)))
        learn(freeze_for_transfer(student), lambda: [x for _, x in layer_losses(student, text)])
        learn(add_lora(student, rank=2), text_loss)
        merge_lora(student)
    elif method.endswith("supra"):
        student = linearize(own, Supra(softmax_layers=(2,)))
        if method.startswith("matched"):
            losses = hidden_losses
            learn([*student.parameters()], lambda: [x for _, x in losses(student, model, text)])
        learn([*student.parameters()], text_loss)
    else:
        student = from_attention(own, method)
        fit_outputs(student, model, text)
        inputs = text[:, :-1], text[:, 1:]
        learn([*student.parameters()], lambda: [distillation_loss(student, model, *inputs)])
    logits, _ = prefill(student, text)
    steps, _ = recur(student, text, student.initial_state(2))
    torch.testing.assert_close(steps, logits, rtol=1e-9, atol=1e-9)
