// The header is C++ as well.
#include "tensorpress.h"

int main() {
    tp_context *context = nullptr;
    tp_error error;
    if (tp_context_new(1, &context, &error) != TP_STATUS_OK) return 1;
    tp_scratch scratch{};
    tp_status opened = tp_scratch_open(context, 1, &scratch, &error);
    tp_status freed = tp_context_free(&context, &error);
    return opened == TP_STATUS_OK && freed == TP_STATUS_OK && context == nullptr ? 0 : 2;
}
