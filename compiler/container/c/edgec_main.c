/* edgec_decode model.edgec model.onnx [limit in bytes]: exit code 0 done, 1 refused, 2 wrong usage or files. */

#include <stdio.h>
#include <stdlib.h>

#include "edgec_decode.h"

static uint8_t *read_all(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    uint8_t *data = NULL;
    size_t capacity = 0, used = 0;
    if (!file)
        return NULL;
    for (;;) {
        if (used == capacity) {
            uint8_t *larger = realloc(data, capacity = capacity ? 2 * capacity : 65536);
            if (!larger)
                break;
            data = larger;
        }
        size_t got = fread(data + used, 1, capacity - used, file);
        used += got;
        if (!got) {
            int failed = ferror(file);
            fclose(file);
            if (!failed) {
                *size = used;
                return data;
            }
            free(data);
            return NULL;
        }
    }
    free(data);
    fclose(file);
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc != 3 && argc != 4) {
        fprintf(stderr, "usage: %s model.edgec model.onnx [limit in bytes]\n", argv[0]);
        return 2;
    }
    size_t size = 0, length = 0;
    uint8_t *data = read_all(argv[1], &size), *result = NULL;
    if (!data) {
        fprintf(stderr, "error: %s cannot be read\n", argv[1]);
        return 2;
    }
    uint64_t limit = argc == 4 ? strtoull(argv[3], NULL, 10) : 0x7FFFFFFF;
    edgec_status status = edgec_decode(data, size, limit, &result, &length);
    free(data);
    if (status != EDGEC_OK) {
        fprintf(stderr, "error: %s: %s\n", argv[1], edgec_message(status));
        return 1;
    }
    FILE *out = fopen(argv[2], "wb");
    int written = out && fwrite(result, 1, length, out) == length;
    if (out && fclose(out))
        written = 0;
    free(result);
    if (!written) {
        fprintf(stderr, "error: %s cannot be written\n", argv[2]);
        return 2;
    }
    return 0;
}
