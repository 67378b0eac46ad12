/* Host driver of an edgec accelerator: C99, no allocation, no operating system.
 *
 * Fill an edgec_transport with functions that reach the accelerator's ports on your board, then:
 *
 *     edgec_open(&transport, &edgec_program);                      once: check the hardware, load the network
 *     edgec_infer(&transport, &edgec_program, inputs, outputs, &cycles);
 *
 * A network that has layers for the processor in its middle enters the accelerator several times. Then call
 *
 *     edgec_enter(&transport, &edgec_program, entry, inputs, outputs, &cycles);
 *
 * for entry 0, 1, ... in this order, and do in between what edgec_network.h says; edgec_inference.py shows all of it.
 *
 * Maps are int8 in CHW order. Every buffer has room for whole 32-bit beats: edgec_bytes(tensor), a multiple of 4.
 */
#ifndef EDGEC_DRIVER_H
#define EDGEC_DRIVER_H

#include <stddef.h>
#include <stdint.h>

#ifndef EDGEC_POLLS
#define EDGEC_POLLS 100000000u /* reads of STATUS before EDGEC_TIMEOUT */
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum edgec_result {
    EDGEC_OK = 0,
    EDGEC_OTHER_HARDWARE = 1, /* the program was compiled for another accelerator */
    EDGEC_PROTOCOL = 2,       /* STATUS.error */
    EDGEC_TIMEOUT = 3,
    EDGEC_OTHER_ENTRY = 4 /* there is no such entry, or there are several and edgec_run and edgec_infer know but one */
};

/* How the driver reaches the ports. Each function returns 0, or a number that the driver hands back as it is. */
typedef struct edgec_transport {
    void *context;
    /* AXI4-Lite, byte addresses. */
    int (*write_register)(void *context, uint32_t address, uint32_t value);
    int (*read_register)(void *context, uint32_t address, uint32_t *value);
    /* AXI4-Stream: `bytes` is a multiple of 4; the byte at the lowest address is in bits 7:0 of a beat. */
    int (*send)(void *context, const void *data, size_t bytes);
    int (*receive)(void *context, void *data, size_t bytes);
    /* Wait for the interrupt; NULL to poll STATUS instead. */
    int (*wait_done)(void *context);
} edgec_transport;

/* Where an int8 [channels][height][width] map is in the accelerator; the order is that of the registers. */
typedef struct edgec_tensor {
    uint32_t base[4], byte[4], plane, pitch, width, height, channels, phases;
} edgec_tensor;

typedef struct edgec_image {
    uint32_t memory, words;
    const uint8_t *data;
    size_t bytes;
} edgec_image;

/* Instructions that run in one go. Nothing in the accelerator's activation memory outlives them. */
typedef struct edgec_entry {
    uint32_t pc_start, pc_end;
    size_t input_count, output_count;
    const edgec_tensor *inputs, *outputs;
} edgec_entry;

/* pc_end, inputs and outputs are those of the first entry. */
typedef struct edgec_network {
    uint32_t abi_version, config_id, pc_end;
    size_t image_count, input_count, output_count;
    const edgec_image *images;
    const edgec_tensor *inputs, *outputs;
    size_t entry_count;
    const edgec_entry *entries;
} edgec_network;

/* Bytes of a buffer for the map. */
size_t edgec_bytes(const edgec_tensor *tensor);

/* Check that the hardware is the one that the network was compiled for, and load the network. */
int edgec_open(const edgec_transport *transport, const edgec_network *network);

int edgec_write(const edgec_transport *transport, const edgec_tensor *tensor, const int8_t *values);
int edgec_read(const edgec_transport *transport, const edgec_tensor *tensor, int8_t *values);

/* Run the loaded network, which has one entry; `cycles` may be NULL. */
int edgec_run(const edgec_transport *transport, const edgec_network *network, uint32_t *cycles);

/* Write every input, run, read every output of a network with one entry. */
int edgec_infer(const edgec_transport *transport, const edgec_network *network, const int8_t *const *inputs,
                int8_t *const *outputs, uint32_t *cycles);

/* Write every input of an entry, run its instructions, read its outputs. */
int edgec_enter(const edgec_transport *transport, const edgec_network *network, size_t entry,
                const int8_t *const *inputs, int8_t *const *outputs, uint32_t *cycles);

#ifdef __cplusplus
}
#endif
#endif
