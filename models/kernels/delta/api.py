"""What models call: the delta rule on the CPU and on CUDA devices.

Shapes, dtypes and devices are checked here (`call.check`), in Python, before anything runs. All of
it compiles (`torch.compile(fullgraph=True)`), forward and backward.
"""

from __future__ import annotations

from torch import Tensor

from models.kernels import sequence
from models.kernels.delta import operators
from models.kernels.delta.call import DeltaCall, check


def delta_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The delta rule over whole sequences; differentiable in every float argument.

        S~_t = diag(exp(decay_t)) S_{t-1}
        S_t = S~_t + beta_t k_t (v_t - S~_t^T k_t)^T        o_t = S_t^T q_t

    DeltaNet (arXiv 2406.06484) without a decay, Gated DeltaNet (2412.06464) with one a head, Kimi
    Delta Attention (2510.26692) with one a channel. The first two write their state as (V, K); all
    three scale q by 1/sqrt(K) and normalise k, which is left to the caller here. States stay
    bounded while beta_t |k_t|^2 is in [0, 2].

    Args:
        q: queries, (B, T, H, K), unscaled.
        k: keys, (B, T, H, K), of length 1 in all published models.
        v: values, (B, T, H, V). q, k and v share one dtype.
        beta: share of the correction that is written, (B, T, H).
        decay: log decay in nats a step, at most 0, -inf forgets everything before its token. None
            (no decay), (B, T, H) a token and head, (B, T, H, K) also a key channel.
        initial_state: state before the first token of each sequence, (N, H, K, V); None is zero.
        cu_seqlens: offsets of N packed sequences, (N + 1,), rising from 0 to T; B is then 1. None:
            each row of the batch is one sequence, N = B.

    Returns:
        o, (B, T, H, V) in v's dtype, and the state after each sequence, (N, H, K, V) in float32
        (float64 for float64 input).

    Raises:
        ValueError: a shape, dtype, device or value that does not fit; the message says which.
            Sequences that are split over ranks (`models.kernels.sequence`) do not.
    """
    call = DeltaCall(q, k, v, beta, decay, initial_state, cu_seqlens)
    check(call)
    if sequence.active() is not None:
        raise ValueError(
            "delta_attention cannot split sequences over ranks: set parallel.sequence=1."
        )
    o, final_state, _ = operators.delta_attention(*call)
    return o, final_state


def delta_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    state: Tensor,
    decay: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One token of the recurrence, for decoding. Differentiable on the CPU.

    Args:
        q: query, (B, H, K).
        k: key, (B, H, K).
        v: value, (B, H, V).
        beta: (B, H).
        state: state before the token, (B, H, K, V); not modified.
        decay: log decay in nats, None, (B, H) or (B, H, K).

    Returns:
        o, (B, H, V) in v's dtype, and the state after the token, in `state`'s dtype.

    Raises:
        ValueError: a shape that does not fit.
    """
    expected = (*q.shape, v.shape[-1])
    if q.ndim != 3 or k.shape != q.shape or tuple(state.shape) != expected:
        raise ValueError(
            f"q, k, v and state have shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)} "
            f"and {tuple(state.shape)}: they must be (batch, heads, key channels) twice, (batch, "
            "heads, value channels) and (batch, heads, key channels, value channels)."
        )
    if beta.shape != q.shape[:2]:
        raise ValueError(
            f"beta has shape {tuple(beta.shape)}: it must be (batch, heads), {tuple(q.shape[:2])}."
        )
    if q.device.type == "cuda":
        return operators.delta_attention_step(q, k, v, beta, state, decay)
    dtype = state.dtype
    query, key, value = (x.to(dtype)[..., None, :] for x in (q, k, v))  # (B, H, 1, .)
    if decay is not None:
        factor = decay.to(dtype).exp()
        state = state * (factor[..., None, None] if factor.ndim == 2 else factor[..., None])
    missing = value - key @ state  # (B, H, 1, V)
    state = state + key.mT @ (beta.to(dtype)[..., None, None] * missing)
    return (query @ state).squeeze(-2).to(v.dtype), state
