/* Collectives and messages of the ranks of one host, over one piece of shared memory.
 *
 * The memory is laid out by llama/parallel/shm/layout.py, and llama/parallel/shm/channel.py speaks
 * the same protocol: a rank with a compiler and one without understand each other.
 *
 * A collective is a sequence of steps. In step s a rank waits until everybody has entered step
 * s - 1 and so left s - 2, writes its part into its slot s % 2, publishes s, and reads the slots of
 * those that it needs once they have published s. Sums are taken in rank order by whoever takes
 * them: all ranks get the same bits.
 *
 * No function waits longer than it was told to: it returns AGAIN, and goes on where it stopped
 * when it is called with the same arguments.
 */

#define _GNU_SOURCE
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#if defined(__F16C__)
#include <immintrin.h>
#endif

enum status { DONE = 0, AGAIN = 1, HUNG_UP = 2, MISMATCH = 3 };
enum dtype { F32, F64, F16, BF16, I64, I32, I16, I8, U8, BOOL };

enum { MAX_STRETCH = 1024 }; /* elements that are summed at a time, in registers and L1 */

typedef struct {
    uint64_t step;         /* the last step that this rank entered */
    uint64_t signature[2]; /* what it called there, by parity of the step */
    uint64_t closed;       /* not 0: it will enter no more */
} rank_header;

typedef struct {
    _Alignas(128) uint64_t head; /* bytes ever written, by the sender */
    _Alignas(128) uint64_t tail; /* bytes ever read, by the receiver */
} ring_header;

/* One rank's view; the fields are those of llama/parallel/shm/native.py. */
typedef struct {
    uint8_t *base;
    int64_t n_ranks, rank;
    int64_t header_offset, header_stride;
    int64_t slot_offset, slot_bytes;
    int64_t ring_header_offset, ring_offset, ring_bytes;
    int64_t spin_us, awake_us; /* until when a wait spins, and until when it yields */
    int64_t waited_us;         /* how long this wait has taken before this call */
    int64_t patience_us;       /* how long a call may wait */
    int64_t offset, phase;     /* where an unfinished collective goes on */
} channel;

static rank_header *header(const channel *c, int64_t rank) {
    return (rank_header *)(c->base + c->header_offset + rank * c->header_stride);
}

static uint8_t *slot(const channel *c, int64_t rank, uint64_t step) {
    return c->base + c->slot_offset + (rank * 2 + (int64_t)(step & 1)) * c->slot_bytes;
}

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static uint64_t load(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }

static void store(uint64_t *p, uint64_t value) { __atomic_store_n(p, value, __ATOMIC_RELEASE); }

static void pause_cpu(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

static int64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* One breath of a wait: awake first, then asleep for a share of the time that it has taken. */
static int breathe(const channel *c, int64_t *began_us) {
    int64_t now = now_us();
    if (!*began_us) *began_us = now;
    int64_t here_us = now - *began_us, waited_us = c->waited_us + here_us;
    if (here_us >= c->patience_us) return AGAIN;
    if (waited_us < c->spin_us) {
        for (int i = 0; i < 16; i++) pause_cpu();
    } else if (waited_us < c->awake_us) {
        sched_yield();
    } else {
        int64_t nap_us = smaller(waited_us / 16, waited_us < 1000000 ? 1000 : 5000);
        if (nap_us < 30) nap_us = 30;
        struct timespec t = {0, smaller(nap_us, c->patience_us - here_us) * 1000};
        nanosleep(&t, 0);
    }
    return DONE;
}

/* Until `*counter` has reached `value`, which rank `rank` has to bring about. */
static int await(const channel *c, int64_t rank, const uint64_t *counter, uint64_t value) {
    int64_t began_us = 0;
    while (load(counter) < value) {
        int is_over = load(&header(c, rank)->closed) || load(&header(c, c->rank)->closed);
        int status = is_over ? HUNG_UP : breathe(c, &began_us);
        if (status != DONE) return load(counter) >= value ? DONE : status;
    }
    return DONE;
}

static int await_rank(const channel *c, int64_t rank, uint64_t step) {
    return await(c, rank, &header(c, rank)->step, step);
}

static int await_all(const channel *c, uint64_t step) {
    for (int64_t r = 0; r < c->n_ranks; r++) {
        int status = r == c->rank ? DONE : await_rank(c, r, step);
        if (status != DONE) return status;
    }
    return DONE;
}

static int agrees(const channel *c, int64_t rank, uint64_t step, uint64_t signature) {
    return header(c, rank)->signature[step & 1] == signature ? DONE : MISMATCH;
}

static int all_agree(const channel *c, uint64_t step, uint64_t signature) {
    for (int64_t r = 0; r < c->n_ranks; r++)
        if (agrees(c, r, step, signature) != DONE) return MISMATCH;
    return DONE;
}

static uint64_t last_step(const channel *c) { return header(c, c->rank)->step; }

static void publish(const channel *c, uint64_t step, uint64_t signature) {
    header(c, c->rank)->signature[step & 1] = signature;
    store(&header(c, c->rank)->step, step);
}

/* Enter the next step with `n` bytes of `x`, once the slot is free. */
static int enter(channel *c, const uint8_t *x, int64_t n, uint64_t signature) {
    uint64_t step = last_step(c);
    int status = await_all(c, step);
    if (status != DONE) return status;
    if (n) memcpy(slot(c, c->rank, step + 1), x, (size_t)n);
    publish(c, step + 1, signature);
    return DONE;
}

/* --- sums ------------------------------------------------------------------------------------ */

static float from_bf16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

static uint16_t to_bf16(float value) {
    uint32_t wide;
    memcpy(&wide, &value, 4);
    if ((wide & 0x7fffffffu) > 0x7f800000u) return 0x7fc0; /* as torch writes a NaN */
    return (uint16_t)((wide + 0x7fffu + ((wide >> 16) & 1)) >> 16);
}

#if defined(__F16C__) /* GCC has had _Float16 on x86 only since version 12 */
typedef uint16_t half;
static float from_half(half bits) { return _cvtsh_ss(bits); }
static half to_half(float value) { return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }
#else
typedef _Float16 half;
static float from_half(half value) { return (float)value; }
static half to_half(float value) { return (half)value; }
#endif

#define SUM(NAME, TYPE, WIDE, GET, PUT)                                                          \
    static void NAME(const channel *c, uint64_t step, int64_t at, int64_t n, TYPE *out) {        \
        WIDE sum[MAX_STRETCH];                                                                   \
        for (int64_t i = 0; i < n; i += MAX_STRETCH) {                                           \
            int64_t m = smaller(n - i, MAX_STRETCH);                                             \
            const TYPE *first = (const TYPE *)slot(c, 0, step) + at + i;                         \
            for (int64_t j = 0; j < m; j++) sum[j] = GET(first[j]);                              \
            for (int64_t r = 1; r < c->n_ranks; r++) {                                           \
                const TYPE *part = (const TYPE *)slot(c, r, step) + at + i;                      \
                for (int64_t j = 0; j < m; j++) sum[j] = (WIDE)(sum[j] + GET(part[j]));          \
            }                                                                                    \
            for (int64_t j = 0; j < m; j++) out[i + j] = PUT(sum[j]);                            \
        }                                                                                        \
    }

#define SAME(x) (x)
#define TRUTH(x) ((uint8_t)((x) != 0))
SUM(sum_f32, float, float, SAME, SAME)
SUM(sum_f64, double, double, SAME, SAME)
SUM(sum_f16, half, float, from_half, to_half)
SUM(sum_bf16, uint16_t, float, from_bf16, to_bf16)
SUM(sum_i64, uint64_t, uint64_t, SAME, SAME) /* unsigned: an overflow wraps, as in torch */
SUM(sum_i32, uint32_t, uint32_t, SAME, SAME)
SUM(sum_i16, uint16_t, uint16_t, SAME, SAME)
SUM(sum_i8, uint8_t, uint8_t, SAME, SAME)
SUM(sum_bool, uint8_t, uint32_t, TRUTH, TRUTH) /* wide: 256 truths are not none */

static const int64_t ITEM_BYTES[] = {4, 8, 2, 2, 8, 4, 2, 1, 1, 1};

/* Elements [at, at + n) of everybody's slot, summed into `out`. */
static void sum(const channel *c, uint64_t step, int64_t at, int64_t n, int64_t dtype, uint8_t *out) {
    switch (dtype) {
    case F32: sum_f32(c, step, at, n, (float *)out); break;
    case F64: sum_f64(c, step, at, n, (double *)out); break;
    case F16: sum_f16(c, step, at, n, (half *)out); break;
    case BF16: sum_bf16(c, step, at, n, (uint16_t *)out); break;
    case I64: sum_i64(c, step, at, n, (uint64_t *)out); break;
    case I32: sum_i32(c, step, at, n, (uint32_t *)out); break;
    case I16: sum_i16(c, step, at, n, (uint16_t *)out); break;
    case I8: case U8: sum_i8(c, step, at, n, out); break;
    case BOOL: sum_bool(c, step, at, n, out); break;
    }
}

/* --- collectives ------------------------------------------------------------------------------ */

static int64_t piece_bytes(const channel *c, int64_t n_bytes) {
    return smaller(c->slot_bytes, n_bytes - c->offset);
}

static int finish(channel *c) {
    c->offset = c->phase = 0;
    return DONE;
}

/* Where rank `rank`'s share of `n` elements begins, where each rank sums its own share. */
static int64_t share(const channel *c, int64_t rank, int64_t n) { return n * rank / c->n_ranks; }

/* Phase 0: into the slot. 1: sum all of it. */
static int reduce_whole(channel *c, uint8_t *x, int64_t n, int64_t dtype, uint64_t signature) {
    int status;
    if (c->phase == 0) {
        if ((status = enter(c, x, n, signature)) != DONE) return status;
        c->phase = 1;
    }
    uint64_t step = last_step(c);
    if ((status = await_all(c, step)) != DONE) return status;
    if ((status = all_agree(c, step, signature)) != DONE) return status;
    sum(c, step, 0, n / ITEM_BYTES[dtype], dtype, x);
    return DONE;
}

/* Phase 0: into the slot. 1: sum one's own share. 2: the result into the next slot. 3: collect. */
static int reduce_shared(channel *c, uint8_t *x, int64_t n, int64_t dtype, uint64_t signature) {
    int status;
    const int64_t item = ITEM_BYTES[dtype], n_items = n / item;
    const int64_t begin = share(c, c->rank, n_items);
    const int64_t length = share(c, c->rank + 1, n_items) - begin;
    if (c->phase == 0) {
        if ((status = enter(c, x, n, signature)) != DONE) return status;
        c->phase = 1;
    }
    if (c->phase == 1) {
        if ((status = await_all(c, last_step(c))) != DONE) return status;
        if ((status = all_agree(c, last_step(c), signature)) != DONE) return status;
        sum(c, last_step(c), begin, length, dtype, x + begin * item);
        c->phase = 2;
    }
    if (c->phase == 2) {
        status = enter(c, x + begin * item, length * item, signature);
        if (status != DONE) return status;
        c->phase = 3;
    }
    uint64_t step = last_step(c);
    if ((status = await_all(c, step)) != DONE) return status;
    for (int64_t r = 0; r < c->n_ranks; r++) {
        int64_t from = share(c, r, n_items) * item, to = share(c, r + 1, n_items) * item;
        if (r != c->rank) memcpy(x + from, slot(c, r, step), (size_t)(to - from));
    }
    return DONE;
}

/* `is_shared`: each rank sums a share and all collect, which pays for more than two ranks. */
int shm_all_reduce(channel *c, uint8_t *x, int64_t n_bytes, int64_t dtype, int64_t is_shared,
                   uint64_t signature) {
    do {
        int64_t n = piece_bytes(c, n_bytes);
        int status = (is_shared ? reduce_shared : reduce_whole)(c, x + c->offset, n, dtype,
                                                                signature);
        if (status != DONE) return status;
        c->phase = 0;
        c->offset += n;
    } while (c->offset < n_bytes);
    return finish(c);
}

/* Everybody's `x` one after the other into `out`, or only handed over where `out` is NULL. */
int shm_gather(channel *c, const uint8_t *x, int64_t n_bytes, uint8_t *out, uint64_t signature) {
    do {
        int status;
        int64_t n = piece_bytes(c, n_bytes);
        if (c->phase == 0) {
            if ((status = enter(c, x + c->offset, n, signature)) != DONE) return status;
            c->phase = 1;
        }
        if (out) {
            uint64_t step = last_step(c);
            if ((status = await_all(c, step)) != DONE) return status;
            if ((status = all_agree(c, step, signature)) != DONE) return status;
            for (int64_t r = 0; r < c->n_ranks && n; r++)
                memcpy(out + r * n_bytes + c->offset, slot(c, r, step), (size_t)n);
        }
        c->phase = 0;
        c->offset += n;
    } while (c->offset < n_bytes);
    return finish(c);
}

int shm_broadcast(channel *c, uint8_t *x, int64_t n_bytes, int64_t src, uint64_t signature) {
    do {
        int status;
        int64_t n = piece_bytes(c, n_bytes);
        if (c->phase == 0) {
            int64_t n_own = src == c->rank ? n : 0;
            if ((status = enter(c, x + c->offset, n_own, signature)) != DONE)
                return status;
            c->phase = 1;
        }
        if (src != c->rank) {
            uint64_t step = last_step(c);
            if ((status = await_rank(c, src, step)) != DONE) return status;
            if ((status = agrees(c, src, step, signature)) != DONE) return status;
            if (n) memcpy(x + c->offset, slot(c, src, step), (size_t)n);
        }
        c->phase = 0;
        c->offset += n;
    } while (c->offset < n_bytes);
    return finish(c);
}

int shm_barrier(channel *c, uint64_t signature) {
    int status;
    if (c->phase == 0) {
        if ((status = enter(c, 0, 0, signature)) != DONE) return status;
        c->phase = 1;
    }
    if ((status = await_all(c, last_step(c))) != DONE) return status;
    if ((status = all_agree(c, last_step(c), signature)) != DONE) return status;
    return finish(c);
}

/* --- messages --------------------------------------------------------------------------------- */

static int64_t pair(const channel *c, int64_t src, int64_t dst) { return src * c->n_ranks + dst; }

static ring_header *ring(const channel *c, int64_t src, int64_t dst) {
    return (ring_header *)(c->base + c->ring_header_offset) + pair(c, src, dst);
}

static uint8_t *ring_data(const channel *c, int64_t src, int64_t dst) {
    return c->base + c->ring_offset + pair(c, src, dst) * c->ring_bytes;
}

/* Everything in a ring begins at a multiple of eight. */
static int64_t padded(int64_t n) { return (n + 7) & ~(int64_t)7; }

/* A message to rank `dst`: `*done` bytes of it are on their way, WORD less before the first call.
 * It begins with its signature, which tells the receiver that it expects another one. */
enum { WORD = 8 };

int shm_push(const channel *c, int64_t dst, const uint8_t *x, int64_t n_bytes, uint64_t signature,
             int64_t *done) {
    ring_header *h = ring(c, c->rank, dst);
    uint8_t *data = ring_data(c, c->rank, dst);
    const int64_t full = c->ring_bytes;
    while (*done < n_bytes) {
        int64_t head = (int64_t)h->head;
        int status = await(c, dst, &h->tail, (uint64_t)(head < full ? 0 : head - full + WORD));
        if (status != DONE) return status;
        int64_t room = full - (head - (int64_t)load(&h->tail));
        if (*done < 0) {
            memcpy(data + head % full, &signature, WORD);
            head += WORD, room -= WORD, *done = 0;
        }
        while (room > 0 && *done < n_bytes) {
            int64_t at = head % full;
            int64_t n = smaller(smaller(n_bytes - *done, room), full - at);
            memcpy(data + at, x + *done, (size_t)n);
            head += padded(n), room -= padded(n), *done += n;
        }
        store(&h->head, (uint64_t)head);
    }
    return DONE;
}

/* As shm_push, of the message from rank `src`. */
int shm_pull(const channel *c, int64_t src, uint8_t *x, int64_t n_bytes, uint64_t signature,
             int64_t *done) {
    ring_header *h = ring(c, src, c->rank);
    const uint8_t *data = ring_data(c, src, c->rank);
    const int64_t full = c->ring_bytes;
    while (*done < n_bytes) {
        int64_t tail = (int64_t)h->tail;
        int status = await(c, src, &h->head, (uint64_t)tail + WORD);
        if (status != DONE) return status;
        int64_t ready = (int64_t)load(&h->head) - tail;
        if (*done < 0) {
            if (memcmp(data + tail % full, &signature, WORD) != 0) return MISMATCH;
            tail += WORD, ready -= WORD, *done = 0;
        }
        while (ready > 0 && *done < n_bytes) {
            int64_t at = tail % full;
            int64_t n = smaller(smaller(n_bytes - *done, ready), full - at);
            memcpy(x + *done, data + at, (size_t)n);
            tail += padded(n), ready -= padded(n), *done += n;
        }
        store(&h->tail, (uint64_t)tail);
    }
    return DONE;
}
