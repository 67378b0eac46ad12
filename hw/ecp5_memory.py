"""ECP5 block RAM by instance: what inference cannot do (output registers, no collision bypass)."""

from dataclasses import dataclass
from functools import cache

from amaranth import Cat, ClockSignal, Const, Instance, Module, Mux, Signal, Value
from amaranth.utils import ceil_log2

from hw.pipeline import delay

LANE_BITS = 9
SHAPES = ((36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192), (1, 16384))
"""(bits, words) that one 18 kbit block can take, shallow to deep."""
_ADDRESS_PINS = 14


@dataclass(frozen=True)
class Band:
    """Blocks side by side that hold words [start, start + words)."""

    bits: int
    words: int
    start: int


def bands(width: int, depth: int) -> tuple[Band, ...]:
    """Split a memory into the fewest blocks, then into the fewest bands (a read multiplexes bands).

    Deep bands come first, so that every band starts at a multiple of its own depth.
    """

    @cache
    def best(left: int, deepest: int) -> tuple[int, int, tuple[int, ...]]:
        if left <= 0:
            return 0, 0, ()
        choices = []
        for index in range(deepest + 1):
            bits, words = SHAPES[index]
            blocks, count, rest = best(left - words, index)
            choices.append((blocks - (-width // bits), count + 1, (index, *rest)))
        return min(choices)

    found, start = [], 0
    for index in best(depth, len(SHAPES) - 1)[2]:
        bits, words = SHAPES[index]
        found.append(Band(bits, words, start))
        start += words
    return tuple(found)


def connect(
    m: Module,
    write_address: Value,
    write_data: Value,
    write_enable: Value,
    read_address: Value,
    read_data: Value,
    depth: int,
    output_register: bool,
) -> None:
    """Build the memory behind these signals; a bit of `write_enable` is a granule of at most 9 bits, or the word."""
    granules = len(write_enable)
    granule_bits = len(write_data) // granules
    by_lane = granules > 1
    # With byte enables a granule takes a 9-bit lane, however narrow it is.
    layout = bands(LANE_BITS * granules, depth) if by_lane else bands(len(write_data), depth)
    if by_lane and any(band.bits < LANE_BITS for band in layout):
        layout = _lane_bands(granules, depth)
    outputs: list[tuple[Value, Value]] = []
    for number, band in enumerate(layout):
        selected = _in_band(write_address, band)
        lanes_of_block = band.bits // LANE_BITS
        words = []
        for block in range(-(-(LANE_BITS * granules if by_lane else len(write_data)) // band.bits)):
            name = f"band{number}_block{block}"
            if by_lane:
                lanes = range(block * lanes_of_block, min((block + 1) * lanes_of_block, granules))
                data = Cat(_pad(write_data.word_select(lane, granule_bits), LANE_BITS) for lane in lanes)
                enables = Cat(write_enable[lane] & selected for lane in lanes)
            else:
                data = write_data[block * band.bits:(block + 1) * band.bits]
                enables = (write_enable & selected).replicate(max(1, lanes_of_block))
            output = Signal(band.bits, name=f"{name}_output")
            _block(m, name, band, write_address, data, enables, read_address, output, output_register)
            if by_lane:
                words += [output.word_select(index, LANE_BITS)[:granule_bits] for index in range(len(lanes))]
            else:
                words.append(output)
        chosen = delay(m, _in_band(read_address, band), 2 if output_register else 1, name=f"band{number}_chosen")
        outputs.append((chosen, Cat(words)[:len(write_data)]))
    # The last band needs no comparison: addresses beyond the memory are not used.
    result = outputs[-1][1]
    for chosen, word in reversed(outputs[:-1]):
        result = Mux(chosen, word, result)
    m.d.comb += read_data.eq(result)


def _lane_bands(granules: int, depth: int) -> tuple[Band, ...]:
    """Bands of 2048 lanes and shallower; narrower shapes have no lane."""
    deep = SHAPES[2][1]
    whole, rest = divmod(depth, deep)
    found = [Band(LANE_BITS, deep, index * deep) for index in range(whole)]
    tail = bands(LANE_BITS * granules, rest) if rest else ()
    return (*found, *(Band(band.bits, band.words, band.start + whole * deep) for band in tail))


def _in_band(address: Value, band: Band) -> Value:
    low = ceil_log2(band.words)
    if low >= len(address):
        return Const(1, 1)
    return address[low:] == band.start >> low


def _pad(value: Value, width: int) -> Value:
    return Cat(value, Const(0, width - len(value)))


def _block(
    m: Module,
    name: str,
    band: Band,
    write_address: Value,
    data: Value,
    enables: Value,
    read_address: Value,
    output: Signal,
    output_register: bool,
) -> None:
    """One 18 kbit block; port A writes, port B reads."""
    data, enables = _pad(data, band.bits), _pad(enables, max(1, band.bits // LANE_BITS))
    register = "OUTREG" if output_register else "NOREG"
    low = ceil_log2(band.words)
    write = _pad(write_address[:low], low)
    read = Cat(Const(0, _ADDRESS_PINS - low), _pad(read_address[:low], low))
    clock = ClockSignal()
    one = Const(1)
    zero = Const(0)
    ports: dict[str, object] = {}
    if band.bits == 36:
        for index in range(36):
            # The read data pins of this cell are swapped by halves against the write data pins.
            ports[f"i_DI{index}"], ports[f"o_DO{index}"] = data[index], output[(index + 18) % 36]
        ports |= {f"i_ADW{index}": write[index] for index in range(low)}
        ports |= {f"i_BE{index}": enables[index] for index in range(4)}
        ports |= {f"i_ADR{index}": read[index] for index in range(_ADDRESS_PINS)}
        ports |= {f"i_CS{port}{index}": zero for port in "WR" for index in range(3)}
        m.submodules[name] = Instance(
            "PDPW16KD",
            p_DATA_WIDTH_W=36, p_DATA_WIDTH_R=36, p_REGMODE=register, p_GSR="DISABLED", p_RESETMODE="SYNC",
            i_CLKW=clock, i_CEW=enables.any(), i_CLKR=clock, i_CER=one, i_OCER=one, i_RST=zero,
            **ports,
        )
        return
    address = Cat(Const(0, _ADDRESS_PINS - low), write)
    if band.bits == 18:
        address = Cat(enables, address[2:])
    ports |= {f"i_DIA{index}": data[index] for index in range(band.bits)}
    ports |= {f"o_DOB{index}": output[index] for index in range(band.bits)}
    for index in range(_ADDRESS_PINS):
        ports[f"i_ADA{index}"], ports[f"i_ADB{index}"] = address[index], read[index]
    ports |= {f"i_CS{port}{index}": zero for port in "AB" for index in range(3)}
    m.submodules[name] = Instance(
        "DP16KD",
        p_DATA_WIDTH_A=band.bits, p_DATA_WIDTH_B=band.bits, p_REGMODE_A="NOREG", p_REGMODE_B=register,
        p_WRITEMODE_A="NORMAL", p_WRITEMODE_B="NORMAL", p_GSR="DISABLED", p_RESETMODE="SYNC",
        i_CLKA=clock, i_CEA=enables.any(), i_WEA=one, i_OCEA=one, i_RSTA=zero,
        i_CLKB=clock, i_CEB=one, i_WEB=zero, i_OCEB=one, i_RSTB=zero,
        **ports,
    )
