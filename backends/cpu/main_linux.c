/* Reads int8 samples from standard input until it ends, and writes the network's int8 results. */
#include <stdio.h>

int main(void) {
    static int8_t in[IN_BYTES], out[OUT_BYTES];
    static const int in_starts[] = IN_STARTS, out_starts[] = OUT_STARTS;
    const int8_t *sources[IN_COUNT];
    int8_t *targets[OUT_COUNT];
    const char *lacks = MISSING();
    if (lacks) {
        fprintf(stderr, "this network needs a processor with %s\n", lacks);
        return 3;
    }
    for (int i = 0; i < IN_COUNT; i++) sources[i] = in + in_starts[i];
    for (int i = 0; i < OUT_COUNT; i++) targets[i] = out + out_starts[i];
    while (fread(in, sizeof in, 1, stdin) == 1) {
        INFER(sources, targets);
        if (fwrite(out, sizeof out, 1, stdout) != 1) return 1;
    }
    return 0;
}
