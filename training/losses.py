"""The losses of long-tailed learning, by the number of training images of each class."""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.settings import Loss

Vector = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]
LDAM_MARGIN = 0.5
"""Largest margin, that of the smallest class."""
LDAM_SCALE = 30.0
"""What the cosines of an LDAM head, and so its margins, are multiplied by."""
TEACHER_SHARE = 0.9
TEACHER_TEMPERATURE = 4.0
"""Share of the teacher in the loss, and what flattens its answers: as is usual on CIFAR-100 (Tian et al., "Contrastive
Representation Distillation", ICLR 2020). On its own training images a teacher is sure; only flattened do its answers
tell which wrong classes are near."""
_WEIGHTED = ("ins", "isns", "ens")


class LongTailLoss(nn.Module):
    """Cross-entropy of logits that are shifted by class, weighted by class, or both.

    Args:
        weights: of each class, `[classes]`, or None.
        offsets: what is added to the logits of every image, `[classes]`, or None.
        margins: what is taken from the true class's logit, `[classes]`, or None.
        weights_from: the epoch, counted from 0, in which the weights begin to count.
    """

    weights: Tensor | None
    offsets: Tensor | None
    margins: Tensor | None

    def __init__(
        self,
        weights: Vector | None = None,
        offsets: Vector | None = None,
        margins: Vector | None = None,
        weights_from: int = 0,
    ) -> None:
        super().__init__()
        self.weights_from = weights_from
        for name, values in (("weights", weights), ("offsets", offsets), ("margins", margins)):
            # They follow from the settings: a checkpoint doesn't need them.
            self.register_buffer(name, None if values is None else torch.from_numpy(values), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor, epoch: int) -> Tensor:
        """Return the mean loss of float logits `[batch, classes]` and int64 labels `[batch]`."""
        if self.offsets is not None:
            logits = logits + self.offsets
        if self.margins is not None:
            logits = logits - F.one_hot(labels, logits.shape[1]) * self.margins
        return F.cross_entropy(logits, labels, weight=self.weights if epoch >= self.weights_from else None)

    def prior(self, counts: Counts) -> npt.NDArray[np.float64]:
        """Return the class mix that probabilities of logits which were trained so stand for, `[classes]`, with sum 1.

        Weighted cross-entropy is least where probabilities are right for images that are drawn by count times weight;
        what was added to the logits is missing from them afterwards. Margins are not counted: they have no such mix.

        Args:
            counts: training images of each class, `[classes]`, each 1 or more.
        """
        mix = counts.astype(np.float64)
        if self.weights is not None:
            mix *= self.weights.cpu().numpy()
        if self.offsets is not None:
            mix /= np.exp(self.offsets.cpu().numpy().astype(np.float64))
        return np.asarray(mix / mix.sum(), dtype=np.float64)


def with_teacher(loss: Tensor, logits: Tensor, answers: Tensor) -> Tensor:
    """Mix the loss of the labels with the divergence (KL) of a student from its teacher, both at a temperature.

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015. The logits carry no offsets here: the teacher's
    answers are what they are to be without.

    Args:
        loss: of the labels, a scalar.
        logits: of the student, `[batch, classes]`.
        answers: of the teacher, probabilities `[batch, classes]`.
    """
    logarithms = torch.log(answers.clamp_min(torch.finfo(answers.dtype).tiny))
    wanted = torch.softmax(logarithms / TEACHER_TEMPERATURE, dim=1)
    got = torch.log_softmax(logits / TEACHER_TEMPERATURE, dim=1)
    # The square keeps the size of its gradients beside those of the labels.
    divergence = F.kl_div(got, wanted, reduction="batchmean") * TEACHER_TEMPERATURE**2
    return (1 - TEACHER_SHARE) * loss + TEACHER_SHARE * divergence


def make_loss(
    name: Loss, counts: Counts, factors: Vector | None, *, beta: float, tau: float, weights_from: int
) -> LongTailLoss:
    """Build the loss of one learner.

    Args:
        name: `ldam` expects a cosine head; its class weights are those of `ens`, as in its authors' LDAM-DRW.
        counts: training images of each class, `[classes]`, each 1 or more.
        factors: the user's own, on each class's weight, float32 `[classes]`, or None.
        beta: of `ens`.
        tau: strength of `logit_adjusted`.
        weights_from: the epoch in which class weights begin to count.
    """
    weights = class_weights("ens" if name == "ldam" else name, counts, beta)
    if factors is not None:
        weights = factors if weights is None else weights * factors
        weights = np.asarray(weights / weights.mean(), dtype=np.float32)
    return LongTailLoss(
        weights,
        log_prior(counts, tau) if name == "logit_adjusted" else None,
        ldam_margins(counts) if name == "ldam" else None,
        weights_from,
    )


def first_weighted_epoch(deferred: float, epochs: int) -> int:
    """Return the epoch, counted from 0, from which class weights count, where they wait for a share of the epochs.

    In the last one they always do: of one or two epochs, four fifths are rounded to all of them.
    """
    return min(round(deferred * epochs), epochs - 1)


def class_weights(name: Loss, counts: Counts, beta: float) -> Vector | None:
    """Return the weight of each class in the cross-entropy, with mean 1.

    Args:
        name: `ins` is 1/n, `isns` 1/sqrt(n), `ens` (1-beta)/(1-beta^n): the inverse effective number of samples of
            Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019.
        counts: training images of each class, `[classes]`, each 1 or more.
        beta: for `ens`, from 0 (no weights) to just under 1 (1/n).

    Returns:
        float32 `[classes]`, or None for a loss without weights.
    """
    if name not in _WEIGHTED:
        return None
    n = counts.astype(np.float64)
    formulas = {
        "ins": lambda: 1 / n,
        "isns": lambda: 1 / np.sqrt(n),
        "ens": lambda: (1 - beta) / (1 - beta**n),
    }
    weights: npt.NDArray[np.float64] = formulas[name]()
    return np.asarray(weights / weights.mean(), dtype=np.float32)


def log_prior(counts: Counts, tau: float) -> Vector:
    """Return what logit adjustment adds to the logits in training: tau * log(share of the class), float32 `[classes]`.

    Menon et al., "Long-tail learning via logit adjustment", ICLR 2021.
    """
    return np.asarray(tau * np.log(counts / counts.sum()), dtype=np.float32)


def ldam_margins(counts: Counts) -> Vector:
    """Return the margins of LDAM, proportional to n^(-1/4), on the scale of the logits: float32 `[classes]`.

    Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", NeurIPS 2019.
    """
    margins = counts.astype(np.float64) ** -0.25
    return np.asarray(LDAM_SCALE * LDAM_MARGIN * margins / margins.max(), dtype=np.float32)
