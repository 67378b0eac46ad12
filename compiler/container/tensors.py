"""The bytes of tensors to one stream of coded integers and one of raw bytes, and back; what follows is not stored.

Both directions go through the tensors in the same order: the single scales, the zero points, the scales of weights,
the scales of biases, the biases, the rest. So everything that a tensor is derived from is known before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compiler.container import arrays
from compiler.container.arrays import Integers
from compiler.container.errors import damaged
from compiler.container.roles import Assigned, Bank, Layer, Part, Role
from compiler.container.wire import TYPES, Class, Tensor
from passes import scale_grid
from passes.coding.symbols import Decoder, Encoder

INT32_MAX = (1 << 31) - 1
BIAS_EXPONENT = 5
"""A bias is most often a multiple of its output's scale / 2**5; the container keeps the difference to this."""
BIAS_EXPONENT_MAX = 12
SHIFT_USUAL = 24
LARGE_BYTES = 1 << 20
"""Of the tensors of a file: in a larger one few symbols are coded one by one."""
_LATER = (Role.WEIGHT_SCALE, Role.BIAS_SCALE, Role.BIAS)


@dataclass(frozen=True)
class Item:
    """One tensor on its way.

    Attributes:
        number: Its place in the skeleton.
    """

    number: int
    tensor: Tensor
    assigned: Assigned


def items_of(tensors: list[Tensor], assigned: list[Assigned]) -> list[Item]:
    return [Item(n, t, a) for n, (t, a) in enumerate(zip(tensors, assigned, strict=True))]


def _group(items: list[Item], role: Role) -> list[Item]:
    return [item for item in items if item.assigned.role is role]


def _single(items: list[Item]) -> list[Item]:
    """The tensors that are coded one by one, in the order of coding."""
    derived = [item for role in _LATER for item in _group(items, role)]
    return [*derived, *(item for item in items if item.assigned.role in (Role.INTEGERS, Role.WORDS))]


def _moded(items: list[Item]) -> list[Item]:
    """The tensors that have a choice of methods, in the order of coding."""
    return [item for item in _single(items) if item.assigned.role is not Role.WORDS]


@dataclass(frozen=True, eq=False)
class _Scales:
    """What a layer's tensors are derived from: exact doubles of float32 values; None where it is not known."""

    source: float | None
    target: float | None
    weight: NDArray[np.float64] | None


class _Known:
    """The scales that have been coded so far."""

    def __init__(self, items: list[Item]) -> None:
        self._items = items
        self._values: dict[int, NDArray[np.float64]] = {}

    def add(self, item: Item, raw: bytes) -> None:
        if item.assigned.role in (Role.SCALAR, Role.WEIGHT_SCALE):
            self._values[item.number] = np.frombuffer(raw, "<f4").astype(np.float64)

    def of(self, layer: Layer | None) -> _Scales:
        assert layer is not None
        return _Scales(self._scalar(layer.source), self._scalar(layer.target), self._positive(layer.weight))

    def _scalar(self, number: int) -> float | None:
        values = self._positive(number)
        return None if values is None or values.size != 1 else float(values[0])

    def _positive(self, number: int) -> NDArray[np.float64] | None:
        """None for anything but positive normal numbers: with these the arithmetic below cannot go wrong."""
        values = self._values.get(number)
        good = values is not None and bool(np.all((values >= 2.0**-126) & (values < 2.0**127)))
        return values if good else None


# What is derived. Products and quotients of doubles, rounded to nearest even.


def _bias_scale(scales: _Scales, elements: int) -> bytes | None:
    """float32(s_x) * float32(s_w), rounded to float32, or None where something is missing or does not fit."""
    if scales.source is None or scales.weight is None or scales.weight.size not in (1, elements):
        return None
    product = np.broadcast_to(scales.weight * scales.source, (elements,))
    fits = bool(np.all((product >= 2.0**-126) & (product < 2.0**127)))
    return product.astype("<f4").tobytes() if fits else None


def _bias_unit(scales: _Scales, elements: int) -> NDArray[np.float64] | None:
    """s_x * s_w of every channel, exact in double."""
    if scales.source is None or scales.weight is None or scales.weight.size not in (1, elements):
        return None
    return np.broadcast_to(scales.weight * scales.source, (elements,))


def _bias_codes(counts: Integers, exponent: int, target: float, unit: NDArray[np.float64]) -> Integers | None:
    """round half to even(n * step / (s_x * s_w)), step = s_y / 2**exponent; None where a code is not within int32."""
    step = math.ldexp(target, -exponent)
    codes = np.rint(counts * step / unit)
    return codes.astype(np.int64) if bool(np.all(np.abs(codes) <= INT32_MAX)) else None


def _bias_steps(codes: Integers, scales: _Scales) -> tuple[int, Integers] | None:
    """The smallest exponent, and the counts, of which `_bias_codes` makes exactly `codes`; None if there is none."""
    unit = _bias_unit(scales, codes.size)
    if unit is None or scales.target is None:
        return None
    for exponent in range(BIAS_EXPONENT_MAX + 1):
        counts = np.rint(codes * unit / math.ldexp(scales.target, -exponent))
        if np.abs(counts).max() > INT32_MAX:
            return None
        whole = counts.astype(np.int64)
        made = _bias_codes(whole, exponent, scales.target, unit)
        if made is not None and np.array_equal(made, codes):
            return exponent, whole
    return None


def _is_large(items: list[Item]) -> bool:
    """Whether speed matters more than what the first symbols teach."""
    return sum(item.tensor.bytes for item in items) > LARGE_BYTES


# Encoding


class TensorWriter:
    """Codes the tensors of one file.

    Attributes:
        raw: Bytes that are kept as they are.
    """

    def __init__(self, items: list[Item], raws: list[bytes]) -> None:
        self._items, self._raws = items, raws
        self._encoder, self._known = Encoder(is_large=_is_large(items)), _Known(items)
        self._median = 0
        self._settings: list[int] = []
        self.raw = bytearray()

    def run(self) -> bytes:
        """The stream of coded integers."""
        for item in self._items:
            self._known.add(item, self._raws[item.number])
        plans = {item.number: self._plan(item) for item in _moded(self._items)}
        self._write([mode for mode, _ in plans.values()], Bank.SETTINGS)
        self._words(b"".join(self._raws[item.number] for item in _group(self._items, Role.SCALAR)), 4, None)
        self._write([self._integers(item)[0] for item in _group(self._items, Role.ZERO_POINT)], Bank.SETTINGS)
        for item in _single(self._items):
            if item.number in plans:
                plans[item.number][1]()
            else:
                self._words(self._raws[item.number], TYPES[item.tensor.data_type].bits // 8, item.tensor)
        return self._encoder.finish()

    def _plan(self, item: Item) -> tuple[int, Callable[[], None]]:
        """The method of a tensor, and how to write it."""
        match item.assigned.role:
            case Role.WEIGHT_SCALE:
                return self._plan_weight_scale(item)
            case Role.BIAS_SCALE:
                scales = self._known.of(item.assigned.layer)
                if _bias_scale(scales, item.tensor.elements) == self._raws[item.number]:
                    return 0, lambda: None
                return 1, lambda: self._words(self._raws[item.number], 4, item.tensor)
            case Role.BIAS:
                return self._plan_bias(item)
        return self._plan_integers(item)

    def _plan_weight_scale(self, item: Item) -> tuple[int, Callable[[], None]]:
        scales = self._known.of(item.assigned.layer)
        if scales.source is not None and scales.target is not None and scales.weight is not None:
            both = (scales.source, scales.target)
            steps = [scale_grid.step_of(float(scale), *both) for scale in scales.weight]
            if None not in steps:
                return 0, lambda: self._centred([step for step in steps if step is not None], Bank.SCALE_STEPS)
            factors = [scale_grid.factor_of(float(scale), *both) for scale in scales.weight]
            if None not in factors:
                return 1, lambda: self._factors([factor for factor in factors if factor is not None])
        return 2, lambda: self._words(self._raws[item.number], 4, item.tensor)

    def _plan_bias(self, item: Item) -> tuple[int, Callable[[], None]]:
        codes, scales = self._integers(item), self._known.of(item.assigned.layer)
        if (found := _bias_steps(codes, scales)) is not None:
            return 0, lambda: self._steps(*found)
        return 1, lambda: self._write(codes, Bank.BIASES)

    def _plan_integers(self, item: Item) -> tuple[int, Callable[[], None]]:
        raw, values = self._raws[item.number], self._integers(item)
        is_whole = arrays.from_integers(values, item.tensor.data_type) == raw
        if not is_whole or (values.size and max(int(values.max()), -int(values.min())) > INT32_MAX):
            return 1, lambda: self.raw.extend(raw)
        return 0, lambda: self._array(item, self._integers(item))  # not `values`: all at once would be too large

    def _integers(self, item: Item) -> Integers:
        return arrays.to_integers(self._raws[item.number], item.tensor.data_type, item.tensor.elements)

    def _array(self, item: Item, values: Integers) -> None:
        tensor, offset = item.tensor, 0
        if TYPES[tensor.data_type].coded is Class.UNSIGNED:
            found, counts = np.unique(values, return_counts=True)
            offset = int(found[counts.argmax()])
            self._setting(offset)
        shaped = (values - offset if offset else values).reshape(arrays.rows_of(tensor))
        self._encoder.write(shaped, int(item.assigned.bank), arrays.kernel_of(tensor))

    def _steps(self, exponent: int, counts: Integers) -> None:
        self._setting(exponent - BIAS_EXPONENT)
        self._write(counts, Bank.BIASES)

    def _centred(self, values: list[int], bank: Bank) -> None:
        median = sorted(values)[len(values) // 2]
        self._setting(median - self._median)
        self._median = median
        self._write([value - median for value in values], bank)

    def _factors(self, factors: list[tuple[int, int]]) -> None:
        self._centred([SHIFT_USUAL - shift for _, shift in factors], Bank.SCALE_STEPS)
        self.raw.extend(np.array([multiplier for multiplier, _ in factors], "<u2").tobytes())

    def _words(self, raw: bytes, width: int, tensor: Tensor | None) -> None:
        if not raw:
            return
        planes = arrays.to_planes(raw, width)
        coded = [_is_compressible(plane) for plane in planes]
        self._setting(sum(1 << index for index, is_coded in enumerate(coded) if is_coded))
        for plane, is_coded in zip(planes, coded, strict=True):
            if not is_coded:
                self.raw.extend(plane.tobytes())
                continue
            offset = int(np.bincount(plane).argmax())
            self._setting(offset)
            values = (plane.astype(np.int64) - offset + 128 & 255) - 128
            shape = (1, plane.size) if tensor is None else arrays.rows_of(tensor)
            self._encoder.write(values.reshape(shape), int(Bank.WORDS))

    def _setting(self, value: int) -> None:
        self._write([value], Bank.SETTINGS)

    def _write(self, values: list[int] | Integers, bank: Bank) -> None:
        column = np.asarray(values, np.int64).reshape(1, -1)
        self._encoder.write(column, int(bank))


def _is_compressible(plane: NDArray[np.uint8]) -> bool:
    """Whether coding a plane of bytes is worth it, by its entropy and the states that must be learned."""
    counts = np.bincount(plane)
    shares = counts[counts > 0] / plane.size
    entropy_bytes = -float((shares * np.log2(shares)).sum()) * plane.size / 8
    return entropy_bytes + 0.75 * shares.size + 1 < 0.99 * plane.size


# Decoding


class TensorReader:
    """Reads the tensors of one file.

    Args:
        items: Of its skeleton.
        coded: What TensorWriter.run returned.
        raw: Its raw bytes.

    Raises:
        ContainerError, CodingError: The streams do not fit the skeleton.
    """

    def __init__(self, items: list[Item], coded: bytes, raw: bytes) -> None:
        self._items, self._raw, self._decoder = items, raw, Decoder(coded, is_large=_is_large(items))
        self._known = _Known(items)
        self._found: dict[int, bytes] = {}
        self._median = self._taken = 0

    @property
    def position(self) -> int:
        """Bytes of both streams that were needed so far."""
        return self._decoder.position + self._taken

    def run(self, tell: Callable[[Part], None]) -> list[bytes]:
        """The raw bytes of every tensor, in the order of the skeleton.

        Args:
            tell: Called behind every read with the part that it counts as.
        """
        modes = self._read_modes()
        tell(Part.GRAPH)
        self._read_scalars()
        self._read_zero_points()
        tell(Part.SCALES)
        for item in _single(self._items):
            self._put(item, self._read(item, next(modes) if item.assigned.role is not Role.WORDS else 0))
            tell(item.assigned.part)
        self._decoder.finish()
        if self._taken != len(self._raw):
            raise damaged("bytes of the raw part are left over")
        return [self._found[number] for number in range(len(self._items))]

    def _put(self, item: Item, raw: bytes) -> None:
        self._found[item.number] = raw
        self._known.add(item, raw)

    def _read_modes(self) -> Iterator[int]:
        modes = self._column(len(_moded(self._items)), Bank.SETTINGS)
        return iter(modes.tolist())

    def _read_scalars(self) -> None:
        group = _group(self._items, Role.SCALAR)
        raw = self._words(len(group), 4, None)
        for index, item in enumerate(group):
            self._put(item, raw[4 * index : 4 * index + 4])

    def _read_zero_points(self) -> None:
        group = _group(self._items, Role.ZERO_POINT)
        for item, value in zip(group, self._column(len(group), Bank.SETTINGS), strict=True):
            self._put(item, self._as_raw(item.tensor, np.array([value])))

    def _read(self, item: Item, mode: int) -> bytes:
        tensor = item.tensor
        match item.assigned.role, mode:
            case (Role.WEIGHT_SCALE, 0 | 1):
                return self._weight_scale(item, mode)
            case (Role.BIAS_SCALE, 0):
                made = _bias_scale(self._known.of(item.assigned.layer), tensor.elements)
                if made is None:
                    raise damaged("a bias scale does not follow from the other scales")
                return made
            case (Role.BIAS, 0):
                return self._bias(item)
            case (Role.BIAS, 1):
                return self._as_raw(tensor, self._column(tensor.elements, Bank.BIASES))
            case (Role.INTEGERS, 0):
                return self._array(item)
            case (Role.INTEGERS, 1):
                return self._take(tensor.bytes)
            case (Role.WEIGHT_SCALE, 2) | (Role.BIAS_SCALE, 1) | (Role.WORDS, 0):
                return self._words(tensor.elements, TYPES[tensor.data_type].bits // 8, tensor)
        raise damaged(f"method {mode} does not exist for a tensor that is {item.assigned.role.value}")

    def _weight_scale(self, item: Item, mode: int) -> bytes:
        scales, elements = self._known.of(item.assigned.layer), item.tensor.elements
        if scales.source is None or scales.target is None:
            raise damaged("a weight scale does not follow from the other scales")
        source, target, steps = scales.source, scales.target, self._centred(elements)
        try:
            if mode == 0:
                made = [scale_grid.weight_scale(step, source, target) for step in steps]
            else:
                multipliers = np.frombuffer(self._take(2 * elements), "<u2").tolist()
                pairs = zip(multipliers, [SHIFT_USUAL - step for step in steps], strict=True)
                made = [_checked_factor(multiplier, shift, source, target) for multiplier, shift in pairs]
        except ValueError as error:
            raise damaged(str(error)) from error
        return np.array(made, "<f4").tobytes()

    def _bias(self, item: Item) -> bytes:
        scales, elements = self._known.of(item.assigned.layer), item.tensor.elements
        exponent = self._setting() + BIAS_EXPONENT
        unit = _bias_unit(scales, elements)
        if unit is None or scales.target is None or not 0 <= exponent <= BIAS_EXPONENT_MAX:
            raise damaged("a bias does not follow from the scales")
        codes = _bias_codes(self._column(elements, Bank.BIASES), exponent, scales.target, unit)
        if codes is None:
            raise damaged("a bias is not within int32")
        return self._as_raw(item.tensor, codes)

    def _array(self, item: Item) -> bytes:
        tensor = item.tensor
        offset = self._setting() if TYPES[tensor.data_type].coded is Class.UNSIGNED else 0
        shape, kernel = arrays.rows_of(tensor), arrays.kernel_of(tensor)
        values = self._decoder.read(*shape, int(item.assigned.bank), kernel)
        return self._as_raw(tensor, values.ravel().astype(np.int64) + offset)

    def _centred(self, count: int) -> list[int]:
        self._median += self._setting()
        return [value + self._median for value in self._column(count, Bank.SCALE_STEPS).tolist()]

    def _words(self, count: int, width: int, tensor: Tensor | None) -> bytes:
        if not count:
            return b""
        mask = self._setting()
        if not 0 <= mask < 1 << width:
            raise damaged(f"mask {mask} of {width} planes")
        planes = np.empty((width, count), np.uint8)
        for index in range(width):
            if not mask >> index & 1:
                planes[index] = np.frombuffer(self._take(count), np.uint8)
                continue
            offset = self._setting()
            shape = (1, count) if tensor is None else arrays.rows_of(tensor)
            values = self._decoder.read(*shape, int(Bank.WORDS)).ravel()
            if not 0 <= offset <= 255 or int(values.min()) < -128 or int(values.max()) > 127:
                raise damaged("a byte of a plane is out of range")
            planes[index] = values + offset & 255
        return arrays.from_planes(planes)

    def _setting(self) -> int:
        return int(self._column(1, Bank.SETTINGS)[0])

    def _column(self, count: int, bank: Bank) -> Integers:
        return self._decoder.read(1, count, int(bank)).ravel().astype(np.int64)

    def _take(self, count: int) -> bytes:
        if self._taken + count > len(self._raw):
            raise damaged("the raw part is too short")
        self._taken += count
        return self._raw[self._taken - count : self._taken]

    def _as_raw(self, tensor: Tensor, values: Integers) -> bytes:
        kind = TYPES[tensor.data_type]
        low = -(1 << kind.bits - 1) if kind.coded is Class.SIGNED else 0
        high = low + (1 << kind.bits) - 1
        if values.size and not (low <= int(values.min()) and int(values.max()) <= high):
            raise damaged(f"an integer does not fit the {kind.bits} bits of its tensor")
        return arrays.from_integers(values, tensor.data_type)


def _checked_factor(multiplier: int, shift: int, source: float, target: float) -> np.float32:
    if not (multiplier & 1 and 0 <= shift <= scale_grid.SHIFT_MAX):
        raise damaged(f"{multiplier} / 2**{shift} is no factor of the machine")
    return scale_grid.scale_of_factor(multiplier, shift, source, target)
