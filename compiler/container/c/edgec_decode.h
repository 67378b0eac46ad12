/* model.edgec back to the ONNX file: portable C99, no dependency but the C library. See docs/container.md. */

#ifndef EDGEC_DECODE_H
#define EDGEC_DECODE_H

#include <stddef.h>
#include <stdint.h>

typedef enum {
    EDGEC_OK = 0,
    EDGEC_DAMAGED,   /* not a container, or not as it was written */
    EDGEC_VERSION,   /* of another version */
    EDGEC_TOO_LARGE, /* the ONNX file would be larger than the limit */
    EDGEC_NO_MEMORY
} edgec_status;

/* Decode the container data[0..size).

   limit:  a larger ONNX file is refused before memory is taken for it, in bytes.
   result: on EDGEC_OK the ONNX file, to be released with free(); else NULL.
   length: its bytes.

   data need not be trusted. Memory in use stays below 64 times the size of the ONNX file that the container declares,
   plus the states of the entropy decoder, and nothing is read or written outside of it. */
edgec_status edgec_decode(const uint8_t *data, size_t size, uint64_t limit, uint8_t **result, size_t *length);

/* What a status means, in English. */
const char *edgec_message(edgec_status status);

#endif
