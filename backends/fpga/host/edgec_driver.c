#include "edgec_driver.h"

#include "edgec_registers.h"

#define TRY(call)              \
    do {                       \
        int result_ = (call);  \
        if (result_)           \
            return result_;    \
    } while (0)

static int put(const edgec_transport *transport, uint32_t address, uint32_t value) {
    return transport->write_register(transport->context, address, value);
}

static int get(const edgec_transport *transport, uint32_t address, uint32_t *value) {
    return transport->read_register(transport->context, address, value);
}

/* Wait until every bit of `bits` in STATUS is 0. */
static int wait_clear(const edgec_transport *transport, uint32_t bits) {
    for (uint32_t poll = 0; poll < EDGEC_POLLS; ++poll) {
        uint32_t status;
        TRY(get(transport, EDGEC_REG_STATUS, &status));
        if (status & EDGEC_STATUS_ERROR)
            return EDGEC_PROTOCOL;
        if (!(status & bits))
            return EDGEC_OK;
    }
    return EDGEC_TIMEOUT;
}

static int expect(const edgec_transport *transport, uint32_t address, uint32_t value) {
    uint32_t found;
    TRY(get(transport, address, &found));
    return found == value ? EDGEC_OK : EDGEC_OTHER_HARDWARE;
}

static int describe(const edgec_transport *transport, uint32_t address, const edgec_tensor *tensor) {
    for (uint32_t i = 0; i < 4; ++i) {
        TRY(put(transport, address + 4 * i, tensor->base[i]));
        TRY(put(transport, address + 16 + 4 * i, tensor->byte[i]));
    }
    TRY(put(transport, address + 32, tensor->plane));
    TRY(put(transport, address + 36, tensor->pitch));
    TRY(put(transport, address + 40, tensor->width));
    TRY(put(transport, address + 44, tensor->height));
    TRY(put(transport, address + 48, tensor->channels));
    return put(transport, address + 52, tensor->phases);
}

static int load(const edgec_transport *transport, const edgec_image *image) {
    TRY(put(transport, EDGEC_REG_LOAD_MEMORY, image->memory));
    TRY(put(transport, EDGEC_REG_LOAD_ADDRESS, 0));
    TRY(put(transport, EDGEC_REG_LOAD_COUNT, image->words));
    TRY(put(transport, EDGEC_REG_LOAD_START, 1));
    TRY(transport->send(transport->context, image->data, image->bytes));
    return wait_clear(transport, EDGEC_STATUS_LOADING);
}

size_t edgec_bytes(const edgec_tensor *tensor) {
    size_t size = (size_t)tensor->channels * tensor->height * tensor->width;
    return (size + 3) / 4 * 4;
}

int edgec_open(const edgec_transport *transport, const edgec_network *network) {
    TRY(expect(transport, EDGEC_REG_ID, EDGEC_ID_VALUE));
    TRY(expect(transport, EDGEC_REG_ABI_VERSION, network->abi_version));
    TRY(expect(transport, EDGEC_REG_CONFIG_ID, network->config_id));
    for (size_t i = 0; i < network->image_count; ++i)
        TRY(load(transport, &network->images[i]));
    return EDGEC_OK;
}

int edgec_write(const edgec_transport *transport, const edgec_tensor *tensor, const int8_t *values) {
    TRY(describe(transport, EDGEC_REG_IN_BASE_0, tensor));
    TRY(put(transport, EDGEC_REG_LOAD_MEMORY, EDGEC_MEMORY_TENSOR));
    TRY(put(transport, EDGEC_REG_LOAD_START, 1));
    TRY(transport->send(transport->context, values, edgec_bytes(tensor)));
    return wait_clear(transport, EDGEC_STATUS_LOADING);
}

int edgec_read(const edgec_transport *transport, const edgec_tensor *tensor, int8_t *values) {
    TRY(describe(transport, EDGEC_REG_OUT_BASE_0, tensor));
    TRY(put(transport, EDGEC_REG_READ_START, 1));
    TRY(transport->receive(transport->context, values, edgec_bytes(tensor)));
    return wait_clear(transport, EDGEC_STATUS_READING);
}

static int run(const edgec_transport *transport, const edgec_entry *entry, uint32_t *cycles) {
    if (cycles)
        *cycles = 0;
    if (entry->pc_start == entry->pc_end)
        return EDGEC_OK;
    TRY(put(transport, EDGEC_REG_PC_START, entry->pc_start));
    TRY(put(transport, EDGEC_REG_PC_END, entry->pc_end));
    TRY(put(transport, EDGEC_REG_CONTROL, EDGEC_CONTROL_START));
    if (transport->wait_done)
        TRY(transport->wait_done(transport->context));
    TRY(wait_clear(transport, EDGEC_STATUS_BUSY));
    return cycles ? get(transport, EDGEC_REG_CYCLES, cycles) : EDGEC_OK;
}

int edgec_run(const edgec_transport *transport, const edgec_network *network, uint32_t *cycles) {
    return network->entry_count == 1 ? run(transport, network->entries, cycles) : EDGEC_OTHER_ENTRY;
}

int edgec_enter(const edgec_transport *transport, const edgec_network *network, size_t index,
                const int8_t *const *inputs, int8_t *const *outputs, uint32_t *cycles) {
    if (index >= network->entry_count)
        return EDGEC_OTHER_ENTRY;
    const edgec_entry *entry = &network->entries[index];
    for (size_t i = 0; i < entry->input_count; ++i)
        TRY(edgec_write(transport, &entry->inputs[i], inputs[i]));
    TRY(run(transport, entry, cycles));
    for (size_t i = 0; i < entry->output_count; ++i)
        TRY(edgec_read(transport, &entry->outputs[i], outputs[i]));
    return EDGEC_OK;
}

int edgec_infer(const edgec_transport *transport, const edgec_network *network, const int8_t *const *inputs,
                int8_t *const *outputs, uint32_t *cycles) {
    return network->entry_count == 1 ? edgec_enter(transport, network, 0, inputs, outputs, cycles) : EDGEC_OTHER_ENTRY;
}
