/* Runs the C driver against the simulation: the pipes to sim/harness.cpp are descriptors 3 (answers) and 4 (commands).
 * Standard input holds the inputs, standard output receives the cycles (4 bytes) and the outputs, entry by entry. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "edgec_network.h"

enum { WRITE = 1, READ = 2, SEND = 3, RECEIVE = 4, WAIT = 5, FROM = 3, TO = 4 };

static int move_out(const void *data, size_t bytes) {
    for (const char *p = data; bytes;) {
        ssize_t n = write(TO, p, bytes);
        if (n <= 0) return 90;
        p += n, bytes -= (size_t)n;
    }
    return 0;
}

static int move_in(void *data, size_t bytes) {
    for (char *p = data; bytes;) {
        ssize_t n = read(FROM, p, bytes);
        if (n <= 0) return 91;
        p += n, bytes -= (size_t)n;
    }
    return 0;
}

static int command(uint8_t op, uint32_t a, uint32_t b) {
    uint8_t raw[9] = {op};
    memcpy(raw + 1, &a, 4);
    memcpy(raw + 5, &b, 4);
    return move_out(raw, sizeof raw);
}

static int answer(void *data, uint32_t bytes) {
    uint8_t head[5];
    uint32_t size;
    if (move_in(head, sizeof head)) return 91;
    memcpy(&size, head + 1, 4);
    return head[0] || size != bytes ? 92 : move_in(data, bytes);
}

static int write_register(void *context, uint32_t address, uint32_t value) {
    (void)context;
    return command(WRITE, address, value);
}
static int read_register(void *context, uint32_t address, uint32_t *value) {
    (void)context;
    return command(READ, address, 0) ? 90 : answer(value, 4);
}
static int send_beats(void *context, const void *data, size_t bytes) {
    (void)context;
    return command(SEND, (uint32_t)(bytes / 4), 0) ? 90 : move_out(data, bytes);
}
static int receive_beats(void *context, void *data, size_t bytes) {
    (void)context;
    return command(RECEIVE, (uint32_t)(bytes / 4), 0) ? 90 : answer(data, (uint32_t)bytes);
}
static int wait_done(void *context) {
    uint64_t result[2];
    (void)context;
    if (command(WAIT, 100000000, 0) || answer(result, sizeof result)) return 93;
    return result[0] ? 0 : 94;
}

static int enter(const edgec_transport *transport, size_t index) {
    const edgec_entry *entry = &edgec_program.entries[index];
    const int8_t *inputs[16];
    int8_t *outputs[16];
    uint32_t cycles = 0;
    for (size_t i = 0; i < entry->input_count; ++i) {
        size_t bytes = edgec_bytes(&entry->inputs[i]);
        void *buffer = calloc(bytes, 1);
        if (fread(buffer, 1, bytes, stdin) != bytes) return 95;
        inputs[i] = buffer;
    }
    for (size_t i = 0; i < entry->output_count; ++i) outputs[i] = calloc(edgec_bytes(&entry->outputs[i]), 1);
    int result = edgec_program.entry_count == 1 ? edgec_infer(transport, &edgec_program, inputs, outputs, &cycles)
                                                : edgec_enter(transport, &edgec_program, index, inputs, outputs, &cycles);
    if (result) return result;
    fwrite(&cycles, 4, 1, stdout);
    for (size_t i = 0; i < entry->output_count; ++i) fwrite(outputs[i], 1, edgec_bytes(&entry->outputs[i]), stdout);
    return 0;
}

/* With several entries, edgec_infer and entries that do not exist must be refused. */
static int refuses(const edgec_transport *transport) {
    size_t count = edgec_program.entry_count;
    if (edgec_enter(transport, &edgec_program, count, NULL, NULL, NULL) != EDGEC_OTHER_ENTRY) return 0;
    return count == 1 || edgec_infer(transport, &edgec_program, NULL, NULL, NULL) == EDGEC_OTHER_ENTRY;
}

int main(int argc, char **argv) {
    edgec_transport transport = {NULL, write_register, read_register, send_beats, receive_beats, wait_done};
    (void)argv;
    if (argc > 1) transport.wait_done = NULL;
    int result = edgec_open(&transport, &edgec_program);
    if (!result && !refuses(&transport)) result = 96;
    for (size_t i = 0; !result && i < edgec_program.entry_count; ++i) result = enter(&transport, i);
    return result;
}
