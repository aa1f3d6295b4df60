// Many threads with one context: the same layer multiplied, prepacked and closed; a scratch and a cache by turns.
#include "check.h"

#include <pthread.h>

enum { THREADS = 8, ROWS = 64, COLS = 96, TOKENS = 4, ROUNDS = 40 };

struct job {
    tp_context *context;
    tp_layer layer;
    tp_scratch shared;
    tp_kv cache;
    const float *w, *x;
    float *y; // [TOKENS, ROWS / THREADS], this thread's
    size_t place, done, busy, closed;
};

static void *multiply(void *argument) {
    struct job *job = argument;
    tp_error error;
    tp_scratch own = {0};
    OK(tp_scratch_open(job->context, 1 + job->place % 2, &own, &error));
    size_t rows = ROWS / THREADS, first = rows * job->place;
    for (size_t round = 0; round < ROUNDS; round++) {
        if (job->place == 0 && round == ROUNDS / 2) OK(tp_layer_prepack(job->context, job->layer, &error));
        OK(tp_layer_multiply(job->context, job->layer, own, first, rows, TP_TYPE_F32, job->x, TOKENS * COLS, TOKENS,
            job->y, TOKENS * rows, &error));
        CHECK(product_error(job->w + first * COLS, rows, COLS, job->x, TOKENS, job->y) < 1e-3);
        job->done++;
    }
    OK(tp_scratch_close(job->context, &own, &error));
    return NULL;
}

// All with the same scratch and cache: whoever comes second is told so, and nothing is mixed up.
static void *jostle(void *argument) {
    struct job *job = argument;
    tp_error error;
    float y[TOKENS * ROWS], k[32], out[64];
    for (size_t i = 0; i < 32; i++) k[i] = number((unsigned)(job->place * 32 + i));
    while (job->done < ROUNDS) {
        tp_status status = tp_layer_multiply(job->context, job->layer, job->shared, 0, ROWS, TP_TYPE_F32, job->x,
            TOKENS * COLS, TOKENS, y, TOKENS * ROWS, &error);
        CHECK(status == TP_STATUS_OK || status == TP_STATUS_BUSY);
        if (status == TP_STATUS_BUSY) {
            job->busy++;
            continue;
        }
        CHECK(product_error(job->w, ROWS, COLS, job->x, TOKENS, y) < 1e-3);
        job->done++;
        tp_scratch own = {0};
        OK(tp_scratch_open(job->context, 1, &own, &error));
        do status = tp_kv_append(job->context, job->cache, own, TP_TYPE_F32, k, 32, k, 32, 1, &error);
        while (status == TP_STATUS_BUSY);
        CHECK(status == TP_STATUS_OK);
        do status = tp_kv_attend(job->context, job->cache, own, TP_TYPE_F32, k, 32, 1, 0, out, 32, &error);
        while (status == TP_STATUS_BUSY);
        CHECK(status == TP_STATUS_OK);
        OK(tp_scratch_close(job->context, &own, &error));
    }
    return NULL;
}

// One layer, closed by all of them: one is the first.
static void *close_all(void *argument) {
    struct job *job = argument;
    tp_error error;
    float y[TOKENS * ROWS / THREADS];
    size_t rows = ROWS / THREADS;
    tp_scratch own = {0};
    OK(tp_scratch_open(job->context, 1, &own, &error));
    for (size_t round = 0; round < ROUNDS; round++) {
        tp_status status = tp_layer_multiply(job->context, job->layer, own, 0, rows, TP_TYPE_F32, job->x, TOKENS * COLS,
            TOKENS, y, TOKENS * rows, &error);
        CHECK(status == TP_STATUS_OK || status == TP_STATUS_CLOSED);
        if (round == ROUNDS / 2) {
            tp_layer copy = job->layer;
            status = tp_layer_close(job->context, &copy, &error);
            CHECK(copy.id == 0 && (status == TP_STATUS_OK || status == TP_STATUS_CLOSED));
            job->closed += status == TP_STATUS_OK;
        }
    }
    OK(tp_scratch_close(job->context, &own, &error));
    return NULL;
}

static void run(struct job *jobs, void *(*work)(void *)) {
    pthread_t threads[THREADS];
    for (size_t i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, work, &jobs[i]) == 0);
    for (size_t i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
}

void test_threads(tp_context *context) {
    tp_error error;
    tp_layer layer = {0};
    tp_scratch shared = {0};
    tp_kv cache = {0};
    tp_kv_shape shape = {2, 2, 16, 0};
    float *original = numbers(ROWS * COLS, 1), *x = numbers(TOKENS * COLS, 77), *w = room(ROWS * COLS * sizeof *w);
    OK(tp_compress(
        context, "rtn(bits=4, group=32)", TP_TYPE_F32, original, ROWS * COLS, ROWS, COLS, NULL, 0, &layer, &error));
    OK(tp_layer_decode(context, layer, 0, ROWS, w, ROWS * COLS, &error));
    OK(tp_scratch_open(context, 0, &shared, &error));
    OK(tp_kv_open(context, "", &shape, 0, &cache, 1, &error));
    struct job jobs[THREADS];
    for (size_t i = 0; i < THREADS; i++) {
        struct job job = {
            context, layer, shared, cache, w, x, room(TOKENS * ROWS / THREADS * sizeof(float)), i, 0, 0, 0};
        jobs[i] = job;
    }
    run(jobs, multiply);
    for (size_t i = 0; i < THREADS; i++) {
        CHECK(jobs[i].done == ROUNDS);
        jobs[i].done = 0;
    }
    run(jobs, jostle);
    tp_kv_info info;
    OK(tp_kv_describe(context, cache, &info, &error));
    CHECK(info.length == THREADS * ROUNDS);
    run(jobs, close_all);
    size_t closed = 0;
    for (size_t i = 0; i < THREADS; i++) closed += jobs[i].closed;
    CHECK(closed == 1);
    EXPECT(TP_STATUS_CLOSED, tp_layer_close(context, &layer, &error));
    OK(tp_kv_close(context, &cache, &error));
    OK(tp_scratch_close(context, &shared, &error));
    for (size_t i = 0; i < THREADS; i++) free(jobs[i].y);
    free(w);
    free(x);
    free(original);
}
