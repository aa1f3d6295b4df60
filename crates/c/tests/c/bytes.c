// Numbers and files: what comes back is what went in, and damage is found.
#include "check.h"

static const size_t WIDTHS[] = {1, 1, 2, 2, 4, 8, 2, 4, 8};

static int damaged(tp_status status) {
    return status == TP_STATUS_CORRUPTION || status == TP_STATUS_VERSION || status == TP_STATUS_INSUFFICIENT_DATA;
}

static void round_trip(tp_context *context, int32_t dtype, int32_t effort, size_t count) {
    tp_error error;
    size_t bytes = count * WIDTHS[dtype], capacity = tp_pack_bound(bytes), length = 0, found = 1;
    uint8_t *raw = room(bytes), *packed = room(capacity), *back = room(bytes);
    for (size_t i = 0; i < bytes; i++) raw[i] = (uint8_t)(number((unsigned)i) * 8 + (i % 3 ? 0 : 97));
    OK(tp_pack(context, dtype, effort, raw, count, packed, capacity, &length, &error));
    CHECK(length <= capacity);
    int32_t type = -1;
    OK(tp_packed_contents(packed, length, &type, &found, &error));
    CHECK(type == dtype && found == count);
    OK(tp_unpack(context, packed, length, back, count, &error));
    CHECK(memcmp(raw, back, bytes) == 0);
    // As many again, and into a buffer that is too short.
    size_t again = 0;
    OK(tp_pack(context, dtype, effort, raw, count, NULL, 0, &again, &error));
    CHECK(again == length);
    EXPECT(TP_STATUS_BUFFER_TOO_SMALL, tp_pack(context, dtype, effort, raw, count, packed, length - 1, &again, &error));
    CHECK(again == length);
    free(back);
    free(packed);
    free(raw);
}

static void refusals(tp_context *context) {
    tp_error error;
    enum { COUNT = 3000 };
    uint16_t weights[COUNT], back[COUNT + 1];
    for (unsigned i = 0; i < COUNT; i++) weights[i] = as_bf16(number(i));
    size_t capacity = tp_pack_bound(sizeof weights), length = 0;
    uint8_t *packed = room(capacity);
    OK(tp_pack(context, TP_TYPE_BF16, TP_EFFORT_FAST, weights, COUNT, packed, capacity, &length, &error));
    CHECK(length < sizeof weights * 3 / 4);
    EXPECT(TP_STATUS_INVALID_ARGUMENT, tp_pack(context, 9, 0, weights, COUNT, packed, capacity, &length, &error));
    EXPECT(TP_STATUS_INVALID_ARGUMENT, tp_pack(context, 0, 2, weights, COUNT, packed, capacity, &length, &error));
    EXPECT(TP_STATUS_WRONG_LENGTH,
        tp_pack(context, TP_TYPE_F64, 0, weights, SIZE_MAX / 4, packed, capacity, &length, &error));
    EXPECT(TP_STATUS_MISALIGNED,
        tp_pack(context, TP_TYPE_BF16, 0, (char *)weights + 1, 9, packed, capacity, &length, &error));
    EXPECT(TP_STATUS_OVERLAP,
        tp_pack(context, TP_TYPE_BF16, 0, weights, COUNT, (uint8_t *)weights, sizeof weights, &length, &error));
    OK(tp_pack(context, TP_TYPE_BF16, TP_EFFORT_FAST, weights, COUNT, packed, capacity, &length, &error));
    EXPECT(TP_STATUS_WRONG_LENGTH, tp_unpack(context, packed, length, back, COUNT - 1, &error));
    EXPECT(TP_STATUS_WRONG_LENGTH, tp_unpack(context, packed, length, back, COUNT + 1, &error));
    SAYS("3000");
    EXPECT(TP_STATUS_MISALIGNED, tp_unpack(context, packed, length, (char *)back + 1, COUNT, &error));
    EXPECT(TP_STATUS_OVERLAP, tp_unpack(context, packed, length, packed, COUNT, &error));
    EXPECT(TP_STATUS_INSUFFICIENT_DATA, tp_unpack(context, NULL, 0, back, COUNT, &error));
    int32_t type = -1;
    size_t count = 7;
    for (size_t i = 0; i < length; i += 3) {
        packed[i] ^= 4;
        CHECK(damaged(tp_unpack(context, packed, length, back, COUNT, &error)));
        CHECK(damaged(tp_packed_contents(packed, length, &type, &count, &error)));
        packed[i] ^= 4;
        uint8_t *cut = room(i);
        memcpy(cut, packed, i);
        CHECK(damaged(tp_unpack(context, cut, i, back, COUNT, &error)));
        free(cut);
    }
    CHECK(type == -1 && count == 7);
    free(packed);
}

static char *path_of(const struct given *given, const char *name) {
    char *path = room(strlen(given->folder) + strlen(name) + 2);
    sprintf(path, "%s/%s", given->folder, name);
    return path;
}

static void files(tp_context *context, const struct given *given) {
    tp_error error;
    char *plain = path_of(given, "plain.bin"), *packed = path_of(given, "plain.tpk"),
         *back = path_of(given, "back.bin");
    float *x = numbers(20000, 1), *y = room(20001 * sizeof *y);
    FILE *file = fopen(plain, "wb");
    CHECK(file && fwrite(x, sizeof *x, 20000, file) == 20000 && fclose(file) == 0);
    OK(tp_pack_path(context, TP_EFFORT_FAST, plain, packed, 0, &error));
    EXPECT(TP_STATUS_EXISTS, tp_pack_path(context, TP_EFFORT_FAST, plain, packed, 0, &error));
    SAYS("plain.tpk");
    OK(tp_pack_path(context, TP_EFFORT_BEST, plain, packed, 1, &error));
    OK(tp_unpack_path(context, packed, back, 0, &error));
    EXPECT(TP_STATUS_EXISTS, tp_unpack_path(context, packed, back, 0, &error));
    OK(tp_unpack_path(context, packed, back, 1, &error));
    file = fopen(back, "rb");
    CHECK(file && fread(y, sizeof *y, 20001, file) == 20000 && fclose(file) == 0);
    CHECK(memcmp(x, y, 20000 * sizeof *x) == 0);
    // One byte in the middle of the packed file.
    file = fopen(packed, "r+b");
    CHECK(file && fseek(file, 5000, SEEK_SET) == 0);
    int byte = fgetc(file);
    CHECK(fseek(file, 5000, SEEK_SET) == 0 && fputc(byte ^ 1, file) != EOF && fclose(file) == 0);
    EXPECT(TP_STATUS_CORRUPTION, tp_unpack_path(context, packed, back, 1, &error));
    EXPECT(TP_STATUS_IO, tp_unpack_path(context, "no/such/file.tpk", back, 1, &error));
    EXPECT(TP_STATUS_IO, tp_pack_path(context, 0, "no/such/file", packed, 1, &error));
    EXPECT(TP_STATUS_INVALID_ARGUMENT, tp_pack_path(context, 7, plain, packed, 1, &error));
    EXPECT(TP_STATUS_BAD_UTF8, tp_pack_path(context, 0, plain, "\xfe.tpk", 1, &error));
    EXPECT(TP_STATUS_BAD_UTF8, tp_unpack_path(context, "\xfe.tpk", back, 1, &error));
    CHECK(damaged(tp_unpack_path(context, plain, back, 1, &error)));
    free(y);
    free(x);
    free(back);
    free(packed);
    free(plain);
}

void test_bytes(tp_context *context, const struct given *given) {
    CHECK(tp_pack_bound(0) == 30 && tp_pack_bound(1) == 48 && tp_pack_bound((1 << 20) + 1) == (1 << 20) + 65);
    CHECK(tp_pack_bound(SIZE_MAX) == SIZE_MAX);
    for (int32_t dtype = TP_TYPE_BYTES; dtype <= TP_TYPE_I64; dtype++) {
        size_t counts[] = {0, 1, 1000, dtype == TP_TYPE_BF16 ? 700000 : 3};
        for (size_t i = 0; i < 4; i++)
            round_trip(context, dtype, dtype % 2 ? TP_EFFORT_FAST : TP_EFFORT_BEST, counts[i]);
    }
    refusals(context);
    files(context, given);
}
