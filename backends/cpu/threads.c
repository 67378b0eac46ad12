/* A pool of threads for one network: they spin between inferences that follow closely, else they sleep. */
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

enum { SPINS_TO_YIELD = 2000, SPINS_TO_SLEEP = 20000 };

struct barrier {
    _Alignas(64) atomic_int waiting;
    _Alignas(64) atomic_uint turn;
    int parts;
};

static void meet(struct barrier *b) {
    unsigned turn = atomic_load_explicit(&b->turn, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&b->waiting, 1, memory_order_acq_rel) == b->parts - 1) {
        atomic_store_explicit(&b->waiting, 0, memory_order_relaxed);
        atomic_store_explicit(&b->turn, turn + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&b->turn, memory_order_acquire) == turn; spins++) {
        if (spins > SPINS_TO_YIELD) sched_yield();
        else RELAX();
    }
}

struct context {
    struct barrier barrier;
    _Alignas(64) atomic_uint job;
    const void *const *in;
    void *const *out;
    int is_float, parts, last, is_closing;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    pthread_t *threads;
    unsigned char *arena;
};

struct worker { struct context *context; int part; };

static void *serve(void *argument) {
    struct worker own = *(struct worker *)argument;
    struct context *c = own.context;
    free(argument);
    for (unsigned done = 0;;) {
        for (int spins = 0; atomic_load_explicit(&c->job, memory_order_acquire) == done; spins++) {
            if (spins > SPINS_TO_SLEEP) {
                pthread_mutex_lock(&c->mutex);
                while (atomic_load_explicit(&c->job, memory_order_acquire) == done)
                    pthread_cond_wait(&c->wake, &c->mutex);
                pthread_mutex_unlock(&c->mutex);
                break;
            }
            if (spins > SPINS_TO_YIELD) sched_yield();
            else RELAX();
        }
        done = atomic_load_explicit(&c->job, memory_order_acquire);
        if (c->is_closing) return NULL;
        work(c->arena, c->in, c->out, c->is_float, own.part, c->parts, c->last, &c->barrier);
        meet(&c->barrier);
    }
}

static void post(struct context *c) {
    pthread_mutex_lock(&c->mutex);
    atomic_fetch_add_explicit(&c->job, 1, memory_order_release);
    pthread_cond_broadcast(&c->wake);
    pthread_mutex_unlock(&c->mutex);
}

void *NAME(open)(int threads) {
    struct context *c;
    if (threads < 1 || posix_memalign((void **)&c, 64, sizeof *c)) return NULL;
    memset(c, 0, sizeof *c);
    if (posix_memalign((void **)&c->arena, 64, ARENA_BYTES)) { free(c); return NULL; }
    memset(c->arena, 0, ARENA_BYTES);
    c->last = -1;
    pthread_mutex_init(&c->mutex, NULL);
    pthread_cond_init(&c->wake, NULL);
    c->threads = calloc((size_t)threads, sizeof *c->threads);
    c->parts = c->threads ? threads : 1;
    c->barrier.parts = c->parts;
    for (int part = 1; part < c->parts; part++) {
        struct worker *own = malloc(sizeof *own);
        if (own) { own->context = c; own->part = part; }
        if (!own || pthread_create(&c->threads[part], NULL, serve, own)) {
            free(own);
            c->parts = part; /* those started so far have not been given a job yet */
            c->barrier.parts = part;
            break;
        }
    }
    return c;
}

void NAME(close)(void *context) {
    struct context *c = context;
    if (!c) return;
    c->is_closing = 1;
    post(c);
    for (int part = 1; part < c->parts; part++) pthread_join(c->threads[part], NULL);
    pthread_mutex_destroy(&c->mutex);
    pthread_cond_destroy(&c->wake);
    free(c->threads);
    free(c->arena);
    free(c);
}

static void infer(struct context *c, const void *const *in, void *const *out, int is_float) {
    c->in = in;
    c->out = out;
    c->is_float = is_float;
    if (c->parts > 1) post(c);
    work(c->arena, in, out, is_float, 0, c->parts, c->last, &c->barrier);
    if (c->parts > 1) meet(&c->barrier);
}

void NAME(infer)(void *context, const int8_t *const *in, int8_t *const *out) {
    infer(context, (const void *const *)in, (void *const *)out, 0);
}

void NAME(infer_float)(void *context, const float *const *in, float *const *out) {
    infer(context, (const void *const *)in, (void *const *)out, 1);
}

/* For the proof: stops behind one step of the network, and shows the memory of all maps. */
const unsigned char *NAME(trace)(void *context, const int8_t *const *in, int8_t *const *out, int last) {
    struct context *c = context;
    c->last = last;
    infer(c, (const void *const *)in, (void *const *)out, 0);
    c->last = -1;
    return c->arena;
}
