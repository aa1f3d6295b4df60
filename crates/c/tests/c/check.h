// What every test needs: checks that say where they fail, numbers that are always the same, and products in double.
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorpress.h"

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                                    \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

// A call ends with this status, and its error, which must be called `error`, says the same.
#define EXPECT(expected, call)                                                                                         \
    do {                                                                                                               \
        memset(&error, 0x5a, sizeof error);                                                                            \
        tp_status status_ = (call);                                                                                    \
        if (status_ != (expected) || error.status != status_ ||                                                        \
            (status_ == TP_STATUS_OK) != (error.message[0] == 0)) {                                                    \
            fprintf(stderr, "%s:%d: %s, not %s: %s\n%s\n", __FILE__, __LINE__, tp_status_name(status_),                \
                tp_status_name(expected), error.message, #call);                                                       \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#define OK(call) EXPECT(TP_STATUS_OK, call)

// The message of the last failure has these words.
#define SAYS(words) CHECK(strstr(error.message, words) != NULL)

// Where the tests may write, and the models that they open.
struct given {
    const char *folder, *compressed, *gguf, *real;
};

void test_errors(tp_context *context);
void test_handles(void);
void test_layers(tp_context *context);
void test_saved(tp_context *context);
void test_kv(tp_context *context);
void test_pages(tp_context *context);
void test_bytes(tp_context *context, const struct given *given);
void test_models(tp_context *context, const struct given *given);
void test_threads(tp_context *context);

void *room(size_t bytes);                    // that must be freed
float number(unsigned place);                // in [-4, 4), a multiple of 1/8: exact in f16 and bf16
float *numbers(size_t count, unsigned from); // these, in memory that must be freed
uint16_t as_bf16(float exact);
uint16_t as_f16(float exact);
// Y = X W^T in double; the largest difference from y, over the largest of Y.
double product_error(const float *w, size_t rows, size_t cols, const float *x, size_t tokens, const float *y);

#endif
