"""llama.cpp's C interface, in the library of the package xllamacpp, which links llama.cpp whole and shows its symbols.
Structures of parameters are taken as their defaults and handed back, so that their layout does not matter."""
import ctypes, pathlib
import numpy as np
import xllamacpp

POINTER, INT, LONG, TEXT, BOOL = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_char_p, ctypes.c_bool


class Defaults(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_byte * 2048)]  # goes by the stack: more than there is does no harm


class Batch(ctypes.Structure):
    _fields_ = [("count", INT), ("token", POINTER), ("embd", POINTER), ("pos", POINTER), ("n_seq_id", POINTER),
                ("seq_id", POINTER), ("logits", POINTER)]


class Reading(ctypes.Structure):
    _fields_ = [("no_alloc", BOOL), ("context", POINTER)]


class Traits(ctypes.Structure):
    _fields_ = [("name", TEXT), ("block_len", LONG), ("interleave", LONG), ("block_bytes", ctypes.c_size_t),
                ("quantized", BOOL), ("to_float", ctypes.CFUNCTYPE(None, POINTER, POINTER, LONG))]


LOG = ctypes.CFUNCTYPE(None, INT, TEXT, POINTER)
SIGNATURES = {
    "llama_log_set": (None, LOG, POINTER),
    "llama_model_default_params": (Defaults,), "llama_context_default_params": (Defaults,),
    "llama_model_load_from_file": (POINTER, TEXT, Defaults), "llama_model_free": (None, POINTER),
    "llama_init_from_model": (POINTER, POINTER, Defaults), "llama_free": (None, POINTER),
    "llama_set_n_threads": (None, POINTER, INT, INT),
    "llama_model_get_vocab": (POINTER, POINTER), "llama_vocab_n_tokens": (INT, POINTER),
    "llama_tokenize": (INT, POINTER, TEXT, INT, POINTER, INT, BOOL, BOOL),
    "llama_batch_get_one": (Batch, POINTER, INT), "llama_decode": (INT, POINTER, Batch),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), POINTER, INT),
    "gguf_init_from_file": (POINTER, TEXT, Reading), "gguf_free": (None, POINTER),
    "gguf_get_n_tensors": (LONG, POINTER), "gguf_get_tensor_name": (TEXT, POINTER, LONG),
    "gguf_get_tensor_type": (INT, POINTER, LONG), "gguf_get_tensor_offset": (ctypes.c_size_t, POINTER, LONG),
    "gguf_get_tensor_size": (ctypes.c_size_t, POINTER, LONG), "gguf_get_data_offset": (ctypes.c_size_t, POINTER),
    "ggml_get_type_traits": (ctypes.POINTER(Traits), INT),
}
GGML_F32, GGML_F16 = 0, 1
errors = []


@LOG
def log(level, text, _):
    if level == 4:  # an error
        errors.append(text.decode(errors="replace").strip())


lib = ctypes.CDLL(str(next(pathlib.Path(xllamacpp.__file__).parent.glob("xllamacpp*.so"))))
for symbol, (result, *arguments) in SIGNATURES.items():
    function = getattr(lib, symbol)
    function.restype, function.argtypes = result, arguments
lib.llama_log_set(log, None)


def context_params():
    """The defaults, but for attention in f32: else keys and values are f16, and so is much of what flash attention computes,
    whatever the weights are. Four enumerations of -1 (unknown, or automatic) stand in a row, the last for flash attention; the
    types of keys and values behind two pointers that are null."""
    params = lib.llama_context_default_params()
    words = np.frombuffer(params, "<i4")[:64]
    automatic = [at for at in range(60) if (words[at:at + 4] == -1).all()]
    types = [at for at in range(4, 63) if not words[at - 4:at].any() and (words[at:at + 2] == GGML_F16).all()]
    if len(automatic) != 1 or len(types) != 1:
        raise RuntimeError("llama.cpp's parameters of a context are not where they were")
    words[automatic[0] + 3] = 0
    words[types[0]:types[0] + 2] = GGML_F32
    return params


class Model:
    """A GGUF file in llama.cpp."""

    def __init__(self, path):
        errors.clear()
        self.model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load it: {'; '.join(errors) or 'it does not say why'}")
        self.vocab = lib.llama_model_get_vocab(self.model)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        lib.llama_model_free(self.model)

    def tokens(self, text):
        found, text = np.zeros(len(text) + 8, "<i4"), text.encode()
        count = lib.llama_tokenize(self.vocab, text, len(text), found.ctypes.data, len(found), True, False)
        return found[:count].tolist()

    def logits(self, ids):
        """Logits of every token, in one pass over all of them."""
        ids, wanted = np.array(ids, "<i4"), np.ones(len(ids), "i1")
        context = lib.llama_init_from_model(self.model, context_params())
        if not context:
            raise RuntimeError(f"llama.cpp makes no context: {'; '.join(errors)}")
        try:
            lib.llama_set_n_threads(context, 2, 2)
            batch = lib.llama_batch_get_one(ids.ctypes.data, len(ids))
            batch.logits = wanted.ctypes.data
            if lib.llama_decode(context, batch) != 0:
                raise RuntimeError(f"llama.cpp does not run it: {'; '.join(errors)}")
            shape = (lib.llama_vocab_n_tokens(self.vocab),)
            rows = [np.ctypeslib.as_array(lib.llama_get_logits_ith(context, i), shape).copy() for i in range(len(ids))]
        finally:
            lib.llama_free(context)
        return np.stack(rows)


def decoded(path):
    """Every tensor of a file by name: the name of its type, and its values, as ggml's own C code decodes them."""
    file = lib.gguf_init_from_file(str(path).encode(), Reading(True, None))
    if not file:
        raise RuntimeError("ggml does not read its header")
    data, start, found = np.memmap(path, "u1", "r"), lib.gguf_get_data_offset(file), {}
    for index in range(lib.gguf_get_n_tensors(file)):
        traits = lib.ggml_get_type_traits(lib.gguf_get_tensor_type(file, index)).contents
        at, size = start + lib.gguf_get_tensor_offset(file, index), lib.gguf_get_tensor_size(file, index)
        stored = np.ascontiguousarray(data[at:at + size])
        values = np.empty(size // traits.block_bytes * traits.block_len, "<f4")
        if lib.gguf_get_tensor_type(file, index) == GGML_F32:
            values[:] = stored.view("<f4")
        else:
            traits.to_float(stored.ctypes.data, values.ctypes.data, len(values))
        found[lib.gguf_get_tensor_name(file, index).decode()] = (traits.name.decode(), values)
    lib.gguf_free(file)
    return found
