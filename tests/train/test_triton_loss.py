"""Our kernel for the cross-entropy on a GPU computes what torch does; on a CPU it runs in Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from stockpot.data.batch import IGNORED, Batch
from stockpot.model import compiled
from stockpot.train import fused
from stockpot.train.losses import linear_cross_entropy

# Relative and absolute errors that rounding allows: a unit in the last place of each type; float16 ends at 6e-8. Triton's
# interpreter cuts bfloat16 off instead of rounding it.
ROUGH = {torch.float32: (1e-5, 1e-7), torch.float16: (2**-10, 1e-7), torch.bfloat16: (2**-8, 1e-9)}
CUT_OFF = ROUGH | {torch.bfloat16: (2**-7, 1e-9)}
# Rows of one thread's vector or less, of a block of 32 threads (256 in 16 bits, 128 in 32) or a little more, of whole tiles, and
# with a block before and two after them; 7, 257 and 1031 do not begin at a whole vector.
VOCABULARIES = [1, 7, 256, 257, 300, 1024, 1031, 1032]


@pytest.fixture
def interpreted(interpreted, monkeypatch):
    """Let Triton's interpreter run our kernel with the fewest threads, so that small vocabularies fill several blocks."""
    from stockpot.native import triton_loss

    monkeypatch.setattr(triton_loss, "MOST_THREADS", 32)


@pytest.fixture
def in_place(interpreted, monkeypatch):
    """Let the fused loss judge with our kernel on a CPU, too."""
    monkeypatch.setattr(fused, "_judges_in_place", lambda *_: True)
    monkeypatch.setattr(compiled, "suits", lambda *_: False)


def judged(logits, labels, z_loss=0.0, needs_slope=True):
    """Return what the kernel finds, as floats, and what it leaves in the place of the logits."""
    from stockpot.native.triton_loss import judge

    left = logits.clone()
    return judge(left, labels, z_loss=z_loss, needs_slope=needs_slope), left


def reference(logits, labels, z_loss=0.0):
    """Compute sums and slopes with torch, in float64."""
    exact = logits.double().requires_grad_()
    log_z = exact.logsumexp(1)
    counts = labels != IGNORED
    nats = (log_z - exact.gather(1, labels.clamp(min=0)[:, None])[:, 0])[counts].sum()
    total = nats + z_loss * log_z[counts].square().sum()
    (slope,) = torch.autograd.grad(total, exact)
    correct = (exact.gather(1, labels.clamp(min=0)[:, None])[:, 0] == exact.amax(1))[counts].sum()
    return torch.stack((total, nats, correct)).detach(), slope


def are_near(slopes, wanted, labels, rough):
    """Compare slopes; a label's is a difference from 1, of whose rounding 5e-6 may be left (a GPU's exponentials are fast)."""
    rtol, atol = rough[slopes.dtype]
    bound = atol + rtol * wanted.abs()
    bound.scatter_add_(1, labels.clamp(min=0)[:, None], torch.full_like(wanted[:, :1], 5e-6))
    return bool(((slopes.double() - wanted).abs() <= bound).all())


def check(rows, vocab, dtype, z_loss, device="cpu"):
    generator = torch.Generator().manual_seed(vocab)
    logits = (4 * torch.randn(rows, vocab, generator=generator)).to(device, dtype)
    labels = torch.randint(vocab, (rows,), generator=generator).to(device)
    labels[1::3] = logits.argmax(1)[1::3]  # some are right
    labels[2::4] = IGNORED
    sums, slopes = judged(logits, labels, z_loss)
    wanted, wanted_slopes = reference(logits, labels, z_loss)
    torch.testing.assert_close(sums.double(), wanted, rtol=1e-5, atol=1e-5)
    assert are_near(slopes, wanted_slopes, labels, CUT_OFF if device == "cpu" else ROUGH)
    assert (slopes[labels == IGNORED] == 0).all()
    torch.testing.assert_close(
        judged(logits, labels, z_loss, needs_slope=False), (sums, logits), rtol=0, atol=0
    )


@pytest.mark.parametrize("dtype", ROUGH)
@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_sums_and_slopes_are_torchs(vocab, dtype, z_loss, interpreted):
    check(9, vocab, dtype, z_loss)


def test_no_rows_sum_to_nothing(interpreted):
    sums, left = judged(torch.empty(0, 5), torch.empty(0, dtype=torch.long))
    assert sums.tolist() == [0, 0, 0] and left.shape == (0, 5)


@pytest.mark.parametrize("dtype", ROUGH)
def test_a_label_counts_as_best_where_others_are_as_high(dtype, interpreted):
    logits = torch.tensor([[2.0, 2, 1], [1, 2, 2], [2, 1, 0]], dtype=dtype)
    sums, _ = judged(logits, torch.tensor([1, 2, 1]))
    assert sums[2] == 2


@pytest.mark.parametrize("dtype", ROUGH)
@pytest.mark.parametrize("vocab", [300, 1031])
def test_an_item_that_cannot_come_has_no_slope(dtype, vocab, interpreted):
    logits = torch.randn(3, vocab, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[0, :290] = -math.inf  # more than a thread reads at once, before it has read anything else
    logits[1, 5:] = -math.inf
    logits[2, 7] = -math.inf
    labels = torch.tensor([295, 3, 7])
    sums, slopes = judged(logits[:2], labels[:2])
    wanted, wanted_slopes = reference(logits[:2], labels[:2])
    torch.testing.assert_close(sums.double(), wanted, rtol=1e-5, atol=1e-5)
    assert are_near(slopes, wanted_slopes, labels[:2], CUT_OFF)
    assert (slopes[logits[:2].isneginf()] == 0).all()
    sums, slopes = judged(logits[2:], labels[2:])  # the label itself
    assert sums[:2].tolist() == [math.inf] * 2 and slopes[0, 7] == -1 and slopes.isfinite().all()


@pytest.mark.filterwarnings("ignore:overflow")  # NumPy's, for a distance of −∞
@pytest.mark.parametrize("dtype", ROUGH)
def test_huge_logits_are_told_apart(dtype, interpreted):
    most = torch.finfo(dtype).max
    logits = torch.tensor([[most, -most, most], [-most, -most / 2, -most], [most / 2, 0, 1]], dtype=dtype)
    sums, slopes = judged(logits, torch.tensor([0, 1, 0]))
    assert sums[2] == 3 and sums[1].item() == pytest.approx(math.log(2), rel=1e-6)
    torch.testing.assert_close(slopes.float(), torch.tensor([[-0.5, 0, 0.5], [0, 0, 0], [0, 0, 0]]))


def test_what_is_no_number_stays_where_it_counts(interpreted):
    logits = torch.zeros(2, 40)
    logits[1, 3] = math.nan
    sums, slopes = judged(logits, torch.tensor([0, IGNORED]))
    assert sums.isfinite().all() and slopes.isfinite().all()
    assert judged(logits, torch.tensor([0, 5]))[0][:2].isnan().all()


@pytest.mark.parametrize("label", [-1, 40])
def test_a_label_outside_of_the_vocabulary_makes_the_loss_no_number(label, interpreted):
    sums, slopes = judged(torch.zeros(2, 40), torch.tensor([3, label]))
    assert sums[:2].isnan().all() and sums[2] == 1
    torch.testing.assert_close(slopes[0], torch.full((40,), 1 / 40) - F.one_hot(torch.tensor(3), 40))


@pytest.mark.parametrize("counted", ["all", "some", "none"])
@pytest.mark.parametrize("chunk", [None, 50])
def test_the_fused_loss_uses_it(counted, chunk, in_place):
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(4, 30, 16), torch.randn(101, 16), torch.randint(0, 101, (4, 30))
    if counted == "some":
        labels[torch.rand(4, 30) < 0.5] = IGNORED
    if counted == "none":
        labels[:] = IGNORED
    found = []
    for is_ours in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if is_ours:
            loss = linear_cross_entropy(h, w, labels, z_loss=0.01, chunk=chunk)
            assert loss.count == int((labels != IGNORED).sum())
            total = loss.total
        else:
            logits = (h @ w.t())[labels != IGNORED]
            total = F.cross_entropy(logits, labels[labels != IGNORED], reduction="sum")
            total = total + 0.01 * logits.logsumexp(-1).square().sum()
        (3 * total).backward()
        found.append((total.detach(), h.grad, w.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_chunks_are_alike_and_fill_the_room(monkeypatch):
    hidden, weight = torch.empty(0, 8, dtype=torch.bfloat16), torch.empty(50_304, 8)
    monkeypatch.setattr(fused, "_judges_in_place", lambda *_: True)
    rows = fused._chunk_rows(65_536, hidden, weight, is_plain=True)
    assert rows == 37 * fused.TILE and -(-65_536 // rows) == 7
    assert fused.CHUNK_BYTES_GPU * 0.8 < 2 * rows * len(weight) <= fused.CHUNK_BYTES_GPU
    assert fused._chunk_rows(0, hidden, weight, is_plain=True) == fused.TILE
    assert fused._chunk_rows(65_536, hidden, weight, is_plain=False) == fused.LEAST_ROWS


@pytest.mark.parametrize("counted", ["all", "some", "none"])
def test_who_says_how_many_labels_count_gets_the_same(counted):
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(60, 16), torch.randn(101, 16), torch.randint(0, 101, (60,))
    labels[:] = labels if counted == "all" else IGNORED
    labels[10:20] = 5 if counted == "some" else labels[10:20]
    found = []
    for count in (None, {"all": 60, "some": 10, "none": 0}[counted]):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = linear_cross_entropy(h, w, labels, counted=count)
        loss.total.backward()
        found.append((loss.total.detach(), loss.nats, loss.correct, torch.tensor(loss.count), h.grad, w.grad))
    torch.testing.assert_close(*found, rtol=0, atol=0)


# --- on a GPU ---


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ROUGH)
@pytest.mark.parametrize("vocab", [7, 1031, 8192, 50_257, 50_304])
def test_sums_and_slopes_are_torchs_on_a_gpu(vocab, dtype):
    check(300, vocab, dtype, 0.1, "cuda")


@pytest.mark.gpu
def test_the_last_of_many_rows_on_a_gpu():
    rows, vocab = 43_008, 50_304  # 2.16 billion logits: more than 32 bits count
    logits = torch.zeros(rows, vocab, dtype=torch.bfloat16, device="cuda")
    labels = torch.full((rows,), IGNORED, device="cuda")
    logits[-3:] = 4 * torch.randn(3, vocab, device="cuda")
    labels[-3:] = torch.tensor([0, 17, vocab - 1], device="cuda")
    wanted, wanted_slopes = reference(logits[-3:], labels[-3:])
    sums, slopes = judged(logits, labels)
    torch.testing.assert_close(sums.double(), wanted, rtol=1e-5, atol=1e-5)
    assert are_near(slopes[-3:], wanted_slopes, labels[-3:], ROUGH)
    assert not slopes[:-3].any()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gpu_adds_products_to_a_sum_in_float32(dtype):
    cuda = torch.zeros((), device="cuda").device
    assert fused._judges_in_place(cuda, dtype) and fused._adds_in_product(cuda, dtype)
    slopes, part = (torch.randn(700, size, device="cuda").to(dtype) for size in (1000, 64))
    sum_, exact = (torch.mm(slopes.T, part, out_dtype=torch.float32) for _ in range(2))
    place = sum_.data_ptr()
    torch.addmm(sum_, slopes.T, part, out_dtype=torch.float32, out=sum_)
    assert sum_.data_ptr() == place and sum_.dtype == torch.float32
    torch.testing.assert_close(exact.double(), slopes.T.double() @ part.double(), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(sum_, 2 * exact, rtol=1e-5, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("counted", ["all", "some"])
@pytest.mark.parametrize("chunk", [None, 700])
def test_the_fused_loss_on_a_gpu(counted, chunk):
    """In bfloat16 against float64 of the same rounded numbers.

    Logits and slopes rounded to bfloat16 leave an error of 0.0003, sums or results rounded to it would leave 0.0017: so it is
    with the hidden states' slopes where rows are left out.
    """
    torch.manual_seed(0)
    hidden, weight = torch.randn(3000, 64, device="cuda"), 0.1 * torch.randn(5003, 64, device="cuda")
    hidden, weight = hidden.bfloat16().float(), weight.bfloat16().float()
    labels = torch.randint(0, 5003, (3000,), device="cuda")
    if counted == "some":
        labels[torch.rand(3000, device="cuda") < 0.5] = IGNORED
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    with torch.autocast("cuda", torch.bfloat16):
        loss = linear_cross_entropy(h, w, labels, chunk=chunk)
    loss.total.backward()
    exact_h, exact_w = hidden.double().requires_grad_(), weight.double().requires_grad_()
    exact = F.cross_entropy(exact_h @ exact_w.t(), labels, reduction="sum")
    exact.backward()
    assert loss.total.item() == pytest.approx(exact.item(), rel=1e-5)
    assert loss.count == int((labels != IGNORED).sum())
    for ours, theirs, most in (
        (h.grad, exact_h.grad, 6e-4 if counted == "all" else 3e-3),
        (w.grad, exact_w.grad, 6e-4),
    ):
        assert (ours.double() - theirs).norm() < most * theirs.norm()
    assert (h.grad[labels == IGNORED] == 0).all()


@pytest.mark.gpu
@pytest.mark.parametrize("counted", ["all", "some", "none"])
def test_a_gpu_is_not_waited_for(counted):
    torch.manual_seed(0)
    ids = torch.randint(0, 300, (8, 64))
    batch = Batch(
        ids, {"all": ids, "some": ids.masked_fill(ids % 3 == 0, IGNORED), "none": ids * 0 + IGNORED}[counted]
    )
    hidden = torch.randn(8, 64, 32, device="cuda", requires_grad=True)
    weight = torch.randn(300, 32, device="cuda", requires_grad=True)

    def step(batch):
        with torch.autocast("cuda", torch.bfloat16):
            loss = linear_cross_entropy(hidden, weight, batch.labels, counted=batch.counted)
        loss.total.backward()
        return loss.count

    moved = batch.to("cuda")
    step(moved)  # kernels are built and tried
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert step(moved) == batch.counted
    finally:
        torch.cuda.set_sync_debug_mode("default")
