/* fuzz <seed> <rounds> <limit> container...: decode mutated containers, their checksums made right again. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "edgec_decode.h"

static uint64_t state;

static uint32_t drawn(uint32_t below)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((state >> 33) % below);
}

static uint32_t crc32_of(const uint8_t *data, size_t size)
{
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < size; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ 0xEDB88320u : crc >> 1;
    }
    return ~crc;
}

static size_t mutate(uint8_t *data, size_t size)
{
    uint32_t changes = 1 + drawn(6);
    while (changes--) {
        uint32_t at = drawn((uint32_t)size);
        switch (drawn(5)) {
        case 0: data[at] ^= (uint8_t)(1u << drawn(8)); break;
        case 1: data[at] = (uint8_t)drawn(256); break;
        case 2: data[at] = drawn(2) ? 0xFF : 0; break;
        case 3: data[4 + drawn(20) % (size - 4)] = (uint8_t)drawn(256); break;
        default:
            if (drawn(8) == 0 && size > 16)
                size = 16 + drawn((uint32_t)size - 16);
        }
    }
    if (drawn(16)) /* most must come past the checksum, or nothing else is tried */
        for (int i = 0, crc = (int)crc32_of(data, size - 4); i < 4; i++)
            data[size - 4 + i] = (uint8_t)((uint32_t)crc >> 8 * i);
    return size;
}

int main(int argc, char **argv)
{
    if (argc < 5)
        return 2;
    long rounds = atol(argv[2]), good = 0;
    uint64_t limit = strtoull(argv[3], NULL, 10);
    state = strtoull(argv[1], NULL, 10);
    for (long round = 0; round < rounds; round++) {
        static uint8_t whole[1 << 20];
        FILE *file = fopen(argv[4 + drawn((uint32_t)argc - 4)], "rb");
        if (!file)
            return 2;
        size_t size = fread(whole, 1, sizeof whole, file), length;
        fclose(file);
        size = mutate(whole, size);
        uint8_t *data = malloc(size), *result; /* of exactly this size: the sanitizer sees a byte too far */
        memcpy(data, whole, size);
        good += edgec_decode(data, size, limit, &result, &length) == EDGEC_OK;
        free(result);
        free(data);
    }
    printf("%ld of %ld were decoded\n", good, rounds);
    return 0;
}
