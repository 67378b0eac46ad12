/* A pool of threads for one network. Every step has chunks, and whoever is free takes the next: a thread that the system
 * does not run holds nobody up. Which step and chunk comes next is one atomic word, so no late thread takes a wrong one. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#if defined(__x86_64__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__) || defined(__arm__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() (void)0
#endif

enum { SPINS_TO_YIELD = 1000, SPINS_TO_SLEEP = 4000 };

struct context {
    _Alignas(64) atomic_ullong ticket; /* serial number of the step : 32, step : 16, next chunk : 16 */
    _Alignas(64) atomic_int done;
    _Alignas(64) atomic_int sleepers;
    atomic_int is_closing;
    const void *const *in;
    void *const *out;
    int threads;
    unsigned serial;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    pthread_t *workers;
    unsigned char *arena;
};

/* Do chunks of the present step until none is left. */
static void help(struct context *c) {
    for (;;) {
        unsigned long long ticket = atomic_load_explicit(&c->ticket, memory_order_acquire);
        int step = (int)(ticket >> 16 & 0xffff), chunk = (int)(ticket & 0xffff), chunks = steps[step].chunks;
        if (chunk >= chunks) return;
        if (!atomic_compare_exchange_weak_explicit(&c->ticket, &ticket, ticket + 1, memory_order_acq_rel,
                                                   memory_order_acquire))
            continue;
        steps[step].run(c->arena, c->in, c->out, chunk, chunks);
        atomic_fetch_add_explicit(&c->done, 1, memory_order_release);
    }
}

static void *serve(void *argument) {
    struct context *c = argument;
    int spins = 0;
    unsigned long long seen = 0;
    while (!atomic_load_explicit(&c->is_closing, memory_order_acquire)) {
        unsigned long long ticket = atomic_load_explicit(&c->ticket, memory_order_acquire);
        if (ticket >> 16 != seen) {
            seen = ticket >> 16;
            help(c);
            spins = 0;
        } else if (++spins > SPINS_TO_SLEEP) {
            pthread_mutex_lock(&c->mutex);
            atomic_fetch_add(&c->sleepers, 1);
            while (!atomic_load(&c->is_closing) && atomic_load(&c->ticket) >> 16 == seen)
                pthread_cond_wait(&c->wake, &c->mutex);
            atomic_fetch_sub(&c->sleepers, 1);
            pthread_mutex_unlock(&c->mutex);
            spins = 0;
        } else if (spins > SPINS_TO_YIELD) sched_yield();
        else RELAX();
    }
    return NULL;
}

static void perform(struct context *c, int first, int end) {
    for (int step = first; step < end; step++) {
        int chunks = steps[step].chunks;
        if (chunks == 1 || c->threads == 1) {
            steps[step].run(c->arena, c->in, c->out, 0, 1);
            continue;
        }
        atomic_store_explicit(&c->done, 0, memory_order_relaxed);
        unsigned long long ticket = (unsigned long long)++c->serial << 32 | (unsigned long long)step << 16;
        atomic_store(&c->ticket, ticket);
        if (atomic_load(&c->sleepers)) {
            pthread_mutex_lock(&c->mutex);
            pthread_cond_broadcast(&c->wake);
            pthread_mutex_unlock(&c->mutex);
        }
        help(c);
        for (int spins = 0; atomic_load_explicit(&c->done, memory_order_acquire) < chunks; spins++) {
            if (spins > SPINS_TO_YIELD) sched_yield();
            else RELAX();
        }
    }
}

void *NAME(open)(int threads) {
    struct context *c;
    if (threads < 1 || posix_memalign((void **)&c, 64, sizeof *c)) return NULL;
    memset(c, 0, sizeof *c);
    c->workers = calloc((size_t)threads, sizeof *c->workers);
    if (!c->workers || posix_memalign((void **)&c->arena, 64, ARENA_BYTES)) {
        free(c->workers);
        free(c);
        return NULL;
    }
    memset(c->arena, 0, ARENA_BYTES);
    atomic_store(&c->ticket, 0xffff);
    pthread_mutex_init(&c->mutex, NULL);
    pthread_cond_init(&c->wake, NULL);
    c->threads = 1;
    while (c->threads < threads && !pthread_create(&c->workers[c->threads], NULL, serve, c)) c->threads++;
    return c;
}

void NAME(close)(void *network) {
    struct context *c = network;
    if (!c) return;
    pthread_mutex_lock(&c->mutex);
    atomic_store(&c->is_closing, 1);
    pthread_cond_broadcast(&c->wake);
    pthread_mutex_unlock(&c->mutex);
    for (int i = 1; i < c->threads; i++) pthread_join(c->workers[i], NULL);
    pthread_mutex_destroy(&c->mutex);
    pthread_cond_destroy(&c->wake);
    free(c->workers);
    free(c->arena);
    free(c);
}

void NAME(infer)(void *network, const int8_t *const *in, int8_t *const *out) {
    struct context *c = network;
    c->in = (const void *const *)in;
    c->out = (void *const *)out;
    perform(c, ENTER, ENTER_END);
    perform(c, STEPS, STEPS_END);
    perform(c, LEAVE, LEAVE_END);
}

int NAME(infer_float)(void *network, const float *const *in, float *const *out) {
    struct context *c = network;
    for (int i = 0; i < INPUTS; i++) {
        int is_bad = 0;
        for (int j = 0; j < input_sizes[i]; j++) is_bad |= in[i][j] != in[i][j];
        if (is_bad) return 1;
    }
    c->in = (const void *const *)in;
    c->out = (void *const *)out;
    perform(c, ENTER_FLOAT, ENTER_FLOAT_END);
    perform(c, STEPS, STEPS_END);
    perform(c, LEAVE_FLOAT, LEAVE_FLOAT_END);
    return 0;
}

/* For the proof: the memory of all maps after step `last` of the network. */
const unsigned char *NAME(trace)(void *network, const int8_t *const *in, int last) {
    struct context *c = network;
    c->in = (const void *const *)in;
    perform(c, ENTER, ENTER_END);
    perform(c, STEPS, STEPS + last + 1);
    return c->arena;
}
