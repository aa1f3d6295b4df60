// Models: ours, a GGUF file, a packed file; the same weights whichever way they come.
#include "check.h"

static char *text_of(tp_context *context, tp_model model, size_t index) {
    tp_error error;
    size_t length = 0, again = 0;
    OK(tp_model_name(context, model, index, NULL, 0, &length, &error));
    char *text = room(length + 1);
    EXPECT(TP_STATUS_BUFFER_TOO_SMALL, tp_model_name(context, model, index, text, length, &again, &error));
    OK(tp_model_name(context, model, index, text, length + 1, &again, &error));
    CHECK(again == length && strlen(text) == length);
    return text;
}

// Decodes every weight of a model; if there is another, that has the same names and numbers.
static void compare(tp_context *context, tp_model model, const tp_model *other) {
    tp_error error;
    tp_scratch scratch = {0};
    OK(tp_scratch_open(context, 2, &scratch, &error));
    size_t count = 0;
    OK(tp_model_count(context, model, &count, &error));
    CHECK(count > 10);
    for (size_t i = 0; i < count; i++) {
        char *name = text_of(context, model, i);
        tp_layer layer = {0}, twin = {0};
        tp_layer_info info;
        OK(tp_layer_open(context, model, name, &layer, &error));
        OK(tp_layer_describe(context, layer, &info, &error));
        size_t size = info.rows * info.cols;
        CHECK(size > 0 && info.bits_per_weight > 0);
        float *w = room(size * sizeof *w), *x = numbers(2 * info.cols, 3), *y = room(2 * info.rows * sizeof *y);
        OK(tp_layer_decode(context, layer, 0, info.rows, w, size, &error));
        OK(tp_layer_multiply(
            context, layer, scratch, 0, info.rows, TP_TYPE_F32, x, 2 * info.cols, 2, y, 2 * info.rows, &error));
        CHECK(product_error(w, info.rows, info.cols, x, 2, y) < 1e-3);
        if (other) {
            float *v = room(size * sizeof *v);
            OK(tp_layer_open(context, *other, name, &twin, &error));
            OK(tp_layer_decode(context, twin, 0, info.rows, v, size, &error));
            CHECK(memcmp(w, v, size * sizeof *w) == 0);
            OK(tp_layer_close(context, &twin, &error));
            free(v);
        }
        OK(tp_layer_close(context, &layer, &error));
        free(y);
        free(x);
        free(w);
        free(name);
    }
    OK(tp_scratch_close(context, &scratch, &error));
}

static void told(tp_context *context, tp_model model, const char *words) {
    tp_error error;
    size_t length = 0, again = 0;
    OK(tp_model_config(context, model, NULL, 0, &length, &error));
    char *config = room(length + 1);
    EXPECT(TP_STATUS_BUFFER_TOO_SMALL, tp_model_config(context, model, config, length, &again, &error));
    OK(tp_model_config(context, model, config, length + 1, &again, &error));
    CHECK(strlen(config) == length && config[0] == '{' && strstr(config, words));
    free(config);
}

static char *path_of(const struct given *given, const char *name) {
    char *path = room(strlen(given->folder) + strlen(name) + 2);
    sprintf(path, "%s/%s", given->folder, name);
    return path;
}

static void refusals(tp_context *context, const struct given *given, tp_model model) {
    tp_error error;
    tp_model none = {0};
    tp_layer layer = {0};
    size_t count, length;
    OK(tp_model_count(context, model, &count, &error));
    EXPECT(TP_STATUS_INVALID_ARGUMENT, tp_model_name(context, model, count, NULL, 0, &length, &error));
    EXPECT(TP_STATUS_INSUFFICIENT_DATA, tp_layer_open(context, model, "no.such.weight", &layer, &error));
    SAYS("no.such.weight");
    EXPECT(TP_STATUS_BAD_UTF8, tp_layer_open(context, model, "weight\xff", &layer, &error));
    EXPECT(TP_STATUS_IO, tp_model_open(context, "no/such/model", &none, &error));
    SAYS("no/such/model");
    EXPECT(TP_STATUS_BAD_UTF8, tp_model_open(context, "\xc0\xaf/model", &none, &error));
    // A path whose end alone fits into the message.
    char *longest = room(5000);
    memset(longest, 'x', 4999);
    longest[4999] = 0;
    EXPECT(TP_STATUS_IO, tp_model_open(context, longest, &none, &error));
    CHECK(strlen(error.message) == TP_MESSAGE_BYTES - 1);
    free(longest);
    // Files cut anywhere, and files of something else.
    FILE *whole = fopen(given->gguf, "rb");
    char *bytes = room(20000), *path = path_of(given, "cut.gguf");
    CHECK(whole && fread(bytes, 1, 20000, whole) > 1000);
    CHECK(fclose(whole) == 0);
    for (size_t length = 0; length < 1000; length += 97) {
        FILE *cut = fopen(path, "wb");
        CHECK(cut && fwrite(bytes, 1, length, cut) == length && fclose(cut) == 0);
        CHECK(tp_model_open(context, path, &none, &error) != TP_STATUS_OK && error.status != TP_STATUS_PANIC);
    }
    CHECK(none.id == 0 && layer.id == 0);
    free(path);
    free(bytes);
}

void test_models(tp_context *context, const struct given *given) {
    tp_error error;
    tp_model ours = {0}, gguf = {0}, packed = {0}, back = {0}, real = {0};
    OK(tp_model_open(context, given->compressed, &ours, &error));
    OK(tp_model_open(context, given->gguf, &gguf, &error));
    told(context, ours, "\"model_type\"");
    told(context, gguf, "\"model_type\"");
    compare(context, ours, NULL);
    compare(context, gguf, NULL);

    char *file = path_of(given, "model.tpk"), *folder = path_of(given, "model");
    OK(tp_pack_path(context, TP_EFFORT_FAST, given->compressed, file, 0, &error));
    OK(tp_model_open(context, file, &packed, &error));
    OK(tp_unpack_path(context, file, folder, 0, &error));
    OK(tp_model_open(context, folder, &back, &error));
    compare(context, packed, &ours);
    compare(context, back, &ours);
    refusals(context, given, ours);

    // A layer stays when its model goes.
    char *name = text_of(context, packed, 0);
    tp_layer layer = {0};
    tp_layer_info info;
    OK(tp_layer_open(context, packed, name, &layer, &error));
    OK(tp_model_close(context, &packed, &error));
    EXPECT(TP_STATUS_CLOSED, tp_model_close(context, &packed, &error));
    OK(tp_layer_describe(context, layer, &info, &error));
    float *row = room(info.cols * sizeof *row);
    OK(tp_layer_decode(context, layer, info.rows - 1, 1, row, info.cols, &error));
    OK(tp_layer_close(context, &layer, &error));
    free(row);
    free(name);

    if (given->real) {
        OK(tp_model_open(context, given->real, &real, &error));
        told(context, real, "\"hidden_size\"");
        compare(context, real, NULL);
        OK(tp_model_close(context, &real, &error));
    }
    OK(tp_model_close(context, &back, &error));
    OK(tp_model_close(context, &gguf, &error));
    OK(tp_model_close(context, &ours, &error));
    free(folder);
    free(file);
}
