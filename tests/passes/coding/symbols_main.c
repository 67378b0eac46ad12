/* Decodes what the tests of edgec_symbols.c send: see test_c_decoder.py. */

#include <stdio.h>
#include <stdlib.h>

#include "edgec_symbols.h"

static size_t number(void)
{
    unsigned value;
    if (scanf("%u", &value) != 1)
        exit(2);
    return value;
}

static uint8_t *data(size_t size)
{
    uint8_t *bytes = malloc(size + !size); /* exactly, so that the sanitizer sees every byte too far */
    if (!bytes)
        exit(2);
    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)number();
    return bytes;
}

/* stream, arrays (rows columns bank period width)... -> "status number number ..." */
static void arrays(edgec_symbols *symbols)
{
    size_t size = number();
    uint8_t *stream = data(size);
    edgec_symbols_status status = EDGEC_SYMBOLS_OK;
    edgec_symbols_open(symbols, stream, size, 0);
    size_t count = number();
    for (size_t i = 0; i < count; i++) {
        size_t rows = number(), columns = number(), bank = number(), period = number(), width = number();
        int32_t *values = malloc((rows * columns + 1) * sizeof *values);
        uint64_t *sums = malloc((columns + 1) * sizeof *sums);
        if (!values || !sums)
            exit(2);
        if (status == EDGEC_SYMBOLS_OK)
            status = edgec_symbols_read(symbols, values, rows, columns, (unsigned)bank, period, width, sums);
        for (size_t j = 0; j < rows * columns && status == EDGEC_SYMBOLS_OK; j++)
            printf("%ld ", (long)values[j]);
        free(values);
        free(sums);
    }
    if (status == EDGEC_SYMBOLS_OK)
        status = edgec_symbols_finish(symbols);
    printf("status %d\n", (int)status);
    free(stream);
}

/* stream, rows columns period width -> numbers, "taken", "status": one array by the lanes */
static void lanes(edgec_symbols *symbols)
{
    size_t size = number(), taken = 0;
    uint8_t *stream = data(size);
    size_t rows = number(), columns = number(), period = number(), width = number();
    int32_t *values = malloc((rows * columns + 1) * sizeof *values);
    uint64_t *sums = malloc((columns + 1) * sizeof *sums);
    if (!values || !sums)
        exit(2);
    edgec_symbols_open(symbols, stream, size, 0);
    edgec_symbols_status status = edgec_lanes_read(&symbols->lanes, &symbols->lane_banks[0], stream, size, &taken,
                                                   values, rows, columns, period, width, sums);
    for (size_t j = 0; j < rows * columns && status == EDGEC_SYMBOLS_OK; j++)
        printf("%ld ", (long)values[j]);
    printf("%lu status %d\n", (unsigned long)taken, (int)status);
    free(values);
    free(sums);
    free(stream);
}

/* stream, learned bytes, size -> bytes, "status" */
static void text(edgec_text *model)
{
    size_t size = number();
    uint8_t *stream = data(size);
    size_t learned = number();
    uint8_t *first = data(learned);
    size_t wanted = number();
    uint8_t *history = calloc(8 + learned + wanted, 1);
    if (!history)
        exit(2);
    for (size_t i = 0; i < learned; i++)
        history[8 + i] = first[i];
    edgec_text_open(model, history);
    edgec_text_learn(model, learned);
    edgec_text_stream(model, stream, size);
    edgec_symbols_status status = edgec_text_read(model, history, wanted);
    for (size_t i = 0; i < wanted && status == EDGEC_SYMBOLS_OK; i++)
        printf("%d ", history[8 + learned + i]);
    if (status == EDGEC_SYMBOLS_OK)
        status = edgec_text_finish(model);
    printf("status %d\n", (int)status);
    free(history);
    free(first);
    free(stream);
}

int main(void)
{
    edgec_symbols *symbols = malloc(sizeof *symbols);
    edgec_text *model = malloc(sizeof *model);
    char kind;
    if (!symbols || !model)
        return 2;
    while (scanf(" %c", &kind) == 1)
        if (kind == 'a')
            arrays(symbols);
        else if (kind == 'l')
            lanes(symbols);
        else
            text(model);
    free(symbols);
    free(model);
    return 0;
}
