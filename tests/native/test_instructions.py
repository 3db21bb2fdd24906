"""Every version of the kernels that this processor can run computes the same, to the bit, and computes rightly."""

from __future__ import annotations

import copy
import ctypes
import functools
import platform
import shutil
from pathlib import Path

import pytest
import torch

from stockpot.model import native_stack, quantized
from stockpot.model.config import decoder, encoder
from stockpot.model.grids import NativeMatrix, choose_grid
from stockpot.model.native_encoder import NativeEncoder
from stockpot.model.quantized import quantize
from stockpot.model.transformer import Transformer
from stockpot.native.build import COMPILERS, FLAGS, MAIN, NATIVE, OWN, TEXTS, compile_kernels
from stockpot.native.calls import Kernels
from stockpot.native.texts import TextKernels

COMPILER = next((path for name in COMPILERS if (path := shutil.which(name))), None)
VERSIONS = {  # flags beside those of the machine: each takes away what the version before it may use
    "machine": (),
    "without AMX": ("-DSTOCKPOT_NO_AMX",),
    "avx2": ("-mno-avx512f",),
    "plain": ("-DSTOCKPOT_PLAIN",),
}
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    """Compile a version once, quickly (-O1: two seconds each); the order of rounding does not depend on that."""
    folder: Path = tmp_path_factory.mktemp("kernels")
    machine = NATIVE.get(platform.machine(), "-O1")

    @functools.cache
    def made(name: str, main: str = MAIN) -> Kernels | TextKernels:
        if name == "avx2" and platform.machine() not in ("x86_64", "AMD64"):
            pytest.skip("not an x86 processor")
        assert COMPILER is not None
        out = folder / f"{name}-{Path(main).stem}.so"
        compile_kernels(COMPILER, (*FLAGS, *OWN[main], machine, "-O1", *VERSIONS[name]), out, main)
        return (Kernels if main == MAIN else TextKernels)(ctypes.CDLL(str(out)))

    return made


def test_versions_differ_on_a_processor_that_has_more_than_one(version):
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    if "avx2" not in flags:
        pytest.skip("this processor has one version only")
    assert version("plain").name == "plain"
    assert version("avx2").name == "avx2"
    assert version("machine").name != "plain"
    if "avx512_vnni" in flags:
        assert version("machine").name.startswith("avx512")
        assert version("without AMX").name == "avx512-vnni"


@pytest.mark.parametrize("name", VERSIONS)
@pytest.mark.parametrize("bits", [8, 4])
def test_products_are_those_of_the_weights(version, name, bits):
    grid = choose_grid(torch.randn(48, 256, generator=torch.Generator().manual_seed(0)), bits)
    rows = torch.randn(70, 256, generator=torch.Generator().manual_seed(1))
    wanted = rows.double() @ grid.weight().double().T
    got = NativeMatrix(grid, version(name)).multiply(rows)
    # inputs are rounded to 16 bits, or to 8 a span: half a step of the largest, and 256 of them add up as a walk does
    step = rows.abs().max() / (32767 if bits == 8 else 127)
    bound = float(step) * float(grid.weight().square().sum(1).sqrt().max())
    assert (got.double() - wanted).abs().max() < 2 * bound


@pytest.mark.parametrize("name", ["without AMX", "avx2", "plain"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("count", [1, 2, 7, 16, 33, 70])
def test_products_are_the_same_to_the_bit(version, name, bits, count):
    torch.manual_seed(count)
    grid = choose_grid(torch.randn(80, 320), bits)
    rows = torch.randn(count, 320) * torch.logspace(-3, 3, count).unsqueeze(1)
    wanted = NativeMatrix(grid, version("machine")).multiply(rows)
    assert torch.equal(NativeMatrix(grid, version(name)).multiply(rows), wanted)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [1, 16, 33])
def test_the_largest_digits_do_not_overflow(version, bits, rows):
    """A span whose weights and inputs all have the largest size is where sums of digits are largest."""
    weight = torch.ones(32, 256)
    weight[:16, 1::2] = -1
    grid, x = choose_grid(weight, bits), torch.ones(rows, 256)
    x[:, 1::2] = -1
    wanted = x @ grid.weight().T
    for name in VERSIONS:
        got = NativeMatrix(grid, version(name)).multiply(x)
        assert torch.allclose(got, wanted, rtol=1e-4), name


@pytest.mark.parametrize("name", ["without AMX", "avx2", "plain"])
@pytest.mark.parametrize("bits", [8, 4])
def test_models_are_the_same_to_the_bit(version, name, bits, monkeypatch):
    torch.manual_seed(0)
    sizes = {"layers": 2, "dim": 128, "heads": 4, "kv_heads": 2, "vocab_size": 300, "context": 96}
    model = Transformer(decoder(zero_init=False, window=(None, 20), **sizes)).eval()
    ids = torch.randint(300, (2, 48), generator=torch.Generator().manual_seed(1))
    found = []
    for one in ("machine", name):
        monkeypatch.setattr(quantized, "_sound_kernels", lambda one=one: version(one))
        made = quantize(copy.deepcopy(model), bits)
        cache = made.new_cache(2, 96)
        read = made(ids, cache=cache).logits
        written = [made(ids[:, at : at + 1], cache=cache).logits for at in range(3)]
        found.append(torch.cat([read, *written], 1))
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["avx2", "plain"])
def test_stacks_and_judgements_are_the_same_to_the_bit(version, name, monkeypatch):
    torch.manual_seed(0)
    sizes = {
        "layers": 2,
        "dim": 80,
        "heads": 5,
        "vocab_size": 203,
        "context": 128,
        "ffn": "geglu",
        "ffn_dim": 208,
    }
    model = Transformer(decoder(zero_init=False, window=(None, 20), **sizes)).eval()
    ids, branches = torch.randint(203, (2, 70)), torch.arange(70).expand(2, 70) // 30
    found = []
    for one in ("machine", name):
        monkeypatch.setattr(native_stack, "_kernels", lambda kind, one=one: version(one, TEXTS))
        with torch.inference_mode():
            hidden = model(ids, branches=branches, last=0).hidden
            judged = native_stack.judge(model, hidden.flatten(0, 1), ids.flatten())
        found.append(torch.cat([hidden.flatten().double(), *judged]))
    assert torch.equal(*found)
    assert not torch.isnan(found[0]).any()


@pytest.mark.parametrize("in_pairs", [False, True], ids=["floats", "pairs"])
@pytest.mark.parametrize("name", ["avx2", "plain"])
def test_encoders_are_the_same_to_the_bit(version, name, in_pairs):
    torch.manual_seed(0)
    usual = {
        "norm": "layer",
        "norm_bias": True,
        "norm_place": "post",
        "final_norm": False,
        "position": "learned",
        "ffn": "gelu",
    }
    model = Transformer(
        encoder(layers=2, dim=80, heads=5, vocab_size=60, context=70, qk_norm=None, zero_init=False, **usual)
    )
    rows = [torch.randint(60, (length,)).tolist() for length in (1, 5, 16, 33, 70, 12)]
    found = [
        NativeEncoder(model.eval(), version(one, TEXTS), in_pairs=in_pairs).run(rows)[0]
        for one in ("machine", name)
    ]
    assert torch.equal(*found)
    assert not torch.isnan(found[0]).any()
