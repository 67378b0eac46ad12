#include "edgec_decode.h"

#include <float.h>
#include <stdlib.h>
#include <string.h>

#include "edgec_primer.h"
#include "edgec_symbols.h"

#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0
#error "double arithmetic must round every operation to double: compile for SSE2 or a 64-bit machine"
#endif

enum {
    VERSION = 1,
    WHOLE = 1,
    LONG_TEXT = 2,
    CRC_BYTES = 4,
    ROW_BYTES = 256,
    RANK_MAX = 64,
    STEPS_MAX = 8,
    BIAS_EXPONENT = 5,
    BIAS_EXPONENT_MAX = 12,
    SHIFT_USUAL = 24,
    LARGE_BYTES = 1 << 20,
    SHIFT_MAX = 47,
    STEP_MAX = 400,
    FLOAT = 1,
    INT32 = 6,
    INT64 = 7
};

#define CHECK(condition) \
    do { \
        if (!(condition)) \
            return EDGEC_DAMAGED; \
    } while (0)

#define TRY(call) \
    do { \
        edgec_status status_ = (call); \
        if (status_ != EDGEC_OK) \
            return status_; \
    } while (0)

const char *edgec_message(edgec_status status)
{
    switch (status) {
    case EDGEC_OK: return "done";
    case EDGEC_DAMAGED: return "not an intact edgec container";
    case EDGEC_VERSION: return "the container is of another version";
    case EDGEC_TOO_LARGE: return "the ONNX file would be larger than the limit";
    case EDGEC_NO_MEMORY: return "out of memory";
    }
    return "unknown status";
}

/* Bytes */

static uint32_t crc32_of(const uint8_t *data, size_t size)
{
    uint32_t table[256], crc = 0xFFFFFFFFu;
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++)
            value = value & 1 ? value >> 1 ^ 0xEDB88320u : value >> 1;
        table[i] = value;
    }
    for (size_t i = 0; i < size; i++)
        crc = crc >> 8 ^ table[(crc ^ data[i]) & 0xFF];
    return ~crc;
}

static uint32_t little32(const uint8_t *data)
{
    return data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 | (uint32_t)data[3] << 24;
}

static void put_little(uint8_t *out, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        out[i] = (uint8_t)(value >> 8 * i);
}

static uint64_t get_little(const uint8_t *data, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes; i++)
        value |= (uint64_t)data[i] << 8 * i;
    return value;
}

static edgec_status read_varint(const uint8_t *data, size_t *position, size_t end, uint64_t *value)
{
    *value = 0;
    for (unsigned i = 0; i < 10; i++) {
        CHECK(*position < end);
        uint8_t byte = data[(*position)++];
        *value |= i < 9 || byte < 2 ? (uint64_t)(byte & 0x7F) << 7 * i : (uint64_t)(byte & 1) << 63;
        if (byte < 0x80)
            return EDGEC_OK;
    }
    return EDGEC_DAMAGED;
}

static unsigned varint_bytes(uint64_t value)
{
    unsigned count = 1;
    while (value >>= 7)
        count++;
    return count;
}

/* The protobuf wire format */

typedef enum { MODEL, GRAPH, NODE, ATTRIBUTE, TENSOR, NOTHING } message_kind;

static message_kind child_of(message_kind message, uint64_t number)
{
    switch (message) {
    case MODEL: return number == 7 ? GRAPH : NOTHING;
    case GRAPH: return number == 1 ? NODE : number == 5 ? TENSOR : NOTHING;
    case NODE: return number == 5 ? ATTRIBUTE : NOTHING;
    case ATTRIBUTE: return number == 5 ? TENSOR : NOTHING;
    default: return NOTHING;
    }
}

typedef struct {
    uint64_t number, value;
    unsigned type;
    size_t start, after_tag, body, end;
} field;

/* The field at position; the message ends at `end`. */
static edgec_status next_field(const uint8_t *data, size_t position, size_t end, field *out)
{
    uint64_t tag, length = 0;
    out->start = position;
    TRY(read_varint(data, &position, end, &tag));
    out->number = tag >> 3;
    out->type = tag & 7;
    out->after_tag = position;
    out->value = 0;
    CHECK(out->number);
    switch (out->type) {
    case 0:
        out->body = position;
        TRY(read_varint(data, &position, end, &out->value));
        out->end = position;
        return EDGEC_OK;
    case 1: length = 8; break;
    case 2: TRY(read_varint(data, &position, end, &length)); break;
    case 5: length = 4; break;
    default: return EDGEC_DAMAGED;
    }
    CHECK(length <= end - position);
    out->body = position;
    out->end = position + (size_t)length;
    return EDGEC_OK;
}

typedef struct {
    const uint8_t *text;
    size_t length;
} slice;

typedef enum { SIGNED, UNSIGNED, WORDS } element_class;

typedef struct {
    unsigned bits; /* 0: the type stays in the skeleton */
    element_class coded;
} element_type;

static element_type type_of(uint64_t data_type)
{
    static const element_type types[27] = {
        [1] = {32, WORDS},     [2] = {8, UNSIGNED},  [3] = {8, SIGNED},    [4] = {16, UNSIGNED}, [5] = {16, SIGNED},
        [6] = {32, SIGNED},    [7] = {64, SIGNED},   [9] = {8, UNSIGNED},  [10] = {16, WORDS},   [11] = {64, WORDS},
        [12] = {32, WORDS},    [13] = {64, WORDS},   [14] = {64, WORDS},   [15] = {128, WORDS},  [16] = {16, WORDS},
        [17] = {8, WORDS},     [18] = {8, WORDS},    [19] = {8, WORDS},    [20] = {8, WORDS},    [21] = {4, UNSIGNED},
        [22] = {4, SIGNED},    [23] = {4, UNSIGNED}, [24] = {8, WORDS},    [25] = {2, UNSIGNED}, [26] = {2, SIGNED},
    };
    static const element_type none = {0, WORDS};
    return data_type < 27 ? types[data_type] : none;
}

typedef enum { SCALAR, ZERO_POINT, WEIGHT_SCALE, BIAS_SCALE, BIAS, INTEGERS, ARRAY_OF_WORDS, UNCLAIMED } tensor_role;
typedef enum { CODES, CODEBOOKS, SCALES, BIASES, GRAPH_PART, NO_PART } file_part;
enum { CONV = 0, DEPTHWISE, GEMM, SETTINGS, SCALE_STEPS, BIAS_BANK, INDICES, WORD_BANK };

typedef struct {
    slice name;
    uint64_t data_type, rank, dim0, dim1, last, kernel, elements, bytes; /* kernel: the product of dims[2:] */
    tensor_role role;
    file_part part;
    long source, target, weight; /* scales of its layer, -1 where there is none */
    size_t offset;               /* of its bytes among the bytes of all tensors */
} tensor;

static edgec_status add_dim(tensor *out, uint64_t size, int *is_good)
{
    if (out->rank++ == 0)
        out->dim0 = size;
    else if (out->rank == 2)
        out->dim1 = size;
    out->last = size;
    if (size > 0x7FFFFFFF || out->rank > RANK_MAX) {
        *is_good = 0;
        return EDGEC_OK;
    }
    if (*is_good && out->rank > 2)
        out->kernel = out->kernel * size > 0x7FFFFFFF ? 0x80000000u : out->kernel * size;
    if (*is_good && (out->elements *= size) > 0x7FFFFFFF)
        *is_good = 0;
    return EDGEC_OK;
}

/* Sizes, type and name of the TensorProto at data[start..end); bytes is 0 where its contents cannot have been cut. */
static edgec_status read_tensor(const uint8_t *data, size_t start, size_t end, tensor *out)
{
    int is_good = 1;
    field each;
    memset(out, 0, sizeof *out);
    out->elements = out->kernel = 1;
    out->source = out->target = out->weight = -1;
    out->role = UNCLAIMED;
    out->part = NO_PART;
    for (size_t position = start; position < end; position = each.end) {
        TRY(next_field(data, position, end, &each));
        if (each.number == 1 && each.type == 0) {
            TRY(add_dim(out, each.value, &is_good));
        } else if (each.number == 1 && each.type == 2) {
            for (size_t inner = each.body; inner < each.end;) {
                uint64_t size;
                TRY(read_varint(data, &inner, each.end, &size));
                TRY(add_dim(out, size, &is_good));
            }
        } else if (each.number == 2 && each.type == 0) {
            out->data_type = each.value;
        } else if (each.number == 8 && each.type == 2) {
            out->name.text = data + each.body;
            out->name.length = each.end - each.body;
        }
    }
    if (is_good)
        out->bytes = (out->elements * type_of(out->data_type).bits + 7) / 8;
    return EDGEC_OK;
}

typedef struct {
    slice op_type;
    size_t inputs, input_count, outputs, output_count; /* first and number in `names` */
} node;

typedef struct {
    slice name;
    size_t number;
} entry;

typedef struct {
    entry *entries;
    size_t count;
} index_of_names;

typedef struct {
    const uint8_t *skeleton;
    size_t skeleton_bytes;
    node *nodes;
    slice *names;
    tensor *tensors;
    size_t node_count, name_count, tensor_count;
    index_of_names by_name, producers, readers;
    uint8_t *raw;      /* the bytes of all tensors */
    uint8_t *decoded;  /* the skeleton */
    uint8_t *result;
    size_t result_bytes, written;
    int32_t *values;   /* of the tensor at hand */
    edgec_symbols *symbols;
    const uint8_t *rest; /* of the raw part */
    size_t rest_bytes;
    int32_t median;
} decoder;

/* Size of a message with the bytes of its tensors put back. */
static edgec_status full_size(const uint8_t *data, size_t start, size_t end, message_kind message, uint64_t *size)
{
    tensor found;
    field each;
    *size = 0;
    if (message == TENSOR)
        TRY(read_tensor(data, start, end, &found));
    for (size_t position = start; position < end; position = each.end) {
        TRY(next_field(data, position, end, &each));
        uint64_t body = each.end - each.body, old = body;
        if (each.type == 2 && message == TENSOR && each.number == 9 && found.bytes && !body)
            body = found.bytes;
        else if (each.type == 2 && child_of(message, each.number) != NOTHING)
            TRY(full_size(data, each.body, each.end, child_of(message, each.number), &body));
        if (body == old)
            *size += each.end - each.start;
        else
            *size += each.after_tag - each.start + varint_bytes(body) + body;
        CHECK(*size <= 0xFFFFFFFFFFFFu);
    }
    return EDGEC_OK;
}

static void write_bytes(decoder *d, const uint8_t *data, size_t size)
{
    memcpy(d->result + d->written, data, size);
    d->written += size;
}

static edgec_status write_full(decoder *d, size_t start, size_t end, message_kind message, size_t *number)
{
    tensor found;
    field each;
    if (message == TENSOR)
        TRY(read_tensor(d->skeleton, start, end, &found));
    for (size_t position = start; position < end; position = each.end) {
        TRY(next_field(d->skeleton, position, end, &each));
        message_kind child = each.type == 2 ? child_of(message, each.number) : NOTHING;
        int is_cut = each.type == 2 && message == TENSOR && each.number == 9 && found.bytes && each.body == each.end;
        uint64_t body = each.end - each.body;
        if (is_cut)
            body = found.bytes;
        else if (child != NOTHING)
            TRY(full_size(d->skeleton, each.body, each.end, child, &body));
        if (body == each.end - each.body) {
            write_bytes(d, d->skeleton + each.start, each.body - each.start);
        } else {
            write_bytes(d, d->skeleton + each.start, each.after_tag - each.start);
            for (uint64_t rest = body; ; rest >>= 7) {
                d->result[d->written++] = (uint8_t)((rest & 0x7F) | (rest > 0x7F ? 0x80 : 0));
                if (rest <= 0x7F)
                    break;
            }
        }
        if (is_cut) {
            CHECK(*number < d->tensor_count && d->tensors[*number].bytes == body);
            write_bytes(d, d->raw + d->tensors[(*number)++].offset, (size_t)body);
        } else if (child != NOTHING) {
            TRY(write_full(d, each.body, each.end, child, number));
        } else {
            write_bytes(d, d->skeleton + each.body, each.end - each.body);
        }
    }
    return EDGEC_OK;
}

/* Nodes and tensors. The first walk counts, with NULL arrays; the second notes. */

static edgec_status note_node(decoder *d, size_t start, size_t end)
{
    node made;
    field each;
    memset(&made, 0, sizeof made);
    for (unsigned kind = 1; kind <= 2; kind++) { /* inputs, then outputs */
        size_t first = d->name_count;
        for (size_t position = start; position < end; position = each.end) {
            TRY(next_field(d->skeleton, position, end, &each));
            slice text = {d->skeleton + each.body, each.end - each.body};
            if (each.type == 2 && each.number == 4)
                made.op_type = text;
            if (each.type != 2 || each.number != kind)
                continue;
            if (d->names)
                d->names[d->name_count] = text;
            d->name_count++;
        }
        *(kind == 1 ? &made.inputs : &made.outputs) = first;
        *(kind == 1 ? &made.input_count : &made.output_count) = d->name_count - first;
    }
    if (d->nodes)
        d->nodes[d->node_count] = made;
    d->node_count++;
    return EDGEC_OK;
}

static edgec_status note(decoder *d, size_t start, size_t end, message_kind message)
{
    tensor found;
    field each;
    if (message == TENSOR)
        TRY(read_tensor(d->skeleton, start, end, &found));
    if (message == NODE)
        TRY(note_node(d, start, end));
    for (size_t position = start; position < end; position = each.end) {
        TRY(next_field(d->skeleton, position, end, &each));
        if (each.type != 2)
            continue;
        if (message == TENSOR && each.number == 9 && found.bytes && each.body == each.end) {
            if (d->tensors)
                d->tensors[d->tensor_count] = found;
            d->tensor_count++;
        }
        message_kind child = child_of(message, each.number);
        if (child != NOTHING)
            TRY(note(d, each.body, each.end, child));
    }
    return EDGEC_OK;
}

static void *allocated(size_t count, size_t size)
{
    return count > SIZE_MAX / size ? NULL : calloc(count ? count : 1, size);
}

/* Names */

static int compare_slices(slice a, slice b)
{
    size_t common = a.length < b.length ? a.length : b.length;
    int order = common ? memcmp(a.text, b.text, common) : 0;
    return order ? order : (a.length > b.length) - (a.length < b.length);
}

static int compare_entries(const void *a, const void *b)
{
    const entry *left = a, *right = b;
    int order = compare_slices(left->name, right->name);
    return order ? order : (left->number > right->number) - (left->number < right->number);
}

/* The first number under a name, or -1. */
static long look_up(const index_of_names *index, slice name)
{
    size_t low = 0, high = index->count;
    if (!name.length)
        return -1;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (compare_slices(index->entries[middle].name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low < index->count && !compare_slices(index->entries[low].name, name) ? (long)index->entries[low].number : -1;
}

static void add_name(index_of_names *index, slice name, size_t number)
{
    if (name.length) {
        index->entries[index->count].name = name;
        index->entries[index->count++].number = number;
    }
}

static edgec_status index_names(decoder *d)
{
    d->by_name.entries = allocated(d->tensor_count, sizeof(entry));
    d->producers.entries = allocated(d->name_count, sizeof(entry));
    d->readers.entries = allocated(d->node_count, sizeof(entry));
    if (!d->by_name.entries || !d->producers.entries || !d->readers.entries)
        return EDGEC_NO_MEMORY;
    for (size_t i = 0; i < d->tensor_count; i++)
        add_name(&d->by_name, d->tensors[i].name, i);
    for (size_t i = 0; i < d->node_count; i++) {
        for (size_t j = 0; j < d->nodes[i].output_count; j++)
            add_name(&d->producers, d->names[d->nodes[i].outputs + j], i);
        if (d->nodes[i].input_count)
            add_name(&d->readers, d->names[d->nodes[i].inputs], i);
    }
    index_of_names *all[3] = {&d->by_name, &d->producers, &d->readers};
    for (int i = 0; i < 3; i++)
        qsort(all[i]->entries, all[i]->count, sizeof(entry), compare_entries);
    return EDGEC_OK;
}

/* Roles */

static int is_op(const node *n, const char *name)
{
    size_t length = strlen(name);
    return n->op_type.length == length && !memcmp(n->op_type.text, name, length);
}

static long tensor_at(const decoder *d, const node *n, size_t input)
{
    return n && input < n->input_count ? look_up(&d->by_name, d->names[n->inputs + input]) : -1;
}

static const node *dequantize_at(const decoder *d, const node *n, size_t input)
{
    long producer = input < n->input_count ? look_up(&d->producers, d->names[n->inputs + input]) : -1;
    return producer >= 0 && is_op(&d->nodes[producer], "DequantizeLinear") ? &d->nodes[producer] : NULL;
}

static long target_of(const decoder *d, const node *n)
{
    for (int step = 0; step < STEPS_MAX; step++) {
        long reader = n->output_count ? look_up(&d->readers, d->names[n->outputs]) : -1;
        if (reader < 0)
            return -1;
        n = &d->nodes[reader];
        if (is_op(n, "QuantizeLinear"))
            return tensor_at(d, n, 1);
    }
    return -1;
}

static void claim(decoder *d, long number, tensor_role role, long source, long target, long weight)
{
    if (number < 0 || d->tensors[number].role != UNCLAIMED)
        return;
    tensor *t = &d->tensors[number];
    int fits = role == BIAS ? t->data_type == INT32 && t->elements > 0
                            : t->data_type == FLOAT && (t->elements > 1 || role == BIAS_SCALE);
    if (!fits)
        return;
    t->role = role;
    t->source = source;
    t->target = target;
    t->weight = weight;
}

static void note_part(decoder *d, long number, file_part part)
{
    if (number >= 0 && d->tensors[number].part == NO_PART)
        d->tensors[number].part = part;
}

static file_part part_read_as(const node *n, size_t input)
{
    if (is_op(n, "QuantizeLinear") || is_op(n, "DequantizeLinear"))
        return input == 1 || input == 2 ? SCALES : NO_PART;
    if (is_op(n, "Conv") || is_op(n, "Gemm"))
        return input == 2 ? BIASES : NO_PART;
    return (is_op(n, "Gather") || is_op(n, "GatherElements")) && input == 0 ? CODEBOOKS : NO_PART;
}

static void assign_roles(decoder *d)
{
    for (size_t i = 0; i < d->node_count; i++) {
        const node *n = &d->nodes[i];
        for (size_t input = 0; input < n->input_count; input++)
            if (part_read_as(n, input) != NO_PART)
                note_part(d, tensor_at(d, n, input), part_read_as(n, input));
        if (!is_op(n, "Conv") && !is_op(n, "Gemm"))
            continue;
        const node *x = dequantize_at(d, n, 0), *w = dequantize_at(d, n, 1), *b = dequantize_at(d, n, 2);
        long source = tensor_at(d, x, 1), target = target_of(d, n), weight = tensor_at(d, w, 1);
        note_part(d, tensor_at(d, b, 0), BIASES);
        claim(d, weight, WEIGHT_SCALE, source, target, weight);
        claim(d, tensor_at(d, b, 1), BIAS_SCALE, source, target, weight);
        claim(d, tensor_at(d, b, 0), BIAS, source, target, weight);
    }
    for (size_t i = 0; i < d->tensor_count; i++) {
        tensor *t = &d->tensors[i];
        element_type type = type_of(t->data_type);
        if (t->part == NO_PART)
            t->part = t->data_type == INT64 || !t->name.length ? GRAPH_PART : CODES;
        if (t->role != UNCLAIMED)
            continue;
        if (t->elements == 1 && t->data_type == FLOAT)
            t->role = SCALAR;
        else if (t->elements == 1 && type.coded != WORDS && type.bits <= 8)
            t->role = ZERO_POINT;
        else
            t->role = type.coded == WORDS ? ARRAY_OF_WORDS : INTEGERS;
    }
}

static unsigned bank_of(const tensor *t)
{
    if (t->part == BIASES)
        return BIAS_BANK;
    if (t->part == SCALES || t->part == GRAPH_PART)
        return SETTINGS;
    if (t->part == CODEBOOKS || type_of(t->data_type).coded == UNSIGNED)
        return INDICES;
    if (t->rank <= 2)
        return GEMM;
    return t->dim1 == 1 ? DEPTHWISE : CONV;
}

/* The streams */

/* The next array into d->values; `period` and `width` of its kernel, 1 where there is none. */
static edgec_status read_kernels(decoder *d, uint64_t rows, uint64_t columns, unsigned bank, uint64_t period,
                                 uint64_t width)
{
    uint64_t count = rows * columns;
    free(d->values);
    d->values = allocated((size_t)count, sizeof(int32_t));
    if (!d->values)
        return EDGEC_NO_MEMORY;
    if (!count)
        return EDGEC_OK;
    uint64_t *sums = allocated((size_t)columns, sizeof *sums);
    if (!sums)
        return EDGEC_NO_MEMORY;
    edgec_symbols_status status = edgec_symbols_read(d->symbols, d->values, (size_t)rows, (size_t)columns, bank,
                                                     (size_t)period, (size_t)width, sums);
    free(sums);
    return status == EDGEC_SYMBOLS_OK ? EDGEC_OK : EDGEC_DAMAGED;
}

static edgec_status read_values(decoder *d, uint64_t rows, uint64_t columns, unsigned bank)
{
    return read_kernels(d, rows, columns, bank, 1, 1);
}

static edgec_status read_setting(decoder *d, int32_t *value)
{
    TRY(read_values(d, 1, 1, SETTINGS));
    *value = d->values[0];
    return EDGEC_OK;
}

static edgec_status take(decoder *d, uint64_t count, const uint8_t **where)
{
    CHECK(count <= d->rest_bytes);
    *where = d->rest;
    d->rest += count;
    d->rest_bytes -= (size_t)count;
    return EDGEC_OK;
}

static void shape_of(const tensor *t, uint64_t *rows, uint64_t *columns)
{
    *rows = t->rank > 1 ? t->dim0 : 1;
    *columns = t->elements / *rows;
}

/* Write d->values + offset as the elements of a tensor. */
static edgec_status put_integers(decoder *d, tensor *t, int64_t offset)
{
    element_type type = type_of(t->data_type);
    int64_t low = type.coded == SIGNED ? -((int64_t)1 << (type.bits < 63 ? type.bits - 1 : 62)) : 0;
    int64_t high = type.coded == SIGNED ? -low - 1 : ((int64_t)1 << (type.bits < 63 ? type.bits : 62)) - 1;
    uint8_t *out = d->raw + t->offset;
    for (uint64_t i = 0; i < t->elements; i++) {
        int64_t value = d->values[i] + offset;
        CHECK(low <= value && value <= high);
        if (type.bits >= 8) {
            put_little(out + i * (type.bits / 8), (uint64_t)value, type.bits / 8);
        } else {
            uint64_t bit = i * type.bits;
            out[bit / 8] |= (uint8_t)(((uint64_t)value & ((1u << type.bits) - 1)) << bit % 8);
        }
    }
    return EDGEC_OK;
}

/* `count` words of `width` bytes, as planes. */
static edgec_status read_words(decoder *d, uint8_t *out, uint64_t count, unsigned width, uint64_t rows)
{
    int32_t mask, offset;
    if (!count)
        return EDGEC_OK;
    TRY(read_setting(d, &mask));
    CHECK(mask >= 0 && (uint32_t)mask < 1u << width);
    for (unsigned plane = 0; plane < width; plane++) {
        uint8_t *place = out + (width - 1 - plane);
        if (!(mask >> plane & 1)) {
            const uint8_t *from;
            TRY(take(d, count, &from));
            for (uint64_t i = 0; i < count; i++)
                place[i * width] = from[i];
            continue;
        }
        TRY(read_setting(d, &offset));
        CHECK(0 <= offset && offset <= 255);
        TRY(read_values(d, rows, count / rows, WORD_BANK));
        for (uint64_t i = 0; i < count; i++) {
            CHECK(-128 <= d->values[i] && d->values[i] <= 127);
            place[i * width] = (uint8_t)(d->values[i] + offset);
        }
    }
    if (width == 2 || width == 4 || width == 8)
        for (uint64_t i = 0; i < count; i++) {
            uint64_t word = get_little(out + i * width, width);
            put_little(out + i * width, word >> 1 | (word & 1) << (8 * width - 1), width);
        }
    return EDGEC_OK;
}

/* Floating point: products, quotients and conversions of IEEE doubles, each rounded to nearest even */

static double power_of_two(int exponent)
{
    uint64_t bits = (uint64_t)(exponent + 1023) << 52;
    double result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

static double float_at(const uint8_t *data)
{
    uint32_t bits = little32(data);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static edgec_status put_float(uint8_t *out, double value)
{
    float rounded;
    uint32_t bits;
    CHECK(value >= power_of_two(-126) && value < power_of_two(127));
    rounded = (float)value;
    memcpy(&bits, &rounded, sizeof bits);
    put_little(out, bits, 4);
    return EDGEC_OK;
}

/* The scale of one float32, or one of a layer's weights; they must be positive and normal. */
static edgec_status scale_at(const decoder *d, long number, uint64_t i, double *scale)
{
    CHECK(number >= 0);
    const tensor *t = &d->tensors[number];
    CHECK(t->role == SCALAR || t->role == WEIGHT_SCALE);
    CHECK(t->elements == 1 || i < t->elements);
    *scale = float_at(d->raw + t->offset + (t->elements == 1 ? 0 : 4 * i));
    CHECK(*scale >= power_of_two(-126) && *scale < power_of_two(127));
    return EDGEC_OK;
}

static edgec_status scalar_at(const decoder *d, long number, double *scale)
{
    CHECK(number >= 0 && d->tensors[number].elements == 1);
    return scale_at(d, number, 0, scale);
}

/* The machine's factor for 2**(step/4) at s_x / s_y = unit: multiplier / 2**shift. */
static edgec_status factor_of_step(int32_t step, double unit, uint32_t *multiplier, int *shift)
{
    static const double quarters[4] = {1.0, 1.1892071150027210, 1.4142135623730951, 1.6817928305074290};
    CHECK(-STEP_MAX <= step && step <= STEP_MAX);
    int quarter = (step + STEP_MAX) % 4, octave = (step + STEP_MAX) / 4 - STEP_MAX / 4;
    double factor = quarters[quarter] * power_of_two(octave) * unit;
    CHECK(factor > 0 && factor < 65535);
    uint64_t bits;
    memcpy(&bits, &factor, sizeof bits);
    CHECK(bits >> 52); /* normal */
    int exponent = (int)(bits >> 52) - 1022; /* factor = fraction * 2**exponent, 1/2 <= fraction < 1 */
    uint64_t mantissa = (bits & 0xFFFFFFFFFFFFFu) | (uint64_t)1 << 52;
    *shift = 16 - exponent < SHIFT_MAX ? 16 - exponent : SHIFT_MAX;
    int drop = 53 - exponent - *shift;
    uint64_t rounded = drop > 53 ? 1 : (mantissa + ((uint64_t)1 << drop) - 1) >> drop;
    *multiplier = (uint32_t)rounded | 1;
    if (*multiplier >> 16) {
        *multiplier = 0x8001;
        *shift -= 1;
    }
    return EDGEC_OK;
}

static edgec_status read_weight_scale(decoder *d, tensor *t, int32_t mode)
{
    double source, target;
    int32_t step;
    const uint8_t *multipliers = NULL;
    TRY(scalar_at(d, t->source, &source));
    TRY(scalar_at(d, t->target, &target));
    TRY(read_setting(d, &step));
    CHECK(-0x40000000 < step && step < 0x40000000 && -0x40000000 < d->median && d->median < 0x40000000);
    d->median += step;
    TRY(read_values(d, 1, t->elements, SCALE_STEPS));
    if (mode == 1)
        TRY(take(d, 2 * t->elements, &multipliers));
    double unit = source / target;
    for (uint64_t i = 0; i < t->elements; i++) {
        int64_t wide = (int64_t)d->values[i] + d->median;
        uint32_t multiplier;
        int shift;
        CHECK(-0x10000 <= wide && wide <= 0x10000);
        if (mode == 0) {
            TRY(factor_of_step((int32_t)wide, unit, &multiplier, &shift));
        } else {
            multiplier = multipliers[2 * i] | (uint32_t)multipliers[2 * i + 1] << 8;
            shift = SHIFT_USUAL - (int)wide;
            CHECK(multiplier & 1 && 0 <= shift && shift <= SHIFT_MAX);
        }
        TRY(put_float(d->raw + t->offset + 4 * i, multiplier * power_of_two(-shift) / unit));
    }
    return EDGEC_OK;
}

static edgec_status check_weight(const decoder *d, const tensor *t)
{
    CHECK(t->weight >= 0);
    CHECK(d->tensors[t->weight].elements == 1 || d->tensors[t->weight].elements == t->elements);
    return EDGEC_OK;
}

static edgec_status derive_bias_scale(decoder *d, tensor *t)
{
    double source, weight;
    TRY(scalar_at(d, t->source, &source));
    TRY(check_weight(d, t));
    for (uint64_t i = 0; i < t->elements; i++) {
        TRY(scale_at(d, t->weight, i, &weight));
        TRY(put_float(d->raw + t->offset + 4 * i, weight * source));
    }
    return EDGEC_OK;
}

static edgec_status derive_bias(decoder *d, tensor *t)
{
    double source, target, weight;
    int32_t setting;
    TRY(read_setting(d, &setting));
    CHECK(-BIAS_EXPONENT <= setting && setting <= BIAS_EXPONENT_MAX - BIAS_EXPONENT);
    TRY(scalar_at(d, t->source, &source));
    TRY(scalar_at(d, t->target, &target));
    TRY(check_weight(d, t));
    TRY(read_values(d, 1, t->elements, BIAS_BANK));
    double step = target * power_of_two(-(setting + BIAS_EXPONENT));
    for (uint64_t i = 0; i < t->elements; i++) {
        TRY(scale_at(d, t->weight, i, &weight));
        double code = d->values[i] * step / (weight * source);
        CHECK(-4294967296.0 < code && code < 4294967296.0);
        int64_t whole = (int64_t)(code + 6755399441055744.0 - 6755399441055744.0); /* to the nearest even */
        CHECK(-0x7FFFFFFF <= whole && whole <= 0x7FFFFFFF);
        put_little(d->raw + t->offset + 4 * i, (uint64_t)whole, 4);
    }
    return EDGEC_OK;
}

static edgec_status read_array(decoder *d, tensor *t)
{
    int32_t offset = 0;
    uint64_t rows, columns;
    if (type_of(t->data_type).coded == UNSIGNED)
        TRY(read_setting(d, &offset));
    shape_of(t, &rows, &columns);
    TRY(read_kernels(d, rows, columns, bank_of(t), t->kernel, t->rank > 2 ? t->last : 1));
    return put_integers(d, t, offset);
}

static edgec_status read_one(decoder *d, tensor *t, int32_t mode)
{
    uint64_t rows, columns;
    const uint8_t *from;
    if (t->role == WEIGHT_SCALE && (mode == 0 || mode == 1))
        return read_weight_scale(d, t, mode);
    if (t->role == BIAS_SCALE && mode == 0)
        return derive_bias_scale(d, t);
    if (t->role == BIAS && mode == 0)
        return derive_bias(d, t);
    if (t->role == BIAS && mode == 1) {
        TRY(read_values(d, 1, t->elements, BIAS_BANK));
        return put_integers(d, t, 0);
    }
    if (t->role == INTEGERS && mode == 0)
        return read_array(d, t);
    if (t->role == INTEGERS && mode == 1) {
        TRY(take(d, t->bytes, &from));
        memcpy(d->raw + t->offset, from, (size_t)t->bytes);
        return EDGEC_OK;
    }
    CHECK(mode == (t->role == WEIGHT_SCALE ? 2 : t->role == BIAS_SCALE ? 1 : 0) && t->role != BIAS && t->role != INTEGERS);
    shape_of(t, &rows, &columns);
    return read_words(d, d->raw + t->offset, t->elements, type_of(t->data_type).bits / 8, rows);
}

/* The single scales and the zero points: one array each. */
static edgec_status read_groups(decoder *d)
{
    uint64_t scalars = 0, points = 0, next = 0;
    for (size_t i = 0; i < d->tensor_count; i++) {
        scalars += d->tensors[i].role == SCALAR;
        points += d->tensors[i].role == ZERO_POINT;
    }
    uint8_t *words = allocated((size_t)scalars, 4);
    if (!words)
        return EDGEC_NO_MEMORY;
    edgec_status status = read_words(d, words, scalars, 4, 1);
    for (size_t i = 0; status == EDGEC_OK && i < d->tensor_count; i++)
        if (d->tensors[i].role == SCALAR)
            memcpy(d->raw + d->tensors[i].offset, words + 4 * next++, 4);
    free(words);
    TRY(status);
    TRY(read_values(d, 1, points, SETTINGS));
    int32_t *values = d->values;
    next = 0;
    for (size_t i = 0; status == EDGEC_OK && i < d->tensor_count; i++)
        if (d->tensors[i].role == ZERO_POINT) {
            d->values = values + next++;
            status = put_integers(d, &d->tensors[i], 0);
        }
    d->values = values;
    return status;
}

static edgec_status read_tensors(decoder *d)
{
    static const tensor_role order[3] = {WEIGHT_SCALE, BIAS_SCALE, BIAS};
    uint64_t count = 0, next = 0;
    for (size_t i = 0; i < d->tensor_count; i++) {
        tensor_role role = d->tensors[i].role;
        count += role == WEIGHT_SCALE || role == BIAS_SCALE || role == BIAS || role == INTEGERS;
    }
    TRY(read_values(d, 1, count, SETTINGS));
    int32_t *modes = d->values;
    d->values = NULL;
    edgec_status status = read_groups(d);
    for (int phase = 0; phase < 4; phase++)
        for (size_t i = 0; status == EDGEC_OK && i < d->tensor_count; i++) {
            tensor *t = &d->tensors[i];
            int is_last = t->role == INTEGERS || t->role == ARRAY_OF_WORDS;
            if (phase < 3 ? t->role == order[phase] : is_last)
                status = read_one(d, t, t->role == ARRAY_OF_WORDS ? 0 : modes[next++]);
        }
    free(modes);
    TRY(status);
    CHECK(!d->rest_bytes);
    return edgec_symbols_finish(d->symbols) == EDGEC_SYMBOLS_OK ? EDGEC_OK : EDGEC_DAMAGED;
}

/* The file */

typedef struct {
    unsigned flags;
    uint64_t file_bytes, skeleton_bytes, parts[3];
    uint32_t file_crc;
    size_t end;
} header;

static edgec_status read_header(const uint8_t *data, size_t size, uint64_t limit, header *out)
{
    static const uint8_t magic[4] = {0xED, 'G', 'E', 'C'};
    uint64_t *numbers[5] = {&out->file_bytes, &out->skeleton_bytes, &out->parts[0], &out->parts[1], &out->parts[2]};
    size_t position = 6;
    CHECK(size >= 6 && !memcmp(data, magic, 4));
    if (data[4] != VERSION)
        return EDGEC_VERSION;
    out->flags = data[5];
    for (int i = 0; i < 5; i++)
        TRY(read_varint(data, &position, size, numbers[i]));
    CHECK(!(out->flags & ~(unsigned)(WHOLE | LONG_TEXT)) && size - position >= 2 * CRC_BYTES);
    out->file_crc = little32(data + position);
    out->end = position + CRC_BYTES;
    uint64_t rest = size - out->end - CRC_BYTES;
    for (int i = 0; i < 3; i++) {
        CHECK(out->parts[i] <= rest);
        rest -= out->parts[i];
    }
    CHECK(!rest && crc32_of(data, size - CRC_BYTES) == little32(data + size - CRC_BYTES));
    if (out->file_bytes > limit || out->file_bytes > SIZE_MAX / 64)
        return EDGEC_TOO_LARGE;
    CHECK(out->skeleton_bytes <= out->file_bytes);
    CHECK(!(out->flags & WHOLE) || (out->skeleton_bytes == out->file_bytes && !out->parts[1] && !out->parts[2]));
    return EDGEC_OK;
}

/* The graph part, by the model for bytes. history: 8 zeros, the primer, then the text. */
static edgec_status read_text(decoder *d, const uint8_t *graph, size_t size)
{
    size_t before = 8 + sizeof primer;
    edgec_text *text = malloc(sizeof *text);
    d->decoded = allocated(before + d->skeleton_bytes, 1);
    if (!text || !d->decoded) {
        free(text);
        return EDGEC_NO_MEMORY;
    }
    memcpy(d->decoded + 8, primer, sizeof primer);
    edgec_text_open(text, d->decoded);
    edgec_text_learn(text, sizeof primer);
    edgec_text_stream(text, graph, size);
    int is_good = edgec_text_read(text, d->decoded, d->skeleton_bytes) == EDGEC_SYMBOLS_OK &&
                  edgec_text_finish(text) == EDGEC_SYMBOLS_OK;
    free(text);
    d->skeleton = d->decoded + before;
    return is_good ? EDGEC_OK : EDGEC_DAMAGED;
}

/* The graph part as an array of bytes. */
static edgec_status read_long_text(decoder *d, const uint8_t *graph, size_t size)
{
    uint64_t rows = ((uint64_t)d->skeleton_bytes + ROW_BYTES - 1) / ROW_BYTES;
    edgec_symbols_open(d->symbols, graph, size, 0);
    TRY(read_values(d, rows, ROW_BYTES, WORD_BANK));
    CHECK(edgec_symbols_finish(d->symbols) == EDGEC_SYMBOLS_OK);
    d->decoded = allocated(d->skeleton_bytes, 1);
    if (!d->decoded)
        return EDGEC_NO_MEMORY;
    for (uint64_t i = 0; i < rows * ROW_BYTES; i++) {
        CHECK(0 <= d->values[i] && d->values[i] <= 255);
        if (i < d->skeleton_bytes)
            d->decoded[i] = (uint8_t)d->values[i];
    }
    d->skeleton = d->decoded;
    return EDGEC_OK;
}

/* Nodes, names and tensors of the skeleton, in arrays of their number. */
static edgec_status read_graph(decoder *d)
{
    TRY(note(d, 0, d->skeleton_bytes, MODEL));
    d->nodes = allocated(d->node_count, sizeof(node));
    d->names = allocated(d->name_count, sizeof(slice));
    d->tensors = allocated(d->tensor_count, sizeof(tensor));
    if (!d->nodes || !d->names || !d->tensors)
        return EDGEC_NO_MEMORY;
    d->node_count = d->name_count = d->tensor_count = 0;
    return note(d, 0, d->skeleton_bytes, MODEL);
}

static edgec_status decode(decoder *d, const uint8_t *data, const header *head)
{
    const uint8_t *graph = data + head->end, *coded = graph + head->parts[0];
    uint64_t total = 0, size;
    size_t number = 0;
    d->skeleton_bytes = (size_t)head->skeleton_bytes;
    d->result_bytes = (size_t)head->file_bytes;
    d->symbols = malloc(sizeof *d->symbols);
    if (!d->symbols)
        return EDGEC_NO_MEMORY;
    TRY(head->flags & LONG_TEXT ? read_long_text(d, graph, (size_t)head->parts[0])
                                : read_text(d, graph, (size_t)head->parts[0]));
    if (!(head->flags & WHOLE)) {
        TRY(full_size(d->skeleton, 0, d->skeleton_bytes, MODEL, &size));
        CHECK(size == head->file_bytes);
        TRY(read_graph(d));
        for (size_t i = 0; i < d->tensor_count; i++) {
            d->tensors[i].offset = (size_t)total;
            total += d->tensors[i].bytes;
            CHECK(total <= head->file_bytes - head->skeleton_bytes);
        }
        d->raw = allocated((size_t)total, 1);
        if (!d->raw)
            return EDGEC_NO_MEMORY;
        TRY(index_names(d));
        assign_roles(d);
        edgec_symbols_open(d->symbols, coded, (size_t)head->parts[1], total > LARGE_BYTES);
        d->rest = coded + head->parts[1];
        d->rest_bytes = (size_t)head->parts[2];
        TRY(read_tensors(d));
    }
    d->result = allocated(d->result_bytes, 1);
    if (!d->result)
        return EDGEC_NO_MEMORY;
    if (head->flags & WHOLE)
        write_bytes(d, d->skeleton, d->skeleton_bytes);
    else
        TRY(write_full(d, 0, d->skeleton_bytes, MODEL, &number));
    CHECK(d->written == d->result_bytes && crc32_of(d->result, d->result_bytes) == head->file_crc);
    return EDGEC_OK;
}

edgec_status edgec_decode(const uint8_t *data, size_t size, uint64_t limit, uint8_t **result, size_t *length)
{
    header head;
    decoder d;
    *result = NULL;
    *length = 0;
    memset(&d, 0, sizeof d);
    TRY(read_header(data, size, limit, &head));
    edgec_status status = decode(&d, data, &head);
    free(d.nodes);
    free(d.names);
    free(d.tensors);
    free(d.by_name.entries);
    free(d.producers.entries);
    free(d.readers.entries);
    free(d.raw);
    free(d.decoded);
    free(d.values);
    free(d.symbols);
    if (status != EDGEC_OK) {
        free(d.result);
        return status;
    }
    *result = d.result;
    *length = d.result_bytes;
    return EDGEC_OK;
}
