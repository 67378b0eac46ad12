"""Low-rank factors of a layer's weights under its quadratic loss: SVD, spatial split, Tucker-2 and CP.

Every method minimises sum_o g_o d_o H d_o^T over its factors, d the change of the weights, H the second moment of what
a channel reads and g the importance of each output channel. SVD does so exactly (Eckart-Young in the norm of H); the
others choose bases in the norm of a smaller matrix and solve for the last factor exactly. Each class answers for all
its ranks from one factorisation. Weights are float64 [rows, taps], taps = channels * prod(kernel).

Sources: whitening as in Wang et al., SVD-LLM, ICLR 2025, section 3.1; the split of kernels as in Jaderberg et al., BMVC
2014, section 2; Tucker-2 as in Kim et al., ICLR 2016, section 3.1; CP as in Lebedev et al., ICLR 2015, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from passes.solvers.hessian import damped

Tensor = NDArray[np.float64]

_FLOOR = 1e-12
"""Relative size below which an eigenvalue or an importance counts as this much: none of them may divide by 0."""
CP_NORM_MAX = 1e3
"""Largest norm of a CP component relative to the weights': beyond it components cancel each other."""


@dataclass(frozen=True, eq=False)
class Factors:
    """Tensors whose contraction approximates the weights.

    Attributes:
        expression: einsum of the tensors; its result is [rows, channels, kernel...], o and c its first two indices.
        tensors: float64, in the order in which a layer's input meets them.
    """

    expression: str
    tensors: tuple[Tensor, ...]

    def product(self) -> Tensor:
        """The weights that they stand for, float64 [rows, taps]."""
        full = np.einsum(self.expression, *self.tensors, optimize=True)
        return np.asarray(full.reshape(len(full), -1))

    @property
    def size(self) -> int:
        """Number of elements of all factors."""
        return sum(tensor.size for tensor in self.tensors)


@dataclass(frozen=True, eq=False)
class Svd:
    """rank outputs of the whole kernel, then a 1x1: the best product of two matrices in the norm of H.

    Attributes:
        weights: float64 [rows, taps].
        hessian: H, float64 [taps, taps], positive semidefinite; positive definite where taps < rows.
        importance: float64 [rows], not negative.
        kernel: Behind the channels.
    """

    weights: Tensor
    hessian: Tensor
    importance: Tensor
    kernel: tuple[int, ...] = ()

    @cached_property
    def losses(self) -> Tensor:
        """Loss at each rank 0..min(rows, taps), float64: the sum of the dropped squared singular values."""
        return _tail_sums(self._eigen[0])

    def factors(self, rank: int) -> Factors:
        """[rank, channels, positions] and [rows, rank]; the outputs of the first have mean square 1."""
        values, vectors = self._eigen
        sigma = np.sqrt(np.maximum(values[:rank], _FLOOR * max(values[0], np.finfo(float).tiny)))
        some = vectors[:, :rank]
        if self._is_row_side:
            row_scale = _row_scale(self.importance)[:, None]
            first, last = (some / sigma).T @ (row_scale * self.weights), some * sigma / row_scale
        else:
            root, inverse = _roots(self.hessian)
            first, last = some.T @ inverse, self.weights @ (root @ some)
        return Factors("rck,or->ock", (_by_channel(first, self.kernel), last))

    @property
    def _is_row_side(self) -> bool:
        rows, taps = self.weights.shape
        return rows <= taps

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        """Squared singular values, descending, and the singular vectors of the smaller side."""
        scaled = _row_scale(self.importance)[:, None] * self.weights
        if self._is_row_side:
            return _eigh(scaled @ self.hessian @ scaled.T)
        root, _ = _roots(self.hessian)
        return _eigh(root @ (scaled.T @ scaled) @ root)


@dataclass(frozen=True, eq=False)
class Spatial:
    """A k x 1 kernel, then a 1 x k, or across. The first is whitened by H's mean over the other; that solves for H.

    Attributes:
        weights: float64 [rows, channels * kh * kw].
        hessian: H, float64 [taps, taps], positive definite.
        importance: float64 [rows].
        kernel: (kh, kw).
        most: Largest rank that will be asked for.
        is_across: Whether the 1 x k kernel comes first.
    """

    weights: Tensor
    hessian: Tensor
    importance: Tensor
    kernel: tuple[int, int]
    most: int
    is_across: bool = False

    @cached_property
    def losses(self) -> Tensor:
        """Loss at each rank 0..most, float64."""
        return self._fit.losses(self.importance)[:: self._sides[1]]

    def factors(self, rank: int) -> Factors:
        """[rank, channels, kh] and [rows, rank, kw]; across [rank, channels, kw] and [rows, rank, kh]."""
        height, width = self._sides
        last = self._fit.solve(rank * width).reshape(len(self.weights), rank, width)
        expression = "rcw,orh->ochw" if self.is_across else "rch,orw->ochw"
        return Factors(expression, (self._basis[:rank].reshape(rank, -1, height), last))

    @property
    def _sides(self) -> tuple[int, int]:
        """Of the first kernel and of the other."""
        return self.kernel[::-1] if self.is_across else self.kernel

    @cached_property
    def _turned(self) -> tuple[Tensor, Tensor]:
        """Weights and H with the taps of the first kernel before those of the other."""
        if not self.is_across:
            return self.weights, self.hessian
        taps = np.arange(self.weights.shape[1]).reshape(-1, *self.kernel).transpose(0, 2, 1).ravel()
        return self.weights[:, taps], self.hessian[np.ix_(taps, taps)]

    @cached_property
    def _fit(self) -> _Fit:
        _, width = self._sides
        rows = np.einsum("rt,uv->rutv", self._basis, np.eye(width)).reshape(len(self._basis) * width, -1)
        return _Fit(rows, *self._turned)

    @cached_property
    def _basis(self) -> Tensor:
        """Orthonormal in the norm of H's mean over columns, most useful first; float64 [most, channels * kh]."""
        _, width = self._sides
        weights, hessian = self._turned
        root, inverse = _roots(_mean_over(hessian, width))
        scaled = _row_scale(self.importance)[:, None] * weights
        columns = scaled.reshape(len(scaled), -1, width).transpose(1, 0, 2).reshape(len(root), -1)
        _, vectors = _eigh(root @ (columns @ columns.T) @ root)
        return vectors[:, : self.most].T @ inverse


@dataclass(frozen=True, eq=False)
class Tucker:
    """1x1 to `inputs` channels, the kernel to `outputs` channels, 1x1 to all rows.

    The input basis is whitened by the Gram matrix of the channels; for it, output side and core are optimal under H.

    Attributes:
        weights: float64 [rows, channels * positions].
        hessian: H, float64 [taps, taps], positive definite.
        importance: float64 [rows].
        kernel: Behind the channels.
        most: Largest number of inputs that will be asked for.
    """

    weights: Tensor
    hessian: Tensor
    importance: Tensor
    kernel: tuple[int, ...]
    most: int

    def losses(self, inputs: int) -> Tensor:
        """Loss at `inputs` and each number of outputs 0..rows, float64."""
        missed = self._fit.losses(self.importance)[inputs * math.prod(self.kernel)]
        return missed + _tail_sums(self._outputs(inputs)[0])

    def factors(self, inputs: int, outputs: int) -> Factors:
        """[inputs, channels], [outputs, inputs, positions] and [rows, outputs]."""
        values, vectors = self._outputs(inputs)
        sigma = np.sqrt(np.maximum(values[:outputs], _FLOOR * max(values[0], np.finfo(float).tiny)))
        row_scale, some = _row_scale(self.importance)[:, None], vectors[:, :outputs]
        fitted = self._fit.solve(inputs * math.prod(self.kernel))
        core = ((some / sigma).T @ (row_scale * fitted)).reshape(outputs, inputs, -1)
        return Factors("qc,pqk,op->ock", (self._basis[:inputs], core, some * sigma / row_scale))

    def _outputs(self, inputs: int) -> tuple[Tensor, Tensor]:
        explained = self._fit.explained[: inputs * math.prod(self.kernel)]
        scaled = explained * _row_scale(self.importance)
        return _eigh(scaled.T @ scaled)

    @cached_property
    def _fit(self) -> _Fit:
        positions = math.prod(self.kernel)
        rows = np.einsum("qc,uv->qucv", self._basis, np.eye(positions)).reshape(len(self._basis) * positions, -1)
        return _Fit(rows, self.weights, self.hessian)

    @cached_property
    def _basis(self) -> Tensor:
        positions = math.prod(self.kernel)
        root, inverse = _roots(_mean_over(self.hessian, positions))
        scaled = _row_scale(self.importance)[:, None] * self.weights
        unfolded = scaled.reshape(len(scaled), -1, positions).transpose(1, 0, 2).reshape(len(root), -1)
        _, vectors = _eigh(root @ (unfolded @ unfolded.T) @ root)
        return vectors[:, : self.most].T @ inverse


@dataclass(frozen=True, eq=False)
class _Fit:
    """Least squares of the weights on the first rows of a basis, for every number of rows at once.

    The leading block of a Cholesky factor is the factor of the leading block, so that one factorisation serves all.
    """

    basis: Tensor
    weights: Tensor
    hessian: Tensor

    @cached_property
    def explained(self) -> Tensor:
        """Coordinates of the weights on the basis made orthonormal, float64 [basis, rows]."""
        return np.asarray(np.linalg.solve(self._lower, self.basis @ (self.hessian @ self.weights.T)))

    def losses(self, importance: Tensor) -> Tensor:
        """Loss with the first 0..n rows of the basis, float64 [n + 1]."""
        total = np.einsum("rt,rt->r", self.weights @ self.hessian, self.weights) @ importance
        steps = (self.explained**2) @ importance
        return np.asarray(np.maximum(total - np.concatenate([[0.0], np.cumsum(steps)]), 0.0))

    def solve(self, count: int) -> Tensor:
        """Best coefficients on the first `count` rows of the basis, float64 [rows, count]."""
        return np.asarray(np.linalg.solve(self._lower[:count, :count].T, self.explained[:count]).T)

    @cached_property
    def _lower(self) -> Tensor:
        gram = self.basis @ self.hessian @ self.basis.T
        try:
            return np.asarray(np.linalg.cholesky(gram))
        except np.linalg.LinAlgError:
            return np.asarray(np.linalg.cholesky(damped(gram)))


def cp(
    weights: Tensor,
    hessian: Tensor,
    importance: Tensor,
    kernel: tuple[int, ...],
    rank: int,
    rounds: int = 50,
    tolerance: float = 1e-5,
    norm_max: float = CP_NORM_MAX,
) -> Factors:
    """1x1 to `rank` channels, a depthwise kernel, 1x1 to all rows: alternating least squares.

    Channels are whitened by their Gram matrix. It starts from the SVD of each unfolding, and stops when the error no
    longer falls by `tolerance` of itself, or before a component grows beyond `norm_max` times the weights.

    Args:
        weights: float64 [rows, taps].
        hessian: H, float64 [taps, taps].
        importance: float64 [rows].
        kernel: Behind the channels.
        rank: Number of components.
        rounds: At most so many sweeps over the factors.
        tolerance: Relative.
        norm_max: Norm of a component relative to that of the weights.

    Returns:
        [rank, channels], [rank, positions] and [rows, rank].
    """
    positions = math.prod(kernel)
    root, inverse = _roots(_mean_over(hessian, positions))
    row_scale = _row_scale(importance)[:, None]
    target = np.einsum("ock,cd->odk", (row_scale * weights).reshape(len(weights), -1, positions), root)
    norm = float(np.linalg.norm(target))
    factors = [_leading(target, axis, rank) for axis in (1, 2, 0)]
    best, error = factors, math.inf
    for _ in range(rounds):
        factors = _cp_round(target, factors)
        sizes = np.prod([np.linalg.norm(f, axis=0) for f in factors], axis=0)
        now = float(np.linalg.norm(target - np.einsum("cr,kr,or->ock", *factors, optimize=True)))
        if not np.isfinite(now) or sizes.max(initial=0.0) > norm_max * norm or now > (1 - tolerance) * error:
            break
        best, error = factors, now
    channels, taps, rows = best
    spread = np.linalg.norm(taps, axis=0) * np.linalg.norm(channels, axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    size = np.linalg.norm(channels, axis=0)
    size = np.where(size > 0, size, 1.0)
    tensors = ((channels / size).T @ inverse, (taps * size / spread).T, rows * spread / row_scale)
    return Factors("rc,rk,or->ock", tensors)


def _cp_round(target: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
    """Each factor in turn, [size, rank], least squares with the others fixed."""
    names, result = ("c", "k", "o"), list(factors)
    for index in range(3):
        others = [(names[i], result[i]) for i in range(3) if i != index]
        (a, left), (b, right) = others
        gram = (left.T @ left) * (right.T @ right)
        product = np.einsum(f"ock,{a}r,{b}r->{names[index]}r", target, left, right, optimize=True)
        size = float(np.trace(gram)) / len(gram)
        ridge = _FLOOR * size * np.eye(len(gram)) if size > 0 else np.eye(len(gram))
        result[index] = np.linalg.solve(gram + ridge, product.T).T
    return result


def _leading(target: Tensor, axis: int, rank: int) -> Tensor:
    """The leading singular vectors of an unfolding, continued by fixed cosines where there are too few."""
    unfolded = np.moveaxis(target, axis, 0).reshape(target.shape[axis], -1)
    vectors = _eigh(unfolded @ unfolded.T)[1][:, :rank]
    missing = rank - vectors.shape[1]
    if missing <= 0:
        return vectors
    grid = np.outer(np.arange(len(vectors)) + 0.5, np.arange(missing) + 0.5)
    return np.concatenate([vectors, np.cos(grid * np.pi / len(vectors) * np.sqrt(2))], axis=1)


def polish(
    factors: Factors, weights: Tensor, hessian: Tensor, importance: Tensor, sweeps: int = 2, steps: int = 8
) -> Factors:
    """Conjugate gradients on one factor after the other under the full H; the loss never grows.

    Args:
        factors: To start from.
        weights: float64 [rows, taps].
        hessian: H, float64 [taps, taps].
        importance: float64 [rows].
        sweeps: Over all factors.
        steps: Of conjugate gradients for each factor.
    """
    tensors = list(factors.tensors)
    for _ in range(sweeps):
        for index in reversed(range(len(tensors))):
            tensors[index] = _descended(
                replace(factors, tensors=tuple(tensors)), index, weights, hessian, importance, steps
            )
    return replace(factors, tensors=tuple(tensors))


def _descended(
    factors: Factors, index: int, weights: Tensor, hessian: Tensor, importance: Tensor, steps: int
) -> Tensor:
    inputs, output = factors.expression.split("->")
    names = inputs.split(",")
    full = np.einsum(factors.expression, *factors.tensors, optimize=True).shape
    others = [tensor for i, tensor in enumerate(factors.tensors) if i != index]
    adjoint = ",".join([output, *(name for i, name in enumerate(names) if i != index)]) + f"->{names[index]}"

    def expanded(part: Tensor) -> Tensor:
        tensors = [part if i == index else tensor for i, tensor in enumerate(factors.tensors)]
        return np.asarray(np.einsum(factors.expression, *tensors, optimize=True).reshape(len(weights), -1))

    def pulled(delta: Tensor) -> Tensor:
        weighted = (importance[:, None] * delta) @ hessian
        return np.asarray(np.einsum(adjoint, weighted.reshape(full), *others, optimize=True))

    result = factors.tensors[index].copy()
    residual = pulled(weights - expanded(result))
    direction, size = residual, float((residual**2).sum())
    start = size
    for _ in range(steps):
        if size <= _FLOOR**2 * start or size == 0:
            break
        image = pulled(expanded(direction))
        curvature = float((direction * image).sum())
        if curvature <= 0:
            break
        result = result + size / curvature * direction
        residual = residual - size / curvature * image
        size, before = float((residual**2).sum()), size
        direction = residual + size / before * direction
    return np.asarray(result)


def _row_scale(importance: Tensor) -> Tensor:
    """Square roots of the importance, none of them 0."""
    largest = float(importance.max(initial=0.0))
    return np.asarray(np.sqrt(np.maximum(importance, _FLOOR * largest) if largest > 0 else np.ones(len(importance))))


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, descending and not negative, and their vectors with a fixed sign."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0, keepdims=True), axis=0)
    return values, vectors * np.where(largest < 0, -1.0, 1.0)


def _roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric square root and its inverse."""
    values, vectors = _eigh(matrix)
    largest = float(values[0]) if len(values) and values[0] > 0 else 1.0
    root = np.sqrt(np.maximum(values, _FLOOR * largest))
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T


def _mean_over(hessian: Tensor, positions: int) -> Tensor:
    """The mean of H's blocks over the last `positions` of every tap: what the rest of a tap sees on average."""
    rest = len(hessian) // positions
    return np.asarray(np.einsum("iuju->ij", hessian.reshape(rest, positions, rest, positions)) / positions)


def _by_channel(matrix: Tensor, kernel: tuple[int, ...]) -> Tensor:
    return matrix.reshape(len(matrix), -1, math.prod(kernel))


def _tail_sums(values: Tensor) -> Tensor:
    """Sums of values[r:] for every r, the small ones added first."""
    return np.concatenate([np.cumsum(values[::-1])[::-1], [0.0]])
