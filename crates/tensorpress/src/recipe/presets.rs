use tensorpress_tensor::stage::Preset;

/// Names of stages that later versions will have.
pub(crate) const PLANNED: &[&str] = &["quip", "lqer"];

/// Recipes with a name.
#[must_use]
pub fn presets() -> [Preset; 6] {
    [
        Preset {
            name: "w8",
            line: "rtn(bits=8, group=128)",
            about: "8 bits, no calibration: next to no loss",
        },
        Preset {
            name: "w4",
            line: "gptq(bits=4, group=128, clip=mse)",
            about: "4 bits: the usual choice for serving",
        },
        Preset {
            name: "w3",
            line: "gptq(bits=3, group=64, clip=mse)",
            about: "3 bits: where memory decides",
        },
        Preset {
            name: "best4",
            line: "drift | watersic(bits=4.0) | coded(rans)",
            about: "4 bits for the least loss: entropy-coded integers",
        },
        Preset {
            name: "best3",
            line: "drift | watersic(bits=3.0) | coded(rans)",
            about: "3 bits: where measured, half the loss of GPTQ at 4",
        },
        Preset {
            name: "best2",
            line: "drift | watersic(bits=2.25) | coded(rans)",
            about: "2.25 bits, where memory decides alone",
        },
    ]
}
