// Pages: declared size, both layouts of an engine, every type, and damage.
#include "check.h"

#include <math.h>

enum {
    TOKENS = 6,
    HEADS = 3,
    DIM = 32,
    VALUE_DIM = 16,
    KEYS = TOKENS * HEADS * DIM,
    VALUES = TOKENS * HEADS * VALUE_DIM
};

// A number that begins at an odd address.
static float at(const uint8_t *bytes, size_t place) {
    float x;
    memcpy(&x, bytes + place * sizeof x, sizeof x);
    return x;
}

// Heads before tokens: how many numbers in, in place of [tokens, heads, channels].
static size_t turned(size_t place, size_t dim) {
    size_t token = place / (HEADS * dim), head = place / dim % HEADS;
    return (head * TOKENS + token) * dim + place % dim;
}

static void types(tp_context *context, tp_page_codec codec, tp_scratch scratch, const uint8_t *page, size_t bytes,
    const float *k, const float *v) {
    tp_error error;
    uint16_t hk[KEYS], hv[VALUES];
    uint8_t *other = room(bytes);
    for (int32_t dtype = TP_TYPE_F16; dtype <= TP_TYPE_BF16; dtype++) {
        uint16_t (*as)(float) = dtype == TP_TYPE_F16 ? as_f16 : as_bf16;
        for (size_t i = 0; i < KEYS; i++) hk[i] = as(k[i]);
        for (size_t i = 0; i < VALUES; i++) hv[i] = as(v[i]);
        OK(tp_page_encode(context, codec, scratch, dtype, hk, KEYS, hv, VALUES, TOKENS, 0, 0, other, bytes, &error));
        CHECK(memcmp(page, other, bytes) == 0);
        size_t held = 0;
        memset(hk, 0, sizeof hk);
        OK(tp_page_decode(
            context, codec, scratch, page, bytes, dtype, hk, KEYS, hv, VALUES, TOKENS, 0, 0, &held, &error));
        CHECK(held == TOKENS && hk[0] != 0);
    }
    free(other);
}

void test_pages(tp_context *context) {
    tp_error error;
    tp_page_config config;
    OK(tp_page_defaults(&config, &error));
    CHECK(config.tokens == 16 && config.kv_heads == 8 && config.head_dim == 128 && config.scales == TP_TYPE_F16);
    config.tokens = 8, config.kv_heads = HEADS, config.head_dim = DIM, config.value_dim = VALUE_DIM;
    config.group = 16, config.key_bits = 8, config.value_bits = 6;
    tp_page_codec codec = {0}, stranger = {0};
    tp_scratch scratch = {0};
    size_t bytes = 0, same = 0, held = 0;
    OK(tp_page_open(context, &config, &codec, &bytes, &error));
    OK(tp_scratch_open(context, 1, &scratch, &error));
    CHECK(bytes > 8 * HEADS * (DIM + VALUE_DIM * 6 / 8) && bytes < 8 * HEADS * (DIM + VALUE_DIM) * 2);

    float *k = numbers(KEYS, 11), *v = numbers(VALUES, 5000);
    uint8_t *page = room(bytes), *again = room(bytes), *raw = room(1 + (KEYS + VALUES) * sizeof(float));
    OK(tp_page_encode(context, codec, scratch, TP_TYPE_F32, k, KEYS, v, VALUES, TOKENS, 0, 0, page, bytes, &error));
    // From odd addresses, and heads before tokens: keys and values have strides of their own, so a value's width is
    // theirs.
    memcpy(raw + 1, k, KEYS * sizeof(float));
    memcpy(raw + 1 + KEYS * sizeof(float), v, VALUES * sizeof(float));
    OK(tp_page_encode(context, codec, scratch, TP_TYPE_F32, raw + 1, KEYS, raw + 1 + KEYS * sizeof(float), VALUES,
        TOKENS, 0, 0, again, bytes, &error));
    CHECK(memcmp(page, again, bytes) == 0);
    OK(tp_page_decode(context, codec, scratch, page, bytes, TP_TYPE_F32, raw + 1, KEYS, raw + 1 + KEYS * sizeof(float),
        VALUES, TOKENS, 0, 0, &held, &error));
    CHECK(held == TOKENS);
    for (size_t i = 0; i < KEYS; i++) CHECK(fabsf(at(raw + 1, i) - k[i]) < 0.15f);
    for (size_t i = 0; i < VALUES; i++) CHECK(fabsf(at(raw + 1, KEYS + i) - v[i]) < 0.6f);
    types(context, codec, scratch, page, bytes, k, v);

    // One array is all there is, heads before tokens.
    tp_page_config latent = config;
    latent.value_dim = 0;
    tp_page_codec single = {0};
    OK(tp_page_open(context, &latent, &single, &same, &error));
    CHECK(same < bytes);
    uint8_t *one = room(same), *two = room(same);
    float *turn = room(KEYS * sizeof *turn);
    for (size_t i = 0; i < KEYS; i++) turn[turned(i, DIM)] = k[i];
    OK(tp_page_encode(context, single, scratch, TP_TYPE_F32, k, KEYS, NULL, 0, TOKENS, 0, 0, one, same, &error));
    OK(tp_page_encode(
        context, single, scratch, TP_TYPE_F32, turn, KEYS, NULL, 0, TOKENS, DIM, TOKENS * DIM, two, same, &error));
    CHECK(memcmp(one, two, same) == 0);
    float *back = room(KEYS * sizeof *back);
    OK(tp_page_decode(
        context, single, scratch, one, same, TP_TYPE_F32, back, KEYS, NULL, 0, TOKENS, 0, 0, &held, &error));
    OK(tp_page_decode(context, single, scratch, one, same, TP_TYPE_F32, turn, KEYS, NULL, 0, TOKENS, DIM, TOKENS * DIM,
        &held, &error));
    for (size_t i = 0; i < KEYS; i++) CHECK(turn[turned(i, DIM)] == back[i]);
    EXPECT(TP_STATUS_SHAPE_MISMATCH, tp_page_encode(context, single, scratch, TP_TYPE_F32, turn, KEYS, NULL, 0, TOKENS,
                                         DIM, TOKENS * DIM + 1, two, same, &error));
    EXPECT(TP_STATUS_INVALID_ARGUMENT,
        tp_page_encode(context, single, scratch, TP_TYPE_F32, turn, KEYS, NULL, 0, TOKENS, DIM, 0, two, same, &error));

    // Refusals.
    EXPECT(TP_STATUS_SHAPE_MISMATCH, tp_page_encode(context, codec, scratch, TP_TYPE_F32, k, KEYS - 1, v, VALUES,
                                         TOKENS, 0, 0, again, bytes, &error));
    EXPECT(TP_STATUS_SHAPE_MISMATCH, tp_page_encode(context, codec, scratch, TP_TYPE_F32, k, KEYS, v, VALUES, TOKENS, 0,
                                         0, again, bytes - 1, &error));
    EXPECT(TP_STATUS_SHAPE_MISMATCH, tp_page_encode(context, codec, scratch, TP_TYPE_F32, k, KEYS, v, VALUES,
                                         SIZE_MAX / 2, 0, 0, again, bytes, &error));
    EXPECT(TP_STATUS_UNSUPPORTED,
        tp_page_encode(context, codec, scratch, TP_TYPE_F64, k, KEYS, v, VALUES, TOKENS, 0, 0, again, bytes, &error));
    EXPECT(TP_STATUS_OVERLAP, tp_page_encode(context, codec, scratch, TP_TYPE_F32, k, KEYS, v, VALUES, TOKENS, 0, 0,
                                  (uint8_t *)k, bytes, &error));
    EXPECT(TP_STATUS_OVERLAP, tp_page_decode(context, codec, scratch, page, bytes, TP_TYPE_F32, back, KEYS,
                                  back + KEYS - VALUES, VALUES, TOKENS, 0, 0, &held, &error));
    EXPECT(TP_STATUS_SHAPE_MISMATCH,
        tp_page_decode(context, codec, scratch, page, bytes, TP_TYPE_F32, back, KEYS - HEADS * DIM, v,
            VALUES - HEADS * VALUE_DIM, TOKENS - 1, 0, 0, &held, &error));
    k[5] = NAN;
    EXPECT(TP_STATUS_NUMERICAL,
        tp_page_encode(context, codec, scratch, TP_TYPE_F32, k, KEYS, v, VALUES, TOKENS, 0, 0, again, bytes, &error));
    config.seed = 7;
    OK(tp_page_open(context, &config, &stranger, &same, &error));
    EXPECT(TP_STATUS_INVALID_ARGUMENT, tp_page_decode(context, stranger, scratch, page, same, TP_TYPE_F32, back, KEYS,
                                           v, VALUES, TOKENS, 0, 0, &held, &error));
    for (size_t i = 0; i < bytes; i += 5) {
        page[i] ^= 0x20;
        tp_status status = tp_page_decode(
            context, codec, scratch, page, bytes, TP_TYPE_F32, back, KEYS, v, VALUES, TOKENS, 0, 0, &held, &error);
        CHECK(status == TP_STATUS_CORRUPTION || status == TP_STATUS_VERSION || status == TP_STATUS_INSUFFICIENT_DATA);
        page[i] ^= 0x20;
        uint8_t *cut = room(i);
        memcpy(cut, page, i);
        EXPECT(TP_STATUS_INSUFFICIENT_DATA, tp_page_decode(context, codec, scratch, cut, i, TP_TYPE_F32, back, KEYS, v,
                                                VALUES, TOKENS, 0, 0, &held, &error));
        free(cut);
    }
    config.key_bits = 9;
    EXPECT(TP_STATUS_INVALID_ARGUMENT, tp_page_open(context, &config, &stranger, &same, &error));
    config.key_bits = 8, config.scales = TP_TYPE_I16;
    EXPECT(TP_STATUS_UNSUPPORTED, tp_page_open(context, &config, &stranger, &same, &error));
    OK(tp_page_close(context, &stranger, &error));
    OK(tp_page_close(context, &single, &error));
    OK(tp_page_close(context, &codec, &error));
    OK(tp_scratch_close(context, &scratch, &error));
    free(back);
    free(turn);
    free(two);
    free(one);
    free(raw);
    free(again);
    free(page);
    free(v);
    free(k);
}
