// Null for every pointer of every function; handles that are zero, closed, copied, strangers'.
#include "check.h"

#define IS_NULL(call)                                                                                                  \
    do {                                                                                                               \
        EXPECT(TP_STATUS_NULL_POINTER, call);                                                                          \
        SAYS("null");                                                                                                  \
    } while (0)

static float x[64], y[64];
static uint8_t buffer[4096];
static size_t n;
static const tp_kv_shape shape = {2, 2, 4, 0};

// Without a context, or without one of the outputs and inputs.
static void nulls_of_models(tp_context *c, tp_model model, tp_layer layer, tp_scratch scratch) {
    tp_error error;
    tp_model m = {0};
    tp_layer l = {0};
    tp_scratch s = {0};
    tp_layer_info info;
    IS_NULL(tp_context_new(1, NULL, &error));
    EXPECT(TP_STATUS_INVALID_ARGUMENT, tp_context_new(TP_MOST_THREADS + 1, &c, &error));
    IS_NULL(tp_context_free(NULL, &error));
    IS_NULL(tp_model_open(NULL, "x", &m, &error));
    IS_NULL(tp_model_open(c, NULL, &m, &error));
    IS_NULL(tp_model_open(c, "x", NULL, &error));
    IS_NULL(tp_model_close(NULL, &model, &error));
    IS_NULL(tp_model_close(c, NULL, &error));
    IS_NULL(tp_model_count(NULL, model, &n, &error));
    IS_NULL(tp_model_count(c, model, NULL, &error));
    IS_NULL(tp_model_name(NULL, model, 0, NULL, 0, &n, &error));
    IS_NULL(tp_model_name(c, model, 0, NULL, 0, NULL, &error));
    IS_NULL(tp_model_config(NULL, model, NULL, 0, &n, &error));
    IS_NULL(tp_model_config(c, model, NULL, 0, NULL, &error));
    IS_NULL(tp_layer_open(NULL, model, "x", &l, &error));
    IS_NULL(tp_layer_open(c, model, NULL, &l, &error));
    IS_NULL(tp_layer_open(c, model, "x", NULL, &error));
    IS_NULL(tp_layer_close(NULL, &layer, &error));
    IS_NULL(tp_layer_close(c, NULL, &error));
    IS_NULL(tp_layer_describe(NULL, layer, &info, &error));
    IS_NULL(tp_layer_describe(c, layer, NULL, &error));
    IS_NULL(tp_layer_kind(NULL, layer, NULL, 0, &n, &error));
    IS_NULL(tp_layer_kind(c, layer, NULL, 0, NULL, &error));
    IS_NULL(tp_layer_kind(c, layer, NULL, 5, &n, &error));
    IS_NULL(tp_layer_tree(NULL, layer, NULL, 0, &n, &error));
    IS_NULL(tp_layer_tree(c, layer, NULL, 0, NULL, &error));
    IS_NULL(tp_layer_note(NULL, layer, NULL, 0, &n, &error));
    IS_NULL(tp_layer_note(c, layer, NULL, 0, NULL, &error));
    IS_NULL(tp_layer_bias(NULL, layer, y, 8, &error));
    IS_NULL(tp_layer_bias(c, layer, NULL, 8, &error));
    IS_NULL(tp_layer_decode(NULL, layer, 0, 1, y, 8, &error));
    IS_NULL(tp_layer_decode(c, layer, 0, 1, NULL, 8, &error));
    IS_NULL(tp_layer_prepack(NULL, layer, &error));
    IS_NULL(tp_layer_dense(NULL, TP_TYPE_F32, x, 64, 8, 8, &l, &error));
    IS_NULL(tp_layer_dense(c, TP_TYPE_F32, NULL, 64, 8, 8, &l, &error));
    IS_NULL(tp_layer_dense(c, TP_TYPE_F32, x, 64, 8, 8, NULL, &error));
    IS_NULL(tp_compress(NULL, "rtn", TP_TYPE_F32, x, 64, 8, 8, NULL, 0, &l, &error));
    IS_NULL(tp_compress(c, NULL, TP_TYPE_F32, x, 64, 8, 8, NULL, 0, &l, &error));
    IS_NULL(tp_compress(c, "rtn", TP_TYPE_F32, NULL, 64, 8, 8, NULL, 0, &l, &error));
    IS_NULL(tp_compress(c, "rtn", TP_TYPE_F32, x, 64, 8, 8, NULL, 8, &l, &error));
    IS_NULL(tp_compress(c, "rtn", TP_TYPE_F32, x, 64, 8, 8, NULL, 0, NULL, &error));
    IS_NULL(tp_layer_to_bytes(NULL, layer, NULL, 0, &n, &error));
    IS_NULL(tp_layer_to_bytes(c, layer, NULL, 0, NULL, &error));
    IS_NULL(tp_layer_from_bytes(NULL, buffer, 9, &l, &error));
    IS_NULL(tp_layer_from_bytes(c, NULL, 9, &l, &error));
    IS_NULL(tp_layer_from_bytes(c, buffer, 9, NULL, &error));
    IS_NULL(tp_scratch_open(NULL, 1, &s, &error));
    IS_NULL(tp_scratch_open(c, 1, NULL, &error));
    EXPECT(TP_STATUS_INVALID_ARGUMENT, tp_scratch_open(c, SIZE_MAX, &s, &error));
    IS_NULL(tp_scratch_close(NULL, &scratch, &error));
    IS_NULL(tp_scratch_close(c, NULL, &error));
    IS_NULL(tp_layer_multiply(NULL, layer, scratch, 0, 8, TP_TYPE_F32, x, 8, 1, y, 8, &error));
    IS_NULL(tp_layer_multiply(c, layer, scratch, 0, 8, TP_TYPE_F32, NULL, 8, 1, y, 8, &error));
    IS_NULL(tp_layer_multiply(c, layer, scratch, 0, 8, TP_TYPE_BF16, NULL, 8, 1, y, 8, &error));
    IS_NULL(tp_layer_multiply(c, layer, scratch, 0, 8, TP_TYPE_F32, x, 8, 1, NULL, 8, &error));
    CHECK(m.id == 0 && l.id == 0 && s.id == 0);
}

static void nulls_of_caches(tp_context *c, tp_scratch scratch, tp_kv kv, tp_page_codec codec, size_t bytes) {
    tp_error error;
    tp_kv k = {0};
    tp_page_codec p = {0};
    tp_kv_info info;
    tp_page_config config;
    OK(tp_page_defaults(&config, &error));
    IS_NULL(tp_page_defaults(NULL, &error));
    IS_NULL(tp_kv_open(NULL, "", &shape, 0, &k, 1, &error));
    IS_NULL(tp_kv_open(c, NULL, &shape, 0, &k, 1, &error));
    IS_NULL(tp_kv_open(c, "", NULL, 0, &k, 1, &error));
    IS_NULL(tp_kv_open(c, "", &shape, 0, NULL, 1, &error));
    IS_NULL(tp_kv_close(NULL, &kv, &error));
    IS_NULL(tp_kv_close(c, NULL, &error));
    IS_NULL(tp_kv_fork(NULL, kv, &k, &error));
    IS_NULL(tp_kv_fork(c, kv, NULL, &error));
    IS_NULL(tp_kv_append(NULL, kv, scratch, TP_TYPE_F32, x, 8, x, 8, 1, &error));
    IS_NULL(tp_kv_append(c, kv, scratch, TP_TYPE_F32, NULL, 8, x, 8, 1, &error));
    IS_NULL(tp_kv_append(c, kv, scratch, TP_TYPE_F16, x, 8, NULL, 8, 1, &error));
    OK(tp_kv_append(c, kv, scratch, TP_TYPE_F32, x, 8, x, 8, 1, &error));
    IS_NULL(tp_kv_attend(NULL, kv, scratch, TP_TYPE_F32, x, 8, 1, 0, y, 8, &error));
    IS_NULL(tp_kv_attend(c, kv, scratch, TP_TYPE_F32, NULL, 8, 1, 0, y, 8, &error));
    IS_NULL(tp_kv_attend(c, kv, scratch, TP_TYPE_F32, x, 8, 1, 0, NULL, 8, &error));
    IS_NULL(tp_kv_describe(NULL, kv, &info, &error));
    IS_NULL(tp_kv_describe(c, kv, NULL, &error));
    IS_NULL(tp_kv_truncate(NULL, kv, 0, &error));
    IS_NULL(tp_kv_settle(NULL, kv, &error));
    IS_NULL(tp_page_open(NULL, &config, &p, &n, &error));
    IS_NULL(tp_page_open(c, NULL, &p, &n, &error));
    IS_NULL(tp_page_open(c, &config, NULL, &n, &error));
    IS_NULL(tp_page_open(c, &config, &p, NULL, &error));
    IS_NULL(tp_page_close(NULL, &codec, &error));
    IS_NULL(tp_page_close(c, NULL, &error));
    IS_NULL(tp_page_encode(NULL, codec, scratch, TP_TYPE_F32, x, 8, x, 8, 1, 0, 0, buffer, bytes, &error));
    IS_NULL(tp_page_encode(c, codec, scratch, TP_TYPE_F32, NULL, 8, x, 8, 1, 0, 0, buffer, bytes, &error));
    IS_NULL(tp_page_encode(c, codec, scratch, TP_TYPE_F32, x, 8, NULL, 8, 1, 0, 0, buffer, bytes, &error));
    IS_NULL(tp_page_encode(c, codec, scratch, TP_TYPE_F32, x, 8, x, 8, 1, 0, 0, NULL, bytes, &error));
    OK(tp_page_encode(c, codec, scratch, TP_TYPE_F32, x, 8, x, 8, 1, 0, 0, buffer, bytes, &error));
    IS_NULL(tp_page_decode(NULL, codec, scratch, buffer, bytes, TP_TYPE_F32, x, 8, y, 8, 1, 0, 0, &n, &error));
    IS_NULL(tp_page_decode(c, codec, scratch, NULL, bytes, TP_TYPE_F32, x, 8, y, 8, 1, 0, 0, &n, &error));
    IS_NULL(tp_page_decode(c, codec, scratch, buffer, bytes, TP_TYPE_F32, NULL, 8, y, 8, 1, 0, 0, &n, &error));
    IS_NULL(tp_page_decode(c, codec, scratch, buffer, bytes, TP_TYPE_F32, x, 8, NULL, 8, 1, 0, 0, &n, &error));
    IS_NULL(tp_page_decode(c, codec, scratch, buffer, bytes, TP_TYPE_F32, x, 8, y, 8, 1, 0, 0, NULL, &error));
    CHECK(k.id == 0 && p.id == 0);
}

static void nulls_of_bytes(tp_context *c) {
    tp_error error;
    int32_t type;
    IS_NULL(tp_pack(NULL, TP_TYPE_F32, 0, x, 8, buffer, sizeof buffer, &n, &error));
    IS_NULL(tp_pack(c, TP_TYPE_F32, 0, NULL, 8, buffer, sizeof buffer, &n, &error));
    IS_NULL(tp_pack(c, TP_TYPE_F32, 0, x, 8, NULL, sizeof buffer, &n, &error));
    IS_NULL(tp_pack(c, TP_TYPE_F32, 0, x, 8, buffer, sizeof buffer, NULL, &error));
    OK(tp_pack(c, TP_TYPE_F32, 0, x, 8, buffer, sizeof buffer, &n, &error));
    IS_NULL(tp_packed_contents(NULL, n, &type, &n, &error));
    IS_NULL(tp_packed_contents(buffer, n, NULL, &n, &error));
    IS_NULL(tp_packed_contents(buffer, n, &type, NULL, &error));
    IS_NULL(tp_unpack(NULL, buffer, n, y, 8, &error));
    IS_NULL(tp_unpack(c, NULL, n, y, 8, &error));
    IS_NULL(tp_unpack(c, buffer, n, NULL, 8, &error));
    IS_NULL(tp_pack_path(NULL, 0, "x", "y", 0, &error));
    IS_NULL(tp_pack_path(c, 0, NULL, "y", 0, &error));
    IS_NULL(tp_pack_path(c, 0, "x", NULL, 0, &error));
    IS_NULL(tp_unpack_path(NULL, "x", "y", 0, &error));
    IS_NULL(tp_unpack_path(c, NULL, "y", 0, &error));
    IS_NULL(tp_unpack_path(c, "x", NULL, 0, &error));
}

#define IS_CLOSED(call) EXPECT(TP_STATUS_CLOSED, call)

// Every function that takes a handle, with handles that stand for nothing in this context.
static void closed(tp_context *c, uint64_t model, uint64_t layer, uint64_t scratch, uint64_t cache, uint64_t page) {
    tp_error error;
    tp_model m = {model};
    tp_layer l = {layer}, new_layer;
    tp_scratch s = {scratch}, open = {0};
    tp_kv k = {cache}, new_kv, open_kv = {0};
    tp_page_codec p = {page};
    tp_layer_info info;
    tp_kv_info kv_info;
    IS_CLOSED(tp_model_count(c, m, &n, &error));
    IS_CLOSED(tp_model_name(c, m, 0, NULL, 0, &n, &error));
    IS_CLOSED(tp_model_config(c, m, NULL, 0, &n, &error));
    IS_CLOSED(tp_layer_open(c, m, "x", &new_layer, &error));
    IS_CLOSED(tp_layer_describe(c, l, &info, &error));
    IS_CLOSED(tp_layer_kind(c, l, NULL, 0, &n, &error));
    IS_CLOSED(tp_layer_tree(c, l, NULL, 0, &n, &error));
    IS_CLOSED(tp_layer_note(c, l, NULL, 0, &n, &error));
    IS_CLOSED(tp_layer_bias(c, l, y, 8, &error));
    IS_CLOSED(tp_layer_decode(c, l, 0, 1, y, 8, &error));
    IS_CLOSED(tp_layer_prepack(c, l, &error));
    IS_CLOSED(tp_layer_to_bytes(c, l, NULL, 0, &n, &error));
    OK(tp_scratch_open(c, 1, &open, &error));
    OK(tp_kv_open(c, "", &shape, 0, &open_kv, 1, &error));
    IS_CLOSED(tp_layer_multiply(c, l, open, 0, 8, TP_TYPE_F32, x, 8, 1, y, 8, &error));
    SAYS("layer");
    IS_CLOSED(tp_layer_multiply(c, l, s, 0, 8, TP_TYPE_F32, x, 8, 1, y, 8, &error));
    SAYS("scratch");
    IS_CLOSED(tp_kv_append(c, k, open, TP_TYPE_F32, x, 8, x, 8, 1, &error));
    IS_CLOSED(tp_kv_append(c, open_kv, s, TP_TYPE_F32, x, 8, x, 8, 1, &error));
    IS_CLOSED(tp_kv_attend(c, k, open, TP_TYPE_F32, x, 8, 1, 0, y, 8, &error));
    IS_CLOSED(tp_kv_attend(c, open_kv, s, TP_TYPE_F32, x, 8, 1, 0, y, 8, &error));
    IS_CLOSED(tp_kv_fork(c, k, &new_kv, &error));
    IS_CLOSED(tp_kv_describe(c, k, &kv_info, &error));
    IS_CLOSED(tp_kv_truncate(c, k, 0, &error));
    IS_CLOSED(tp_kv_settle(c, k, &error));
    IS_CLOSED(tp_page_encode(c, p, open, TP_TYPE_F32, x, 8, x, 8, 1, 0, 0, buffer, 99, &error));
    IS_CLOSED(tp_page_decode(c, p, open, buffer, 99, TP_TYPE_F32, x, 8, y, 8, 1, 0, 0, &n, &error));
    IS_CLOSED(tp_model_close(c, &m, &error));
    IS_CLOSED(tp_layer_close(c, &l, &error));
    IS_CLOSED(tp_scratch_close(c, &s, &error));
    IS_CLOSED(tp_kv_close(c, &k, &error));
    IS_CLOSED(tp_page_close(c, &p, &error));
    CHECK(!m.id && !l.id && !s.id && !k.id && !p.id);
    OK(tp_kv_close(c, &open_kv, &error));
    OK(tp_scratch_close(c, &open, &error));
}

struct opened {
    tp_layer layer;
    tp_scratch scratch;
    tp_kv kv;
    tp_page_codec codec;
    size_t bytes;
};

static struct opened open_all(tp_context *c) {
    tp_error error;
    struct opened all;
    tp_page_config config;
    OK(tp_page_defaults(&config, &error));
    config.kv_heads = 2, config.head_dim = config.value_dim = 4;
    OK(tp_layer_dense(c, TP_TYPE_F32, x, 64, 8, 8, &all.layer, &error));
    OK(tp_scratch_open(c, 1, &all.scratch, &error));
    OK(tp_kv_open(c, "", &shape, 0, &all.kv, 1, &error));
    OK(tp_page_open(c, &config, &all.codec, &all.bytes, &error));
    CHECK(all.bytes <= sizeof buffer);
    return all;
}

void test_errors(tp_context *c) {
    struct opened all = open_all(c);
    tp_model none = {0};
    nulls_of_models(c, none, all.layer, all.scratch);
    nulls_of_caches(c, all.scratch, all.kv, all.codec, all.bytes);
    nulls_of_bytes(c);
    // Nobody has to take the error.
    CHECK(tp_model_open(c, "no/such/model", &none, NULL) == TP_STATUS_IO);
    CHECK(tp_layer_prepack(NULL, all.layer, NULL) == TP_STATUS_NULL_POINTER);
    // Zero; numbers of nothing; of another kind.
    closed(c, 0, 0, 0, 0, 0);
    closed(c, 12345, 12345, 12345, 12345, UINT64_MAX);
    closed(c, all.layer.id, all.scratch.id, all.kv.id, all.codec.id, all.layer.id);
    // Closed, and copies from before.
    struct opened copy = all;
    tp_error error;
    OK(tp_layer_close(c, &all.layer, &error));
    OK(tp_scratch_close(c, &all.scratch, &error));
    OK(tp_kv_close(c, &all.kv, &error));
    OK(tp_page_close(c, &all.codec, &error));
    closed(c, 0, all.layer.id, all.scratch.id, all.kv.id, all.codec.id);
    closed(c, 0, copy.layer.id, copy.scratch.id, copy.kv.id, copy.codec.id);
    // What is opened since is something else.
    all = open_all(c);
    CHECK(all.layer.id != copy.layer.id && all.kv.id != copy.kv.id);
    closed(c, 0, copy.layer.id, copy.scratch.id, copy.kv.id, copy.codec.id);
    OK(tp_layer_close(c, &all.layer, &error));
    // The others are left open: the context closes them.
}

// Handles of another context are strangers; a context closes what is open.
void test_handles(void) {
    tp_error error;
    tp_context *one = NULL, *two = NULL;
    OK(tp_context_new(1, &one, &error));
    OK(tp_context_new(0, &two, &error));
    struct opened first = open_all(one);
    open_all(two);
    closed(two, first.layer.id, first.layer.id, first.scratch.id, first.kv.id, first.codec.id);
    closed(two, 0, first.layer.id, first.scratch.id, first.kv.id, first.codec.id);
    OK(tp_context_free(&one, &error));
    closed(two, 0, first.layer.id, first.scratch.id, first.kv.id, first.codec.id);
    OK(tp_context_free(&two, &error));
    CHECK(one == NULL && two == NULL);
}
