"""Attention for training says the same on the matrix unit as in vectors."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import pytest
import torch

from stockpot.model import compiled
from stockpot.native.build import COMPILERS, TRAINING, _flags, compile_kernels
from stockpot.native.training import TrainingKernels

COMPILER = next((path for name in COMPILERS if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def in_vectors(tmp_path_factory: pytest.TempPathFactory) -> TrainingKernels:
    """Compile the kernels as for a processor without the unit."""
    if COMPILER is None or not torch.cpu._is_amx_tile_supported():
        pytest.skip("no matrix unit (AMX), or no C++ compiler, here")
    out: Path = tmp_path_factory.mktemp("kernels") / "in_vectors.so"
    compile_kernels(COMPILER, (*_flags(TRAINING), "-O1", "-DSTOCKPOT_NO_AMX"), out, TRAINING)
    return TrainingKernels(ctypes.CDLL(str(out)))


@pytest.mark.parametrize(
    ("seq", "heads", "head_dim"), [(1, (1, 1), 64), (75, (3, 1), 48), (130, (2, 2), 80), (256, (2, 1), 64)]
)
@pytest.mark.parametrize("causal", [True, False])
def test_tiles_and_vectors_agree(
    in_vectors: TrainingKernels,
    monkeypatch: pytest.MonkeyPatch,
    seq: int,
    heads: tuple[int, int],
    head_dim: int,
    causal: bool,
) -> None:
    random = torch.Generator().manual_seed(seq)
    flat = torch.randn(2, seq, (heads[0] + 2 * heads[1]) * head_dim, generator=random).bfloat16()
    slope = torch.randn(2, seq, heads[0] * head_dim, generator=random).bfloat16()

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        own = flat.clone().requires_grad_()
        out = compiled.attend(
            own, heads, gains=None, angles=None, mask=None, causal=causal, scale=head_dim**-0.5, eps=1e-6
        )
        out.backward(slope)
        assert own.grad is not None
        return out.detach().float(), own.grad.float()

    on_tiles = run()
    monkeypatch.setattr(compiled, "_kernels", lambda: in_vectors)
    for one, other in zip(on_tiles, run(), strict=True):  # sums in another order, then rounded to eight bits
        assert (one - other).norm() <= 2e-3 * other.norm()
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)
