/* Start-up code, and a main that reads int8 samples from input.bin and writes results to output.bin by semihosting: for
 * a debugger or an emulator. In a product, call the network from your own main instead. */
#include <stddef.h>

extern uint32_t stack_top, bss_start, bss_end, data_start, data_end, data_source;
void reset(void);

static void stop(void);

__attribute__((section(".vectors"), used)) static void *const vectors[16] = {
    &stack_top, reset, stop, stop, stop, stop, stop, 0, 0, 0, 0, stop, stop, 0, stop, stop,
};

/* What the C library has: a bare program brings its own. */
__attribute__((weak)) void *memset(void *target, int value, size_t count) {
    unsigned char *p = target;
    while (count--) *p++ = (unsigned char)value;
    return target;
}

__attribute__((weak)) void *memcpy(void *restrict target, const void *restrict source, size_t count) {
    unsigned char *p = target;
    const unsigned char *q = source;
    while (count--) *p++ = *q++;
    return target;
}

enum { OPEN = 1, CLOSE = 2, WRITE = 5, READ = 6, EXIT_EXTENDED = 0x20 };

static int host(int operation, const void *argument) {
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static int open_file(const char *name, int mode, int length) {
    const uint32_t arguments[] = {(uint32_t)name, (uint32_t)mode, (uint32_t)length};
    return host(OPEN, arguments);
}

/* Bytes that were not transferred. */
static int transfer(int operation, int file, const void *data, int count) {
    const uint32_t arguments[] = {(uint32_t)file, (uint32_t)data, (uint32_t)count};
    return host(operation, arguments);
}

static void leave(int code) {
    const uint32_t arguments[] = {0x20026, (uint32_t)code}; /* ADP_Stopped_ApplicationExit */
    host(EXIT_EXTENDED, arguments);
}

static void stop(void) {
    leave(3);
    for (;;) {}
}

static int8_t in[IN_BYTES], out[OUT_BYTES];

static int work(void) {
    static const int in_starts[] = IN_STARTS, out_starts[] = OUT_STARTS;
    const int8_t *sources[IN_COUNT];
    int8_t *targets[OUT_COUNT];
    for (int i = 0; i < IN_COUNT; i++) sources[i] = in + in_starts[i];
    for (int i = 0; i < OUT_COUNT; i++) targets[i] = out + out_starts[i];
    int source = open_file("input.bin", 1, 9), target = open_file("output.bin", 5, 10);
    if (source < 0 || target < 0) return 2;
    while (transfer(READ, source, in, sizeof in) == 0) {
        INFER(sources, targets);
        if (transfer(WRITE, target, out, sizeof out)) return 1;
    }
    const uint32_t closed = (uint32_t)target;
    host(CLOSE, &closed);
    return 0;
}

void reset(void) {
    for (uint32_t *p = &bss_start; p < &bss_end; p++) *p = 0;
    for (uint32_t *p = &data_start, *q = &data_source; p < &data_end; p++, q++) *p = *q;
    *(volatile uint32_t *)0xE000ED88 |= 0xFu << 20; /* access to the floating-point unit; nothing without one */
    __asm__ volatile("dsb\nisb");
    leave(work());
    stop();
}
