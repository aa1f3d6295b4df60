// The C interface of tensorpress: compressed models, layers, caches and lossless bytes for inference engines.
// Made of crates/c/src by cbindgen: change it there. Licensed under MIT or Apache-2.0, at your option.
//
// SHAPES. A weight W is [rows, cols] = [outputs, inputs], row-major; a product is Y = X W^T with X [tokens, cols] and Y
// [tokens, rows]. Keys, values and queries are [tokens, heads, channels]. Arrays are without gaps and their lengths are
// in numbers, not bytes, unless a function says otherwise. Lengths are checked against shapes: a wrong one is a status.
//
// POINTERS. Every pointer must be null or point to what its type says, aligned, and as long as the length beside it;
// nobody else may write to it during the call, nor use what the call writes to. Null is allowed for `error`, for arrays of
// length 0, and for buffers of capacity 0; elsewhere it is TP_STATUS_NULL_POINTER. Misaligned arrays and outputs that
// overlap are statuses too. Texts end with a zero and are UTF-8, paths included. Nothing that a call is given is kept: it
// copies what it needs.
//
// OWNERSHIP. A context owns everything that was opened in it. Handles (tp_model, tp_layer ...) are numbers in structures,
// passed by value: copy them as you like. A close function takes a pointer to a handle, closes what it stands for and
// makes it zero. A handle that is zero, closed (also through a copy), of another kind or of another context is
// TP_STATUS_CLOSED, always: a number is never given to a second thing. Only the context itself is a pointer; tp_context_free
// makes it null and closes what is still open, and no copy of it may be used afterwards.
//
// RESULTS OF UNKNOWN LENGTH are copied into a `buffer` of `capacity` bytes, and `length` becomes the bytes of the result.
// A null buffer of capacity 0 asks for the length alone; one that is too small stays as it is, and the status is
// TP_STATUS_BUFFER_TOO_SMALL. Texts need one byte more, for their zero, which `length` does not count.
//
// THREADS. Every function may be called from any thread, with the same context and the same handles, at any time; models,
// layers and codecs may be used by many threads at once. A scratch and a cache take one call at a time: a second is
// TP_STATUS_BUSY, and changes nothing. What is closed while a call works with it stays until that call returns. Results
// depend neither on threads nor on their number.
//
// ERRORS. Every function that can fail returns a tp_status and, unless `error` is null, writes it there with a message.
// A tp_error is the caller's memory, on a stack say: nothing is freed, and there is no last error to ask for. Where a
// function lists errors without their prefix, TP_STATUS_ is meant. What failed has changed nothing, unless stated. Bytes and
// files may come from strangers: whatever is in them, it is an error or a value. A panic inside is caught: TP_STATUS_PANIC. Only memory that cannot be had ends
// the process.


#ifndef TENSORPRESS_H
#define TENSORPRESS_H

#include <stddef.h>
#include <stdint.h>

// Bytes of the message of a `tp_error`, its final zero included.
#define TP_MESSAGE_BYTES 1020

// The most threads that a context or a scratch may have.
#define TP_MOST_THREADS 1024

// The most heads, and channels of a head: what a cache holds of each is made at once.
#define TP_MOST_HEADS 65535

// How a call ended. 1 to 12 are the kinds of errors of tensorpress; from 32 on the call itself was wrong, and nothing
// was done.
enum tp_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // It did what was asked.
    TP_STATUS_OK = 0,
    // An argument is outside what is allowed; the message names it, its value and what is allowed.
    TP_STATUS_INVALID_ARGUMENT = 1,
    // Two shapes that must agree do not.
    TP_STATUS_SHAPE_MISMATCH = 2,
    // A method needs samples of inputs that were not given.
    TP_STATUS_MISSING_CALIBRATION = 3,
    // The combination asked for does not exist.
    TP_STATUS_UNSUPPORTED = 4,
    // Numbers that are not finite, or a matrix that cannot be factored.
    TP_STATUS_NUMERICAL = 5,
    // Bytes that contradict their own format.
    TP_STATUS_CORRUPTION = 6,
    // A file that ends too early, an input with nothing in it, or no tensor of this name.
    TP_STATUS_INSUFFICIENT_DATA = 7,
    // Written by a version that this library cannot read.
    TP_STATUS_VERSION = 8,
    // The operating system refused.
    TP_STATUS_IO = 9,
    // The work was told to stop.
    TP_STATUS_INTERRUPTED = 10,
    // Something is there already, and the caller did not say that it may be replaced.
    TP_STATUS_EXISTS = 11,
    // What is stored is a difference, and what it differs from was not given.
    TP_STATUS_MISSING_BASE = 12,
    // An error of a kind that this header does not know.
    TP_STATUS_OTHER = 31,
    // A pointer is null that must not be.
    TP_STATUS_NULL_POINTER = 32,
    // A text is not UTF-8.
    TP_STATUS_BAD_UTF8 = 33,
    // A length is not the one that the shapes imply; the message says which it must be.
    TP_STATUS_WRONG_LENGTH = 34,
    // A buffer is too short for the result; the length needed was written.
    TP_STATUS_BUFFER_TOO_SMALL = 35,
    // A pointer is not aligned to what it points to.
    TP_STATUS_MISALIGNED = 36,
    // An output overlaps an input or another output.
    TP_STATUS_OVERLAP = 37,
    // The handle is zero, closed, of another kind or of another context.
    TP_STATUS_CLOSED = 38,
    // Another call works with this scratch or cache, which take one at a time.
    TP_STATUS_BUSY = 39,
    // A fault of tensorpress itself: it was caught, and what the call worked on answers `TP_STATUS_PANIC` from now on.
    TP_STATUS_PANIC = 40,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum tp_status tp_status;
#else
typedef int32_t tp_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// What numbers are, in the byte order of the machine.
enum tp_type
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // Bytes of anything.
    TP_TYPE_BYTES = 0,
    // 8-bit floats, sign first.
    TP_TYPE_F8 = 1,
    // IEEE half precision, as `uint16_t`.
    TP_TYPE_F16 = 2,
    // bfloat16, as `uint16_t`.
    TP_TYPE_BF16 = 3,
    // `float`.
    TP_TYPE_F32 = 4,
    // `double`.
    TP_TYPE_F64 = 5,
    // Integers of two bytes.
    TP_TYPE_I16 = 6,
    // Integers of four bytes.
    TP_TYPE_I32 = 7,
    // Integers of eight bytes.
    TP_TYPE_I64 = 8,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum tp_type tp_type;
#else
typedef int32_t tp_type;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// How hard to try. Both are exact.
enum tp_effort
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // Decodes at a good part of the speed of copying.
    TP_EFFORT_FAST = 0,
    // Smaller; slow to encode, a quarter of the speed to decode.
    TP_EFFORT_BEST = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum tp_effort tp_effort;
#else
typedef int32_t tp_effort;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Owns handles and threads. All of tensorpress's state is in contexts: two of them know nothing of each other.
typedef struct tp_context tp_context;

// What went wrong, in the caller's memory: nothing has to be freed, and nothing is shared between threads. Every
// function that takes one writes it (`TP_STATUS_OK` and an empty message if all went well), unless it is null.
typedef struct {
    // What the function returned.
    tp_status status;
    // For a person, naming tensor and file where they are known: UTF-8, ended by a zero, cut if it is too long.
    char message[TP_MESSAGE_BYTES];
} tp_error;

// An open model; 0 is none.
typedef struct {
    // The number of the handle.
    uint64_t id;
} tp_model;

// An open layer; 0 is none.
typedef struct {
    // The number of the handle.
    uint64_t id;
} tp_layer;

// What a layer is.
typedef struct {
    // Outputs of the layer.
    size_t rows;
    // Inputs of the layer.
    size_t cols;
    // Bytes of all that is stored of it: codes, scales, tables, masks.
    uint64_t bytes;
    // 8 x these bytes over rows x cols.
    double bits_per_weight;
    // 1 if products are computed over the stored form, 0 if tiles of rows are decoded for them.
    int32_t fused;
} tp_layer_info;

// An open scratch; 0 is none.
typedef struct {
    // The number of the handle.
    uint64_t id;
} tp_scratch;

// The heads of an attention layer; each number is `TP_MOST_HEADS` at most.
typedef struct {
    // Heads of queries; a multiple of `kv_heads`.
    size_t heads;
    // Heads of keys and values.
    size_t kv_heads;
    // Channels of a head of queries and keys.
    size_t head_dim;
    // Channels of a head of values and of what attention gives; 0: as many as of keys.
    size_t value_dim;
} tp_kv_shape;

// An open cache, of one attention layer of one sequence; 0 is none.
typedef struct {
    // The number of the handle.
    uint64_t id;
} tp_kv;

// What a cache holds.
typedef struct {
    // Tokens appended, those included that are not held any more: the position of the next.
    size_t length;
    // The length at which the cache was settled last; `length` where nothing is put off.
    size_t settled;
    // The shortest length, but 0, to which the cache can be cut.
    size_t earliest;
    // Bytes of keys and values as they are held.
    uint64_t bytes;
} tp_kv_info;

// What a page holds and how. Begin with `tp_page_defaults`.
typedef struct {
    // Tokens of a full page, 1 to 65535.
    size_t tokens;
    // Heads of keys and values, 1 to 65535.
    size_t kv_heads;
    // Channels of a key, 1 to 65535.
    size_t head_dim;
    // Channels of a value, 0 to 65535: 0 where one array is all there is, as with latents.
    size_t value_dim;
    // Channels of a head that share a scale, 1 to 65535; the last group of a head has what is left.
    size_t group;
    // Bits of a code of the keys, 2 to 8.
    uint32_t key_bits;
    // Bits of a code of the values, 2 to 8.
    uint32_t value_bits;
    // Not 0: grids around zero, a scale alone, no minimum.
    int32_t symmetric;
    // The `tp_type` of scales and minima: F32, F16 or BF16.
    int32_t scales;
    // Not 0: rotate keys and values before they are rounded, and back when they are decoded.
    int32_t rotate;
    // What draws the signs of the rotation.
    uint64_t seed;
} tp_page_config;

// An open codec of pages; 0 is none.
typedef struct {
    // The number of the handle.
    uint64_t id;
} tp_page_codec;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The name of a status as this header spells it, or "unknown": a text that is always there.
const char *tp_status_name(int32_t status);

// The version of this library, as "0.1.0": a text that is always there.
const char *tp_version(void);

// Makes a context with so many threads; 0 means as many as the machine has. Work is shared among them only where a
// function says so; they sleep otherwise.
tp_status tp_context_new(size_t threads,
                         tp_context **context,
                         tp_error *error);

// Closes everything that is open in a context, ends its threads and frees it; the caller's pointer becomes null. No other
// call with this context may be running, and none may come later through a copy of the pointer: that, alone, cannot be
// checked.
tp_status tp_context_free(tp_context **context,
                          tp_error *error);

// Opens a model: a Hugging Face folder (compressed by tensorpress or not; quantised by GPTQ, AWQ, compressed-tensors or
// bitsandbytes), a packed file of one (`.tpk`), a GGUF file, or a safetensors file. Weights are mapped, or lie coded,
// until a layer is opened; the files must not be cut meanwhile.
//
// Errors: `IO`, `INSUFFICIENT_DATA`, `CORRUPTION`, `VERSION` and `UNSUPPORTED`, naming file and tensor; `BAD_UTF8`.
tp_status tp_model_open(const tp_context *context,
                        const char *path,
                        tp_model *model,
                        tp_error *error);

// Closes a model, whose handle becomes zero. Layers that were opened stay.
tp_status tp_model_close(const tp_context *context, tp_model *model, tp_error *error);

// Counts what a model has by name: weights, compressed or not, and whatever else is stored (norms, biases, embeddings).
tp_status tp_model_count(const tp_context *context,
                         tp_model model,
                         size_t *count,
                         tp_error *error);

// Copies the name with this index, below the count, into a text buffer. Names are in the order of their bytes.
//
// Errors: `INVALID_ARGUMENT` for an index that is too large; `BUFFER_TOO_SMALL`.
tp_status tp_model_name(const tp_context *context,
                        tp_model model,
                        size_t index,
                        char *buffer,
                        size_t capacity,
                        size_t *length,
                        tp_error *error);

// Copies the model's `config.json`, as it stands or as it would be for a GGUF file, into a text buffer; `{}` where
// there is none.
//
// Errors: `BUFFER_TOO_SMALL`.
tp_status tp_model_config(const tp_context *context,
                          tp_model model,
                          char *buffer,
                          size_t capacity,
                          size_t *length,
                          tp_error *error);

// Opens a weight of a model by its name (`tp_model_name`); nothing is decoded, and a mapped file is not copied. A vector
// is a layer of one row; of more than two axes, all but the first count as columns.
//
// Errors: `INSUFFICIENT_DATA` if there is no such name; `UNSUPPORTED` for numbers that are no floats; `CORRUPTION`.
tp_status tp_layer_open(const tp_context *context,
                        tp_model model,
                        const char *name,
                        tp_layer *layer,
                        tp_error *error);

// Closes a layer, whose handle becomes zero. Products that are being computed with it end as they would have.
tp_status tp_layer_close(const tp_context *context, tp_layer *layer, tp_error *error);

// Says what a layer is; counts its parts, so keep the answer.
tp_status tp_layer_describe(const tp_context *context, tp_layer layer, tp_layer_info *info, tp_error *error);

// Copies the kind of a layer, the wire id of the root of its tree (as `dense.v1`), into a text buffer.
//
// Errors: `BUFFER_TOO_SMALL`.
tp_status tp_layer_kind(const tp_context *context,
                        tp_layer layer,
                        char *buffer,
                        size_t capacity,
                        size_t *length,
                        tp_error *error);

// Copies the tree of a layer as JSON into a text buffer: kinds, parameters and children, as docs/format.md states them.
//
// Errors: `BUFFER_TOO_SMALL`.
tp_status tp_layer_tree(const tp_context *context,
                        tp_layer layer,
                        char *buffer,
                        size_t capacity,
                        size_t *length,
                        tp_error *error);

// Copies why `tp_compress` did less than asked, as where a recipe looks at inputs and there were none, into a text
// buffer; empty if it did not, and for layers that were not made by it.
//
// Errors: `BUFFER_TOO_SMALL`.
tp_status tp_layer_note(const tp_context *context,
                        tp_layer layer,
                        char *buffer,
                        size_t capacity,
                        size_t *length,
                        tp_error *error);

// Copies what a recipe of `tp_compress` (`feature_mimicking`, say) adds to the layer's bias into `out` `[rows]`; zeros
// if that is nothing, and for layers that were not made by it. It is not among the bytes of the layer: keep it with the
// biases of the model.
//
// Errors: `WRONG_LENGTH`.
tp_status tp_layer_bias(const tp_context *context,
                        tp_layer layer,
                        float *out,
                        size_t out_length,
                        tp_error *error);

// Decodes `rows` rows from `first_row` on into `out` `[rows, cols]`, on this thread. Any partition of the rows gives
// the same bits.
//
// Errors: `INVALID_ARGUMENT` for rows that the layer does not have; `WRONG_LENGTH`; `CORRUPTION`.
tp_status tp_layer_decode(const tp_context *context,
                          tp_layer layer,
                          size_t first_row,
                          size_t rows,
                          float *out,
                          size_t out_length,
                          tp_error *error);

// Lays a layer out as it multiplies fastest on this machine, under the same handle; it decodes to the same numbers and
// writes the same bytes. Products that are being computed are waited for, and those that come wait.
//
// Errors: `CORRUPTION`; the layer answers `CLOSED` then.
tp_status tp_layer_prepack(const tp_context *context,
                           tp_layer layer,
                           tp_error *error);

// Makes a scratch: memory for products and attention, kept for the next ones, and how many threads they may use. 1
// means the calling thread alone, 0 all threads of the context, and more at most so many of them. Whatever thread it is
// that calls may use a scratch, one at a time (`BUSY` else): give each of your own threads one.
tp_status tp_scratch_open(const tp_context *context,
                          size_t threads,
                          tp_scratch *scratch,
                          tp_error *error);

// Closes a scratch, whose handle becomes zero, and gives its memory back.
tp_status tp_scratch_close(const tp_context *context, tp_scratch *scratch, tp_error *error);

// `Y = X W[rows]ᵀ`: inputs `x` `[tokens, cols]` of `dtype` F32, F16 or BF16 by `rows` rows of the layer from `first_row`
// on, into `y` `[tokens, rows]`. Many threads may multiply by one layer at a time, each with a scratch and rows of its
// own; the layer is not decoded as a whole, and how many threads there are changes no result.
//
// Errors: `INVALID_ARGUMENT` for rows that the layer does not have; `WRONG_LENGTH` of `x` or `y`, in numbers; `OVERLAP`
// of the two; `UNSUPPORTED` for another type; `CORRUPTION`; `BUSY`.
tp_status tp_layer_multiply(const tp_context *context,
                            tp_layer layer,
                            tp_scratch scratch,
                            size_t first_row,
                            size_t rows,
                            int32_t dtype,
                            const void *x,
                            size_t x_length,
                            size_t tokens,
                            float *y,
                            size_t y_length,
                            tp_error *error);

// Compresses a matrix W `[rows, cols]` of `dtype` F32, F16 or BF16 by a recipe, as "rtn(bits=4, group=64)" or
// "awq | gptq(bits=3)" (docs/recipes.md), and opens the result. Recipes that look at inputs learn from `samples`, any
// number of rows of `cols` numbers, which may be null with length 0: some then do less than asked, and `tp_layer_note`
// says so, others are an error. Add `tp_layer_bias` to the layer's bias. Works on the threads of the context.
//
// Errors: `INVALID_ARGUMENT` and `UNSUPPORTED` for what is no recipe for one matrix; `MISSING_CALIBRATION`; `NUMERICAL` for
// weights that are not finite; `WRONG_LENGTH`; `BAD_UTF8`.
tp_status tp_compress(const tp_context *context,
                      const char *recipe,
                      int32_t dtype,
                      const void *weight,
                      size_t weight_length,
                      size_t rows,
                      size_t cols,
                      const float *samples,
                      size_t samples_length,
                      tp_layer *layer,
                      tp_error *error);

// Opens a matrix W `[rows, cols]` of `dtype` F32, F16 or BF16 as it is, copied: what is not worth compressing is
// multiplied by in the same way.
//
// Errors: `WRONG_LENGTH`; `UNSUPPORTED` for another type.
tp_status tp_layer_dense(const tp_context *context,
                         int32_t dtype,
                         const void *weight,
                         size_t weight_length,
                         size_t rows,
                         size_t cols,
                         tp_layer *layer,
                         tp_error *error);

// Writes a layer into a buffer: a safetensors file of one weight, with a checksum (docs/format.md). Asking for the
// length alone takes as long as writing.
//
// Errors: `BUFFER_TOO_SMALL`; `CORRUPTION`.
tp_status tp_layer_to_bytes(const tp_context *context,
                            tp_layer layer,
                            uint8_t *buffer,
                            size_t capacity,
                            size_t *length,
                            tp_error *error);

// Opens the layer that `tp_layer_to_bytes` wrote; the bytes are copied.
//
// Errors: `CORRUPTION` or `INSUFFICIENT_DATA` for every changed, missing or added byte; `VERSION`.
tp_status tp_layer_from_bytes(const tp_context *context,
                              const uint8_t *bytes,
                              size_t bytes_length,
                              tp_layer *layer,
                              tp_error *error);

// Makes the caches of `layers` attention layers of a model, into as many handles. The recipe says how tokens are held
// and which go, as "kivi(bits=4)" or "kivi(bits=4) | h2o(keep=0.5)" (docs/recipes.md); empty, all are held as f32. If
// `deferred` is not 0, nothing goes before `tp_kv_settle`, and whatever comes before that can be taken back exactly:
// for speculative decoding.
//
// Errors: `INVALID_ARGUMENT` and `UNSUPPORTED` for what is no recipe, and for heads that do not go with it; `BAD_UTF8`.
tp_status tp_kv_open(const tp_context *context,
                     const char *recipe,
                     const tp_kv_shape *shape,
                     int32_t deferred,
                     tp_kv *caches,
                     size_t layers,
                     tp_error *error);

// Closes a cache, whose handle becomes zero.
tp_status tp_kv_close(const tp_context *context, tp_kv *cache, tp_error *error);

// Makes a cache of its own with the same contents, as for a prompt that several answers share: full pages of floats are
// shared until one side changes them.
tp_status tp_kv_fork(const tp_context *context,
                     tp_kv cache,
                     tp_kv *fork,
                     tp_error *error);

// Appends keys `[tokens, kv_heads, head_dim]` and values `[tokens, kv_heads, value_dim]` of the next tokens, of `dtype`
// F32, F16 or BF16 (the scratch holds them as f32).
//
// Errors: `WRONG_LENGTH`; `NUMERICAL` for what is not finite or too large for the form; `UNSUPPORTED` for another type;
// `BUSY`. The cache is then as it was.
tp_status tp_kv_append(const tp_context *context,
                       tp_kv cache,
                       tp_scratch scratch,
                       int32_t dtype,
                       const void *keys,
                       size_t keys_length,
                       const void *values,
                       size_t values_length,
                       size_t tokens,
                       tp_error *error);

// Attention of the queries `[tokens, heads, head_dim]` of the tokens that were appended last, of `dtype` F32, F16 or
// BF16, into `out` `[tokens, heads, value_dim]`: softmax(q kᵀ / sqrt(head_dim)) v over what each may see, the last
// `window` tokens, itself included, or all if that is 0. Afterwards go the tokens that the recipe lets go, unless that
// is put off. One cache takes one call at a time; those of several layers or sequences work side by side, each with a
// scratch.
//
// Errors: `INVALID_ARGUMENT` for more queries than tokens; `WRONG_LENGTH`; `OVERLAP`; `UNSUPPORTED` for another type;
// `BUSY`.
tp_status tp_kv_attend(const tp_context *context,
                       tp_kv cache,
                       tp_scratch scratch,
                       int32_t dtype,
                       const void *queries,
                       size_t queries_length,
                       size_t tokens,
                       size_t window,
                       float *out,
                       size_t out_length,
                       tp_error *error);

// Says what a cache holds.
//
// Errors: `BUSY`.
tp_status tp_kv_describe(const tp_context *context, tp_kv cache, tp_kv_info *info, tp_error *error);

// Goes back to the first `length` tokens, as if the others had never been.
//
// Errors: `UNSUPPORTED` where tokens were let go, packed or counted since (`tp_kv_info.earliest`); `INVALID_ARGUMENT`
// for more tokens than there are; `BUSY`. The cache is then as it was.
tp_status tp_kv_truncate(const tp_context *context,
                         tp_kv cache,
                         size_t length,
                         tp_error *error);

// Accepts what was appended to a deferred cache, and lets go what the recipe lets go; of another, nothing happens.
//
// Errors: those of the recipe's score, and then nothing is settled; `BUSY`.
tp_status tp_kv_settle(const tp_context *context,
                       tp_kv cache,
                       tp_error *error);

// Fills in a configuration: 16 tokens of 8 heads of 128 channels, 4 bits, groups of 64 with an f16 scale and minimum,
// rotated by seed 0.
tp_status tp_page_defaults(tp_page_config *config,
                           tp_error *error);

// Makes a codec, and says how many bytes each of its pages takes. Many threads may use one at a time.
//
// Errors: `INVALID_ARGUMENT` for a number outside of what its field allows.
tp_status tp_page_open(const tp_context *context,
                       const tp_page_config *config,
                       tp_page_codec *codec,
                       size_t *page_bytes,
                       tp_error *error);

// Closes a codec, whose handle becomes zero.
tp_status tp_page_close(const tp_context *context, tp_page_codec *codec, tp_error *error);

// Writes keys `[tokens, kv_heads, head_dim]` and values `[tokens, kv_heads, value_dim]` of `dtype` F32, F16 or BF16 into
// a page: as many tokens as a page holds, or fewer. They lie without gaps if both strides are 0; else so many numbers
// lie between the beginnings of two tokens, and of two heads (heads before tokens: `token_stride` = head_dim,
// `head_stride` = tokens x head_dim). Lengths are in numbers, alignment does not matter. The same numbers give the same
// page on every machine.
//
// Errors: `SHAPE_MISMATCH` for lengths that are not those of the shape, too many tokens, or another length of the page;
// `NUMERICAL` for NaN, infinity, and what is too large; `UNSUPPORTED` for another type; `OVERLAP`; `BUSY`.
tp_status tp_page_encode(const tp_context *context,
                         tp_page_codec codec,
                         tp_scratch scratch,
                         int32_t dtype,
                         const void *keys,
                         size_t keys_length,
                         const void *values,
                         size_t values_length,
                         size_t tokens,
                         size_t token_stride,
                         size_t head_stride,
                         uint8_t *page,
                         size_t page_length,
                         tp_error *error);

// Reads a page into the first tokens of keys and values, with room for `tokens` laid out as `tp_page_encode` says, and
// writes how many it holds; what lies between rows, and other tokens, are left as they are. The type may be another than
// what was encoded; f16 takes what is beyond it as its largest number.
//
// Errors: `INSUFFICIENT_DATA` for a page that is cut, `CORRUPTION` for one that is damaged, `VERSION`,
// `INVALID_ARGUMENT` for one of another configuration; `SHAPE_MISMATCH`; `UNSUPPORTED`; `OVERLAP`, of keys and values
// as well; `BUSY`. Nothing is written then (unless the checksum fits numbers that no encoder writes).
tp_status tp_page_decode(const tp_context *context,
                         tp_page_codec codec,
                         tp_scratch scratch,
                         const uint8_t *page,
                         size_t page_length,
                         int32_t dtype,
                         void *keys,
                         size_t keys_length,
                         void *values,
                         size_t values_length,
                         size_t tokens,
                         size_t token_stride,
                         size_t head_stride,
                         size_t *held,
                         tp_error *error);

// Bytes that `tp_pack` needs at most for numbers of so many bytes.
size_t tp_pack_bound(size_t bytes);

// Packs `count` numbers of a `tp_type`, with a `tp_effort`, into `buffer`: type, length and checksums are inside. A
// capacity of `tp_pack_bound` is always enough. The same numbers give the same bytes, for any number of threads; works
// on the threads of the context.
//
// Errors: `BUFFER_TOO_SMALL`; `INVALID_ARGUMENT` for no type or effort; `OVERLAP`.
tp_status tp_pack(const tp_context *context,
                  int32_t dtype,
                  int32_t effort,
                  const void *numbers,
                  size_t count,
                  uint8_t *buffer,
                  size_t capacity,
                  size_t *length,
                  tp_error *error);

// Says what `tp_pack` packed: the `tp_type`, and how many numbers. Every checksum is compared, nothing is decoded: 18
// bytes may stand for 1 MiB, so that bytes of strangers are best looked at before room is made.
//
// Errors: `CORRUPTION`, `INSUFFICIENT_DATA`, `VERSION`.
tp_status tp_packed_contents(const uint8_t *packed,
                             size_t packed_length,
                             int32_t *dtype,
                             size_t *count,
                             tp_error *error);

// Unpacks what `tp_pack` packed into `count` numbers of the same type (`tp_packed_contents`), bit for bit. Works on the
// threads of the context.
//
// Errors: `CORRUPTION`, `INSUFFICIENT_DATA`, `VERSION`; `WRONG_LENGTH` for another number of numbers; `MISALIGNED` if
// they do not lie where such numbers may; `OVERLAP`.
tp_status tp_unpack(const tp_context *context,
                    const uint8_t *packed,
                    size_t packed_length,
                    void *numbers,
                    size_t count,
                    tp_error *error);

// Packs a file or a folder `from` into the file `to` (`.tpk`), with a `tp_effort`. `to` appears when it is whole; it is
// replaced only if `force` is not 0. Works on the threads of the context.
//
// Errors: `IO`; `EXISTS`; `CORRUPTION`, as for weight files that are damaged; `BAD_UTF8`.
tp_status tp_pack_path(const tp_context *context,
                       int32_t effort,
                       const char *from,
                       const char *to,
                       int32_t force,
                       tp_error *error);

// Restores what `tp_pack_path` packed, byte for byte, as the file or folder `to`, which appears when it is whole; it is
// replaced only if `force` is not 0. Works on the threads of the context.
//
// Errors: `IO`; `EXISTS`; `CORRUPTION`, `INSUFFICIENT_DATA`, `VERSION`; `MISSING_BASE` for a file that is the difference
// from another; `BAD_UTF8`. Nothing is left behind.
tp_status tp_unpack_path(const tp_context *context,
                         const char *from,
                         const char *to,
                         int32_t force,
                         tp_error *error);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* TENSORPRESS_H */
