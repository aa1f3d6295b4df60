//! What is compared.

/// A recipe, windows of its calibration, whose inputs they give, and what it is the best one without.
pub(super) struct Line {
    pub(super) without: &'static str,
    pub(super) recipe: &'static str,
    pub(super) windows: usize,
    pub(super) inputs: &'static str,
}

const fn line(without: &'static str, recipe: &'static str) -> Line {
    Line { without, recipe, windows: 64, inputs: "compressed" }
}

/// The best recipe at 3 bits, and with one part left out or changed.
pub(super) const LINES: [Line; 22] = [
    line("all of it", "drift | watersic(bits=3) | coded(rans)"),
    line("no drift correction", "watersic(bits=3) | coded(rans)"),
    Line {
        inputs: "original",
        ..line("no drift correction, not sequential", "watersic(bits=3) | coded(rans)")
    },
    line("drift at full strength", "drift(strength=1) | watersic(bits=3) | coded(rans)"),
    line("rows by all of G", "drift | watersic(bits=3, rows=full) | coded(rans)"),
    line("equal rows", "drift | watersic(bits=3, rows=none) | coded(rans)"),
    line("equal columns", "drift | watersic(bits=3, columns=equal) | coded(rans)"),
    line(
        "equal rows and columns",
        "drift | watersic(bits=3, rows=none, columns=equal) | coded(rans)",
    ),
    line("each matrix at 3 bits", "drift | watersic(bits=3, each=true) | coded(rans)"),
    line("A damped by 0.01", "drift | watersic(bits=3, damp=0.01) | coded(rans)"),
    line("A damped by 0.3", "drift | watersic(bits=3, damp=0.3) | coded(rans)"),
    line("A damped by its mean", "drift | watersic(bits=3, damping=mean) | coded(rans)"),
    line("no trellis", "drift | watersic(bits=3, states=0) | coded(rans)"),
    line("4 states", "drift | watersic(bits=3, states=4) | coded(rans)"),
    line("32 states", "drift | watersic(bits=3, states=32) | coded(rans)"),
    line("256 states", "drift | watersic(bits=3, states=256) | coded(rans)"),
    line("bits cost nothing", "drift | watersic(bits=3, lam=0) | coded(rans)"),
    line("inputs rotated, each matrix", "drift | hadamard | watersic(bits=3) | coded(rans)"),
    Line { windows: 16, ..line("16 windows", "drift | watersic(bits=3) | coded(rans)") },
    Line { windows: 256, ..line("256 windows", "drift | watersic(bits=3) | coded(rans)") },
    line("GPTQ", "gptq(bits=3, group=64, clip=mse)"),
    line("GPTAQ", "gptaq(bits=3, group=64, clip=mse)"),
];

/// A recipe for each method of crate quant that rounds matrices, most of which are of 3 or 4 bits.
pub(super) const METHODS: [&str; 52] = [
    "rtn(bits=4, group=64, clip=mse)",
    "gptq(bits=4, group=64, clip=mse)",
    "gptq(bits=3, group=64, clip=mse)",
    "gptaq(bits=3, group=64, clip=mse)",
    "drift | gptq(bits=3, group=64, clip=mse)",
    "drift | yaqa | gptq(bits=3, group=64, clip=mse)",
    "guided | gptq(bits=3, group=64, clip=mse)",
    "hadamard | gptq(bits=3, group=64, clip=mse)",
    "awq(bits=4, group=64, clip=mse)",
    "obq(bits=4, group=64, clip=mse)",
    "hqq(bits=4, group=64)",
    "nf4",
    "nf4(rounding=feedback)",
    "fp4",
    "dynamic8",
    "bitmod(bits=4, group=64)",
    "post(bits=4, group=64, rounding=feedback)",
    "sherry(group=64, rounding=feedback)",
    "binary(bases=2, group=64, fit=joint, rounding=feedback)",
    "kmeans(bits=4, rows=16)",
    "dkm(bits=4, rows=16)",
    "sketch(bits=4)",
    "squeezellm(bits=4, rows=16)",
    "squeezellm(bits=4, rows=16, outliers=0.0045) | coded(rans)",
    "nested(low=2, high=4)",
    "mixllm(bits=4, group=64, share=0.1)",
    "spqr(bits=3)",
    "hadamard | pvq(bits=3, size=16, rounding=feedback)",
    "hadamard | e8(rounding=feedback)",
    "aqlm(books=2)",
    "lr2vq",
    "pv(kmeans(bits=3))",
    "bitstack(blocks=2, rank=8)",
    "adapt",
    "smoothquant",
    "fptq(group=64)",
    "fptq | gptq(bits=4, group=64, clip=mse)",
    "ggml(type=Q4_0)",
    "drift | ggml(type=Q4_0)",
    "drift | yaqa | ggml(type=Q4_0)",
    "drift | yaqa | ggml(type=IQ4_NL)",
    "drift | yaqa | ggml(type=MXFP4)",
    "drift | yaqa | ggml(type=NVFP4)",
    "drift | yaqa | qtip(bits=2)",
    "drift | yaqa | qtip(bits=3)",
    "drift | yaqa | qtip(bits=4)",
    "watersic(bits=3) | coded(rans)",
    "drift | watersic(bits=3, rows=full, states=32) | coded(rans)",
    "best2",
    "best3",
    "best4",
    "drift | watersic(bits=4.2, rows=full, states=32) | coded(rans)",
];

/// Types of GGUF and bytes of a block of so many values; ggml's quantiser takes importance for those with a `+`.
pub(super) const TYPES: [(&str, usize, usize); 12] = [
    ("Q2_K+", 84, 256),
    ("IQ3_XXS+", 98, 256),
    ("Q3_K+", 110, 256),
    ("IQ4_XS+", 136, 256),
    ("Q4_0", 18, 32),
    ("IQ4_NL+", 18, 32),
    ("Q4_K+", 144, 256),
    ("Q4_1", 20, 32),
    ("Q5_0", 22, 32),
    ("Q5_K+", 176, 256),
    ("Q6_K+", 210, 256),
    ("Q8_0", 34, 32),
];
