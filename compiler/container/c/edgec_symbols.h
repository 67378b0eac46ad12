/* Decoder of the entropy-coded streams of passes/coding: portable C99, integers only, no memory of its own.

   Nothing is read outside of the data given, or written outside of the arrays given, whatever the data holds. A
   decoder is large, too large for most stacks: let malloc or a static variable hold it. */

#ifndef EDGEC_SYMBOLS_H
#define EDGEC_SYMBOLS_H

#include <stddef.h>
#include <stdint.h>

typedef enum {
    EDGEC_SYMBOLS_OK = 0,
    EDGEC_SYMBOLS_SHORT,    /* the data ends too soon */
    EDGEC_SYMBOLS_LEFT,     /* data is left over */
    EDGEC_SYMBOLS_RANGE,    /* a number does not fit 32 bits, or the lanes do not end where they began */
    EDGEC_SYMBOLS_ARGUMENT  /* no such bank, or a size out of range */
} edgec_symbols_status;

#define EDGEC_SYMBOLS_BANKS 8
#define EDGEC_SYMBOLS_SLOTS 26978
#define EDGEC_SYMBOLS_SETS 33
#define EDGEC_LANES 4096
#define EDGEC_LANE_CELLS (96 * 128)
#define EDGEC_TEXT_SLOTS 1049216
#define EDGEC_TEXT_SETS 129
#define EDGEC_TEXT_INPUTS 10
#define EDGEC_TEXT_MATCHES 16384

typedef struct {
    uint16_t probability;
    uint8_t count;
} edgec_slot;

/* The members of these are the decoder's own. */

typedef struct {
    const uint8_t *data;
    size_t size, next;
    uint32_t low, high, value;
    int failed;
    int16_t stretches[4096];
} edgec_bits;

typedef struct {
    int used;
    edgec_slot slots[EDGEC_SYMBOLS_SLOTS];
    int64_t weights[EDGEC_SYMBOLS_SETS][4];
    int64_t filter[10], dense[6];
} edgec_bank;

typedef struct {
    uint32_t counts[EDGEC_LANE_CELLS];
} edgec_lane_bank;

typedef struct {
    uint32_t seen[EDGEC_LANE_CELLS], starts[EDGEC_LANE_CELLS + 1];
    uint32_t states[EDGEC_LANES], raw[EDGEC_LANES];
    uint16_t cells[EDGEC_LANES];
} edgec_lanes;

typedef struct {
    edgec_bits bits;
    edgec_bank banks[EDGEC_SYMBOLS_BANKS];
    edgec_lane_bank lane_banks[EDGEC_SYMBOLS_BANKS];
    edgec_lanes lanes;
    size_t begin, next, end;
    uint64_t read, scalars;
    int laned;
} edgec_symbols;

typedef struct {
    edgec_bits bits;
    edgec_slot slots[EDGEC_TEXT_SLOTS];
    int64_t weights[EDGEC_TEXT_SETS][EDGEC_TEXT_INPUTS];
    uint32_t last[EDGEC_TEXT_MATCHES];
    const uint8_t *history;
    size_t length, match, run, misses;
    uint32_t word, previous_word, number, previous_number;
} edgec_text;

/* Begin with the stream data[0..size), which must outlive the decoder; is_large is that of the Python Encoder. */
void edgec_symbols_open(edgec_symbols *symbols, const uint8_t *data, size_t size, int is_large);

/* The next array into values[rows * columns], row after row.

   bank:   the `model` of the Python Encoder, 0 to EDGEC_SYMBOLS_BANKS - 1.
   period: product of the kernel's sizes, 1 for a matrix.
   width:  the kernel's last size, 1 for a matrix.
   sums:   columns numbers for use meanwhile. */
edgec_symbols_status edgec_symbols_read(edgec_symbols *symbols, int32_t *values, size_t rows, size_t columns,
                                        unsigned bank, size_t period, size_t width, uint64_t *sums);

/* EDGEC_SYMBOLS_LEFT unless all of the stream was read. */
edgec_symbols_status edgec_symbols_finish(const edgec_symbols *symbols);

/* One array by the lanes alone, from data[0..size); *taken bytes of it. bank is zero before the first array. */
edgec_symbols_status edgec_lanes_read(edgec_lanes *lanes, edgec_lane_bank *bank, const uint8_t *data, size_t size,
                                      size_t *taken, int32_t *values, size_t rows, size_t columns, size_t period,
                                      size_t width, uint64_t *sums);

/* A model of bytes that has read nothing.

   history: holds all that it reads. The first 8 bytes are zero; the caller sees to that, and to
            8 + learned + read bytes of room in all. */
void edgec_text_open(edgec_text *text, const uint8_t *history);

/* Read size bytes that are known: history[8 + what was read before ..] has them already. */
void edgec_text_learn(edgec_text *text, size_t size);

/* Go on with the stream data[0..size): what follows is decoded from it. */
void edgec_text_stream(edgec_text *text, const uint8_t *data, size_t size);

/* Decode size bytes to the history, behind what was read. history is the one of edgec_text_open. */
edgec_symbols_status edgec_text_read(edgec_text *text, uint8_t *history, size_t size);

/* EDGEC_SYMBOLS_LEFT unless all of the stream was read. */
edgec_symbols_status edgec_text_finish(const edgec_text *text);

#endif
