// Every function of the header, what it computes and how it refuses: built with sanitizers, run by tests/c.rs.
#include "check.h"

#include <math.h>

void *room(size_t bytes) {
    void *memory = malloc(bytes ? bytes : 1);
    CHECK(memory != NULL);
    return memory;
}

float number(unsigned place) {
    unsigned x = place * 2654435761u;
    x ^= x >> 15;
    x *= 2246822519u;
    x ^= x >> 13;
    return (float)(int)(x % 64) / 8 - 4;
}

float *numbers(size_t count, unsigned from) {
    float *made = room(count * sizeof *made);
    for (size_t i = 0; i < count; i++) made[i] = number(from + (unsigned)i);
    return made;
}

uint16_t as_bf16(float exact) {
    uint32_t bits;
    memcpy(&bits, &exact, sizeof bits);
    CHECK((bits & 0xffff) == 0);
    return (uint16_t)(bits >> 16);
}

uint16_t as_f16(float exact) {
    if (exact == 0) return 0;
    int exponent;
    float mantissa = frexpf(fabsf(exact), &exponent) * 2048; // in [1024, 2048)
    CHECK(mantissa == floorf(mantissa) && exponent > -14 && exponent < 16);
    unsigned bits = (unsigned)(exponent + 14) << 10 | ((unsigned)mantissa - 1024);
    return (uint16_t)(bits | (exact < 0 ? 0x8000u : 0));
}

double product_error(const float *w, size_t rows, size_t cols, const float *x, size_t tokens, const float *y) {
    double largest = 0, worst = 0;
    for (size_t t = 0; t < tokens; t++) {
        for (size_t r = 0; r < rows; r++) {
            double sum = 0;
            for (size_t c = 0; c < cols; c++) sum += (double)w[r * cols + c] * x[t * cols + c];
            double off = fabs(sum - y[t * rows + r]);
            CHECK(isfinite(off));
            worst = fmax(worst, off);
            largest = fmax(largest, fabs(sum));
        }
    }
    return largest > 0 ? worst / largest : worst;
}

int main(int argc, char **argv) {
    CHECK(argc >= 4);
    struct given given = {argv[1], argv[2], argv[3], argc > 4 ? argv[4] : NULL};
    tp_context *context = NULL;
    tp_error error;
    OK(tp_context_new(2, &context, &error));
    CHECK(strlen(tp_version()) >= 5);
    CHECK(strcmp(tp_status_name(TP_STATUS_BAD_UTF8), "TP_STATUS_BAD_UTF8") == 0);
    CHECK(strcmp(tp_status_name(-1), "unknown") == 0);
    test_layers(context);
    test_saved(context);
    test_kv(context);
    test_pages(context);
    test_bytes(context, &given);
    test_models(context, &given);
    test_threads(context);
    test_errors(context);
    test_handles();
    OK(tp_context_free(&context, &error));
    CHECK(context == NULL);
    EXPECT(TP_STATUS_NULL_POINTER, tp_context_free(&context, &error));
    printf("every check held%s\n", given.real ? ", with a real model" : "");
    return 0;
}
