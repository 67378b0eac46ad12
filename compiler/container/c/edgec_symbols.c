#include "edgec_symbols.h"

#include <string.h>

enum { ONE = 1 << 16, LIMIT = 2047, LEAST = 22, STATE_BYTES = 4 };

/* 65536 / (1 + exp(-x)) at x = -8, -7.75 .. 8 */
static const uint16_t knots[65] = {
    22,    28,    36,    47,    60,    77,    98,    126,   162,   208,   267,   342,   439,   562,   720,   922,
    1179,  1506,  1921,  2446,  3108,  3938,  4971,  6249,  7812,  9702,  11955, 14595, 17625, 21025, 24743, 28693,
    32768, 36843, 40793, 44511, 47911, 50941, 53581, 55834, 57724, 59287, 60565, 61598, 62428, 63090, 63615, 64030,
    64357, 64614, 64816, 64974, 65097, 65194, 65269, 65328, 65374, 65410, 65438, 65459, 65476, 65489, 65500, 65508,
    65514};

/* Shift and division that round down, also below zero. */
static int64_t shifted(int64_t value, int bits)
{
    return value >= 0 ? value >> bits : ~(~value >> bits);
}

static int64_t divided(int64_t value, int64_t by)
{
    return value >= 0 ? value / by : -1 - (-1 - value) / by;
}

static int64_t clamped(int64_t value, int64_t least, int64_t most)
{
    return value < least ? least : value > most ? most : value;
}

static int64_t magnitude(int64_t value)
{
    return value < 0 ? -value : value;
}

static int length_of(uint64_t value)
{
    int bits = 0;
    for (; value; value >>= 1)
        bits++;
    return bits;
}

/* Probabilities */

static uint32_t squash(int64_t stretch)
{
    unsigned place = (unsigned)(clamped(stretch, -LIMIT, LIMIT) + LIMIT + 1);
    uint32_t knot = knots[place >> 6];
    return knot + ((knots[(place >> 6) + 1] - knot) * (place & 63) >> 6);
}

/* Of each sixteen probabilities the least stretch whose squash reaches their middle. */
static void fill_stretches(int16_t *table)
{
    int stretch = -LIMIT;
    for (uint32_t i = 0; i < 4096; i++) {
        while (stretch < LIMIT && squash(stretch) < 16 * i + 8)
            stretch++;
        table[i] = (int16_t)stretch;
    }
}

static void adapt(edgec_slot *slot, int bit)
{
    uint32_t rate = 2u * ONE / (2u * slot->count + 3), p = slot->probability;
    p = bit ? p + ((ONE - p) * rate >> 16) : p - (p * rate >> 16);
    slot->probability = (uint16_t)p;
    if (slot->count < 255)
        slot->count++;
}

static void clear(edgec_slot *slots, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        slots[i].probability = ONE / 2;
        slots[i].count = 0;
    }
}

/* The range coder */

static void bits_open(edgec_bits *bits, const uint8_t *data, size_t size)
{
    memset(bits, 0, sizeof *bits);
    fill_stretches(bits->stretches);
    bits->data = data;
    bits->size = size;
    bits->high = 0xFFFFFFFFu;
    for (; bits->next < STATE_BYTES; bits->next++)
        bits->value = bits->value << 8 | (bits->next < size ? data[bits->next] : 0u);
}

static int bits_code(edgec_bits *bits, uint32_t probability)
{
    uint32_t middle = bits->low + (uint32_t)((uint64_t)(bits->high - bits->low) * probability >> 16);
    int bit = bits->value <= middle;
    if (bit)
        bits->high = middle;
    else
        bits->low = middle + 1;
    while (!((bits->low ^ bits->high) >> 24)) {
        if (bits->next >= bits->size + STATE_BYTES) {
            bits->failed = 1;
            break;
        }
        bits->low <<= 8;
        bits->high = bits->high << 8 | 0xFFu;
        bits->value = bits->value << 8 | (bits->next < bits->size ? bits->data[bits->next] : 0u);
        bits->next++;
    }
    return bit;
}

static edgec_symbols_status bits_finish(const edgec_bits *bits)
{
    if (bits->failed)
        return EDGEC_SYMBOLS_SHORT;
    return bits->next < bits->size ? EDGEC_SYMBOLS_LEFT : EDGEC_SYMBOLS_OK;
}

/* Mixing: decodes a bit, or, where one is given, learns it */

static int mix(edgec_bits *bits, edgec_slot *slots, const size_t *chosen, int64_t *weights, int inputs, int rate,
               int given)
{
    int64_t stretches[EDGEC_TEXT_INPUTS], total = 0;
    uint16_t first = slots[chosen[0]].probability;
    for (int i = 0; i < inputs; i++) {
        edgec_slot *slot = &slots[chosen[i]];
        if (!slot->count)
            slot->probability = first;
        stretches[i] = shifted((int64_t)bits->stretches[slot->probability >> 4] * (256 * (slot->count + 1) / (slot->count + 3)), 8);
        total += weights[i] * stretches[i];
    }
    uint32_t probability = squash(shifted(total, 16));
    int bit = given >= 0 ? given : bits_code(bits, probability);
    int64_t error = ((int64_t)bit << 16) - (int64_t)probability;
    for (int i = 0; i < inputs; i++) {
        weights[i] += shifted(stretches[i] * error, rate);
        adapt(&slots[chosen[i]], bit);
    }
    return bit;
}

static int alone(edgec_bits *bits, edgec_slot *slot)
{
    int bit = bits_code(bits, (uint32_t)clamped(slot->probability, LEAST, ONE - LEAST));
    adapt(slot, bit);
    return bit;
}

/* Arrays of integers */

enum {
    NODES = 32,
    LENGTHS = 12,
    COLUMN = 1 * NODES,
    NEAR = (1 + 64) * NODES,
    PRODUCT = (1 + 64 + 32 * 8) * NODES,
    SIGN = (1 + 64 + 32 * 8 + 64 * 8) * NODES,
    GUESS = SIGN + 3,
    PLACE = GUESS + 15,
    DEEP = PLACE + 15 * 16,
    LOW = DEEP + 32,
    PLACES = 16,
    LARGEST = 255,
    GUESS_LIMIT = 1 << 17,
    SCALAR_LEAST = 1 << 14,
    SCALAR_TOTAL = 300000,
    SCALAR_TOTAL_OF_LARGE = 1 << 15,
    TRAILER = 4,
    LANE_SYMBOLS = 1 << 11,
    CHANNELS_LEAST = 16,
    LANE_CONTEXTS = 96,
    TOKENS = 128,
    ESCAPE = TOKENS - 1,
    EXACT = 15,
    SHARED = 24,
    KEPT = 512,
    INTERVAL = 63,
    SYMBOL_RATE = 16,
    TEXT_RATE = 13
};

typedef char slots_are_those_of_the_header[LOW + 32 == EDGEC_SYMBOLS_SLOTS ? 1 : -1];

void edgec_symbols_open(edgec_symbols *symbols, const uint8_t *data, size_t size, int is_large)
{
    symbols->scalars = is_large ? SCALAR_TOTAL_OF_LARGE : SCALAR_TOTAL;
    bits_open(&symbols->bits, data, size);
    for (int i = 0; i < EDGEC_SYMBOLS_BANKS; i++)
        symbols->banks[i].used = 0;
    memset(symbols->lane_banks, 0, sizeof symbols->lane_banks);
    symbols->laned = 0;
    symbols->read = 0;
    symbols->begin = symbols->next = symbols->end = 0;
}

static void bank_open(edgec_bank *bank)
{
    memset(bank, 0, sizeof *bank);
    bank->used = 1;
    clear(bank->slots, EDGEC_SYMBOLS_SLOTS);
    for (int set = 0; set < EDGEC_SYMBOLS_SETS; set++)
        for (int i = 0; i < 4; i++)
            bank->weights[set][i] = 72090 / (set < NODES ? 4 : 3);
}

static size_t quarter(uint64_t mean)
{
    int bits = length_of(mean);
    return bits ? (size_t)clamped(4 * bits + (int)((mean << 2 >> (bits - 1)) & 3) - 16, 0, 63) : 0;
}

static size_t half(uint64_t mean)
{
    int bits = length_of(mean);
    return bits ? (size_t)clamped(2 * bits + (int)((mean << 1 >> (bits - 1)) & 1) - 8, 0, 31) : 0;
}

static size_t sign_of(int64_t value)
{
    return value > 0 ? 2 : value < 0 ? 0 : 1;
}

/* One number, in four contexts of its magnitude and three of its sign. */
static edgec_symbols_status number(edgec_bits *bits, edgec_bank *bank, const size_t *contexts, const size_t *signs,
                                   int32_t *result)
{
    static const int trees[5] = {0, 11, 12, 15, 22};
    size_t chosen[4];
    int length = 0;
    *result = 0;
    for (; length < 32; length++) {
        int more;
        if (length < LENGTHS) {
            for (int i = 0; i < 4; i++)
                chosen[i] = contexts[i] + (size_t)length;
            more = mix(bits, bank->slots, chosen, bank->weights[length], 4, SYMBOL_RATE, -1);
        } else {
            more = alone(bits, &bank->slots[DEEP + length]);
        }
        if (!more)
            break;
    }
    if (!length)
        return EDGEC_SYMBOLS_OK;
    uint64_t found = 1;
    int tree = trees[length - 1 < 4 ? length - 1 : 4];
    for (int shift = length - 2; shift >= 0; shift--) {
        int bit;
        if (found < 8) {
            int node = tree + (int)found;
            for (int i = 0; i < 4; i++)
                chosen[i] = contexts[i] + (size_t)node;
            bit = mix(bits, bank->slots, chosen, bank->weights[node], 4, SYMBOL_RATE, -1);
        } else {
            bit = alone(bits, &bank->slots[LOW + shift]);
        }
        found = found * 2 + (uint64_t)bit;
    }
    int negative = mix(bits, bank->slots, signs, bank->weights[NODES], 3, SYMBOL_RATE, -1);
    if (found > 0x7FFFFFFFu + (uint64_t)negative)
        return EDGEC_SYMBOLS_RANGE;
    *result = (int32_t)(negative ? -(int64_t)found : (int64_t)found);
    return EDGEC_SYMBOLS_OK;
}

static int64_t small(const int32_t *value)
{
    return clamped(*value, -LARGEST, LARGEST);
}

/* The numbers around `at`: see _filter and _dense of passes/coding/symbols.py. */
static int neighbours(const int32_t *at, size_t row, size_t column, size_t columns, size_t period, size_t width,
                      int64_t *near)
{
#define SEEN(condition, distance) ((condition) ? small(at - (distance)) : 0)
    if (period > 1) {
        size_t down = column % period / width, across = column % period % width;
        near[0] = SEEN(across > 0, 1);
        near[1] = SEEN(across > 1, 2);
        near[2] = SEEN(down > 0, width);
        near[3] = SEEN(down > 0 && across > 0, width + 1);
        near[4] = SEEN(down > 0 && across < width - 1, width - 1);
        near[5] = SEEN(column >= period, period);
        near[6] = SEEN(row > 0, columns);
        near[7] = SEEN(row > 1, 2 * columns);
        near[8] = SEEN(down > 1, 2 * width);
        near[9] = SEEN(column >= 2 * period, 2 * period);
        return 10;
    }
    near[0] = SEEN(column > 0, 1);
    near[1] = SEEN(column > 1, 2);
    near[2] = SEEN(row > 0 && column > 0, columns + 1);
    near[3] = SEEN(row > 0 && column + 1 < columns, columns - 1);
    near[4] = SEEN(row > 0, columns);
    near[5] = SEEN(row > 1, 2 * columns);
    return 6;
#undef SEEN
}

static edgec_symbols_status laned_read(edgec_symbols *symbols, int32_t *values, size_t rows, size_t columns,
                                       unsigned bank, size_t period, size_t width, uint64_t *sums)
{
    const uint8_t *data = symbols->bits.data;
    if (!symbols->laned) {
        if (symbols->bits.size < TRAILER)
            return EDGEC_SYMBOLS_SHORT;
        symbols->laned = 1;
        symbols->end = symbols->bits.size - TRAILER;
        for (int i = TRAILER - 1; i >= 0; i--)
            symbols->begin = symbols->begin << 8 | data[symbols->end + (size_t)i];
        symbols->next = symbols->begin;
    }
    if (symbols->next > symbols->end)
        return EDGEC_SYMBOLS_SHORT;
    size_t taken = 0;
    edgec_symbols_status status =
        edgec_lanes_read(&symbols->lanes, &symbols->lane_banks[bank], data + symbols->next,
                         symbols->end - symbols->next, &taken, values, rows, columns, period, width, sums);
    symbols->next += taken;
    return status;
}

edgec_symbols_status edgec_symbols_read(edgec_symbols *symbols, int32_t *values, size_t rows, size_t columns,
                                        unsigned bank_number, size_t period, size_t width, uint64_t *sums)
{
    if (!rows || !columns)
        return EDGEC_SYMBOLS_OK;
    if (bank_number >= EDGEC_SYMBOLS_BANKS || !period || !width || width > period || rows > 0x7FFFFFFF / columns ||
        period > 0x3FFFFFFF)
        return EDGEC_SYMBOLS_ARGUMENT;
    uint64_t size = (uint64_t)rows * columns;
    if (size >= SCALAR_LEAST && symbols->read + size > symbols->scalars)
        return laned_read(symbols, values, rows, columns, bank_number, period, width, sums);
    symbols->read += size;
    edgec_bank *bank = &symbols->banks[bank_number];
    if (!bank->used)
        bank_open(bank);
    int64_t *weights = period > 1 ? bank->filter : bank->dense;
    uint64_t total = 0;
    for (size_t i = 0; i < columns; i++)
        sums[i] = 0;
    for (size_t row = 0; row < rows; row++) {
        uint64_t row_total = 0;
        for (size_t column = 0; column < columns; column++) {
            int32_t *at = values + row * columns + column;
            int64_t near[10], guess = 0, energy = 0;
            int count = neighbours(at, row, column, columns, period, width, near);
            uint64_t mean = ((total + 1) << 8) / ((uint64_t)row * columns + column + 1) + 1;
            uint64_t row_mean = ((row_total << 8) + 4 * mean) / (column + 4);
            uint64_t column_mean = ((sums[column] << 8) + 3 * mean) / (row + 3);
            uint64_t product = row_mean * column_mean / mean;
            for (int i = 0; i < count; i++) {
                guess += weights[i] * near[i];
                energy += near[i] * near[i];
            }
            guess = clamped(shifted(guess, 8), -GUESS_LIMIT, GUESS_LIMIT);
            int64_t unit = (int64_t)mean + 64;
            int64_t step = clamped(divided(6 * guess + (unit >> 1), unit), -7, 7);
            uint64_t left = column ? (uint64_t)magnitude(small(at - 1)) : 0;
            uint64_t sized = left < 3 ? left : (uint64_t)length_of(left) + 1;
            uint64_t around = 2 * (uint64_t)magnitude(near[0]) + (uint64_t)magnitude(near[1]) +
                              (uint64_t)magnitude(near[2]) + 2 * (uint64_t)(magnitude(near[5]) +
                              (count > 6 ? magnitude(near[6]) : 0));
            size_t place = period > 1 && period <= PLACES ? column % period : 0;
            size_t contexts[4] = {
                0, COLUMN + quarter(column_mean) * NODES,
                NEAR + (half((3 * product + (around << 5)) >> 2) * 8 + (size_t)(sized < 7 ? sized : 7)) * NODES,
                PRODUCT + (quarter(product) * 8 + (size_t)magnitude(step)) * NODES};
            size_t signs[3] = {SIGN + sign_of(near[2]), GUESS + (size_t)(step + 7),
                               PLACE + (size_t)(step + 7) * PLACES + place};
            edgec_symbols_status status = number(&symbols->bits, bank, contexts, signs, at);
            if (status != EDGEC_SYMBOLS_OK)
                return status;
            if (symbols->bits.failed)
                return EDGEC_SYMBOLS_SHORT;
            if (energy) {
                int64_t share = divided(((small(at) * 256) - guess) * 32768,
                                        energy + (int64_t)(mean * mean >> 13) + 1);
                for (int i = 0; i < count; i++)
                    weights[i] += shifted(share * near[i], 12);
            }
            uint64_t seen = (uint64_t)magnitude(small(at));
            total += seen;
            row_total += seen;
            sums[column] += seen;
        }
    }
    return EDGEC_SYMBOLS_OK;
}

edgec_symbols_status edgec_symbols_finish(const edgec_symbols *symbols)
{
    if (!symbols->laned)
        return bits_finish(&symbols->bits);
    if (symbols->bits.failed)
        return EDGEC_SYMBOLS_SHORT;
    return symbols->bits.next == symbols->begin && symbols->next == symbols->end ? EDGEC_SYMBOLS_OK
                                                                                 : EDGEC_SYMBOLS_LEFT;
}

/* Lanes: see passes/coding/lanes.py */

typedef struct {
    size_t rows, period, width, channels, lanes;
} walk;

static walk walk_of(size_t rows, size_t columns, size_t period, size_t width)
{
    if (columns % period)
        period = width = 1;
    walk w = {rows, period, width, columns / period, 0};
    if (w.channels < CHANNELS_LEAST) {
        w.channels = rows * columns;
        w.rows = w.period = w.width = 1;
    }
    size_t lanes = rows * columns / LANE_SYMBOLS;
    if (lanes < 1)
        lanes = 1;
    if (lanes > w.channels)
        lanes = w.channels;
    w.lanes = lanes < EDGEC_LANES ? lanes : EDGEC_LANES;
    return w;
}

static void lanes_begin(edgec_lane_bank *bank)
{
    for (size_t context = 0; context < LANE_CONTEXTS; context++) {
        uint32_t *counts = bank->counts + context * TOKENS;
        uint64_t total = 0;
        for (size_t token = 0; token < TOKENS; token++)
            total += counts[token];
        if (total < KEPT)
            total = KEPT;
        for (size_t token = 0; token < TOKENS; token++)
            counts[token] = (uint32_t)(((uint64_t)counts[token] * KEPT + total - 1) / total);
    }
}

/* Count what was seen since, and make the frequencies anew. */
static void lanes_adapt(edgec_lanes *lanes, edgec_lane_bank *bank)
{
    uint64_t shared[TOKENS], blended[TOKENS], all = 0;
    for (size_t cell = 0; cell < EDGEC_LANE_CELLS; cell++) {
        bank->counts[cell] += lanes->seen[cell];
        lanes->seen[cell] = 0;
    }
    for (size_t token = 0; token < TOKENS; token++) {
        shared[token] = 0;
        for (size_t context = 0; context < LANE_CONTEXTS; context++)
            shared[token] += bank->counts[context * TOKENS + token];
        shared[token] = shared[token] * 16 + 1;
        all += shared[token];
    }
    uint32_t start = 0;
    for (size_t context = 0; context < LANE_CONTEXTS; context++) {
        uint64_t total = 0;
        size_t most = 0;
        uint32_t used = 0, frequency[TOKENS];
        for (size_t token = 0; token < TOKENS; token++) {
            blended[token] = ((uint64_t)bank->counts[context * TOKENS + token] << 12) + (shared[token] * SHARED << 12) / all;
            total += blended[token];
            if (blended[token] > blended[most])
                most = token;
        }
        for (size_t token = 0; token < TOKENS; token++) {
            frequency[token] = (uint32_t)(1 + blended[token] * (ONE - TOKENS) / total);
            used += frequency[token];
        }
        frequency[most] += ONE - used;
        for (size_t token = 0; token < TOKENS; token++) {
            lanes->starts[context * TOKENS + token] = start;
            start += frequency[token];
        }
    }
    lanes->starts[EDGEC_LANE_CELLS] = start;
}

typedef struct {
    const uint8_t *data;
    size_t size, next;
} words;

/* Leave the symbol in which `slot`, the low bits of a state, was found. */
static int lane_take(words *from, uint32_t *state, uint32_t slot, uint32_t first, uint32_t frequency)
{
    uint32_t left = (uint32_t)((uint64_t)frequency * (*state >> 16) + slot - first);
    if (left < ONE) {
        if (from->size - from->next < 2)
            return 0;
        left = left << 16 | (uint32_t)from->data[from->next] | (uint32_t)from->data[from->next + 1] << 8;
        from->next += 2;
    }
    *state = left;
    return 1;
}

static int lanes_raw(edgec_lanes *lanes, words *from, const uint8_t *bits, size_t count, int place)
{
    for (size_t lane = 0; lane < count; lane++) {
        int share = 16 - bits[lanes->cells[lane] % TOKENS];
        uint32_t slot = lanes->states[lane] & 0xFFFFu, value = slot >> share;
        if (!lane_take(from, &lanes->states[lane], slot, value << share, (uint32_t)1 << share))
            return 0;
        lanes->raw[lane] |= value << place;
    }
    return 1;
}

static int32_t signed_of(uint32_t word)
{
    return word <= 0x7FFFFFFFu ? (int32_t)word : -1 - (int32_t)(0xFFFFFFFFu - word);
}

static int64_t lane_value(unsigned token, uint32_t raw)
{
    int64_t bucket = (token + 1) / 2, size = bucket;
    if (token == ESCAPE)
        return signed_of(raw);
    if (bucket > EXACT) {
        int64_t large = bucket - EXACT - 1;
        size = ((4 + large % 4) << (large / 4 + 2)) + raw;
    }
    return token && token % 2 == 0 ? -size : size;
}

static size_t lane_context(const walk *w, const int32_t *at, size_t row, size_t place, uint64_t mean, uint64_t row_mean,
                           uint64_t sum)
{
    size_t down = place / w->width, across = place % w->width, stride = w->period * w->channels, known = 0;
    uint64_t around = 0, level = row_mean * (((sum << 8) + 3 * mean) / (row + 3)) / mean;
    int64_t hint = 0;
    const int32_t *near[4];
    if (across)
        near[known++] = at - 1;
    if (down)
        near[known++] = at - w->width;
    for (size_t i = 0; i < known; i++)
        hint += small(near[i]);
    if (!known && row)
        hint = small(at - stride);
    for (size_t back = 1; back <= 2; back++)
        if (row >= back)
            near[known++] = at - back * stride;
    for (size_t i = 0; i < known; i++)
        around += (uint64_t)magnitude(small(near[i]));
    if (known)
        level = (3 * level + (around << 8) / known) >> 2;
    return half(level) * 3 + sign_of(hint);
}

edgec_symbols_status edgec_lanes_read(edgec_lanes *lanes, edgec_lane_bank *bank, const uint8_t *data, size_t size,
                                      size_t *taken, int32_t *values, size_t rows, size_t columns, size_t period,
                                      size_t width, uint64_t *sums)
{
    const walk w = walk_of(rows, columns, period, width);
    words from = {data, size, 4 * w.lanes};
    uint8_t bits[3][TOKENS];
    *taken = 0;
    if (size < from.next)
        return EDGEC_SYMBOLS_SHORT;
    memset(bits, 0, sizeof bits);
    for (int token = 2 * EXACT + 1; token < ESCAPE; token++)
        bits[0][token] = (uint8_t)(((token + 1) / 2 - EXACT - 1) / 4 + 2);
    bits[0][ESCAPE] = bits[1][ESCAPE] = 11;
    bits[2][ESCAPE] = 10;
    for (size_t lane = 0; lane < w.lanes; lane++)
        lanes->states[lane] = (uint32_t)data[4 * lane] | (uint32_t)data[4 * lane + 1] << 8 |
                              (uint32_t)data[4 * lane + 2] << 16 | (uint32_t)data[4 * lane + 3] << 24;
    memset(lanes->seen, 0, sizeof lanes->seen);
    for (size_t i = 0; i < columns; i++)
        sums[i] = 0;
    lanes_begin(bank);
    uint64_t total = 0, done = 0, step = 0, due = 0;
    for (size_t row = 0; row < w.rows; row++) {
        uint64_t row_total = 0, row_done = 0;
        for (size_t place = 0; place < w.period; place++) {
            for (size_t first = 0; first < w.channels; first += w.lanes, step++) {
                size_t count = w.channels - first < w.lanes ? w.channels - first : w.lanes;
                int32_t *at = values + (row * w.channels + first) * w.period + place;
                uint64_t mean = ((total + 1) << 8) / (done + 1) + 1;
                uint64_t row_mean = ((row_total << 8) + 4 * mean) / (row_done + 4);
                int needs_raw = 0, needs_wide = 0;
                if (step >= due) {
                    lanes_adapt(lanes, bank);
                    due = step + 1 + (step >> 2 < INTERVAL ? step >> 2 : INTERVAL);
                }
                for (size_t lane = 0; lane < count; lane++) {
                    uint64_t sum = w.rows > 1 ? sums[(first + lane) * w.period + place] : 0;
                    size_t context = lane_context(&w, at + lane * w.period, row, place, mean, row_mean, sum);
                    uint32_t slot = lanes->states[lane] & 0xFFFFu;
                    uint32_t target = (uint32_t)context * ONE + slot;
                    size_t low = context * TOKENS, high = low + TOKENS - 1;
                    while (low < high) {
                        size_t middle = (low + high + 1) / 2;
                        if (lanes->starts[middle] <= target)
                            low = middle;
                        else
                            high = middle - 1;
                    }
                    uint32_t start = lanes->starts[low];
                    if (!lane_take(&from, &lanes->states[lane], slot, start & 0xFFFFu, lanes->starts[low + 1] - start))
                        return EDGEC_SYMBOLS_SHORT;
                    lanes->cells[lane] = (uint16_t)low;
                    lanes->raw[lane] = 0;
                    lanes->seen[low]++;
                    needs_raw |= bits[0][low % TOKENS] != 0;
                    needs_wide |= low % TOKENS == ESCAPE;
                }
                if (needs_raw && !lanes_raw(lanes, &from, bits[0], count, 0))
                    return EDGEC_SYMBOLS_SHORT;
                if (needs_wide && (!lanes_raw(lanes, &from, bits[1], count, 11) ||
                                   !lanes_raw(lanes, &from, bits[2], count, 22)))
                    return EDGEC_SYMBOLS_SHORT;
                for (size_t lane = 0; lane < count; lane++) {
                    int32_t *value = at + lane * w.period;
                    *value = (int32_t)lane_value(lanes->cells[lane] % TOKENS, lanes->raw[lane]);
                    uint64_t seen = (uint64_t)magnitude(small(value));
                    total += seen;
                    row_total += seen;
                    if (w.rows > 1)
                        sums[(first + lane) * w.period + place] += seen;
                }
                done += count;
                row_done += count;
            }
        }
    }
    for (size_t cell = 0; cell < EDGEC_LANE_CELLS; cell++)
        bank->counts[cell] += lanes->seen[cell];
    *taken = from.next;
    for (size_t lane = 0; lane < w.lanes; lane++)
        if (lanes->states[lane] != ONE)
            return EDGEC_SYMBOLS_RANGE;
    return EDGEC_SYMBOLS_OK;
}

/* Strings of bytes */

enum {
    PAD = 8,
    ORDERS = 4,
    HASHED = ORDERS + 3,
    TABLE = 1 << 17,
    MATCH_LEAST = 5,
    LONGEST = 31,
    MISSES = 4,
    STATES = (LONGEST + 1) * MISSES,
    SURE = 12,
    GIVE_UP = 8,
    FORGIVE = 16,
    PLAIN = 1 << 16,
    MATCH = PLAIN + 256,
    FLAG = MATCH + 2 * STATES,
    FLAG_PAIR = FLAG + STATES,
    FIRST = FLAG_PAIR + (1 << 16)
};

static const uint32_t prime = 0x9E3779B1u, other = 0x2F0B4C47u, stride = 0x9E35u;

typedef char text_slots_are_those_of_the_header[FIRST + HASHED * TABLE == EDGEC_TEXT_SLOTS ? 1 : -1];
typedef char text_sets_are_those_of_the_header[STATES + 1 == EDGEC_TEXT_SETS ? 1 : -1];
typedef char text_inputs_are_those_of_the_header[HASHED + 3 == EDGEC_TEXT_INPUTS ? 1 : -1];

void edgec_text_open(edgec_text *text, const uint8_t *history)
{
    memset(text, 0, sizeof *text);
    bits_open(&text->bits, history, 0);
    clear(text->slots, EDGEC_TEXT_SLOTS);
    for (int set = 0; set < EDGEC_TEXT_SETS; set++)
        for (int i = 0; i < EDGEC_TEXT_INPUTS; i++)
            text->weights[set][i] = 100000 / (set < STATES ? HASHED + 3 : 3);
    text->history = history;
    text->length = PAD;
}

static uint32_t hash_of(const edgec_text *text, unsigned order)
{
    uint32_t hashed = order;
    for (unsigned i = order; i; i--)
        hashed = (hashed + text->history[text->length - i] + 1) * prime;
    return hashed >> 7;
}

static size_t state_of(const edgec_text *text)
{
    return (text->run < LONGEST ? text->run : LONGEST) * MISSES + (text->misses < MISSES ? text->misses : MISSES - 1);
}

/* How many bytes before `found` are the last ones, counted to LONGEST. */
static size_t common(const edgec_text *text, size_t found)
{
    const uint8_t *history = text->history;
    size_t length = 0;
    while (length < LONGEST && found - length > PAD && history[found - 1 - length] == history[text->length - 1 - length])
        length++;
    return length;
}

static void follow(edgec_text *text, uint8_t byte)
{
    if (text->history[text->match] == byte) {
        text->run++;
    } else {
        text->run = 0;
        text->misses++;
    }
    text->match++;
    if (text->run > FORGIVE)
        text->misses = 0;
    if (text->misses > GIVE_UP)
        text->match = text->run = text->misses = 0;
}

/* Take in the byte that the history has at its end. */
static void take(edgec_text *text)
{
    uint8_t byte = text->history[text->length];
    if (text->match)
        follow(text, byte);
    text->length++;
    if ((byte | 32) >= 97 && (byte | 32) <= 122) {
        text->word = (text->word + byte) * other;
    } else if (text->word) {
        text->previous_word = text->word * prime;
        text->word = 0;
    }
    if (byte >= 48 && byte <= 57) {
        text->number = (text->number + byte) * other;
    } else if (text->number) {
        text->previous_number = text->number * prime;
        text->number = 0;
    }
    uint32_t *last = &text->last[hash_of(text, MATCH_LEAST) & (EDGEC_TEXT_MATCHES - 1)];
    if (text->run < LONGEST && *last) {
        size_t length = common(text, *last);
        if (length > (text->run > MATCH_LEAST - 1 ? text->run : MATCH_LEAST - 1)) {
            text->match = *last;
            text->run = length;
            text->misses = 0;
        }
    }
    *last = (uint32_t)text->length;
}

/* The next byte; `given` where it is known, else -1. */
static uint8_t next_byte(edgec_text *text, int given)
{
    const uint8_t last = text->history[text->length - 1];
    int expected = text->match ? text->history[text->match] : -1;
    if (expected >= 0 && text->run >= SURE) {
        size_t chosen[3] = {FLAG + state_of(text), FLAG_PAIR + ((size_t)expected << 8) + last,
                            FIRST + (hash_of(text, 4) & (TABLE - 1))};
        int same = given < 0 ? -1 : given == expected;
        if (mix(&text->bits, text->slots, chosen, text->weights[STATES], 3, TEXT_RATE, same))
            return (uint8_t)expected;
    }
    static const unsigned orders[ORDERS] = {2, 3, 4, 6};
    uint32_t hashes[HASHED];
    for (int i = 0; i < ORDERS; i++)
        hashes[i] = hash_of(text, orders[i]);
    hashes[ORDERS] = (text->word + text->previous_word) * prime >> 7;
    hashes[ORDERS + 1] = (text->number * 3 + text->previous_number + last * other) * prime >> 7;
    hashes[ORDERS + 2] =
        ((uint32_t)(expected + 1) * other + (last + (uint32_t)((text->run < 15 ? text->run : 15) << 8)) * prime) >> 7;
    size_t state = expected >= 0 ? state_of(text) : 0;
    uint32_t node = 1;
    for (int shift = 7; shift >= 0; shift--) {
        size_t chosen[EDGEC_TEXT_INPUTS] = {PLAIN + node, ((size_t)last << 8) + node};
        for (int i = 0; i < HASHED; i++)
            chosen[2 + i] = FIRST + (size_t)i * TABLE + ((hashes[i] + node * stride) & (TABLE - 1));
        if (expected >= 0 && ((uint32_t)expected | 256u) >> (shift + 1) == node) {
            chosen[2 + HASHED] = MATCH + 2 * state + (size_t)(expected >> shift & 1);
        } else {
            state = 0;
            chosen[2 + HASHED] = MATCH;
        }
        int bit = given < 0 ? -1 : given >> shift & 1;
        bit = mix(&text->bits, text->slots, chosen, text->weights[state], EDGEC_TEXT_INPUTS, TEXT_RATE, bit);
        node = node * 2 + (uint32_t)bit;
    }
    return (uint8_t)node;
}

void edgec_text_learn(edgec_text *text, size_t size)
{
    for (; size; size--) {
        next_byte(text, text->history[text->length]);
        take(text);
    }
}

void edgec_text_stream(edgec_text *text, const uint8_t *data, size_t size)
{
    bits_open(&text->bits, data, size);
}

edgec_symbols_status edgec_text_read(edgec_text *text, uint8_t *history, size_t size)
{
    for (; size; size--) {
        uint8_t byte = next_byte(text, -1);
        if (text->bits.failed)
            return EDGEC_SYMBOLS_SHORT;
        history[text->length] = byte;
        take(text);
    }
    return EDGEC_SYMBOLS_OK;
}

edgec_symbols_status edgec_text_finish(const edgec_text *text)
{
    return bits_finish(&text->bits);
}
