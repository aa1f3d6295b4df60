// Caches: attention against plain softmax, what the recipes let go, what can be taken back.
#include "check.h"

#include <math.h>

enum { HEADS = 4, KV_HEADS = 2, DIM = 32, VALUE_DIM = 16 };
static const tp_kv_shape SHAPE = {HEADS, KV_HEADS, DIM, VALUE_DIM};

// Plain softmax of one query of one head over the tokens from `first` to `last`, in double.
static void attention(
    const float *q, const float *k, const float *v, size_t head, size_t first, size_t last, double *out) {
    double scores[512], most = -INFINITY, sum = 0;
    for (size_t t = first; t <= last; t++) {
        double dot = 0;
        for (size_t d = 0; d < DIM; d++) dot += (double)q[d] * k[(t * KV_HEADS + head) * DIM + d];
        scores[t] = dot / sqrt(DIM);
        most = fmax(most, scores[t]);
    }
    for (size_t t = first; t <= last; t++) sum += scores[t] = exp(scores[t] - most);
    for (size_t d = 0; d < VALUE_DIM; d++) {
        out[d] = 0;
        for (size_t t = first; t <= last; t++) out[d] += scores[t] / sum * v[(t * KV_HEADS + head) * VALUE_DIM + d];
    }
}

static double attention_error(
    const float *q, const float *k, const float *v, size_t before, size_t tokens, size_t window, const float *out) {
    double worst = 0, exact[VALUE_DIM];
    for (size_t t = 0; t < tokens; t++) {
        size_t last = before + t, first = window && last + 1 > window ? last + 1 - window : 0;
        for (size_t h = 0; h < HEADS; h++) {
            attention(q + (t * HEADS + h) * DIM, k, v, h / (HEADS / KV_HEADS), first, last, exact);
            for (size_t d = 0; d < VALUE_DIM; d++)
                worst = fmax(worst, fabs(exact[d] - out[(t * HEADS + h) * VALUE_DIM + d]));
        }
    }
    return worst;
}

static double run(
    tp_context *context, tp_scratch scratch, const char *recipe, int32_t dtype, size_t window, tp_kv *cache) {
    tp_error error;
    enum { CHUNK = 5, CHUNKS = 12, ALL = CHUNK * CHUNKS };
    float *k = numbers(ALL * KV_HEADS * DIM, 10), *v = numbers(ALL * KV_HEADS * VALUE_DIM, 70000);
    float *q = numbers(ALL * HEADS * DIM, 300000);
    uint16_t *half = room((ALL * HEADS * DIM) * sizeof *half);
    double worst = 0;
    OK(tp_kv_open(context, recipe, &SHAPE, 0, cache, 1, &error));
    for (size_t c = 0; c < CHUNKS; c++) {
        size_t ks = CHUNK * KV_HEADS * DIM, vs = CHUNK * KV_HEADS * VALUE_DIM, qs = CHUNK * HEADS * DIM;
        const float *ck = k + c * ks, *cv = v + c * vs, *cq = q + c * qs;
        float out[CHUNK * HEADS * VALUE_DIM];
        const void *keys = ck, *values = cv, *queries = cq;
        uint16_t hk[CHUNK * KV_HEADS * DIM], hv[CHUNK * KV_HEADS * VALUE_DIM];
        if (dtype != TP_TYPE_F32) {
            uint16_t (*as)(float) = dtype == TP_TYPE_F16 ? as_f16 : as_bf16;
            for (size_t i = 0; i < ks; i++) hk[i] = as(ck[i]);
            for (size_t i = 0; i < vs; i++) hv[i] = as(cv[i]);
            for (size_t i = 0; i < qs; i++) half[i] = as(cq[i]);
            keys = hk, values = hv, queries = half;
        }
        OK(tp_kv_append(context, *cache, scratch, dtype, keys, ks, values, vs, CHUNK, &error));
        OK(tp_kv_attend(
            context, *cache, scratch, dtype, queries, qs, CHUNK, window, out, CHUNK * HEADS * VALUE_DIM, &error));
        worst = fmax(worst, attention_error(cq, k, v, c * CHUNK, CHUNK, window, out));
    }
    tp_kv_info info;
    OK(tp_kv_describe(context, *cache, &info, &error));
    CHECK(info.length == ALL && info.settled == ALL && info.earliest <= ALL && info.bytes > 0);
    free(half);
    free(k);
    free(v);
    free(q);
    return worst;
}

static void deferred(tp_context *context, tp_scratch scratch) {
    tp_error error;
    tp_kv caches[3] = {{0}, {0}, {0}};
    OK(tp_kv_open(context, "kivi(bits=4) | h2o(tokens=16)", &SHAPE, 1, caches, 3, &error));
    CHECK(caches[0].id && caches[1].id && caches[2].id && caches[0].id != caches[1].id);
    tp_kv_info info;
    for (size_t round = 0; round < 12; round++) {
        float *k = numbers(4 * KV_HEADS * DIM, 1 + (unsigned)round * 1000), *q = numbers(4 * HEADS * DIM, 7);
        float out[4 * HEADS * VALUE_DIM];
        OK(tp_kv_append(
            context, caches[0], scratch, TP_TYPE_F32, k, 4 * KV_HEADS * DIM, k, 4 * KV_HEADS * VALUE_DIM, 4, &error));
        OK(tp_kv_attend(
            context, caches[0], scratch, TP_TYPE_F32, q, 4 * HEADS * DIM, 4, 0, out, 4 * HEADS * VALUE_DIM, &error));
        OK(tp_kv_describe(context, caches[0], &info, &error));
        CHECK(info.length == 3 * round + 4 && info.settled == 3 * round);
        OK(tp_kv_truncate(context, caches[0], info.settled + 3, &error));
        OK(tp_kv_settle(context, caches[0], &error));
        free(k);
        free(q);
    }
    OK(tp_kv_describe(context, caches[0], &info, &error));
    CHECK(info.length == 36 && info.settled == 36);
    // What was let go cannot be taken back; nothing that was never there either.
    EXPECT(TP_STATUS_UNSUPPORTED, tp_kv_truncate(context, caches[0], 5, &error));
    CHECK(tp_kv_truncate(context, caches[0], 37, &error) != TP_STATUS_OK);
    OK(tp_kv_describe(context, caches[0], &info, &error));
    CHECK(info.length == 36);
    OK(tp_kv_truncate(context, caches[0], 0, &error));
    for (size_t i = 0; i < 3; i++) OK(tp_kv_close(context, &caches[i], &error));
}

static void refusals(tp_context *context, tp_scratch scratch) {
    tp_error error;
    tp_kv cache = {0};
    tp_kv_shape odd = {3, 2, DIM, 0}, none = {HEADS, KV_HEADS, 0, 0};
    EXPECT(TP_STATUS_INVALID_ARGUMENT, tp_kv_open(context, "", &odd, 0, &cache, 1, &error));
    EXPECT(TP_STATUS_INVALID_ARGUMENT, tp_kv_open(context, "", &none, 0, &cache, 1, &error));
    tp_kv_shape huge = {SIZE_MAX, SIZE_MAX, SIZE_MAX, 0}, wide = {1, 1, 1, TP_MOST_HEADS + 1};
    EXPECT(TP_STATUS_INVALID_ARGUMENT, tp_kv_open(context, "", &huge, 0, &cache, 1, &error));
    EXPECT(TP_STATUS_INVALID_ARGUMENT, tp_kv_open(context, "", &wide, 0, &cache, 1, &error));
    EXPECT(TP_STATUS_INVALID_ARGUMENT, tp_kv_open(context, "no_such_store", &SHAPE, 0, &cache, 1, &error));
    EXPECT(TP_STATUS_INVALID_ARGUMENT, tp_kv_open(context, "kivi(bits=4) |", &SHAPE, 0, &cache, 1, &error));
    EXPECT(TP_STATUS_BAD_UTF8, tp_kv_open(context, "\xc3(", &SHAPE, 0, &cache, 1, &error));
    CHECK(cache.id == 0);
    OK(tp_kv_open(context, "f16", &SHAPE, 0, &cache, 0, &error));
    CHECK(cache.id == 0);
    OK(tp_kv_open(context, "bf16", &SHAPE, 0, &cache, 1, &error));
    float *x = numbers(2 * HEADS * DIM, 3), out[2 * HEADS * VALUE_DIM];
    size_t ks = KV_HEADS * DIM, vs = KV_HEADS * VALUE_DIM, qs = HEADS * DIM, os = HEADS * VALUE_DIM;
    EXPECT(TP_STATUS_WRONG_LENGTH, tp_kv_append(context, cache, scratch, TP_TYPE_F32, x, ks - 1, x, vs, 1, &error));
    EXPECT(TP_STATUS_WRONG_LENGTH, tp_kv_append(context, cache, scratch, TP_TYPE_F32, x, ks, x, vs + 1, 1, &error));
    EXPECT(TP_STATUS_UNSUPPORTED, tp_kv_append(context, cache, scratch, TP_TYPE_F8, x, ks, x, vs, 1, &error));
    EXPECT(
        TP_STATUS_INVALID_ARGUMENT, tp_kv_attend(context, cache, scratch, TP_TYPE_F32, x, qs, 1, 0, out, os, &error));
    OK(tp_kv_append(context, cache, scratch, TP_TYPE_F32, x, ks, x, vs, 1, &error));
    EXPECT(
        TP_STATUS_WRONG_LENGTH, tp_kv_attend(context, cache, scratch, TP_TYPE_F32, x, qs + 1, 1, 0, out, os, &error));
    EXPECT(
        TP_STATUS_WRONG_LENGTH, tp_kv_attend(context, cache, scratch, TP_TYPE_F32, x, qs, 1, 0, out, os - 1, &error));
    EXPECT(TP_STATUS_OVERLAP, tp_kv_attend(context, cache, scratch, TP_TYPE_F32, x, qs, 1, 0, x + 1, os, &error));
    EXPECT(TP_STATUS_INVALID_ARGUMENT,
        tp_kv_attend(context, cache, scratch, TP_TYPE_F32, x, 2 * qs, 2, 0, out, 2 * os, &error));
    x[0] = INFINITY;
    EXPECT(TP_STATUS_NUMERICAL, tp_kv_append(context, cache, scratch, TP_TYPE_F32, x, ks, x, vs, 1, &error));
    tp_kv_info info;
    OK(tp_kv_describe(context, cache, &info, &error));
    CHECK(info.length == 1);
    free(x);
    OK(tp_kv_close(context, &cache, &error));
}

void test_kv(tp_context *context) {
    tp_error error;
    tp_scratch scratch[2] = {{0}, {0}};
    for (size_t i = 0; i < 2; i++) OK(tp_scratch_open(context, i, &scratch[i], &error));
    tp_kv cache = {0}, fork = {0};
    tp_kv_info whole, packed, part;
    for (int32_t dtype = TP_TYPE_F16; dtype <= TP_TYPE_F32; dtype++) {
        CHECK(run(context, scratch[dtype % 2], "", dtype, 0, &cache) < 1e-4);
        OK(tp_kv_close(context, &cache, &error));
        CHECK(run(context, scratch[dtype % 2], "", dtype, 7, &cache) < 1e-4);
        OK(tp_kv_describe(context, cache, &whole, &error));
        // A fork stays what it was; the other goes back, and on.
        OK(tp_kv_fork(context, cache, &fork, &error));
        OK(tp_kv_truncate(context, cache, 40, &error));
        OK(tp_kv_settle(context, cache, &error));
        OK(tp_kv_describe(context, cache, &part, &error));
        CHECK(part.length == 40 && part.bytes <= whole.bytes);
        OK(tp_kv_close(context, &cache, &error));
        OK(tp_kv_describe(context, fork, &part, &error));
        CHECK(part.length == whole.length && part.bytes == whole.bytes);
        OK(tp_kv_close(context, &fork, &error));
    }
    CHECK(run(context, scratch[0], "kivi(bits=8, group=16, residual=16, margin=0)", TP_TYPE_F32, 0, &cache) < 0.2);
    OK(tp_kv_describe(context, cache, &packed, &error));
    CHECK(packed.bytes < whole.bytes);
    OK(tp_kv_close(context, &cache, &error));
    run(context, scratch[1], "h2o(keep=0.5)", TP_TYPE_F32, 0, &cache);
    OK(tp_kv_describe(context, cache, &part, &error));
    CHECK(part.bytes < whole.bytes * 3 / 4);
    OK(tp_kv_close(context, &cache, &error));
    deferred(context, scratch[1]);
    refusals(context, scratch[0]);
    for (size_t i = 0; i < 2; i++) OK(tp_scratch_close(context, &scratch[i], &error));
}
