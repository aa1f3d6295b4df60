// Layers and products: numbers against double arithmetic, every partition, thread count and type alike.
#include "check.h"

#include <math.h>

enum { ROWS = 48, COLS = 64, TOKENS = 9 };

static tp_layer compressed(tp_context *context, const char *recipe, const float *samples, size_t tokens) {
    tp_error error;
    tp_layer layer = {0};
    float *weight = numbers(ROWS * COLS, 1);
    OK(tp_compress(
        context, recipe, TP_TYPE_F32, weight, ROWS * COLS, ROWS, COLS, samples, tokens * COLS, &layer, &error));
    CHECK(layer.id != 0);
    free(weight);
    return layer;
}

static float *decoded(tp_context *context, tp_layer layer) {
    tp_error error;
    float *w = room(ROWS * COLS * sizeof *w);
    OK(tp_layer_decode(context, layer, 0, ROWS, w, ROWS * COLS, &error));
    float row[COLS];
    for (size_t r = 0; r < ROWS; r++) {
        OK(tp_layer_decode(context, layer, r, 1, row, COLS, &error));
        CHECK(memcmp(row, w + r * COLS, sizeof row) == 0);
    }
    return w;
}

static void products(tp_context *context, tp_layer layer, const float *w, double most) {
    tp_error error;
    tp_scratch scratch[3] = {{0}, {0}, {0}};
    for (size_t i = 0; i < 3; i++) OK(tp_scratch_open(context, i, &scratch[i], &error));
    float *x = numbers(TOKENS * COLS, 90000), *y = room(TOKENS * ROWS * sizeof *y);
    uint16_t half[TOKENS * COLS], brain[TOKENS * COLS];
    float same[TOKENS * ROWS], part[TOKENS * ROWS];
    for (size_t i = 0; i < TOKENS * COLS; i++) half[i] = as_f16(x[i]), brain[i] = as_bf16(x[i]);
    for (size_t tokens = 1; tokens <= TOKENS; tokens += 4) {
        size_t xs = tokens * COLS, ys = tokens * ROWS;
        OK(tp_layer_multiply(context, layer, scratch[1], 0, ROWS, TP_TYPE_F32, x, xs, tokens, y, ys, &error));
        CHECK(product_error(w, ROWS, COLS, x, tokens, y) < most);
        for (size_t i = 0; i < 3; i++) {
            OK(tp_layer_multiply(context, layer, scratch[i], 0, ROWS, TP_TYPE_F32, x, xs, tokens, same, ys, &error));
            CHECK(memcmp(same, y, ys * sizeof *y) == 0);
        }
        OK(tp_layer_multiply(context, layer, scratch[0], 0, ROWS, TP_TYPE_F16, half, xs, tokens, same, ys, &error));
        CHECK(memcmp(same, y, ys * sizeof *y) == 0);
        OK(tp_layer_multiply(context, layer, scratch[2], 0, ROWS, TP_TYPE_BF16, brain, xs, tokens, same, ys, &error));
        CHECK(memcmp(same, y, ys * sizeof *y) == 0);
        for (size_t first = 0; first < ROWS; first += 7) {
            size_t rows = first + 7 <= ROWS ? 7 : ROWS - first;
            OK(tp_layer_multiply(
                context, layer, scratch[1], first, rows, TP_TYPE_F32, x, xs, tokens, part, tokens * rows, &error));
            CHECK(product_error(w + first * COLS, rows, COLS, x, tokens, part) < most);
        }
    }
    // Nothing by nothing, and its neighbours.
    OK(tp_layer_multiply(context, layer, scratch[1], ROWS, 0, TP_TYPE_F32, x, COLS, 1, NULL, 0, &error));
    OK(tp_layer_multiply(context, layer, scratch[1], 0, ROWS, TP_TYPE_BF16, NULL, 0, 0, NULL, 0, &error));
    EXPECT(TP_STATUS_INVALID_ARGUMENT,
        tp_layer_multiply(context, layer, scratch[1], ROWS, 1, TP_TYPE_F32, x, COLS, 1, y, 1, &error));
    EXPECT(TP_STATUS_INVALID_ARGUMENT,
        tp_layer_multiply(context, layer, scratch[1], 1, SIZE_MAX, TP_TYPE_F32, x, COLS, 1, y, 1, &error));
    SAYS("48");
    EXPECT(TP_STATUS_WRONG_LENGTH,
        tp_layer_multiply(context, layer, scratch[1], 0, ROWS, TP_TYPE_F32, x, COLS - 1, 1, y, ROWS, &error));
    SAYS("`x`");
    EXPECT(TP_STATUS_WRONG_LENGTH,
        tp_layer_multiply(context, layer, scratch[1], 0, ROWS, TP_TYPE_F32, x, COLS, 1, y, ROWS + 1, &error));
    SAYS("`y`");
    EXPECT(TP_STATUS_WRONG_LENGTH,
        tp_layer_multiply(context, layer, scratch[1], 0, ROWS, TP_TYPE_F32, x, COLS, SIZE_MAX / 2, y, ROWS, &error));
    EXPECT(TP_STATUS_OVERLAP,
        tp_layer_multiply(context, layer, scratch[1], 0, 1, TP_TYPE_F32, x, COLS, 1, x + COLS - 1, 1, &error));
    OK(tp_layer_multiply(context, layer, scratch[1], 0, 1, TP_TYPE_F32, x, COLS, 1, x + COLS, 1, &error));
    EXPECT(TP_STATUS_MISALIGNED,
        tp_layer_multiply(context, layer, scratch[1], 0, 1, TP_TYPE_F32, (char *)x + 1, COLS, 1, y, 1, &error));
    EXPECT(TP_STATUS_MISALIGNED,
        tp_layer_multiply(context, layer, scratch[1], 0, 1, TP_TYPE_F16, (char *)half + 1, COLS, 1, y, 1, &error));
    EXPECT(TP_STATUS_UNSUPPORTED,
        tp_layer_multiply(context, layer, scratch[1], 0, 1, TP_TYPE_F64, x, COLS, 1, y, 1, &error));
    EXPECT(
        TP_STATUS_INVALID_ARGUMENT, tp_layer_multiply(context, layer, scratch[1], 0, 1, 9, x, COLS, 1, y, 1, &error));
    EXPECT(
        TP_STATUS_INVALID_ARGUMENT, tp_layer_multiply(context, layer, scratch[1], 0, 1, -1, x, COLS, 1, y, 1, &error));
    free(x);
    free(y);
    for (size_t i = 0; i < 3; i++) OK(tp_scratch_close(context, &scratch[i], &error));
}

static void described(tp_context *context, tp_layer layer, const char *kind, double least, double most) {
    tp_error error;
    tp_layer_info info;
    OK(tp_layer_describe(context, layer, &info, &error));
    CHECK(info.rows == ROWS && info.cols == COLS && (info.fused == 0 || info.fused == 1));
    CHECK(info.bits_per_weight >= least && info.bits_per_weight <= most);
    CHECK(fabs(info.bits_per_weight * ROWS * COLS - 8.0 * (double)info.bytes) < 1e-6);
    size_t length = 0, again = 0;
    OK(tp_layer_kind(context, layer, NULL, 0, &length, &error));
    CHECK(length == strlen(kind));
    char *buffer = room(length + 1), *tree;
    memset(buffer, 'x', length + 1);
    EXPECT(TP_STATUS_BUFFER_TOO_SMALL, tp_layer_kind(context, layer, buffer, length, &again, &error));
    CHECK(again == length && buffer[0] == 'x');
    OK(tp_layer_kind(context, layer, buffer, length + 1, &again, &error));
    CHECK(strcmp(buffer, kind) == 0);
    OK(tp_layer_tree(context, layer, NULL, 0, &length, &error));
    tree = room(length + 1);
    EXPECT(TP_STATUS_BUFFER_TOO_SMALL, tp_layer_tree(context, layer, tree, length, &again, &error));
    OK(tp_layer_tree(context, layer, tree, length + 1, &again, &error));
    CHECK(strlen(tree) == length && tree[0] == '{' && strstr(tree, kind) != NULL);
    free(tree);
    free(buffer);
}

void test_layers(tp_context *context) {
    tp_error error;
    float *original = numbers(ROWS * COLS, 1);
    // Integers: exact in 8 bits' neighbourhood, and multiplied by as they are stored.
    tp_layer layer = compressed(context, "rtn(bits=4, group=32)", NULL, 0);
    described(context, layer, "grouped_affine.v1", 4, 5.5);
    float *w = decoded(context, layer);
    for (size_t i = 0; i < ROWS * COLS; i++) CHECK(fabsf(w[i] - original[i]) <= 0.3f);
    products(context, layer, w, 1e-3);
    OK(tp_layer_prepack(context, layer, &error));
    float *again = decoded(context, layer);
    CHECK(memcmp(w, again, ROWS * COLS * sizeof *w) == 0);
    products(context, layer, w, 1e-3);
    float short_row[COLS];
    EXPECT(TP_STATUS_WRONG_LENGTH, tp_layer_decode(context, layer, 0, 1, short_row, COLS - 1, &error));
    EXPECT(TP_STATUS_INVALID_ARGUMENT, tp_layer_decode(context, layer, ROWS, 1, short_row, COLS, &error));
    OK(tp_layer_decode(context, layer, 0, 0, NULL, 0, &error));
    OK(tp_layer_close(context, &layer, &error));
    CHECK(layer.id == 0);
    free(again);
    free(w);

    // Trees: a support, a correction of low rank, entropy coding.
    float *samples = numbers(128 * COLS, 500000);
    const char *recipes[] = {
        "gptq(bits=4, group=32)", "wanda(sparsity=0.5)", "rtn(bits=3, group=32) | residual(eora(rank=4))"};
    for (size_t i = 0; i < 3; i++) {
        layer = compressed(context, recipes[i], samples, 128);
        w = decoded(context, layer);
        products(context, layer, w, 1e-3);
        OK(tp_layer_close(context, &layer, &error));
        free(w);
    }
    // What a recipe says beside the matrix: an output of the mean input, which goes into a bias; that inputs are
    // missing.
    float bias[ROWS], most = 0;
    for (size_t i = 0; i < 128 * COLS; i++) samples[i] += 2;
    layer = compressed(context, "feature_mimicking(rank=8)", samples, 128);
    OK(tp_layer_bias(context, layer, bias, ROWS, &error));
    for (size_t i = 0; i < ROWS; i++) most = fmaxf(most, fabsf(bias[i]));
    CHECK(most > 0.1f);
    EXPECT(TP_STATUS_WRONG_LENGTH, tp_layer_bias(context, layer, bias, ROWS - 1, &error));
    EXPECT(TP_STATUS_NULL_POINTER, tp_layer_bias(context, layer, NULL, ROWS, &error));
    size_t length = 7, again_length = 0;
    OK(tp_layer_note(context, layer, NULL, 0, &length, &error));
    CHECK(length == 0);
    OK(tp_layer_close(context, &layer, &error));
    layer = compressed(context, "gptq(bits=4, group=32)", NULL, 0);
    OK(tp_layer_bias(context, layer, bias, ROWS, &error));
    for (size_t i = 0; i < ROWS; i++) CHECK(bias[i] == 0);
    OK(tp_layer_note(context, layer, NULL, 0, &length, &error));
    char *note = room(length + 1);
    EXPECT(TP_STATUS_BUFFER_TOO_SMALL, tp_layer_note(context, layer, note, length, &again_length, &error));
    OK(tp_layer_note(context, layer, note, length + 1, &again_length, &error));
    CHECK(length > 0 && strlen(note) == length && again_length == length);
    OK(tp_layer_close(context, &layer, &error));
    free(note);

    // As they are, in each type.
    uint16_t half[ROWS * COLS], brain[ROWS * COLS];
    for (size_t i = 0; i < ROWS * COLS; i++) half[i] = as_f16(original[i]), brain[i] = as_bf16(original[i]);
    const void *typed[] = {original, half, brain};
    int32_t types[] = {TP_TYPE_F32, TP_TYPE_F16, TP_TYPE_BF16};
    for (size_t i = 0; i < 3; i++) {
        OK(tp_layer_dense(context, types[i], typed[i], ROWS * COLS, ROWS, COLS, &layer, &error));
        described(context, layer, "dense.v1", i ? 16 : 32, i ? 16 : 32);
        w = decoded(context, layer);
        CHECK(memcmp(w, original, ROWS * COLS * sizeof *w) == 0);
        products(context, layer, w, 1e-5);
        OK(tp_layer_close(context, &layer, &error));
        free(w);
        // By recipe, from each type.
        OK(tp_compress(
            context, "rtn(bits=4, group=32)", types[i], typed[i], ROWS * COLS, ROWS, COLS, NULL, 0, &layer, &error));
        described(context, layer, "grouped_affine.v1", 4, 5.5);
        OK(tp_layer_close(context, &layer, &error));
    }
    layer.id = 0;
    EXPECT(TP_STATUS_WRONG_LENGTH, tp_layer_dense(context, TP_TYPE_F32, original, 5, ROWS, COLS, &layer, &error));
    EXPECT(
        TP_STATUS_UNSUPPORTED, tp_layer_dense(context, TP_TYPE_I32, original, ROWS * COLS, ROWS, COLS, &layer, &error));
    const char *blind = "svd_llm", *rtn = "rtn";
    size_t all = ROWS * COLS;
    EXPECT(TP_STATUS_MISSING_CALIBRATION,
        tp_compress(context, blind, TP_TYPE_F32, original, all, ROWS, COLS, NULL, 0, &layer, &error));
    EXPECT(TP_STATUS_INVALID_ARGUMENT,
        tp_compress(context, "no_such_stage(bits=4)", TP_TYPE_F32, original, all, ROWS, COLS, NULL, 0, &layer, &error));
    SAYS("no_such_stage");
    EXPECT(TP_STATUS_INVALID_ARGUMENT,
        tp_compress(context, "rtn(bits=99)", TP_TYPE_F32, original, all, ROWS, COLS, NULL, 0, &layer, &error));
    EXPECT(TP_STATUS_BAD_UTF8,
        tp_compress(context, "rtn\xff", TP_TYPE_F32, original, all, ROWS, COLS, NULL, 0, &layer, &error));
    EXPECT(TP_STATUS_WRONG_LENGTH,
        tp_compress(context, rtn, TP_TYPE_F32, original, all, ROWS, COLS, samples, COLS + 1, &layer, &error));
    EXPECT(TP_STATUS_WRONG_LENGTH,
        tp_compress(context, rtn, TP_TYPE_F32, original, all, ROWS, COLS + 1, NULL, 0, &layer, &error));
    EXPECT(TP_STATUS_WRONG_LENGTH,
        tp_compress(context, rtn, TP_TYPE_F32, original, all, SIZE_MAX, 3, NULL, 0, &layer, &error));
    original[17] = NAN;
    EXPECT(TP_STATUS_NUMERICAL,
        tp_compress(context, rtn, TP_TYPE_F32, original, all, ROWS, COLS, NULL, 0, &layer, &error));
    CHECK(layer.id == 0);
    free(samples);
    free(original);
}

// Matrices without rows or without columns, and of one number.
static void smallest(tp_context *context) {
    tp_error error;
    tp_scratch scratch = {0};
    OK(tp_scratch_open(context, 1, &scratch, &error));
    const size_t shapes[][2] = {{0, 5}, {5, 0}, {0, 0}, {1, 1}};
    float x[5] = {1, 2, 3, 4, 5}, y[5], w[1] = {3};
    for (size_t i = 0; i < 8; i++) {
        size_t rows = shapes[i / 2][0], cols = shapes[i / 2][1], length = 0;
        tp_layer layer = {0}, again = {0};
        if (i % 2) {
            OK(tp_compress(context, "rtn", TP_TYPE_F32, w, rows * cols, rows, cols, NULL, 0, &layer, &error));
        } else {
            OK(tp_layer_dense(context, TP_TYPE_F32, w, rows * cols, rows, cols, &layer, &error));
        }
        OK(tp_layer_prepack(context, layer, &error));
        for (size_t r = 0; r < 5; r++) y[r] = 7;
        OK(tp_layer_multiply(context, layer, scratch, 0, rows, TP_TYPE_F32, x, cols, 1, y, rows, &error));
        for (size_t r = 0; r < rows; r++) CHECK(fabsf(y[r] - (cols ? 3.0f : 0.0f)) < 1e-3f);
        OK(tp_layer_to_bytes(context, layer, NULL, 0, &length, &error));
        uint8_t *bytes = room(length);
        OK(tp_layer_to_bytes(context, layer, bytes, length, &length, &error));
        OK(tp_layer_from_bytes(context, bytes, length, &again, &error));
        OK(tp_layer_decode(context, again, 0, rows, y, rows * cols, &error));
        free(bytes);
        OK(tp_layer_close(context, &again, &error));
        OK(tp_layer_close(context, &layer, &error));
    }
    OK(tp_scratch_close(context, &scratch, &error));
}

void test_saved(tp_context *context) {
    tp_error error;
    smallest(context);
    tp_layer layer = compressed(context, "rtn(bits=4, group=32) | coded(rans)", NULL, 0), again = {0};
    float *w = decoded(context, layer);
    size_t length = 0, written = 0;
    OK(tp_layer_to_bytes(context, layer, NULL, 0, &length, &error));
    CHECK(length > 8 && length < ROWS * COLS);
    uint8_t *bytes = room(length);
    EXPECT(TP_STATUS_BUFFER_TOO_SMALL, tp_layer_to_bytes(context, layer, bytes, length - 1, &written, &error));
    CHECK(written == length);
    OK(tp_layer_to_bytes(context, layer, bytes, length, &written, &error));
    OK(tp_layer_from_bytes(context, bytes, length, &again, &error));
    // What was read stands by itself, and prepacking changes none of its bytes.
    uint8_t *twice = room(length);
    OK(tp_layer_prepack(context, again, &error));
    OK(tp_layer_to_bytes(context, again, twice, length, &written, &error));
    CHECK(written == length && memcmp(bytes, twice, length) == 0);
    OK(tp_layer_close(context, &layer, &error));
    float *other = decoded(context, again);
    CHECK(memcmp(w, other, ROWS * COLS * sizeof *w) == 0);
    OK(tp_layer_close(context, &again, &error));
    // Each changed byte of the head and of some of the rest is found, and so is each end that comes early or late.
    for (size_t i = 0; i < length; i += i < 300 ? 7 : 61) {
        bytes[i] ^= 0x10;
        tp_status status = tp_layer_from_bytes(context, bytes, length, &again, &error);
        CHECK(status == TP_STATUS_CORRUPTION || status == TP_STATUS_INSUFFICIENT_DATA || status == TP_STATUS_VERSION);
        CHECK(error.status == status && again.id == 0);
        bytes[i] ^= 0x10;
        // At its own length, so that a sanitizer sees what is read behind it.
        uint8_t *cut = room(i);
        memcpy(cut, bytes, i);
        status = tp_layer_from_bytes(context, cut, i, &again, &error);
        CHECK(status == TP_STATUS_CORRUPTION || status == TP_STATUS_INSUFFICIENT_DATA);
        free(cut);
    }
    OK(tp_layer_from_bytes(context, bytes, length, &again, &error));
    OK(tp_layer_close(context, &again, &error));
    free(other);
    free(twice);
    free(bytes);
    free(w);
}
